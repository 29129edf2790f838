"""Checkpoints of several processes: they agree on every step, and no fault of one is a hang."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from process_group import ENVIRONMENT, free_port
from sharded_state import make_state, on_mesh, same, template

from vmae_jax.checkpoints import finished_steps, restoring, saving
from vmae_jax.checkpoints.fingerprints import fingerprint

DEADLINE = 120  # seconds for all processes of one start

PREAMBLE = """
import json, pathlib, resource, sys, time
import jax
index, count, port = map(int, sys.argv[1:4])
here = pathlib.Path(sys.argv[4])
jax.distributed.initialize(
    f"127.0.0.1:{port}", count, index, initialization_timeout=60, shutdown_timeout_seconds=15,
    heartbeat_timeout_seconds=30, cluster_detection_method="deactivate",
)
import logging
logging.basicConfig(format="LOG %(message)s", stream=sys.stdout, level=logging.INFO)
for name in ("absl", "jax"):
    logging.getLogger(name).setLevel(logging.WARNING)
import numpy as np
from sharded_state import make_state, on_mesh, template, same
from vmae_jax.checkpoints import finished_steps, loading, orbax_files, restoring, saving
from orbax.checkpoint._src.path import async_path
mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("data",))
def tell(**facts):
    print("FACTS " + json.dumps(facts), flush=True)
"""


def run_processes(script: str, *arguments: object, count: int = 2, devices: int = 2) -> list[str]:
    """The output of each; all have to end well, and in time."""
    port = free_port()
    flags = f"--xla_force_host_platform_device_count={devices}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PREAMBLE + script, str(i), str(count), str(port),
             *map(str, arguments)],
            env=ENVIRONMENT | {"XLA_FLAGS": flags}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for i in range(count)
    ]  # fmt: skip
    outputs = []
    deadline = time.monotonic() + DEADLINE
    try:
        for process in processes:
            outputs.append(process.communicate(timeout=max(1, deadline - time.monotonic()))[0])
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * count, "\n".join(outputs)[-9000:]
    return outputs


def facts(output: str) -> list[dict]:
    return [
        json.loads(line.removeprefix("FACTS "))
        for line in output.splitlines()
        if line.startswith("FACTS ")
    ]


SAVE = """
checkpoints = saving.Checkpoints(here / "two", keep=3)
for step in (10, 20, 30):
    checkpoints.save(on_mesh(make_state(step), mesh), step, {"config": {}})
checkpoints.wait()
restored = restoring.restore_newest(here / "one", template(mesh))  # of a single process
tell(step=restored.step, same=same(restored.state, make_state(7)))

# a part that it lacks starts as a copy of another, which lies otherwise, on the devices of both
whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
kernel = template(mesh)["kernel"]
like = {**template(mesh), "ema": jax.ShapeDtypeStruct(kernel.shape, kernel.dtype, sharding=whole)}
count = jax.ShapeDtypeStruct((), np.int32, sharding=whole)
restored = loading.restore(
    here / "one" / "7", {**like, "count": count}, optional={"ema": "kernel", "count": 3}
)
ema, count = restored.state.pop("ema"), restored.state.pop("count")
tell(
    same=same(restored.state, make_state(7)),
    ema=same({"kernel": ema}, make_state(7)) and ema.sharding == whole,
    count=int(count.addressable_data(0)),
    started=restored.started,
)
"""

EIGHT_DEVICES = """
checkpoints = saving.Checkpoints(here / "eight", keep=1)
checkpoints.save(on_mesh(make_state(8), mesh), 8, {})
checkpoints.wait()
restored = restoring.restore_newest(here / "one", template(mesh))
shards = restored.state["kernel"].addressable_shards
tell(step=restored.step, same=same(restored.state, make_state(7)), shards=len(shards),
     rows=[s.data.shape[0] for s in shards])
"""

FALL_BACK = """
def read_tree(path, like, original=orbax_files.read_tree):
    if index == 1 and path.name == "20":
        raise ValueError("only this process cannot read it")
    return original(path, like)
orbax_files.read_tree = read_tree
began = time.monotonic()
restored = restoring.restore_newest(here / "two", template(mesh))
tell(step=restored.step, same=same(restored.state, make_state(10)),
     seconds=time.monotonic() - began, steps=finished_steps.saved_steps(here / "two"))

# one of them cannot write any more: the files of a state are larger than this
checkpoints = saving.Checkpoints(here / "two", keep=3)

# the first alone makes the folder, and cannot
def fail(*args, **kwargs):
    raise OSError(5, "a fault of the first process")
if index == 0:
    async_path.mkdir, mkdir = fail, async_path.mkdir
checkpoints.save(on_mesh(make_state(35), mesh), 35, {})
if index == 0:
    async_path.mkdir = mkdir

soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
if index == 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
checkpoints.save(on_mesh(make_state(40), mesh), 40, {})
time.sleep(3)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
began = time.monotonic()
checkpoints.save(on_mesh(make_state(50), mesh), 50, {})
checkpoints.wait()
tell(steps=finished_steps.saved_steps(here / "two"), seconds=time.monotonic() - began,
     left=sorted(p.name for p in (here / "two").iterdir() if not p.name.isdigit()))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    """`one`: step 7 of this process; `two`: steps 10, 20, 30 of two processes."""
    here = tmp_path_factory.mktemp("processes")
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("data",))
    checkpoints = saving.Checkpoints(here / "one", keep=1)
    checkpoints.save(on_mesh(make_state(7), mesh), 7, {})
    checkpoints.wait()
    for output in run_processes(SAVE, here):
        assert facts(output) == [
            {"step": 7, "same": True},
            {
                "same": True,
                "ema": True,
                "count": 3,
                "started": ["ema as a copy of kernel", "count as 3"],
            },
        ]
    return here


def test_what_two_processes_save_one_restores(saved):
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("data",))
    assert finished_steps.saved_steps(saved / "two") == [10, 20, 30]
    restored = restoring.restore_newest(saved / "two", template(mesh))
    assert restored.step == 30
    assert same(restored.state, make_state(30))


def test_they_fall_back_to_the_same_step_and_a_failed_save_of_one_is_no_hang(saved, tmp_path):
    shutil.copytree(saved / "two", tmp_path / "two")
    # the part of the second process alone
    (part,) = (tmp_path / "two" / "30").rglob("ocdbt.process_1")
    victim = max(part.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    victim.write_bytes(victim.read_bytes()[:50])
    outputs = run_processes(FALL_BACK, tmp_path)
    for output in outputs:
        restored, after = facts(output)
        assert restored.pop("seconds") < 20
        assert restored == {"step": 10, "same": True, "steps": [10]}
        assert after.pop("seconds") < 30
        assert after == {"steps": [10, 50], "left": ["20.corrupt-0", "30.corrupt-0"]}
    lines = [line for line in outputs[0].splitlines() if line.startswith("LOG ")]
    assert sum("30 is damaged" in line for line in lines) == 1
    assert sum("only this process cannot read it" in line for line in lines) == 1
    (line,) = [line for line in lines if "checkpoint 35 was not saved" in line]
    assert "a fault of the first process" in line
    (line,) = [line for line in lines if "checkpoint 40 was not saved" in line]
    assert "File too large" in line


def test_eight_devices_and_one(saved):
    (output,) = run_processes(EIGHT_DEVICES, saved, count=1, devices=8)
    assert facts(output) == [{"step": 7, "same": True, "shards": 8, "rows": [1] * 8}]
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("data",))
    restored = restoring.restore_newest(saved / "eight", template(mesh))
    assert restored.step == 8
    assert same(restored.state, make_state(8))
    assert restored.info["fingerprint"] == fingerprint(on_mesh(make_state(8), mesh))
