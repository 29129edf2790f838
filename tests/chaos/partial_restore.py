"""Starting from checkpoints that hold another model, or only parts of one."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax

from configs import default
from tests.chaos.campaign import Scene
from tests.chaos.painted import NUM_RECORDS
from tests.chaos.runs import SETTINGS, facts_of
from vmae_jax import assembly, loop
from vmae_jax.checkpoints import finished_steps, loading, restoring, saving
from vmae_jax.checkpoints.fingerprints import named_leaves, to_plain
from vmae_jax.tasks import make_task
from vmae_jax.weights.initial_params import ENCODER

# what the run has otherwise than the checkpoint
OTHER_MODELS = {
    "another depth": {"model.num_hidden_layers": 2},
    "another MLP": {"model.intermediate_size": 48},
    "another width": {"model.hidden_size": 32},
    "other patches": {"model.patch_size": 4},
    "other tubelets": {"model.num_frames": 4, "model.tubelet_size": 4},
}
MISSING, EXTRA = "encoder/output/bias", "encoder/surplus/bias"


def mismatches(scene: Scene) -> None:
    """In a process of their own, as the trainer does it before its first step."""
    clean = scene.shared.clean(schedule__num_steps=10, run__keep_checkpoints=2)
    for fact in facts_of("tests.chaos.partial_restore", clean.workdir / "checkpoints"):
        scene.check(fact["kind"], fact["outcome"], fact["problem"])


def main(checkpoints: Path) -> None:
    """Prints what became of each."""
    newest = checkpoints / str(finished_steps.saved_steps(checkpoints)[-1])
    params = to_plain_params(newest)
    ours = _encoder(params)
    _tell("the same model", "the encoder is exact, the decoder fresh", _wrong_start(newest, ours))
    refused = "refused, every array named"
    for name, changes in OTHER_MODELS.items():
        wanted = _encoder(_steps(changes).state.params)
        odd = [n for n in wanted if n not in ours or wanted[n].shape != ours[n].shape]
        _tell(name, refused, _not_refused(newest, changes, odd))
    with tempfile.TemporaryDirectory() as folder:
        for name, edit in {"an array is missing": MISSING, "an array too many": EXTRA}.items():
            edited = dict(named_leaves(params))
            if edit == MISSING:
                del edited[edit]
            else:
                edited[edit] = edited[MISSING]
            path = _save(edited, Path(folder) / name.replace(" ", "_"), newest)
            _tell(name, refused, _not_refused(path, {}, [edit]))
    changes = {"model.hidden_size": 32}
    template = _steps(changes).state
    try:
        restoring.restore_newest(checkpoints, template)
        problem = "it was restored"
    except loading.CheckpointMismatch as error:
        stored = _shapes(loading.restore(newest, {"params": _here(params)}).state["params"])
        wanted = _shapes(template.params)
        odd = [f"params/{n}" for n in wanted if stored.get(n) != wanted[n]]
        problem = _unnamed(str(error), odd)
    _tell("a whole state of another width", refused, problem)


def to_plain_params(step: Path) -> dict[str, Any]:
    """The parameters of a checkpoint as nested dicts."""
    return to_plain(loading.read_params(step)[0])


def _tell(kind: str, outcome: str, problem: str | None) -> None:
    print(json.dumps({"kind": kind, "outcome": outcome, "problem": problem}), flush=True)


def _config(changes: dict[str, Any]):
    config = default.get_config()
    settings = {**SETTINGS, "model.image_size": (16, 16), **changes}
    config.update_from_flattened_dict(settings)
    return config


def _steps(changes: dict[str, Any]) -> assembly.Steps:
    config = _config(changes)
    return assembly.make_steps(config, make_task(config), num_records=NUM_RECORDS["train"])


def _start(path: Path, changes: dict[str, Any]):
    """The state before the first step of a run that starts from a checkpoint."""
    config = _config({**changes, "init.checkpoint": str(path)})
    steps = _steps(changes)
    with jax.set_mesh(steps.mesh):
        return loop.fresh_state(config, make_task(config), steps)[0]


def _wrong_start(path: Path, ours: dict[str, jax.Array]) -> str | None:
    state = _start(path, {})
    for name, leaf in named_leaves(state).items():
        if not isinstance(leaf, jax.Array):
            return f"{name} is a {type(leaf).__name__}"
    taken = _encoder(state.params)
    wrong = [name for name in taken if taken[name].tobytes() != ours[name].tobytes()]
    return f"other values in {wrong}" if wrong else None


def _not_refused(path: Path, changes: dict[str, Any], odd: list[str]) -> str | None:
    """What is wrong, unless it is refused with all those names."""
    assert odd
    try:
        _start(path, changes)
    except ValueError as error:
        return _unnamed(str(error), odd)
    return "it was taken"


def _unnamed(message: str, names: list[str]) -> str | None:
    missing = [name for name in names if name not in message]
    return f"not named: {missing} in {message}" if missing else None


def _encoder(params: Any) -> dict[str, Any]:
    return {n: x for n, x in named_leaves(params).items() if n.split("/")[0] in ENCODER}


def _shapes(params: Any) -> dict[str, tuple]:
    return {name: tuple(leaf.shape) for name, leaf in named_leaves(params).items()}


def _here(tree: Any) -> Any:
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), tree)


def _save(params: dict[str, jax.Array], directory: Path, like: Path) -> Path:
    """A checkpoint of other parameters that says the same of itself as another one."""
    _, info = loading.read_params(like)
    checkpoints = saving.Checkpoints(directory, keep=1)
    arrays = {name: jax.numpy.asarray(value) for name, value in params.items()}
    checkpoints.save({"params": arrays}, 1, {"model": info["model"]})
    checkpoints.wait()
    return directory / "1"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
