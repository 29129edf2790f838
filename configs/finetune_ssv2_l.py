"""ViT-L on Something-Something V2, 16 frames.

python train.py --config=configs/finetune_ssv2_l.py --workdir=... --config.data.path=...
  --config.init.checkpoint=<pre-trained>

VideoMAE (Tong et al., NeurIPS 2022, arXiv 2203.12602).
Theirs ran on GPUs that the paper does not name, 512 videos in all.
Published: 74.3 % top-1 and 94.6 % top-5 on Something-Something V2 (2 x 3 views).
No script was released: values are those of the paper's appendix. Ours: groups of 8 x 2 clips for
mixup, as 64 GPUs would have had them.

Source: the paper's appendix, sections 6 and 7.
"""

from vmae_jax.configs import finetune_default
from vmae_jax.data.datasets import DATASETS


def get_config():
    config = finetune_default.get_config()
    facts = DATASETS["ssv2"]

    config.model.size = "L"
    config.model.num_labels = facts.num_classes
    config.model.drop_path_rate = 0.2
    config.model.head_dropout_prob = 0.5

    config.finetuning.sampling = facts.sampling
    config.finetuning.augment.flip = facts.flips
    config.finetuning.mixup.group = 8 * 2  # of one GPU there

    config.data.name = "ssv2"
    config.data.num_clips = facts.num_clips["train"]
    config.data.batch_size = 512 * 2

    config.schedule.base_lr = 5e-4
    config.schedule.num_epochs = 30

    config.evals.test.data.segments = 2
    return config
