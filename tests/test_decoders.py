import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from decoded import BAD, BIKES, DAMAGED, GOOD, outcome
from video_corpus import FRAMES, HEIGHT, IRREGULAR, TICKS, WIDTH, made, painted_numbers

from vmae_jax.data.video.decoders import DECODERS, open_video
from vmae_jax.data.video.reader import Limits, VideoError


@pytest.fixture(params=DECODERS)
def backend(request):
    return request.param


@pytest.mark.parametrize("name", GOOD)
def test_every_frame_asked_for_is_the_one_given(name, backend):
    # the reference is painted into the frames
    assert outcome(made(name), backend) in ("right", "right, by pyav")


@pytest.mark.parametrize("name", BAD)
def test_bad_files_give_right_frames_or_an_error(name, backend):
    if name not in DAMAGED:
        assert "wrong" not in outcome(made(name), backend)


@pytest.mark.parametrize("name", DAMAGED)
def test_frames_before_the_damage_are_right_and_reading_all_is_an_error(name, backend):
    reader = open_video(made(name), backend)
    assert painted_numbers(reader.read(range(0, 12, 2))) == list(range(0, 12, 2))
    with pytest.raises(VideoError, match=rf"{name}.*(cannot|can) be decoded|cannot decode"):
        reader.read(range(FRAMES))


@pytest.mark.parametrize(
    "name", [name for name in BAD if not name.startswith(("cut_off", "two_sizes", *DAMAGED))]
)
def test_what_is_no_video_is_refused_on_opening(name, backend):
    with pytest.raises(VideoError) as info:
        open_video(made(name), backend)
    assert info.value.path == str(made(name))
    assert str(made(name)) in str(info.value)


@pytest.mark.parametrize("name", ["h264_b_frames.mp4", "h264_open_gop.mkv", "mpeg2.ts"])
def test_bytes_are_read_like_the_file(name, backend):
    path = made(name)
    from_path, from_bytes = (
        open_video(path, backend),
        open_video(path.read_bytes(), backend, name=name),
    )
    assert from_bytes.num_frames == from_path.num_frames == FRAMES
    indices = [70, 3, 3, 41, 0]
    np.testing.assert_array_equal(from_bytes.read(indices), from_path.read(indices))


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_times_count_from_the_first_frame(backend):
    seconds = np.arange(FRAMES) / 25  # as encoded
    for name in ("h264_b_frames.mp4", "h264_late_start.ts", "h264_b_frames.avi", "h264_raw.h264"):
        reader = open_video(made(name), backend)
        np.testing.assert_allclose(reader.times, seconds, atol=1e-4)
        assert reader.times.dtype == np.float64
        assert reader.fps == pytest.approx(25)
    edited = open_video(made("h264_edit_list.mp4"), backend)
    np.testing.assert_allclose(edited.times, seconds[: FRAMES - 31], atol=1e-4)
    irregular = np.array([IRREGULAR["ticks"](i) for i in range(FRAMES)]) / TICKS
    for name in ("h264_variable_rate.mp4", "h264_variable_rate.mkv"):
        reader = open_video(made(name), backend)
        np.testing.assert_allclose(reader.times, irregular, atol=1e-3)
        assert reader.fps == pytest.approx((FRAMES - 1) / irregular[-1], rel=1e-3)


@pytest.mark.parametrize("kind", ["m3u8", "ffconcat"])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_files_that_name_other_files_open_none(kind, as_bytes, backend, tmp_path):
    # Opening a pipe for writing waits until someone opens it for reading: that must not happen.
    pipe, opened = tmp_path / "pipe.ts", threading.Event()
    os.mkfifo(pipe)

    def wait_for_reader():
        os.close(os.open(pipe, os.O_WRONLY))
        opened.set()

    thread = threading.Thread(target=wait_for_reader, daemon=True)
    thread.start()
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{pipe}\n#EXT-X-ENDLIST\n"
    concat = f"ffconcat version 1.0\nfile {pipe.name}\n"
    path = tmp_path / f"list.{kind}"
    path.write_text({"m3u8": playlist, "ffconcat": concat}[kind])
    with pytest.raises(VideoError):
        open_video(path.read_bytes() if as_bytes else path, backend, name="list")
    assert not opened.is_set()
    os.close(os.open(pipe, os.O_RDONLY))  # lets the thread end
    thread.join(10)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(max_pixels=HEIGHT * WIDTH - 1), "pixels=12288 is above max_pixels=12287"),
        (Limits(max_frames=FRAMES - 1), "frames=72 is above max_frames=71"),
        (Limits(max_seconds=2.8), r"seconds=2\.8\d* is above max_seconds=2\.8"),
        (Limits(max_bytes=1000), r"bytes=\d+ is above max_bytes=1000"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("name", ["h264_b_frames.mp4", "h264_b_frames.ts"])
def test_videos_above_a_limit_are_refused(limits, reason, name, backend):
    with pytest.raises(VideoError, match=reason):
        open_video(made(name), backend, limits=limits)


@pytest.mark.parametrize("max_pixels", [HEIGHT * WIDTH, 3 * HEIGHT * WIDTH, 1 << 30])
def test_frames_larger_than_the_header_says_are_refused(max_pixels, backend):
    # in the first case by libavcodec, before it allocates them
    reader = open_video(made("two_sizes.webm"), backend, limits=Limits(max_pixels=max_pixels))
    assert painted_numbers(reader.read([0, 71])) == [0, 71]
    with pytest.raises(VideoError, match=r"is above max_pixels|header says 128x96|cannot decode"):
        reader.read([FRAMES + 5])


class Stored:
    """As much of an epath as is needed, over a file here; claims a length of 5000 bytes."""

    length = 5000

    def __init__(self, path):
        self.path = Path(path)

    def stat(self):
        if not self.path.exists():
            raise FileNotFoundError(self.path)
        return self

    def read_bytes(self):
        return self.path.read_bytes()


def test_addresses_are_read_through_epath(monkeypatch):
    from etils import epath

    monkeypatch.setattr(epath, "Path", lambda at: Stored(made(at.removeprefix("gs://"))))
    reader = open_video("gs://h264_b_frames.mp4")
    assert painted_numbers(reader.read([9, 2])) == [9, 2]
    with pytest.raises(VideoError, match=r"gs://h264_b_frames.mp4.*max_bytes=4000"):
        open_video("gs://h264_b_frames.mp4", limits=Limits(max_bytes=4000))
    monkeypatch.setattr(epath, "Path", lambda address: Stored("/missing.mp4"))
    with pytest.raises(VideoError, match=r"gs://missing.mp4.*cannot be read"):
        open_video("gs://missing.mp4")


@pytest.fixture(scope="module")
def bikes():
    # The reference: every frame decoded in order by decord, so that no seek can go wrong.
    import decord  # if it came before PyAV, whose libraries it brings too, VP8 could not be encoded

    reader = decord.VideoReader(str(BIKES))
    return np.stack([reader.next().asnumpy() for _ in range(250)])


def test_reader_tells_length_size_and_rate(backend):
    reader = open_video(BIKES, backend)
    assert (reader.num_frames, reader.height, reader.width, reader.fps) == (250, 272, 640, 25.0)


@pytest.mark.parametrize(
    "indices",
    [
        [0],
        [249],
        [37, 41, 45, 49],
        [200, 3, 101, 249, 0],
        [7, 7, 7],
        [36, 40, 36, 36],
        range(100, 132, 2),
    ],
    ids=str,
)
def test_random_access_gives_the_frames_of_a_sequential_read(backend, indices, bikes):
    frames = open_video(BIKES, backend).read(indices)
    assert frames.dtype == np.uint8
    assert frames.shape == (len(indices), 272, 640, 3)
    np.testing.assert_array_equal(frames, bikes[list(indices)])


def test_reads_of_one_reader_do_not_depend_on_earlier_reads(backend, bikes):
    reader = open_video(BIKES, backend)
    rng = np.random.default_rng(0)
    for start in rng.integers(0, 219, 12):
        indices = np.arange(start, start + 32, 4)
        np.testing.assert_array_equal(reader.read(indices), bikes[indices])
        assert reader.height == 272


@pytest.mark.parametrize("indices", [[250], [-1], [0, 10, 1000]], ids=str)
def test_frames_outside_the_video_are_refused(backend, indices):
    with pytest.raises(ValueError, match=r"frame (250|-1|1000) of .*bikes\.mp4.* num_frames=250"):
        open_video(BIKES, backend).read(indices)


def test_no_frames_and_closing(backend):
    with open_video(BIKES, backend) as reader:
        assert reader.read([]).shape == (0, 272, 640, 3)


@pytest.mark.parametrize(
    ("backend", "package"),
    [("pyav", "av"), ("decord", "decord"), ("decord", "av")],
)
def test_a_missing_package_is_named(backend, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # makes its import fail
    message = rf"backend='{backend}' needs the package {package} .*pip install {package}"
    with pytest.raises(ImportError, match=message):
        open_video(BIKES, backend)


def test_missing_files_are_no_videos(tmp_path):
    with pytest.raises(VideoError, match="no such file"):
        open_video(tmp_path / "missing.mp4")


def test_bytes_need_a_name():
    with pytest.raises(ValueError, match=r"name=None.*give a name"):
        open_video(b"bytes")


def test_a_folder_is_no_video(tmp_path):
    with pytest.raises(VideoError, match="no such file"):
        open_video(tmp_path)


def test_unknown_backend_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"backend='nope'.*decord.*pyav"):
        open_video(BIKES, "nope")
