"""The packets of a video file, opened with care, and which to decode for which frames.

Packets stand in the file in decoding order; frames are shown in the order of their times. In an
open GOP some frames follow a key frame in the file that are shown before it, and need frames from
before it: so the place to start decoding is not simply the last key frame in the file.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence

import av
import numpy as np
from av.stream import Discard, Disposition

from vmae_jax.data.video.reader import Limits, VideoError

# What may be opened. Not among them: text drawn as pictures (tty), still images, and everything
# that names other files or addresses to read (playlists, concat, DASH, SDP).
FORMATS = "asf,avi,dv,flv,gif,h264,hevc,ivf,m4v,matroska,mov,mpeg,mpegts,mpegvideo,mxf,nut,ogg,rm"
# Containers without times, or (AVI) without those of presentation.
UNTIMED_FORMATS = {"avi", "h264", "hevc", "m4v", "mpegvideo"}
# The packets of a file up to this size are kept, so that it is read once; a larger one is read
# again from the key frame needed.
KEPT_BYTES = 64 << 20


class VideoPackets:
    """The packets of a file's video stream, read once. Arguments: see `decoders.open_video`.

    Attributes:
      stream, context: PyAV's stream, and its decoder (new after `reopen`).
      format, codec: FFmpeg's names of the container ("mov,mp4,...") and the decoder.
      size: (height, width) in pixels by the header, before rotation.
      pts, dts: of each packet, in ticks of stream.time_base; None where unknown.
      is_key: for each packet, whether the file calls it a place to start decoding.
      is_shown: for each packet, whether it gives a frame; others only help to decode later ones.
      is_trimmed: whether an edit list cuts some frames away.
      index: of the frames; None if the packets do not say surely which there are.
    Raises:
      VideoError: for a file that may not be opened, has no video, or ends early.
      av.FFmpegError: for one that cannot be.
    """

    def __init__(self, file: str | bytes, name: str, limits: Limits):
        self._file, self._name, self._limits = file, name, limits
        self._container = None
        self.pts: list[int | None] = []
        self.dts: list[int | None] = []
        self.is_key: list[bool] = []
        self.is_shown: list[bool] = []
        self.is_trimmed = False
        self._kept: list[av.Packet] | None = []
        self.reopen()
        self.format = self._container.format.name
        self.codec = self.context.codec.name
        self.size = (self.context.height, self.context.width)
        self._scan()
        self.index = self._index()

    def error(self, reason: str) -> VideoError:
        """The error to raise about this file."""
        return VideoError(self._name, f"{reason}; re-encode or remove the file.")

    def reopen(self) -> None:
        """Opens the file anew, with a fresh decoder, and checks what its header says."""
        self.close()
        # libavcodec itself refuses the memory for larger pictures (the margin is for padding).
        max_pixels = str(min(2 * self._limits.max_pixels, 2**31 - 1))
        self._container = av.open(
            f"file:{self._file}" if isinstance(self._file, str) else io.BytesIO(self._file),
            container_options={"format_whitelist": FORMATS, "protocol_whitelist": "file"},
            # For the frames decoded while probing, of which only times and types matter.
            options={"max_pixels": max_pixels, "skip_loop_filter": "all", "skip_idct": "all"},
            metadata_errors="replace",
        )
        self.stream = self._container.streams.best("video")
        no_video = self.stream is None or self.stream.codec_context is None
        if no_video or self.stream.disposition & Disposition.attached_pic:  # of a piece of music
            raise self.error("it has no video stream that can be decoded")
        for stream in self._container.streams:
            if stream is not self.stream:
                stream.discard = Discard.all
        self.context = self.stream.codec_context
        self.context.thread_type = "NONE"  # threads cost more processor time for each frame
        self.context.options = {"max_pixels": max_pixels}
        self._limits.check(
            self._name,
            pixels=self.context.height * self.context.width,
            frames=self.stream.frames,
            seconds=(self._container.duration or 0) / av.time_base,
        )

    def frames(self) -> Iterator[av.VideoFrame]:
        """All frames, decoded in order; only once after opening."""
        return self._container.decode(self.stream)

    def packets(self, start: int = 0) -> Iterator[av.Packet]:
        """The packets in decoding order, from number `start`, which is a key frame."""
        if self._kept is not None:
            return itertools.islice(self._kept, start, None)
        pts, dts = self.pts[start], self.dts[start]
        self._container.seek(pts if dts is None else dts, stream=self.stream)
        packets = (packet for packet in self._container.demux(self.stream) if packet.size)
        return itertools.dropwhile(lambda packet: packet.pts != pts, packets)

    def close(self) -> None:
        """Closes the file. Kept packets stay until the object goes."""
        if self._container is not None:
            self._container.close()

    def _scan(self) -> None:
        kept_bytes = 0
        for packet in self._container.demux(self.stream):
            if packet.size == 0:
                continue  # marks the end, or says that nothing has changed
            if packet.is_corrupt:
                raise self.error(f"its data end, or are damaged, at packet {len(self.pts)}")
            # RFC 6386, 9.1: this bit says show_frame.
            hidden = self.codec == "vp8" and not memoryview(packet)[0] & 0x10
            self.pts.append(packet.pts)
            self.dts.append(packet.dts)
            self.is_key.append(packet.is_keyframe)
            self.is_shown.append(not (hidden or packet.is_discard))
            self.is_trimmed |= packet.is_discard
            kept_bytes += packet.size
            if kept_bytes > KEPT_BYTES:
                self._kept = None
            elif self._kept is not None:
                self._kept.append(packet)
            self._limits.check(self._name, frames=len(self.pts))

    def _index(self) -> FrameIndex | None:
        shown = np.flatnonzero(self.is_shown)
        if self.format in UNTIMED_FORMATS or None in self.pts:
            return None
        if not len(shown) or not self.is_key[0]:
            return None
        pts = np.array(self.pts, np.int64)
        packets = shown[np.argsort(pts[shown])]
        times = pts[packets]
        hidden = np.delete(pts, shown)
        hidden_inside = (hidden > times[0]) & (hidden < times[-1])
        if (
            (np.diff(times) == 0).any()
            or times[0] < pts[0]  # shown before the first key frame: may not be decodable
            or (self.is_trimmed and hidden_inside.any())
        ):
            return None
        return FrameIndex(times, packets, np.flatnonzero(self.is_key), pts)


class FrameIndex:
    """Frames in the order they are shown, and where to find them.

    Args:
      times: int64 [frames], ticks, increasing.
      packets: int64 [frames], number of each frame's packet.
      keys: int64 [n], numbers of the key frames' packets.
      pts: int64 [packets], ticks.
    """

    def __init__(self, times: np.ndarray, packets: np.ndarray, keys: np.ndarray, pts: np.ndarray):
        self.times = times
        self.packets = packets
        self._keys = keys
        self._pts = pts

    def start(self, frame: int) -> int:
        """The packet from which decoding gives this frame whole: that of the nearest key frame."""
        key = int(np.searchsorted(self._keys, self.packets[frame], "right")) - 1
        while self._pts[self._keys[key]] > self.times[frame]:
            key -= 1
        return int(self._keys[key])

    def runs(self, frames: Sequence[int]) -> list[tuple[int, int, list[int]]]:
        """Groups of frames (given in ascending order), each to be decoded in one go.

        Returns:
          (start, stop, frames): decode packets [start, stop), which hold these frames.
        """
        runs: list[tuple[int, int, list[int]]] = []
        for frame in frames:
            start, stop = self.start(frame), int(self.packets[frame]) + 1
            if runs and start <= runs[-1][1]:
                last_start, last_stop, members = runs.pop()
                runs.append((last_start, max(last_stop, stop), [*members, frame]))
            else:
                runs.append((start, stop, [frame]))
        return runs
