"""What a collective carries is told by shape, origin and mesh; what is not known is a fault."""

from __future__ import annotations

import collective_classes
import pytest

from vmae_jax.plan.collectives import Array, Collective
from vmae_jax.plan.program import Instruction

PARAMETERS = {
    "encoder/attention/qkv/kernel": (12, 768, 3, 12, 64),
    "encoder/attention/q_bias": (12, 12, 64),
    "encoder/intermediate/kernel": (12, 768, 3072),
    "embeddings/kernel": (1536, 768),
    "mask_token": (384,),
}
BACKWARD = "jit(train_step)/transpose(jvp())/while/body/dot_general"
FORWARD = "jit(train_step)/jvp()/while/body/convert_element_type"


def flows(
    kind, shapes, op_name="", *, mesh=(2, 4, 1), groups=(), times=1, num_slices=1, between=False
):
    sizes = dict(zip(collective_classes.AXES, mesh, strict=True))
    sides = collective_classes.parameter_sides(PARAMETERS, ("encoder", "decoder"), sizes)
    arrays = tuple(Array(dtype, dims) for dtype, dims in shapes)
    line = Instruction("", "it", "", kind, "")
    found = Collective(kind, arrays, times, groups, between, line, "main")
    return collective_classes.classify([(found, op_name, "")], sides, sizes, num_slices)


def classes(*args, **kwargs):
    return [flow.what for flow in flows(*args, **kwargs)]


@pytest.mark.parametrize(
    "dims",
    [
        (768, 3072),  # of one layer
        (1, 3072, 768),  # as a loop slices it, transposed
        (768, 3, 12, 64),
        (768, 2304),  # q, k, v and heads put together
        (192, 3072),  # a quarter, for fsdp 4
        (12, 12, 64),  # of all layers
        (1536, 768),
        (384,),
    ],
)
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_what_has_a_parameters_sides_is_one_or_its_gradient(dims, dtype):
    fsdp = ((0, 1, 2, 3), (4, 5, 6, 7))
    assert classes("all-gather", [(dtype, dims)], FORWARD, groups=fsdp) == ["parameters"]
    assert classes("all-reduce", [(dtype, dims)], BACKWARD) == ["gradients"]
    assert classes("reduce-scatter", [(dtype, dims)], BACKWARD) == ["gradients"]


@pytest.mark.parametrize(
    ("dtype", "dims"),
    [
        ("bf16", (4, 160, 768)),  # visible tokens
        ("bf16", (4, 1568, 384)),
        ("f32", (8, 196)),  # mask noise
        ("s32", (8, 176)),  # a mask
        ("s32", (768, 3072)),  # no parameter is an integer
        ("u8", (4, 16, 224, 224, 3)),
        ("u32", (64, 2)),  # keys
    ],
)
@pytest.mark.parametrize("kind", ["all-gather", "all-reduce", "all-to-all", "collective-permute"])
def test_tokens_masks_noise_and_pixels_are_faults_without_tensor(dtype, dims, kind):
    pairs = ((0, 1), (1, 0)) if kind == "collective-permute" else ()
    found = flows(kind, [(dtype, dims)], FORWARD, groups=pairs)
    assert [flow.what for flow in found] == ["other"]
    assert collective_classes.faults(found) == found


def test_activations_may_cross_the_tensor_axis_and_no_other():
    arrays = [("bf16", (4, 160, 768))]
    tensor, fsdp = ((0, 1), (2, 3), (4, 5), (6, 7)), ((0, 2), (1, 3), (4, 6), (5, 7))
    mesh = (2, 2, 2)
    assert classes("all-reduce", arrays, FORWARD, mesh=mesh, groups=tensor) == ["activations"]
    assert classes("all-reduce", arrays, FORWARD, mesh=mesh, groups=fsdp) == ["other"]
    masks = [("s32", (4, 176))]
    assert classes("all-gather", masks, FORWARD, mesh=mesh, groups=tensor) == ["other"]


def test_a_parameter_may_be_split_by_tensor_and_fsdp():
    # heads over 2, width over 2
    arrays = [("bf16", (384, 3, 6, 64))]
    assert classes("all-gather", arrays, FORWARD, mesh=(1, 2, 2)) == ["parameters"]
    assert classes("all-gather", arrays, FORWARD, mesh=(4, 1, 1)) == ["other"]


def test_a_fused_sum_is_told_apart_array_by_array():
    gradient, scalar = flows("all-reduce", [("bf16", (1536, 768)), ("f32", ())], BACKWARD, times=3)
    assert (gradient.what, gradient.num_bytes) == ("gradients", 1536 * 768 * 2)
    assert (scalar.what, scalar.num_bytes) == ("scalars", 4)
    assert collective_classes.totals([gradient, scalar]) == {
        "gradients": {"bytes": 3 * 1536 * 768 * 2, "count": 3},
        "scalars": {"bytes": 12, "count": 3},
    }


def test_axes_and_slices_of_a_group():
    # data 4 over two slices, fsdp 2: devices 0 to 3 are the first slice
    over_data = flows(
        "all-reduce", [("f32", ())], mesh=(4, 2, 1), groups=((0, 2, 4, 6), (1, 3, 5, 7)),
        num_slices=2,
    )  # fmt: skip
    assert (over_data[0].axes, over_data[0].group_size, over_data[0].slices) == (("data",), 4, 2)
    over_fsdp = flows(
        "all-reduce", [("f32", ())], mesh=(4, 2, 1), groups=((0, 1), (2, 3), (4, 5), (6, 7)),
        num_slices=2,
    )  # fmt: skip
    assert (over_fsdp[0].axes, over_fsdp[0].slices) == (("fsdp",), 1)
    assert flows("all-reduce", [("f32", ())])[0].group_size == 8  # no groups: all of them


def test_a_permutation_joins_those_it_passes_through():
    pairs = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 4))
    (flow,) = flows("collective-permute", [("bf16", (384,))], FORWARD, groups=pairs)
    assert flow.group_size == 4


def test_between_slices_gradients_travel_in_whole_tiles():
    packed = [("bf16", (144, 8, 128))]
    (flow,) = flows("all-reduce", packed, mesh=(4, 2, 1), num_slices=2, between=True)
    assert (flow.what, flow.group_size, flow.slices, flow.axes) == ("gradients", 2, 2, ("data",))
    within = {"mesh": (4, 2, 1), "num_slices": 2, "groups": ((0, 1, 2, 3), (4, 5, 6, 7))}
    assert classes("all-gather", packed, **within) == ["gradients"]
    # as anything else they are not known: in one slice, of integers, or moved about
    assert classes("all-reduce", packed, mesh=(4, 2, 1)) == ["other"]
    assert classes("all-gather", [("s32", (144, 8, 128))], **within) == ["other"]
    assert classes("all-to-all", packed, **within) == ["other"]


def test_between_slices_small_gradients_travel_behind_a_large_one():
    within = {"mesh": (4, 2, 1), "num_slices": 2, "groups": ((0, 1, 2, 3), (4, 5, 6, 7))}
    behind = [("bf16", (3104, 768))]  # 32 more rows than an MLP's
    assert classes("reduce-scatter", behind, **within) == ["gradients"]
    assert classes("all-gather", [("f32", (48, 16, 1536))], **within) == ["gradients"]  # embedding
    # not what has an origin of its own, another size, or comes from one slice
    assert classes("reduce-scatter", behind, FORWARD, **within) == ["other"]
    assert classes("all-gather", behind, **within) == ["other"]
    assert classes("reduce-scatter", behind, **{**within, "num_slices": 1}) == ["other"]
    tensor = {**within, "mesh": (2, 2, 2), "groups": ((0, 1), (2, 3), (4, 5), (6, 7))}
    assert classes("reduce-scatter", behind, **tensor) == ["activations"]
    clips_too = {**within, "mesh": (2, 1, 4), "groups": ((0, 1, 2, 3, 4, 5, 6, 7),)}
    assert classes("all-reduce", [("bf16", (144, 8, 128))], **clips_too) == ["gradients"]


def test_what_is_gathered_along_data_is_the_rest_of_a_sum():
    # no parameter is split by data
    groups = ((0, 4), (1, 5), (2, 6), (3, 7))
    assert classes("all-gather", [("bf16", (768, 3072))], groups=groups) == ["gradients"]
    groups = ((0, 1, 2, 3), (4, 5, 6, 7))
    assert classes("all-gather", [("bf16", (768, 3072))], groups=groups) == ["parameters"]


def test_what_runs_an_unknown_number_of_times_is_a_fault_and_has_no_total():
    found = flows("all-reduce", [("bf16", (1536, 768))], BACKWARD, times=None)
    assert collective_classes.faults(found) == found
    assert collective_classes.totals(found) == {"gradients": {"bytes": None, "count": None}}
