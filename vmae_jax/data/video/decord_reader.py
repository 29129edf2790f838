"""Frames through decord (or decord2, which is imported under the same name).

decord seeks by time and counts on from there, which gives other frames than were asked for in an
open GOP, behind an edit list, in MPEG-TS, AVI and more. So the packets are looked at first, and a
file in which anything is doubtful goes to the exact reader, with a warning. What cannot be seen
that way is damage inside of frames: there decord may show other frames without a word.
"""

from __future__ import annotations

import functools
import io
import logging
from collections.abc import Iterator, Sequence

import decord
import numpy as np

from vmae_jax.data.video.packets import VideoPackets
from vmae_jax.data.video.pyav_reader import PyavReader
from vmae_jax.data.video.reader import Limits, VideoError, VideoReader, checked_indices, first_line

# Containers in which decord was found to seek rightly, if nothing else is amiss.
SEEKABLE_FORMATS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}


def open_decord(file: str | bytes, name: str, limits: Limits) -> VideoReader:
    """A DecordReader, or a PyavReader where decord may not give the right frames."""
    exact = PyavReader(file, name, limits)
    reasons = _doubts(exact.video)
    if not reasons:
        try:
            reader = DecordReader(file, name, exact)
            exact.close()
            return reader
        except VideoError as error:
            reasons = [error.reason]
    for reason in reasons:
        warn_of_exact_reader(name, reason)
    return exact


@functools.lru_cache(maxsize=10_000)  # once for each file, not each time it is opened
def warn_of_exact_reader(name: str, reason: str) -> None:
    """Logs that PyAV decodes the video called `name` in place of decord, and why."""
    logging.warning("video %r: decoded by pyav in place of decord: %s", name, reason)


class DecordReader(VideoReader):
    """A VideoReader over decord.

    Args:
      file, name: as in `decoders.open_video`.
      exact: a reader of the same file, which tells the number and the times of its frames.
    Raises:
      VideoError: if decord cannot open the file, or finds another number of frames.
    """

    def __init__(self, file: str | bytes, name: str, exact: PyavReader):
        self._name = name
        source = file if isinstance(file, str) else io.BytesIO(file)
        try:
            # Threads of its own would lower one clip's latency but cost more CPU for each clip.
            self._video = decord.VideoReader(source, num_threads=1)
        except (RuntimeError, decord.DECORDError) as error:
            raise VideoError(name, f"decord cannot open it ({first_line(error)})") from error
        if len(self._video) != exact.num_frames:
            raise VideoError(
                name, f"decord counts {len(self._video)} of num_frames={exact.num_frames}"
            )
        self.num_frames, self.fps, self.times = exact.num_frames, exact.fps, exact.times
        self.codec = exact.codec

    @functools.cached_property
    def _frame_shape(self) -> tuple[int, int, int]:
        # decord tells the size only with a frame; most callers never ask.
        return self.read([0]).shape[1:]

    @property
    def height(self) -> int:
        """Pixels; the first call decodes a frame."""
        return self._frame_shape[0]

    @property
    def width(self) -> int:
        """Pixels; the first call decodes a frame."""
        return self._frame_shape[1]

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """RGB frames, uint8 [len(indices), height, width, 3]; see VideoReader."""
        indices = checked_indices(indices, self.num_frames, self._name)
        if not len(indices):
            return np.empty((0, *self._frame_shape), np.uint8)
        # Short videos repeat frames; each is decoded once, and in order, which saves seeks.
        unique, position = np.unique(indices, return_inverse=True)
        try:
            frames = self._video.get_batch(unique).asnumpy()
        except (RuntimeError, decord.DECORDError) as error:
            raise VideoError(
                self._name,
                f"decord cannot decode frames {unique[0]} to {unique[-1]} ({first_line(error)}); "
                "re-encode or remove the file.",
            ) from error
        return frames if np.array_equal(unique, indices) else frames[position]

    def close(self) -> None:
        """Gives back file and memory; the reader cannot be used afterwards."""
        del self._video


def _doubts(video: VideoPackets) -> list[str]:
    """Why decord may give other frames than were asked for; [] if there is no reason.

    Found by trying decord 0.6 on files of many kinds; what was not found to be safe counts as
    doubtful.
    """
    found = []
    if video.format not in SEEKABLE_FORMATS:
        found.append(f"container {video.format}")
    if video.codec != "h264":
        found.append(f"codec {video.codec}")
    elif not found:
        found += _h264_doubts(video)
    if video.index is None:
        found.append("times that do not tell the order of the frames")
    if video.is_trimmed:
        found.append("an edit list")
    return found


def _h264_doubts(video: VideoPackets) -> list[str]:
    header = video.context.extradata or b""
    if header[:1] != b"\x01" or len(header) < 5:  # ISO/IEC 14496-15: an avcC record
        return ["no header of its own"]
    found = {}
    for packet, is_key in zip(video.packets(), video.is_key, strict=True):
        if not is_key:
            continue
        units = list(_nal_units(bytes(packet), 1 + (header[4] & 3)))
        types = {unit[0] & 31 for unit in units}
        if 5 not in types:  # ITU-T H.264, table 7-1: 5 is a slice of an IDR picture
            found["key frames that need earlier frames (open GOP or intra refresh)"] = True
        if any(unit[0] & 31 == 7 and unit not in header for unit in units):  # a sequence header
            found["a header that changes on the way"] = True
    return list(found)


def _nal_units(data: bytes, length_bytes: int) -> Iterator[bytes]:
    while len(data) > length_bytes:
        stop = length_bytes + int.from_bytes(data[:length_bytes], "big")
        if stop > length_bytes:
            yield data[length_bytes:stop]
        data = data[stop:]
