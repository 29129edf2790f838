"""ViT-L on Kinetics-400, pre-trained for 1600 epochs.

python train.py --config=configs/finetune_k400_l.py --workdir=... --config.data.path=...
  --config.init.checkpoint=<pre-trained>

VideoMAE (Tong et al., NeurIPS 2022, arXiv 2203.12602).
Theirs ran on 64 GPUs with 2 videos each.
Published: 85.2 % top-1 and 96.8 % top-5 on Kinetics-400 (5 x 3 views).
The paper's appendix has 50 epochs, drop path 0.2 and head dropout 0.5 for L; the script's 35, 0.1
and none stand here.

Machines that hold it, and memory (`python -m vmae_jax plan`; remat: `--config.compute.remat`):
v5e:4x8: data 32, remat attention, 8 clips a chip (256): 7.6 GiB
v5p:2x2x4: data 16, remat none, 16 clips a chip (256): 53.1 GiB
h200:8: data 8, remat none, 32 clips a GPU (256): 99.8 GiB, estimated

Source: github.com/MCG-NJU/VideoMAE,
scripts/kinetics/videomae_vit_large_patch16_224_tubemasking_ratio_0.9_epoch_1600/finetune.sh
"""

from vmae_jax.configs import finetune_default
from vmae_jax.data.datasets import DATASETS


def get_config():
    config = finetune_default.get_config()
    facts = DATASETS["kinetics400"]

    config.model.size = "L"
    config.model.num_labels = facts.num_classes

    config.finetuning.mixup.group = 2 * 2  # of one GPU there

    config.data.name = "kinetics400"
    config.data.num_clips = facts.num_clips["train"]
    config.data.batch_size = 128 * 2

    config.schedule.base_lr = 2e-3
    config.schedule.num_epochs = 35
    return config
