"""What the published fine-tuning runs of VideoMAE have in common; a recipe sets what differs.

AdamW with betas (0.9, 0.999), 5 epochs of warmup, rates that fall by 0.75 from layer to layer,
RandAugment, random-resized crops, erasing, mixup and cutmix, two augmentations of the same frames,
drop path 0.1; tested on 5 x 3 views.

Source: github.com/MCG-NJU/VideoMAE, run_class_finetuning.py and scripts/*/*/finetune.sh.
"""

from vmae_jax.configs import default


def get_config():
    config = default.get_config()
    config.task = "finetuning"

    config.model.use_mean_pooling = True
    config.model.drop_path_rate = 0.1

    config.data.repeat = 2

    config.schedule.base_lr = 1e-3
    config.schedule.base_final_lr = 1e-6
    config.schedule.warmup_epochs = 5.0

    config.optimizer.betas = (0.9, 0.999)
    config.optimizer.layer_decay = 0.75

    config.run.best_metric = "held_out/top1"
    config.run.best_mode = "max"
    config.evals.reconstructions.every_steps = 0
    config.evals.test.every_steps = -1
    return config
