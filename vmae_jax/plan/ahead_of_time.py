"""Compiles the train step of a configuration for a machine that is not there.

    python -m vmae_jax.plan.ahead_of_time --topology v5e:2x2 --output facts.json \\
        --config configs/demo.py

This is the child process of `planning.py`: JAX's backends are chosen by environment variables that
must stand before it is imported (`environment`), and a compiler that crashes takes its process with
it. Everything is shapes; no array is made.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vmae_jax import config_file
from vmae_jax.errors import MissingPackage, SettingError
from vmae_jax.plan import chips


def environment(machine: chips.Topology) -> dict[str, str]:
    """What must be set before jax is imported.

    No flag of XLA's is among it: one that the installed compiler does not know ends the process.

    Raises:
      MissingPackage: if the TPU compiler is not installed.
    """
    settings = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",  # the caller's are for another platform; libtpu aborts at those
    }
    if machine.device.platform != "tpu":
        # A program for GPUs needs a GPU to be compiled; the CPU's has the same collectives. It will
        # not run, so its machine code may be bad: memory and collectives are the same.
        return {
            **settings,
            "JAX_NUM_CPU_DEVICES": str(machine.num_devices),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }
    if importlib.util.find_spec("libtpu") is None:
        raise MissingPackage(
            "the TPU compiler is missing: pip install 'vmae_jax[plan]' (libtpu, no TPU needed)."
        )
    return {
        **settings,
        "TPU_ACCELERATOR_TYPE": machine.accelerator_type,
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # its lock is for chips, of which none is used
    }


def devices(machine: chips.Topology) -> Sequence[Any]:
    """Descriptions of TPUs, or pretended CPUs."""
    import jax
    from jax.experimental import topologies

    if machine.device.platform != "tpu":
        return jax.devices()
    options = {}
    if machine.num_slices > 1:
        options["num_slices"] = machine.num_slices
    if machine.chip == "v4":
        options["chip_config_name"] = "megacore"  # both cores of a chip as one device
    return topologies.get_topology_desc(
        platform="tpu", topology_name=machine.name, **options
    ).devices


def facts(config: Any, machine: chips.Topology) -> tuple[dict[str, Any], str]:
    """What the compiled step is, as JSON values; and its text, as the compiler writes it.

    Raises:
      SettingError: if the configuration cannot work on the machine.
      jax.errors.JaxRuntimeError: of the compiler, e.g. if the program needs too much memory.
    """
    import jax

    from vmae_jax import assembly, sharding
    from vmae_jax.tasks import make_task
    from vmae_jax.vit import Compute, resolve_attention

    pretended: dict[str, Any] = {}
    if machine.device.platform == "gpu":  # whose kernels compile on GPUs only
        model = assembly.make_model_config(config)
        compute, _ = resolve_attention(Compute(**config.compute), model, "gpu")
        pretended["attention"] = compute.attention
        config.compute.attention = "xla"
    started = time.perf_counter()
    task = make_task(config)
    steps = assembly.make_steps(
        config, task, num_records=None, devices=devices(machine), slices=machine.num_slices
    )
    with jax.set_mesh(steps.mesh):
        lowered = steps.train.lower(*steps.arguments)
    traced = time.perf_counter()
    compiled, text = _compile(lowered, machine.device.platform)
    seconds = {"trace": traced - started, "compile": time.perf_counter() - traced}

    mesh = {axis: int(steps.mesh.shape[axis]) for axis in sharding.AXES}
    result = {
        **description(config, steps, mesh),
        **pretended,
        "work": task.work(steps.model_config).to_dict(),
        "device_kind": steps.mesh.devices.flat[0].device_kind,
        "pallas_calls": len(re.findall(r'custom_call_target="tpu_custom_call"', text)),
        "memory": memory(compiled.memory_analysis()),
        "state_bytes": {name: _bytes_here(getattr(steps.state, name)) for name in _STATE},
        "frozen_bytes": _bytes_here(steps.frozen),
        "batch_bytes": _bytes_here(steps.batch),
        "parameters": _numbers(steps.state.params),
        "frozen_parameters": _numbers(steps.frozen),
        **network(text, machine),
        "seconds": seconds,
    }
    return result, text


_STATE = ("params", "opt_state", "ema")


def _compile(lowered: Any, platform: str) -> tuple[Any, str]:
    """The compiled step and its text, which the TPU compiler writes itself: jaxlib cannot read all
    programs of a compiler that is newer (those that use a chip's SparseCores)."""
    if platform != "tpu":
        compiled = lowered.compile()
        return compiled, compiled.as_text()
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = lowered.compile(compiler_options=options)
        (file,) = Path(folder).glob("*.after_codegen.txt")  # of the one program compiled here
        return compiled, file.read_text("utf-8")


def network(text: str, machine: chips.Topology) -> dict[str, Any]:
    """What the collectives of a program carry, or None and why that cannot be told."""
    from vmae_jax.plan import collectives

    try:
        found = collectives.find(text)
    except ValueError as error:  # a compiler that writes its programs in another way
        return {"collectives": None, "unread": str(error)}
    return {
        "collectives": collectives.sizes(found, machine.num_devices, machine.num_slices),
        "unread": "",
    }


def description(config: Any, steps: Any, mesh: Mapping[str, int]) -> dict[str, Any]:
    """How it is computed: values that follow from the configuration alone."""
    batch_size = config.data.batch_size
    return {
        "size": config.model.size,
        "mesh": dict(mesh),
        "batch_size": batch_size,
        "clips_per_device": batch_size // (mesh["data"] * mesh["fsdp"]),
        "accumulation": config.optimizer.accumulation,
        "dtype": str(steps.compute.dtype),
        "precision": steps.compute.precision,
        "remat": steps.compute.remat,
        "attention": steps.compute.attention,
        "num_steps": steps.schedule.num_steps,
        "peak_lr": steps.schedule.peak_lr,
    }


def memory(analysis: Any) -> dict[str, int]:
    """Bytes on a device, by kind. The peak is that of everything, over the run of the program."""
    kinds = ("argument", "output", "alias", "temp", "generated_code")
    sizes = {kind: int(getattr(analysis, f"{kind}_size_in_bytes")) for kind in kinds}
    # results that take the place of arguments need no room of their own
    sizes["peak"] = sizes["argument"] + sizes["output"] - sizes["alias"] + sizes["temp"]
    return sizes


def _bytes_here(tree: Any) -> int:
    """Of arrays, on one device."""
    import jax

    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _numbers(tree: Any) -> int:
    """Of arrays, in all."""
    import jax

    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def main(arguments: Sequence[str]) -> int:
    """Writes {"ok": facts}, {"refused": why} for settings that cannot work, {"failed": why} of the
    compiler, or {"error": a traceback} of whatever else went wrong."""
    import jax

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", required=True)
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--config", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--program")
    args, overrides = parser.parse_known_args(arguments)
    machine = chips.topology(args.topology, args.slices)
    try:
        config = config_file.load(args.config, overrides)
        found, text = facts(config, machine)
        if args.program:
            Path(args.program).write_text(text, "utf-8")
        result = {"ok": found}
    except (SettingError, MissingPackage) as error:
        result = {"refused": str(error)}
    except jax.errors.JaxRuntimeError as error:
        result = {"failed": f"{type(error).__name__}: {error}"}
    except Exception:  # a bug, perhaps of the recipe's own task
        result = {"error": traceback.format_exc()}
    Path(args.output).write_text(json.dumps(result), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
