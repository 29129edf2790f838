"""Small video files of many kinds, in which every frame carries its own number.

A file is a name in FILES and a function that writes it; `made(name)` is its path. The upper half of
a frame shows eight black or white fields, the bits of its number, which survive any codec; the
lower half moves, so that prediction between frames has something to do. `painted_numbers` reads the
bits back.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FRAMES = 72
HEIGHT, WIDTH = 96, 128
RATE = 25
TICKS = 1000  # of the time base, in a second
ROWS, COLUMNS = 2, 4  # of bits, the highest first
X264 = {"preset": "veryfast", "g": "24", "bf": "3", "threads": "1"}


@dataclass(frozen=True)
class VideoFile:
    """How a file is made, and what is to be expected of it.

    Attributes:
      make: writes it to the path given.
      good: a whole video, of which every frame must come out right; otherwise damaged or no video.
      rotation: degrees counter-clockwise by which its pictures are to be turned.
      first_number: painted into its first frame.
    """

    make: Callable[[str], None]
    good: bool = True
    rotation: int = 0
    first_number: int = 0


@functools.lru_cache(maxsize=512)
def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """uint8 [height, width, 3] of frame `number`, which is below 256."""
    y, x = np.mgrid[:height, :width]
    row, column = y * 2 * ROWS // height, x * COLUMNS // width
    bit = number >> np.clip(ROWS * COLUMNS - 1 - row * COLUMNS - column, 0, None) & 1
    waves = 128 + 50 * np.sin((x + 3 * number) / 7) + 40 * np.cos((y - 2 * number) / 5)
    grey = np.where(row < ROWS, 40 + 170 * bit, waves)
    colour = np.where(row < ROWS, 0, 30 * np.sin(x / 11 + number / 3))
    return np.stack([grey + colour, grey, grey - colour], -1).clip(0, 255).astype(np.uint8)


def painted_numbers(frames: np.ndarray) -> list[int]:
    """The numbers in frames [n, H, W, 3]."""
    _, height, width, _ = frames.shape
    y = (np.arange(ROWS) * 2 + 1) * height // (4 * ROWS)
    x = (np.arange(COLUMNS) * 2 + 1) * width // (2 * COLUMNS)
    fields = frames[:, y[:, None] + np.arange(-3, 4)][:, :, :, x[:, None] + np.arange(-3, 4)]
    bits = fields.mean(axis=(2, 4, 5)) > 125
    return np.packbits(bits.reshape(len(frames), -1), axis=1)[:, 0].tolist()


def encode(
    file: str,
    codec: str = "libx264",
    options: dict[str, str] = X264,
    *,
    frames: int = FRAMES,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    pix_fmt: str = "yuv420p",
    ticks: Callable[[int], int] = lambda i: i * TICKS // RATE,
    time_base: Fraction = Fraction(1, TICKS),
    format: str | None = None,
    muxer: dict[str, str] | None = None,
    rotation: int = 0,
    audio: bool = False,
    first_number: int = 0,
) -> None:
    """Writes pictures first_number, first_number + 1, ... at the given times, counted in ticks."""
    with av.open(file, "w", format=format, container_options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=RATE, options=dict(options))
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = time_base
        if rotation:
            stream.set_display_rotation(rotation)
        sound = container.add_stream("aac", rate=16000, layout="mono") if audio else None
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(first_number + i, *size), format="rgb24")
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = ticks(i), time_base
            container.mux(stream.encode(frame))
            if sound:
                container.mux(sound.encode(_noise(i)))
        container.mux(stream.encode(None))
        if sound:
            container.mux(sound.encode(None))


def _noise(i: int) -> av.AudioFrame:
    samples = np.random.default_rng(i).integers(-9000, 9000, (1, 16000 // RATE), np.int16)
    frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
    frame.sample_rate, frame.pts = 16000, i * samples.shape[1]
    return frame


def _copied(*parts: dict, kind: str, stream="video", from_key=0, frames=0, **expected) -> VideoFile:
    """A file of packets from others, one after the other, that is not encoded anew.

    Args:
      parts: arguments for `encode`, for each of the others.
      kind: their extension.
      stream: "video" or "audio", whichever is to be copied.
      from_key: key frame of each that is the first to be copied.
      frames: by so many all times are moved back; what is then below zero is cut away.
    """

    def make(file: str) -> None:
        sources = [f"{file}.{number}.{kind}" for number in range(len(parts))]
        for part, source in zip(parts, sources, strict=True):
            encode(source, **part)
        with av.open(file, "w", container_options={"avoid_negative_ts": "disabled"}) as container:
            opened = [av.open(source) for source in sources]
            copy = container.add_stream_from_template(opened[0].streams.get({stream: 0})[0])
            for number, source in enumerate(opened):
                keys = 0
                for packet in source.demux({stream: 0}):
                    keys += packet.is_keyframe
                    if packet.size and keys > from_key:
                        ticks = round((number * FRAMES - frames) / RATE / packet.time_base)
                        packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
                        packet.stream = copy
                        container.mux(packet)
                source.close()

    return VideoFile(make, **expected)


def _changed(make: Callable[[str], None], change: Callable[[bytes], bytes]) -> VideoFile:
    def make_and_change(file: str) -> None:
        make(file)
        Path(file).write_bytes(change(Path(file).read_bytes()))

    return VideoFile(make_and_change, good=False)


def _cut_off(make: Callable[[str], None], share: float = 0.6) -> VideoFile:
    return _changed(make, lambda data: data[: int(share * len(data))])


def _flip_bytes(data: bytes) -> bytes:
    data = bytearray(data)
    for position in np.random.default_rng(1).integers(len(data) // 2, len(data), 20):
        data[position] ^= 0x55
    return bytes(data)


def _contents(data: bytes) -> VideoFile:
    return VideoFile(lambda file: Path(file).write_bytes(data) and None, good=False)


def _one(
    codec: str = "libx264", options: dict[str, str] = X264, *, good: bool = True, **how
) -> VideoFile:
    make = functools.partial(encode, codec=codec, options=options, **how)
    return VideoFile(make, good, how.get("rotation", 0))


def _x264(**options: str) -> VideoFile:
    return _one(options={**X264, **options})


def _x265(parameters: str, **how) -> VideoFile:
    parameters = f"log-level=none:pools=1:frame-threads=1:keyint=24:{parameters}"
    return _one("libx265", {"preset": "ultrafast", "x265-params": parameters}, **how)


REALTIME = {"deadline": "realtime", "cpu-used": "8", "g": "24", "b": "600k"}
VP8 = {"codec": "libvpx", "options": REALTIME}
LARGE = {"size": (2 * HEIGHT, 2 * WIDTH), "first_number": FRAMES}
MPEG2 = {"g": "12", "bf": "2", "b": "1M"}
MPEG4 = {"g": "24", "bf": "2", "b": "1M"}
OPEN = {"options": {**X264, "x264opts": "open-gop=1:b-adapt=0:scenecut=0"}}
LATE = {"ticks": lambda i: 5000 + 40 * i}
IRREGULAR = {"ticks": lambda i: 40 * i + 17 * (i % 3) + 900 * (i > 30)}
FIXED = {"time_base": Fraction(1, RATE), "ticks": int}  # for what knows only one rate
GIF = {"time_base": Fraction(1, 100), "ticks": lambda i: 4 * i, "pix_fmt": "rgb8"}
FAST_START = functools.partial(encode, muxer={"movflags": "faststart"})
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nh264_b_frames.ts\n#EXT-X-ENDLIST\n"
FILES = {
    **{f"h264_b_frames.{kind}": _one() for kind in ("mp4", "mkv", "mov", "flv", "ts")},
    "h264_b_frames.avi": _one(**FIXED),
    "h264_raw.h264": _one(),
    "h264_b_pyramid.mp4": _x264(x264opts="b-pyramid=normal:b-adapt=0", bf="5", refs="4"),
    "h264_no_b.mp4": _x264(bf="0"),
    "h264_no_b.avi": _one(options={**X264, "bf": "0"}, **FIXED),
    "h264_one_key.mp4": _x264(g="999"),
    "h264_all_intra.mp4": _x264(g="1", bf="0"),
    **{f"h264_open_gop.{kind}": _one(**OPEN) for kind in ("mp4", "mkv", "ts")},
    "h264_intra_refresh.mp4": _x264(x264opts="intra-refresh=1", bf="0"),
    "h264_interlaced.mp4": _x264(x264opts="tff=1"),
    "h264_fragmented.mp4": _one(muxer={"movflags": "frag_keyframe+empty_moov"}),
    "h264_no_cues.mkv": _one(muxer={"live": "1"}),
    "h264_audio.mp4": _one(audio=True),
    **{f"h264_variable_rate.{kind}": _one(**IRREGULAR) for kind in ("mp4", "mkv")},
    **{f"h264_late_start.{kind}": _one(**LATE) for kind in ("mp4", "mkv", "ts")},
    "h264_edit_list_at_key.mp4": _copied({}, kind="mp4", from_key=1, frames=24, first_number=24),
    "h264_edit_list.mp4": _copied({}, kind="mp4", from_key=1, frames=31, first_number=31),
    "h264_edit_list_open_gop.mp4": _copied(OPEN, kind="mp4", frames=31, first_number=31),
    "h264_starts_in_open_gop.mkv": _copied(OPEN, kind="mkv", from_key=1, first_number=24),
    "h264_rotated_90.mp4": _one(rotation=90),
    "h264_rotated_180.mp4": _one(rotation=180),
    "h264_rotated_270.mov": _one(rotation=270),
    "h264_odd_444.mp4": _one(size=(95, 127), pix_fmt="yuv444p"),
    "h264_10_bit.mp4": _one(pix_fmt="yuv420p10le"),
    "h264_grey.mp4": _one(pix_fmt="gray"),
    **{f"h264_{n}_frames.{kind}": _one(frames=n) for n in (1, 2, 10) for kind in ("mp4", "mkv")},
    "hevc.mp4": _x265("open-gop=0:bframes=3"),
    "hevc_layers.mp4": _x265("open-gop=0:bframes=3:b-adapt=0:temporal-layers=3"),
    "hevc_open_gop.mp4": _x265("open-gop=1:bframes=3"),
    "hevc_open_gop.ts": _x265("open-gop=1:bframes=3"),
    "hevc_10_bit.mp4": _x265("bframes=3", pix_fmt="yuv420p10le"),
    "vp8.webm": _one(**VP8),
    "vp9.webm": _one("libvpx-vp9", REALTIME),
    "vp9.mp4": _one("libvpx-vp9", REALTIME),
    "av1.mp4": _one("libsvtav1", {"preset": "8", "g": "24", "crf": "20"}),
    "mpeg2.mpg": _one("mpeg2video", MPEG2, **FIXED),
    "mpeg2.ts": _one("mpeg2video", MPEG2, **FIXED),
    "mpeg2_interlaced.ts": _one("mpeg2video", {**MPEG2, "flags": "+ilme+ildct"}, **FIXED),
    "mpeg4.mp4": _one("mpeg4", MPEG4),
    "mpeg4_b_frames.avi": _one("mpeg4", MPEG4, **FIXED),
    "mpeg4_no_b.avi": _one("mpeg4", {**MPEG4, "bf": "0"}, **FIXED),
    "mjpeg.avi": _one("mjpeg", {"q": "3"}, pix_fmt="yuvj420p", **FIXED),
    "prores.mov": _one("prores_ks", {}, pix_fmt="yuv422p10le"),
    "ffv1.mkv": _one("ffv1", {"g": "24"}),
    "wmv2.wmv": _one("wmv2", {"b": "1M"}, format="asf"),
    "animation.gif": _one("gif", {}, **GIF),
    # Of the others no frame may be wrong, and an error is right.
    "two_sizes.ts": _copied({}, LARGE, kind="ts", good=False),
    "two_sizes.webm": _copied(VP8, {**VP8, **LARGE}, kind="webm", good=False),
    "audio_only.mp4": _copied({"audio": True}, kind="mp4", stream="audio", good=False),
    "cut_off.mp4": _cut_off(encode),
    "cut_off_fast_start.mp4": _cut_off(FAST_START),
    "cut_off.mkv": _cut_off(encode),
    "cut_off.ts": _cut_off(encode),
    "cut_off.avi": _cut_off(functools.partial(encode, **FIXED)),
    "cut_off.webm": _cut_off(functools.partial(encode, **VP8)),
    "flipped_bytes.mp4": _changed(FAST_START, _flip_bytes),
    "zeroed_part.mp4": _changed(FAST_START, lambda data: data[:5000] + bytes(2000) + data[7000:]),
    "empty.mp4": _contents(b""),
    "garbage.mp4": _contents(np.random.default_rng(0).bytes(9000)),
    "text.txt": _contents(b"this is not a video\n" * 300),
    "text.mp4": _contents(b"this is not a video\n" * 300),
    "page.mp4": _contents(b"<!DOCTYPE html><html><body>404</body></html>\n"),
    "picture.png": _one("png", {}, frames=1, pix_fmt="rgb24", format="image2", good=False),
    "playlist.m3u8": _contents(PLAYLIST),
    "list.ffconcat": _contents(b"ffconcat version 1.0\nfile h264_b_frames.mp4\n"),
}


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="video_corpus_")  # deleted when Python ends


@functools.cache
def made(name: str) -> Path:
    """The file of that name, which is made when first asked for."""
    path = Path(_folder().name, name)
    FILES[name].make(str(path))
    return path
