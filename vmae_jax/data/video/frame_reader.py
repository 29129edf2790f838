"""Videos that lie as folders of pictures, one per frame, read like video files.

The number in a file's name need not be the frame's: frame 0 is the first picture, which most tools
call 1. Pictures are foreign files: only JPEG and PNG are opened, and no larger than the limits.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vmae_jax.data.video.reader import Limits, VideoError, VideoReader, checked_indices, first_line
from vmae_jax.errors import SettingError
from vmae_jax.files import storage

PICTURE_EXTENSIONS = (".jpg", ".jpeg", ".png")
MAX_PICTURE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class FrameNames:
    """Which files of a folder are its frames, in order.

    Attributes:
      fps: frames per second at which they were extracted.
      template: a name with a place for the number, "img_{:05}.jpg"; None takes all pictures, sorted
        by the numbers in their names.
      first_number: the number of frame 0 in the template.
      num_frames: with a template, how many frames there are; None counts them, up to the first gap
        in the numbers.
    Raises:
      SettingError: for a rate that is not positive, or a template that is none.
    """

    fps: float
    template: str | None = None
    first_number: int = 1
    num_frames: int | None = None

    def __post_init__(self):
        if not 0 < self.fps < float("inf"):
            raise SettingError(
                f"fps={self.fps} must be positive; give the rate at which frames were extracted."
            )
        if self.template is not None:
            check_template(self.template)

    def names(self, path: str) -> Sequence[str]:
        """File names of the frames in the folder `path`.

        Raises:
          OSError: if the folder cannot be read.
        """
        if self.template is None:
            return sorted(filter(is_picture, storage.list_folder(path)), key=_by_numbers)
        if self.num_frames is not None:
            numbers = range(self.first_number, self.first_number + self.num_frames)
            return [self.template.format(number) for number in numbers]
        present, names = set(storage.list_folder(path)), []
        while (name := self.template.format(self.first_number + len(names))) in present:
            names.append(name)
        return names


def check_template(template: str) -> None:
    """Tries whether the template gives different file names for different numbers.

    Raises:
      SettingError: if it does not.
    """
    try:
        names = {template.format(1), template.format(2)}
    except (LookupError, ValueError, AttributeError, TypeError):
        names = set()
    if len(names) < 2 or any("/" in name for name in names):
        raise SettingError(
            f"template={template!r} must be a file name with one place for a number, such as "
            "'img_{:05}.jpg'."
        )


def is_picture(name: str) -> bool:
    """Whether a file name is that of a picture that can be a frame."""
    return name.lower().endswith(PICTURE_EXTENSIONS) and not name.startswith(".")


def _by_numbers(name: str) -> tuple[list[str | int], str]:
    # img_10 comes after img_9, however many digits the numbers are written with
    parts = re.split("([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


class FrameFolderReader(VideoReader):
    """A VideoReader over a folder of pictures.

    Args:
      path: the folder, which may be remote.
      frames: which files are frames.
      limits: as for `open_video`.
    Raises:
      VideoError: if the folder cannot be read, holds no frames, or too many.
    """

    def __init__(self, path: str, frames: FrameNames, limits: Limits = Limits()):
        self._path, self._limits = path, limits
        try:
            self._names = frames.names(path)
        except OSError as error:
            raise VideoError(
                path, f"it cannot be read as a folder ({first_line(error)}); check the path."
            ) from error
        self.num_frames = len(self._names)
        if self.num_frames == 0:
            raise VideoError(
                path,
                "it has no frames; expected "
                + (frames.template or f"names ending in {', '.join(PICTURE_EXTENSIONS)}")
                + ".",
            )
        limits.check(path, frames=self.num_frames, seconds=self.num_frames / frames.fps)
        self.fps = float(frames.fps)
        self.times = np.arange(self.num_frames) / self.fps
        self._size: tuple[int, int] | None = None  # unknown until a picture is opened

    @property
    def height(self) -> int:
        """Pixels; the first call may open the first picture."""
        return self._shape[0]

    @property
    def width(self) -> int:
        """Pixels; the first call may open the first picture."""
        return self._shape[1]

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """RGB frames, uint8 [len(indices), height, width, 3]; see VideoReader.

        Raises:
          ValueError: if an index is outside [0, num_frames).
          VideoError: if a picture is missing, damaged, or of another size than the others.
        """
        indices = checked_indices(indices, self.num_frames, self._path)
        pictures = {i: self._picture(i, decode=True) for i in dict.fromkeys(indices.tolist())}
        frames = np.empty((len(indices), *self._shape, 3), np.uint8)
        for row, i in enumerate(indices.tolist()):
            frames[row] = pictures[i]
        return frames

    @property
    def _shape(self) -> tuple[int, int]:
        if self._size is None:
            self._picture(0, decode=False)
        return self._size

    def _picture(self, i: int, decode: bool) -> np.ndarray | None:
        name = self._names[i]
        try:
            data = storage.read_bytes(storage.join(self._path, name), MAX_PICTURE_BYTES)
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
                size = picture.height, picture.width
                self._limits.check(self._path, pixels=size[0] * size[1])
                self._size = self._size or size
                if size != self._size:
                    raise VideoError(
                        self._path,
                        f"frame {i} ({name}) has {size[1]}x{size[0]} pixels where another has "
                        f"{self._size[1]}x{self._size[0]}; extract the frames again.",
                    )
                return np.asarray(picture.convert("RGB")) if decode else None
        except VideoError:
            raise
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise VideoError(
                self._path,
                f"frame {i} ({name}) cannot be read ({first_line(error)}); extract it again.",
            ) from error
