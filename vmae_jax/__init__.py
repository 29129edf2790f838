"""VideoMAE in JAX: exact model, tube masking on the device, pre-training on real video.

Names are imported on first use, so that `import vmae_jax` costs nothing and the processes that only
decode video never load jax.

Shapes are written with one alphabet everywhere: B clips, T frames, H W pixels, C channels, (t, h,
w) the token grid, N = t*h*w tokens of which N_vis are visible and N_mask masked, D width, P values
in one tubelet (tubelet_size * patch_size**2 * C). Channels stand last, except in `pixel_values` of
the Hugging Face classes (B, T, C, H, W).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_MODULE_OF = {
    "VideoMAEConfig": "config",
    "VideoMAEModel": "huggingface.models",
    "VideoMAEForPreTraining": "huggingface.models",
    "VideoMAEForVideoClassification": "huggingface.models",
    "BaseModelOutput": "huggingface.outputs",
    "VideoMAEForPreTrainingOutput": "huggingface.outputs",
    "ImageClassifierOutput": "huggingface.outputs",
    "VideoMAEImageProcessor": "huggingface.image_processor",
    "VideoMAEFeatureExtractor": "huggingface.image_processor",
    "BatchFeature": "huggingface.batch_feature",
    "Mask": "masking",
    "tube_mask": "masking",
    "random_mask": "masking",
    "frame_mask": "masking",
}
__all__ = list(_MODULE_OF)

if TYPE_CHECKING:
    from vmae_jax.config import VideoMAEConfig as VideoMAEConfig
    from vmae_jax.huggingface.batch_feature import BatchFeature as BatchFeature
    from vmae_jax.huggingface.image_processor import (
        VideoMAEFeatureExtractor as VideoMAEFeatureExtractor,
    )
    from vmae_jax.huggingface.image_processor import (
        VideoMAEImageProcessor as VideoMAEImageProcessor,
    )
    from vmae_jax.huggingface.models import VideoMAEForPreTraining as VideoMAEForPreTraining
    from vmae_jax.huggingface.models import (
        VideoMAEForVideoClassification as VideoMAEForVideoClassification,
    )
    from vmae_jax.huggingface.models import VideoMAEModel as VideoMAEModel
    from vmae_jax.huggingface.outputs import BaseModelOutput as BaseModelOutput
    from vmae_jax.huggingface.outputs import ImageClassifierOutput as ImageClassifierOutput
    from vmae_jax.huggingface.outputs import (
        VideoMAEForPreTrainingOutput as VideoMAEForPreTrainingOutput,
    )
    from vmae_jax.masking import Mask as Mask
    from vmae_jax.masking import frame_mask as frame_mask
    from vmae_jax.masking import random_mask as random_mask
    from vmae_jax.masking import tube_mask as tube_mask


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__all__}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
