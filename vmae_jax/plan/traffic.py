"""Who sends what: collectives sorted by what they carry, and whether a mesh may send that.

    class        carries
    gradients    of parameters: summed over clips, or scattered back to who keeps them
    parameters   that fsdp has split, gathered where they are used
    scalars      losses, norms, counters
    activations  over the tensor axis, where heads and MLPs are split
    other        anything else

With tensor = 1 no tokens, activations, masks or noise may travel, so "other" is a fault there: it
holds whatever is not known by its shape. An array counts as a parameter's if it has the sides of
one: whole or a shard, of one layer or a stack, in any order of axes.
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from vmae_jax.plan.collectives import Collective
from vmae_jax.plan.hlo import Shape

CLASSES = ("gradients", "parameters", "scalars", "activations", "other")
AXES = ("data", "fsdp", "tensor")  # sharding.AXES, which needs jax
TILE = (8, 128)  # of a TPU's memory
MAX_SCALARS = 16  # numbers; XLA puts a few scalars together


class Flow(NamedTuple):
    """What one collective carries of one class.

    Attributes:
      kind: of `collectives.KINDS`.
      what: one of `CLASSES`.
      num_bytes: that a device has of it when it is whole, each time.
      times: how often a step does it; None if that is not known.
      group_size: devices that take part together.
      slices: how many slices they come from.
      axes: of the mesh, along which they lie; () if they don't lie along axes.
      shapes: e.g. "bf16[384,1536] x 2".
      op_name, source: as in `Collective`.
    """

    kind: str
    what: str
    num_bytes: int
    times: int | None
    group_size: int
    slices: int
    axes: tuple[str, ...]
    shapes: str
    op_name: str
    source: str


def parameter_sides(
    parameters: Mapping[str, Sequence[int]], stacks: Iterable[str], mesh: Mapping[str, int]
) -> set[tuple[int, ...]]:
    """The sides that arrays made of parameters can have, each ascending and without ones.

    Args:
      parameters: path -> shape.
      stacks: first names of paths whose parameters have a leading layer axis.
      mesh: axis -> devices.
    """
    ways = {math.prod(x) for x in itertools.product(*((1, mesh[axis]) for axis in AXES[1:]))}
    found = set()
    for path, shape in parameters.items():
        stacked = path.split("/")[0] in set(stacks)
        layer = tuple(shape[1:] if stacked else shape)
        for merged in _merged(layer):
            for axis, way in itertools.product(range(len(merged)), ways):
                if merged[axis] % way:
                    continue
                part = (*merged[:axis], merged[axis] // way, *merged[axis + 1 :])
                found.add(_sides(part))
                if stacked:
                    found.add(_sides((shape[0], *part)))
            if mesh["tensor"] > 1 and mesh["fsdp"] > 1:
                found |= _twice_split(merged, mesh, shape[0] if stacked else 1)
    return found


def _twice_split(layer: tuple[int, ...], mesh: Mapping[str, int], depth: int) -> set:
    """With one side split by tensor and another by fsdp."""
    found = set()
    for a, b in itertools.permutations(range(len(layer)), 2):
        if layer[a] % mesh["tensor"] == 0 and layer[b] % mesh["fsdp"] == 0:
            part = list(layer)
            part[a] //= mesh["tensor"]
            part[b] //= mesh["fsdp"]
            found |= {_sides(part), _sides((depth, *part))}
    return found


def _merged(shape: tuple[int, ...]) -> Iterable[tuple[int, ...]]:
    """The shape with neighbouring axes put together in all ways, itself too."""
    for cuts in itertools.product((False, True), repeat=max(0, len(shape) - 1)):
        merged = [shape[0]] if shape else []
        for side, cut in zip(shape[1:], cuts, strict=True):
            if cut:
                merged.append(side)
            else:
                merged[-1] *= side
        yield tuple(merged)


def _sides(shape: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(side for side in shape if side != 1))


def classify(
    found: Iterable[Collective],
    sides: set[tuple[int, ...]],
    mesh: Mapping[str, int],
    num_slices: int = 1,
) -> list[Flow]:
    """Each collective as flows, one for each class that it carries.

    Args:
      found: by `collectives.find`.
      sides: from `parameter_sides`.
      mesh: axis -> devices, in the order of `AXES`, the first the slowest.
      num_slices: that the first axis runs over.
    """
    num_devices = math.prod(mesh[axis] for axis in AXES)
    sizes = {math.prod(array) for array in sides}
    flows = []
    for collective in found:
        groups = collective.groups or (tuple(range(num_devices)),)
        if collective.between_slices:
            groups = _peers(num_devices, num_slices)
        if collective.kind == "collective-permute":
            groups = _chains(groups)
        axes = _axes(groups, mesh)
        per_slice = num_devices // num_slices
        slices = max(len({device // per_slice for device in group}) for group in groups)
        parts: dict[str, list[Shape]] = collections.defaultdict(list)
        for shape in collective.shapes:
            what = _class(collective, shape, sides, axes)
            if what == "other" and num_slices > 1 and _is_packed(collective, shape, axes, sizes):
                what = "gradients"
            parts[what].append(shape)
        for what in sorted(parts, key=CLASSES.index):
            flows.append(
                Flow(
                    kind=collective.kind,
                    what=what,
                    num_bytes=sum(shape.num_bytes for shape in parts[what]),
                    times=collective.times,
                    group_size=max(map(len, groups)),
                    slices=slices,
                    axes=axes,
                    shapes=_written(parts[what]),
                    op_name=collective.op_name,
                    source=collective.source,
                )
            )
    return flows


def _class(
    collective: Collective,
    shape: Shape,
    sides: set[tuple[int, ...]],
    axes: tuple[str, ...],
) -> str:
    if shape.size <= 1 or (collective.kind == "all-reduce" and shape.size <= MAX_SCALARS):
        return "scalars"
    if not shape.dtype.startswith(("f", "bf")):
        return "other"
    summed = collective.kind in ("all-reduce", "reduce-scatter")
    if summed and collective.between_slices:  # data alone runs over slices: a sum over clips
        return "gradients"
    if _sides(shape.dims) in sides:
        # a sum of parameters means nothing; and as data does not split them, what is gathered along
        # it is the second half of a sum that was scattered first
        backward = "transpose(" in collective.op_name and collective.kind != "all-gather"
        return "gradients" if summed or backward or "data" in axes else "parameters"
    return "activations" if axes == ("tensor",) else "other"


def _is_packed(
    collective: Collective, shape: Shape, axes: tuple[str, ...], sizes: set[int]
) -> bool:
    """Whether it is a part of gradients on their way between slices, packed by the compiler: into
    whole tiles, or small ones behind a large one.

    What it made itself bears no operation's name. What is summed over clips, which data and fsdp
    split, are gradients; what is gathered over data must be as large as a parameter, or in whole
    tiles.
    """
    if not shape.dtype.startswith(("f", "bf")) or not {"data", "fsdp"} & set(axes):
        return False
    tiles = shape.dims[1:] == TILE and "data" in axes
    if collective.kind in ("all-reduce", "reduce-scatter"):
        return tiles or not collective.op_name
    fits = not collective.op_name and "data" in axes and shape.size in sizes
    return collective.kind == "all-gather" and (tiles or fits)


def _peers(num_devices: int, num_slices: int) -> tuple[tuple[int, ...], ...]:
    """Devices of the same place in each slice."""
    per_slice = num_devices // num_slices
    return tuple(tuple(range(i, num_devices, per_slice)) for i in range(per_slice))


def _axes(groups: Sequence[Sequence[int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Along which the members of the groups lie."""
    used = set()
    for group in groups:
        places = [_place(device, mesh) for device in group]
        for axis, values in zip(AXES, zip(*places, strict=True), strict=True):
            if len(set(values)) > 1:
                used.add(axis)
    return tuple(axis for axis in AXES if axis in used)


def _place(device: int, mesh: Mapping[str, int]) -> tuple[int, int, int]:
    rest, tensor = divmod(device, mesh["tensor"])
    return (*divmod(rest, mesh["fsdp"]), tensor)


def _chains(pairs: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Sets of devices that the pairs of a permutation join."""
    group: dict[int, set[int]] = {}
    for pair in pairs:
        joined = set().union(*({device} | group.get(device, set()) for device in pair))
        for device in joined:
            group[device] = joined
    return tuple(sorted({tuple(sorted(members)) for members in group.values()}))


def _written(shapes: Sequence[Shape]) -> str:
    counts = collections.Counter(f"{x.dtype}[{','.join(map(str, x.dims))}]" for x in shapes)
    return ", ".join(f"{name} x {n}" if n > 1 else name for name, n in counts.items())


def totals(flows: Iterable[Flow]) -> dict[str, dict[str, int]]:
    """Of a step: class -> bytes, and how many collectives run; unknown times count as once."""
    result: dict[str, dict[str, int]] = {}
    for flow in flows:
        entry = result.setdefault(flow.what, {"bytes": 0, "count": 0})
        times = 1 if flow.times is None else flow.times
        entry["bytes"] += flow.num_bytes * times
        entry["count"] += times
    return {what: result[what] for what in CLASSES if what in result}


def faults(flows: Iterable[Flow]) -> list[Flow]:
    """What no mesh of ours should send."""
    return [flow for flow in flows if flow.what == "other"]
