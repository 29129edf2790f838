"""One prepared video in one record: what is stored, and how it is taken apart again.

    b"vmae-rec" | version | crc | fixed fields | lengths | clip id | (end, crc) of each part | parts

A part is a JPEG frame, or a whole video file. The first crc is of all that stands between it and
the parts; each part has its own, checked when it is used: no byte is believed unchecked, and
reading 16 of 75 frames does not pay for the others. Frames keep their numbers of the original
video, although only those at frame_phase + k * frame_step are there.
"""

from __future__ import annotations

import itertools
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vmae_jax.data.prepared.jpeg_reader import JpegReader
from vmae_jax.data.video.decoders import open_video
from vmae_jax.data.video.reader import Limits, VideoError, VideoReader
from vmae_jax.errors import SettingError

MAGIC = b"vmae-rec"
VERSION = 1
JPEG, VIDEO = "jpeg", "video"
ENCODINGS = (JPEG, VIDEO)  # by the number that is stored
MAX_PAYLOAD = 1 << 30  # bytes; the ends are 32 bits wide, and a record is read whole
_PREFIX = struct.Struct("<8sHI")
# The fields of VideoFacts in their order, then the bytes of the clip id and the number of parts.
_FACTS = struct.Struct("<iIdHHHHHHBBHI")
_PART = np.dtype([("end", "<u4"), ("crc", "<u4")])


@dataclass(frozen=True)
class VideoFacts:
    """What a record says about its video.

    Attributes:
      label: class number; -1 if there is none, or not one alone: the index has the others.
      num_frames: of the original.
      fps: of the original.
      source_height, source_width: of the original, in pixels.
      height, width: as stored.
      frame_step, frame_phase: frames phase, phase + step, phase + 2 * step, ... are stored.
      encoding: one of ENCODINGS.
      quality: of the JPEG frames, 1 to 100; 0 for a video file.
      clip_id: of the source's record.
    """

    label: int
    num_frames: int
    fps: float
    source_height: int
    source_width: int
    height: int
    width: int
    frame_step: int
    frame_phase: int
    encoding: str
    quality: int
    clip_id: str

    @property
    def num_stored(self) -> int:
        """How many frames the record holds."""
        return -((self.frame_phase - self.num_frames) // self.frame_step)

    def check(self) -> None:
        """Compares the fields with one another and with Limits.

        Raises:
          ValueError: if one of them cannot be right.
        """
        limits = Limits()
        sides = (self.source_height, self.source_width, self.height, self.width)
        rules = {
            "num_frames": 1 <= self.num_frames <= limits.max_frames,
            "fps": math.isfinite(self.fps) and self.fps > 0,
            "height, width": min(sides) > 0 and self.height * self.width <= limits.max_pixels,
            "frame_step": self.frame_step >= 1 and (self.encoding == JPEG or self.frame_step == 1),
            "frame_phase": 0 <= self.frame_phase < min(self.frame_step, self.num_frames),
            "quality": 1 <= self.quality <= 100 if self.encoding == JPEG else self.quality == 0,
            "clip_id": bool(self.clip_id),
        }
        for name, holds in rules.items():
            if not holds:
                raise ValueError(f"{name} cannot be right in {self}")


def record_bytes(facts: VideoFacts, parts: Sequence[bytes]) -> bytes:
    """The record of a video.

    Args:
      facts: about it.
      parts: the JPEG files of its stored frames in order, or one video file.
    Raises:
      ValueError: if they do not agree.
      SettingError: if the parts take more than MAX_PAYLOAD bytes.
    """
    facts.check()
    expected = facts.num_stored if facts.encoding == JPEG else 1
    if len(parts) != expected or not all(parts):
        raise ValueError(f"{len(parts)} parts are not the {expected} filled ones of {facts}.")
    ends = list(itertools.accumulate(map(len, parts)))
    if ends[-1] > MAX_PAYLOAD:
        raise SettingError(
            f"it takes {ends[-1]} bytes, above MAX_PAYLOAD={MAX_PAYLOAD}; cut the video into "
            "shorter ones, or prepare with a larger frame step."
        )
    clip_id = facts.clip_id.encode("utf-8", "surrogateescape")
    *numbers, encoding, quality, _ = vars(facts).values()
    lengths = (len(clip_id), len(parts))
    try:
        fixed = _FACTS.pack(*numbers, ENCODINGS.index(encoding), quality, *lengths)
    except struct.error as error:
        raise ValueError(f"{facts} does not fit into a record: {error}.") from error
    table = np.array(list(zip(ends, map(zlib.crc32, parts), strict=True)), _PART)
    head = fixed + clip_id + table.tobytes()
    return b"".join([_PREFIX.pack(MAGIC, VERSION, zlib.crc32(head)), head, *parts])


class StoredVideo:
    """A parsed record; nothing of its parts is decoded yet.

    Args:
      record: its bytes, from wherever.
      name: of the record in messages: its shard and number.
    Attributes:
      facts: what it says about the video.
    Raises:
      VideoError: if it is no whole record.
    """

    def __init__(self, record: bytes, name: str):
        self._name = name
        if len(record) < _PREFIX.size + _FACTS.size:
            raise self._error(f"{len(record)} bytes are too few for a record")
        magic, version, crc = _PREFIX.unpack_from(record)
        if magic != MAGIC:
            raise self._error("it is no record of a prepared video")
        if version != VERSION:
            raise self._error(f"version={version} is not {VERSION}, which this program reads")
        *numbers, encoding, quality, id_bytes, num_parts = _FACTS.unpack_from(record, _PREFIX.size)
        id_start = _PREFIX.size + _FACTS.size
        table_start = id_start + id_bytes
        parts_start = table_start + num_parts * _PART.itemsize
        view = memoryview(record)
        if parts_start > len(record) or zlib.crc32(view[_PREFIX.size : parts_start]) != crc:
            raise self._error("its header does not have the checksum that it should have")
        if encoding >= len(ENCODINGS):
            raise self._error(f"encoding={encoding} is unknown to this program")
        clip_id = record[id_start:table_start].decode("utf-8", "surrogateescape")
        self.facts = VideoFacts(*numbers, ENCODINGS[encoding], quality, clip_id)
        try:
            self.facts.check()
        except ValueError as error:
            raise self._error(str(error)) from error
        table = np.frombuffer(record, _PART, num_parts, table_start)
        self._ends = [0, *table["end"].tolist()]
        self._crcs = table["crc"].tolist()
        self._payload = view[parts_start:]
        if num_parts != (self.facts.num_stored if self.facts.encoding == JPEG else 1):
            raise self._error(f"num_parts={num_parts} does not fit {self.facts}")
        ascending = all(a < b for a, b in itertools.pairwise(self._ends))
        if not ascending or self._ends[-1] != len(self._payload):
            raise self._error("the ends of its parts do not fit its length")

    def __len__(self) -> int:
        return len(self._crcs)

    def part(self, k: int) -> memoryview:
        """The bytes of part k.

        Raises:
          VideoError: if they do not have their checksum.
        """
        part = self._payload[self._ends[k] : self._ends[k + 1]]
        if zlib.crc32(part) != self._crcs[k]:
            raise self._error(f"part {k} does not have the checksum that it should have")
        return part

    def open(self, backend: str = "pyav") -> VideoReader:
        """A reader of the video's frames, by their original numbers.

        Args:
          backend: a key of `decoders.DECODERS`; JPEG frames need none.
        Raises:
          VideoError: if the parts that are read to open it are damaged.
        """
        facts = self.facts
        if facts.encoding == JPEG:
            return JpegReader(
                self.part,
                self._name,
                num_frames=facts.num_frames,
                fps=facts.fps,
                size=(facts.height, facts.width),
                frame_step=facts.frame_step,
                frame_phase=facts.frame_phase,
            )
        reader = open_video(bytes(self.part(0)), backend, name=self._name)
        if reader.num_frames != facts.num_frames:
            num_frames = reader.num_frames
            reader.close()
            raise self._error(f"its file has num_frames={num_frames}, contrary to {facts}")
        return reader

    def _error(self, reason: str) -> VideoError:
        return VideoError(self._name, f"{reason}; prepare its shard again.")
