"""One video to one record: choosing, resizing and encoding its frames.

Nothing here depends on other videos, on time or on chance: the same file and settings give the same
bytes, whatever was interrupted before. Runs in child processes, so it imports no jax.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from vmae_jax.data.prepared.index import STORED_AS
from vmae_jax.data.prepared.record import JPEG, VideoFacts, record_bytes
from vmae_jax.data.sources.record_label import single_class
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.data.video.reader import Limits, VideoError, VideoReader, first_line
from vmae_jax.errors import SettingError
from vmae_jax.files import storage

FRAME_STEPS = (4, 2, 1)
CHUNK_BYTES = 256 << 20  # of decoded frames held at a time
# Closed groups of 12, every second frame one that no other needs, and cheap to decode: any clip
# costs few frames that were not asked for. One thread and no macroblock tree (whose AVX-512 code
# does not always give the same), so that the bytes depend on nothing else.
X264 = {
    "crf": "20",
    "preset": "medium",
    "tune": "fastdecode",
    "threads": "1",
    "x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=1:b-adapt=0:b-pyramid=none:"
    "open-gop=0:no-mbtree=1",
}


@dataclass(frozen=True)
class Settings:
    """What a prepared set is made with; everything that decides its bytes, but for the videos.

    Attributes:
      frame_step: keep every frame_step-th frame, one of FRAME_STEPS; 1 for video encodings.
      short_side: pixels that the shorter side is reduced to; smaller videos keep their size.
      quality: of JPEG frames, 1 to 100; not used by other encodings.
      encoding: "jpeg"; "original", the source's file as it is; "h264", encoded anew.
      shard_size: videos in a shard; the last one may hold fewer, and bad videos leave gaps.
    Raises:
      SettingError: if one is out of range.
    """

    frame_step: int = 4
    short_side: int = 320
    quality: int = 85
    encoding: str = "jpeg"
    shard_size: int = 1000

    def __post_init__(self):
        if self.encoding not in STORED_AS:
            raise SettingError(
                f"encoding={self.encoding!r} is unknown; choose one of {list(STORED_AS)}."
            )
        steps = FRAME_STEPS if self.encoding == "jpeg" else (1,)
        if self.frame_step not in steps:
            raise SettingError(
                f"frame_step={self.frame_step} is not possible with encoding={self.encoding!r}; "
                f"choose one of {steps}."
            )
        if not 1 <= self.quality <= 100:
            raise SettingError(f"quality={self.quality} must be in [1, 100]; 85 is a good choice.")
        for name in ("short_side", "shard_size"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name}={getattr(self, name)} must be at least 1.")


def frame_phase(clip_id: str, num_frames: int, frame_step: int) -> int:
    """The first frame that is kept: any of the first frame_step, as the id's hash says.

    Were it always 0, the other frames of the data set would never be seen.
    """
    digest = hashlib.sha256(clip_id.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % min(frame_step, num_frames)


def stored_size(height: int, width: int, short_side: int, multiple: int = 1) -> tuple[int, int]:
    """(height, width) of frames as they are stored: never larger, short side first.

    Args:
      height, width: of the source.
      short_side: what its shorter side is reduced to.
      multiple: of which both sides are to be, rounded down.
    """
    scale = min(1.0, short_side / min(height, width))
    sides = (max(multiple, round(side * scale)) for side in (height, width))
    height, width = (side // multiple * multiple for side in sides)
    return height, width


def resized(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A frame, uint8 [H, W, 3], reduced to (height, width) with area averages, free of aliasing."""
    import cv2

    if frame.shape[:2] == size:
        return frame
    return cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA)


def encoded_video(source: VideoSource, settings: Settings, i: int) -> dict[str, Any]:
    """Record i of a source, encoded; made to be called through `isolation.Isolated`.

    Returns:
      {"record": uint8 array, "entry": dict of the index}, or {"bad": dict} if the video cannot
      be used for whatever reason.
    """
    record = source[i]
    try:
        data = file_bytes(record)
        with source.open(i) as reader:
            facts, parts = _encode(record, data, reader, settings)
        stored = record_bytes(facts, parts)
    except VideoError as error:
        return {"bad": {"clip_id": record.clip_id, "reason": error.reason}}
    except Exception as error:  # one strange video must not end the work on all others
        reason = f"{type(error).__name__}: {first_line(error)}"
        return {"bad": {"clip_id": record.clip_id, "reason": reason}}
    entry = {
        "clip_id": record.clip_id,
        "label": record.label,
        "num_frames": facts.num_frames,
        "phase": facts.frame_phase,
        "source_bytes": None if data is None else len(data),
        "source_sha256": source_digest(data),
    }
    return {"record": np.frombuffer(stored, np.uint8), "entry": entry}


def source_digest(data: bytes | None) -> str | None:
    """What the index keeps of a video's file, to recognise it by."""
    return None if data is None else hashlib.sha256(data).hexdigest()


def file_bytes(record: VideoRecord) -> bytes | None:
    """The file of a record; None if its video is not one file (a folder of pictures, say).

    Raises:
      OSError: if it cannot be read.
      SettingError: if it is too large.
    """
    if storage.is_remote(record.path) or os.path.isfile(record.path):
        return storage.read_bytes(record.path, Limits().max_bytes)
    return None


def _encode(
    record: VideoRecord, data: bytes | None, reader: VideoReader, settings: Settings
) -> tuple[VideoFacts, list[bytes]]:
    source_size = (reader.height, reader.width)
    facts = {
        "label": single_class(record.label),
        "num_frames": reader.num_frames,
        "fps": float(reader.fps),
        "source_height": source_size[0],
        "source_width": source_size[1],
        "frame_step": settings.frame_step,
        "frame_phase": frame_phase(record.clip_id, reader.num_frames, settings.frame_step),
        "encoding": STORED_AS[settings.encoding],
        "quality": settings.quality if settings.encoding == JPEG else 0,
        "clip_id": record.clip_id,
    }
    size = stored_size(*source_size, settings.short_side, 2 if settings.encoding == "h264" else 1)
    if settings.encoding == "original":
        size = source_size
        parts = [_whole_file(record, data, reader)]
    else:
        kept = range(facts["frame_phase"], reader.num_frames, settings.frame_step)
        frames = _frames(reader, kept, size)
        if settings.encoding == "jpeg":
            parts = [_jpeg(frame, settings.quality) for frame in frames]
        else:
            parts = [h264(frames, size, reader.fps)]
    return VideoFacts(**facts, height=size[0], width=size[1]), parts


def _frames(reader: VideoReader, kept: range, size: tuple[int, int]) -> Iterator[np.ndarray]:
    chunk = max(1, CHUNK_BYTES // (reader.height * reader.width * 3))
    for start in range(0, len(kept), chunk):
        for frame in reader.read(kept[start : start + chunk]):
            yield resized(frame, size)


def _jpeg(frame: np.ndarray, quality: int) -> bytes:
    from simplejpeg import encode_jpeg

    return encode_jpeg(np.ascontiguousarray(frame), quality, "RGB", "420")


def _whole_file(record: VideoRecord, data: bytes | None, reader: VideoReader) -> bytes:
    if data is None or record.is_timed or (record.start, record.stop) != (0, None):
        raise VideoError(
            record.path,
            f"clip_id={record.clip_id!r} is not a whole file, and encoding='original' keeps "
            "nothing else; choose another encoding.",
        )
    reader.read([0, reader.num_frames - 1])  # a file that cannot be decoded is of no use
    return data


def h264(
    frames: Iterable[np.ndarray],
    size: tuple[int, int],
    fps: float,
    options: Mapping[str, str] = X264,
) -> bytes:
    """An MP4 file with the frames, as yuv420p; the same input gives the same bytes.

    Args:
      frames: uint8 [H, W, 3] each, RGB.
      size: (H, W), both even.
      fps: frames per second.
      options: of libx264, as FFmpeg names them.
    """
    import av
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()  # that of a frame would be set up anew for each
    rate = max(Fraction(fps).limit_denominator(1001), Fraction(1, 1001))
    file = io.BytesIO()
    with av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=rate, options=dict(options))
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = number, 1 / rate
            picture = reformatter.reformat(picture, format="yuv420p", threads=1)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return file.getvalue()
