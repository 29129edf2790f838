"""Seconds per pre-training step on one device: ours, and transformers' VideoMAE on torch.

    PYTHONPATH=. python benchmarks/train_step.py --size B --batch 64 --dtype bf16

Each side lives in a process of its own, because two frameworks in one would fight over the device's
memory, and they take turns: while one measures, the other waits for its next line. Requests and
answers are lines of JSON on stdin and stdout. README.md says how to read the result.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import importlib.metadata
import json
import math
import os
import platform
import queue
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import numpy as np

DTYPES = {"bf16": "bfloat16", "float32": "float32"}
# The published AdamW (VideoMAE, table 8), at its base rate throughout: a warmup from 0 would leave
# the loss, which is printed as a check, where it was.
ADAMW = {"lr": 1.5e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.05}

CHILD_ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # else jax takes most of the memory at once
    # compilation is timed, so neither side may find the last run's
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
}
# Recorded, because they change the figures.
ENVIRONMENT = (
    "XLA_FLAGS",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "OMP_NUM_THREADS",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
)


def versions(*packages: str) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in packages}


def _video(settings: dict) -> np.ndarray:
    """uint8 [B, T, H, W, 3]; the same noise for both sides."""
    c = settings["config"]
    shape = (settings["batch"], c["num_frames"], c["image_size"], c["image_size"], 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _peak_resident_set() -> dict:
    scale = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    return {"peak_memory_bytes": peak, "peak_memory_of": "process"}


class Ours:
    """`training.train_step`, compiled as `train.py` compiles it."""

    def __init__(self, settings: dict):
        import jax
        import jax.numpy as jnp
        from flax import nnx

        from vmae_jax import optim, training
        from vmae_jax.config import VideoMAEConfig
        from vmae_jax.tasks.pretraining import Pretraining
        from vmae_jax.vit import Compute, resolve_attention

        self.jax = jax
        self.device = jax.devices()[0]
        config = VideoMAEConfig.from_dict(settings["config"])
        compute, _ = resolve_attention(
            Compute(
                dtype=jnp.dtype(settings["dtype"]),
                attention=settings["attention"],
                remat=settings["remat"],
                unroll=settings["unroll"],
            ),
            config,
        )
        self.attention = compute.attention

        def schedule(step):
            return jnp.float32(ADAMW["lr"])

        optimizer = optim.make_optimizer(
            schedule,
            weight_decay=ADAMW["weight_decay"],
            betas=ADAMW["betas"],
            eps=ADAMW["eps"],
            clip_norm=None,
        )
        task = Pretraining(mask_ratio=settings["mask_ratio"])

        def make_model():
            return task.make_model(config, compute, nnx.Rngs(params=0))

        def init():
            params = nnx.to_pure_dict(nnx.state(make_model(), nnx.Param))
            return training.init_state(params, optimizer)

        self.state = jax.jit(init)()
        self.batch = {"video": jax.device_put(_video(settings), self.device)}
        self.train_step = jax.jit(
            functools.partial(
                training.train_step,
                graphdef=nnx.graphdef(nnx.eval_shape(make_model)),
                prepare=task.prepare,
                objective=task.objective,
                optimizer=optimizer,
                schedule=schedule,
                seed=0,
            ),
            donate_argnums=0,
        )
        self.compiled = None

    def step(self):
        """The loss, not yet computed."""
        if self.compiled is None:
            self.compiled = self.train_step.lower(self.state, self.batch, {}).compile()
        self.state, metrics = self.compiled(self.state, self.batch, {})
        return metrics["loss"]

    def wait(self):
        self.jax.block_until_ready(self.state)

    def facts(self) -> dict:
        stats = self.device.memory_stats()
        plan = self.compiled.memory_analysis()
        return {
            "device": self.device.device_kind,
            "platform": self.device.client.platform_version,
            "versions": versions("jax", "jaxlib", "flax", "optax", "numpy"),
            "attention": self.attention,
            # said by the compiled program itself, so that a silent fallback would show
            "cudnn_attention_calls": self.compiled.as_text().count(
                'custom_call_target="__cudnn$fmha'
            ),
            "planned_memory_bytes": plan.argument_size_in_bytes
            + plan.output_size_in_bytes
            - plan.alias_size_in_bytes
            + plan.temp_size_in_bytes,
            **(
                {"peak_memory_bytes": stats["peak_bytes_in_use"], "peak_memory_of": "device"}
                if stats
                else _peak_resident_set()
            ),
        }


class Transformers:
    """`VideoMAEForPreTraining` as its users train it: SDPA, autocast, fused AdamW, `torch.compile`.

    Its masks are drawn beforehand, and its video has its own layout: neither costs it time.
    """

    def __init__(self, settings: dict):
        import torch
        import transformers

        self.torch = torch
        self.on_gpu = torch.cuda.is_available()
        self.device = "cuda" if self.on_gpu else "cpu"
        self.autocast = settings["dtype"] == "bfloat16"
        torch.manual_seed(0)
        config = transformers.VideoMAEConfig(**settings["config"], attn_implementation="sdpa")
        self.model = transformers.VideoMAEForPreTraining(config).to(self.device).train()
        named = dict(self.model.named_parameters())
        decayed = [name for name, p in named.items() if p.ndim > 1 and name != "mask_token"]
        groups = [
            {"params": [named.pop(name) for name in decayed]},
            {"params": list(named.values()), "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, **ADAMW, fused=self.on_gpu)

        video = torch.from_numpy(_video(settings)).to(self.device)
        self.video = video.permute(0, 1, 4, 2, 3).contiguous()  # [B, T, C, H, W]
        t, h, w = settings["grid"]
        noise = torch.rand(8, settings["batch"], h * w, device=self.device)
        hidden = noise.argsort(dim=-1) < settings["num_masked"] // t
        self.masks = list(hidden.repeat(1, 1, t))  # bool [B, N] each
        self.num_steps = 0

        mean = torch.tensor(config.image_mean, device=self.device)[:, None, None]
        std = torch.tensor(config.image_std, device=self.device)[:, None, None]

        def loss_of(video, mask):
            pixels = (video.float() / 255 - mean) / std
            return self.model(pixel_values=pixels, bool_masked_pos=mask).loss

        self.compiled = settings["compile"]
        self.loss_of = torch.compile(loss_of) if self.compiled else loss_of

    def step(self):
        """The loss, perhaps not yet computed."""
        mask = self.masks[self.num_steps % len(self.masks)]
        self.num_steps += 1
        with self.torch.autocast(self.device, self.torch.bfloat16, enabled=self.autocast):
            loss = self.loss_of(self.video, mask)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def wait(self):
        if self.on_gpu:
            self.torch.cuda.synchronize()

    def facts(self) -> dict:
        cuda = self.torch.cuda
        return {
            "device": cuda.get_device_name() if self.on_gpu else "cpu",
            "platform": f"cuda {self.torch.version.cuda}" if self.on_gpu else "cpu",
            "versions": versions("torch", "transformers", "numpy"),
            "attention": self.model.config._attn_implementation,
            "torch_compile": self.compiled,
            **(
                {"peak_memory_bytes": cuda.max_memory_allocated(), "peak_memory_of": "device"}
                if self.on_gpu
                else _peak_resident_set()
            ),
        }


SIDES = {"ours": Ours, "hf": Transformers}


def _measure(side, num_steps: int, group: int) -> dict:
    """Seconds per step, one number per `group` steps, and the loss of each step."""
    seconds, losses = [], []
    for _ in range(num_steps // group):
        side.wait()
        start = time.perf_counter()
        losses += [side.step() for _ in range(group)]
        side.wait()
        seconds.append((time.perf_counter() - start) / group)
    return {"step_s": seconds, "losses": [float(loss) for loss in losses]}


def _answer(side, request: dict) -> dict:
    """What a child does on a request: its first step and the warmup, or a round."""
    first = _measure(side, 1, 1) if request["first"] else None
    # in a round, the step after the other side's turn finds cold caches and clocks: not counted
    warmup = _measure(side, request["warmup"], 1)
    timed = _measure(side, request["steps"], request["group"])
    return {"first": first, "warmup": warmup, "timed": timed, "facts": side.facts()}


def child(name: str) -> None:
    """Serves requests until stdin ends; whatever a library prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    side = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            side = side or SIDES[name](request["settings"])
            answer = _answer(side, request)
        except Exception as error:  # the parent reports it
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:2000]}
        print(json.dumps(answer), file=answers, flush=True)


class ChildError(Exception):
    """A side could not answer."""


class Child:
    """The parent's end of a child process."""

    def __init__(self, name: str):
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115 (end() closes it)
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--child", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            text=True,
            env=os.environ | CHILD_ENVIRONMENT,
        )
        self.lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def ask(self, request: dict, timeout_s: float) -> dict:
        """The answer. Raises ChildError if there is none."""
        with contextlib.suppress(BrokenPipeError):  # then stdout has ended too
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        try:
            line = self.lines.get(timeout=timeout_s)
        except queue.Empty:
            raise ChildError(f"no answer within {timeout_s:g} s") from None
        if line is None:
            raise ChildError(f"the process ended with status {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ChildError(answer["error"])
        return answer

    def stderr_tail(self, num_bytes: int = 3000) -> str:
        size = self.stderr.seek(0, os.SEEK_END)
        self.stderr.seek(max(0, size - num_bytes))
        return self.stderr.read().decode(errors="replace")

    def end(self):
        self.process.kill()
        self.process.wait()
        self.stderr.close()


def run_rounds(settings: dict, args: argparse.Namespace) -> dict[str, dict]:
    """Per side: {"rounds": [answer, ...]}, or {"ok": False, ...} and why."""
    names = ["ours"] if args.peer == "none" else ["ours", args.peer]
    groups = math.ceil(args.steps / (args.rounds * args.group))
    sides: dict[str, dict] = {name: {"rounds": []} for name in names}
    children = {name: Child(name) for name in names}
    try:
        for number in range(args.rounds + 1):  # the first is the set-up: compile and warm up
            timed = number > 0
            request = {
                "settings": settings,
                "first": not timed,
                "warmup": 1 if timed else args.warmup,
                "steps": groups * args.group if timed else 0,
                "group": args.group,
            }
            for name in reversed(names) if number % 2 else names:
                if name not in children:
                    continue
                stage = f"round {number}" if timed else "set-up"
                print(f"{stage}: {name} ...", file=sys.stderr, flush=True)
                try:
                    answer = children[name].ask(request, args.timeout)
                    sides[name]["rounds"].append(answer)
                except ChildError as error:
                    tail = children[name].stderr_tail()
                    sides[name] = {
                        "ok": False,
                        "stage": stage,
                        "error": str(error),
                        "stderr_tail": tail,
                    }
                    children.pop(name).end()
    finally:
        for one in children.values():
            one.end()
    return sides


def summarize(side: dict, batch: int, flops_per_clip: int, dtype: str) -> dict:
    """The numbers of a side that are reported."""
    if "rounds" not in side:
        return side
    from vmae_jax.flops import peak_flops

    setup, *rounds = side["rounds"]
    seconds = [s for answer in rounds for s in answer["timed"]["step_s"]]
    losses = [x for a in side["rounds"] for part in ("warmup", "timed") for x in a[part]["losses"]]
    median = statistics.median(seconds)
    facts = rounds[-1]["facts"]
    peak = peak_flops(facts["device"], dtype)
    return {
        "ok": True,
        **facts,
        "clips_per_s": batch / median,
        "step_s": {
            "median": median,
            "p5": float(np.percentile(seconds, 5)),
            "p95": float(np.percentile(seconds, 95)),
        },
        "round_step_s": [statistics.median(answer["timed"]["step_s"]) for answer in rounds],
        "timings": len(seconds),
        "first_call_s": setup["first"]["step_s"][0],
        "warmup_steps": 1 + len(setup["warmup"]["losses"]),
        "model_flop_per_s": flops_per_clip * batch / median,
        "mfu": None if peak is None else flops_per_clip * batch / median / peak,
        "mfu_note": None if peak else f"no peak is known for {facts['device']!r} in {dtype}",
        "first_loss": setup["first"]["losses"][0],
        "last_loss": losses[-1],
    }


def machine() -> dict:
    """What this was measured on, besides the accelerator."""
    cpu = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),  # those that taskset leaves
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        # of the last minute: well above 0 at the start, other programs shared the cores
        "load_average": round(os.getloadavg()[0], 1),
    }


def command_line() -> str:
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def write_json(result: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written: {path}")


def print_table(result: dict) -> None:
    def row(label, value_of):
        cells = [value_of(side) if side["ok"] else "failed" for side in result["sides"].values()]
        print(f"{label:<22}" + "".join(f"{cell:>22}" for cell in cells))

    s = result["settings"]
    gflop = result["flops_per_clip"] / 1e9
    print(f"{s['size']}, batch {s['batch']}, {s['dtype']}, {gflop:.4g} GFLOP per clip")
    print(" " * 22 + "".join(f"{name:>22}" for name in result["sides"]))
    row("device", lambda x: x["device"])
    row("clips/s", lambda x: f"{x['clips_per_s']:.4g}")
    row("ms per step, median", lambda x: f"{x['step_s']['median'] * 1e3:.4g}")
    row("  5 % and 95 %", lambda x: "{p5:.4g} {p95:.4g}".format(**_in_ms(x["step_s"])))
    row("first call, s", lambda x: f"{x['first_call_s']:.3g}")
    row("peak memory, GiB", lambda x: f"{x['peak_memory_bytes'] / 2**30:.3g}")
    row("share of peak", lambda x: "unknown" if x["mfu"] is None else f"{x['mfu']:.1%}")
    row("loss, first and last", lambda x: f"{x['first_loss']:.4f} {x['last_loss']:.4f}")
    for name, side in result["sides"].items():
        if not side["ok"]:
            print(f"\n{name} failed in {side['stage']}: {side['error']}\n{side['stderr_tail']}")
        elif side["mfu_note"]:
            print(f"{name}: {side['mfu_note']}")
    if result["ratio"]:
        print(
            "ours / {of}, clips/s: {median:.3f} ({lowest:.3f} to {highest:.3f})".format(
                **result["ratio"]
            )
        )


def _in_ms(seconds: dict[str, float]) -> dict[str, float]:
    return {name: value * 1e3 for name, value in seconds.items()}


def ratio(sides: dict[str, dict]) -> dict | None:
    """Clips per second of ours over the peer's, round by round; None if there are not two."""
    if len(sides) < 2 or not all(side["ok"] for side in sides.values()):
        return None
    (_, ours), (name, peer) = sides.items()
    rounds = [b / a for a, b in zip(ours["round_step_s"], peer["round_step_s"], strict=True)]
    return {
        "of": name,
        "median": statistics.median(rounds),
        "lowest": min(rounds),
        "highest": max(rounds),
        "rounds": rounds,
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--size", default="B", help="a row of vmae_jax.config.SIZES")
    add("--batch", type=int, default=64, help="clips per step")
    add("--dtype", choices=DTYPES, default="bf16", help="of matrix products; parameters are fp32")
    add("--peer", choices=["hf", "none"], default="hf")
    add("--steps", type=int, default=20, help="timed steps of each side, at least, in all rounds")
    add("--warmup", type=int, default=5, help="untimed steps after the first call")
    add("--rounds", type=int, default=3, help="turns of each side")
    add("--group", type=int, default=1, help="steps between two waits for the device")
    add("--attention", choices=["auto", "xla", "cudnn", "splash"], default="auto", help="ours")
    add("--remat", choices=["none", "attention", "full"], default="none", help="ours")
    add("--unroll", action="store_true", help="ours: no scan over the blocks")
    add("--no-compile", action="store_true", help="the peer without torch.compile")
    add("--mask-ratio", type=float, default=0.9)
    add("--image-size", type=int, default=224)
    add("--num-frames", type=int, default=16)
    add("--timeout", type=float, default=1800, help="seconds that one turn may take")
    add("--output", type=Path, help="default: results/<size>_<device>_<dtype>_b<batch>.json")
    add("--child", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in ("batch", "steps", "rounds", "group"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}={getattr(args, name)} must be at least 1")
    return args


def main() -> int:
    args = parse_arguments()
    if args.child:
        child(args.child)
        return 0

    from vmae_jax.config import VideoMAEConfig
    from vmae_jax.flops import pretraining_flops

    config = VideoMAEConfig.from_size(
        args.size,
        use_mean_pooling=False,
        image_size=args.image_size,
        num_frames=args.num_frames,
        initialization="huggingface",  # the peer's, so that the losses can be compared
    )
    t, h, w = config.grid
    num_masked = t * int(args.mask_ratio * h * w)
    flops_per_clip = pretraining_flops(config, num_masked)
    where = machine()
    settings = {
        "config": config.to_dict(),
        "grid": config.grid,
        "num_masked": num_masked,
        "batch": args.batch,
        "dtype": DTYPES[args.dtype],
        "mask_ratio": args.mask_ratio,
        "attention": args.attention,
        "remat": args.remat,
        "unroll": args.unroll,
        "compile": not args.no_compile,
    }
    sides = {
        name: summarize(side, args.batch, flops_per_clip, settings["dtype"])
        for name, side in run_rounds(settings, args).items()
    }
    del settings["config"]
    shown = ("size", "image_size", "num_frames", "steps", "warmup", "rounds", "group")
    result = {
        "benchmark": "train_step",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "machine": where,
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "settings": {name: getattr(args, name) for name in shown} | settings,
        "flops_per_clip": flops_per_clip,
        "sides": sides,
        "ratio": ratio(sides),
    }
    print_table(result)
    device = next((side["device"] for side in sides.values() if side["ok"]), "unknown")
    file_name = f"{args.size}_{device}_{args.dtype}_b{args.batch}.json".replace(" ", "-")
    write_json(result, args.output or Path(__file__).parent / "results" / file_name)
    return 0 if all(side["ok"] for side in sides.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
