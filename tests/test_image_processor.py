"""The processor against transformers' own (the PIL one of 5.23), bit for bit, and by itself.

Expected arrays are the original's unless a comment says otherwise.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import hub_server
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hub_server import Repository, commit_hash
from PIL import Image

import vmae_jax
from vmae_jax import VideoMAEImageProcessor, patches
from vmae_jax.huggingface.image_processor import PROCESSOR_FILE, ChannelDimension

SMALL = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
AS_IS = dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), False)
SIZES = {  # (height, width); the crop is 16 x 16
    "landscape": (24, 32),
    "portrait": (40, 22),
    "odd": (17, 23),
    "smaller than the crop": (9, 7),
    "equal to the crop": (16, 16),
    "very wide": (11, 95),
    "very tall": (95, 11),
    "wider, not taller": (13, 40),
}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
OPTIONS = {
    "all steps": {},
    "no resize": {"do_resize": False},
    "no crop": {"do_center_crop": False},
    "no rescale": {"do_rescale": False},
    "no normalization": {"do_normalize": False},
    "no step": AS_IS,
    "resize only": {**AS_IS, "do_resize": True},
    "crop only": {**AS_IS, "do_center_crop": True},
    "rescale only": {**AS_IS, "do_rescale": True},
    "normalize only": {**AS_IS, "do_normalize": True},
    "crop and normalize": {"do_resize": False, "do_rescale": False},
    "other short edge": {"size": {"shortest_edge": 27}},
    "short edge as int": {"size": 19},
    "height and width": {"size": {"height": 13, "width": 30}},
    "height and width, no crop": {"size": (21, 10), "do_center_crop": False},
    "other crop": {"crop_size": {"height": 7, "width": 33}},
    "odd crop, larger": {"crop_size": {"height": 41, "width": 18}},
    "crop as int": {"crop_size": 11},
    "crop as pair": {"crop_size": [5, 20]},
    "bicubic": {"resample": Image.Resampling.BICUBIC},
    "nearest": {"resample": Image.Resampling.NEAREST},
    "lanczos, number": {"resample": 1},
    "ImageNet": IMAGENET,
    "one mean": {"image_mean": 0.3, "image_std": 0.7},
    "other factor": {"rescale_factor": 1 / 127.5},
}


@pytest.fixture(scope="module")
def original():
    pytest.importorskip("torch")
    module = "transformers.models.videomae.image_processing_pil_videomae"
    return pytest.importorskip(module).VideoMAEImageProcessorPil


def frames_of(size, number=2, dtype=np.uint8, channels=3):
    values = np.random.default_rng(sum(size)).integers(0, 256, (number, *size, channels))
    return values.astype(dtype)


def assert_same(ours, theirs):
    ours, theirs = ours["pixel_values"], theirs["pixel_values"]
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)  # shapes too


# Bit for bit


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", SIZES)
def test_bytes_become_the_original_s_bits(original, size, options):
    frames = list(frames_of(SIZES[size]))
    options = {**SMALL, **OPTIONS[options]}
    theirs = original(**options)(frames, return_tensors="np")
    assert_same(VideoMAEImageProcessor(**options)(frames, return_tensors="np"), theirs)
    ours = VideoMAEImageProcessor()(frames, return_tensors="np", **options)
    assert_same(ours, theirs)


def test_the_defaults_are_the_original_s(original):
    frames = list(frames_of((240, 321)))
    ours, theirs = VideoMAEImageProcessor(), original()
    assert ours.to_dict() == json.loads(theirs.to_json_string())
    assert_same(ours(frames, return_tensors="np"), theirs(frames, return_tensors="np"))


def as_pil(frames, mode="RGB"):
    return [Image.fromarray(frame).convert(mode) for frame in frames]


def as_torch(array):
    return pytest.importorskip("torch").from_numpy(np.ascontiguousarray(array))


def first(frames):
    return np.moveaxis(frames, -1, -3)


GREY = {"image_mean": 0.5, "image_std": 0.5}
KINDS = {  # from frames [2, H, W, 3]: (videos, options)
    "PIL image": lambda x: (as_pil(x)[0], {}),
    "PIL images": lambda x: (as_pil(x), {}),
    "batch of PIL images": lambda x: ([as_pil(x), as_pil(x[::-1])], {}),
    "grey PIL images": lambda x: (as_pil(x, "L"), GREY),
    "black and white PIL images": lambda x: (as_pil(x, "1"), GREY),
    "RGBA": lambda x: (as_pil(x, "RGBA"), {"image_mean": 0.5, "image_std": [0.1, 0.2, 0.3, 0.4]}),
    "grey and alpha": lambda x: (as_pil(x, "LA"), GREY),
    "array": lambda x: (x[0], {}),
    "arrays": lambda x: (list(x), {}),
    "tuple": lambda x: (tuple(x), {}),
    "channels first": lambda x: (list(first(x)), {}),
    "4-D array": lambda x: (x, {}),
    "4-D array, channels first": lambda x: (first(x), {}),
    "batch of lists": lambda x: ([list(x), list(x[::-1])], {}),
    "batch of tuples": lambda x: ((tuple(x), tuple(x[::-1])), {}),
    "batch of 4-D arrays": lambda x: ([x, x[::-1]], {}),
    "one channel": lambda x: (x[..., :1], GREY),
    "two axes": lambda x: ([list(x[..., 0])], GREY),
    "PIL image and array": lambda x: ([as_pil(x)[0], x[1]], {}),
    "layouts mixed": lambda x: ([first(x)[0], x[1]], {}),
    "torch frames": lambda x: (list(as_torch(x)), {}),
    "torch 4-D": lambda x: (as_torch(first(x)), {}),
    "torch batch": lambda x: ([as_torch(x), as_torch(x)], {}),
    "torch float": lambda x: (as_torch(x).float(), {}),
    "int64": lambda x: (x.astype(np.int64), {}),
    "int64, not resized": lambda x: (x.astype(np.int64) * 3 - 99, {"do_resize": False}),
    "whole float64": lambda x: (x.astype(np.float64), {}),
    "whole float32": lambda x: (x.astype(np.float32), {}),
    "nearly whole": lambda x: (x + 1e-6 * (x % 255), {}),
    "float32 in [0, 1]": lambda x: ((x / 255).astype(np.float32), {"do_rescale": False}),
    "float64 in [0, 1]": lambda x: (x / 255, {"do_rescale": False}),
    "float64 in [0, 1], rescaled": lambda x: (x / 255, {}),
    "float64 in [0, 1], not resized": lambda x: (
        x / 255,
        {"do_rescale": False, "do_resize": False},
    ),
    "float16 in [0, 1]": lambda x: ((x / 255).astype(np.float16), {"do_rescale": False}),
    "float16 in [0, 1], not resized": lambda x: (
        (x / 255).astype(np.float16),
        {"do_rescale": False, "do_resize": False},
    ),
    "floats of any range, not resized": lambda x: (x * 1.7 - 40, {"do_resize": False}),
    "0 and 1 in floats": lambda x: ((x > 99).astype(np.float32), {"do_rescale": False}),
    "bool": lambda x: (x > 99, {}),
    "reversed view": lambda x: (x[:, ::-1, ::-1], {}),
}


@pytest.mark.filterwarnings("ignore:the values of the frames lie in")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(21, 30), (12, 14)], ids=str)
def test_every_kind_of_input_becomes_the_original_s_bits(original, kind, size):
    videos, options = KINDS[kind](frames_of(size))
    theirs = original(**SMALL)(videos, return_tensors="np", **options)
    assert_same(VideoMAEImageProcessor(**SMALL)(videos, return_tensors="np", **options), theirs)


@pytest.mark.parametrize("shape", [(3, 18, 3), (1, 18, 3), (3, 18, 1), (4, 20, 3)], ids=str)
def test_ambiguous_channels_are_taken_from_the_first_axis(original, shape):
    frames = [frames_of(shape[:2], 1, channels=shape[2])[0]]
    with pytest.warns(UserWarning, match="could be the channels: the first was taken"):
        ours = VideoMAEImageProcessor(**SMALL, **GREY)(frames, return_tensors="np")
    assert_same(ours, original(**SMALL, **GREY)(frames, return_tensors="np"))
    assert ours.pixel_values.shape[2] == shape[0]


def test_images_of_pil_are_never_ambiguous(original):
    images = as_pil(frames_of((3, 18)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = VideoMAEImageProcessor(**SMALL)(images, return_tensors="np")
    assert_same(ours, original(**SMALL)(images, return_tensors="np"))


BAD_VALUES = {
    "whole, negative": (lambda x: x.astype(np.int64) - 300, r"whole values .*range \[0, 255\]"),
    "whole, above": (lambda x: x.astype(np.float32) + 1, r"whole values .*\[0, 255\]"),
    "fractions above 1": (lambda x: x / 99, r"fractional values .*range \[0, 1\].*do_resize=False"),
    "fractions below 0": (lambda x: x / 255 - 0.5, r"fractional values .*range \[0, 1\]"),
    "standard normal": (lambda x: np.random.default_rng(0).normal(size=x.shape), "fractional"),
    "NaN": (lambda x: x * np.nan, r"\[nan, nan\]"),
}


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # by the original
@pytest.mark.parametrize("values", BAD_VALUES)
def test_values_out_of_range_cannot_be_resized_as_in_the_original(original, values):
    change, message = BAD_VALUES[values]
    video = change(frames_of((20, 30)))
    with pytest.raises(ValueError, match="cannot be converted to uint8"):
        original(**SMALL)(video)
    with pytest.raises(ValueError, match=message):
        VideoMAEImageProcessor(**SMALL)(video)


# Channels: as many as there are means

FOUR = {"image_mean": [0.1, 0.2, 0.3, 0.4], "image_std": [0.5, 0.6, 0.7, 0.8]}


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("channels", [3, 4])
def test_the_layout_of_the_input_may_be_given(original, layout, channels):
    frames = frames_of((20, 30), channels=channels)
    frames = list(first(frames) if layout == "channels_first" else frames)
    options = {"input_data_format": layout, **(FOUR if channels == 4 else {})}
    ours = VideoMAEImageProcessor(**SMALL)(frames, return_tensors="np", **options)
    assert ours.pixel_values.shape == (1, 2, channels, 16, 16)
    assert_same(ours, original(**SMALL)(frames, return_tensors="np", **options))
    with pytest.raises(ValueError, match=r"input_data_format='last' is unknown; choose 'chann"):
        VideoMAEImageProcessor()(frames, input_data_format="last")


def test_a_given_layout_settles_what_is_ambiguous(original):
    frames = [frames_of((3, 18))[0]]  # [3, 18, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = VideoMAEImageProcessor(**SMALL)(
            frames, return_tensors="np", input_data_format="channels_last"
        )
    theirs = original(**SMALL)(frames, return_tensors="np", input_data_format="channels_last")
    assert_same(ours, theirs)


@pytest.mark.parametrize("bands", [2, 5, 6])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_frames_may_have_as_many_bands_as_there_are_means(original, bands, layout):
    """Each band is what the original makes of it alone."""
    video = frames_of((20, 30), channels=bands)
    means, deviations = np.linspace(0.1, 0.9, bands), np.linspace(0.2, 0.5, bands)
    processor = VideoMAEImageProcessor(
        **SMALL, image_mean=means.tolist(), image_std=deviations.tolist()
    )
    given = first(video) if layout == "channels_first" else video
    found = processor(list(given), return_tensors="np").pixel_values
    assert found.shape == (1, 2, bands, 16, 16)
    for band in range(bands):
        theirs = original(**SMALL)(
            list(video[..., band : band + 1]),
            return_tensors="np",
            image_mean=means[band],
            image_std=deviations[band],
        )
        np.testing.assert_allclose(
            found[:, :, band], theirs["pixel_values"][:, :, 0], rtol=1e-6, atol=1e-6
        )


def test_the_processor_beside_a_six_band_model_reads_six_bands(tmp_path):
    config = vmae_jax.VideoMAEConfig(
        image_size=16, patch_size=8, num_frames=2, num_channels=6, hidden_size=8,
        num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
    )  # fmt: skip
    vmae_jax.VideoMAEModel(config).save_pretrained(tmp_path)
    processor = VideoMAEImageProcessor.from_pretrained(tmp_path)
    pixel_values = processor(frames_of((20, 30), channels=6), return_tensors="np").pixel_values
    assert pixel_values.shape == (1, 2, 6, 16, 16)


GREY_VIDEOS = {  # from grey frames [2, H, W]
    "frames": list,
    "frame": lambda x: x[0],
    "list of lists": lambda x: [list(x)],
    "one channel": lambda x: x[..., None],
    "one channel first": lambda x: x[:, None],
    "PIL, 8 bits": lambda x: [Image.fromarray(frame) for frame in x],
    "PIL, 32 bits": lambda x: [Image.fromarray(frame.astype(np.int32)) for frame in x],
    "PIL, floats": lambda x: [Image.fromarray(frame.astype(np.float32)) for frame in x],
}


@pytest.mark.parametrize("kind", GREY_VIDEOS)
def test_grey_frames_become_three_equal_channels(original, kind):
    grey = frames_of((20, 30))[..., 0]
    coloured = np.repeat(grey[..., None], 3, axis=-1)
    expected = original(**SMALL, **IMAGENET)(list(coloured), return_tensors="np")["pixel_values"]
    videos = GREY_VIDEOS[kind](grey)
    found = VideoMAEImageProcessor(**SMALL, **IMAGENET)(videos, return_tensors="np").pixel_values
    np.testing.assert_array_equal(found, expected[:, : found.shape[1]])


# Values that were scaled before

SCALED = {
    "float32": lambda x: (x / 255).astype(np.float32),
    "float64": lambda x: x / 255,
    "channels first": lambda x: first(x / 255),
    "torch": lambda x: as_torch(x / 255),
    "black and white": lambda x: (x > 99).astype(np.float32),
    "booleans": lambda x: x > 99,
    "PIL, one bit": lambda x: as_pil(x, "1"),
}


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("do_resize", [True, False])
def test_values_in_the_unit_range_that_are_scaled_again_are_warned_of(kind, do_resize):
    videos = SCALED[kind](frames_of((16, 16)))
    processor = VideoMAEImageProcessor(**SMALL, do_resize=do_resize)
    with pytest.warns(UserWarning, match=r"lie in \[0, 1\].*pass do_rescale=False") as caught:
        processor(videos)
    assert len(caught) == 1  # not one for each frame
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = processor(videos, return_tensors="np", do_rescale=False).pixel_values
    assert found.max() == 1  # white


@pytest.mark.parametrize(
    "video",
    [
        frames_of((20, 30)),
        frames_of((20, 30)).astype(np.float32),
        np.zeros((2, 20, 30, 3), np.float32),  # black, in any scale
        np.stack([np.zeros((20, 30, 3)), np.full((20, 30, 3), 200.0)]),  # begins with black
        np.ones((2, 20, 30, 3), np.uint8),  # nearly black
    ],
    ids=["bytes", "whole floats", "black", "fading in", "dark bytes"],
)
def test_values_that_may_be_meant_are_not_warned_of(video):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frames = VideoMAEImageProcessor(**SMALL)(video, return_tensors="np").pixel_values
    assert np.isfinite(frames).all()


# What the original does not have


def test_arrays_of_jax_five_axes_and_gradients_are_accepted():
    video = frames_of((20, 30))
    processor = VideoMAEImageProcessor(**SMALL)
    expected = processor([list(video)] * 2, return_tensors="np").pixel_values  # tested above
    five = np.stack([video, video])
    for videos in (
        five,
        jnp.asarray(five),
        [jnp.asarray(video)] * 2,
        [list(jnp.asarray(video))] * 2,
        as_torch(five),
        as_torch(five.astype(np.float32)).requires_grad_(),
    ):
        found = processor(videos, return_tensors="np").pixel_values
        np.testing.assert_array_equal(found, expected)


def test_channels_last_is_obeyed():
    video = frames_of((20, 30))
    processor = VideoMAEImageProcessor(**SMALL)
    channels_first = processor(video, return_tensors="np").pixel_values
    assert channels_first.shape == (1, 2, 3, 16, 16)
    for name in ("channels_last", ChannelDimension.LAST):
        found = processor(video, return_tensors="np", data_format=name).pixel_values
        np.testing.assert_array_equal(found, np.moveaxis(channels_first, 2, -1))
    frames = processor(video, data_format=ChannelDimension.LAST).pixel_values[0]
    np.testing.assert_array_equal(frames[1], np.moveaxis(channels_first[0, 1], 0, -1))


def test_enumerations_of_transformers_are_understood(original):
    utils = pytest.importorskip("transformers.image_utils")
    tensor_type = pytest.importorskip("transformers.utils").TensorType.NUMPY
    found = VideoMAEImageProcessor(**SMALL).preprocess(
        frames_of((20, 30)),
        data_format=utils.ChannelDimension.LAST,
        return_tensors=tensor_type,
        resample=utils.PILImageResampling.BICUBIC,
    )
    assert found.pixel_values.shape == (1, 2, 16, 16, 3)


def test_jax_arrays_are_returned_on_request():
    video = frames_of((20, 30))
    processor = VideoMAEImageProcessor(**SMALL)
    found = processor(video, return_tensors="jax").pixel_values
    assert isinstance(found, jax.Array)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, processor(video, return_tensors="np").pixel_values)


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_torch_tensors_are_returned_on_request(original, data_format):
    torch = pytest.importorskip("torch")
    video = frames_of((20, 30))
    found = VideoMAEImageProcessor(**SMALL)(video, return_tensors="pt", data_format=data_format)
    assert isinstance(found.pixel_values, torch.Tensor)
    assert found.pixel_values.dtype == torch.float32
    theirs = original(**SMALL)(video, return_tensors="pt")["pixel_values"]
    if data_format == "channels_last":
        theirs = theirs.movedim(2, -1)
    assert torch.equal(found.pixel_values, theirs)


def test_lists_of_frames_are_returned_by_default(original):
    videos = [list(frames_of((20, 30))), list(frames_of((18, 25), 3))]
    ours, theirs = (
        p(videos).pixel_values for p in (VideoMAEImageProcessor(**SMALL), original(**SMALL))
    )
    assert [len(video) for video in ours] == [len(video) for video in theirs] == [2, 3]
    for our_video, their_video in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(our_video, their_video)


def test_the_input_is_left_as_it_was():
    video = frames_of((16, 16)).astype(np.float32)
    before = video.copy()
    for step in AS_IS:
        VideoMAEImageProcessor(**SMALL)(video, **{**AS_IS, step: True})
    np.testing.assert_array_equal(video, before)


@pytest.mark.parametrize("statistics", [IMAGENET, GREY], ids=["ImageNet", "0.5"])
def test_training_computes_the_same_on_the_device(statistics):
    config = vmae_jax.VideoMAEConfig(
        image_size=(16, 32),
        patch_size=8,
        num_frames=4,
        **{name: np.broadcast_to(value, 3).tolist() for name, value in statistics.items()},
    )
    video = frames_of((16, 32), 8).reshape(2, 4, 16, 32, 3)
    tubelets = patches.patchify(jnp.asarray(video), 2, 8)
    tubelets = patches.normalize(patches.scale_pixels(tubelets), config)
    ours = patches.unpatchify(tubelets, config.grid, 2, 8)
    processor = VideoMAEImageProcessor(do_resize=False, do_center_crop=False, **statistics)
    expected = processor(video, return_tensors="np", data_format="channels_last").pixel_values
    assert ours.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


# The result


@pytest.mark.usefixtures("hasty_compiler")
def test_the_result_is_a_mapping_with_attributes_that_models_take():
    inputs = VideoMAEImageProcessor(**SMALL)(frames_of((20, 30)), return_tensors="np")
    assert inputs["pixel_values"] is inputs.pixel_values
    assert list(inputs) == ["pixel_values"]
    with pytest.raises(AttributeError, match="no 'pixels' here, only"):
        inputs.pixels  # noqa: B018
    config = vmae_jax.VideoMAEConfig(
        image_size=16, patch_size=8, num_frames=2, hidden_size=8, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=8,
    )  # fmt: skip
    outputs = vmae_jax.VideoMAEModel(config, rngs=nnx.Rngs(0))(**inputs)
    assert outputs.last_hidden_state.shape == (1, 4, 8)


# Files


FILES = {
    "defaults": {},
    "all else": {
        "do_resize": False,
        "size": {"height": 31, "width": 17},
        "resample": 3,
        "do_center_crop": False,
        "crop_size": {"height": 12, "width": 40},
        "do_rescale": False,
        "rescale_factor": 0.25,
        "do_normalize": False,
        **IMAGENET,
    },
    "one mean": GREY,
    "unknown entries": {"a_later_option": {"deep": [1, None]}, "do_flip": True},
}


@pytest.mark.parametrize("options", FILES)
def test_files_of_transformers_come_back_byte_for_byte(original, tmp_path, options):
    theirs = original(**FILES[options])
    theirs.save_pretrained(tmp_path / "theirs")
    processor = VideoMAEImageProcessor.from_pretrained(tmp_path / "theirs")
    for name, value in FILES[options].items():
        assert processor.to_dict()[name] == value
    processor.save_pretrained(tmp_path / "ours")
    written, expected = (tmp_path / who / PROCESSOR_FILE for who in ("ours", "theirs"))
    assert written.read_bytes() == expected.read_bytes()
    assert original.from_pretrained(tmp_path / "ours").to_dict() == theirs.to_dict()


@pytest.mark.parametrize("options", FILES)
def test_our_files_are_read_by_transformers(original, tmp_path, options):
    processor = VideoMAEImageProcessor.from_dict(FILES[options])
    processor.save_pretrained(tmp_path)
    theirs = original.from_pretrained(tmp_path)
    video = frames_of((20, 30))
    assert_same(processor(video, return_tensors="np"), theirs(video, return_tensors="np"))
    again = VideoMAEImageProcessor.from_pretrained(tmp_path / PROCESSOR_FILE)  # the file itself
    assert again.to_dict() == processor.to_dict()


# In the form that transformers 4 wrote, with the numbers of ImageNet.
FILE_OF_VERSION_4 = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "feature_extractor_type": "VideoMAEFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "VideoMAEFeatureExtractor",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 224},
}


@pytest.mark.parametrize("sizes", [{}, {"size": 224, "crop_size": 224}], ids=["4.27", "4.22"])
def test_files_of_version_4_are_read_and_their_unknown_entries_kept(tmp_path, sizes):
    (tmp_path / PROCESSOR_FILE).write_text(json.dumps({**FILE_OF_VERSION_4, **sizes}))
    processor = VideoMAEImageProcessor.from_pretrained(str(tmp_path), do_rescale=False)
    assert processor.image_mean == [0.485, 0.456, 0.406]
    assert processor.size["shortest_edge"] == 224
    assert processor.do_rescale is False
    processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / PROCESSOR_FILE).read_text()) == {
        **FILE_OF_VERSION_4,
        "do_rescale": False,
        "image_processor_type": "VideoMAEImageProcessor",
    }


def test_a_failed_write_leaves_the_former_file(tmp_path, monkeypatch):
    VideoMAEImageProcessor().save_pretrained(tmp_path)
    before = (tmp_path / PROCESSOR_FILE).read_bytes()

    def no_space(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space"):
            VideoMAEImageProcessor(size=99).save_pretrained(tmp_path)
    assert (tmp_path / PROCESSOR_FILE).read_bytes() == before
    assert os.listdir(tmp_path) == [PROCESSOR_FILE]


def test_bad_files_are_refused_with_their_path(tmp_path):
    path = tmp_path / PROCESSOR_FILE
    with pytest.raises(FileNotFoundError, match=f"{path} does not exist; give a directory"):
        VideoMAEImageProcessor.from_pretrained(tmp_path)
    for content, message in (
        (b"<html>", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"", "is not JSON"),
        (b"[1]", "a JSON list, not an object"),
        (b'{"size": {"longest_edge": 3}}', "size="),
        (b'{"image_std": [0, 1, 1]}', "must be positive"),
        (b'{"rescale_factor": NaN}', "finite"),
        (b'{"do_resize": "yes"}', "True or False"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path}.*{message}"):
            VideoMAEImageProcessor.from_pretrained(tmp_path)


def test_the_file_comes_from_the_hub_at_the_revision_asked_for(tmp_path):
    # in a process of its own, because huggingface_hub reads its environment when it is imported
    commits = {
        commit_hash(name): {PROCESSOR_FILE: json.dumps({"image_mean": mean}).encode()}
        for name, mean in (("new", 0.25), ("old", 0.75))
    }
    refs = {"main": commit_hash("new"), "v1": commit_hash("old")}
    script = """if True:
        import sys
        from vmae_jax import VideoMAEImageProcessor

        print(VideoMAEImageProcessor.from_pretrained("org/name").image_mean)
        old = VideoMAEImageProcessor.from_pretrained("org/name", revision="v1", image_std=2)
        print(old.image_mean, old.image_std)
        assert not {"jax", "flax", "torch", "transformers"} & set(sys.modules)
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {
        "PYTHONPATH": str(Path(vmae_jax.__file__).parent.parent),
        "NO_PROXY": "*",
        "HF_HOME": str(tmp_path),
    }
    with hub_server.running() as hub:
        hub.repositories = {"org/name": Repository(commits, refs)}
        environment["HF_ENDPOINT"] = hub.url
        command = [sys.executable, "-c", script]
        printed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    assert printed.stdout.decode() == "0.25\n0.75 2.0\n"


def test_a_revision_of_a_directory_is_refused(tmp_path):
    VideoMAEImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"revision='v1' is for hub ids, and {tmp_path} is none"):
        VideoMAEImageProcessor.from_pretrained(tmp_path, revision="v1")


# Options


BAD_OPTIONS = {
    "unknown key": ({"size": {"longest_edge": 16}}, r"size={'longest_edge': 16} .*'shortest_edge'"),
    "two edges": (
        {"size": {"shortest_edge": 16, "longest_edge": 20}},
        r"\['shortest_edge'\] or \['height', 'width'\]",
    ),
    "half a size": ({"size": {"height": 16}}, r"\['shortest_edge'\] or \['height', 'width'\]"),
    "no size": ({"size": {"shortest_edge": 0}}, r"size\['shortest_edge'\]=0 must be a positive"),
    "fraction of a pixel": ({"size": 16.5}, r"size=16.5 must be .*an int"),
    "float in a size": ({"size": {"height": 16, "width": 8.0}}, r"size\['width'\]=8.0 must be"),
    "truth as size": ({"size": True}, "=True must be a positive"),
    "three sizes": ({"size": [1, 2, 3]}, r"\(height, width\), or an int"),
    "crop of an edge": (
        {"crop_size": {"shortest_edge": 16}},
        r"must be a dict with the keys \['height', 'width'\], ",
    ),
    "filter": ({"resample": 9}, r"resample=9 is no filter of PIL.*2 \(BILINEAR\)"),
    "filter by name": ({"resample": "bilinear"}, "no filter of PIL"),
    "flag": ({"do_resize": 1}, "do_resize=1 must be True or False"),
    "factor": ({"rescale_factor": "1/255"}, "rescale_factor='1/255' must be a finite number"),
    "mean": ({"image_mean": [0.5, "a", 0.5]}, r"image_mean\[1\]='a' must be a finite number"),
    "text as mean": ({"image_mean": "0.5"}, "image_mean='0.5' must be"),
    "infinite mean": ({"image_mean": float("inf")}, "finite"),
    "deviation": ({"image_std": [0.5, 0, 0.5]}, "must be positive"),
    "misspelt": ({"do_resise": False}, "'do_resise' is no option here; did you mean 'do_resize'"),
    "unheard of": ({"xyz": 1}, r"'xyz' is no option here; choose from \('do_resize'"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options_are_refused_wherever_they_are_given(case):
    options, message = BAD_OPTIONS[case]
    with pytest.raises(ValueError, match=message):
        VideoMAEImageProcessor(**options)
    processor = VideoMAEImageProcessor(**SMALL)
    with pytest.raises(ValueError, match=message):
        processor(frames_of((20, 30)), **options)
    with pytest.raises(ValueError, match=message):
        VideoMAEImageProcessor.from_dict({}, **options)


@pytest.mark.parametrize(
    ("step", "option"),
    [
        ("do_resize", "size"),
        ("do_resize", "resample"),
        ("do_center_crop", "crop_size"),
        ("do_rescale", "rescale_factor"),
        ("do_normalize", "image_mean"),
        ("do_normalize", "image_std"),
    ],
)
def test_a_step_without_its_options_is_refused(step, option):
    processor = VideoMAEImageProcessor(**SMALL)
    setattr(processor, option, None)
    with pytest.raises(ValueError, match=f"{option}=None, but {step}=True needs it"):
        processor(frames_of((20, 30)))
    processor(frames_of((20, 30)), **{step: False})


def test_options_given_to_a_call_are_for_that_call():
    processor = VideoMAEImageProcessor(**SMALL)
    before = processor.to_dict()
    video = frames_of((20, 30))
    found = processor.preprocess(video, True, 20, return_tensors="np", crop_size=20).pixel_values
    assert found.shape == (1, 2, 3, 20, 20)
    assert processor.to_dict() == before
    processor.size = {"shortest_edge": 20}  # attributes are the options
    processor.crop_size = 20
    np.testing.assert_array_equal(processor(video, return_tensors="np").pixel_values, found)


def test_two_processors_share_nothing():
    shared = {"shortest_edge": 16}
    one, two = VideoMAEImageProcessor(size=shared), VideoMAEImageProcessor(size=shared)
    one.size["shortest_edge"] = 5
    one.image_mean[0] = 0.1
    assert two.size == shared == {"shortest_edge": 16}
    assert two.image_mean == VideoMAEImageProcessor().image_mean == [0.5, 0.5, 0.5]


# Inputs that cannot work


FRAME = frames_of((20, 30), 1)[0]
BAD_VIDEOS = {
    "nothing": (None, "videos, a NoneType, must be a frame"),
    "number": (3, "a int"),
    "path": ("clip.mp4", "a str"),
    "numbers": ([[1, 2], [3, 4]], "a list, must be a frame"),
    "numpy scalar": (np.float32(3), "must be a frame"),
    "empty": ([], "none of them empty"),
    "empty video": ([[FRAME], []], "none of them empty"),
    "no frames": (np.zeros((0, 20, 30, 3), np.uint8), r"of shape \(0, 20, 30, 3\)"),
    "grey frame and video": ([FRAME[..., 0], FRAME[None]], "must be a frame"),
    "one axis": (FRAME[0, :, 0], r"of shape \(30,\), must be a frame"),
    "six axes": (FRAME[None, None, None], "must be a frame"),
    "frame and video": ([FRAME, FRAME[None]], "must be a frame"),
    "videos in lists": ([[FRAME[None]]], "must be a frame"),
    "five channels": ([np.zeros((20, 30, 5), np.uint8)], r"\(20, 30, 5\).*their number 3, as ima"),
    "no pixels": ([np.zeros((0, 30, 3), np.uint8)], "no pixels"),
    "alpha": ([np.zeros((20, 30, 4), np.uint8)], r"4 channels.*3 numbers; if the last is alpha"),
    "PIL image with alpha": (Image.new("RGBA", (30, 20)), r"'RGBA' has 4 channels.*convert\('RGB'"),
    "grey PIL image with alpha": (Image.new("LA", (30, 20)), "'LA' has 2 channels"),
    "four grey frames in one array": (np.zeros((4, 20, 30), np.uint8), "4 channels.*in a list"),
    "grey frames in one array": (np.zeros((16, 20, 30), np.uint8), r"\(16, 20, 30\).*in a list"),
    "palette": (Image.new("P", (30, 20)), r"mode 'P' \(a palette\).*convert\('RGB'\)"),
    "inks": ([Image.new("CMYK", (30, 20))], r"mode 'CMYK' \(not grey, RGB or RGBA\)"),
    "luminance": ([Image.new("YCbCr", (30, 20))], r"mode 'YCbCr' \(not grey, RGB or RGBA\)"),
}


@pytest.mark.parametrize("case", BAD_VIDEOS)
def test_bad_videos_are_refused(case):
    videos, message = BAD_VIDEOS[case]
    with pytest.raises(ValueError, match=message):
        VideoMAEImageProcessor(**SMALL)(videos, return_tensors="np")


@pytest.mark.parametrize("mode", ["P", "PA", "CMYK", "YCbCr", "LAB", "HSV", "RGBa", "La", "RGBX"])
def test_pil_images_whose_numbers_are_no_colours_are_refused_whatever_the_means(mode):
    image = Image.new(mode, (30, 20))
    for statistics in ({}, GREY):
        with pytest.raises(ValueError, match=f"mode '{mode}'.*convert"):
            VideoMAEImageProcessor(**SMALL)(image, **statistics)


def test_arrays_that_numpy_cannot_read_are_refused():
    torch = pytest.importorskip("torch")
    processor = VideoMAEImageProcessor(**SMALL)
    with pytest.raises(ValueError, match=r"a Tensor of dtype torch.bfloat16 cannot be read"):
        processor(torch.zeros(2, 3, 20, 30, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="cannot be read as numpy"):
        jax.jit(lambda x: processor(x, return_tensors="np").pixel_values)(np.zeros((2, 20, 30, 3)))


def test_ragged_batches_are_refused_where_an_array_is_wanted():
    processor = VideoMAEImageProcessor(**SMALL)
    longer = [[FRAME, FRAME], [FRAME]]
    with pytest.raises(ValueError, match=r"videos of \[1, 2\] frames.*return_tensors=None"):
        processor(longer, return_tensors="np")
    assert [len(video) for video in processor(longer).pixel_values] == [2, 1]
    with pytest.raises(ValueError, match=r"\(3, 20, 16\), \(3, 20, 30\).*do_center_crop"):
        processor([FRAME, FRAME[:, :16]], return_tensors="jax", **AS_IS)


@pytest.mark.parametrize("name", ["mlx", "numpy", "torch", True])
def test_other_tensors_are_refused_naming_those_there_are(name):
    with pytest.raises(ValueError, match=r"not supported; choose 'np' or 'jax', 'pt' .*'tf'"):
        VideoMAEImageProcessor()(FRAME, return_tensors=name)


@pytest.mark.parametrize("name", [None, "last", "channels-last"])
def test_unknown_data_formats_are_refused(name):
    with pytest.raises(ValueError, match=r"data_format=.*choose 'channels_first' or"):
        VideoMAEImageProcessor()(FRAME, data_format=name)


# Names


def test_the_former_name_warns_and_is_the_same(tmp_path):
    former = vmae_jax.VideoMAEFeatureExtractor
    with pytest.warns(FutureWarning, match="use VideoMAEImageProcessor") as caught:
        processor = former(**SMALL)
    assert len(caught) == 1
    assert isinstance(processor, VideoMAEImageProcessor)
    processor.save_pretrained(tmp_path)
    with pytest.warns(FutureWarning) as caught:
        again = former.from_pretrained(tmp_path)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = VideoMAEImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == ours.to_dict() == processor.to_dict()
    np.testing.assert_array_equal(again(FRAME).pixel_values, ours(FRAME).pixel_values)


def test_a_processor_prints_its_options():
    printed = repr(VideoMAEImageProcessor(size=99))
    assert printed.startswith("VideoMAEImageProcessor {")
    assert '"shortest_edge": 99' in printed


def test_processing_needs_neither_jax_nor_torch():
    script = """if True:
        import sys
        import numpy as np
        from vmae_jax import VideoMAEImageProcessor

        video = np.zeros((2, 20, 30, 3), np.uint8)
        inputs = VideoMAEImageProcessor()(video, return_tensors="np")
        assert inputs.pixel_values.shape == (1, 2, 3, 224, 224)
        assert not {"jax", "flax", "torch", "transformers"} & set(sys.modules)
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(vmae_jax.__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
