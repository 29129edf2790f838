"""Fine-tuning in minutes: which way do patches move over real video?

python train.py --config=configs/finetune_demo.py --workdir=runs/finetune_demo

From scratch it tells 88 % of the 240 test videos right (88.8 % and 88.3 % with seeds 0 and 1;
chance is 16.7 %), which are made of a clip that training never sees. What it takes for each other
are the two senses of a circle. A model of single frames stays at chance (16.3 %), as it must:

python train.py --config=configs/finetune_demo.py --workdir=... --config.model.num_frames=1
  --config.model.tubelet_size=1

From nothing it takes 243 s of processor time, measured on one core of an AMD EPYC that was shared
with other programs; some 70 of them, to render 2160 videos and to compile, only the first time
(benchmarks/results/finetune_demo_cpu.json).
"""

from ml_collections import ConfigDict

from vmae_jax.configs import finetune_default
from vmae_jax.data.datasets import DATASETS


def get_config():
    config = finetune_default.get_config()

    # a tubelet as long as the clip: the first layer of each token sees all that moves in its place
    config.model.image_size = (16, 16)
    config.model.num_frames = 8
    config.model.tubelet_size = 8
    config.model.patch_size = 8
    config.model.hidden_size = 128
    config.model.num_hidden_layers = 2
    config.model.num_attention_heads = 4
    config.model.intermediate_size = 512
    config.model.drop_path_rate = 0.0
    config.compute.dtype = "float32"

    config.finetuning.augment.rand_augment = ""
    config.finetuning.augment.scale = (0.5, 1.0)
    config.finetuning.augment.flip = DATASETS["motion"].flips
    config.finetuning.augment.erase_prob = 0.0
    config.finetuning.mixup.prob = 0.0
    config.finetuning.head_init_scale = 1.0  # nothing pre-trained has to be spared

    config.data.name = "motion"
    config.data.options = ConfigDict({"num_train": 1920, "num_held_out": 240})
    config.data.batch_size = 64
    config.data.repeat = 1
    config.data.frame_stride = 2
    config.data.num_threads = 2
    config.data.cache_size = (64, 64)  # that of the videos: they are decoded once

    config.schedule.base_lr = 3e-3 * 256 / 64
    config.schedule.base_final_lr = 1e-5 * 256 / 64
    config.schedule.num_steps = 1500
    config.schedule.warmup_epochs = None
    config.schedule.warmup_steps = 50
    config.optimizer.betas = (0.9, 0.98)
    config.optimizer.layer_decay = None

    config.run.save_every_steps = 250
    config.evals.held_out.every_steps = 250
    config.evals.test.data.segments = 2
    config.evals.test.data.crops = 1
    return config
