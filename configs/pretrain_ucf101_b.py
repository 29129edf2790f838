"""ViT-B on UCF101 alone for 3200 epochs.

python train.py --config=configs/pretrain_ucf101_b.py --workdir=... --config.data.path=...

VideoMAE (Tong et al., NeurIPS 2022, arXiv 2203.12602).
Theirs ran on 8 GPUs with 24 clips each, some 30 hours.
Fine-tuned: 91.3 % top-1 and 98.5 % top-5 on UCF101, split 1 (5 x 3 views).
Their schedule is stretched over 3201 epochs, and the released weights are those after 3200.
The paper rounds the size of the data set; data.num_clips takes that of your split.

Machines that hold it, and memory (`python -m vmae_jax plan`):
v5e:4x4: data 16, remat none, 12 clips a chip (192): 8.7 GiB
v6e:2x4: data 8, remat none, 24 clips a chip (192): 16.5 GiB
h200:8: data 8, remat none, 24 clips a GPU (192): 13.8 GiB, estimated

Source: github.com/MCG-NJU/VideoMAE,
scripts/ucf101/videomae_vit_base_patch16_224_tubemasking_ratio_0.75_epoch_3200/pretrain.sh
"""

from vmae_jax.configs import default
from vmae_jax.data.datasets import DATASETS


def get_config():
    config = default.get_config()

    config.pretraining.mask_ratio = 0.75

    config.data.name = "ucf101"
    config.data.num_clips = DATASETS["ucf101"].num_clips["train"]
    config.data.batch_size = 192

    config.schedule.base_lr = 3e-4
    config.schedule.num_epochs = 3201
    config.schedule.warmup_epochs = 40
    return config
