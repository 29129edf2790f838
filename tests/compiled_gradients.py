"""Losses and gradients of tiny models of odd shapes, compiled as users compile them, against torch.

    python tests/compiled_gradients.py              # every shape; ends with "N of N"
    python tests/compiled_gradients.py --sample 8   # some of them, spread over the list

Releases of XLA's CPU compiler have had fusions that crash, hang or are wrong for some shapes alone
(jax issues 39257, 40412). The test suite would miss them: it runs with the older emitter. So each
shape's program is compiled here in a child process that has none of the suite's settings. The
reference is written in float64 with torch, apart from our code, and computes one operation at a
time. A child that hangs or crashes is replaced by another, which goes on with the next shape.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

BOUND = 1e-5  # of |ours - reference| / |reference|, for the loss and for each parameter's gradient
SECONDS = 600  # in which a shape compiles and runs, on a slow and busy machine
_SUITES_OWN = ("XLA_FLAGS", "JAX_", "VMAE_")  # the beginnings of settings a child is not given
_SINGLE, _MANY, _NUMBERS = (
    "single_label_classification", "multi_label_classification", "regression"
)  # fmt: skip


class Shape(NamedTuple):
    """One geometry; the model is tiny but for what is named.

    Attributes:
      size: (height, width) of a frame.
      patch, frames, tubelet, channels: of the tubelets.
      width, heads, mlp, depth: of the encoder.
      decoder: (width, heads, mlp, depth).
      batch: clips.
      mask, ratio, loss, normalised: of pre-training.
      labels, problem: of fine-tuning; no labels for pre-training.
      mean_pooling: as of the configuration.
    """

    size: tuple[int, int] = (8, 8)
    patch: int = 4
    frames: int = 4
    tubelet: int = 2
    channels: int = 3
    width: int = 12
    heads: int = 2
    mlp: int = 20
    depth: int = 2
    decoder: tuple[int, int, int, int] = (8, 2, 12, 1)
    batch: int = 2
    mask: str = "tube"
    ratio: float = 0.5
    loss: str = "mse"
    normalised: bool = True
    labels: int = 0
    problem: str = _SINGLE
    mean_pooling: bool = True

    def __str__(self) -> str:
        """What is not the default."""
        values = self._asdict()
        odd = {name: x for name, x in values.items() if x != self._field_defaults[name]}
        return " ".join(f"{name}={x}" for name, x in odd.items()).replace(", ", ",") or "default"


SHAPES = [
    # frames and grids: not square, one token along an axis or along several
    Shape(),
    Shape(size=(4, 12)),
    Shape(size=(12, 4), batch=1),
    Shape(size=(20, 4), patch=2, frames=2),
    Shape(size=(6, 15), patch=3),
    Shape(size=(10, 5), patch=5, frames=6),
    Shape(size=(7, 14), patch=7, frames=2),
    Shape(size=(4, 4), frames=8, mask="random"),
    Shape(size=(4, 4), frames=6, mask="frame", batch=1),
    Shape(size=(4, 8), frames=2, batch=1, width=6, heads=1),
    Shape(size=(5, 5), patch=1, frames=2, tubelet=2, normalised=False),
    Shape(size=(9, 3), patch=3, frames=3, tubelet=3, batch=1),
    Shape(size=(16, 16), patch=8, frames=2, tubelet=1),
    Shape(size=(3, 33), patch=3, frames=1, tubelet=1, batch=1),
    # tubelets of 1 to 4 frames, and channels
    Shape(tubelet=1, frames=1),
    Shape(tubelet=1, frames=5, channels=1),
    Shape(tubelet=3, frames=9, channels=4),
    Shape(tubelet=3, frames=3, channels=1, batch=1),
    Shape(tubelet=4, frames=4, channels=1, size=(4, 12)),
    Shape(tubelet=4, frames=12, channels=4, batch=1),
    Shape(channels=1, normalised=False),
    Shape(channels=4, size=(12, 8), normalised=False, batch=3),
    Shape(channels=1, patch=1, size=(3, 4), tubelet=1, normalised=False, batch=1),
    # heads and widths: odd, one, as many as there are channels
    Shape(width=15, heads=3, mlp=7),
    Shape(width=7, heads=7, mlp=5, batch=1),
    Shape(width=7, heads=1, mlp=1),
    Shape(width=1, heads=1, mlp=3, depth=1, decoder=(1, 1, 2, 1)),
    Shape(width=33, heads=11, mlp=64, batch=1),
    Shape(width=65, heads=5, mlp=129, size=(12, 12)),
    Shape(width=40, heads=5, decoder=(24, 3, 16, 2)),
    # decoders
    Shape(decoder=(5, 1, 3, 1), batch=1),
    Shape(decoder=(9, 3, 1, 3)),
    Shape(decoder=(30, 5, 31, 1), width=6, heads=1),
    Shape(decoder=(17, 17, 8, 2), channels=1),
    Shape(depth=1, decoder=(4, 4, 4, 1), batch=1),
    Shape(depth=3, decoder=(6, 3, 10, 1), batch=5),
    # masks, ratios, losses
    Shape(size=(12, 12), ratio=0.9),
    Shape(size=(12, 12), ratio=0.12, batch=1),
    Shape(size=(16, 12), ratio=0.75, mask="random", batch=3),
    Shape(frames=16, ratio=0.875, mask="frame", channels=1),
    Shape(loss="smooth_l1", size=(8, 12)),
    Shape(loss="smooth_l1", normalised=False, batch=1),
    Shape(mean_pooling=False, size=(12, 8)),
    Shape(mean_pooling=False, width=9, heads=3, batch=1, channels=4),
    # fine-tuning
    Shape(labels=3),
    Shape(labels=1, problem=_NUMBERS, batch=1, size=(4, 12)),
    Shape(labels=5, problem=_MANY, channels=1, tubelet=1, frames=1),
    Shape(labels=7, mean_pooling=False, width=15, heads=5, batch=3),
    Shape(labels=2, size=(4, 4), frames=2, batch=1),
    Shape(labels=4, tubelet=3, frames=3, patch=3, size=(3, 9), channels=4, depth=1),
]


def sample(number: int) -> list[int]:
    """So many places in the list, evenly spread from the first to the last."""
    return [i * (len(SHAPES) - 1) // max(1, number - 1) for i in range(number)]


def run(places: list[int], tell: Callable[..., None] = lambda *_: None) -> dict[int, str]:
    """What is wrong with each shape, "" for nothing; in children, as users would compile them.

    Args:
      places: in `SHAPES`.
      tell: is called with each place and what is wrong, as soon as that is known.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(_SUITES_OWN)
    }
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path]),
    }
    found: dict[int, str] = {}
    while waiting := [place for place in places if place not in found]:
        command = [sys.executable, __file__, "--child", *map(str, waiting)]
        with tempfile.TemporaryFile("w+") as said:
            with subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=said, text=True
            ) as child:
                for place, what in map(json.loads, child.stdout):
                    found[place] = what
                    tell(place, what)
            said.seek(0)
            errors = said.read()
        if stopped := [place for place in waiting if place not in found]:
            hung = "Timeout (" in errors  # as faulthandler says it
            how = f"hangs for {SECONDS} s" if hung else f"ends its process ({child.returncode})"
            found[stopped[0]] = f"{how}: {errors[-2000:]}"
            tell(stopped[0], found[stopped[0]])
    return found


def _work(places: list[int]) -> None:
    """The child: prints a line of JSON for each shape that it has finished."""
    for place in places:
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        print(json.dumps([place, difference(SHAPES[place])]), flush=True)
    faulthandler.cancel_dump_traceback_later()


def difference(shape: Shape) -> str:
    """By how much the compiled loss and gradients miss the reference; "" if by less than BOUND."""
    import jax
    import numpy as np
    from flax import nnx

    from vmae_jax import VideoMAEConfig, randomness
    from vmae_jax.tasks.finetuning import FineTuning
    from vmae_jax.tasks.pretraining import Pretraining
    from vmae_jax.vit import Compute
    from vmae_jax.weights import layouts

    s = shape
    names = [f"decoder_{n}" for n in (
        "hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers"
    )]  # fmt: skip
    config = VideoMAEConfig(
        image_size=s.size, patch_size=s.patch, num_frames=s.frames, tubelet_size=s.tubelet,
        num_channels=s.channels, hidden_size=s.width, num_attention_heads=s.heads,
        intermediate_size=s.mlp, num_hidden_layers=s.depth, num_labels=s.labels,
        use_mean_pooling=s.mean_pooling, norm_pix_loss=s.normalised, layer_norm_eps=1e-6,
        **dict(zip(names, s.decoder, strict=True)),
    )  # fmt: skip
    rng = np.random.default_rng(SHAPES.index(shape))
    batch = {"video": rng.integers(0, 256, (s.batch, s.frames, *s.size, s.channels), np.uint8)}
    keys = randomness.clip_keys(jax.random.key(3), s.batch)
    if s.labels:
        task = FineTuning(problem_type=s.problem, augment={"flip": False}, mixup={})
        single = s.problem == _SINGLE
        batch["label"] = (
            rng.integers(0, s.labels, s.batch, np.int32)
            if single
            else rng.random((s.batch, s.labels), np.float32)
        )
        target = batch["label"]
    else:
        task = Pretraining(mask=s.mask, mask_ratio=s.ratio, loss=s.loss)
        target = task.draw_mask(randomness.fold_in(keys, 0), config)

    model = nnx.eval_shape(lambda: task.make_model(config, Compute(), nnx.Rngs(0)))
    shapes = {path: x.shape for path, x in sorted(layouts.parameters(model).items())}

    def draw(path, shape):
        """Fresh parameters would not do: mistakes in biases that are zero are invisible. Kernels
        are scaled, for a saturated softmax multiplies the rounding of fp32, compiled or not."""
        noise = rng.standard_normal(shape)
        if path.endswith("kernel"):
            stacked = path.startswith(("encoder/", "decoder/"))
            inputs = shape[1] if "/qkv/" in path else np.prod(shape[stacked:-1])
            return noise / np.sqrt(inputs)
        return path.endswith("scale") + 0.3 * noise

    values = {path: draw(path, x).astype(np.float32) for path, x in shapes.items()}
    layouts.set_parameters(model, values)
    graphdef, params = nnx.split(model)

    @jax.jit
    @jax.value_and_grad
    def compiled(params, batch, keys):
        return task.objective(nnx.merge(graphdef, params), batch, keys, {})[0]

    loss, gradients = compiled(params, batch, keys)
    found = {"loss": np.asarray(loss)}
    for path, leaf in nnx.to_flat_state(gradients):
        found["/".join(map(str, path))] = np.asarray(leaf.get_value())
    expected = reference(config, s, values, batch["video"], target)
    # a gradient that is zero (a LayerNorm of one number has none before it) is rounding here too
    least = 1e-8 * max(map(np.linalg.norm, expected.values()))
    wrong = []
    for name, wanted in expected.items():
        miss = np.linalg.norm(found.pop(name) - wanted) / max(np.linalg.norm(wanted), least)
        if not miss <= BOUND:
            wrong.append(f"{name} {miss:.1e}")
    return ", ".join([*wrong, *(f"{name} has no reference" for name in found)])


def reference(
    config: Any, shape: Shape, values: dict[str, Any], video: Any, target: Any
) -> dict[str, Any]:
    """The loss and the gradients of all parameters by path, float64.

    Args:
      target: a `Mask`, or labels.
    """
    import numpy as np
    import torch
    from torch.nn import functional

    p = {
        path: torch.tensor(x, dtype=torch.float64, requires_grad=True) for path, x in values.items()
    }

    def norm(x, name, epsilon, layer=...):
        scale, bias = p[f"{name}/scale"][layer], p[f"{name}/bias"][layer]
        return functional.layer_norm(x, x.shape[-1:], scale, bias, epsilon)

    def linear(x, name, layer=...):
        return x @ p[f"{name}/kernel"][layer] + p[f"{name}/bias"][layer]

    def positions(width):
        place, dim = np.arange(config.num_tokens)[:, None], np.arange(width)
        angle = place / 10000 ** (2 * (dim // 2) / width)
        return torch.tensor(np.where(dim % 2 == 0, np.sin(angle), np.cos(angle)))

    def blocks(x, stack, depth):
        for i in range(depth):
            y = norm(x, f"{stack}/layernorm_before", config.layer_norm_eps, i)
            q, k, v = torch.einsum("bnd,dshe->sbhne", y, p[f"{stack}/attention/qkv/kernel"][i])
            q = q + p[f"{stack}/attention/q_bias"][i][:, None]
            v = v + p[f"{stack}/attention/v_bias"][i][:, None]
            y = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v
            y = torch.einsum("bhne,hed->bnd", y, p[f"{stack}/attention/output/kernel"][i])
            x = x + y + p[f"{stack}/attention/output/bias"][i]
            y = norm(x, f"{stack}/layernorm_after", config.layer_norm_eps, i)
            y = functional.gelu(linear(y, f"{stack}/intermediate", i))
            x = x + linear(y, f"{stack}/output", i)
        return x

    def taken(x, tokens):
        return torch.stack([x[b, row] for b, row in enumerate(tokens)])

    pixels = torch.tensor(video, dtype=torch.float64) / 255
    for axis, length in ((1, shape.tubelet), (2, shape.patch), (3, shape.patch)):
        pixels = pixels.unfold(axis, length, length)  # [B, t, h, w, C, tubelet, patch, patch]
    pixels = pixels.flatten(1, 3).permute(0, 1, 3, 4, 5, 2)  # [B, N, tubelet, patch, patch, C]
    mean, std = torch.tensor(config.image_mean), torch.tensor(config.image_std)
    normalised = ((pixels - mean.double()) / std.double()).flatten(2)
    x = linear(normalised, "embeddings") + positions(shape.width)
    if not shape.labels:
        visible, masked = (torch.tensor(np.asarray(idx)) for idx in (target.visible, target.masked))
        x = taken(x, visible)
    x = blocks(x, "encoder", shape.depth)
    if not shape.mean_pooling:
        x = norm(x, "layernorm", config.layer_norm_eps)
    if shape.labels:
        x = norm(x.mean(1), "fc_norm", config.fc_norm_eps) if shape.mean_pooling else x[:, 0]
        logits = linear(x, "classifier")
        losses = {
            _SINGLE: functional.cross_entropy,
            _MANY: functional.binary_cross_entropy_with_logits,
            _NUMBERS: functional.mse_loss,
        }
        single = shape.problem == _SINGLE
        target = torch.tensor(target, dtype=torch.int64 if single else torch.float64)
        loss = losses[shape.problem](logits, target)
    else:
        width, _, _, depth = shape.decoder
        x = x @ p["encoder_to_decoder/kernel"]
        hidden = p["mask_token"].expand(*masked.shape, width)
        places = positions(width).expand(len(x), -1, -1)
        x = torch.cat([x + taken(places, visible), hidden + taken(places, masked)], 1)
        x = blocks(x, "decoder", depth)[:, visible.shape[1] :]
        found = linear(norm(x, "decoder_norm", config.decoder_norm_eps), "decoder_head")
        wanted = taken(pixels, masked).flatten(2, 4)  # [B, N_mask, pixels, C]
        if shape.normalised:
            wanted = wanted - wanted.mean(2, keepdim=True)
            wanted = wanted / (wanted.std(2, keepdim=True) + 1e-6)
        errors = {"mse": functional.mse_loss, "smooth_l1": functional.smooth_l1_loss}
        loss = errors[shape.loss](found, wanted.flatten(2))
    loss.backward()
    return {"loss": loss.detach().numpy(), **{path: x.grad.numpy() for path, x in p.items()}}


def main() -> int:
    """Prints what became of each shape, and how many of how many are right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=len(SHAPES), help="how many shapes")
    parser.add_argument("--child", type=int, nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        _work(args.child)
        return 0

    def tell(place: int, what: str) -> None:
        print(f"{place} ({SHAPES[place]}): {what or 'ok'}", flush=True)

    found = run(sample(args.sample), tell)
    wrong = [place for place, what in found.items() if what]
    print(f"{len(found) - len(wrong)} of {len(found)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
