"""Every option of a run, once: its default, unit and meaning.

The values are those common to the published pre-training runs of VideoMAE. A recipe calls
`get_config()` and assigns what differs; `--config.section.name=value` overrides either.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = choice("pretraining")  # a name in vmae_jax.tasks.TASKS
    config.seed = 0  # of weights, masks, data order and augmentation

    # The model: a published size, and fields of VideoMAEConfig to set otherwise (None: the size's).
    config.model = model = ConfigDict()
    model.size = "B"  # S, B, L, H (VideoMAE) or L-v2, H-v2, g-v2 (VideoMAE V2)
    model.image_size = (224, 224)  # (height, width) in pixels
    model.num_frames = 16
    model.patch_size = placeholder(int)  # pixels
    model.tubelet_size = placeholder(int)  # frames
    model.hidden_size = placeholder(int)
    model.num_hidden_layers = placeholder(int)
    model.num_attention_heads = placeholder(int)
    model.intermediate_size = placeholder(int)
    model.decoder_hidden_size = placeholder(int)
    model.decoder_num_hidden_layers = placeholder(int)
    model.decoder_num_attention_heads = placeholder(int)
    model.decoder_intermediate_size = placeholder(int)
    # False gives the encoder its final LayerNorm, which every published pre-training model has
    model.use_mean_pooling = False
    model.norm_pix_loss = True  # predict each patch normalised by its own mean and spread
    model.initialization = "videomae"  # or "huggingface"
    model.hidden_dropout_prob = 0.0
    model.attention_probs_dropout_prob = 0.0
    model.drop_path_rate = 0.0  # of the last block; rises linearly from 0
    model.head_dropout_prob = 0.0  # before the classifier
    # classes, or numbers of a regression; None: as many classes as the data set names, else 2
    model.num_labels = placeholder(int)

    # How it is computed (vmae_jax.vit.Compute describes the fields).
    config.compute = compute = ConfigDict()
    compute.dtype = "bfloat16"  # of activations and matrix products; or "float32"
    compute.param_dtype = "float32"
    compute.precision = "highest"  # of fp32 matrix products
    # the fused kernel of the platform and dtype, if there is one; or "xla", "cudnn", "splash"
    compute.attention = "auto"
    compute.remat = "none"  # or "attention", "full": less memory for more arithmetic

    # The mesh (vmae_jax.sharding): how many ways the devices split what; the product is their
    # number. `python -m vmae_jax plan` finds out what fits.
    config.mesh = mesh = ConfigDict()
    mesh.data = placeholder(int)  # clips; None: all devices that the others leave
    mesh.fsdp = 1  # clips, and large parameters with their optimizer state
    mesh.tensor = 1  # heads and the width of the MLPs

    # Weights to start with: a workdir of ours, a step of it, or whatever else
    # VideoMAEModel.from_pretrained takes. "": all of the model starts fresh.
    config.init = ConfigDict()
    config.init.checkpoint = ""
    # of "encoder", "decoder", "classifier"; what is not taken starts fresh. None: the encoder, and
    # the decoder where both have one
    config.init.parts = placeholder(tuple)

    # The options of task "pretraining". Each task has a section of its name; only that of the task
    # that runs is looked at.
    config.pretraining = pretraining = ConfigDict()
    pretraining.mask = choice("tube")  # of vmae_jax.masking.MASKS: or "random", "frame"
    pretraining.mask_ratio = 0.9
    pretraining.loss = choice("mse")  # of vmae_jax.losses.LOSSES: or "l1", "smooth_l1"

    # The options of task "finetuning"; see vmae_jax.tasks.finetuning.FineTuning.
    config.finetuning = finetuning = ConfigDict()
    # or "multi_label_classification", "regression"
    finetuning.problem_type = "single_label_classification"
    finetuning.sampling = "dense"  # or "tsn": frames of the whole video
    finetuning.augment = augment = ConfigDict()  # of training clips
    augment.rand_augment = "rand-m7-n4-mstd0.5-inc1"  # "": none
    augment.scale = (0.08, 1.0)  # share of the frame that a crop covers
    augment.ratio = (3 / 4, 4 / 3)  # width / height of a crop
    augment.flip = True  # not where a mirrored clip is of another class
    augment.erase_prob = 0.25  # that a rectangle is replaced by noise
    finetuning.mixup = mixup = ConfigDict()  # see vmae_jax.mixup.Mixup
    mixup.alpha = 0.8
    mixup.cutmix_alpha = 1.0
    mixup.prob = 1.0
    mixup.switch_prob = 0.5  # that it is cutmix
    mixup.mode = "batch"  # or "pair", "elem"
    mixup.group = placeholder(int)  # clips that are mixed among themselves; None: the batch
    finetuning.label_smoothing = 0.1
    finetuning.class_weights = placeholder(tuple)  # a factor for each class
    finetuning.head_init_scale = 0.001
    finetuning.lora_rank = 0  # of low-rank updates of the blocks' matrices; 0: none
    finetuning.lora_alpha = 16.0  # their weight is lora_alpha / lora_rank
    finetuning.allow_empty_classes = False  # classes without a training clip
    finetuning.allow_shared_videos = False  # videos that are in the training and held-out sets

    config.data = data = ConfigDict()
    data.name = choice("video_folder")  # a name in vmae_jax.data.datasets.DATASETS
    data.path = ""  # folder of the data set
    data.options = ConfigDict()  # of that data set, see its function; set in a recipe
    # of an epoch, where the schedule counts in epochs; None: as many training clips as there are
    data.num_clips = placeholder(int)
    data.batch_size = 2048  # clips of one step, over all devices
    data.frame_stride = 4  # the original's sampling_rate
    # frames a second of a clip, whatever the file's rate, up to 1000; None: data.frame_stride
    # counts frames. Where fps is given, frame_stride is not looked at.
    data.fps = placeholder(float)
    data.repeat = 1  # crops of the same frames; 2 or 4 divide the cost of decoding
    # of the crops' sides, shares of the frame's short side; (1.0,) takes it whole
    data.crop_scales = (1.0, 0.875, 0.75, 0.66)
    data.resize = "cv2"  # or "pil": slower, and bit by bit the original's
    # (height, width) of a canvas, e.g. (256, 456): frames go to the device as they are, and are
    # cropped and resized there; for repeat > 1
    data.canvas_size = placeholder(tuple)
    data.num_threads = 16  # that decode
    data.prefetch_batches = 2  # made ahead
    data.decode_timeout = 60.0  # seconds for one clip of a foreign video file
    data.max_bad_share = 0.05  # of the records that may be unusable; more ends the run
    data.skip_bad_held_out = False  # True leaves bad held-out clips out, else they end the run
    # (height, width): decode each file once per split, keep it in memory so small; for tiny sets
    data.cache_size = placeholder(tuple)
    # views of a held-out record in fine-tuning, temporal and spatial; None: the middle clip
    data.segments = placeholder(int)
    data.crops = placeholder(int)

    # Learning rate: linear warmup from 0, then half a cosine.
    config.schedule = schedule = ConfigDict()
    schedule.base_lr = 1.5e-4  # peak, per 256 clips
    schedule.base_final_lr = 1e-5  # end, per 256 clips
    schedule.num_epochs = placeholder(float)  # length: give epochs or steps
    schedule.num_steps = placeholder(int)
    schedule.warmup_epochs = placeholder(float)  # likewise
    schedule.warmup_steps = placeholder(int)

    config.optimizer = optimizer = ConfigDict()  # AdamW
    optimizer.weight_decay = 0.05  # of matrices only
    optimizer.betas = (0.9, 0.95)
    optimizer.eps = 1e-8
    optimizer.clip_norm = placeholder(float)  # largest global gradient norm
    # micro-batches of a step, whose gradients are averaged: batch_size is that of the whole step,
    # and so are rates and masks
    optimizer.accumulation = 1
    # factor of the learning rate from one layer of the encoder to the one below; None: one rate
    optimizer.layer_decay = placeholder(float)
    # what is trained: "head", "norms", "last_4_blocks", ... or patterns of parameters' names, see
    # vmae_jax.trainable; None: all
    optimizer.train = placeholder(tuple)
    # of averages of the parameters, e.g. 0.9999, for evaluators with weights="ema"; None: none
    optimizer.ema_decay = placeholder(float)

    # What happens every so many steps; 0 switches it off.
    config.run = run = ConfigDict()
    run.log_every_steps = 50
    run.save_every_steps = 1000
    run.keep_checkpoints = 2  # newest ones
    run.keep_every_steps = placeholder(int)  # and those whose step is a multiple, for good
    run.keep_best = 0  # and so many with the lowest run.best_metric
    run.best_metric = "held_out/loss"
    run.best_mode = "min"  # or "max"
    run.max_skipped_in_a_row = 10  # steps without a finite loss and gradient; as many end the run
    # seconds; a step that takes longer ends the run with all stacks; 0: none
    run.step_timeout = 0.0
    # where compiled programs are kept for the next start, local or remote; only you may be able to
    # write there, as they are code. "": in ~/.cache/vmae_jax
    run.compilation_cache = ""
    run.deterministic = (
        False  # GPUs: the same bits from run to run, for some speed; others do anyway
    )

    # What looks at the run, and how often: every so many steps and at the end; -1: at the end
    # alone; 0: never. A section is called like an entry of vmae_jax.evaluators.EVALUATORS, or names
    # one as its `evaluator`.
    config.evals = evals = ConfigDict()
    evals.held_out = ConfigDict()
    evals.held_out.every_steps = 1000  # the loss on the held-out clips
    evals.loss_curve = ConfigDict()
    evals.loss_curve.every_steps = -1
    evals.reconstructions = ConfigDict()
    evals.reconstructions.every_steps = -1
    evals.reconstructions.num_clips = 3  # held-out clips that are drawn
    evals.reconstructions.num_measured = 32  # the PSNR is of so many held-out clips at most
    evals.reconstructions.num_masks = 1  # of each of these
    evals.test = ConfigDict()  # several views of each record, merged; for fine-tuning
    evals.test.every_steps = 0
    evals.test.data = test = ConfigDict()  # what differs from the section data, another list, say
    test.segments = 5
    test.crops = 3

    # Options, and with a dot at the end sections, that a run may go on with another value of: where
    # the data and the devices are, how fast it goes, when it looks at itself, what it puts up with.
    # All others change what is learnt, up to rounding in the case of `compute` and `mesh`.
    config.may_change = (
        "may_change",
        "run.",
        "evals.",
        "mesh.",
        "optimizer.accumulation",
        "compute.attention",
        "compute.remat",
        "data.path",
        "data.options.root",
        "data.num_threads",
        "data.prefetch_batches",
        "data.decode_timeout",
        "data.max_bad_share",
        "data.skip_bad_held_out",
    )
    return config


def choice(name: str) -> FieldReference:
    """An option that is chosen by name; a recipe may give a function of its own instead."""
    return FieldReference(name, field_type=object)
