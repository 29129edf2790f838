"""ViT-L on Kinetics-400 for 1600 epochs.

python train.py --config=configs/pretrain_k400_l.py --workdir=... --config.data.path=...

VideoMAE (Tong et al., NeurIPS 2022, arXiv 2203.12602).
Theirs ran on 64 GPUs with 8 clips each.
Fine-tuned: 85.2 % top-1 and 96.8 % top-5 on Kinetics-400 (5 x 3 views).
Their schedule is stretched over 1601 epochs, and the released weights are those after 1600.

Machines that hold it, and memory (`python -m vmae_jax plan`):
v5e:4x4: data 16, remat attention, 32 clips a chip (512): 8.9 GiB
v6e:4x4: data 16, remat attention, 32 clips a chip (512): 9.3 GiB
h200:8: data 8, remat none, 64 clips a GPU (512): 75.1 GiB, estimated

Source: github.com/MCG-NJU/VideoMAE,
scripts/kinetics/videomae_vit_large_patch16_224_tubemasking_ratio_0.9_epoch_1600/pretrain.sh
"""

from vmae_jax.configs import default
from vmae_jax.data.datasets import DATASETS


def get_config():
    config = default.get_config()

    config.model.size = "L"  # its decoder is 12 deep

    config.data.name = "kinetics400"
    config.data.num_clips = DATASETS["kinetics400"].num_clips["train"]
    config.data.batch_size = 512

    config.schedule.num_epochs = 1601
    config.schedule.warmup_epochs = 40
    return config
