import sys

import pytest
import tensorflow_datasets as tfds
from tfds_sets import NAMES, build_listed, refuse_network, write_listed, write_videos

from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.data.tfds.builders import VideoFolder
from vmae_jax.data.tfds.tfds_source import TfdsSource


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    refuse_network(monkeypatch)


@pytest.fixture
def listed(tmp_path):
    return write_listed(tmp_path)


def test_tfds_reads_a_set_without_our_code_and_without_tensorflow(listed):
    folder, _ = build_listed(listed)
    builder = tfds.builder_from_directory(folder)
    assert builder.info.features["label"].num_classes == 3  # labels 0, 1, 2 are in the lists
    assert builder.info.splits["train"].num_examples == 7
    examples = builder.as_data_source("train")
    assert {(x["clip_id"].decode(), x["label"]) for x in examples} == {
        (NAMES[i], i % 3) for i in range(7)
    }
    assert "tensorflow" not in sys.modules


def test_the_order_is_the_one_of_tfds_own_writer(listed, tmp_path):
    # The reference is a GeneratorBasedBuilder, whose examples TFDS orders by itself.
    class Reference(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None

        def _info(self):
            features = tfds.features.FeaturesDict({"clip_id": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from ((name, {"clip_id": name}) for name in NAMES[:7])

    reference = Reference(data_dir=str(tmp_path / "reference"), file_format="array_record")
    reference.download_and_prepare(download_dir=str(tmp_path / "downloads"))
    expected = [x["clip_id"].decode() for x in reference.as_data_source("train")]
    assert expected != sorted(expected)  # or the order would prove nothing
    folder, _ = build_listed(listed, num_shards=3)
    assert [record.clip_id for record in TfdsSource(folder, "train")] == expected


def test_limits_of_records_and_class_names_are_kept(tmp_path):
    write_videos(tmp_path, "a.mp4")
    records = [
        VideoRecord(str(tmp_path / "a.mp4"), "whole"),
        VideoRecord(str(tmp_path / "a.mp4"), "frames", 4, 9, label=1),
        VideoRecord(str(tmp_path / "a.mp4"), "seconds", start_time=0.5, stop_time=2.25),
    ]
    builder = VideoFolder(
        sources={"train": VideoSource(records, class_names=("still", "moving"))},
        data_dir=str(tmp_path / "sets"),
    )
    builder.download_and_prepare(download_dir=str(tmp_path / "downloads"))
    source = TfdsSource(tmp_path / "sets", "train")
    assert source.class_names == ("still", "moving")
    found = {r.clip_id: (r.start, r.stop, r.start_time, r.stop_time, r.label) for r in source}
    assert found == {
        "whole": (0, None, None, None, -1),
        "frames": (4, 9, None, None, 1),
        "seconds": (0, None, 0.5, 2.25, -1),
    }
    stored = {x["clip_id"].decode(): x for x in builder.as_data_source("train")}
    assert (stored["frames"]["start"], stored["frames"]["stop"]) == (4, 9)
    assert (stored["whole"]["stop"], stored["seconds"]["stop_time"]) == (-1, 2.25)
    assert builder.info.features["label"].names == ["still", "moving"]


def test_labels_that_are_no_single_class_are_in_the_index(tmp_path):
    labels = {"several": (0, 4), "none": (), "target": 0.5, "targets": (0.5, 1.0), "one": 2}
    for name in labels:
        write_videos(tmp_path, f"{name}.mp4")
    records = [VideoRecord(str(tmp_path / f"{x}.mp4"), x, label=y) for x, y in labels.items()]
    builder = VideoFolder(sources={"train": VideoSource(records)}, data_dir=str(tmp_path / "sets"))
    builder.download_and_prepare(download_dir=str(tmp_path / "downloads"))
    source = TfdsSource(tmp_path / "sets", "train")
    assert {record.clip_id: record.label for record in source} == labels
    stored = {x["clip_id"].decode(): x["label"] for x in builder.as_data_source("train")}
    assert stored == {**dict.fromkeys(labels, -1), "one": 2}
    assert builder.info.features["label"].num_classes == 5
