import pickle

import pytest

from vmae_jax.data.video.reader import VideoError, VideoReader


class Counted(VideoReader):
    closed = 0

    def close(self):
        self.closed += 1


def test_video_error_survives_pickling():
    error = pickle.loads(pickle.dumps(VideoError("a.mp4", "it is empty")))
    assert (error.path, error.reason) == ("a.mp4", "it is empty")
    assert str(error) == "video 'a.mp4': it is empty"


def test_a_with_statement_closes_the_reader_whatever_happens():
    with Counted() as reader:
        assert reader.closed == 0
    assert reader.closed == 1
    with pytest.raises(KeyError), reader:
        raise KeyError
    assert reader.closed == 2


def test_a_reader_that_says_nothing_else_has_every_frame():
    reader = VideoReader()
    assert (reader.frame_step, reader.frame_phase, reader.codec) == (1, 0, "unknown")
