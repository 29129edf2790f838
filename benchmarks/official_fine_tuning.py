"""The official path from a video file to clips of fine-tuning, all of it on the processor."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

FILL = (128, 128, 128)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    method, resample = Image.Transform.AFFINE, Image.Resampling.BICUBIC
    return image.transform(image.size, method, matrix, resample=resample, fillcolor=FILL)


def _solarize_add(image: Image.Image, added: int) -> Image.Image:
    return image.point([min(255, x + added) if x < 128 else x for x in range(256)] * 3)


def _enhanced(kind: type) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, factor: kind(image).enhance(factor)


OPERATIONS = {  # the names and numbers of `rand_augment.operations`
    "AutoContrast": ImageOps.autocontrast,
    "Equalize": ImageOps.equalize,
    "Invert": ImageOps.invert,
    "Rotate": lambda x, degrees: x.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=FILL),
    "Posterize": ImageOps.posterize,
    "Solarize": ImageOps.solarize,
    "SolarizeAdd": _solarize_add,
    "Color": _enhanced(ImageEnhance.Color),
    "Contrast": _enhanced(ImageEnhance.Contrast),
    "Brightness": _enhanced(ImageEnhance.Brightness),
    "Sharpness": _enhanced(ImageEnhance.Sharpness),
    "ShearX": lambda x, factor: _affine(x, 1, factor, 0, 0, 1, 0),
    "ShearY": lambda x, factor: _affine(x, 1, 0, 0, factor, 1, 0),
    "TranslateX": lambda x, share: _affine(x, 1, 0, share * x.size[0], 0, 1, 0),
    "TranslateY": lambda x, share: _affine(x, 1, 0, 0, 0, 1, share * x.size[1]),
}


class OfficialFineTuning:
    """`VideoClsDataset.__getitem__` of kinetics.py in training, written anew.

    Frames, operations and boxes come from our random numbers, so that both sides make the same
    clips up to flips and erasing, which ours leaves to the device.

    Args:
      paths: of the videos.
      choose: d -> (which of them, a generator of random numbers).
      num_frames, frame_stride, image_size: of a clip.
      repeat: clips of the same frames.
      policy: a RandAugment, or None.
    """

    def __init__(self, paths, choose, num_frames, frame_stride, image_size, repeat, policy):
        import torch

        torch.set_num_threads(1)  # as in a worker of a DataLoader
        self._paths, self._choose = paths, choose
        self._span, self._image_size = (num_frames, frame_stride), image_size
        self.repeat, self._policy = repeat, policy
        self.seconds: dict[str, float] = {}

    def __getitem__(self, d: int) -> list:
        """The clips of group d: fp32 [3, T, 224, 224] each, normalised."""
        import decord

        from vmae_jax.data.video.clips import dense_indices

        number, rng = self._choose(d)
        self._last = time.process_time()
        reader = decord.VideoReader(self._paths[number], num_threads=1)
        self._mark("open")
        frames = reader.get_batch(dense_indices(len(reader), *self._span, rng).tolist()).asnumpy()
        self._mark("decode")
        return [self._augmented(frames, rng) for _ in range(self.repeat)]

    def _augmented(self, frames: Sequence[np.ndarray], rng: np.random.Generator):
        import torch

        from vmae_jax.data.video.augment import sample_resized_crop_box

        images = [Image.fromarray(frame) for frame in frames]
        self._mark("to Pillow")
        for name, numbers in self._policy.draw(rng) if self._policy else ():
            images = [OPERATIONS[name](image, *numbers) for image in images]
        self._mark("RandAugment")
        tensors = [torch.from_numpy(np.array(x)).permute(2, 0, 1).contiguous() for x in images]
        video = torch.stack([tensor.float().div(255) for tensor in tensors])
        self._mark("to float")
        video = (video.permute(0, 2, 3, 1) - torch.tensor(MEAN)) / torch.tensor(STD)
        video = video.permute(3, 0, 1, 2)
        self._mark("normalise")
        top, left, height, width = sample_resized_crop_box(*video.shape[2:], rng)
        video = torch.nn.functional.interpolate(
            video[:, :, top : top + height, left : left + width],
            size=self._image_size,
            mode="bilinear",
            align_corners=False,
        )
        self._mark("crop and resize")
        return self._flipped_and_erased(video)

    def _flipped_and_erased(self, video):
        """With random numbers of its own."""
        if np.random.uniform() < 0.5:
            video = video.flip(-1)
        self._mark("flip")
        if np.random.uniform() < 0.25:
            size = video.shape[2:]
            for _ in range(100):
                area = math.prod(size) * np.random.uniform(0.02, 1 / 3)
                aspect = math.exp(np.random.uniform(math.log(0.3), -math.log(0.3)))
                height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
                if height < size[0] and width < size[1]:
                    top = np.random.randint(size[0] - height + 1)
                    left = np.random.randint(size[1] - width + 1)
                    video[:, :, top : top + height, left : left + width].normal_()
                    break
        self._mark("erase")
        return video

    def _mark(self, stage: str) -> None:
        now = time.process_time()
        self.seconds[stage] = self.seconds.get(stage, 0) + now - self._last
        self._last = now
