"""How often a loop runs is read from its counter, as each compiler writes it, or not known."""

from __future__ import annotations

import pytest

from vmae_jax.plan import program

# libtpu's form with jax 0.11; "#0" is the first member of a tuple
LOOP = """\
HloModule step

%condition (p: (s32[], f32[2])) -> pred[] {
  %limit = s32[]{:T(128)} constant(7)
  %p = (s32[]{:T(128)}, f32[2]{0}) parameter(0)
  ROOT %lt = pred[]{:T(512)} compare(%p#0, %limit), direction=LT
}

%body (p: (s32[], f32[2])) -> (s32[], f32[2]) {
  %p = (s32[]{:T(128)}, f32[2]{0}) parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%p#0, %one)
  ROOT %out = (s32[], f32[2]{0}) tuple(%next, %p#1)
  %late = f32[] constant(3)
}

ENTRY %main (a: f32[2]) -> f32[2] {
  %a = f32[2]{0} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start = s32[]{:T(128)} copy(%zero)
  %in = (s32[], f32[2]{0}) tuple(%start, %a)
  %loop = (s32[], f32[2]{0}) while(%in), condition=%condition, body=%body
  ROOT %r = f32[2]{0} get-tuple-element(%loop), index=1
}
"""


def rounds(*changes):
    """How often the loop's body runs, with parts of the text replaced."""
    text = LOOP
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    return program.executions(*program.read(text))("body")


def test_a_counter_runs_from_its_first_value_to_its_limit():
    assert rounds() == 7
    assert rounds(("constant(0)", "constant(2)")) == 5
    assert rounds(("constant(1)", "constant(2)")) == 4  # 0, 2, 4, 6
    by_instruction = (
        "ROOT %lt = pred[]{:T(512)} compare(%p#0",
        "%i = s32[] get-tuple-element(%p), index=0\n  ROOT %lt = pred[] compare(%i",
    )
    assert rounds(by_instruction) == 7
    second = [
        ("compare(%p#0", "compare(%p#1"),
        ("tuple(%start, %a)", "tuple(%a, %start)"),
        ("tuple(%next, %p#1)", "tuple(%p#0, %next)"),
    ]
    assert rounds(*second) == 7


def test_what_the_compiler_says_of_a_loop_counts():
    said = ("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"4"}}')
    assert rounds(said) == 4


@pytest.mark.parametrize(
    "change",
    [
        ("direction=LT", "direction=NE"),
        ("compare(%p#0, %limit)", "compare(%p#0, %p#1)"),
        ("compare(", "custom-call("),
        ("copy(%zero)", "negate(%zero)"),
        ("constant(0)", "parameter(1)"),
        ("while(%in)", "while(%a)"),
        ("tuple(%next, %p#1)", "tuple(%p#0, %p#1)"),
        ("add(%p#0, %one)", "multiply(%p#0, %one)"),
        ("add(%p#0, %one)", "add(%p#0, %p#0)"),
        ("constant(1)", "constant(0)"),
    ],
)
def test_a_loop_that_cannot_be_counted_has_no_number(change):
    assert rounds(change) is None


def test_a_loop_without_readable_operands_is_refused():
    with pytest.raises(ValueError, match="what 'in' takes cannot be read"):
        rounds(("tuple(%start, %a)", "tuple(start, a)"))


def test_an_instruction_without_an_opcode_is_refused():
    with pytest.raises(ValueError, match="instruction '%zero = s32"):
        rounds(("constant(0)", "constant 0"))
