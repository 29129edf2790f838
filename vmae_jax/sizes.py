"""The published models, one row each: the fields of `VideoMAEConfig` that differ."""

from __future__ import annotations

ORIGINAL_EPSILONS = {"layer_norm_eps": 1e-6, "decoder_norm_eps": 1e-6, "fc_norm_eps": 1e-6}


def _size(
    width, depth, heads, mlp, decoder_width, decoder_depth, decoder_heads, decoder_mlp, **also
):
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": mlp,
        "decoder_hidden_size": decoder_width,
        "decoder_num_hidden_layers": decoder_depth,
        "decoder_num_attention_heads": decoder_heads,
        "decoder_intermediate_size": decoder_mlp,
        **also,
    }


# VideoMAE, table 7 and its pre-training scripts; VideoMAE V2's modeling_pretrain.py. The decoder of
# V1's L and H is 12 deep in its scripts, V2's is 4 deep throughout.
SIZES = {
    #             encoder                 decoder
    #             width depth heads mlp   width depth heads mlp
    "S": _size(384, 12, 6, 1536, 192, 4, 3, 768),
    "B": _size(768, 12, 12, 3072, 384, 4, 6, 1536),
    "L": _size(1024, 24, 16, 4096, 512, 12, 8, 2048),
    "H": _size(1280, 32, 16, 5120, 640, 12, 8, 2560),
    "L-v2": _size(1024, 24, 16, 4096, 512, 4, 8, 2048),
    "H-v2": _size(1280, 32, 16, 5120, 512, 4, 8, 2048),
    "g-v2": _size(1408, 40, 16, 6144, 512, 4, 8, 2234, patch_size=14),
}
