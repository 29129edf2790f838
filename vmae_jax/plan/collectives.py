"""What devices send to each other in a step, read from the text of the compiled program.

    find(text) -> [Collective("all-reduce", arrays, times=12, groups, ...)]

A collective in the body of a loop runs as often as the loop does. A form that is not known is
refused rather than overlooked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vmae_jax.plan import program
from vmae_jax.plan.program import Instruction

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# What starts one without waiting has an opcode of its own; its end, "-done", is not counted.
_STARTS = {f"{kind}-start": kind for kind in KINDS} | {kind: kind for kind in KINDS}


class Array(NamedTuple):
    """That travels: "bf16", (384, 1536)."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Without the padding that it may have in memory."""
        bits = {"pred": 8, "token": 0, "opaque": 0}.get(self.dtype)
        if bits is None:
            bits = int(re.search(r"\d+", self.dtype)[0])
        return math.prod(self.dims) * bits // 8


class Collective(NamedTuple):
    """One collective instruction.

    Attributes:
      kind: one of `KINDS`.
      arrays: what a device has of each array when all are together: the results (reduce-scatter:
        the operands).
      times: how often a step runs it; None if that cannot be told.
      groups: numbers of the devices that take part together (of a permutation: its pairs);
        () stands for all in one.
      between_slices: each device exchanges with its peers in the other slices, over the network of
        the data centre. Such a one is a part of a collective over all slices: the others, within a
        slice, stand for themselves.
      instruction, computation: where it stands.
    """

    kind: str
    arrays: tuple[Array, ...]
    times: int | None
    groups: tuple[tuple[int, ...], ...]
    between_slices: bool
    instruction: Instruction
    computation: str


def find(text: str) -> list[Collective]:
    """The collectives of a program.

    Args:
      text: `jax.stages.Compiled.as_text()`.
    Raises:
      ValueError: if the text is no HLO module, or something in it cannot be read.
    """
    computations, entry = program.read(text)
    times = program.executions(computations, entry)
    found, chains, num_read = [], set(), 0
    for name, instructions in computations.items():
        for x in instructions:
            kind = _STARTS.get(x.opcode)
            num_read += kind is not None
            if x.opcode == "send":  # to the runtime that joins slices; others are for the host
                joined = re.search(r'_xla_megascale_transfer_type="(\w+)"', x.rest)
                kind = joined and joined[1].lower().replace("_", "-")
            if kind is None or _is_repeated(x, chains):
                continue
            members = groups(x.rest)
            arrays = tuple(_carried(x, members))
            if name.startswith("all-reduce-scatter"):  # a fusion that keeps a part of the sum
                kind = "reduce-scatter"
            between = x.opcode == "send"
            found.append(Collective(kind, arrays, times(name), members, between, x, name))
    written = len(re.findall(rf"^  .* = .*[\])}}] (?:{'|'.join(_STARTS)})\(", text, re.MULTILINE))
    if num_read != written:
        raise ValueError(f"the program has {written} collectives, of which {num_read} were read.")
    return found


def sizes(
    found: Iterable[Collective], num_devices: int, num_slices: int = 1
) -> list[dict[str, Any]]:
    """Of each collective what a network has to carry, as JSON values.

    Returns:
      kind, num_bytes and times; how many devices take part together (group_size), and from how many
      slices they come (slices).
    """
    per_slice = num_devices // num_slices
    peers = [range(i, num_devices, per_slice) for i in range(per_slice)]
    rows = []
    for x in found:
        together = peers if x.between_slices else x.groups or (range(num_devices),)
        rows.append(
            {
                "kind": x.kind,
                "num_bytes": sum(array.num_bytes for array in x.arrays),
                "times": x.times,
                "group_size": max(map(len, together)),
                "slices": max(len({i // per_slice for i in group}) for group in together),
            }
        )
    return rows


def _is_repeated(x: Instruction, chains: set) -> bool:
    """Whether it was seen before: the TPU compiler spreads a collective over several fusions, each
    with a copy of it, which share the numbers of their chain and channel."""
    chain = re.search(r'chain_id="(\d+)"', x.rest)
    if chain is None:
        return False
    channel = re.search(r"channel_id=(\d+)", x.rest)
    key = (x.opcode, chain[1], channel and channel[1])
    repeated = key in chains
    chains.add(key)
    return repeated


def shapes(text: str) -> list[Array]:
    """All arrays in a shape, e.g. "(bf16[12,64]{1,0:T(8,128)}, f32[])"."""
    return [
        Array(dtype, _numbers(dims.replace("<=", "")))
        for dtype, dims in re.findall(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\]", text)
    ]


def _carried(x: Instruction, members: Sequence[Sequence[int]]) -> list[Array]:
    """The arrays of a collective, once: a start has its operands in its shape, too."""
    arrays = shapes(x.shape)
    if x.opcode == "send":  # (array, context, token)
        return arrays[:1]
    if x.opcode in ("all-gather-start", "collective-permute-start"):  # (operands, results, context)
        arrays = [array for array in arrays if array != Array("u32", ())]
        return arrays[len(arrays) // 2 :]
    if x.opcode.startswith("reduce-scatter"):
        axis, ways = int(re.search(r"dimensions=\{(\d+)\}", x.rest)[1]), len(members[0])
        return [
            Array(dtype, (*dims[:axis], dims[axis] * ways, *dims[axis + 1 :]))
            for dtype, dims in arrays
        ]
    return arrays


def groups(attributes: str) -> tuple[tuple[int, ...], ...]:
    """The devices that exchange among themselves, from the attributes of a collective.

    HLO has four ways to say it: lists, `{{0,1},{2,3}}`; an array of numbers that is reshaped and
    transposed, `[2,2]<=[2,2]T(1,0)`; axes of a mesh, `mesh['a'=2,'b'=2] {'b'}`; and for a
    permutation its pairs.

    Raises:
      ValueError: if it is said otherwise.
    """
    found = re.search(r"(?:replica_groups|source_target_pairs)=(.*)", attributes)
    if found is None:
        return ()
    if lists := re.match(r"\{((?:\{[\d,]*\},?)*)\}", found[1]):
        return tuple(map(_numbers, re.findall(r"\{([\d,]*)\}", lists[1])))
    if iota := re.match(r"\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", found[1]):
        rows = _iota(iota[2]).reshape(_numbers(iota[1]))
    elif mesh := re.match(r"mesh\[(.*?)\](?:, device_ids=\(([^{]*)\))? \{(.*?)\}", found[1]):
        rows = _along(*mesh.groups())
    else:
        raise ValueError(
            f"replica_groups={found[1][:80]!r}: this way to write groups is not known."
        )
    return tuple(map(tuple, rows.tolist()))


def _along(axes: str, ids: str | None, names: str) -> np.ndarray:
    """[groups, members]: devices whose places in a mesh differ in the named axes alone.

    Args:
      axes: e.g. "'a'=2,'b'=8".
      ids: of the devices, in the order of the mesh; None: 0, 1, 2, ...
      names: e.g. "'a','b':(2)4"; the latter is the part of size 4 of b after a first part of 2.
    """
    wanted = re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", names)
    sizes: list[int] = []  # of the axes, cut into their parts
    taken = []
    for name, size in re.findall(r"'([^']*)'=(\d+)", axes):
        done = 1
        parts = [(int(a or 1), int(b or size)) for n, a, b in wanted if n == name]
        for before, part in sorted(parts):
            sizes += [before // done, part]
            taken.append(len(sizes) - 1)
            done = before * part
        sizes.append(int(size) // done)
    if ids is None:
        devices = np.arange(math.prod(sizes))
    else:
        devices = _iota(ids) if ids.startswith("[") else np.array(_numbers(ids))
    others = [i for i in range(len(sizes)) if i not in taken]
    members = math.prod(sizes[i] for i in taken)
    return devices.reshape(sizes).transpose(*others, *taken).reshape(-1, members)


def _iota(text: str) -> np.ndarray:
    """Of "[2,4]T(1,0)": 0, 1, 2, ... in that shape, transposed and flat again."""
    dims, _, order = (_numbers(part.strip("[]()T")) for part in text.partition("T"))
    return np.arange(math.prod(dims)).reshape(dims).transpose(order or None).ravel()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)
