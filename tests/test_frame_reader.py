import numpy as np
import pytest
from PIL import Image

from vmae_jax.data.video.frame_reader import FrameFolderReader, FrameNames
from vmae_jax.data.video.reader import Limits, VideoError

RATE = FrameNames(12.5)


def write(folder, names, size=(24, 16)):
    """Pictures whose red is 20 for the first name, 40 for the second, ..."""
    for i, name in enumerate(names, 1):
        Image.new("RGB", size, (20 * i, 0, 0)).save(folder / name)


def reds(frames):
    return frames[:, 0, 0, 0].tolist()


def test_a_folder_is_read_like_a_video(tmp_path):
    write(tmp_path, [f"img_{number:05}.png" for number in range(1, 7)])
    with FrameFolderReader(str(tmp_path), RATE) as reader:
        assert (reader.num_frames, reader.height, reader.width, reader.fps) == (6, 16, 24, 12.5)
        np.testing.assert_allclose(reader.times, [0, 0.08, 0.16, 0.24, 0.32, 0.4])
        assert reader.times.dtype == np.float64
        frames = reader.read([5, 0, 0, 3])
    assert frames.shape == (4, 16, 24, 3)
    assert frames.dtype == np.uint8
    assert reds(frames) == [120, 20, 20, 80]
    assert reader.read([]).shape == (0, 16, 24, 3)


def test_pixels_are_those_of_the_pictures(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), np.uint8)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    np.testing.assert_array_equal(FrameFolderReader(str(tmp_path), RATE).read(range(3)), pixels)


@pytest.mark.parametrize(
    ("mode", "name"),
    [("L", "1.png"), ("P", "1.png"), ("RGBA", "1.png"), ("L", "1.jpg"), ("CMYK", "1.jpeg")],
)
def test_pictures_of_other_modes_become_rgb(tmp_path, mode, name):
    Image.new("RGB", (24, 16), (204, 204, 204)).convert(mode).save(tmp_path / name)
    frames = FrameFolderReader(str(tmp_path), RATE).read([0])
    assert frames.shape == (1, 16, 24, 3)
    assert np.abs(frames.astype(int) - 204).max() <= 2


def test_without_a_template_pictures_are_sorted_by_their_numbers(tmp_path):
    write(tmp_path, ["f9.png", "f10.png", "f11.PNG", "f100.png"])
    (tmp_path / "f1.txt").touch()
    (tmp_path / ".f0.png").touch()
    (tmp_path / "no_number.png.tmp").touch()
    assert reds(FrameFolderReader(str(tmp_path), RATE).read(range(4))) == [20, 40, 60, 80]


def test_names_with_and_without_numbers_can_be_sorted(tmp_path):
    write(tmp_path, ["1.png", "01.png", "a.png", "a1b2.png", "b.jpg"])
    assert FrameFolderReader(str(tmp_path), RATE).num_frames == 5


def test_a_template_takes_the_frames_up_to_the_first_gap(tmp_path):
    write(tmp_path, ["img_3.png", "img_4.png", "img_5.png", "img_7.png", "img_03.png"])
    reader = FrameFolderReader(str(tmp_path), FrameNames(25, "img_{}.png", first_number=3))
    assert reds(reader.read(range(reader.num_frames))) == [20, 40, 60]


def test_a_known_number_of_frames_is_not_looked_up(tmp_path):
    frames = FrameNames(25, "img_{}.png", first_number=9601, num_frames=300)
    reader = FrameFolderReader(str(tmp_path / "missing"), frames)
    assert reader.num_frames == 300
    with pytest.raises(VideoError, match=r"missing.*frame 299 \(img_9900\.png\) cannot be read"):
        reader.read([299])


def test_frames_of_another_size_are_refused(tmp_path):
    write(tmp_path, ["1.png", "2.png"])
    Image.new("RGB", (16, 24)).save(tmp_path / "3.png")
    reader = FrameFolderReader(str(tmp_path), RATE)
    assert len(reader.read([0, 1])) == 2
    with pytest.raises(VideoError, match=r"frame 2 \(3\.png\) has 16x24 pixels .* 24x16"):
        reader.read([2])


@pytest.mark.parametrize("index", [-1, 2])
def test_frames_outside_are_refused(tmp_path, index):
    write(tmp_path, ["1.png", "2.png"])
    with pytest.raises(ValueError, match=f"frame {index} of .*num_frames=2"):
        FrameFolderReader(str(tmp_path), RATE).read([index])


@pytest.mark.parametrize("change", ["cut", "text", "empty", "gif", "flip"])
def test_damaged_pictures_are_named(tmp_path, change):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "1.png")
    data = (tmp_path / "1.png").read_bytes()
    if change == "gif":
        Image.fromarray(pixels).save(tmp_path / "g.gif")
    (tmp_path / "1.png").write_bytes(
        {
            "cut": data[: len(data) // 2],
            "text": b"no picture",
            "empty": b"",
            "gif": (tmp_path / "g.gif").read_bytes() if change == "gif" else b"",
            "flip": data[:60] + bytes(b ^ 0xFF for b in data[60:90]) + data[90:],
        }[change]
    )
    with pytest.raises(VideoError, match=r"frame 0 \(1\.png\) cannot be read .*extract it again"):
        FrameFolderReader(str(tmp_path), RATE).read([0])


def test_pictures_above_the_limits_are_refused_undecoded(tmp_path):
    write(tmp_path, ["1.png", "2.png", "3.png"])
    reader = FrameFolderReader(str(tmp_path), RATE, Limits(max_pixels=24 * 16 - 1))
    with pytest.raises(VideoError, match=r"pixels=384 is above max_pixels=383"):
        _ = reader.height
    for limits in (Limits(max_frames=2), Limits(max_seconds=0.2)):
        with pytest.raises(VideoError, match="is above max_"):
            FrameFolderReader(str(tmp_path), RATE, limits)


def test_folders_without_frames_are_refused(tmp_path):
    with pytest.raises(VideoError, match=r"has no frames; expected names ending in \.jpg"):
        FrameFolderReader(str(tmp_path), RATE)
    with pytest.raises(VideoError, match=r"has no frames; expected img_\{\}\.png"):
        FrameFolderReader(str(tmp_path), FrameNames(25, "img_{}.png"))
    with pytest.raises(VideoError, match="cannot be read as a folder"):
        FrameFolderReader(str(tmp_path / "missing"), RATE)


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_rates_that_are_not_positive_are_refused(fps):
    with pytest.raises(ValueError, match=f"fps={fps}"):
        FrameNames(fps)
