"""The text of a compiled program (HLO): its instructions, and how often each of them runs.

Read are the forms in which XLA writes programs for TPUs, GPUs and CPUs. A line that cannot be read
is refused rather than overlooked, and a loop that does not say how often it runs has no number.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple


class Instruction(NamedTuple):
    """A line: `ROOT name = shape opcode(rest`; the rest is operands and attributes."""

    root: str
    name: str
    shape: str
    opcode: str
    rest: str


Computations = Mapping[str, Sequence[Instruction]]  # by name


def read(text: str) -> tuple[Computations, str]:
    """The computations of a program, and the name of the one that runs first.

    Raises:
      ValueError: if the text is no HLO module, or has an instruction that cannot be read.
    """
    found: dict[str, list[Instruction]] = {}
    entry = current = None
    for line in text.splitlines():
        if current is not None:
            # a kernel's own metadata may go on over several lines, which begin with anything
            if re.match(r"  (ROOT )?%?[\w.\-]+ = ", line):
                match = re.match(r"  (ROOT |)%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)", line)
                if match is None:
                    raise ValueError(f"instruction {line.strip()[:100]!r} cannot be read.")
                found[current].append(Instruction(*match.groups()))
            elif line == "}" or line.startswith("}, execution_thread"):
                current = None
        elif match := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = match[2]
            found[current] = []
            entry = current if match[1] else entry
    if entry is None:
        raise ValueError(f"{text[:60]!r}... is no HLO module: it has no ENTRY computation.")
    return found, entry


def executions(computations: Computations, entry: str) -> Callable[[str], int | None]:
    """A function: name of a computation -> how often it runs in one run of the program, or None if
    that cannot be told. Each branch of a conditional counts as if it were taken."""
    callers = defaultdict(list)
    for name in computations:
        for callee, instruction in calls(computations[name]):
            is_loop = instruction.opcode == "while"
            trips = _trips(instruction, computations[name], computations) if is_loop else 1
            callers[callee].append((name, trips))

    @functools.cache
    def times(name: str) -> int | None:
        if name == entry:
            return 1
        parts = [(times(caller), trips) for caller, trips in callers[name]]
        if not parts or any(None in part for part in parts):
            return None  # without a caller: then a call was not understood
        return sum(runs * trips for runs, trips in parts)

    return times


def calls(instructions: Sequence[Instruction]) -> Iterator[tuple[str, Instruction]]:
    """(name of a computation, the instruction that calls it), for each call."""
    for instruction in instructions:
        # of what stands before the metadata, where any text may be
        attributes = re.split("metadata=|backend_config=", instruction.rest)[0]
        for one, several in re.findall(
            r"(?:calls|to_apply|body|condition|\w+_computations?)=(?:%?([\w.\-]+)|\{([^}]*)\})",
            attributes,
        ):
            for callee in (one or several).split(","):
                yield callee.strip().lstrip("%"), instruction


def _trips(
    loop: Instruction, around: Sequence[Instruction], computations: Computations
) -> int | None:
    """Rounds of a loop: XLA says it, or its counter has a first value, a step and a limit, all
    constants. (It does not start at 0 if XLA has taken the first rounds out of the loop.)"""
    if match := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.rest):
        return int(match[1])
    names = dict(re.findall(r"(condition|body)=%?([\w.\-]+)", loop.rest))
    condition, body, outside = (
        {x.name: x for x in instructions}
        for instructions in (computations[names["condition"]], computations[names["body"]], around)
    )
    compare, result = (next(x for x in part.values() if x.root) for part in (condition, body))
    if compare.opcode != "compare" or "direction=LT" not in compare.rest:
        return None
    counter, limit, *_ = _operands(compare)
    place = _place(counter, condition)
    if place is None:
        return None
    last = _constant(limit, condition)
    first = _constant(_member(_operands(loop)[0], place, outside), outside)
    following = body.get(_member(result.name, place, body))
    is_sum = following is not None and following.opcode == "add"
    step = _constant(_operands(following)[1], body) if is_sum else None
    if not step or first is None or last is None:
        return None
    return -(-(last - first) // step)


def _place(name: str, instructions: Mapping[str, Instruction]) -> int | None:
    """Which member of the loop's values it is: written `name#2`, or an instruction that gets it."""
    if "#" in name:
        return int(name.partition("#")[2])
    found = instructions.get(name)
    index = found and re.search(r"index=(\d+)", found.rest)
    return int(index[1]) if index else None


def _member(name: str, place: int, instructions: Mapping[str, Instruction]) -> str:
    """The name of a member of a tuple; "" if it is not put together here."""
    found = instructions.get(name)
    return _operands(found)[place] if found and found.opcode == "tuple" else ""


def _constant(name: str, instructions: Mapping[str, Instruction]) -> int | None:
    """The number behind a name, also if it was copied."""
    found = instructions.get(name)
    while found and found.opcode in ("copy", "bitcast"):
        found = instructions.get(_operands(found)[0])
    match = re.match(r"(\d+)\)", found.rest) if found and found.opcode == "constant" else None
    return int(match[1]) if match else None


def _operands(instruction: Instruction) -> list[str]:
    """Names of what an instruction takes (and, after them, of what its attributes name)."""
    names = re.findall(r"%([\w.\-#]+)", instruction.rest)
    if not names:
        raise ValueError(f"what {instruction.name!r} takes cannot be read.")
    return names
