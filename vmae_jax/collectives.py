"""What devices send to each other, read from the text of a compiled program.

    find(compiled.as_text()) -> [Collective("all-reduce", shapes, times=12, groups, ...)]

A collective in the body of a loop runs as often as the loop does; both are found by following the
calls from the entry. Nothing here knows what the arrays are: that is `traffic.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# of the instructions that start one without waiting; their ends say the same again
_STARTS = {f"{kind}-start": kind for kind in KINDS} | {kind: kind for kind in KINDS}
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


class Collective(NamedTuple):
    """One collective instruction.

    Attributes:
      kind: one of `KINDS`.
      shapes: of the arrays it carries: what a device has of each when all are together: the results
        (reduce-scatter: the operands).
      times: how often a step runs it; None if a loop around it does not say how often it runs.
      groups: numbers of the devices that take part together; () stands for all in one.
      op_name: the JAX operations it came from, e.g. "jit(step)/transpose(jvp())/while/body/dot".
      source: file and line where it was asked for, the innermost of ours; "" if not known.
    """

    kind: str
    shapes: tuple[Shape, ...]
    times: int | None
    groups: tuple[tuple[int, ...], ...]
    op_name: str
    source: str


class _Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    rest: str  # operands and attributes


def find(text: str, package: str = "vmae_jax") -> list[Collective]:
    """The collectives of a program.

    Args:
      text: `jax.stages.Compiled.as_text()`.
      package: folder whose files count as ours, for `source`.
    Raises:
      ValueError: if the text is no HLO module, or an instruction in it cannot be read.
    """
    computations, entry = _computations(text)
    times = _executions(computations, entry)
    callers = {
        callee: instruction
        for instructions in computations.values()
        for instruction in instructions
        for callee, _ in _calls([instruction], computations)
    }
    frames = _Frames(text, package)
    found, chains = [], set()
    for name, instructions in computations.items():
        for instruction in instructions if name in times else ():
            kind = _STARTS.get(instruction.opcode)
            if kind is None or _is_repeated(instruction, chains):
                continue
            origin = instruction.rest
            if "op_name=" not in origin and name in callers:
                origin = callers[name].rest
            op_name = re.search(r'op_name="([^"]*)"', origin)
            carried = _carried(instruction, kind)
            if name.startswith("all-reduce-scatter"):  # a fusion that keeps a part of the sum
                kind = "reduce-scatter"
            found.append(
                Collective(
                    kind,
                    tuple(carried),
                    times[name],
                    groups(instruction.rest),
                    op_name[1] if op_name else "",
                    frames.source(origin),
                )
            )
    return found


def _is_repeated(instruction: _Instruction, chains: set) -> bool:
    """Whether it was seen before: the TPU compiler spreads a collective over several fusions, each
    with a copy of it, which share the numbers of their chain and channel."""
    chain = re.search(r'chain_id="(\d+)"', instruction.rest)
    if chain is None:
        return False
    channel = re.search(r"channel_id=(\d+)", instruction.rest)
    key = (instruction.opcode, chain[1], channel and channel[1])
    repeated = key in chains
    chains.add(key)
    return repeated


def shapes(text: str) -> list[Shape]:
    """All arrays in a shape, e.g. "(bf16[12,64]{1,0:T(8,128)}, f32[])"."""
    return [
        Shape(dtype, tuple(int(n.lstrip("<=")) for n in dims.split(",") if n))
        for dtype, dims in re.findall(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\]", text)
    ]


def groups(attributes: str) -> tuple[tuple[int, ...], ...]:
    """The devices that exchange among themselves, from the attributes of a collective.

    HLO has four ways to say it: lists, `{{0,1},{2,3}}`; an array of numbers that is reshaped and
    transposed, `[2,2]<=[2,2]T(1,0)`; axes of a mesh, `mesh['a'=2,'b'=2] {'b'}`; and for a
    permutation its pairs.
    """
    if pairs := re.search(r"source_target_pairs=\{((?:\{[\d,]+\},?)*)\}", attributes):
        return _braces(pairs[1])
    value = re.search(r"replica_groups=(.*)", attributes)
    if value is None:
        return ()
    value = value[1]
    if match := re.match(r"\{((?:\{[\d,]*\},?)*)\}", value):
        return _braces(match[1])
    if match := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", value):
        shape, source = _numbers(match[1]), _numbers(match[2])
        order = _numbers(match[3]) if match[3] else tuple(range(len(source)))
        flat = _transposed(source, order)
        width = shape[-1]
        return tuple(tuple(flat[i : i + width]) for i in range(0, len(flat), width))
    if match := re.match(
        r"mesh\[([^\]]*)\]\s*(?:device_ids=\(?([^)\s]*)\)?\s*)?\{([^}]*)\}", value
    ):
        return _mesh_groups(match[1], match[2], match[3])
    raise ValueError(f"replica_groups={value[:80]!r}: this way to write groups is not known.")


def _mesh_groups(axes: str, ids: str | None, names: str) -> tuple[tuple[int, ...], ...]:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", axes)}
    if ids:
        raise ValueError(f"a mesh with device_ids={ids!r}: this way to write groups is not known.")
    # an axis may be cut: 'a':(2)4 is the part of size 4 of it, after a first part of size 2
    cut_sizes: list[tuple[str, int]] = []
    taken = []
    wanted = re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", names)
    for name, size in sizes.items():
        parts = sorted((int(a), int(b)) for n, a, b in wanted if n == name and a)
        if not parts:
            cut_sizes.append((name, size))
            if any(n == name for n, _, _ in wanted):
                taken.append(len(cut_sizes) - 1)
            continue
        done = 1
        for before, part in parts:
            if before > done:
                cut_sizes.append((name, before // done))
            cut_sizes.append((name, part))
            taken.append(len(cut_sizes) - 1)
            done = before * part
        if done < size:
            cut_sizes.append((name, size // done))
    dims = tuple(size for _, size in cut_sizes)
    others = [i for i in range(len(dims)) if i not in taken]
    flat = _transposed(dims, (*others, *taken))
    width = math.prod(dims[i] for i in taken)
    return tuple(tuple(flat[i : i + width]) for i in range(0, len(flat), width))


def _transposed(dims: tuple[int, ...], order: tuple[int, ...]) -> list[int]:
    """arange(prod(dims)).reshape(dims).transpose(order).ravel(), in plain Python."""
    strides = [math.prod(dims[i + 1 :]) for i in range(len(dims))]
    flat = [0]
    for axis in order:
        flat = [start + i * strides[axis] for start in flat for i in range(dims[axis])]
    return flat


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)


def _braces(text: str) -> tuple[tuple[int, ...], ...]:
    return tuple(_numbers(group) for group in re.findall(r"\{([\d,]*)\}", text))


def _carried(instruction: _Instruction, kind: str) -> list[Shape]:
    """The arrays of a collective, once: a start has its operands in its shape, too."""
    all_shapes = shapes(instruction.shape)
    if kind == "reduce-scatter":
        return _scaled(all_shapes, instruction)
    if instruction.opcode in ("all-gather-start", "collective-permute-start"):
        parts = _top_level(instruction.shape)
        return shapes(parts[1])
    return all_shapes


def _scaled(results: list[Shape], instruction: _Instruction) -> list[Shape]:
    """A reduce-scatter's operands from its results."""
    axis = int(re.search(r"dimensions=\{(\d+)\}", instruction.rest)[1])
    ways = len(groups(instruction.rest)[0])
    return [
        Shape(x.dtype, (*x.dims[:axis], x.dims[axis] * ways, *x.dims[axis + 1 :])) for x in results
    ]


def _top_level(tuple_shape: str) -> list[str]:
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


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    entry = current = None
    for line in text.splitlines():
        if line.startswith("  ") and current is not None:
            if " = " in line:
                computations[current].append(_instruction(line))
        elif match := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = match[2]
            computations[current] = []
            entry = current if match[1] else entry
        elif line.startswith("}"):
            current = None
    if entry is None:
        raise ValueError(f"{text[:60]!r}... is no HLO module: it has no ENTRY computation.")
    return computations, entry


def _instruction(line: str) -> _Instruction:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _end_of_tuple(rest) if rest.startswith("(") else rest.find(" ")
    match = re.match(r"\s*([\w\-]+)\(", rest[end:])
    if match is None:
        raise ValueError(f"instruction {line.strip()[:100]!r} cannot be read.")
    return _Instruction(name.lstrip("%"), rest[:end], match[1], rest[end + match.end() :])


def _end_of_tuple(text: str) -> int:
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"the shape {text[:60]!r} has no end.")


def _executions(computations: dict[str, list[_Instruction]], entry: str) -> dict[str, int | None]:
    """How often each computation runs in one run of the program; those never called are left out.

    Each branch of a conditional counts as if it were taken.
    """
    calls: dict[str, list[tuple[str, int | None]]] = {}
    for name, instructions in computations.items():
        calls[name] = list(_calls(instructions, computations))
    order: list[str] = []  # callees before callers
    done: set[str] = set()

    def visit(name):
        if name in done or name not in calls:
            return
        done.add(name)
        for callee, _ in calls[name]:
            visit(callee)
        order.append(name)

    visit(entry)
    times: dict[str, int | None] = dict.fromkeys(order, 0)
    times[entry] = 1
    for name in reversed(order):
        for callee, trips in calls[name]:
            if callee not in times:
                continue
            known = None not in (trips, times[name], times[callee])
            times[callee] = times[callee] + times[name] * trips if known else None
    return times


def _calls(instructions: list[_Instruction], computations) -> Iterator[tuple[str, int | None]]:
    for instruction in instructions:
        # of what stands before the metadata, where any text may be
        attributes = instruction.rest.partition("metadata=")[0]
        attributes += instruction.rest.partition("backend_config=")[0][len(attributes) :]
        trips: int | None = 1
        if instruction.opcode == "while":
            condition = re.search(r"condition=%?([\w.\-]+)", attributes)[1]
            trips = _trips(instruction.rest, computations.get(condition, []))
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


def _trips(attributes: str, condition: list[_Instruction]) -> int | None:
    """Of a loop: XLA says it, or the condition compares a counter from 0 with a constant."""
    if match := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', attributes):
        return int(match[1])
    constants = [
        int(match[1])
        for x in condition
        if x.opcode == "constant" and (match := re.match(r"(\d+)\)", x.rest))
    ]
    return constants[0] if len(constants) == 1 else None


class _Frames:
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
