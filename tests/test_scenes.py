import numpy as np
import pytest

from vmae_jax.data.motion import scenes
from vmae_jax.data.motion.appearances import APPEARANCES
from vmae_jax.data.motion.motions import MOTIONS
from vmae_jax.data.motion.scenes import (
    NUM_FRAMES,
    SIDE,
    MotionSet,
    render_scene,
    scene_clips,
)
from vmae_jax.errors import SettingError

CLIPS = ("bigbuckbunny.mp4", "bikes.mp4")
VIDEOS = MotionSet(CLIPS, 5 * len(MOTIONS), seed=1)
ONE_PATCH = MotionSet(CLIPS, 6, seed=1, appearances=("square",), num_patches=1)
FOOTAGE = np.random.default_rng(0).integers(0, 256, (30, 70, 90, 3), np.uint8)


def painted(background, patch, top, left):
    """By hand, pixel by pixel: a patch [S, S, 4] at a whole place, across borders."""
    frame = background.astype(float)
    for row in range(len(patch)):
        for column in range(len(patch)):
            *colour, opacity = patch[row, column]
            place = (top + row) % SIDE, (left + column) % SIDE
            frame[place] = opacity * np.array(colour) + (1 - opacity) * frame[place]
    return frame


@pytest.fixture
def given(monkeypatch):
    """Scenes of one fixed patch, on the path that is set; returns (patch, set_path)."""
    patch = np.random.default_rng(2).uniform(0, 255, (21, 21, 4)).astype(np.float32)
    patch[..., 3] /= 255
    monkeypatch.setitem(APPEARANCES, "square", lambda footage, rng: patch)

    def set_path(tops_and_lefts):
        centres = (np.array(tops_and_lefts) + len(patch) / 2) / SIDE % 1
        monkeypatch.setattr(scenes, "make_path", lambda motion, num_frames, rng: centres)

    return patch, set_path


def background_of(frames):
    """The part of FOOTAGE that a video was cut out of, found by a pixel that nothing covers."""
    first = frames[0, 0, 0]
    (start, top, left), *others = np.argwhere((first == FOOTAGE).all(-1))
    assert not others
    return FOOTAGE[start : start + NUM_FRAMES, top : top + SIDE, left : left + SIDE]


def test_patches_are_painted_over_moving_footage_and_across_borders(given):
    patch, set_path = given
    places = [(10 + 3 * t, 20 + 5 * t) for t in range(NUM_FRAMES)]  # beyond 43 it is cut
    set_path(places)
    frames = render_scene(ONE_PATCH, 0, FOOTAGE, "right")
    assert frames.shape == (NUM_FRAMES, SIDE, SIDE, 3)
    assert frames.dtype == np.uint8
    background = background_of(frames)
    for t, place in enumerate(places):
        np.testing.assert_allclose(frames[t], painted(background[t], patch, *place), atol=0.51)


def test_places_between_pixels_are_averages(given):
    patch, set_path = given
    patch[..., 3] = 1
    set_path([(20, 20.5)] * NUM_FRAMES)
    frame = render_scene(ONE_PATCH, 0, FOOTAGE, "right")[0]
    expected = (patch[:, :-1, :3] + patch[:, 1:, :3]) / 2
    np.testing.assert_allclose(frame[20:41, 21:41], expected, atol=0.6)


def test_later_patches_cover_earlier_ones(monkeypatch):
    looks = [np.full((20, 20, 4), (value, value, value, 1), np.float32) for value in (250, 5)]
    places = [(10, 10), (20, 24)]  # they share rows 20 to 29 and columns 24 to 29
    order, moved = iter(looks), iter(places)
    monkeypatch.setitem(APPEARANCES, "square", lambda footage, rng: next(order))

    def stays(motion, num_frames, rng):
        return np.tile((np.array(next(moved)) + 10) / SIDE, (num_frames, 1))

    monkeypatch.setattr(scenes, "make_path", stays)
    videos = MotionSet(CLIPS, 6, seed=1, appearances=("square",), num_patches=2)
    frames = render_scene(videos, 0, FOOTAGE, "right")
    for frame, background in zip(frames, background_of(frames), strict=True):
        expected = background
        for look, place in zip(looks, places, strict=True):
            expected = painted(expected, look, *place)
        np.testing.assert_array_equal(frame, expected)


def test_scenes_differ_in_the_motion_alone():
    videos = MotionSet(CLIPS, 5 * len(MOTIONS), seed=1, num_patches=2)
    area = 2 * 30**2  # of two patches, each up to 28 pixels wide
    rendered = {motion: render_scene(videos, 3, FOOTAGE, motion) for motion in MOTIONS}
    for motion, frames in rendered.items():
        np.testing.assert_array_equal(frames[NUM_FRAMES // 2], rendered["up"][NUM_FRAMES // 2])
        for other in MOTIONS:
            if other != motion:
                assert (frames[3] != rendered[other][3]).any()
                untouched = (frames[3] == rendered[other][3]).all(-1).mean()
                assert untouched > 1 - 2 * area / SIDE**2  # where they are in either


def test_scenes_are_the_same_each_time_and_differ_from_each_other():
    frames = [render_scene(VIDEOS, scene, FOOTAGE, "up") for scene in (0, 1, 0)]
    np.testing.assert_array_equal(frames[0], frames[2])
    assert (frames[0][0] != frames[1][0]).any()
    larger = MotionSet(CLIPS, 50 * len(MOTIONS), seed=1)
    np.testing.assert_array_equal(render_scene(larger, 0, FOOTAGE, "up"), frames[0])
    reseeded = MotionSet(CLIPS, 5 * len(MOTIONS), seed=2)
    assert (render_scene(reseeded, 0, FOOTAGE, "up")[0] != frames[0][0]).any()


def test_scenes_take_the_clips_in_turn():
    assert list(scene_clips(VIDEOS)) == [(i, CLIPS[i % 2]) for i in range(5)]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"num_videos": 5}, r"num_videos=5 .*multiple of the 6 motions"),
        ({"num_videos": 0}, r"num_videos=0 "),
        ({"num_videos": 13}, r"num_videos=13 "),
        ({"seed": -1}, r"seed=-1 must be at least 0"),
        ({"num_patches": 0}, r"num_patches=0 must be at least 1"),
        ({"motions": ("right", "sideways")}, r"motions=\('right', 'sideways'\).*anticlockwise"),
        ({"motions": ("right", "right")}, r"motions=.*at most once"),
        ({"motions": ()}, r"motions=\(\) must name at least one"),
        ({"appearances": ("cube",)}, r"appearances=\('cube',\).*disc"),
        ({"clips": ("foreman.mp4",)}, r"clips=\('foreman.mp4',\).*bikes"),
    ],
)
def test_sets_that_cannot_be_rendered_are_refused(change, problem):
    with pytest.raises(SettingError, match=problem):
        MotionSet(**{"clips": CLIPS, "num_videos": 12, "seed": 0, **change})
