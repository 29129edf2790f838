"""ViT-L on Something-Something V2, 32 frames.

python train.py --config=configs/finetune_ssv2_l_32.py --workdir=... --config.data.path=...
  --config.init.checkpoint=<pre-trained>

VideoMAE (Tong et al., NeurIPS 2022, arXiv 2203.12602).
Theirs ran on GPUs that the paper does not name, 512 videos in all.
Published: 75.4 % top-1 and 95.2 % top-5 on Something-Something V2 (1 x 3 views).
No script was released: values are those of the paper's appendix for 16 frames. Ours: groups of
8 x 2 clips for mixup, as 64 GPUs would have had them.

Source: the paper's appendix, sections 6 and 7.
"""

from vmae_jax.configs import finetune_ssv2_l


def get_config():
    config = finetune_ssv2_l.get_config()

    config.model.num_frames = 32

    config.evals.test.data.segments = 1
    return config
