import collections
import dataclasses
import functools
import json
import math
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmae_jax.masking import MASKS, Mask, frame_mask, random_mask, tube_mask

VIT_B = (8, 14, 14)
VIT_G = (8, 16, 16)
SMALL = (4, 3, 4)
KEY = jax.random.key(0)


pytestmark = pytest.mark.usefixtures("hasty_compiler")


def pictures(mask, grid):
    """A drawing per clip: a row of text per row of tokens, time steps apart, 1 = hidden."""
    t, h, w = grid
    return [
        [" ".join("".join(map(str, step[row])) for step in clip) for row in range(h)]
        for clip in np.asarray(mask.to_bool()).astype(int).reshape(-1, t, h, w)
    ]


def drawing(*rows):
    """bool [1, N] from rows as `pictures` makes them."""
    steps = zip(*(row.split() for row in rows), strict=True)
    return np.array([[digit == "1" for step in steps for row in step for digit in row]])


@functools.cache
def drawn(name):
    """A mask of 8 clips that hides half of a small grid."""
    return MASKS[name](KEY, 8, SMALL, 0.5)


# masking_generator.py of the official code truncates: int(0.75 * 196) = 147, int(0.9 * 256) = 230.
@pytest.mark.parametrize(
    ("grid", "ratio", "per_step", "total"),
    [
        (VIT_B, 0.75, 147, 1176),
        (VIT_B, 0.9, 176, 1408),
        (VIT_B, 0.95, 186, 1488),
        (VIT_G, 0.9, 230, 1840),
        (VIT_B, 0.6, 117, 936),  # of 117.6
    ],
)
def test_tube_mask_hides_the_published_counts(grid, ratio, per_step, total):
    mask = jax.eval_shape(lambda: tube_mask(KEY, 2, grid, ratio))
    assert mask.masked.shape == (2, total) == (2, grid[0] * per_step)
    assert mask.visible.shape == (2, math.prod(grid) - total)


def test_tube_mask_hides_as_much_of_every_step():
    hidden = np.asarray(drawn("tube").to_bool()).reshape(8, 4, 12)
    assert (hidden.sum(axis=2) == 6).all()


@pytest.mark.parametrize(
    ("grid", "ratio", "total"), [(VIT_B, 0.9, 1411), (VIT_B, 0.95, 1489), (VIT_G, 0.9, 1843)]
)
def test_random_mask_truncates_over_all_tokens(grid, ratio, total):
    # 0.9 of 1568 is 1411.2, where the tube hides 1408; 0.95 of it is 1489.6
    mask = jax.eval_shape(lambda: random_mask(KEY, 1, grid, ratio))
    assert mask.masked.shape == (1, total)


def test_frame_mask_hides_seven_steps_of_eight():
    # VideoMAE, table 1c
    mask = jax.eval_shape(lambda: frame_mask(KEY, 3, VIT_B, 0.875))
    assert mask.masked.shape == (3, 7 * 196)


def test_frame_mask_hides_whole_steps():
    hidden = np.asarray(drawn("frame").to_bool()).reshape(8, 4, 12)
    assert (hidden.all(axis=2).sum(axis=1) == 2).all()
    assert (hidden.any(axis=2).sum(axis=1) == 2).all()


@pytest.mark.parametrize("name", MASKS)
def test_rows_ascend_and_part_the_tokens(name):
    visible, masked = np.asarray(drawn(name).visible), np.asarray(drawn(name).masked)
    assert visible.dtype == masked.dtype == np.int32
    assert (np.diff(visible, axis=1) > 0).all()
    assert (np.diff(masked, axis=1) > 0).all()
    both = np.sort(np.concatenate([visible, masked], axis=1), axis=1)
    assert (both == np.arange(48)).all()


def test_tube_mask_is_the_same_in_every_step():
    for picture in pictures(drawn("tube"), SMALL):
        for row in picture:
            first, *others = row.split()
            assert others == [first, first, first]


def test_a_mask_as_a_picture():
    # Indices written by hand for a grid of 2 steps of 2 x 3 tokens.
    tube = Mask(jnp.array([[0, 4, 6, 10]]), jnp.array([[1, 2, 3, 5, 7, 8, 9, 11]]))
    assert pictures(tube, (2, 2, 3)) == [["011 011", "101 101"]]


# All that there are: 2 of the 4 places of a step, 2 of 4 tokens, 2 of 3 steps.
POSSIBLE = {
    "tube": {
        ("11 11", "00 00"),
        ("00 00", "11 11"),
        ("10 10", "10 10"),
        ("01 01", "01 01"),
        ("10 10", "01 01"),
        ("01 01", "10 10"),
    },
    "random": {("11 00",), ("00 11",), ("10 10",), ("01 01",), ("10 01",), ("01 10",)},
    "frame": {
        ("11 11 00", "11 11 00"),
        ("11 00 11", "11 00 11"),
        ("00 11 11", "00 11 11"),
    },
}
GRIDS = {"tube": (2, 2, 2), "random": (2, 1, 2), "frame": (3, 2, 2)}


@functools.cache
def many(name):
    return MASKS[name](KEY, 6000, GRIDS[name], 0.67 if name == "frame" else 0.5)


@pytest.mark.parametrize("name", MASKS)
def test_every_possible_picture_is_drawn_equally_often(name):
    counts = collections.Counter(map(tuple, pictures(many(name), GRIDS[name])))
    assert set(counts) == POSSIBLE[name]
    chance = 1 / len(POSSIBLE[name])
    sigma = math.sqrt(chance * (1 - chance) / 6000)  # of a binomial share
    assert max(abs(n / 6000 - chance) for n in counts.values()) < 4 * sigma


@pytest.mark.parametrize("name", MASKS)
def test_every_position_is_hidden_equally_often(name):
    share = np.asarray(many(name).to_bool()).mean(axis=0)
    expected = 2 / 3 if name == "frame" else 1 / 2
    assert np.abs(share - expected).max() < 4 * math.sqrt(expected * (1 - expected) / 6000)


@pytest.mark.parametrize("name", MASKS)
def test_masks_differ_between_clips_and_keys(name):
    masks = [drawn(name), MASKS[name](jax.random.key(1), 8, SMALL, 0.5)]
    patterns = {tuple(row) for mask in masks for row in mask.masked.tolist()}
    # 6 pictures of steps are possible, and a million of places
    assert len(patterns) >= (4 if name == "frame" else 15)
    assert not np.array_equal(masks[0].masked, masks[1].masked)


@pytest.mark.parametrize("name", MASKS)
def test_micro_batches_have_the_masks_of_the_batch_also_under_jit(name):
    draw = jax.jit(lambda keys: MASKS[name](keys, 4, SMALL, 0.5))
    keys = jax.random.split(KEY, 8)
    parts = [draw(keys[:4]), draw(keys[4:])]
    for field in ("visible", "masked"):
        joined = np.concatenate([getattr(part, field) for part in parts])
        assert np.array_equal(joined, getattr(drawn(name), field))


def test_masks_are_the_same_on_eight_devices():
    script = """
        import functools, json, jax
        from jax.sharding import NamedSharding, PartitionSpec
        from vmae_jax.masking import MASKS

        mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        by_clip = NamedSharding(mesh, PartitionSpec("data"))
        masks = {}
        for name, draw in MASKS.items():
            draw = functools.partial(draw, batch_size=8, grid=(4, 3, 4), mask_ratio=0.5)
            mask = jax.jit(draw, out_shardings=by_clip)(jax.random.key(0))
            assert len(mask.masked.addressable_shards) == 8
            assert mask.masked.addressable_shards[0].data.shape == (1, 24)
            masks[name] = mask.masked.tolist()
        print(json.dumps(masks))
    """
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    environment["JAX_PLATFORMS"] = "cpu"
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == {name: drawn(name).masked.tolist() for name in MASKS}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.01, -0.5, 1.5])
def test_ratios_that_hide_nothing_or_all_are_refused(name, ratio):
    with pytest.raises(ValueError, match=rf"mask_ratio={ratio} hides -?\d+ of \d+ "):
        MASKS[name](KEY, 2, (4, 3, 4), ratio)


PICTURE = drawing(
    "011 010",
    "100 001",
)  # 5 of 12 hidden


def test_from_bool_names_the_hidden_tokens_as_masked():
    mask = Mask.from_bool(PICTURE)
    assert mask.masked.tolist() == [[1, 2, 3, 7, 11]]  # counted in the picture
    assert mask.visible.tolist() == [[0, 4, 5, 6, 8, 9, 10]]
    assert mask.masked.dtype == mask.visible.dtype == jnp.int32


def test_from_bool_and_to_bool_undo_each_other():
    rows = np.concatenate([PICTURE, PICTURE[:, ::-1]])
    assert np.array_equal(Mask.from_bool(rows).to_bool(), rows)
    assert np.array_equal(Mask.from_bool(jnp.asarray(rows), num_masked=5).to_bool(), rows)
    again = Mask.from_bool(drawn("random").to_bool())
    assert jax.tree.all(jax.tree.map(np.array_equal, drawn("random"), again))


def test_from_bool_works_under_jit_with_a_given_count():
    mask = jax.jit(lambda rows: Mask.from_bool(rows, num_masked=5))(PICTURE)
    assert mask.masked.tolist() == [[1, 2, 3, 7, 11]]
    with pytest.raises(ValueError, match="num_masked=None: under jit"):
        jax.jit(Mask.from_bool)(PICTURE)


def test_a_mask_passes_through_jit():
    assert isinstance(jax.jit(lambda mask: mask)(drawn("tube")), Mask)


@pytest.mark.parametrize(
    ("rows", "num_masked", "message"),
    [
        (PICTURE.astype(int), None, "has dtype int64, but must be boolean"),
        (PICTURE.astype(np.float32), None, "has dtype float32, but must be boolean"),
        (PICTURE[0], None, r"has shape \(12,\), but must be \(batch, tokens\)"),
        (PICTURE[None], None, r"has shape \(1, 1, 12\), but must be"),
        (np.array([[1, 0, 0], [1, 1, 0]], bool), None, r"hides \[1, 2\] tokens"),
        (PICTURE, 4, "num_masked=4, but bool_masked_pos hides 5"),
        (np.zeros((2, 4), bool), None, "0 of 4 tokens are hidden"),
        (np.ones((2, 4), bool), None, "4 of 4 tokens are hidden"),
    ],
)
def test_masks_that_cannot_be_one_are_refused(rows, num_masked, message):
    with pytest.raises(ValueError, match=message):
        Mask.from_bool(rows, num_masked=num_masked)


@pytest.mark.parametrize(
    ("rows", "num_masked", "message"),
    [
        (PICTURE.astype(np.int32), 5, "has dtype int32, but must be boolean"),
        (PICTURE[0], 5, r"has shape \(12,\)"),
        (PICTURE, 0, "0 of 12 tokens are hidden"),
        (PICTURE, 12, "12 of 12 tokens are hidden"),
    ],
)
def test_what_is_known_under_jit_is_checked_under_jit(rows, num_masked, message):
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda x: Mask.from_bool(x, num_masked=num_masked))(rows)


# Two clips of 8 tokens, by hand; tokens 6 and 7 of the first are neither seen nor predicted.
DUAL = {"visible": [[0, 3], [5, 7]], "masked": [[1, 2, 4, 5], [0, 1, 2, 6]], "num_tokens": 8}


def test_tokens_that_are_neither_visible_nor_masked_are_hidden():
    mask = Mask(jnp.array(DUAL["visible"]), jnp.array(DUAL["masked"]), 8)
    assert mask.to_bool().astype(int).tolist() == [
        [0, 1, 1, 0, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 0, 1, 0],
    ]
    # so the encoder sees the same tokens, however the mask is handed on
    assert np.array_equal(Mask.from_bool(mask.to_bool()).visible, mask.visible)


@pytest.mark.parametrize("name", MASKS)
def test_drawn_masks_know_the_tokens_of_the_grid(name):
    assert drawn(name).num_tokens == math.prod(SMALL)
    assert drawn(name).to_bool().shape == (8, 48)
    assert Mask.from_bool(PICTURE).num_tokens == 12
    given = jax.jit(lambda rows: Mask.from_bool(rows, num_masked=5))(PICTURE)
    assert given.num_tokens == 12


def test_the_number_of_tokens_passes_through_jit_vmap_and_gradients():
    mask = Mask(jnp.array(DUAL["visible"]), jnp.array(DUAL["masked"]), 8)
    expected = np.asarray(mask.to_bool())
    assert jax.jit(lambda mask: mask)(mask).num_tokens == 8
    assert np.array_equal(jax.jit(Mask.to_bool)(mask), expected)
    assert np.array_equal(jax.vmap(Mask.to_bool)(mask), expected)  # one clip at a time
    drawn_apart = jax.vmap(lambda key: tube_mask(key, 1, SMALL, 0.5))(jax.random.split(KEY, 3))
    assert drawn_apart.num_tokens == 48
    assert drawn_apart.visible.shape == (3, 1, 24)
    by_name = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(mask)}
    assert by_name == {".visible", ".masked"}
    # a mask of the same shapes for more tokens is another program
    assert jax.tree.structure(mask) != jax.tree.structure(Mask(mask.visible, mask.masked, 9))


BAD_INDICES = {
    "too few tokens": ({"num_tokens": 5}, r"num_tokens=5, but 2 tokens are visible and 4 masked"),
    "beyond the end": ({"masked": [[1, 2, 4, 8], [0, 1, 2, 6]]}, r"token 8 .*num_tokens=8"),
    "negative": ({"visible": [[0, 3], [5, -1]]}, r"token -1 is not in \[0, num_tokens=8\)"),
    "visible and masked": ({"visible": [[0, 3], [5, 6]]}, "token 6 of clip 1 occurs twice"),
    "masked twice": ({"masked": [[1, 4, 4, 5], [0, 1, 2, 6]]}, "token 4 of clip 0 occurs twice"),
    "without the batch": ({"visible": [0, 3]}, r"shape \(2,\) and masked \(2, 4\).*\(batch, tok"),
    "of another batch": ({"visible": [[0, 3]]}, r"shape \(1, 2\) and masked \(2, 4\)"),
    "booleans": ({"visible": [[True], [False]]}, "dtype bool .*integer indices; Mask.from_bool"),
    "floats": ({"masked": [[1.0], [2.0]]}, "masked float32"),
}


@pytest.mark.parametrize("case", BAD_INDICES)
def test_indices_that_do_not_fit_are_refused(case):
    changes, message = BAD_INDICES[case]
    values = {**DUAL, **changes}
    arrays = [np.array(values[name]) for name in ("visible", "masked")]
    with pytest.raises(ValueError, match=message):
        Mask(*arrays, values["num_tokens"])


@pytest.mark.parametrize("case", ["too few tokens", "without the batch", "of another batch"])
def test_shapes_that_do_not_fit_are_refused_under_jit_too(case):
    changes, message = BAD_INDICES[case]
    values = {**DUAL, **changes}
    arrays = [np.array(values[name]) for name in ("visible", "masked")]
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda v, m: Mask(v, m, values["num_tokens"]))(*arrays)


def test_a_mask_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        drawn("tube").num_tokens = 3


def test_wrong_number_of_clip_keys_is_refused():
    with pytest.raises(ValueError, match=r"key has shape \(3,\), .* one per clip, \(2,\)"):
        tube_mask(jax.random.split(KEY, 3), 2, (2, 2, 2), 0.5)
