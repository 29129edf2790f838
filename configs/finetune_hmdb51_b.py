"""ViT-B on HMDB51, pre-trained there for 4800 epochs.

python train.py --config=configs/finetune_hmdb51_b.py --workdir=... --config.data.path=...
  --config.init.checkpoint=<pre-trained>

VideoMAE (Tong et al., NeurIPS 2022, arXiv 2203.12602).
Theirs ran on 8 GPUs, 128 videos in all.
Published: 62.6 % top-1 on HMDB51 (10 x 3 views).
No script was released: values are those of the paper's appendix. Ours: the final rate and no
dropout of the head, as in most scripts, and groups of 16 x 2 clips for mixup, as for UCF101.
The paper rounds the size of the data set; data.num_clips takes that of your split.

Source: the paper's appendix, sections 6 and 7.
"""

from vmae_jax.configs import finetune_default
from vmae_jax.data.datasets import DATASETS


def get_config():
    config = finetune_default.get_config()
    facts = DATASETS["hmdb51"]

    config.model.num_labels = facts.num_classes
    config.model.drop_path_rate = 0.2

    config.finetuning.mixup.group = 16 * 2  # of one GPU there

    config.data.name = "hmdb51"
    config.data.num_clips = facts.num_clips["train"]
    config.data.batch_size = 128 * 2
    config.data.frame_stride = facts.frame_stride

    config.schedule.num_epochs = 50
    config.optimizer.layer_decay = 0.7

    config.evals.test.data.segments = 10
    return config
