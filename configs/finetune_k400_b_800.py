"""ViT-B on Kinetics-400, pre-trained for 800 epochs.

python train.py --config=configs/finetune_k400_b_800.py --workdir=... --config.data.path=...
  --config.init.checkpoint=<pre-trained>

VideoMAE (Tong et al., NeurIPS 2022, arXiv 2203.12602).
Theirs ran on 64 GPUs with 8 videos each.
Published: 80.0 % top-1 and 94.4 % top-5 on Kinetics-400 (5 x 3 views).
With repeated augmentation 81.0 % and 94.8 % are published, without a script: data.repeat=2 and
data.batch_size=1024 come closest.

Source: github.com/MCG-NJU/VideoMAE,
scripts/kinetics/videomae_vit_base_patch16_224_tubemasking_ratio_0.9_epoch_800/finetune.sh
"""

from vmae_jax.configs import finetune_default
from vmae_jax.data.datasets import DATASETS


def get_config():
    config = finetune_default.get_config()
    facts = DATASETS["kinetics400"]

    config.model.num_labels = facts.num_classes

    config.finetuning.mixup.group = 8  # of one GPU there

    config.data.name = "kinetics400"
    config.data.num_clips = facts.num_clips["train"]
    config.data.batch_size = 512
    config.data.repeat = 1

    config.schedule.num_epochs = 100
    return config
