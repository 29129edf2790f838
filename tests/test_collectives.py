"""Collectives are read from a program written by hand, in every form that XLA's text has."""

from __future__ import annotations

import collective_classes
import pytest

from vmae_jax.plan import collectives
from vmae_jax.plan.collectives import Array

# Two loops, one in the other (3 x 5 times), a conditional, an asynchronous gather, a fusion that is
# a reduce-scatter, and a gather that is spread over two fusions.
PROGRAM = """\
HloModule jit_step, is_scheduled=true

FileNames
1 "/somewhere/vmae_jax/vit.py"
2 "/somewhere/flax/linear.py"
FunctionNames
1 "layer"
FileLocations
1 {file_name_id=1 function_name_id=1 line=40 end_line=41 column=2 end_column=3}
2 {file_name_id=2 function_name_id=1 line=7 end_line=8 column=2 end_column=3}
StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%inner_condition (p: (s32[], bf16[8])) -> pred[] {
  %five = s32[]{:T(128)} constant(5)
  %p = (s32[]{:T(128)}, bf16[8]{0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %five), direction=LT
}

%inner (p: (s32[], bf16[8])) -> (s32[], bf16[8]) {
  %p = (s32[], bf16[8]{0:T(8,128)(2,1)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %v = bf16[8]{0:T(8,128)(2,1)S(1)} get-tuple-element(%p), index=1
  %all-reduce.1 = (bf16[8]{0:T(8,128)(2,1)S(1)}, f32[]{:T(128)}) all-reduce(%v, %z), channel_id=1, replica_groups=mesh['axis_0'=4] {'axis_0'}, to_apply=%add, metadata={op_name="jit(step)/transpose(jvp())/while/body/reduce_sum" stack_frame_id=2}, backend_config={"a":{"calls":"%nobody"}}
  ROOT %t = (s32[], bf16[8]{0}) tuple(%next, %v)
}

%outer_condition (p: (s32[], bf16[8])) -> pred[] {
  %p = (s32[], bf16[8]{0}) parameter(0)
  ROOT %lt = pred[] custom-call(%p), custom_call_target="who knows"
}

%outer (p: (s32[], bf16[8])) -> (s32[], bf16[8]) {
  %p = (s32[], bf16[8]{0}) parameter(0)
  %zero = s32[] constant(0)
  %put_in = (s32[], bf16[8]{0}) tuple(%zero, %v)
  ROOT %while.1 = (s32[], bf16[8]{0}) while(%put_in), condition=%inner_condition, body=%inner
}

%all-reduce-scatter.1.clone (a: bf16[16,4]) -> bf16[4,4] {
  %a = bf16[16,4]{1,0} parameter(0)
  %all-reduce.2 = bf16[16,4]{1,0} all-reduce(%a), channel_id=3, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %part = bf16[4,4]{1,0} dynamic-slice(%all-reduce.2, %i), dynamic_slice_sizes={4,4}
}

%spread.1 (a: bf16[2,4]) -> bf16[8,4] {
  %a = bf16[2,4]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[8,4]{1,0} all-gather(%a), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}, frontend_attributes={chain_id="0"}
}

%spread.2 (a: bf16[2,4]) -> bf16[8,4] {
  %a = bf16[2,4]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[8,4]{1,0} all-gather(%a), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}, frontend_attributes={chain_id="0"}
}

%taken (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  ROOT %permuted = f32[4]{0} collective-permute(%a), channel_id=9, source_target_pairs={{0,1},{1,0},{2,3},{3,2}}
}

%not_taken (a: f32[4]) -> f32[4] {
  ROOT %a = f32[4]{0} parameter(0)
}

%peeled_condition (p: (s32[], bf16[2])) -> pred[] {
  %p = (s32[], bf16[2]{0}) parameter(0)
  %twelve = s32[] constant(12)
  ROOT %lt = pred[] compare(%p#0, %twelve), direction=LT
}

%peeled (p: (s32[], bf16[2])) -> (s32[], bf16[2]) {
  %p = (s32[], bf16[2]{0}) parameter(0)
  %one = s32[] constant(1)
  %next = s32[] add(%p#0, %one)
  %send.1 = (bf16[2,8,128]{2,1,0:T(8,128)(2,1)}, u32[], token[]) send(%v, %t), channel_id=8, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send.2 = (f32[7]{0}, u32[], token[]) send(%v, %t), channel_id=9, is_host_transfer=true
  ROOT %r = (s32[], bf16[2]{0}) tuple(%next, %v)
}

ENTRY %main (a: bf16[8]) -> bf16[8] {
  %a = bf16[8]{0} parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %one_too = s32[]{:T(128)} copy(s32[]{:T(128)} %one)
  %put_in = (s32[], bf16[2]{0}) tuple(%one_too, %a)
  %while.3 = (s32[], bf16[2]{0}) while((s32[], bf16[2]{0}) %put_in), condition=%peeled_condition, body=%peeled
  %while.2 = (s32[], bf16[8]{0}) while(%t), condition=%outer_condition, body=%outer, backend_config={"known_trip_count":{"n":"3"}}
  %fusion.1 = bf16[4,4]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1.clone, metadata={op_name="jit(step)/transpose(jvp())/dot_general" stack_frame_id=1}
  %fusion.2 = bf16[8,4]{1,0} fusion(%b), kind=kLoop, calls=%spread.1
  %fusion.3 = bf16[8,4]{1,0} fusion(%b), kind=kLoop, calls=%spread.2
  %start = (f32[2]{0}, f32[8]{0}) all-gather-start(%c), channel_id=5, replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}
  %done = f32[8]{0} all-gather-done(%start)
  %scattered = f32[3]{0} reduce-scatter(%d), channel_id=6, replica_groups={{0,1},{2,3}}, dimensions={0}, to_apply=%add
  %kernel = f32[8]{0} custom-call(%b), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"notes":"{}"
}}, metadata={op_name="jit(step)/kernel" stack_frame_id=1}
  %choice = f32[4]{0} conditional(%p, %e, %e), branch_computations={%taken, %not_taken}
  ROOT %r = bf16[8]{0} get-tuple-element(%while.2), index=1
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def found():
    return {(c.kind, c.arrays[0]): c for c in collectives.find(PROGRAM)}


@pytest.fixture(scope="module")
def origins():
    """(op_name, source), as the classes of what travels are told by."""
    return {(c.kind, c.arrays[0]): o for c, *o in collective_classes.origins(PROGRAM)}


def test_all_that_run_are_found_and_each_once(found):
    assert sorted(kind for kind, _ in found) == [
        "all-gather", "all-gather", "all-reduce", "all-reduce", "collective-permute",
        "reduce-scatter", "reduce-scatter",
    ]  # fmt: skip
    assert len(collectives.find(PROGRAM)) == len(found)


def test_a_collective_in_two_loops_runs_as_often_as_their_product(found):
    inner = found["all-reduce", Array("bf16", (8,))]
    assert inner.times == 3 * 5  # one is written by XLA, one is in the condition
    assert inner.arrays == (Array("bf16", (8,)), Array("f32", ()))
    assert inner.groups == ((0, 1, 2, 3),)


def test_a_loop_that_begins_with_its_second_round_runs_once_less(found):
    assert found["all-reduce", Array("bf16", (2, 8, 128))].times == 11


def test_slices_exchange_through_their_runtime(found):
    between = [collective for collective in found.values() if collective.between_slices]
    assert [x.arrays for x in between] == [(Array("bf16", (2, 8, 128)),)]


def test_the_source_is_the_innermost_line_of_ours(origins):
    op_name, source = origins["all-reduce", Array("bf16", (8,))]
    assert "transpose(jvp())" in op_name
    assert source == "vmae_jax/vit.py:40"


def test_a_fusion_that_keeps_a_part_of_a_sum_is_a_reduce_scatter(found, origins):
    fused = found["reduce-scatter", Array("bf16", (16, 4))]
    assert fused.times == 1
    op_name, _ = origins["reduce-scatter", Array("bf16", (16, 4))]
    assert op_name == "jit(step)/transpose(jvp())/dot_general"  # of who calls it


def test_an_asynchronous_gather_counts_its_result(found):
    gather = found["all-gather", Array("f32", (8,))]
    assert gather.arrays == (Array("f32", (8,)),)
    assert gather.groups == ((0, 2), (1, 3))


def test_a_reduce_scatter_counts_what_goes_in(found):
    assert found["reduce-scatter", Array("f32", (6,))].arrays[0].num_bytes == 24


def test_branches_count_as_taken(found):
    assert found["collective-permute", Array("f32", (4,))].times == 1
    assert found["collective-permute", Array("f32", (4,))].groups == (
        (0, 1),
        (1, 0),
        (2, 3),
        (3, 2),
    )


def test_a_loop_that_does_not_say_how_often_it_runs_is_no_number():
    text = PROGRAM.replace(', backend_config={"known_trip_count":{"n":"3"}}', "")
    inner = next(c for c in collectives.find(text) if c.kind == "all-reduce")
    assert inner.times is None


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, x=1", ((0, 1), (2, 3))),
        ("replica_groups={}, x=1", ()),
        ("x=1", ()),
        ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        # arange(8).reshape(2, 2, 2).transpose(1, 0, 2).reshape(2, 4), by hand
        ("replica_groups=[2,4]<=[2,2,2]T(1,0,2)", ((0, 1, 4, 5), (2, 3, 6, 7))),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", ((0, 2), (1, 3))),
        # devices 0 2 / 1 3
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}, x", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'a'}", ((3, 1), (2, 0))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", ((0, 2), (1, 3), (4, 6), (5, 7))),
    ],
)
def test_groups_are_read_in_every_way_they_are_written(text, groups):
    assert collectives.groups(text) == groups


def test_groups_written_in_another_way_are_refused():
    with pytest.raises(ValueError, match="this way to write groups is not known"):
        collectives.groups("replica_groups=everyone")


@pytest.mark.parametrize(
    ("text", "shapes", "num_bytes"),
    [
        ("bf16[12,64]{1,0:T(8,128)(2,1)S(1)}", [Array("bf16", (12, 64))], 1536),
        ("(f32[], /*index=1*/pred[3]{0})", [Array("f32", ()), Array("pred", (3,))], 7),
        ("f8e4m3fn[4]", [Array("f8e4m3fn", (4,))], 4),
        ("s4[6]", [Array("s4", (6,))], 3),
    ],
)
def test_shapes_have_their_bytes(text, shapes, num_bytes):
    assert collectives.shapes(text) == shapes
    assert sum(shape.num_bytes for shape in shapes) == num_bytes


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="has no ENTRY"):
        collectives.find("hello")


def test_what_nobody_seems_to_call_is_not_overlooked():
    text = PROGRAM.replace("calls=%all-reduce-scatter.1.clone", "asks=%all-reduce-scatter.1.clone")
    (fused,) = (c for c in collectives.find(text) if c.arrays[0].dims == (16, 4))
    assert fused.times is None


def test_a_collective_that_cannot_be_read_is_an_error():
    text = PROGRAM.replace("  %scattered = f32[3]{0}", "  (odd) = f32[3]{0}")
    with pytest.raises(ValueError, match="has 7 collectives, of which 6 were read"):
        collectives.find(text)


def test_sizes_are_what_a_network_carries():
    rows = {
        (x["kind"], x["num_bytes"]): x for x in collectives.sizes(collectives.find(PROGRAM), 8, 2)
    }
    fused = rows["reduce-scatter", 16 * 4 * 2]
    assert (fused["group_size"], fused["slices"], fused["times"]) == (4, 1, 1)
    between = rows["all-reduce", 2 * 8 * 128 * 2]
    assert (between["group_size"], between["slices"], between["times"]) == (2, 2, 11)
    assert rows["all-reduce", 8 * 2 + 4]["times"] == 15  # bf16[8] and a scalar
