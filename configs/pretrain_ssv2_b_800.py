"""ViT-B on Something-Something V2 for 800 epochs.

python train.py --config=configs/pretrain_ssv2_b_800.py --workdir=... --config.data.path=...

VideoMAE (Tong et al., NeurIPS 2022, arXiv 2203.12602).
Theirs ran on 64 GPUs with 32 clips each, 19.5 hours; the paper's table says 1024 clips in all.
Fine-tuned: 69.6 % top-1 and 92.0 % top-5 on Something-Something V2 (2 x 3 views).
Their schedule is stretched over 801 epochs, and the released weights are those after 800.
Prepared data must hold every second frame: `prepare --frame-step 2`.

Machines that hold it, and memory (`python -m vmae_jax plan`):
v5e:16x16: data 256, remat none, 8 clips a chip (2048): 4.0 GiB
v6e:4x8: data 32, remat none, 64 clips a chip (2048): 24.7 GiB
h200:8: data 8, remat none, 256 clips a GPU (2048): 93.7 GiB, estimated

Source: github.com/MCG-NJU/VideoMAE,
scripts/ssv2/videomae_vit_base_patch16_224_tubemasking_ratio_0.9_epoch_800/pretrain.sh
"""

from vmae_jax.configs import default
from vmae_jax.data.datasets import DATASETS


def get_config():
    config = default.get_config()

    config.data.name = "ssv2"
    config.data.num_clips = DATASETS["ssv2"].num_clips["train"]
    config.data.frame_stride = DATASETS["ssv2"].frame_stride

    config.schedule.num_epochs = 801
    config.schedule.warmup_epochs = 40
    return config
