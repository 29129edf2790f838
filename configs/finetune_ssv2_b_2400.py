"""ViT-B on Something-Something V2, pre-trained for 2400 epochs.

python train.py --config=configs/finetune_ssv2_b_2400.py --workdir=... --config.data.path=...
  --config.init.checkpoint=<pre-trained>

VideoMAE (Tong et al., NeurIPS 2022, arXiv 2203.12602).
Theirs ran on 64 GPUs with 6 videos each.
Published: 70.8 % top-1 and 92.4 % top-5 on Something-Something V2 (2 x 3 views).
The paper's appendix has 40 epochs; the script's 30 stand here.

Source: github.com/MCG-NJU/VideoMAE,
scripts/ssv2/videomae_vit_base_patch16_224_tubemasking_ratio_0.9_epoch_2400/finetune.sh
"""

from vmae_jax.configs import finetune_default
from vmae_jax.data.datasets import DATASETS


def get_config():
    config = finetune_default.get_config()
    facts = DATASETS["ssv2"]

    config.model.num_labels = facts.num_classes

    config.finetuning.sampling = facts.sampling
    config.finetuning.augment.flip = facts.flips
    config.finetuning.mixup.group = 6 * 2  # of one GPU there

    config.data.name = "ssv2"
    config.data.num_clips = facts.num_clips["train"]
    config.data.batch_size = 384 * 2

    config.schedule.base_lr = 5e-4
    config.schedule.num_epochs = 30

    config.evals.test.data.segments = 2
    return config
