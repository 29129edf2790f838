"""The official models in plain PyTorch, and checkpoint files in each layout they are published in.

The expected side of tests that read such files: random parameters under the names of the VideoMAE
(V1), VideoMAE V2 and MMAction2 files, the outputs that those models give with them, and the files.
V2 files have the names of V1; only their sizes differ, and sometimes a prefix. Nothing here knows
vmae_jax, and all is laid out as in torch: clips [B, C, T, H, W], Linear weights (out, in).

A file of tests that imports this one is skipped where torch is missing.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import math
import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

EPS = 1e-6  # of every LayerNorm of V1, V2 and MMAction2
TUBELET = 2  # frames in one token, in all that is published
CHANNELS = 3

State = dict[str, "torch.Tensor"]


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of encoder, decoder, clip and classifier; `image` is the side of a square."""

    width: int
    depth: int
    heads: int
    mlp: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    decoder_mlp: int
    patch: int
    frames: int
    image: int
    classes: int

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along time, height and width."""
        side = self.image // self.patch
        return self.frames // TUBELET, side, side

    @property
    def tokens(self) -> int:
        """Tokens in one clip, N."""
        return math.prod(self.grid)

    @property
    def values(self) -> int:
        """Numbers that the decoder predicts for one token, P."""
        return TUBELET * self.patch**2 * CHANNELS


# No two axes of one tensor are of one size, but for the square weights of attention.
SMALL = Shape(48, 3, 3, 104, 24, 2, 2, 56, patch=8, frames=4, image=24, classes=7)
# As V2's giant: patch 14, and both MLPs 48/11 as wide as their stream, rounded down.
V2_SMALL = Shape(44, 2, 4, 192, 32, 1, 2, 139, patch=14, frames=4, image=28, classes=13)
# ViT-S as published, for a clip that two cores bear: no parameter depends on frames and image.
S = Shape(384, 12, 6, 1536, 192, 4, 3, 768, patch=16, frames=4, image=64, classes=400)


def random_inputs(shape: Shape, seed: int = 0, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """A clip [B, C, T, H, W], and a mask bool [B, N], True where hidden, seven tenths of each row.

    The rows of the mask differ, and so do the time steps, unlike those of a tube mask.
    """
    rng = torch.Generator().manual_seed(seed)
    video = torch.randn((batch, CHANNELS, shape.frames, shape.image, shape.image), generator=rng)
    order = torch.rand((batch, shape.tokens), generator=rng).argsort(dim=1)
    return video, order < int(0.7 * shape.tokens)


# Parameters


def v1_pretraining(shape: Shape, seed: int = 0) -> State:
    """Random fp32 parameters under the names of a pre-training file of V1 or V2."""
    width, decoder_width = shape.width, shape.decoder_width
    return _draw(
        {
            "mask_token": (1, 1, decoder_width),
            **_embedding("encoder.", shape),
            **_blocks("encoder.", shape.depth, width, shape.mlp),
            **_affine("encoder.norm", width),
            **_blocks("decoder.", shape.decoder_depth, decoder_width, shape.decoder_mlp),
            **_affine("decoder.norm", decoder_width),
            **_affine("decoder.head", shape.values, decoder_width),
            "encoder_to_decoder.weight": (decoder_width, width),
        },
        seed,
    )


def v1_finetuned(shape: Shape, seed: int = 0, use_cls: bool = False) -> State:
    """Random fp32 parameters under the names of a fine-tuned file of V1 or V2.

    Args:
        shape: the decoder's sizes are not used.
        seed: of all values.
        use_cls: as the original's option of that name: `norm` in place of `fc_norm`, and the first
            token classified in place of the mean. There is no class token.
    """
    return _draw(
        {
            **_embedding("", shape),
            **_blocks("", shape.depth, shape.width, shape.mlp),
            **_affine("norm" if use_cls else "fc_norm", shape.width),
            **_affine("head", shape.classes, shape.width),
        },
        seed,
    )


def mmaction2(shape: Shape, seed: int = 0) -> State:
    """Random fp32 parameters under the names of MMAction2's classifier, with its table.

    The values are those of `v1_finetuned(shape, seed)`. The stored table, `backbone.pos_embed`
    [1, N, D], is one unit in the last place off in one element, as those of the real files are:
    MMAction2 multiplies where V1 divides.
    """
    state = {}
    for name, value in v1_finetuned(shape, seed).items():
        name = name.replace("patch_embed.proj", "patch_embed.projection")
        name = name.replace("mlp.fc1", "mlp.layers.0.0").replace("mlp.fc2", "mlp.layers.1")
        in_head = name.startswith("head.")
        state[name.replace("head.", "cls_head.fc_cls.") if in_head else f"backbone.{name}"] = value
    table = sincos_table(shape.tokens, shape.width)
    table[-1, 0] = torch.nextafter(table[-1, 0], torch.tensor(2.0))
    return {"backbone.pos_embed": table[None], **state}


def _affine(name, *size):
    return {f"{name}.weight": size, f"{name}.bias": size[:1]}


def _embedding(prefix, shape):
    return _affine(
        f"{prefix}patch_embed.proj", shape.width, CHANNELS, TUBELET, shape.patch, shape.patch
    )


def _blocks(prefix, depth, width, mlp):
    sizes = {}
    for block in (f"{prefix}blocks.{i}." for i in range(depth)):
        sizes |= _affine(f"{block}norm1", width)
        sizes |= {f"{block}attn.{name}": (width,) for name in ("q_bias", "v_bias")}
        sizes |= {f"{block}attn.qkv.weight": (3 * width, width)}
        sizes |= _affine(f"{block}attn.proj", width, width)
        sizes |= _affine(f"{block}norm2", width)
        sizes |= _affine(f"{block}mlp.fc1", mlp, width)
        sizes |= _affine(f"{block}mlp.fc2", width, mlp)
    return sizes


def _draw(sizes, seed):
    """Weights that keep the spread of their input, LayerNorms about 1, all else about 0."""
    rng = torch.Generator().manual_seed(seed)
    state = {}
    for name, size in sizes.items():
        noise = torch.randn(size, generator=rng)
        if name.endswith("weight") and len(size) == 1:
            state[name] = 1 + 0.3 * noise
        elif name.endswith("weight"):
            state[name] = noise / math.sqrt(math.prod(size[1:]))
        else:
            state[name] = 0.3 * noise
    return state


# Models


def sincos_table(positions: int, width: int) -> torch.Tensor:
    """The fixed position table, fp32 [positions, width]: even columns sines, odd ones cosines.

    One row per token of the flattened grid; in float64 until the end.
    """
    column = torch.arange(width, dtype=torch.float64)
    pairs = 2 * (column // 2) / width
    angles = torch.arange(positions, dtype=torch.float64)[:, None] / 10000**pairs
    return torch.where(column % 2 == 0, angles.sin(), angles.cos()).float()


def pretraining_forward(
    state: State, shape: Shape, video: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """What the pre-training model predicts for the hidden tokens, [B, N_mask, P].

    Args:
        state: as from `v1_pretraining`.
        shape: its sizes.
        video: [B, C, T, H, W], normalised.
        mask: bool [B, N], True where hidden, as often in each row.
    """
    tokens = _tokens(state, "encoder.patch_embed.proj", video)
    batch, positions, width = tokens.shape
    tokens = tokens + sincos_table(positions, width)
    visible = tokens[~mask].reshape(batch, -1, width)
    for i in range(shape.depth):
        visible = _block(state, f"encoder.blocks.{i}.", shape.heads, visible)
    visible = _norm(state, "encoder.norm", visible)
    visible = F.linear(visible, state["encoder_to_decoder.weight"])

    table = sincos_table(positions, shape.decoder_width).expand(batch, -1, -1)
    where_visible, where_hidden = (
        table[chosen].reshape(batch, -1, shape.decoder_width) for chosen in (~mask, mask)
    )
    tokens = torch.cat([visible + where_visible, state["mask_token"] + where_hidden], dim=1)
    for i in range(shape.decoder_depth):
        tokens = _block(state, f"decoder.blocks.{i}.", shape.decoder_heads, tokens)
    hidden = tokens[:, visible.shape[1] :]
    return _linear(state, "decoder.head", _norm(state, "decoder.norm", hidden))


def finetuned_forward(state: State, shape: Shape, video: torch.Tensor) -> torch.Tensor:
    """Logits [B, classes] of a state as from `v1_finetuned`, of either kind.

    With `fc_norm` the tokens are averaged and then normalised; with `norm` (use_cls) all are
    normalised and the first is taken.
    """
    tokens = _tokens(state, "patch_embed.proj", video)
    tokens = tokens + sincos_table(*tokens.shape[1:])
    for i in range(shape.depth):
        tokens = _block(state, f"blocks.{i}.", shape.heads, tokens)
    if "fc_norm.weight" in state:
        features = _norm(state, "fc_norm", tokens.mean(dim=1))
    else:
        features = _norm(state, "norm", tokens)[:, 0]
    return _linear(state, "head", features)


def mmaction2_forward(state: State, shape: Shape, video: torch.Tensor) -> torch.Tensor:
    """Logits [B, classes] of a state as from `mmaction2`, which brings its own table."""
    tokens = _tokens(state, "backbone.patch_embed.projection", video)
    tokens = tokens + state["backbone.pos_embed"]
    for i in range(shape.depth):
        block, mlp = f"backbone.blocks.{i}.", ("mlp.layers.0.0", "mlp.layers.1")
        tokens = _block(state, block, shape.heads, tokens, mlp)
    features = _norm(state, "backbone.fc_norm", tokens.mean(dim=1))
    return _linear(state, "cls_head.fc_cls", features)


def _linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _norm(state, name, x):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], EPS)


def _tokens(state, name, video):
    kernel = state[f"{name}.weight"]
    embedded = F.conv3d(video, kernel, state[f"{name}.bias"], stride=kernel.shape[2:])
    return embedded.flatten(2).transpose(1, 2)  # [B, N, D]


def _block(state, prefix, heads, x, mlp=("mlp.fc1", "mlp.fc2")):
    x = x + _attention(state, f"{prefix}attn.", heads, _norm(state, f"{prefix}norm1", x))
    wide = _linear(state, prefix + mlp[0], _norm(state, f"{prefix}norm2", x))
    return x + _linear(state, prefix + mlp[1], F.gelu(wide, approximate="none"))


def _attention(state, prefix, heads, x):
    batch, positions, width = x.shape
    # keys have no bias; if they had, softmax would take it out again
    q_bias, v_bias = state[f"{prefix}q_bias"], state[f"{prefix}v_bias"]
    bias = torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])  # q, k, v
    qkv = F.linear(x, state[f"{prefix}qkv.weight"], bias)
    q, k, v = (
        part.reshape(batch, positions, heads, width // heads).transpose(1, 2)
        for part in qkv.split(width, dim=-1)
    )
    weights = (q * (width // heads) ** -0.5 @ k.transpose(-1, -2)).softmax(dim=-1)
    mixed = (weights @ v).transpose(1, 2).reshape(batch, positions, width)
    return _linear(state, f"{prefix}proj", mixed)


# Files


def save_v1(
    path: str | os.PathLike,
    state: State,
    wrapping: str = "model",
    *,
    training: bool = False,
    prefix: str = "",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes a .pth file as V1 and V2 do.

    Args:
        path: of the file.
        state: as from `v1_pretraining` or `v1_finetuned`.
        wrapping: where the parameters lie in the file: under "model", as the training script saves
            and the authors release them, under "module" (DeepSpeed), or "bare".
        training: adds what a run saves beside them. With "model" a run's optimizer, epoch, loss
            scaler and arguments, with "module" DeepSpeed's counters; with both `model_ema`, which
            holds other values.
        prefix: put before every name, as wrappers of the model do: "module.", "_orig_mod.",
            "backbone.", "model.", or several in a row.
        dtype: of all parameters in the file.

    Raises:
        ValueError: wrapping is another one, or a bare file is to hold a run's state.
    """
    if wrapping not in ("model", "module", "bare"):
        raise ValueError(f'wrapping={wrapping!r} is unknown; choose "model", "module" or "bare".')
    if training and wrapping == "bare":
        raise ValueError('training=True has no place in a "bare" file; choose another wrapping.')
    named = collections.OrderedDict((prefix + name, x.to(dtype)) for name, x in state.items())
    if wrapping == "bare":
        torch.save(named, path)
        return
    content = {wrapping: named}
    if training:
        content |= _run_state(named) if wrapping == "model" else _deepspeed_state()
        content["model_ema"] = collections.OrderedDict((k, 5 - x) for k, x in named.items())
    torch.save(content, path)


def save_mmaction2(path: str | os.PathLike, state: State) -> None:
    """Writes a .pth file as MMAction2's runner does, of a state as from `mmaction2`."""
    meta = {"epoch": 75, "iter": 150_000, "seed": 0, "mmengine_version": "0.3.2"}
    meta |= {"cfg": "model = dict(type='Recognizer3D')\n", "dataset_meta": {"classes": ["a", "b"]}}
    messages = {"log_scalars": {}, "runtime_info": {"epoch": 74}, "resumed_keys": {}}
    content = {"meta": meta, "state_dict": collections.OrderedDict(state), "message_hub": messages}
    torch.save(content, path)


def _run_state(state):
    """What V1's script saves beside the parameters: here the optimizer of the first few."""
    parameters = [torch.nn.Parameter(x.float()) for x in list(state.values())[:4]]
    optimizer = torch.optim.AdamW(
        [{"params": parameters[:1], "lr_scale": 0.75}, {"params": parameters[1:]}], lr=1e-3
    )
    sum(p.square().sum() for p in parameters).backward()
    optimizer.step()
    return {
        "optimizer": optimizer.state_dict(),
        "epoch": 799,
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "args": argparse.Namespace(
            model="pretrain_videomae_small_patch16_224",
            lr=np.float64(6e-4),
            opt_betas=[0.9, 0.95],
            window_size=(8, 14, 14),
            mask_ratio=0.9,
            normlize_target=True,  # spelt so in the original
            resume="",
            clip_grad=None,
        ),
    }


def _deepspeed_state():
    return {"epoch": 99, "optimizer": None, "global_steps": 46_800, "dp_world_size": 64}
