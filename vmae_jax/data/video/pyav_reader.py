"""Exact frames through PyAV (FFmpeg's libraries): the default way from a video file to frames.

What one would get wrong: neither a frame number times a rate nor a seek says which frame comes out.
Frame i is the one with the i-th presentation time of the file, found in a pass over its packets,
and a decoded frame is recognised by its time. Where the times cannot be trusted, or decoding shows
anything that they do not explain, all frames are decoded from the start and counted instead: that
is slow (a whole decode to open, up to another for each read) and always right.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import VideoReformatter

from vmae_jax.data.video.packets import VideoPackets
from vmae_jax.data.video.reader import Limits, VideoError, VideoReader, checked_indices, first_line

# Decoders that can leave out just the frames which no other needs. Not hevc, where such a frame
# may yet serve a higher temporal layer, nor dav1d, which loses wanted frames; vp8 and vp9 files
# hardly have any.
DISCARDING_CODECS = {"h264", "mpeg1video", "mpeg2video", "mpeg4"}


class _Unexplained(Exception):
    """Decoding gave something that the index of packets does not explain."""


class PyavReader(VideoReader):
    """A VideoReader over PyAV; its arguments are those of `decoders.open_video`, checked.

    Attributes beside those of VideoReader:
      video: the file's packets.
      index: its frames, or None if they are found by counting.
    """

    def __init__(self, file: str | bytes, name: str, limits: Limits):
        self._name, self._limits = name, limits
        self._turn: tuple[bool, bool, bool] | None = None  # unknown until a frame is decoded
        self._reformatter = VideoReformatter()
        try:
            self.video = VideoPackets(file, name, limits)
            self.index = self.video.index
            if self.index:
                self._set_times(self.index.times)
            else:
                self._count()
        except av.FFmpegError as error:
            raise VideoError(
                name, f"PyAV cannot open it ({first_line(error)}); re-encode or remove the file."
            ) from error
        self.num_frames = len(self.times)
        if self.num_frames == 0:
            raise self.video.error("it has no frames")
        limits.check(name, frames=self.num_frames, seconds=self.times[-1])

    @property
    def codec(self) -> str:
        """Its short name: "h264"."""
        return self.video.stream.codec_context.codec.name

    @property
    def height(self) -> int:
        """Pixels, after rotation; the first call may decode a frame."""
        return self._shape[0]

    @property
    def width(self) -> int:
        """Pixels, after rotation; the first call may decode a frame."""
        return self._shape[1]

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """RGB frames, uint8 [len(indices), height, width, 3]; see VideoReader."""
        indices = checked_indices(indices, self.num_frames, self._name)
        rows: dict[int, list[int]] = {}
        for row, i in enumerate(indices.tolist()):
            rows.setdefault(i, []).append(row)
        if not rows:
            return np.empty((0, *self._shape, 3), np.uint8)
        out = None
        for i, frame in self._decoded(sorted(rows)):
            if out is None:
                out = np.empty((len(indices), *self._shape, 3), np.uint8)
            first, *others = rows[i]
            self._convert(frame, out[first])
            for row in others:
                out[row] = out[first]
        return out

    def close(self) -> None:
        """Gives back file and memory; the reader cannot be used afterwards."""
        self.video.close()
        del self.video

    def _set_times(self, ticks: np.ndarray) -> None:
        unit = self.video.stream.time_base
        self.times = (ticks - ticks[0]) * float(unit)
        if len(ticks) > 1:
            self.fps = float((len(ticks) - 1) / (int(ticks[-1] - ticks[0]) * unit))
        else:
            self.fps = self._header_rate()

    def _header_rate(self) -> float:
        return float(self.video.stream.average_rate or self.video.stream.guessed_rate or 1)

    def _count(self) -> None:
        """Decodes the whole file for the number and the times of its frames."""
        ticks = []
        for frame in self._in_order():
            ticks.append(frame.pts)
            self._limits.check(self._name, frames=len(ticks))
        if ticks and None not in ticks and (np.diff(ticks) > 0).all():
            self._set_times(np.array(ticks))
        else:  # the file has no times, or not those of presentation
            self.fps = self._header_rate()
            self.times = np.arange(len(ticks)) / self.fps

    def _in_order(self) -> Iterator[VideoFrame]:
        self.video.reopen()
        for frame in self.video.frames():
            self._check(frame)
            yield frame

    def _check(self, frame: VideoFrame) -> None:
        """Refuses a frame of another size than the header's; learns how frames are to be turned."""
        self._limits.check(self._name, pixels=frame.height * frame.width)
        height, width = self.video.size
        if (frame.height, frame.width) != (height, width):
            raise self.video.error(
                f"a frame has {frame.width}x{frame.height} pixels where the header says "
                f"{width}x{height}"
            )
        if self._turn is None:
            self._turn = self._display(frame)

    def _display(self, frame: VideoFrame) -> tuple[bool, bool, bool]:
        """How to turn frames: (swap height and width, then upside down, then left to right)."""
        for data in frame.side_data:
            if data.type == SideData.DISPLAYMATRIX:
                # A pixel at (x, y) is shown at (a x + c y, b x + d y).
                a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
                if a and d and not (b or c):
                    return False, d < 0, a < 0
                if b and c and not (a or d):
                    return True, b < 0, c < 0
                raise self.video.error("it is to be shown turned by less than a quarter")
        return False, False, False

    @property
    def _shape(self) -> tuple[int, int]:
        if self._turn is None:
            for _ in self._decoded([0]):
                pass
        return self.video.size[::-1] if self._turn[0] else self.video.size

    def _convert(self, frame: VideoFrame, out: np.ndarray) -> None:
        plane = self._reformatter.reformat(frame, format="rgb24", threads=1).planes[0]
        shape, strides = (*self.video.size, 3), (plane.line_size, 3, 1)
        picture = np.ndarray(shape, np.uint8, plane, strides=strides)  # lines are padded
        swap, upside_down, mirrored = self._turn
        picture = picture.swapaxes(0, 1) if swap else picture
        out[...] = picture[:: -1 if upside_down else 1, :: -1 if mirrored else 1]

    def _decoded(self, frames: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        """(i, frame) for these ascending numbers; where one comes twice, the second is right."""
        try:
            if self.index:
                try:
                    yield from self._by_index(frames)
                    return
                except _Unexplained:
                    self._give_up_index()
            wanted = set(frames)
            for i, frame in enumerate(self._in_order()):
                if i in wanted:
                    yield i, frame
                if i == frames[-1]:
                    return
            raise self.video.error(f"frame {frames[-1]} cannot be decoded")
        except av.FFmpegError as error:
            raise self.video.error(
                f"PyAV cannot decode frames {frames[0]} to {frames[-1]} ({first_line(error)})"
            ) from error

    def _give_up_index(self) -> None:
        """From now on frames are counted; refuses the file if that gives another number of them."""
        times, fps = self.times, self.fps
        self._count()
        counted = len(self.times)
        self.times, self.fps = times, fps
        if counted != self.num_frames:
            raise self.video.error(f"{counted} of num_frames={self.num_frames} can be decoded")
        self.index = None

    def _by_index(self, frames: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        for start, stop, members in self.index.runs(frames):
            missing = {int(self.index.times[i]): i for i in members}
            needed = {start, *self.index.packets[members].tolist()}
            previous = None
            for frame in self._decode_run(start, stop, needed):
                self._check(frame)
                if previous is None and self.video.is_shown[start]:
                    # What is no place to start (intra refresh, a wrong flag) comes later, or not
                    # at all, or needs frames from before it.
                    if frame.pts != self.video.pts[start] or frame.pict_type != PictureType.I:
                        raise _Unexplained
                elif frame.pts is None or (previous is not None and frame.pts <= previous):
                    raise _Unexplained
                previous = frame.pts
                if frame.pts in missing:
                    yield missing.pop(frame.pts), frame
            if missing:
                raise _Unexplained

    def _decode_run(self, start: int, stop: int, needed: set[int]) -> Iterator[VideoFrame]:
        context = self.video.context
        discards, discarding = self.video.codec in DISCARDING_CODECS, False
        context.flush_buffers()
        context.skip_frame = "DEFAULT"
        for i, packet in enumerate(
            itertools.islice(self.video.packets(start), stop - start), start
        ):
            if discards and discarding != (i not in needed):
                discarding = not discarding
                context.skip_frame = "NONREF" if discarding else "DEFAULT"
            yield from context.decode(packet)
        yield from context.decode(None)
