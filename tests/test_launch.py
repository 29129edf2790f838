"""The launch recipes: syntax, flags, and what they make of exit codes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vmae_jax.processes import exit_codes

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
FLAGS = {"config", "workdir", "distributed", "supervise"}
NOT_RETRIED = {
    code
    for code in exit_codes.MEANINGS
    if code != exit_codes.DONE and not exit_codes.is_retried(code)
}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("path", [*SCRIPTS, LAUNCH / "jobset.yaml"], ids=lambda path: path.name)
def test_the_trainer_gets_flags_that_it_has(path):
    text = path.read_text().partition("train.py")[2] + path.read_text()
    given = set(
        re.findall(r"--(config|workdir|distributed|supervise|evaluate|force|profile)=", text)
    )
    assert given == FLAGS
    modes = set(re.findall(r"--distributed=(\w+)", text))
    assert modes == ({"off"} if path.name == "gpu_box.sh" else {"auto"})


def test_configurations_in_the_recipes_exist():
    for path in (*SCRIPTS, LAUNCH / "jobset.yaml", LAUNCH / "README.md"):
        for name in re.findall(r"configs/\w+\.py", path.read_text()):
            assert (ROOT / name).is_file(), f"{path.name}: {name}"


# JobSet and XPK


def test_a_jobset_fails_for_codes_that_no_restart_mends():
    yaml = pytest.importorskip("yaml")
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    policy = jobset["spec"]["failurePolicy"]
    assert policy["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    (job,) = jobset["spec"]["replicatedJobs"]
    job = job["template"]["spec"]
    pod = job["template"]["spec"]
    assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    assert job["completions"] == job["parallelism"]
    (rule,) = job["podFailurePolicy"]["rules"]
    (container,) = pod["containers"]
    assert (rule["action"], rule["onExitCodes"]["operator"]) == ("FailJob", "In")
    assert rule["onExitCodes"]["containerName"] == container["name"]
    codes = set(rule["onExitCodes"]["values"])
    assert codes >= NOT_RETRIED
    assert not any(exit_codes.is_retried(code) for code in codes)


def test_xpk_restarts_after_codes_that_are_retried():
    codes = re.search(r"--restart-on-exit-codes=([\d,]+)", (LAUNCH / "xpk.sh").read_text())[1]
    codes = {int(code) for code in codes.split(",")}
    assert all(exit_codes.is_retried(code) for code in codes)
    killed = {128 + n for n in (signal.SIGABRT, signal.SIGKILL, signal.SIGTERM, signal.SIGALRM)}
    assert codes >= {exit_codes.CRASH, exit_codes.PREEMPTED, *killed}


# SLURM, with a stand-in for each of its programs


@pytest.fixture
def slurm(tmp_path):
    """(codes of the tasks, **environment) -> the job's code, its output, what scontrol was told."""
    programs = {
        # tasks side by side; the highest code, as the real one
        "srun": """
            [ "$1" = --kill-on-bad-exit=1 ] || exit 99
            shift
            highest=0
            for index in $(seq 0 $((SLURM_NTASKS - 1))); do
              SLURM_PROCID=$index "$@" & pids="${pids:-} $!"
            done
            for pid in $pids; do wait $pid; code=$?; [ $code -gt $highest ] && highest=$code; done
            exit $highest
        """,
        "scontrol": 'echo "$@" >> "$TOLD"',
        "python": """
            echo "python $@ devices ${JAX_LOCAL_DEVICE_IDS:-unset}"
            codes=($CODES); code=${codes[$SLURM_PROCID]}
            [ "$code" = wait ] || exit "$code"
            trap 'sleep 0.5; exit 75' TERM
            while :; do sleep 0.1; done
        """,
    }
    for name, text in programs.items():
        (tmp_path / name).write_text("#!/bin/bash\n" + text)
        (tmp_path / name).chmod(0o755)

    def run(codes, *, interrupt=False, **environment):
        told = tmp_path / "told"
        told.unlink(missing_ok=True)
        process = subprocess.Popen(
            ["bash", LAUNCH / "slurm.sh", "configs/demo.py", "runs/demo", "--config.seed=1"],
            env={
                **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TOLD": str(told),
                "CODES": " ".join(map(str, codes)), "SLURM_NTASKS": str(len(codes)),
                "SLURM_JOB_ID": "7", **environment,
            },
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
            start_new_session=True,
        )  # fmt: skip
        if interrupt:
            time.sleep(1)
            os.killpg(process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output, told.read_text() if told.exists() else ""

    return run


@pytest.mark.parametrize(
    ("codes", "code", "requeued"),
    [
        ([0, 0], 0, False),
        ([75, 75], 0, True),
        ([70], 0, True),
        ([137, 70], 0, True),
        ([76, 76], 76, False),
        ([77, 134], 77, False),  # the other one was aborted
        ([134, 78], 78, False),
        ([143, 75], 0, True),
        ([1], 1, False),
    ],
    ids=str,
)
def test_a_slurm_job_is_requeued_where_that_may_help(codes, code, requeued, slurm):
    ended, output, told = slurm(codes, SLURM_GPUS_ON_NODE="4")
    assert (ended, told) == (code, "requeue 7\n" if requeued else ""), output
    arguments = "--config=configs/demo.py --workdir=runs/demo --distributed=auto --supervise=5"
    assert f"python -u train.py {arguments} --config.seed=1 devices 0,1,2,3" in output


def test_a_slurm_job_that_crashes_again_and_again_ends(slurm):
    # after 400 preemptions; SLURM counts those as well
    codes = [70, 70, 75, 70, 70, 70, 70, 70]
    for code in codes:
        assert slurm([code], SLURM_RESTART_COUNT="400")[2] == "requeue 7\n"
    ended, _, told = slurm([70], SLURM_RESTART_COUNT="400")
    assert (ended, told) == (70, "")


def test_slurms_signal_leaves_time_to_save(slurm):
    ended, output, told = slurm(["wait", "wait"], interrupt=True)
    assert (ended, told) == (0, "requeue 7\n"), output
    assert output.count("ended with 75") == 2


def test_the_slurm_script_knows_the_same_codes_as_the_supervisor():
    text = (LAUNCH / "slurm.sh").read_text()
    pattern = re.search(r"^ +(70 \|.*)\) crashed=", text, re.MULTILINE)[1]
    script = f"for c in $(seq 0 255); do case $c in 0|75|{pattern}) echo $c;; esac; done"
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    retried = {code for code in range(256) if exit_codes.is_retried(code)}
    assert {int(code) for code in found.stdout.split()} >= retried | {0}
    assert not {int(code) for code in found.stdout.split()} & {*NOT_RETRIED, 1, 2, 126, 127}


# One machine


def test_one_machine_ends_with_the_trainers_code(tmp_path):
    repository = tmp_path / "repository"
    (repository / "launch").mkdir(parents=True)
    script = repository / "launch" / "gpu_box.sh"
    script.write_text((LAUNCH / "gpu_box.sh").read_text())
    for code, said in ((0, "done"), (76, "change the settings"), (70, "crashed too often")):
        (repository / "train.py").write_text(f"import sys; print(sys.argv); sys.exit({code})")
        found = subprocess.run(
            ["bash", script, "configs/demo.py", tmp_path / "run", "--config.seed=1"],
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert found.returncode == code
        assert said in found.stdout
        assert "--supervise=5" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize("ctrl_c", [False, True])
def test_one_machine_passes_a_signal_on_and_waits_for_the_save(ctrl_c, tmp_path):
    repository = tmp_path / "repository"
    (repository / "launch").mkdir(parents=True)
    script = repository / "launch" / "gpu_box.sh"
    script.write_text((LAUNCH / "gpu_box.sh").read_text())
    (repository / "train.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), print('saved'), sys.exit(75)))\n"
        "print('ready')\ntime.sleep(60)\n"
    )
    process = subprocess.Popen(
        ["bash", script, "configs/demo.py", tmp_path / "run"],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    if ctrl_c:  # which reaches all that the terminal knows of
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75
    assert "saved" in output
    assert "start the same command again" in output


# A TPU VM


def test_a_tpu_is_started_asked_and_stopped(tmp_path):
    home = tmp_path / "home"
    for folder in ("vmae_jax", "venv/bin"):
        (home / folder).mkdir(parents=True)
    (home / "venv/bin/python").symlink_to(sys.executable)
    (home / "vmae_jax/train.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), sys.exit(75)))\n"
        "print(sys.argv[1:])\ntime.sleep(60)\n"
    )
    (tmp_path / "gcloud").write_text(
        f'#!/bin/bash\ncd {home}\nlast="${{@: -1}}"\nexec bash -c "${{last#--command=}}"\n'
    )
    (tmp_path / "gcloud").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "TPU": "t",
        "ZONE": "z",
    }

    def call(*arguments):
        command = ["bash", LAUNCH / "tpu_vm.sh", *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=120
        ).stdout

    (home / "log.txt").touch()
    assert "not started" in call("status")
    call("start", "configs/demo.py", "gs://bucket/run", "--config.data.path=a b'c")
    try:
        wait_for(lambda: "--config" in (home / "log.txt").read_text())
        assert (home / "log.txt").read_text().strip() == str(
            [
                "--config=configs/demo.py", "--workdir=gs://bucket/run", "--distributed=auto",
                "--supervise=5", "--config.data.path=a b'c",
            ]
        )  # fmt: skip
        assert ": running" in call("status")
        call("stop")
        wait_for((home / "ended").exists)
        wait_for(lambda: "ended with 75" in call("status"))
    finally:
        pid = int((home / "pid").read_text())
        if not (home / "ended").exists():
            os.kill(pid, signal.SIGKILL)


def wait_for(reached, seconds=60):
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)
