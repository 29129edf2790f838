"""The least work that a clip takes, and what devices can do: the two sides of a share of peak.

Only matrix products are counted, 2 * m * n * k FLOPs each (a multiplication and an addition), and
only those that the result needs. Left out are LayerNorm, softmax, activations, biases, masks,
targets, the optimizer, and whatever is computed a second time to save memory: a step that does more
than this shows a lower share of peak, not a higher one.
"""

from __future__ import annotations

from typing import NamedTuple

from vmae_jax.config import VideoMAEConfig


class Work(NamedTuple):
    stacks: tuple = ()


def pretraining_work(config, num_masked):
    return Work()


def _blocks(depth: int, num_tokens: int, width: int, mlp_width: int) -> int:
    """Forward through a stack."""
    qkv_and_output = 2 * num_tokens * width * 4 * width
    scores_and_mix = 2 * 2 * num_tokens**2 * width  # the heads add up to the width
    mlp = 2 * 2 * num_tokens * width * mlp_width
    return depth * (qkv_and_output + scores_and_mix + mlp)


def _encoder(config: VideoMAEConfig, num_tokens: int) -> int:
    c = config
    return _blocks(c.num_hidden_layers, num_tokens, c.hidden_size, c.intermediate_size)


def _embedding(config: VideoMAEConfig, num_tokens: int) -> int:
    return 2 * num_tokens * config.tubelet_values * config.hidden_size


def _sum(embedding: int, rest: int, gradient: bool) -> int:
    """The gradient of a product is two products of its size: by its weights and by its input. Only
    the input of the embedding is the video, by which nobody needs a gradient."""
    return 2 * embedding + 3 * rest if gradient else embedding + rest


def pretraining_flops(config: VideoMAEConfig, num_masked: int, *, gradient: bool = True) -> int:
    """FLOPs per clip of masked autoencoding: 202.3e9 for B with 1408 of 1568 tokens hidden.

    Counted are the embedding of the visible tubelets, the encoder over them, the map to the width
    of the decoder, the decoder over all tokens, and the pixels of the hidden ones.

    Args:
      config: the model.
      num_masked: N_mask, hidden tokens of a clip.
      gradient: with the gradient by every parameter, as in training; otherwise the loss alone.
    Raises:
      ValueError: if nothing would be hidden, or nothing visible.
    """
    c = config
    if not 0 < num_masked < c.num_tokens:
        raise ValueError(
            f"num_masked={num_masked} of {c.num_tokens} tokens: at least one must be hidden and "
            "one visible."
        )
    num_visible = c.num_tokens - num_masked
    width = c.decoder_hidden_size
    encoder_to_decoder = 2 * num_visible * c.hidden_size * width
    decoder = _blocks(c.decoder_num_hidden_layers, c.num_tokens, width, c.decoder_intermediate_size)
    head = 2 * num_masked * width * c.tubelet_values
    rest = _encoder(c, num_visible) + encoder_to_decoder + decoder + head
    return _sum(_embedding(c, num_visible), rest, gradient)


def classification_flops(config: VideoMAEConfig, *, gradient: bool = True) -> int:
    """FLOPs per clip of a classifier: 1078.4e9 for B at 16 x 224².

    Counted are the embedding of all tubelets, the encoder over them, and the `num_labels` logits of
    the one pooled vector. `gradient` as in `pretraining_flops`.
    """
    c = config
    rest = _encoder(c, c.num_tokens) + 2 * c.hidden_size * c.num_labels
    return _sum(_embedding(c, c.num_tokens), rest, gradient)


# FLOP/s of one device by its maker's data sheet, dense: in bf16, and in fp32 without TF32 (None: it
# has no such unit). Whole names, as drivers give them: a slice of a GPU is another device.
PEAKS = {
    "NVIDIA H200": (989e12, 67e12),
    "NVIDIA H100 80GB HBM3": (989e12, 67e12),
    "NVIDIA A100-SXM4-40GB": (312e12, 19.5e12),
    "NVIDIA A100-SXM4-80GB": (312e12, 19.5e12),
    "NVIDIA A100-PCIE-40GB": (312e12, 19.5e12),
    "NVIDIA A100 80GB PCIe": (312e12, 19.5e12),
    "TPU v5 lite": (197e12, None),
    "TPU v5e": (197e12, None),
    "TPU v5p": (459e12, None),
    "TPU v5": (459e12, None),
    "TPU v6 lite": (918e12, None),
    "TPU v6e": (918e12, None),
}


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """FLOP/s that a device can do at best; None if `PEAKS` does not know.

    Args:
      device_kind: `jax.Device.device_kind`, which on NVIDIA's is what torch calls the device too.
      dtype: "bfloat16" or "float32".
    """
    bf16, fp32 = PEAKS.get(device_kind, (None, None))
    return {"bfloat16": bf16, "float32": fp32}[dtype]
