"""ViT-B on Kinetics-400, pre-trained for 1600 epochs.

python train.py --config=configs/finetune_k400_b_1600.py --workdir=... --config.data.path=...
  --config.init.checkpoint=<pre-trained>

VideoMAE (Tong et al., NeurIPS 2022, arXiv 2203.12602).
Theirs ran on 64 GPUs with 6 videos each.
Published: 81.5 % top-1 and 95.1 % top-5 on Kinetics-400 (5 x 3 views); 80.9 % and
94.7 % when the views' logits were averaged.

Machines that hold it, and memory (`python -m vmae_jax plan`; remat: `--config.compute.remat`):
v5e:4x8: data 32, remat attention, 24 clips a chip (768): 5.4 GiB
v5p:2x2x4: data 16, remat none, 48 clips a chip (768): 57.4 GiB
h200:8: data 8, remat none, 96 clips a GPU (768): 112.6 GiB, estimated

Source: github.com/MCG-NJU/VideoMAE,
scripts/kinetics/videomae_vit_base_patch16_224_tubemasking_ratio_0.9_epoch_1600/finetune.sh
"""

from vmae_jax.configs import finetune_default
from vmae_jax.data.datasets import DATASETS


def get_config():
    config = finetune_default.get_config()
    facts = DATASETS["kinetics400"]

    config.model.num_labels = facts.num_classes

    config.finetuning.mixup.group = 6 * 2  # of one GPU there

    config.data.name = "kinetics400"
    config.data.num_clips = facts.num_clips["train"]
    config.data.batch_size = 384 * 2

    config.schedule.base_lr = 5e-4
    config.schedule.num_epochs = 75
    return config
