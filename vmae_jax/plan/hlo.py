"""The text of a compiled program (HLO) as Python values: instructions, loops, where they come from.

Read are the forms in which XLA writes programs for TPUs, GPUs and CPUs; anything else is refused
rather than overlooked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BITS = {"pred": 8, "token": 0, "opaque": 0}


class Shape(NamedTuple):
    """An array: "bf16", (384, 1536)."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.dims)

    @property
    def num_bytes(self) -> int:
        """As it travels, without the padding that it may have in memory."""
        bits = _BITS.get(self.dtype)
        if bits is None:
            bits = int(re.search(r"\d+", self.dtype)[0])
        return self.size * bits // 8


class Instruction(NamedTuple):
    """A line: `name = shape opcode(rest`; the rest is operands and attributes."""

    name: str
    shape: str
    opcode: str
    rest: str


def shapes(text: str) -> list[Shape]:
    """All arrays in a shape, e.g. "(bf16[12,64]{1,0:T(8,128)}, f32[])"."""
    return [
        Shape(dtype, tuple(int(n.lstrip("<=")) for n in dims.split(",") if n))
        for dtype, dims in re.findall(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\]", text)
    ]


def top_level(tuple_shape: str) -> list[str]:
    """The members of "(a, (b, c))"."""
    parts, depth, start = [], 0, 1
    for i, letter in enumerate(tuple_shape):
        if letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        if (letter == "," and depth == 1) or (letter == ")" and depth == 0):
            parts.append(tuple_shape[start:i])
            start = i + 1
    return parts


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """name -> instructions of each computation of a module, and the name of the first to run.

    Raises: ValueError if the text is no HLO module, or has an instruction that cannot be read.
    """
    found: dict[str, list[Instruction]] = {}
    entry = current = None
    for line in text.splitlines():
        if current is not None:
            # a kernel's own metadata may go on over several lines, which begin with anything
            if re.match(r"  (ROOT )?%?[\w.\-]+ = ", line):
                found[current].append(_instruction(line))
            elif line == "}" or line.startswith("}, execution_thread"):
                current = None
        elif match := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = match[2]
            found[current] = []
            entry = current if match[1] else entry
    if entry is None:
        raise ValueError(f"{text[:60]!r}... is no HLO module: it has no ENTRY computation.")
    return found, entry


def _instruction(line: str) -> Instruction:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _end_of_tuple(rest) if rest.startswith("(") else rest.find(" ")
    match = re.match(r"\s*([\w\-]+)\(", rest[end:])
    if match is None:
        raise ValueError(f"instruction {line.strip()[:100]!r} cannot be read.")
    return Instruction(name.lstrip("%"), rest[:end], match[1], rest[end + match.end() :])


def _end_of_tuple(text: str) -> int:
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"the shape {text[:60]!r} has no end.")


def executions(computations: dict[str, list[Instruction]], entry: str) -> dict[str, int | None]:
    """How often each computation runs in one run of the program; those never called are left out.

    Each branch of a conditional counts as if it were taken.
    """
    calling = {name: list(calls(x, computations)) for name, x in computations.items()}
    order: list[str] = []  # callees before callers
    done: set[str] = set()

    def visit(name):
        if name in done or name not in calling:
            return
        done.add(name)
        for callee, _ in calling[name]:
            visit(callee)
        order.append(name)

    visit(entry)
    times: dict[str, int | None] = dict.fromkeys(order, 0)
    times[entry] = 1
    for name in reversed(order):
        for callee, trips in calling[name]:
            if callee not in times:
                continue
            known = None not in (trips, times[name], times[callee])
            times[callee] = times[callee] + times[name] * trips if known else None
    return times


def calls(
    instructions: list[Instruction], computations: dict[str, list[Instruction]]
) -> Iterator[tuple[str, int | None]]:
    """The computations that these instructions call, and how often each time; None: not known."""
    for instruction in instructions:
        # of what stands before the metadata, where any text may be
        attributes = instruction.rest.partition("metadata=")[0]
        attributes += instruction.rest.partition("backend_config=")[0][len(attributes) :]
        trips: int | None = 1
        if instruction.opcode == "while":
            condition = re.search(r"condition=%?([\w.\-]+)", attributes)[1]
            trips = _trips(instruction, instructions, computations.get(condition, []))
        for callee in re.findall(
            r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)",
            attributes,
        ):
            yield callee, trips
        for callees in re.findall(
            r"(?:branch_computations|called_computations|calls)=\{([^}]*)\}", attributes
        ):
            for callee in callees.split(","):
                yield callee.strip().lstrip("%"), 1


def _trips(
    loop: Instruction, around: list[Instruction], condition: list[Instruction]
) -> int | None:
    """Of a loop: XLA says it, or the condition compares a counter with a constant. The counter
    starts at what is put into the loop: not at 0 if XLA has taken the first rounds out of it."""
    if match := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.rest):
        return int(match[1])
    limits = [n for x in condition if (n := _constant(x)) is not None]
    index = next((x for x in condition if x.opcode == "get-tuple-element"), None)
    if len(limits) != 1 or index is None:
        return None
    place = int(re.search(r"index=(\d+)", index.rest)[1])
    by_name = {x.name: x for x in around}
    inputs = by_name.get(operands(loop)[0])
    start = inputs and inputs.opcode == "tuple" and by_name.get(operands(inputs)[place])
    while start and start.opcode in ("copy", "bitcast"):
        start = by_name.get(operands(start)[0])
    first = _constant(start) if start else None
    return limits[0] - (first or 0)


def _constant(instruction: Instruction) -> int | None:
    match = re.match(r"(\d+)\)", instruction.rest) if instruction.opcode == "constant" else None
    return int(match[1]) if match else None


def operands(instruction: Instruction) -> list[str]:
    """Names of what an instruction takes; each may have its shape in front of it."""
    listed = instruction.rest[: _end_of_tuple("(" + instruction.rest) - 2]
    return [word.split()[-1].lstrip("%") for word in top_level(f"({listed})") if word.strip()]


class Frames:
    """Where instructions come from: a table in the text, or in older texts each instruction."""

    def __init__(self, text: str, package: str):
        self.package = f"/{package}/"
        self.files = self._table(text, "FileNames", r'(\d+) "(.*)"')
        self.locations = self._table(
            text, "FileLocations", r"(\d+) \{.*?file_name_id=(\d+).*?\bline=(\d+)"
        )
        self.frames = self._table(
            text,
            "StackFrames",
            r"(\d+) \{file_location_id=(\d+)(?:\D+parent_frame_id=(\d+))?",
        )
        # XLA writes a parent's number plus one; its first frame, which has none, shows whether
        self.offset = int(self.frames.get("1", ("", "0"))[1] == "1")

    @staticmethod
    def _table(text: str, title: str, row: str) -> dict[str, tuple[str, ...]]:
        table = {}
        match = re.search(rf"^{title}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
        for line in match[1].splitlines() if match else ():
            if found := re.match(row, line):
                table[found[1]] = found.groups()[1:]
        return table

    def source(self, attributes: str) -> str:
        """File and line, the innermost of ours; "" if there is none."""
        if match := re.search(r'source_file="([^"]*)" source_line=(\d+)', attributes):
            return f"{self._short(match[1])}:{match[2]}"
        frame = re.search(r"stack_frame_id=(\d+)", attributes)
        number, seen = (frame[1] if frame else None), set()
        while number in self.frames and number not in seen:
            seen.add(number)
            location, parent = self.frames[number]
            if location in self.locations:
                file, line = self.locations[location]
                path = self.files[file][0] if file in self.files else ""
                if self.package in path:
                    return f"{self._short(path)}:{line}"
            number = str(int(parent or 0) - self.offset)
        return ""

    def _short(self, path: str) -> str:
        _, found, rest = path.rpartition(self.package)
        return self.package.strip("/") + "/" + rest if found else path.rpartition("/")[2]
