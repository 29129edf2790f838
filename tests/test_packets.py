import numpy as np
import pytest
from decoded import orders, sequential
from video_corpus import made

from vmae_jax.data.video import packets
from vmae_jax.data.video.decoders import open_video
from vmae_jax.data.video.packets import FrameIndex


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
def test_large_files_are_read_again_from_the_key_frame(name, monkeypatch):
    expected = sequential(made(name), 0)
    monkeypatch.setattr(packets, "KEPT_BYTES", 0)
    reader = open_video(made(name))
    for indices in orders(len(expected)):
        np.testing.assert_array_equal(reader.read(indices), expected[list(indices)])


def test_a_frame_before_its_key_frame_is_decoded_from_an_earlier_one():
    # by hand, in decoding order: I0 P2 b1 | I5 b3 b4 P6 | I7, the numbers being times
    pts = np.array([0, 2, 1, 5, 3, 4, 6, 7])
    index = FrameIndex(np.arange(8), np.argsort(pts), np.array([0, 3, 7]), pts)
    assert [index.start(i) for i in range(8)] == [0, 0, 0, 0, 0, 3, 3, 7]
    assert index.runs([1, 6]) == [(0, 7, [1, 6])]  # nothing to leap over
    assert index.runs([0, 6]) == [(0, 1, [0]), (3, 7, [6])]
    assert index.runs([3, 5]) == [(0, 5, [3, 5])]
