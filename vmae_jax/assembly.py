"""From a run's configuration to its compiled steps.

What `train.py` runs, what `plan` compiles for a pod, and what tests trace is the object that
`make_steps` returns: no second version of the step exists. Nothing here allocates or computes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from vmae_jax import objectives, optim, sharding, training
from vmae_jax.config import VideoMAEConfig
from vmae_jax.errors import SettingError
from vmae_jax.vit import Compute, resolve_attention


class Steps(NamedTuple):
    """The functions of a run, jitted for one mesh; call and lower them under `jax.set_mesh(mesh)`.

    Attributes:
      init: () -> TrainState, each device making its own part.
      train: (state, batch) -> (state, metrics); the state is donated.
      evaluate: (params, batch) -> metrics, see `training.eval_step`.
      state: the shapes of a TrainState, with shardings.
      batch: the shapes of a training batch, with shardings.
      mesh: that they are for.
      model: what the model is.
      compute: how it is computed.
      graphdef: of the model.
      schedule: step -> learning rate.
      attention: which kernel computes it and why, a line for the log.
    """

    init: Callable
    train: Callable
    evaluate: Callable
    state: training.TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    mesh: Mesh
    model: VideoMAEConfig
    compute: Compute
    graphdef: nnx.GraphDef
    schedule: optim.Schedule
    attention: str


def make_steps(
    config: Any,
    *,
    num_records: int | None,
    devices: Sequence[jax.Device] | None = None,
    slices: int | None = None,
) -> Steps:
    """The steps that a configuration describes.

    Args:
      config: as `configs/default.py` has it.
      num_records: training records of the data set, which make an epoch unless
        `config.data.num_clips` says how many do; None if the data set was not opened.
      devices: of the mesh; all that there are by default. They may be descriptions, to compile for
        a machine that is not there.
      slices: as of `sharding.make_mesh`.
    Raises:
      ValueError: for settings that cannot work together, named as they stand in the configuration.
    """
    devices = jax.devices() if devices is None else list(devices)
    model = make_model_config(config)
    compute, attention = resolve_attention(
        Compute(**config.compute), model, None if devices == jax.devices() else devices[0].platform
    )
    mesh = sharding.make_mesh(
        **config.mesh,
        heads=(model.num_attention_heads, model.decoder_num_attention_heads),
        devices=devices,
        slices=slices,
    )
    accumulation = config.optimizer.accumulation
    sharding.check_batch(
        mesh, config.data.batch_size, repeat=config.data.repeat, accumulation=accumulation
    )
    objective = objectives.make_objective(**config.objective)
    schedule = make_schedule(config, num_records)
    settings = {name: value for name, value in config.optimizer.items() if name != "accumulation"}
    optimizer = optim.make_optimizer(schedule, **settings)

    init = functools.partial(training.init_state, model, compute, optimizer, seed=config.seed)
    shapes = jax.eval_shape(init)
    shardings = sharding.state_shardings(shapes, mesh)
    state = jax.tree.map(
        lambda x, lies: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies), shapes, shardings
    )
    on_all = sharding.replicated(mesh)
    options = _compiler_options(config.run.deterministic, devices[0].platform)
    bound = {"graphdef": training.graph_definition(model, compute), "seed": config.seed}
    train = functools.partial(
        training.train_step,
        objective=objective,
        optimizer=optimizer,
        schedule=schedule,
        accumulation=accumulation,
        **bound,
    )
    evaluate = functools.partial(
        training.eval_step, objective=functools.partial(objective, evaluation=True), **bound
    )
    return Steps(
        init=jax.jit(init, out_shardings=shardings),
        train=jax.jit(
            train, donate_argnums=0, out_shardings=(shardings, on_all), compiler_options=options
        ),
        evaluate=jax.jit(evaluate, out_shardings=on_all, compiler_options=options),
        state=state,
        batch=batch_shapes(config, model, mesh),
        mesh=mesh,
        model=model,
        compute=compute,
        graphdef=bound["graphdef"],
        schedule=schedule,
        attention=attention,
    )


def make_model_config(config: Any) -> VideoMAEConfig:
    """The published size, with the fields that the run's configuration sets otherwise."""
    changes = {name: value for name, value in config.model.items() if value is not None}
    return VideoMAEConfig.from_size(changes.pop("size"), **changes)


def make_schedule(config: Any, num_records: int | None) -> optim.Schedule:
    """The run's schedule; all `num_records` make an epoch, unless the configuration says how many
    do.

    Raises: ValueError if the numbers make no schedule, or an epoch has no known length.
    """
    data, schedule = config.data, config.schedule
    num_clips = num_records if data.num_clips is None else data.num_clips
    if num_clips is None:
        if schedule.num_steps is None or schedule.warmup_steps is None:
            raise SettingError(
                "data.num_clips=None: the length of an epoch is not known without the data set; "
                "give data.num_clips, or schedule.num_steps and schedule.warmup_steps."
            )
        num_clips = data.batch_size  # not looked at
    return optim.make_schedule(
        # the published rates and epochs count videos, not the crops made of each (V2)
        batch_size=data.batch_size // data.repeat,
        num_clips=num_clips,
        **schedule,
    )


def batch_shapes(config: Any, model: VideoMAEConfig, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """What the train step gets of a batch."""
    data = config.data
    clip = (model.num_frames, *model.frame_size, model.num_channels)
    arrays = {"video": ((data.batch_size, *clip), np.uint8)}
    if data.canvas_size is not None:
        groups = data.batch_size // data.repeat
        canvas = (model.num_frames, *data.canvas_size, model.num_channels)
        arrays = {
            "video": ((groups, *canvas), np.uint8),
            "boxes": ((groups, data.repeat, 4), np.int32),
        }
    split = sharding.batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=split)
        for name, (shape, dtype) in arrays.items()
    }


def _compiler_options(deterministic: bool, platform: str) -> dict[str, bool] | None:
    """CPUs and TPUs compute the same twice by themselves."""
    return {"xla_gpu_deterministic_ops": True} if deterministic and platform == "gpu" else None
