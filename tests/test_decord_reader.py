import logging
from types import SimpleNamespace

import pytest
from video_corpus import FRAMES, made, painted_numbers

from vmae_jax.data.video import decord_reader
from vmae_jax.data.video.decoders import open_video
from vmae_jax.data.video.decord_reader import DecordReader, warn_of_exact_reader
from vmae_jax.data.video.pyav_reader import PyavReader


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
def test_decord_leaves_doubtful_files_to_pyav_with_one_warning(name, reason, caplog):
    warn_of_exact_reader.cache_clear()
    with caplog.at_level(logging.WARNING):
        readers = [open_video(made(name), "decord") for _ in range(3)]
    assert isinstance(readers[0], PyavReader)
    messages = [message for message in caplog.messages if reason in message]
    assert len(messages) == 1
    assert "decoded by pyav in place of decord" in messages[0]
    assert name in messages[0]


def test_decord_itself_decodes_ordinary_files(caplog):
    for name in ("h264_b_frames.mp4", "h264_b_pyramid.mp4", "h264_late_start.mkv"):
        assert not isinstance(open_video(made(name), "decord"), PyavReader)
    assert not caplog.messages


def test_what_decord_counts_otherwise_is_left_to_pyav(caplog, monkeypatch):
    class Short(DecordReader):
        def __init__(self, file, name, exact):
            super().__init__(file, name, SimpleNamespace(num_frames=exact.num_frames + 1))

    warn_of_exact_reader.cache_clear()
    monkeypatch.setattr(decord_reader, "DecordReader", Short)
    with open_video(made("h264_no_b.mp4"), "decord") as reader:
        assert painted_numbers(reader.read([9, 2])) == [9, 2]
        assert isinstance(reader, PyavReader)
    assert f"decord counts {FRAMES} of num_frames={FRAMES + 1}" in caplog.text


@pytest.mark.parametrize("header", [None, b"", b"\0\0\0\1", b"\1", b"\1\2\3\4"])
def test_a_file_without_a_whole_header_is_doubtful(header):
    video = SimpleNamespace(context=SimpleNamespace(extradata=header))
    assert decord_reader._h264_doubts(video) == ["no header of its own"]
