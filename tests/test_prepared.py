"""Records, the readers of their frames, and prepared sets as data sets."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import pickle
import random
import struct
import threading
import zlib

import av
import numpy as np
import pytest
from PIL import Image
from video_corpus import encode, painted_numbers

from vmae_jax.data.prepared.preparation import prepare
from vmae_jax.data.prepared.prepared_source import PreparedSource
from vmae_jax.data.prepared.record import StoredVideo, VideoFacts, record_bytes
from vmae_jax.data.prepared.video_encoding import (
    Settings,
    encoded_video,
    frame_phase,
    resized,
    stored_size,
)
from vmae_jax.data.sources.cached_source import cached
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.data.video.decoders import open_video
from vmae_jax.data.video.reader import Limits, VideoError

FRAMES, HEIGHT, WIDTH = 40, 48, 64
SHARD = "shard-00000.array_record"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A source of six videos whose frames show their numbers; the last has two frames."""
    folder = tmp_path_factory.mktemp("videos")
    records = []
    for k in range(6):
        file, frames = str(folder / f"{k}.mp4"), 2 if k == 5 else FRAMES
        encode(file, frames=frames, size=(HEIGHT, WIDTH), first_number=20 * k)
        records.append(VideoRecord(file, f"{k}.mp4", label=10 - k))
    return VideoSource(records, class_names=[f"class {i}" for i in range(11)])


@pytest.fixture(scope="module")
def finished(videos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    prepare(videos, folder, Settings(shard_size=3), workers=1, say=lambda line: None)
    return folder


@pytest.fixture
def prepared_set(finished, tmp_path):
    """A copy of the set that may be damaged."""
    for file in finished.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def stored(source, i, **settings):
    result = encoded_video(source, Settings(**settings), i)
    assert "record" in result, result
    return result["record"].tobytes()


def all_frames(source, i):
    with source.open(i) as reader:
        return reader.read(range(reader.frame_phase, reader.num_frames, source.frame_step))


# Frames


@pytest.mark.parametrize("frame_step", [1, 2, 4])
def test_frames_keep_the_numbers_that_they_have_in_the_original(videos, frame_step):
    for i in range(6):
        with StoredVideo(stored(videos, i, frame_step=frame_step), "x").open() as reader:
            assert reader.num_frames == (2 if i == 5 else FRAMES)
            assert (reader.height, reader.width, reader.fps) == (HEIGHT, WIDTH, pytest.approx(25))
            np.testing.assert_allclose(reader.times, np.arange(reader.num_frames) / 25)
            assert reader.frame_step == frame_step
            kept = np.arange(reader.frame_phase, reader.num_frames, frame_step)
            # the numbers are painted into the frames
            assert painted_numbers(reader.read(kept)) == (20 * i + kept).tolist()


def test_frames_are_those_of_the_source_but_for_jpeg(videos):
    with StoredVideo(stored(videos, 1, frame_step=1, quality=95), "x").open() as reader:
        frames = reader.read(range(FRAMES))
    with videos.open(1) as original:
        error = frames.astype(float) - original.read(range(FRAMES))
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 38


def test_frames_come_in_the_order_asked_for_and_repeat():
    colours = [np.full((8, 8, 3), 20 * k, np.uint8) for k in range(10)]
    with StoredVideo(
        made_record(colours, num_frames=38, frame_step=4, frame_phase=1), "x"
    ).open() as r:
        frames = r.read([29, 5, 5, 37, 1])
        np.testing.assert_allclose(frames[:, 0, 0, 0], [140, 20, 20, 180, 0], atol=2)
        np.testing.assert_allclose(r.read([1, 5, 9])[:, 0, 0, 0], [0, 20, 40], atol=2)
        assert r.read([]).shape == (0, 8, 8, 3)
        assert r.read([1]).dtype == np.uint8


def test_each_frame_is_decoded_once(videos, monkeypatch):
    video = StoredVideo(stored(videos, 0), "x")
    taken, part = [], video.part
    monkeypatch.setattr(video, "part", lambda k: taken.append(k) or part(k))
    with video.open() as reader:
        first = reader.frame_phase
        reader.read([first + 8, first, first + 8, first + 8])
    assert sorted(taken) == [0, 2]


def test_frames_that_are_not_kept_are_refused_with_step_and_phase(videos):
    with StoredVideo(stored(videos, 0, frame_step=4), "bikes").open() as reader:
        phase = reader.frame_phase
        for wrong in (phase + 1, phase + 2, phase + 3):
            with pytest.raises(ValueError, match=f"frame {wrong} .*frame_step=4.*phase={phase}"):
                reader.read([phase, wrong])
        for outside in (-4, FRAMES, FRAMES + phase):
            with pytest.raises(ValueError, match="does not exist"):
                reader.read([outside])


def test_phases_are_spread_and_depend_on_the_id_alone():
    counts = np.bincount([frame_phase(f"{i}.mp4", 300, 4) for i in range(2000)], minlength=4)
    assert counts.min() > 430  # of 500; the standard deviation is 19
    digest = hashlib.sha256(b"a/b.mp4").hexdigest()
    assert frame_phase("a/b.mp4", 300, 4) == int(digest[:16], 16) % 4
    assert {frame_phase(f"{i}", 2, 4) for i in range(50)} == {0, 1}  # never behind the end
    assert {frame_phase(f"{i}", 300, 1) for i in range(50)} == {0}


def test_videos_are_reduced_and_never_enlarged(videos):
    assert stored_size(1080, 1920, 320) == (320, 569)  # 568.9
    assert stored_size(1920, 1080, 320) == (569, 320)
    assert stored_size(240, 320, 320) == (240, 320)
    assert stored_size(1080, 1920, 320, 2) == (320, 568)
    assert stored_size(241, 321, 320, 2) == (240, 320)
    with StoredVideo(stored(videos, 0, short_side=24), "x").open() as reader:
        assert reader.read([reader.frame_phase]).shape == (1, 24, 32, 3)
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    means = noise.reshape(24, 2, 32, 2, 3).mean((1, 3))  # of squares of four pixels
    np.testing.assert_allclose(resized(noise, (24, 32)), means, atol=0.75)
    assert resized(noise, (48, 64)) is noise


# Video encodings


def test_original_keeps_the_file(videos):
    video = StoredVideo(stored(videos, 2, encoding="original", frame_step=1), "x")
    with open(videos[2].path, "rb") as file:
        assert video.part(0) == file.read()
    with video.open() as reader, open_video(videos[2].path) as expected:
        np.testing.assert_array_equal(reader.read([3, 39]), expected.read([3, 39]))


def test_h264_has_all_frames_in_groups_of_12_with_every_second_one_discardable(videos):
    video = StoredVideo(stored(videos, 2, encoding="h264", frame_step=1), "x")
    with video.open() as reader:
        assert painted_numbers(reader.read(range(FRAMES))) == list(range(40, 40 + FRAMES))
        assert reader.fps == pytest.approx(25)
    with av.open(io.BytesIO(bytes(video.part(0)))) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        keys = [packet.pts for packet in packets if packet.is_keyframe]
        assert len(packets) == FRAMES
        assert len(keys) == 4  # 0, 12, 24, 36
    with av.open(io.BytesIO(bytes(video.part(0)))) as container:
        container.streams.video[0].codec_context.skip_frame = "NONREF"
        needed_by_others = len(list(container.decode(video=0)))
        # a group of 12 is I B P B P B P B P B P P: its last may not refer to the next group
        assert needed_by_others == 3 * 7 + 3
    again = stored(videos, 2, encoding="h264", frame_step=1)
    assert again == stored(videos, 2, encoding="h264", frame_step=1)


def test_h264_takes_odd_sizes(tmp_path):
    encode(str(tmp_path / "odd.mp4"), frames=14, size=(51, 67), pix_fmt="yuv444p", first_number=100)
    source = VideoSource([VideoRecord(str(tmp_path / "odd.mp4"), "odd")])
    with StoredVideo(stored(source, 0, encoding="h264", frame_step=1), "x").open() as reader:
        assert painted_numbers(reader.read(range(14))) == list(range(100, 114))
        assert (reader.height, reader.width) == (50, 66)


def test_parts_of_files_can_be_frames_but_not_original_files(videos):
    source = VideoSource([VideoRecord(videos[0].path, "0.mp4[8:30]", 8, 30)])
    with StoredVideo(stored(source, 0, frame_step=1), "x").open() as reader:
        assert painted_numbers(reader.read([0, 21])) == [8, 29]
    result = encoded_video(source, Settings(encoding="original", frame_step=1), 0)
    assert "not a whole file" in result["bad"]["reason"]


def test_settings_out_of_range_are_refused():
    for wrong in (
        {"frame_step": 3},
        {"encoding": "h264", "frame_step": 4},
        {"encoding": "gif"},
        {"quality": 0},
        {"quality": 101},
        {"short_side": 0},
        {"shard_size": 0},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            Settings(**wrong)


# Records from elsewhere


def picture_file(array, quality=90):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG", quality=quality)
    return file.getvalue()


def facts(**changes):
    base = VideoFacts(3, 10, 25.0, 8, 8, 8, 8, 4, 1, "jpeg", 90, "a clip")
    return dataclasses.replace(base, **changes)


def made_record(pictures, **changes):
    return record_bytes(facts(**changes), [picture_file(x) for x in pictures])


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


# Prepared sets


def test_a_set_lists_what_the_source_does(finished, videos):
    source = PreparedSource(finished)
    assert len(source) == 6
    assert [x.clip_id for x in source] == [x.clip_id for x in videos]
    assert [x.label for x in source] == [10, 9, 8, 7, 6, 5]
    assert source.class_names == videos.class_names
    assert source[4].path == str(finished / "shard-00001.array_record")
    for i in (5, 0, 4, 1):  # across shards and back
        numbers = painted_numbers(all_frames(source, i))
        phase = frame_phase(f"{i}.mp4", 2 if i == 5 else FRAMES, 4)
        assert numbers == list(range(20 * i + phase, 20 * i + (2 if i == 5 else FRAMES), 4))


def test_a_set_can_be_pickled_after_use(finished):
    source = PreparedSource(finished)
    expected = all_frames(source, 1)
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(all_frames(copy, 1), expected)
    assert copy.needs_isolation is False


def test_a_set_can_be_read_relative_to_the_working_directory(finished, monkeypatch):
    monkeypatch.chdir(finished.parent)
    assert len(all_frames(PreparedSource(finished.name), 0)) == 10


def test_threads_share_a_set(finished):
    source = PreparedSource(finished)
    expected = [all_frames(PreparedSource(finished), i) for i in range(6)]
    wrong = []

    def work(seed):
        rng = random.Random(seed)
        for _ in range(40):
            i = rng.randrange(6)
            if not np.array_equal(all_frames(source, i), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_making_a_source_opens_no_shard(prepared_set):
    shard = prepared_set / SHARD
    shard.write_bytes(bytes(shard.stat().st_size))
    source = PreparedSource(prepared_set)
    assert source[0].clip_id == "0.mp4"
    with pytest.raises(VideoError, match=SHARD):
        source.open(0)
    assert len(all_frames(source, 3)) == 10  # the other shard


def test_a_flipped_bit_anywhere_costs_one_named_record_or_nothing(prepared_set):
    shard = prepared_set / SHARD
    data = shard.read_bytes()
    expected = [all_frames(PreparedSource(prepared_set), i) for i in range(3)]
    filled = np.flatnonzero(np.frombuffer(data, np.uint8))
    # The index stands behind the last record: from there on, a flip may cost the whole shard.
    records_end = filled[filled < 60000][-1] - 600
    rng = random.Random(0)
    refused = 0
    for _ in range(250):
        position = int(rng.choice(filled))
        damaged = bytearray(data)
        damaged[position] ^= 1 << rng.randrange(8)
        shard.write_bytes(damaged)
        source, lost = PreparedSource(prepared_set), 0
        for i in range(3):
            try:
                np.testing.assert_array_equal(all_frames(source, i), expected[i])
            except VideoError as error:
                assert SHARD in str(error)  # noqa: PT017
                lost += 1
        assert lost <= 1 or position > records_end
        refused += lost
    assert refused > 150  # most of the bytes do matter


def test_missing_and_truncated_shards_are_told_at_once(prepared_set):
    shard = prepared_set / SHARD
    data = shard.read_bytes()
    source = PreparedSource(prepared_set)
    shard.write_bytes(data[:-70000])
    with pytest.raises(ValueError, match=f"{SHARD}.*has 61072 bytes instead of 131072"):
        PreparedSource(prepared_set)
    with pytest.raises(VideoError, match=f"{SHARD}.*no whole shard"):
        source.open(1)  # one that became so later
    shard.unlink()
    with pytest.raises(ValueError, match=f"{SHARD}.*is missing"):
        PreparedSource(prepared_set)
    with pytest.raises(VideoError, match=f"{SHARD}.*no such shard"):
        source.open(1)


def test_shards_that_the_manifest_does_not_describe_are_noticed(prepared_set):
    other = prepared_set / "shard-00001.array_record"
    (prepared_set / SHARD).write_bytes(other.read_bytes())  # of the same size
    source = PreparedSource(prepared_set)
    with pytest.raises(VideoError, match=r"it holds \('3.mp4', 7, 40, 4\) where"):
        source.open(0)


def edit_manifest(folder, edit):
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    edit(manifest)
    file.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(version=2), "is of format"),
        (lambda m: m.update(format="else"), "is of format"),
        (lambda m: m.pop("shards"), r"is damaged \("),
        (lambda m: m.update(shards=3), r"is damaged \("),
        (lambda m: m["shards"][0].update(file="../../etc/passwd"), r"is damaged \("),
        (lambda m: m["shards"][0].update(file="shard-00001.array_record"), r"is damaged \("),
        (lambda m: m["settings"].update(encoding="gif"), r"is damaged \("),
        (lambda m: m["settings"].pop("frame_step"), r"is damaged \("),
        (lambda m: m["shards"][0]["records"][0].pop("label"), r"is damaged \("),
        (lambda m: m["shards"][0]["records"].pop(), None),
        (lambda m: m["shards"][0]["records"].reverse(), None),
    ],
)
def test_damaged_manifests_are_refused(prepared_set, edit, message):
    edit_manifest(prepared_set, edit)
    if message is None:  # only seen when the shard is opened
        with pytest.raises(VideoError, match=SHARD):
            PreparedSource(prepared_set).open(0)
    else:
        with pytest.raises(ValueError, match=message):
            PreparedSource(prepared_set)


def test_no_manifest_and_garbage_are_refused(prepared_set):
    file = prepared_set / "manifest.json"
    for text in ("", "{", "[" * 100_000, "[]", "null"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"is damaged \("):
            PreparedSource(prepared_set)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"is damaged \("):
        PreparedSource(prepared_set)
    file.unlink()
    with pytest.raises(ValueError, match="not finished; run `python -m vmae_jax prepare`"):
        PreparedSource(prepared_set)


@pytest.mark.parametrize(
    ("frame_step", "frame_stride", "uneven", "needed"),
    [
        (4, 4, False, None),
        (4, 8, False, None),
        (4, 2, False, 2),
        (4, 6, False, 2),
        (4, 3, False, 1),
        (4, 4, True, 1),
        (2, 2, False, None),
        (2, 1, False, 1),
        (1, 3, False, None),
        (1, 4, True, None),
    ],
)
def test_clips_that_a_set_cannot_serve_are_refused(
    prepared_set, frame_step, frame_stride, uneven, needed
):
    edit_manifest(prepared_set, lambda m: m["settings"].update(frame_step=frame_step))
    source = PreparedSource(prepared_set)
    if needed is None:
        source.check_serves(frame_stride, uneven)
    else:
        with pytest.raises(ValueError, match=f"prepare with --frame-step {needed}"):
            source.check_serves(frame_stride, uneven)


def test_whole_files_of_a_set_cannot_be_opened(finished):
    source = PreparedSource(finished)
    with pytest.raises(ValueError, match="by number"):
        source.open_whole(source[0])
    with pytest.raises(ValueError, match=r"leave data\.cache_size out"):
        cached(source, (32, 32))


def test_sets_at_addresses_are_refused():
    with pytest.raises(ValueError, match="path='gs://bucket/set' is remote"):
        PreparedSource("gs://bucket/set")


def test_sets_of_video_files_need_isolation(videos, tmp_path):
    settings = Settings(encoding="original", frame_step=1)
    prepare(videos, tmp_path, settings, workers=1, say=lambda line: None)
    source = PreparedSource(tmp_path)
    assert source.needs_isolation
    with source.open(3) as reader:
        assert painted_numbers(reader.read([1, 0, 39])) == [61, 60, 99]
    source.check_serves(3, uneven=True)
