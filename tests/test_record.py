"""Records as they should be, damaged, and forged."""

from __future__ import annotations

import itertools
import random
import struct
import zlib

import numpy as np
import pytest
from prepared_sets import (
    facts,
    made_record,
    picture_file,
    six_videos,
    stored,
)

from vmae_jax.data.prepared.record import StoredVideo, record_bytes
from vmae_jax.data.video.reader import Limits, VideoError


@pytest.fixture(scope="module")
def videos():
    return six_videos()


@pytest.fixture(scope="module")
def small_record():
    return made_record([np.full((8, 8, 3), 50 * k, np.uint8) for k in range(3)])


def use(record):
    with StoredVideo(record, "shard 7, record 5").open() as reader:
        return reader.read(range(reader.frame_phase, reader.num_frames, reader.frame_step))


def test_every_cut_record_is_refused(small_record):
    for length in range(len(small_record)):
        with pytest.raises(VideoError, match="shard 7, record 5"):
            StoredVideo(small_record[:length], "shard 7, record 5")
    with pytest.raises(VideoError, match="do not fit its length"):
        StoredVideo(small_record + b"\0", "x")


def test_every_flipped_bit_is_noticed(small_record):
    for position, bit in itertools.product(range(len(small_record)), (0, 5)):
        damaged = bytearray(small_record)
        damaged[position] ^= 1 << bit
        with pytest.raises(VideoError, match="shard 7, record 5"):
            use(bytes(damaged))


def test_a_flipped_bit_in_a_frame_costs_that_frame_only(small_record):
    damaged = bytearray(small_record)
    damaged[-1] ^= 1
    with StoredVideo(bytes(damaged), "x").open() as reader:
        np.testing.assert_array_equal(reader.read([1, 5]), use(small_record)[:2])
        with pytest.raises(VideoError, match=r"part 2 .*checksum"):
            reader.read([9])


def test_strange_ids_survive():
    for clip_id in ("ünïcode/видео.mp4", "not \udcff utf-8", "x" * 3000):
        record = made_record([np.zeros((8, 8, 3), np.uint8)] * 3, clip_id=clip_id)
        assert StoredVideo(record, "x").facts.clip_id == clip_id


# Layout of a record, written down again: prefix, fixed fields, id, table.
PREFIX, FIXED = struct.Struct("<8sHI"), struct.Struct("<iIdHHHHHHBBHI")


FIELDS = [
    *("label", "num_frames", "fps", "source_height", "source_width", "height", "width"),
    *("step", "phase", "encoding", "quality", "id_bytes", "num_parts"),
]


def forged(record, *, ends=None, parts=None, magic=b"vmae-rec", version=1, **fields):
    """The record with other contents and right checksums, as nobody but a forger would make it."""
    values = dict(zip(FIELDS, FIXED.unpack_from(record, PREFIX.size), strict=True))
    table = PREFIX.size + FIXED.size + values["id_bytes"]
    clip_id = record[PREFIX.size + FIXED.size : table]
    old_ends = [
        struct.unpack_from("<I", record, table + 8 * k)[0] for k in range(values["num_parts"])
    ]
    payload = record[table + 8 * values["num_parts"] :]
    if parts is None:
        parts = [payload[a:b] for a, b in itertools.pairwise([0, *old_ends])]
    ends = ends or list(itertools.accumulate(map(len, parts)))
    values |= {"num_parts": len(parts), **fields}
    rows = [struct.pack("<II", e, zlib.crc32(p)) for e, p in zip(ends, parts, strict=True)]
    head = FIXED.pack(*values.values()) + clip_id + b"".join(rows)
    return PREFIX.pack(magic, version, zlib.crc32(head)) + head + b"".join(parts)


def test_forging_nothing_gives_the_same_record(small_record):
    assert forged(small_record) == small_record


GREY = np.full((8, 8, 3), 99, np.uint8)


CASES = {
    "magic": ({"magic": b"something"[:8]}, "no record"),
    "version": ({"version": 2}, "version=2"),
    "no frames": ({"num_frames": 0}, "num_frames"),
    "too many frames": ({"num_frames": 2**32 - 1}, "num_frames"),
    "more frames than parts": ({"num_frames": 14}, "num_parts=3"),
    "fewer frames than parts": ({"num_frames": 9}, "num_parts=3"),
    "rate 0": ({"fps": 0.0}, "fps"),
    "rate nan": ({"fps": float("nan")}, "fps"),
    "rate infinite": ({"fps": float("inf")}, "fps"),
    "no height": ({"height": 0}, "height"),
    "huge": ({"height": 65535, "width": 65535}, "height"),
    "taller than its frames": ({"height": 9}, "stored frame 0 has shape"),
    "smaller than its frames": ({"height": 7}, "stored frame 0 is damaged"),
    "turned": ({"height": 4, "width": 16}, "stored frame 0 has shape"),
    "step 0": ({"step": 0}, "frame_step"),
    "phase of the next step": ({"phase": 4}, "frame_phase"),
    "quality": ({"quality": 101}, "quality"),
    "unknown encoding": ({"encoding": 2}, "encoding=2"),
    "frames called video": ({"encoding": 1}, "frame_step"),
    "id longer than the record": ({"id_bytes": 65535}, "checksum"),
    "more parts than bytes": ({"num_parts": 2**32 - 1}, "checksum"),
    "no id": ({"id_bytes": 0}, "checksum|clip_id|num_parts|ends"),
    "ends descend": ({"ends": [700, 600, None]}, "ends"),
    "empty part": ({"parts": [b"", picture_file(GREY), picture_file(GREY)]}, "ends"),
    "ends beyond": ({"ends": [600, 1200, 2**32 - 1]}, "ends"),
    "no picture": ({"parts": [b"text", b"text", b"text"]}, "stored frame 0 is damaged"),
    "other picture": (
        {"parts": [picture_file(np.zeros((900, 900, 3), np.uint8))] * 3},
        "stored frame 0 is damaged",
    ),
    "cut picture": ({"parts": [picture_file(GREY)[:-200]] * 3}, "stored frame 0 is damaged"),
}


@pytest.mark.parametrize(("changes", "message"), CASES.values(), ids=CASES)
def test_hostile_records_are_refused(small_record, changes, message):
    changes = dict(changes)
    if None in changes.get("ends", ()):
        changes["ends"][-1] = 1900
    with pytest.raises(VideoError, match=message):
        use(forged(small_record, **changes))


def test_random_bytes_in_a_header_never_do_anything_but_be_refused(small_record):
    rng = random.Random(0)
    for _ in range(3000):
        head = FIXED.pack(*FIXED.unpack(rng.randbytes(FIXED.size)))
        body = head + small_record[PREFIX.size + FIXED.size :]
        size = rng.randrange(FIXED.size, len(body))
        crc = zlib.crc32(body[:size])
        with pytest.raises(VideoError):
            use(PREFIX.pack(b"vmae-rec", 1, crc) + body)


def test_a_video_file_in_a_record_must_have_the_frames_it_is_said_to_have(videos):
    record = stored(videos, 0, encoding="original", frame_step=1)
    with pytest.raises(VideoError, match="num_frames=40, contrary to"):
        StoredVideo(forged(record, num_frames=39), "x").open()
    with pytest.raises(VideoError):
        StoredVideo(forged(record, parts=[b"no video at all"]), "x").open()


def test_records_that_contradict_themselves_are_not_written(small_record):
    picture = picture_file(GREY)
    for wrong, parts in (
        (facts(), [picture] * 2),
        (facts(), [picture, b"", picture]),
        (facts(num_frames=0), []),
        (facts(frame_phase=4), [picture] * 2),
        (facts(clip_id=""), [picture] * 3),
        (facts(clip_id="x" * 70000), [picture] * 3),
        (facts(num_frames=Limits().max_frames + 1), [picture]),
    ):
        with pytest.raises(ValueError, match=r"parts|cannot be right|does not fit"):
            record_bytes(wrong, parts)
