"""A task, an evaluator and a data set that a recipe brings along: trained, killed, planned."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import clip_direction
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vmae_jax import __main__, assembly, config_file, loop, sharding
from vmae_jax.checkpoints.finished_steps import saved_steps
from vmae_jax.errors import SettingError
from vmae_jax.running.run_control import Preempted, Preemption
from vmae_jax.tasks import make_task

ROOT = pathlib.Path(__file__).parent.parent
RECIPE = str(ROOT / "tests" / "clip_direction.py")
ENVIRONMENT = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # as in this process
}
pytestmark = pytest.mark.usefixtures("hasty_compiler")


def make_config(**changes):
    config = config_file.load(RECIPE)
    config.update_from_flattened_dict(changes)
    return config


def read_metrics(workdir):
    """{(step, name): value} of all that says what was learnt."""
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {
        (record["step"], name): value
        for record in records
        for name, value in record.items()
        if name in ("loss", "grad_norm") or name.startswith("direction/")
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run without interruption, and what it returned."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, loop.train(make_config(), str(workdir))


def test_a_task_of_the_users_own_learns_and_is_evaluated_by_an_evaluator_of_its_own(finished):
    workdir, last = finished
    assert last == {
        "direction/accuracy": 1.0, "direction/clips": 12,
        "direction/both_ways": 1.0, "direction/records": 6,
    }  # fmt: skip
    metrics = read_metrics(workdir)
    assert metrics[1, "loss"] > 0.5  # log 2 is the loss of a guess
    assert metrics[40, "loss"] < 0.2
    assert sorted(step for step, name in metrics if name == "direction/clips") == [10, 20, 30, 40]
    assert (workdir / "pictures" / "loss.png").stat().st_size > 5000


def test_it_is_killed_and_goes_on_bit_by_bit(finished, tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), f"--config={RECIPE}"]
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, f"--workdir={tmp_path}"],
            stdout=file, stderr=subprocess.STDOUT, env=ENVIRONMENT,
        )  # fmt: skip
    deadline = time.monotonic() + 300
    while not saved_steps(tmp_path / "checkpoints"):
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < saved_steps(tmp_path / "checkpoints")[-1] < 40
    loop.train(make_config(), str(tmp_path))
    assert read_metrics(tmp_path) == read_metrics(finished[0])


def test_its_evaluator_runs_alone_and_leaves_nothing_behind(finished):
    workdir, last = finished
    before = sorted(workdir.rglob("*"))
    assert loop.evaluate(make_config(), str(workdir)) == last
    assert loop.evaluate(make_config(), str(workdir), ["direction"]) == last
    assert sorted(workdir.rglob("*")) == before
    with pytest.raises(SettingError, match=r"'held_out' is no evaluator .*'direction'"):
        loop.evaluate(make_config(), str(workdir), ["held_out"])


def test_another_task_in_the_same_workdir_is_refused(finished, tmp_path):
    config = make_config(ClipDirection=None)
    config.task = "pretraining"
    config.data.repeat = 2
    with pytest.raises(SettingError, match=r'task: "clip_direction.ClipDirection" -> "pretrain'):
        loop.train(config, str(finished[0]))


def test_it_is_planned(capsys):
    arguments = ["plan", f"--config={RECIPE}", "--topology=cpu:2"]
    assert __main__.main(arguments) == 0
    text = capsys.readouterr().out
    assert "step: 32 clips, 16 on each device" in text
    assert "GiB" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ClipDirection": {"froze": ()}}, r"ClipDirection.froze is no option .*\['frozen'\]"),
        (
            {"evals": {"direction": {"every_steps": 10, "evaluator": clip_direction.Accuracy,
                                     "per_clip": True}}},
            r"evals.direction.per_clip is no option .*\['per_record'\]",
        ),
        (
            {"evals": {"acuracy": {"every_steps": 10, "evaluator": "held_uot"}}},
            "evals.acuracy.evaluator='held_uot' is unknown; did you mean 'held_out'",
        ),
        (
            {"evals": {"reconstructions": {"every_steps": -1}}},
            "evals.reconstructions is for tasks that hide patches",
        ),
        ({"evals": {"direction": {"every_steps": -2}}}, "every_steps=-2 must be 0"),
    ],
)  # fmt: skip
def test_options_that_do_not_exist_or_cannot_work_are_named(changes, message, tmp_path):
    config = make_config()
    for section, value in changes.items():
        config[section] = value
    with pytest.raises(SettingError, match=message):
        loop.train(config, str(tmp_path))


# What is not trained


def test_frozen_parts_stay_as_they_are_and_are_not_saved(tmp_path, monkeypatch):
    changes = {"ClipDirection.frozen": ("embeddings",), "schedule.num_steps": 8}
    changes |= {"run.save_every_steps": 4, "evals.direction.every_steps": 4}
    config = make_config(**changes)
    task = make_task(config)
    steps = assembly.make_steps(config, task, num_records=None)
    assert set(steps.frozen["model"]) == {"embeddings"}
    assert "embeddings" not in steps.state.params
    assert steps.frozen["model"]["embeddings"]["kernel"].sharding.mesh == steps.mesh

    loop.train(config, str(tmp_path / "whole"))
    names = json.loads(
        (tmp_path / "whole" / "checkpoints" / "8" / "_CHECKPOINT_METADATA").read_text()
    )["custom_metadata"]["arrays"]
    assert not [name for name in names if "embeddings" in name]
    assert [name for name in names if "opt_state" in name]

    with monkeypatch.context() as patch:
        patch.setattr(Preemption, "requested", lambda self, step: step == 4)
        with pytest.raises(Preempted):
            loop.train(config, str(tmp_path / "broken"))
    loop.train(config, str(tmp_path / "broken"))
    assert read_metrics(tmp_path / "broken") == read_metrics(tmp_path / "whole")


class Taught(clip_direction.ClipDirection):
    """A teacher that nobody trains says which logits are right."""

    def make_frozen(self, config, compute):
        model = self.make_model(config, compute, nnx.Rngs(params=7))
        return {"teacher": nnx.to_pure_dict(nnx.state(model, nnx.Param))}

    def load_frozen(self, fresh):
        return jax.tree.map(lambda x: x * 2, fresh)  # as if read from somewhere

    def objective(self, model, batch, keys, frozen, *, evaluation=False):
        teacher = nnx.merge(nnx.graphdef(model), frozen["teacher"])
        target = jax.lax.stop_gradient(self._logits(teacher, batch, None))
        loss = jnp.square(self._logits(model, batch, None) - target).mean()
        return loss, {"loss": loss}


def test_a_teacher_is_an_argument_of_the_step():
    config = make_config()
    config.task = Taught
    task = make_task(config)
    steps = assembly.make_steps(config, task, num_records=None)
    assert set(steps.frozen) == {"teacher"}
    shapes = jax.tree.map(lambda x: x.shape, steps.frozen["teacher"])
    assert shapes == jax.tree.map(lambda x: x.shape, steps.state.params)
    with jax.set_mesh(steps.mesh):
        state, frozen = loop.fresh_state(config, task, steps)
        _, fresh = steps.init()
        kernel = "classifier", "kernel"
        np.testing.assert_array_equal(
            frozen["teacher"][kernel[0]][kernel[1]], 2 * fresh["teacher"][kernel[0]][kernel[1]]
        )
        rng = np.random.default_rng(0)
        video = rng.integers(0, 256, steps.batch["video"].shape, dtype=np.uint8)
        batch = {"video": video, "label": np.zeros(32, np.int32)}
        batch = sharding.to_devices(batch, steps.batch, steps.mesh)
        own = {"teacher": jax.tree.map(jnp.array, state.params)}
        _, metrics = steps.train(jax.tree.map(jnp.array, state), batch, own)
        assert float(metrics["loss"]) == 0  # taught by itself
        state, metrics = steps.train(state, batch, frozen)
        assert float(metrics["loss"]) > 0


# Bugs and settings


def run_recipe(tmp_path, body, *flags):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(textwrap.dedent(body))
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), f"--config={recipe}",
         f"--workdir={tmp_path / 'run'}", *flags],
        env={**ENVIRONMENT, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


BROKEN = """
    import clip_direction
    import jax.numpy as jnp

    class Broken(clip_direction.ClipDirection):
        def objective(self, model, batch, keys, frozen, *, evaluation=False):
            return jnp.zeros((3, 4)) @ jnp.zeros((5, 6)), {}

    def get_config():
        config = clip_direction.get_config()
        config.task = Broken
        return config
"""


def test_a_shape_error_in_an_objective_keeps_its_traceback_and_ends_with_70(tmp_path):
    done = run_recipe(tmp_path, BROKEN)
    assert done.returncode == 70, done.stdout + done.stderr
    assert "Traceback" in done.stderr
    assert "return jnp.zeros((3, 4)) @ jnp.zeros((5, 6))" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.ClipDirection.frozn=('embeddings',)", "frozen"),
        ("--config.data.batch_size=0", "data.batch_size=0"),
        ("--config.data.batch_size=many", "batch_size"),
        ("--config.schedule.base_lr=-1", "base_lr=-1"),
        ("--wrokdir=x", "workdir"),
        ("more", "unexpected words"),
    ],
)
def test_a_wrong_option_is_one_line_and_78(tmp_path, flag, message):
    body = "import clip_direction\n\n\ndef get_config():\n    return clip_direction.get_config()\n"
    done = run_recipe(tmp_path, body, flag)
    assert done.returncode == 78, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "exit code 78" in line]
    assert message in line
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()
