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

Tests of compiled steps and `benchmarks/plan_table.py` hold programs to this.
"""

from __future__ import annotations

import collections
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from flax import nnx

import vmae_jax
from vmae_jax import assembly, config_file
from vmae_jax.plan import program
from vmae_jax.plan.collectives import Array, Collective, find
from vmae_jax.sharding import AXES, STACKS
from vmae_jax.weights import layouts

CLASSES = ("gradients", "parameters", "scalars", "activations", "other")
TILE = (8, 128)  # of a TPU's memory
MAX_SCALARS = 16  # numbers; XLA puts a few scalars together


class Flow(NamedTuple):
    """What one collective carries of one class.

    Attributes:
      kind: of `plan.collectives.KINDS`.
      what: one of `CLASSES`.
      num_bytes: that a device has of it when it is whole, each time.
      times: how often a step does it; None if that is not known.
      group_size: devices that take part together.
      slices: how many slices they come from.
      axes: of the mesh, along which they lie; () if they don't lie along axes.
      shapes: e.g. "bf16[384,1536] x 2".
      op_name: the JAX operations it came from, e.g. "jit(step)/transpose(jvp())/while/body/dot".
      source: file and line where it was asked for, the innermost of ours; "" if not known.
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


def of_program(
    text: str, parameters: Mapping[str, Sequence[int]], mesh: Mapping[str, int], num_slices: int = 1
) -> list[Flow]:
    """What the collectives of a program carry.

    Args:
      text: of the compiled step, as `python -m vmae_jax plan --program` writes it.
      parameters: path -> shape.
      mesh: axis -> devices.
      num_slices: that the first axis runs over.
    """
    sides = parameter_sides(parameters, STACKS, mesh)
    return classify(origins(text), sides, mesh, num_slices)


def parameter_shapes(path: str, overrides: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """path -> shape of each parameter that a configuration trains; nothing is allocated."""
    config = assembly.make_model_config(config_file.load(path, overrides))
    model = nnx.eval_shape(lambda: vmae_jax.VideoMAEForPreTraining(config))
    return {name: x.shape for name, x in layouts.parameters(model.core).items()}


def origins(text: str, package: str = "vmae_jax") -> list[tuple[Collective, str, str]]:
    """Each collective of a program with its op_name and its source, as in `Flow`.

    Args:
      text: `jax.stages.Compiled.as_text()`.
      package: folder whose files count as ours.
    """
    computations, _ = program.read(text)
    callers = {
        callee: instruction.rest
        for instructions in computations.values()
        for callee, instruction in program.calls(instructions)
    }
    frames = Frames(text, package)
    found = []
    for collective in find(text):
        origin = collective.instruction.rest
        if "op_name=" not in origin:  # of who calls it
            origin = callers.get(collective.computation, origin)
        op_name = re.search(r'op_name="([^"]*)"', origin)
        found.append((collective, op_name[1] if op_name else "", frames.source(origin)))
    return found


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
    found: Iterable[tuple[Collective, str, str]],
    sides: set[tuple[int, ...]],
    mesh: Mapping[str, int],
    num_slices: int = 1,
) -> list[Flow]:
    """Each collective as flows, one for each class that it carries.

    Args:
      found: collectives with the op_name and source of each, from `origins`.
      sides: from `parameter_sides`.
      mesh: axis -> devices, in the order of `AXES`, the first the slowest.
      num_slices: that the first axis runs over.
    """
    num_devices = math.prod(mesh[axis] for axis in AXES)
    sizes = {math.prod(array) for array in sides}
    flows = []
    for collective, op_name, source in found:
        groups = collective.groups or (tuple(range(num_devices)),)
        if collective.between_slices:
            groups = _peers(num_devices, num_slices)
        if collective.kind == "collective-permute":
            groups = _chains(groups)
        axes = _axes(groups, mesh)
        per_slice = num_devices // num_slices
        slices = max(len({device // per_slice for device in group}) for group in groups)
        parts: dict[str, list[Array]] = collections.defaultdict(list)
        for shape in collective.arrays:
            what = _class(collective, op_name, shape, sides, axes)
            if what == "other" and num_slices > 1:
                packed = _is_packed(collective, op_name, shape, axes, sizes)
                what = "gradients" if packed else "other"
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
                    op_name=op_name,
                    source=source,
                )
            )
    return flows


def _class(
    collective: Collective,
    op_name: str,
    shape: Array,
    sides: set[tuple[int, ...]],
    axes: tuple[str, ...],
) -> str:
    size = math.prod(shape.dims)
    if size <= 1 or (collective.kind == "all-reduce" and size <= MAX_SCALARS):
        return "scalars"
    if not shape.dtype.startswith(("f", "bf")):
        return "other"
    summed = collective.kind in ("all-reduce", "reduce-scatter")
    if summed and collective.between_slices:  # data alone runs over slices: a sum over clips
        return "gradients"
    if _sides(shape.dims) in sides:
        # a sum of parameters means nothing; and as data does not split them, what is gathered along
        # it is the second half of a sum that was scattered first
        backward = "transpose(" in op_name and collective.kind != "all-gather"
        return "gradients" if summed or backward or "data" in axes else "parameters"
    return "activations" if axes == ("tensor",) else "other"


def _is_packed(
    collective: Collective, op_name: str, shape: Array, axes: tuple[str, ...], sizes: set[int]
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
        return tiles or not op_name
    fits = not op_name and "data" in axes and math.prod(shape.dims) in sizes
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


def _written(shapes: Sequence[Array]) -> str:
    counts = collections.Counter(f"{x.dtype}[{','.join(map(str, x.dims))}]" for x in shapes)
    return ", ".join(f"{name} x {n}" if n > 1 else name for name, n in counts.items())


def totals(flows: Sequence[Flow]) -> dict[str, dict[str, int | None]]:
    """Of a step: class -> bytes, and how many collectives run; None if that is not known of one."""
    members = {what: [flow for flow in flows if flow.what == what] for what in CLASSES}
    result = {}
    for what, found in members.items():
        known = all(flow.times is not None for flow in found)
        if found:
            result[what] = {
                "bytes": sum(flow.num_bytes * flow.times for flow in found) if known else None,
                "count": sum(flow.times for flow in found) if known else None,
            }
    return result


def faults(flows: Iterable[Flow]) -> list[Flow]:
    """What no mesh of ours should send, and what is in loops of unknown length."""
    return [flow for flow in flows if flow.what == "other" or flow.times is None]


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
