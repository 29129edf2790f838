"""Small videos, sets prepared of them, and records made by hand, for tests of prepared sets."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import tempfile
from pathlib import Path

from PIL import Image
from video_corpus import encode

from vmae_jax.data.prepared.preparation import prepare
from vmae_jax.data.prepared.record import VideoFacts, record_bytes
from vmae_jax.data.prepared.video_encoding import Settings, encoded_video
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource

FRAMES, HEIGHT, WIDTH = 40, 48, 64
SMALL = Settings(shard_size=3)
SHARD = "shard-00000.array_record"


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="prepared_sets_")  # deleted when Python ends


def quietly(source, dest, settings=SMALL, **options):
    """The index of a set that is prepared without a word."""
    return prepare(source, dest, settings, **{"workers": 2, "say": lambda line: None, **options})


# Six videos whose frames show their numbers.


@functools.cache
def six_videos() -> VideoSource:
    """Video k shows 20 k, 20 k + 1, ... in its frames; the last has two of them."""
    folder = Path(_folder().name, "six")
    folder.mkdir()
    records = []
    for k in range(6):
        file, frames = str(folder / f"{k}.mp4"), 2 if k == 5 else FRAMES
        encode(file, frames=frames, size=(HEIGHT, WIDTH), first_number=20 * k)
        records.append(VideoRecord(file, f"{k}.mp4", label=10 - k))
    return VideoSource(records, class_names=[f"class {i}" for i in range(11)])


@functools.cache
def set_of_six() -> Path:
    """The set prepared of `six_videos`, two shards; it is not to be changed."""
    folder = Path(_folder().name, "set_of_six")
    quietly(six_videos(), folder, workers=1)
    return folder


def copied(folder: Path, to: Path) -> Path:
    """A copy of a set that may be damaged."""
    to.mkdir(exist_ok=True)
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def edit_index(folder, edit):
    """Changes the index of a set; `edit` is given it."""
    file = folder / "index.json"
    index = json.loads(file.read_text())
    edit(index)
    file.write_text(json.dumps(index))


def stored(source, i, **settings):
    """The record of video i, as `prepare` stores it."""
    result = encoded_video(source, Settings(**settings), i)
    assert "record" in result, result
    return result["record"].tobytes()


def all_frames(source, i):
    """The frames of record i of a prepared set."""
    with source.open(i) as reader:
        return reader.read(range(reader.frame_phase, reader.num_frames, source.frame_step))


# Twelve videos in a folder.

VIDEOS = 12
# what `python -m vmae_jax prepare` is to be given to make what `quietly` makes
COMMAND = ("--option", "held_out_ratio=0", "--shard-size", "3", "--workers", "2")


@functools.cache
def twelve_videos() -> Path:
    """A folder with VIDEOS small videos, the first frame of number k showing 10 k."""
    folder = Path(_folder().name, "twelve")
    folder.mkdir()
    for k in range(VIDEOS):
        encode(str(folder / f"{k:02}.mp4"), frames=FRAMES, size=(48, 64), first_number=10 * k)
    return folder


def source_of(folder):
    """The videos of a folder."""
    files = sorted(Path(folder).glob("*.mp4"))
    return VideoSource([VideoRecord(str(file), file.name) for file in files])


@functools.cache
def unbroken_set() -> dict[str, bytes]:
    """The files of the set of `twelve_videos` after a run that nothing disturbed."""
    folder = Path(_folder().name, "unbroken")
    quietly(source_of(twelve_videos()), folder)
    found = contents(folder)
    assert set(found) == {
        *(f"shard-0000{k}.{kind}" for k in range(4) for kind in ("array_record", "json")),
        *("index.json", "settings.json", "bad_files.jsonl"),
    }
    return found


def contents(folder):
    """{name: bytes} of the files of a set."""
    return {
        file.name: file.read_bytes()
        for file in Path(folder).iterdir()
        if not file.name.startswith(".lock")
    }


def put(files: dict[str, bytes], folder: Path) -> Path:
    """A folder with these files."""
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


# Records made by hand.


def picture_file(array, quality=90):
    """A JPEG file."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG", quality=quality)
    return file.getvalue()


def facts(**changes):
    """Of a video of ten frames of 8 x 8, three of them kept."""
    base = VideoFacts(3, 10, 25.0, 8, 8, 8, 8, 4, 1, "jpeg", 90, "a clip")
    return dataclasses.replace(base, **changes)


def made_record(pictures, **changes):
    """The record of these pictures."""
    return record_bytes(facts(**changes), [picture_file(x) for x in pictures])
