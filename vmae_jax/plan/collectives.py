"""What devices send to each other, read from the text of a compiled program.

    find(compiled.as_text()) -> [Collective("all-reduce", shapes, times=12, groups, ...)]

A collective in the body of a loop runs as often as the loop does; both are found by following the
calls from the entry. Nothing here knows what the arrays are: that is `traffic.py`.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from vmae_jax.plan import hlo

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


class Collective(NamedTuple):
    """One collective instruction.

    Attributes:
      kind: one of `KINDS`.
      shapes: of the arrays it carries: what a device has of each when all are together: the results
        (reduce-scatter: the operands).
      times: how often a step runs it; None if that cannot be told.
      groups: numbers of the devices that take part together; () stands for all in one.
      between_slices: each device exchanges with its peers in the other slices, over the network of
        the data centre. Such a one is a part of a collective over all slices: the others, within a
        slice, stand for themselves.
      op_name: the JAX operations it came from, e.g. "jit(step)/transpose(jvp())/while/body/dot".
      source: file and line where it was asked for, the innermost of ours; "" if not known.
    """

    kind: str
    shapes: tuple[hlo.Shape, ...]
    times: int | None
    groups: tuple[tuple[int, ...], ...]
    between_slices: bool
    op_name: str
    source: str


def find(text: str, package: str = "vmae_jax") -> list[Collective]:
    """The collectives of a program.

    Args:
      text: `jax.stages.Compiled.as_text()`.
      package: folder whose files count as ours, for `source`.
    Raises:
      ValueError: if the text is no HLO module, or something in it cannot be read.
    """
    computations, entry = hlo.computations(text)
    times = hlo.executions(computations, entry)
    callers = {
        callee: instruction
        for instructions in computations.values()
        for instruction in instructions
        for callee, _ in hlo.calls([instruction], computations)
    }
    frames = hlo.Frames(text, package)
    found, chains, num_read = [], set(), 0
    for name, instructions in computations.items():
        for instruction in instructions:
            kind = _kind(instruction)
            if kind is None:
                continue
            num_read += instruction.opcode != "send"
            if _is_repeated(instruction, chains):
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
                    times.get(name),  # nobody calls it: then a call was not understood
                    groups(instruction.rest),
                    instruction.opcode == "send",
                    op_name[1] if op_name else "",
                    frames.source(origin),
                )
            )
    written = len(re.findall(rf"^  .* = .*[\])}}] (?:{'|'.join(_STARTS)})\(", text, re.MULTILINE))
    if num_read != written:
        raise ValueError(f"the program has {written} collectives, of which {num_read} were read.")
    return found


def _kind(instruction: hlo.Instruction) -> str | None:
    if instruction.opcode == "send":  # to the runtime that joins slices; others are for the host
        match = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)
        return match[1].lower().replace("_", "-") if match else None
    return _STARTS.get(instruction.opcode)


def _is_repeated(instruction: hlo.Instruction, chains: set) -> bool:
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
    if match := re.match(r"\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", value):
        return _rows(_iota(match[2]), _numbers(match[1])[-1])
    mesh = r"mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? \{([^}]*)\}"
    if match := re.match(mesh, value):
        positions = _mesh_groups(match[1], match[3])
        if match[2] is None:
            return positions
        devices = _iota(match[2]) if match[2].startswith("[") else _numbers(match[2])
        return tuple(tuple(devices[i] for i in group) for group in positions)
    raise ValueError(f"replica_groups={value[:80]!r}: this way to write groups is not known.")


def _mesh_groups(axes: str, names: str) -> tuple[tuple[int, ...], ...]:
    """Places in a mesh that differ in the named axes alone.

    Args:
      axes: e.g. "'a'=2,'b'=8".
      names: e.g. "'a','b':(2)4"; the latter is the part of size 4 of b after a first part of 2.
    """
    wanted = re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", names)
    sizes: list[int] = []  # of the axes, cut into their parts
    taken = []
    for name, size in re.findall(r"'([^']*)'=(\d+)", axes):
        parts = [(int(a or 1), int(b or size)) for n, a, b in wanted if n == name]
        done = 1
        for before, part in sorted(parts):
            sizes += [before // done, part]
            taken.append(len(sizes) - 1)
            done = before * part
        sizes.append(int(size) // done)
    others = [i for i in range(len(sizes)) if i not in taken]
    flat = _transposed(tuple(sizes), (*others, *taken))
    return _rows(flat, math.prod(sizes[i] for i in taken))


def _iota(text: str) -> list[int]:
    """Of "[2,4]T(1,0)": 0, 1, 2, ... in that shape, transposed and flat again."""
    dims, _, order = text.partition("T")
    sides = _numbers(dims.strip("[]"))
    return _transposed(sides, _numbers(order.strip("()")) or tuple(range(len(sides))))


def _transposed(dims: tuple[int, ...], order: tuple[int, ...]) -> list[int]:
    """arange(prod(dims)).reshape(dims).transpose(order).ravel(), in plain Python."""
    strides = [math.prod(dims[i + 1 :]) for i in range(len(dims))]
    flat = [0]
    for axis in order:
        flat = [start + i * strides[axis] for start in flat for i in range(dims[axis])]
    return flat


def _rows(flat: list[int], width: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(flat[i : i + width]) for i in range(0, len(flat), width))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)


def _braces(text: str) -> tuple[tuple[int, ...], ...]:
    return tuple(_numbers(group) for group in re.findall(r"\{([\d,]*)\}", text))


def _carried(instruction: hlo.Instruction, kind: str) -> list[hlo.Shape]:
    """The arrays of a collective, once: a start has its operands in its shape, too."""
    all_shapes = hlo.shapes(instruction.shape)
    if instruction.opcode == "send":
        return hlo.shapes(hlo.top_level(instruction.shape)[0])
    if kind == "reduce-scatter":
        return _scaled(all_shapes, instruction)
    if instruction.opcode in ("all-gather-start", "collective-permute-start"):
        parts = hlo.top_level(instruction.shape)
        return hlo.shapes(parts[1])
    return all_shapes


def _scaled(results: list[hlo.Shape], instruction: hlo.Instruction) -> list[hlo.Shape]:
    """A reduce-scatter's operands from its results."""
    axis = int(re.search(r"dimensions=\{(\d+)\}", instruction.rest)[1])
    ways = len(groups(instruction.rest)[0])
    return [
        hlo.Shape(x.dtype, (*x.dims[:axis], x.dims[axis] * ways, *x.dims[axis + 1 :]))
        for x in results
    ]
