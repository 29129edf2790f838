"""Videos of many shapes with labels, on disk, and what the original sees of them in a test.

The original's sampling, resizing and crops are written down here with cv2 and numpy.
"""

from __future__ import annotations

import pathlib

import av
import cv2
import numpy as np

# (frames, height, width): landscape, portrait, square; longer than a test needs, and shorter
SHAPES = [
    (30, 36, 64), (30, 64, 36), (9, 48, 48), (5, 40, 70), (70, 70, 40), (41, 32, 32), (16, 50, 34),
    (3, 34, 50), (100, 44, 60), (23, 60, 44),
]  # fmt: skip
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def write_videos(folder: pathlib.Path, count: int, num_labels: int) -> pathlib.Path:
    """Lossless videos, and a list of them with labels; returns the list."""
    lines = []
    for i in range(count):
        frames, height, width = SHAPES[i % len(SHAPES)]
        path = folder / f"{i // 2}.{i % 2}.clip.mkv"  # ids by base name would collide
        rng = np.random.default_rng(i)
        coarse = rng.integers(0, 256, (frames, 6, 6, 3), np.uint8)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("ffv1", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
            for picture in coarse:
                picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC)
                frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="bgr0")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        lines.append(f"{path} {i % num_labels}")
    listed = folder / "list.csv"
    listed.write_text("\n".join(lines) + "\n")
    return listed


def read_frames(path: str) -> np.ndarray:
    with av.open(path) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def dense_starts(num_frames: int, clip: int, stride: int, segments: int) -> list[np.ndarray]:
    """Frame numbers of each test clip, for dense sampling."""
    strided = list(range(0, num_frames, stride))
    while len(strided) < clip:
        strided.append(strided[-1])
    step = max((len(strided) - clip) / (segments - 1), 0)
    return [np.array(strided[int(k * step) : int(k * step) + clip]) for k in range(segments)]


def tsn_starts(num_frames: int, clip: int, segments: int) -> list[np.ndarray]:
    """The frames of all views in order, dealt out in turns."""
    tick = num_frames / clip
    everything = []
    for k in range(segments):
        everything += [int(k * tick / segments + tick * x) for x in range(clip)]
    everything = np.array(sorted(everything))
    return [everything[k::segments] for k in range(segments)]


def crops(frames: np.ndarray, side: int, count: int) -> list[np.ndarray]:
    """Short side to `side`, then square crops along the long one."""
    _, height, width, _ = frames.shape
    if width < height:
        size = (side, int(side * height / width))
    else:
        size = (int(side * width / height), side)
    frames = np.stack([cv2.resize(f, size, interpolation=cv2.INTER_LINEAR) for f in frames])
    _, height, width, _ = frames.shape
    step = (max(height, width) - side) / (count - 1)
    found = []
    for k in range(count):
        start = int(k * step)
        if height >= width:
            found.append(frames[:, start : start + side])
        else:
            found.append(frames[:, :, start : start + side])
    return found


def normalised(frames: np.ndarray) -> np.ndarray:
    """fp32 [T, C, H, W]."""
    return ((frames.astype(np.float32) / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
