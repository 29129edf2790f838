"""Runs of several processes: start, exchange, end, and the death of one of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import textwrap

import pytest
from process_group import ProcessGroup

from vmae_jax.processes import distributed
from vmae_jax.processes.roll_call import Place

# A trainer in small: all processes add up one number a step, over the devices.
TRAINER = """
import logging, os, sys, time
logging.basicConfig(level=logging.INFO)
from vmae_jax.processes import distributed
from vmae_jax.processes.exit_codes import exit_code
from vmae_jax.running.health import NonFinite
from vmae_jax.running.run_control import Preemption

def main():
    setting, fault, num_steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
    distributed.start(setting)
    import jax, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    distributed.check_devices()
    mesh = jax.make_mesh((jax.process_count(),), ("d",))
    split = NamedSharding(mesh, PartitionSpec("d"))
    total = jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(mesh, PartitionSpec()))
    with Preemption(jax.process_count()) as preemption, distributed.end_all_on_error():
        for step in range(1, num_steps + 1):
            own = np.full(1, step + jax.process_index(), np.float32)
            value = float(total(jax.make_array_from_process_local_data(split, own)))
            print("step", step, "sum", value, flush=True)
            if fault == "error on 1" and step == 3 and jax.process_index() == 1:
                raise RuntimeError("a bug")
            if fault == "not finite" and step == 3:
                raise NonFinite("loss=nan")
            if fault == "disk full on 1" and step == 3 and jax.process_index() == 1:
                raise OSError(28, "No space left on device")
            if preemption.requested(step):
                raise preemption.error(step)
            time.sleep(0.1)

try:
    main()
except Exception as error:
    print(type(error).__name__, error, flush=True)
    distributed.end(exit_code(error))
distributed.end(0)
"""
SETTING = "{address},{count},{index}"


def group(tmp_path, script, *arguments, count=2, **options):
    command = [sys.executable, "-c", textwrap.dedent(script), SETTING, *arguments]
    return ProcessGroup(command, count, tmp_path, **options)


def trainers(tmp_path, *, fault="none", num_steps=10000, count=2, env=None, **options):
    env = {"VMAE_HEARTBEAT": "10", "VMAE_START_TIMEOUT": "60", **(env or {})}
    return group(tmp_path, TRAINER, fault, str(num_steps), count=count, env=env, **options)


def results(processes, index):
    lines = processes.output(index).splitlines()
    return [json.loads(line[7:]) for line in lines if line.startswith("RESULT ")]


# Start and exchange


def test_processes_find_each_other_and_exchange_texts(tmp_path):
    script = """
        import json, sys, time
        from vmae_jax.processes import distributed
        distributed.start(sys.argv[1])
        from jax._src.distributed import global_state
        me = global_state.process_id
        def show(x): print("RESULT", json.dumps(x), flush=True)
        time.sleep(me)  # one is late
        show(distributed.all_gather_text("names", f"I am {me}"))
        for round in range(3):
            last = distributed.all_gather_text("rounds", f"{me} {round}")
        show(last)
        show(distributed.all_gather_text("names", ""))
        distributed.check_same("config", "seed: 1")
        show(distributed.is_main())
        distributed.all_gather_text("rounds", "")
        distributed.all_gather_text("done", "")
        # what is left of 4 rounds
        show([key for key, _ in global_state.client.key_value_dir_get("vmae_jax/rounds")])
        try:
            distributed.check_same("config", f"seed: 1\\nbatch_size: {64 + me}")
        except ValueError as error:
            show(str(error))
        distributed.all_gather_text("last", "")
        distributed.EXCHANGE_TIMEOUT = 1
        try:
            if me == 0:
                distributed.all_gather_text("lonely", "")
        except TimeoutError as error:
            show(str(error))
        distributed.end(0)
    """
    with group(tmp_path, script) as processes:
        assert processes.wait() == [0, 0], processes.output(0) + processes.output(1)
        for index in (0, 1):
            names, last, names_again, main, keys, different, *lonely = results(processes, index)
            assert names == ["I am 0", "I am 1"]
            assert last == ["0 2", "1 2"]
            assert names_again == ["", ""]
            assert main == (index == 0)
            assert sorted(keys) == ["vmae_jax/rounds/3/0", "vmae_jax/rounds/3/1"]
            host = socket.gethostname()
            for part in (
                f"'batch_size: 64' in process 0 (host {host})",
                f"'batch_size: 65' in process 1 (host {host})",
            ):
                assert part in different
            assert "seed" not in different
            if index == 0:
                assert f"process 1 (host {host}) said nothing of 'lonely' within 1 s" in lonely[0]


def test_a_single_process_needs_nobody():
    distributed.start("off")
    assert distributed.is_main()
    assert distributed.all_gather_text("names", "I") == ["I"]
    distributed.check_same("config", "anything")
    distributed.check_devices()
    with pytest.raises(KeyError), distributed.end_all_on_error():
        raise KeyError("left as it is")
    with pytest.raises(SystemExit) as ended:
        distributed.end(70)
    assert ended.value.code == 70


@pytest.mark.parametrize(
    "setting",
    ["", "on", "host", "host:1", "host:1,2", "host:1,2,2", "host:1,2,-1", "host,2,0", ":1,2,0"],
)
def test_other_settings_are_refused(setting):
    with pytest.raises(ValueError, match=r"is none of: off, auto, host:port,num_processes,"):
        distributed.start(setting)


def test_auto_without_a_cluster_says_what_it_looked_for(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "TPU_", "JAX_COORD")):
            monkeypatch.delenv(name)
    with pytest.raises(ValueError, match=r"finds no cluster; looked for SLURM.*TPU.*Kubernetes.*"):
        distributed.start("auto")


def test_auto_reads_the_variables_of_slurm(monkeypatch):
    values = {
        "JOB_ID": "4097", "STEP_NODELIST": "node[003-004]", "NTASKS": "2", "PROCID": "1",
        "LOCALID": "0",
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    place, devices = distributed._detect(10)
    assert place == Place("node003:61441", 2, 1)
    assert devices == [0]
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "0,1,2,3")
    assert distributed._detect(10)[1] == [0, 1, 2, 3]


# Real processes: start and end


def test_processes_that_did_not_come_are_named_and_the_others_end(tmp_path):
    with trainers(tmp_path, count=3, absent=[1], env={"VMAE_START_TIMEOUT": "4"}) as processes:
        assert processes.wait() == [70, 70]
        for index in (0, 2):
            assert "num_processes=3, process 1 did not come to" in processes.output(index)


@pytest.mark.parametrize(
    ("fault", "codes"),
    [("error on 1", [{70, -signal.SIGABRT}, {70}]), ("not finite", [{76}, {76}])],
)
def test_an_exception_ends_all(fault, codes, tmp_path):
    with trainers(tmp_path, fault=fault) as processes:
        processes.wait_for_text("step 3")
        ended = processes.wait()
        assert all(code in known for code, known in zip(ended, codes, strict=True)), ended


def test_a_full_disk_of_one_is_told_from_a_crash(tmp_path):
    with trainers(tmp_path, fault="disk full on 1") as processes:
        processes.wait_for_text("step 3")
        assert processes.wait(1) == [78]
        assert processes.wait(0)[0] in (70, -signal.SIGABRT)


def test_a_preemption_of_one_ends_all_at_the_same_step(tmp_path):
    with trainers(tmp_path) as processes:
        processes.wait_for_text("step 3")
        processes.send(signal.SIGTERM, 1)
        assert processes.wait() == [75, 75], processes.output(0) + processes.output(1)
        last = {processes.output(i).split("Preempted ")[1].splitlines()[0] for i in (0, 1)}
        assert len(last) == 1


# Real processes: the death of one


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_takes_the_others_with_it(killed, tmp_path):
    with trainers(tmp_path) as processes:
        processes.wait_for_text("step 3")
        processes.send(signal.SIGKILL, killed)
        (code,) = processes.wait(1 - killed)
        assert code in (70, -signal.SIGABRT)
        assert processes.seconds_to_end(1 - killed) < 15


def test_a_frozen_process_ends_the_others_after_the_heartbeat(tmp_path):
    with trainers(tmp_path) as processes:
        processes.wait_for_text("step 3")
        processes.send(signal.SIGSTOP, 1)
        (code,) = processes.wait(0)
        assert code in (70, -signal.SIGABRT)
        assert processes.seconds_to_end(0) < 20
        assert not processes.ended(1)


# Supervised

SUPERVISED = """
import logging, os, sys
from vmae_jax.running.supervisor import supervise
logging.basicConfig(level=logging.INFO)
command = [sys.executable, "-c", os.environ["CHILD"], *sys.argv[1:]]
supervisor = sys.modules["vmae_jax.running.supervisor"]
supervisor.MAX_STOPPED = 4
sys.exit(supervise(command, restarts=3, progress=lambda: 0))
"""


def supervised(tmp_path, num_steps):
    arguments = [SETTING, "none", str(num_steps)]
    command = [sys.executable, "-c", SUPERVISED, *arguments]
    env = {"CHILD": TRAINER, "VMAE_HEARTBEAT": "10", "VMAE_START_TIMEOUT": "60"}
    return ProcessGroup(command, 2, tmp_path, env=env)


def test_supervised_processes_find_each_other_again(tmp_path):
    with supervised(tmp_path, num_steps=20) as processes:  # a killed one: test_chaos.py
        processes.wait_for_text("step 3 ")
        processes.send_to_child(signal.SIGSTOP, 1)
        assert processes.wait(deadline=90) == [0, 0]
        for index in (0, 1):
            assert processes.output(index).count("step 20 sum 41.0") == 1
            assert "restart 1 of 3" in processes.output(index)


def test_a_supervised_run_is_preempted_by_one_signal_to_all(tmp_path):
    with supervised(tmp_path, num_steps=10000) as processes:
        processes.wait_for_text("step 3 ")
        processes.send(signal.SIGTERM, whole_session=True)
        assert processes.wait() == [75, 75]
