"""Fine-tuning in minutes: which way does a patch move over real video?

python train.py --config=configs/finetune_demo.py --workdir=runs/finetune_demo
"""

from vmae_jax.configs import finetune_default
from vmae_jax.data.datasets import DATASETS


def get_config():
    config = finetune_default.get_config()

    config.model.image_size = (64, 64)
    config.model.hidden_size = 192
    config.model.num_hidden_layers = 6
    config.model.num_attention_heads = 3
    config.model.intermediate_size = 768
    config.model.drop_path_rate = 0.0
    config.compute.dtype = "float32"

    config.finetuning.augment.rand_augment = ""
    config.finetuning.augment.scale = (0.8, 1.0)
    config.finetuning.augment.flip = DATASETS["motion"].flips
    config.finetuning.augment.erase_prob = 0.0
    config.finetuning.mixup.prob = 0.0

    config.data.name = "motion"
    config.data.batch_size = 32
    config.data.repeat = 1
    config.data.frame_stride = 1
    config.data.num_threads = 2

    config.schedule.base_lr = 1e-3 * 256 / 32
    config.schedule.warmup_epochs = None
    config.schedule.warmup_steps = 30
    config.schedule.num_steps = 300
    config.optimizer.layer_decay = None

    config.run.log_every_steps = 10
    config.run.save_every_steps = 100
    config.evals.held_out.every_steps = 100
    config.evals.test.data.segments = 1
    config.evals.test.data.crops = 1
    return config
