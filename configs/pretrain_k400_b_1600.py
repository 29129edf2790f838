"""ViT-B on Kinetics-400 for 1600 epochs.

python train.py --config=configs/pretrain_k400_b_1600.py --workdir=... --config.data.path=...

VideoMAE (Tong et al., NeurIPS 2022, arXiv 2203.12602).
Theirs ran on 64 GPUs with 32 clips each; the paper's table says 1024 clips in all.
Fine-tuned: 81.5 % top-1 and 95.1 % top-5 on Kinetics-400 (5 x 3 views).
Their schedule is stretched over 1601 epochs, and the released weights are those after 1600.

Machines that hold it, and memory (`python -m vmae_jax plan`):
v5e:16x16: data 256, remat none, 8 clips a chip (2048): 4.0 GiB
v6e:4x8: data 32, remat none, 64 clips a chip (2048): 24.7 GiB
h200:8: data 8, remat none, 256 clips a GPU (2048): 93.7 GiB, estimated

Source: github.com/MCG-NJU/VideoMAE,
scripts/kinetics/videomae_vit_base_patch16_224_tubemasking_ratio_0.9_epoch_1600/pretrain.sh
"""

from vmae_jax.configs import default
from vmae_jax.data.datasets import DATASETS


def get_config():
    config = default.get_config()

    config.data.name = "kinetics400"
    config.data.num_clips = DATASETS["kinetics400"].num_clips["train"]

    config.schedule.num_epochs = 1601
    config.schedule.warmup_epochs = 40
    return config
