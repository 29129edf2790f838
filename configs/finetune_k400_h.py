"""ViT-H on Kinetics-400, pre-trained for 1600 epochs.

python train.py --config=configs/finetune_k400_h.py --workdir=... --config.data.path=...
  --config.init.checkpoint=<pre-trained>

VideoMAE (Tong et al., NeurIPS 2022, arXiv 2203.12602).
Theirs ran on 64 GPUs with 8 videos each, with activation checkpointing.
Published: 86.6 % top-1 and 97.1 % top-5 on Kinetics-400 (5 x 3 views).

Source: github.com/MCG-NJU/VideoMAE,
scripts/kinetics/videomae_vit_huge_patch16_224_tubemasking_ratio_0.9_epoch_1600/finetune.sh
"""

from vmae_jax.configs import finetune_default
from vmae_jax.data.datasets import DATASETS


def get_config():
    config = finetune_default.get_config()
    facts = DATASETS["kinetics400"]

    config.model.size = "H"
    config.model.num_labels = facts.num_classes
    config.model.drop_path_rate = 0.2
    config.model.head_dropout_prob = 0.5
    config.compute.remat = "full"

    config.finetuning.mixup.group = 8 * 2  # of one GPU there

    config.data.name = "kinetics400"
    config.data.num_clips = facts.num_clips["train"]
    config.data.batch_size = 512 * 2

    config.schedule.base_final_lr = 1e-5
    config.schedule.num_epochs = 50
    return config
