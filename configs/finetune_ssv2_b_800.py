"""ViT-B on Something-Something V2, pre-trained for 800 epochs.

python train.py --config=configs/finetune_ssv2_b_800.py --workdir=... --config.data.path=...
  --config.init.checkpoint=<pre-trained>

VideoMAE (Tong et al., NeurIPS 2022, arXiv 2203.12602).
Theirs ran on 64 GPUs with 8 videos each.
Published: 69.6 % top-1 and 92.0 % top-5 on Something-Something V2 (2 x 3 views).

Source: github.com/MCG-NJU/VideoMAE,
scripts/ssv2/videomae_vit_base_patch16_224_tubemasking_ratio_0.9_epoch_800/finetune.sh
"""

from vmae_jax.configs import finetune_default
from vmae_jax.data.datasets import DATASETS


def get_config():
    config = finetune_default.get_config()
    facts = DATASETS["ssv2"]

    config.model.num_labels = facts.num_classes

    config.finetuning.sampling = facts.sampling
    config.finetuning.augment.flip = facts.flips
    config.finetuning.mixup.group = 8  # of one GPU there

    config.data.name = "ssv2"
    config.data.num_clips = facts.num_clips["train"]
    config.data.batch_size = 512
    config.data.repeat = 1

    config.schedule.base_lr = 5e-4
    config.schedule.num_epochs = 50

    config.evals.test.data.segments = 2
    return config
