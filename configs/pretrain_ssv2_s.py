"""ViT-S on Something-Something V2 for 2400 epochs.

python train.py --config=configs/pretrain_ssv2_s.py --workdir=... --config.data.path=...

VideoMAE (Tong et al., NeurIPS 2022, arXiv 2203.12602).
Theirs ran on 32 GPUs with 32 clips each.
Fine-tuned: 66.8 % top-1 and 90.3 % top-5 on Something-Something V2 (2 x 3 views).
Their schedule is stretched over 2401 epochs, and the released weights are those after 2400.
Prepared data must hold every second frame: `prepare --frame-step 2`.

Machines that hold it, and memory (`python -m vmae_jax plan`):
v5e:4x4: data 16, remat none, 64 clips a chip (1024): 12.8 GiB
v6e:4x4: data 16, remat none, 64 clips a chip (1024): 12.8 GiB
h200:8: data 8, remat none, 128 clips a GPU (1024): 25.7 GiB, estimated

Source: github.com/MCG-NJU/VideoMAE,
scripts/ssv2/videomae_vit_small_patch16_224_tubemasking_ratio_0.9_epoch_2400/pretrain.sh
"""

from vmae_jax.configs import default
from vmae_jax.data.datasets import DATASETS


def get_config():
    config = default.get_config()

    config.model.size = "S"

    config.data.name = "ssv2"
    config.data.num_clips = DATASETS["ssv2"].num_clips["train"]
    config.data.batch_size = 1024
    config.data.frame_stride = DATASETS["ssv2"].frame_stride

    config.schedule.num_epochs = 2401
    config.schedule.warmup_epochs = 40
    return config
