"""A training step of ours, and of transformers' model on torch: the sides of several benchmarks.

Settings are JSON: `task` ("pretraining" or "finetuning"), `size`, `model` (fields of
`VideoMAEConfig` to set otherwise), `config` (all fields, for the peer), `batch`, `dtype`,
`attention`, `remat`, `unroll`, `mask_ratio`, `grid`, `num_masked`.
"""

from __future__ import annotations

import re

import numpy as np
import side_by_side

# The published rates per 256 clips (VideoMAE, tables 8 and 9), throughout: a warmup from 0 would
# leave the loss, which is printed as a check, where it was.
RATES = {"pretraining": 1.5e-4, "finetuning": 5e-4}
SMOOTHING = 0.1
LAYER_DECAY = 0.75


def settings_of(args, task: str) -> dict:
    """What both sides are made of, from a benchmark's arguments."""
    from vmae_jax.config import VideoMAEConfig

    fields = {
        "use_mean_pooling": task == "finetuning",
        "initialization": "huggingface",  # the peer's, so that the losses can be compared
        **({"num_labels": 400, "drop_path_rate": 0.1} if task == "finetuning" else {}),
        **args.model,
    }
    config = VideoMAEConfig.from_size(args.size, **fields)
    settings = {"task": task, "model": fields, "config": config.to_dict(), "batch": args.batch}
    if task == "pretraining":
        t, h, w = config.grid
        settings["grid"] = config.grid
        settings["mask_ratio"] = args.mask_ratio
        settings["num_masked"] = t * int(args.mask_ratio * h * w)
    return {
        "size": args.size,
        **settings,
        "dtype": side_by_side.DTYPES[args.dtype],
        "attention": args.attention,
        "remat": args.remat,
        "unroll": args.unroll,
    }


def add_arguments(parser) -> None:
    """Of our side."""
    add = parser.add_argument
    add("--attention", default="auto", help="ours; as compute.attention")
    add("--remat", choices=["none", "attention", "full"], default="none", help="ours")
    add("--unroll", action="store_true", help="ours: no scan over the blocks")


def make_side(name: str, settings: dict):
    if name == "ours":
        return Ours(settings)
    return Transformers(settings, compiled=name == "compiled")


def _video(settings: dict) -> np.ndarray:
    """uint8 [B, T, H, W, 3]; the same noise for both sides."""
    c = settings["config"]
    size = c["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    shape = (settings["batch"], c["num_frames"], height, width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _labels(settings: dict) -> np.ndarray:
    """int32 [B]."""
    num_labels = len(settings["config"]["id2label"])
    return np.random.default_rng(1).integers(0, num_labels, settings["batch"], dtype=np.int32)


def recipe(settings: dict):
    """The published configuration of the task, for one device and at a constant rate."""
    from vmae_jax.configs import default, finetune_default

    task = settings["task"]
    config = (default if task == "pretraining" else finetune_default).get_config()
    with config.ignore_type():
        config.model.update(settings["model"], size=settings["size"])
    config.compute.update(
        {name: settings[name] for name in ("dtype", "attention", "remat")},
        unroll=settings["unroll"],
    )
    if task == "pretraining":
        config.pretraining.mask_ratio = settings["mask_ratio"]
    config.data.batch_size = settings["batch"]
    rate = RATES[task] * 256 / max(1, settings["batch"] // config.data.repeat)
    config.schedule.update(
        base_lr=rate,
        base_final_lr=rate,
        num_steps=10**6,
        warmup_steps=0,
        num_epochs=None,
        warmup_epochs=None,
    )
    return config


class Ours:
    """The step of `assembly.make_steps`, compiled as `train.py` compiles it."""

    def __init__(self, settings: dict):
        import jax

        from vmae_jax import assembly
        from vmae_jax.tasks import make_task

        self.jax = jax
        self.device = jax.devices()[0]
        config = recipe(settings)
        self.steps = assembly.make_steps(
            config, make_task(config), num_records=None, devices=[self.device]
        )
        batch = {"video": _video(settings)}
        if settings["task"] == "finetuning":
            batch["label"] = _labels(settings)
        with jax.set_mesh(self.steps.mesh):
            self.state, self.frozen = self.steps.init()
        self.batch = self.on_device(batch)
        self.compiled = None

    def on_device(self, batch: dict):
        """A batch where the step wants it."""
        lies = next(iter(self.steps.batch.values())).sharding
        return self.jax.device_put(batch, lies)

    def compile(self) -> None:
        """Compiles the step for the batch, before the first step would."""
        from vmae_jax import host_memory

        with self.jax.set_mesh(self.steps.mesh):
            lowered = self.steps.train.lower(self.state, self.batch, self.frozen)
            self.compiled = lowered.compile()
        host_memory.give_back_freed_pieces()  # as `running.compilation.compile_step` does

    def step(self):
        """The loss, not yet computed."""
        if self.compiled is None:
            self.compile()
        self.state, metrics = self.compiled(self.state, self.batch, self.frozen)
        return metrics["loss"]

    def value(self, result) -> float:
        return float(result)

    def wait(self):
        self.jax.block_until_ready(self.state)

    def product(self, side: int):
        return side_by_side.jax_product(side)

    def facts(self) -> dict:
        stats = self.device.memory_stats()
        plan = self.compiled.memory_analysis()
        facts = {
            "device": self.device.device_kind,
            "platform": self.device.client.platform_version,
            "versions": side_by_side.versions("jax", "jaxlib", "flax", "optax", "numpy"),
            "attention": self.steps.compute.attention,
            # said by the compiled program itself, so that a silent fallback would show
            "cudnn_attention_calls": self.compiled.as_text().count(
                'custom_call_target="__cudnn$fmha'
            ),
            "planned_memory_bytes": plan.argument_size_in_bytes
            + plan.output_size_in_bytes
            - plan.alias_size_in_bytes
            + plan.temp_size_in_bytes,
        }
        if stats:
            facts |= {"peak_memory_bytes": stats["peak_bytes_in_use"], "peak_memory_of": "device"}
        return facts


class Transformers:
    """transformers' model as its users train it: SDPA, autocast, fused AdamW, `torch.compile`.

    What differs from ours is for its good: its video has its own layout; masks are drawn
    beforehand; clips are neither mixed nor erased, and no path is dropped, which it does not know.
    """

    def __init__(self, settings: dict, compiled: bool):
        self.torch = torch = side_by_side.import_torch()
        import transformers

        self.on_gpu = torch.cuda.is_available()
        self.device = "cuda" if self.on_gpu else "cpu"
        self.autocast = settings["dtype"] == "bfloat16"
        torch.manual_seed(0)
        config = transformers.VideoMAEConfig(**settings["config"], attn_implementation="sdpa")
        pretrains = settings["task"] == "pretraining"
        make = (
            transformers.VideoMAEForPreTraining
            if pretrains
            else transformers.VideoMAEForVideoClassification
        )
        self.model = make(config).to(self.device).train()
        self.optimizer = torch.optim.AdamW(
            self._groups(settings["task"]),
            betas=(0.9, 0.95 if pretrains else 0.999),
            eps=1e-8,
            fused=True,
        )
        video = torch.from_numpy(_video(settings)).to(self.device)
        self.video = video.permute(0, 1, 4, 2, 3).contiguous()  # [B, T, C, H, W]
        if pretrains:
            self.targets = self._masks(settings)
        else:
            self.targets = [torch.from_numpy(_labels(settings)).long().to(self.device)]
        self.num_steps = 0

        mean = torch.tensor(config.image_mean, device=self.device)[:, None, None]
        std = torch.tensor(config.image_std, device=self.device)[:, None, None]

        def loss_of(video, target):
            pixels = (video.float() / 255 - mean) / std
            if pretrains:
                return self.model(pixel_values=pixels, bool_masked_pos=target).loss
            logits = self.model(pixel_values=pixels).logits.float()
            return torch.nn.functional.cross_entropy(logits, target, label_smoothing=SMOOTHING)

        self.compiled = compiled
        self.loss_of = torch.compile(loss_of) if compiled else loss_of

    def _groups(self, task: str) -> list[dict]:
        """Parameters by their weight decay and, in fine-tuning, by the rate of their layer."""
        groups: dict[tuple[float, float], list] = {}
        depth = self.model.config.num_hidden_layers
        for name, parameter in self.model.named_parameters():
            decay = 0.05 if parameter.ndim > 1 and name != "mask_token" else 0.0
            rate = RATES[task]
            if task == "finetuning":
                block = re.search(r"encoder\.layer\.(\d+)\.", name)
                below = depth + 1 if "embeddings" in name else 0
                rate *= LAYER_DECAY ** (depth - int(block[1]) if block else below)
            groups.setdefault((rate, decay), []).append(parameter)
        return [
            {"params": params, "lr": rate, "weight_decay": decay}
            for (rate, decay), params in groups.items()
        ]

    def _masks(self, settings: dict) -> list:
        """Tube masks, bool [B, N] each."""
        t, h, w = settings["grid"]
        noise = self.torch.rand(8, settings["batch"], h * w, device=self.device)
        hidden = noise.argsort(dim=-1) < settings["num_masked"] // t
        return list(hidden.repeat(1, 1, t))

    def step(self):
        """The loss, perhaps not yet computed."""
        target = self.targets[self.num_steps % len(self.targets)]
        self.num_steps += 1
        with self.torch.autocast(self.device, self.torch.bfloat16, enabled=self.autocast):
            loss = self.loss_of(self.video, target)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def value(self, result) -> float:
        return float(result)

    def wait(self):
        if self.on_gpu:
            self.torch.cuda.synchronize()

    def product(self, side: int):
        return side_by_side.torch_product(side, self.device)

    def facts(self) -> dict:
        cuda = self.torch.cuda
        facts = {
            "device": cuda.get_device_name() if self.on_gpu else "cpu",
            "platform": f"cuda {self.torch.version.cuda}" if self.on_gpu else "cpu",
            "threads_found": self.torch.get_num_threads(),
            "versions": side_by_side.versions("torch", "transformers", "numpy"),
            "attention": self.model.config._attn_implementation,
            "torch_compile": self.compiled,
        }
        if self.on_gpu:
            facts |= {"peak_memory_bytes": cuda.max_memory_allocated(), "peak_memory_of": "device"}
        return facts
