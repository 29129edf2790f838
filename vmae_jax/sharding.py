"""Where arrays lie: one mesh, one rule for parameters and optimizer, clips over the batch axes.

    axis     splits                                              what crosses it
    data     clips; may span slices, whose network is slow       gradients
    fsdp     clips, and large parameters with their optimizer    those parameters, their gradients
    tensor   heads and the width of the MLPs                     activations, twice a block

Parameters that fsdp splits are gathered where a block uses them and forgotten after; their
gradients come back scattered. XLA would also find a program that moves activations instead, so both
moves are written down (`gathered`, `split_clips`) rather than left to it. Without a mesh in context
(`jax.set_mesh`) they do nothing, so a model runs anywhere.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vmae_jax.errors import SettingError

AXES = ("data", "fsdp", "tensor")
CLIPS = PartitionSpec(("data", "fsdp"))  # of an array whose first axis counts clips

# The end of a parameter's path -> which of its axes `tensor` splits, from the back; the first that
# fits counts. A product over a split axis is followed by a sum over devices, one for each half of a
# block.
TENSOR_AXES = {
    "attention/qkv/kernel": -2,  # [D, 3, heads, head_dim]
    "attention/q_bias": -2,
    "attention/v_bias": -2,
    "attention/output/kernel": -3,  # [heads, head_dim, D]
    "intermediate/kernel": -1,  # [D, mlp]
    "intermediate/bias": -1,
    "output/kernel": -2,  # [mlp, D]
}
# Parameters below these names have a leading layer axis, along which a scan slices them.
STACKS = ("encoder", "decoder")
# fp32 bytes of one layer's parameter from which fsdp splits it: smaller ones cost less memory than
# gathering them costs time.
MIN_FSDP_BYTES = 2**20
TILE_ROWS = 8  # of fp32 in a TPU's memory
GATHERED = "gathered_parameter"  # the name by which remat policies know them


def make_mesh(
    *,
    data: int | None = None,
    fsdp: int = 1,
    tensor: int = 1,
    heads: Sequence[int] = (),
    devices: Sequence[jax.Device] | None = None,
    slices: int | None = None,
) -> Mesh:
    """The mesh (data, fsdp, tensor) of all devices, laid along their network.

    Args:
      data, fsdp, tensor: devices along each axis; `data=None` takes what the others leave.
      heads: numbers that `tensor` must divide (attention heads of encoder and decoder).
      devices: all of them unless given. If they span slices, `data` does, slowest first.
      slices: how many; the devices say so themselves, unless they are pretended.
    Raises:
      ValueError: if there is no such mesh; names the nearest.
    """
    devices = jax.devices() if devices is None else list(devices)
    found = len({getattr(d, "slice_index", 0) or 0 for d in devices})
    slices = found if slices is None else slices
    wanted = (len(devices) // max(1, fsdp * tensor) if data is None else data, fsdp, tensor)
    possible = _possible_meshes(len(devices), slices, heads)
    if wanted not in possible:
        nearest = min(possible, key=lambda mesh: _distance(mesh, wanted))
        given = ", ".join(f"mesh.{k}={v}" for k, v in zip(AXES, (data, *wanted[1:]), strict=True))
        rules = [f"their product must be the {len(devices)} devices"]
        if slices > 1:
            rules.append(f"data a multiple of the {slices} slices")
        if heads:
            rules.append(f"tensor a divisor of the heads, {' and '.join(map(str, heads))}")
        raise SettingError(
            f"{given}: {'; '.join(rules)}. The nearest possible mesh is "
            f"data={nearest[0]}, fsdp={nearest[1]}, tensor={nearest[2]}."
        )
    if found > 1:
        within = (wanted[0] // slices, *wanted[1:])
        grid = mesh_utils.create_hybrid_device_mesh(
            within, (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    elif devices[0].platform == "tpu":
        grid = mesh_utils.create_device_mesh(wanted, devices, allow_split_physical_axes=True)
    else:  # no network to follow
        grid = np.asarray(devices).reshape(wanted)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def _possible_meshes(num_devices: int, slices: int, heads: Sequence[int]) -> set[tuple]:
    divisors = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
    return {
        (num_devices // (fsdp * tensor), fsdp, tensor)
        for fsdp, tensor in itertools.product(divisors, divisors)
        if num_devices % (fsdp * tensor * slices) == 0 and all(h % tensor == 0 for h in heads)
    }


def _distance(mesh: tuple, wanted: tuple) -> tuple:
    """By ratio; the axis that was asked for most firmly is tensor, then fsdp."""
    ratios = [abs(math.log(a / max(b, 0.5))) for a, b in zip(mesh, wanted, strict=True)]
    return sum(ratios), ratios[2], ratios[1]


def check_batch(mesh: Mesh, batch_size: int, *, repeat: int = 1, accumulation: int = 1) -> None:
    """That every device gets the same number of clips in every micro-batch, in whole groups.

    Args:
      batch_size: clips of a step.
      repeat: crops of a video, which stay together.
      accumulation: micro-batches of a step.
    Raises:
      ValueError: if not; names the nearest batch size.
    """
    if accumulation < 1:
        raise SettingError(f"optimizer.accumulation={accumulation} must be at least 1 micro-batch.")
    if repeat < 1:
        raise SettingError(f"data.repeat={repeat} must be at least 1 crop of each video.")
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    unit = ways * repeat * accumulation
    if batch_size < 1 or batch_size % unit:
        factors = [f"{ways} ways that the mesh splits clips (data x fsdp)"]
        factors += [f"data.repeat={repeat}"] * (repeat > 1)
        factors += [f"optimizer.accumulation={accumulation}"] * (accumulation > 1)
        raise SettingError(
            f"data.batch_size={batch_size} is not a positive multiple of the "
            f"{' times '.join(factors)}; choose e.g. {max(1, round(batch_size / unit)) * unit}."
        )


def parameter_spec(path: str, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """How a parameter, or what the optimizer keeps for it, is split.

    `tensor` splits the axis that `TENSOR_AXES` names; `fsdp` then the largest other axis that it
    divides, into whole rows of tiles if it can, of arrays of `MIN_FSDP_BYTES` and more. Everything
    else is copied to every device.

    Args:
      path: names joined by "/", e.g. "opt_state/adam/mu/encoder/output/kernel".
      shape: with the leading layer axis of a stack, which is never split.
      mesh: with the axes `AXES`.
    """
    stacked = any(name in STACKS for name in path.split("/"))
    layer = _layer_spec(path, tuple(shape[1:] if stacked else shape), mesh.shape)
    return PartitionSpec(None, *layer) if stacked else layer


def _layer_spec(path: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    split: list[str | None] = [None] * len(shape)
    if sizes["tensor"] > 1:
        for end, axis in TENSOR_AXES.items():
            if path.endswith(end) and len(shape) >= -axis:
                if shape[axis] % sizes["tensor"] == 0:
                    split[axis] = "tensor"
                break
    if sizes["fsdp"] > 1 and 4 * math.prod(shape) >= MIN_FSDP_BYTES:
        # parts that are not whole rows of memory tiles would travel padded, and be put right after
        free = [
            (shape[axis] // sizes["fsdp"] % TILE_ROWS == 0, shape[axis], -axis)
            for axis in range(len(shape))
            if split[axis] is None and shape[axis] % sizes["fsdp"] == 0
        ]
        if free:
            split[-max(free)[2]] = "fsdp"
    return PartitionSpec(*split)


def state_shardings(shapes: Any, mesh: Mesh) -> Any:
    """A NamedSharding for each leaf of a train state, by its path and shape."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, parameter_spec(path_name(path), leaf.shape, mesh)),
        shapes,
    )


def path_name(path: tuple) -> str:
    """E.g. "opt_state/adam/mu/encoder/output/kernel"; the same for dicts, tuples and modules."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return name.removesuffix("/value")  # of a module's parameters


def _sizes() -> Mapping[str, int] | None:
    """Of the mesh in context, if it is one of ours."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape if set(AXES) <= set(mesh.shape) else None


def gathers() -> bool:
    """Whether parameters are split over the mesh in context, so that layers gather them."""
    sizes = _sizes()
    return sizes is not None and sizes["fsdp"] > 1


def split_clips(tree: Any) -> Any:
    """The same arrays, their first axis (clips) split over the batch axes and nothing else."""
    if _sizes() is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, CLIPS), tree)


def on_all(tree: Any) -> Any:
    """The same arrays, whole on every device."""
    if _sizes() is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), tree)


def gathered(tree: Any, dtype: jax.typing.DTypeLike | None = None) -> Any:
    """The same parameters, whole along fsdp; their gradients are split again.

    Args:
      tree: parameters of one layer (as a scan slices them) or outside of the stacks.
      dtype: that kernels are cast to before they travel; everything else keeps its own.
    """
    if not gathers():
        return tree
    sizes = _sizes()

    def gather(path, x):
        name = path_name(path)
        split = _layer_spec(name, x.shape, sizes)
        if "fsdp" not in split:
            return x
        if dtype is not None and name.endswith("kernel"):
            # said again, or the compiler gathers first and casts then: twice the traffic
            x = jax.lax.with_sharding_constraint(x.astype(dtype), split)
        whole = PartitionSpec(*(None if axis == "fsdp" else axis for axis in split))
        return checkpoint_name(_gather(x, split, whole), GATHERED)

    return jax.tree_util.tree_map_with_path(gather, tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x: jax.Array, split: PartitionSpec, whole: PartitionSpec) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, whole)


def _gather_fwd(x, split, whole):
    return jax.lax.with_sharding_constraint(x, whole), None


def _gather_bwd(split, whole, _, gradient):
    return (jax.lax.with_sharding_constraint(gradient, split),)


_gather.defvjp(_gather_fwd, _gather_bwd)


def all_but_gathered(primitive, *_, **params) -> bool:
    """A policy of `jax.checkpoint`: whatever makes a parameter whole is done again in the backward
    pass, and everything else is kept.

    (JAX's `save_anything_except_these_names` would keep what a named value was made of.)
    """
    makes_it = ("sharding_constraint", "custom_vjp_call", "convert_element_type")
    is_it = primitive.name == "name" and params["name"] == GATHERED
    return primitive.name not in makes_it and not is_it


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis (clips) split over the batch axes."""
    return NamedSharding(mesh, CLIPS)


@functools.lru_cache
def local_rows(mesh: Mesh, num_rows: int) -> tuple[int, ...]:
    """Which rows of a global batch this process has to bring, ascending.

    Processes may share rows: those whose devices differ in `tensor` alone hold the same clips.
    """
    shape = (num_rows,)
    held = batch_sharding(mesh).addressable_devices_indices_map(shape).values()
    return tuple(sorted({row for (index,) in held for row in range(*index.indices(num_rows))}))


def to_devices(batch: Mapping[str, Any], names: Iterable[str], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays from each process's `local_rows` of them; copying goes on in the background.

    Args:
      batch: from the loader; what is not named stays on the host.
      names: of the arrays, each [rows, ...].
      mesh: whose batch axes split the rows.
    """
    sharding = batch_sharding(mesh)
    ways = mesh.shape["data"] * mesh.shape["fsdp"]

    def array(value):
        rows_per_way = len(value) // len(local_rows(mesh, ways))
        shape = (rows_per_way * ways, *value.shape[1:])
        return jax.make_array_from_process_local_data(sharding, value, shape)

    # what is meant here; of several processes, JAX would take it for an accident
    with jax.transfer_guard_host_to_device("allow"):
        return {name: array(batch[name]) for name in names}


def describe(mesh: Mesh, state: Any) -> str:
    """A table of who lies where: each parameter if anything is split, and the bytes of a train
    state on one device.

    Args:
      state: a train state (or its shapes, with shardings).
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    totals: dict[str, list[int]] = {}
    rows = [("array", "shape", "split", "bytes on a device")]
    for path, leaf in leaves:
        name = path_name(path)
        here = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        part = totals.setdefault(name.split("/")[0], [0, 0])
        part[0] += math.prod(leaf.shape) * leaf.dtype.itemsize
        part[1] += here
        if name.startswith("params/") and mesh.size > mesh.shape["data"]:
            shape = " x ".join(map(str, leaf.shape))
            axes = ", ".join("-" if axis is None else str(axis) for axis in leaf.sharding.spec)
            rows.append((name.removeprefix("params/"), shape, axes or "copied", f"{here:,}"))
    for name, (total, here) in totals.items():
        if total > 1024:
            rows.append((f"all of {name}", f"{total / 2**20:,.1f} MiB", "", f"{here:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sizes = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in AXES)
    lines = [f"mesh: {sizes} ({mesh.size} x {mesh.devices.flat[0].device_kind})"]
    for name, shape, axes, here in rows:
        lines.append(
            f"  {name:<{widths[0]}}  {shape:<{widths[1]}}  {axes:<{widths[2]}}  {here:>{widths[3]}}"
        )
    return "\n".join(lines)
