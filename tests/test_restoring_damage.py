"""A damaged checkpoint is never loaded: the state is exactly that of a step, or there is none."""

from __future__ import annotations

import logging
import pathlib
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_damage import KINDS, Damage, all_damages

from vmae_jax.checkpoints import restoring, saving

STEPS = (10, 20)


def make_state(seed: int) -> dict:
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    weights = {"kernel": draw(3, 40, 50), "bias": draw(7).astype(jnp.bfloat16)}
    return {"step": jnp.asarray(seed, jnp.int32), "params": weights, "mu": draw(200, 90)}


def template() -> dict:
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), make_state(0)
    )


def save(directory: pathlib.Path) -> pathlib.Path:
    checkpoints = saving.Checkpoints(directory, keep=len(STEPS))
    for step in STEPS:
        checkpoints.save(make_state(step), step, {"config": {"seed": step}})
    checkpoints.wait()
    return directory


def same(a, b) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def survive(saved: pathlib.Path, copy: pathlib.Path, damage: Damage) -> tuple[str, list[str]]:
    """Damages the newest step of a copy and restores.

    Returns:
      "harmless" if the newest was restored, "fell back" if the one before was; and what was logged.
    Raises:
      AssertionError: for anything else, above all a state that is no step's.
    """
    newest, before = str(STEPS[-1]), str(STEPS[-2])
    shutil.copytree(saved, copy)
    damage.apply(copy / newest)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    try:
        restored = restoring.restore_newest(copy, template())
    finally:
        logging.getLogger().removeHandler(handler)
    assert restored is not None, damage
    assert same(restored.state, make_state(restored.step)), damage
    names = sorted(path.name for path in copy.iterdir())
    if restored.step == STEPS[-1]:
        assert (names, lines) == ([before, newest], []), damage
        return "harmless", lines
    assert names == [before, f"{newest}.corrupt-0"], damage
    assert len(lines) == 1, (damage, lines)
    assert f"{newest} is damaged: " in lines[0]
    assert f"Renamed to {newest}.corrupt-0" in lines[0]
    assert len(lines[0]) < 1000, damage
    return "fell back", lines


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    return save(tmp_path_factory.mktemp("run") / "checkpoints")


def sample() -> list[tuple[str, str]]:
    """(end of a file's name, kind): what matters most, and what Orbax does not notice."""
    return [
        ("_CHECKPOINT_METADATA", "flip"),
        ("_CHECKPOINT_METADATA", "truncate"),
        ("_CHECKPOINT_METADATA", "delete"),
        ("_CHECKPOINT_METADATA", "zero"),
        ("commit_success.txt", "delete"),
        ("_METADATA", "truncate"),
        ("_METADATA", "delete"),
        ("manifest.ocdbt", "flip"),
        ("manifest.ocdbt", "delete"),
        ("data", "flip"),
        ("data", "truncate"),
        ("data", "zero"),
        ("data", "delete"),
    ]


@pytest.mark.parametrize(("name", "kind"), sample())
def test_damage_costs_one_checkpoint_at_most(saved, tmp_path, name, kind, capfd):
    files = [d for d in all_damages(saved / "20", per_kind=2) if d.kind == kind]
    if name == "data":  # the largest: it holds the values
        largest = max(files, key=lambda d: (saved / "20" / d.file).stat().st_size)
        chosen = [d for d in files if d.file == largest.file]
    else:
        chosen = [d for d in files if d.file.removeprefix("state/") == name][:1]
    assert chosen
    outcomes = [survive(saved, tmp_path / str(i), d)[0] for i, d in enumerate(chosen)]
    if (name, kind) == ("commit_success.txt", "delete"):
        assert outcomes == ["harmless"]
    if name != "commit_success.txt" and kind in ("truncate", "delete"):
        assert set(outcomes) == {"fell back"}
    assert len(capfd.readouterr().err) < 2000


def test_all_kinds_change_what_they_should():
    content = bytes(range(1, 101)) * 100
    rng = random.Random(0)
    assert (
        sum((a ^ b).bit_count() for a, b in zip(KINDS["flip"](content, rng), content, strict=True))
        == 1
    )
    truncated = KINDS["truncate"](content, rng)
    assert content.startswith(truncated)
    assert len(truncated) < len(content)
    zeroed = KINDS["zero"](content, rng)
    assert len(zeroed) == len(content)
    assert 0 < zeroed.count(0) <= 4096
    assert KINDS["delete"](content, rng) is None
