"""ViT-B on HMDB51 alone for 4800 epochs.

python train.py --config=configs/pretrain_hmdb51_b.py --workdir=... --config.data.path=...

VideoMAE (Tong et al., NeurIPS 2022, arXiv 2203.12602).
Theirs ran on 8 GPUs, 192 clips in all.
Fine-tuned: 62.6 % top-1 on HMDB51 (10 x 3 views).
There is no script: warmup and final rate are those of the other runs.
The paper rounds the size of the data set; data.num_clips takes that of your split.
Prepared data must hold every second frame: `prepare --frame-step 2`.

Machines that hold it, and memory (`python -m vmae_jax plan`):
v5e:4x4: data 16, remat none, 12 clips a chip (192): 8.7 GiB
v6e:2x4: data 8, remat none, 24 clips a chip (192): 16.5 GiB
h200:8: data 8, remat none, 24 clips a GPU (192): 13.8 GiB, estimated

Source: the paper's appendix.
"""

from vmae_jax.configs import default
from vmae_jax.data.datasets import DATASETS


def get_config():
    config = default.get_config()

    config.pretraining.mask_ratio = 0.75

    config.data.name = "hmdb51"
    config.data.num_clips = DATASETS["hmdb51"].num_clips["train"]
    config.data.batch_size = 192
    config.data.frame_stride = DATASETS["hmdb51"].frame_stride

    config.schedule.base_lr = 3e-4
    config.schedule.num_epochs = 4800
    config.schedule.warmup_epochs = 40
    return config
