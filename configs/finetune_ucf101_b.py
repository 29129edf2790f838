"""ViT-B on UCF101, pre-trained there for 3200 epochs.

python train.py --config=configs/finetune_ucf101_b.py --workdir=... --config.data.path=...
  --config.init.checkpoint=<pre-trained>

VideoMAE (Tong et al., NeurIPS 2022, arXiv 2203.12602).
Theirs ran on 8 GPUs with 16 videos each, with activation checkpointing.
Published: 91.3 % top-1 and 98.5 % top-5 on UCF101, split 1 (5 x 3 views).
The paper rounds the size of the data set; data.num_clips takes that of your split.

Source: github.com/MCG-NJU/VideoMAE,
scripts/ucf101/videomae_vit_base_patch16_224_tubemasking_ratio_0.75_epoch_3200/finetune.sh
"""

from vmae_jax.configs import finetune_default
from vmae_jax.data.datasets import DATASETS


def get_config():
    config = finetune_default.get_config()
    facts = DATASETS["ucf101"]

    config.model.num_labels = facts.num_classes
    config.model.drop_path_rate = 0.2
    config.model.head_dropout_prob = 0.5
    config.compute.remat = "full"

    config.finetuning.mixup.group = 16 * 2  # of one GPU there

    config.data.name = "ucf101"
    config.data.num_clips = facts.num_clips["train"]
    config.data.batch_size = 128 * 2

    config.schedule.base_lr = 5e-4
    config.schedule.base_final_lr = 1e-5
    config.schedule.num_epochs = 100
    config.optimizer.layer_decay = 0.7
    return config
