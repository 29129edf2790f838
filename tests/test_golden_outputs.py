"""The published checkpoints give the outputs that transformers wrote down for them.

The tests marked `network` download up to 2.5 GB each and are skipped by default. What computes
their values is also run on small models from a hub on this machine, where the expected values are
those of transformers' own classes.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hub_server import repository
from original_files import (
    files_of,
    random_model,
    run_python,
    running_hub,
    their_processor,
)

from vmae_jax import (
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEImageProcessor,
)
from vmae_jax.weights.torch_file import open_torch_file

# From transformers' conversion script and its tests of VideoMAE. The clip was not normalised with
# the checkpoints' own statistics there.
STATISTICS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
CLASSIFIERS = {  # number of classes, the first three logits
    "MCG-NJU/videomae-base-finetuned-kinetics": (400, [0.3669, -0.0688, -0.2421]),
    "MCG-NJU/videomae-base-short-finetuned-kinetics": (400, [0.6588, 0.0990, -0.2493]),
    "MCG-NJU/videomae-large-finetuned-kinetics": (400, [0.0771, 0.0011, -0.3625]),
    "MCG-NJU/videomae-huge-finetuned-kinetics": (400, [0.2433, 0.1632, -0.4894]),
    # with 16 heads, as that script says, although the original models have 6
    "MCG-NJU/videomae-small-finetuned-kinetics": (400, [-0.9291, -0.4061, -0.9307]),
    "MCG-NJU/videomae-small-finetuned-ssv2": (174, [0.2671, -0.4689, -0.8235]),
    "MCG-NJU/videomae-base-finetuned-ssv2": (174, [0.1961, -0.8337, -0.6389]),
    "MCG-NJU/videomae-base-short-finetuned-ssv2": (174, [-0.0537, -0.1539, -0.3266]),
}
TOLERANCE = {"MCG-NJU/videomae-base-finetuned-kinetics": 2e-4}  # where their tests allow more
PRETRAINED = {  # the first three values of the first three hidden tubelets
    "MCG-NJU/videomae-base": [
        [0.7739, 0.7968, 0.7089],
        [0.6701, 0.7487, 0.6209],
        [0.4287, 0.5158, 0.4773],
    ],
    "MCG-NJU/videomae-base-short": [
        [0.7994, 0.9612, 0.8508],
        [0.7401, 0.8958, 0.8302],
        [0.5862, 0.7468, 0.7325],
    ],
    "MCG-NJU/videomae-large": [
        [0.7149, 0.7997, 0.6966],
        [0.6768, 0.7869, 0.6948],
        [0.5139, 0.6221, 0.5605],
    ],
    "MCG-NJU/videomae-base-short-ssv2": [
        [0.4712, 0.5296, 0.5786],
        [0.2278, 0.2729, 0.4026],
        [0.0352, 0.0730, 0.2506],
    ],
    "MCG-NJU/videomae-base-ssv2": [
        [0.8131, 0.8727, 0.8546],
        [0.7366, 0.9377, 0.8870],
        [0.5935, 0.8874, 0.8564],
    ],
}
LOSSES = {True: 0.5142, False: 0.6469}  # of base-short, by norm_pix_loss


def read_clip():
    from huggingface_hub import hf_hub_download

    path = hf_hub_download(
        "hf-internal-testing/spaghetti-video", "eating_spaghetti.npy", repo_type="dataset"
    )
    processor = VideoMAEImageProcessor(**STATISTICS)
    return processor(list(np.load(path)), return_tensors="np")


def read_mask():
    from huggingface_hub import hf_hub_download

    path = hf_hub_download("hf-internal-testing/bool-masked-pos", "bool_masked_pos.pt")
    with open_torch_file(path) as file:
        return file.tree.read()


def classify(repo_id):
    """Shape of the logits, and the first three."""
    model = VideoMAEForVideoClassification.from_pretrained(repo_id)
    logits = model(**read_clip()).logits
    return logits.shape, np.asarray(logits[0, :3])


def predict(repo_id, **options):
    """Shape of the predictions, a corner of them, and the loss."""
    model = VideoMAEForPreTraining.from_pretrained(repo_id, **options)
    outputs = model(**read_clip(), bool_masked_pos=read_mask())
    return outputs.logits.shape, np.asarray(outputs.logits[0, :3, :3]), float(outputs.loss)


@pytest.mark.network
@pytest.mark.parametrize("repo_id", CLASSIFIERS)
def test_a_published_classifier_gives_the_recorded_logits(repo_id):
    num_labels, expected = CLASSIFIERS[repo_id]
    shape, found = classify(repo_id)
    assert shape == (1, num_labels)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE.get(repo_id, 1e-4))


@pytest.mark.network
@pytest.mark.parametrize("repo_id", PRETRAINED)
def test_a_published_pretrained_model_gives_the_recorded_predictions(repo_id):
    shape, found, _ = predict(repo_id)
    assert shape == (1, 1408, 1536)
    np.testing.assert_allclose(found, PRETRAINED[repo_id], rtol=0, atol=1e-4)


@pytest.mark.network
@pytest.mark.parametrize("norm_pix_loss", LOSSES)
def test_a_published_pretrained_model_gives_the_recorded_losses(norm_pix_loss):
    _, _, loss = predict("MCG-NJU/videomae-base-short", norm_pix_loss=norm_pix_loss)
    assert loss == pytest.approx(LOSSES[norm_pix_loss], rel=0, abs=1e-4)


# The same without the network


COMPUTE = """
import json
from test_golden_outputs import classify, predict

results = [classify("MCG-NJU/small-finetuned")]
results += [predict("MCG-NJU/small", norm_pix_loss=norm) for norm in (True, False)]
print(json.dumps([[shape, corner.tolist(), *loss] for shape, corner, *loss in results]))
"""


def test_golden_values_of_small_models_are_found_from_download_to_slice(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    video = np.random.default_rng(0).integers(0, 256, (16, 36, 64, 3), np.uint8)
    mask = torch.from_numpy(np.random.default_rng(1).permutation(1568) < 1408)[None]
    array, tensor = io.BytesIO(), io.BytesIO()
    np.save(array, video)
    torch.save(mask, tensor)
    classifier = random_model(transformers.VideoMAEForVideoClassification, num_labels=5)
    pretrained = random_model(transformers.VideoMAEForPreTraining, use_mean_pooling=False)
    files = {
        "MCG-NJU/small-finetuned": files_of(classifier, tmp_path / "classifier"),
        "MCG-NJU/small": files_of(pretrained, tmp_path / "pretrained"),
        "hf-internal-testing/spaghetti-video": {"eating_spaghetti.npy": array.getvalue()},
        "hf-internal-testing/bool-masked-pos": {"bool_masked_pos.pt": tensor.getvalue()},
    }
    with running_hub() as hub:
        hub.repositories = {name: repository(content) for name, content in files.items()}
        found = run_python(["-c", COMPUTE], tmp_path, HF_ENDPOINT=hub.url)
    assert found.returncode == 0, found.stderr

    pixels = their_processor(**STATISTICS)(list(video), return_tensors="pt").pixel_values
    logits = classifier(pixels).logits
    expected = [[logits.shape, logits[0, :3]]]
    for pretrained.config.norm_pix_loss in (True, False):
        output = pretrained(pixels, bool_masked_pos=mask)
        expected.append([output.logits.shape, output.logits[0, :3, :3], output.loss])
    for ours, theirs in zip(json.loads(found.stdout), expected, strict=True):
        assert ours[0] == list(theirs[0])
        for value, wanted in zip(ours[1:], theirs[1:], strict=True):
            np.testing.assert_allclose(value, wanted.numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({}, "HF_HUB_OFFLINE=0 pytest -m network"),
        # no program may listen there
        (
            {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"},
            "the hub at http://127.0.0.1:9 cannot be reached",
        ),
    ],
    ids=["by default", "without a connection"],
)
def test_without_a_hub_the_network_tests_are_skipped_and_say_why(tmp_path, environment, reason):
    options = ["-rs", "-m", "network", "-p", "no:cacheprovider"]
    found = run_python(["-m", "pytest", *options, str(Path(__file__))], tmp_path, **environment)
    assert found.returncode == 0, found.stdout + found.stderr
    number = len(CLASSIFIERS) + len(PRETRAINED) + len(LOSSES)
    assert f"{number} skipped" in found.stdout
    assert reason in found.stdout
