"""What a clip costs in a training step, as sizes of matrix products; and what devices can do.

Two questions are answered from the same `Work`: the least FLOPs of a clip, which a share of peak
is held against, and (in `plan/`) how fast and how large a step can be on a machine. What a task
trains is known only to the function that makes its `Work`.

Only matrix products are counted, 2 * m * n * k FLOPs each (a multiplication and an addition), and
only those that the result needs. Left out are LayerNorm, softmax, activations, biases, masks,
targets, the optimizer, and whatever is computed a second time to save memory: a step that does more
than this shows a lower share of peak, not a higher one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # whose activations need jax, which a plan is made without
    from vmae_jax.config import VideoMAEConfig


class Product(NamedTuple):
    """Matrix products of a clip: `count` of [rows, inner] x [inner, columns].

    Attributes:
      name: where: "embedding", "qkv", "scores", "mix", "output", "up", "down", ...
      again: which remats compute it a second time.
      gradients: products of its size in the backward pass. A gradient by each of its two sides
        makes 2; a side that needs none (the video, what comes from a frozen model) leaves 1; and
        0 is a product of a frozen model.
    """

    name: str
    count: int
    rows: int
    inner: int
    columns: int
    again: tuple[str, ...] = ()
    gradients: int = 2

    def flops(self, unit: int = 1) -> int:
        """Multiplications and additions, with inner side and columns padded to the unit."""
        inner, columns = (-(-side // unit) * unit for side in (self.inner, self.columns))
        return 2 * self.count * self.rows * inner * columns


class Stack(NamedTuple):
    """Transformer blocks that a clip passes through.

    Attributes:
      depth: blocks.
      tokens: of the clip, in these blocks.
      width: of a token.
      heads: of attention, which share the width.
      mlp_width: of the hidden layer.
      trained: False if they have no gradient, as a teacher's.
    """

    depth: int
    tokens: int
    width: int
    heads: int
    mlp_width: int
    trained: bool = True

    def products(self) -> list[Product]:
        """The forward products of all blocks."""
        depth, tokens, width, heads, mlp_width, trained = self
        # what the backward pass needs of a block's forward: all but its last product, and the mix
        # of the values only if attention's output was not kept
        both = ("attention", "full")
        forward = [
            Product("qkv", depth, tokens, width, 3 * width, both),
            Product("scores", depth * heads, tokens, width // heads, tokens, both),
            Product("mix", depth * heads, tokens, tokens, width // heads, ("full",)),
            Product("output", depth, tokens, width, width, both),
            Product("up", depth, tokens, width, mlp_width, both),
            Product("down", depth, tokens, mlp_width, width),
        ]
        return forward if trained else [x._replace(again=(), gradients=0) for x in forward]


class Work(NamedTuple):
    """What a training step computes for one clip.

    Attributes:
      stacks: transformer blocks, a frozen model's too.
      products: outside of the stacks: embedding, maps between widths, heads.
      pixels: numbers of the clip that are read.
      predicted: numbers that are predicted for it, in fp32, against as many targets.
    """

    stacks: tuple[Stack, ...]
    products: tuple[Product, ...]
    pixels: int
    predicted: int

    def all_products(self) -> list[Product]:
        """The forward products, in stacks and outside."""
        return [*self.products, *(x for stack in self.stacks for x in stack.products())]

    def flops(self, *, gradient: bool = True) -> int:
        """The least FLOPs: with the gradient by every trained parameter, or forward alone."""
        return sum((1 + gradient * x.gradients) * x.flops() for x in self.all_products())

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        parts = {
            name: [x._asdict() for x in getattr(self, name)] for name in ("stacks", "products")
        }
        return {**self._asdict(), **parts}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Work:
        """From `to_dict`, also by way of JSON."""
        products = (Product(**{**x, "again": tuple(x["again"])}) for x in values["products"])
        stacks = (Stack(**x) for x in values["stacks"])
        return cls(tuple(stacks), tuple(products), values["pixels"], values["predicted"])


def _encoder(config: VideoMAEConfig, num_tokens: int) -> Stack:
    c = config
    depth, heads = c.num_hidden_layers, c.num_attention_heads
    return Stack(depth, num_tokens, c.hidden_size, heads, c.intermediate_size)


def _embedding(config: VideoMAEConfig, num_tokens: int) -> Product:
    # its input is the video, by which nobody needs a gradient
    c = config
    return Product("embedding", 1, num_tokens, c.tubelet_values, c.hidden_size, gradients=1)


def pretraining_work(config: VideoMAEConfig, num_masked: int) -> Work:
    """The work of masked autoencoding.

    Counted are the embedding of the visible tubelets, the encoder over them, the map to the width
    of the decoder, the decoder over all tokens, and the pixels of the hidden ones.

    Args:
      config: the model.
      num_masked: N_mask, hidden tokens of a clip.
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
    decoder = Stack(
        c.decoder_num_hidden_layers,
        c.num_tokens,
        width,
        c.decoder_num_attention_heads,
        c.decoder_intermediate_size,
    )
    return Work(
        stacks=(_encoder(c, num_visible), decoder),
        products=(
            _embedding(c, num_visible),
            Product("encoder_to_decoder", 1, num_visible, c.hidden_size, width),
            Product("head", 1, num_masked, width, c.tubelet_values),
        ),
        pixels=c.num_tokens * c.tubelet_values,
        predicted=num_masked * c.tubelet_values,
    )


def classification_work(config: VideoMAEConfig) -> Work:
    """The work of a classifier: the embedding of all tubelets, the encoder over them, and the
    `num_labels` logits of the one pooled vector."""
    c = config
    return Work(
        stacks=(_encoder(c, c.num_tokens),),
        products=(
            _embedding(c, c.num_tokens),
            Product("head", 1, 1, c.hidden_size, c.num_labels),
        ),
        pixels=c.num_tokens * c.tubelet_values,
        predicted=c.num_labels,
    )


def pretraining_flops(config: VideoMAEConfig, num_masked: int, *, gradient: bool = True) -> int:
    """FLOPs per clip of `pretraining_work`: 202.3e9 for B with 1408 of 1568 tokens hidden.

    Args:
      config, num_masked: as there.
      gradient: with the gradient by every parameter, as in training; otherwise the loss alone.
    Raises:
      ValueError: as there.
    """
    return pretraining_work(config, num_masked).flops(gradient=gradient)


def classification_flops(config: VideoMAEConfig, *, gradient: bool = True) -> int:
    """FLOPs per clip of `classification_work`: 1078.4e9 for B at 16 x 224². `gradient` as in
    `pretraining_flops`."""
    return classification_work(config).flops(gradient=gradient)


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
