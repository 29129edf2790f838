"""From a run's configuration to its compiled steps.

What `train.py` runs, what `plan` compiles for a pod, and what tests trace is the object that
`make_steps` returns: no second version of the step exists. Nothing here allocates or computes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx
from jax.sharding import Mesh

from vmae_jax import optim, sharding, training
from vmae_jax.config import VideoMAEConfig
from vmae_jax.errors import SettingError
from vmae_jax.tasks.task import Task
from vmae_jax.trainable import select, trained_layers
from vmae_jax.vit import Compute, resolve_attention

if TYPE_CHECKING:
    from vmae_jax.data.sources.video_source import VideoSource


@dataclasses.dataclass(frozen=True)
class Steps:
    """The functions of a run, jitted for one mesh; call and lower them under `jax.set_mesh(mesh)`.

    Attributes:
      init: () -> (TrainState, frozen), each device making its own part.
      train: (state, batch, frozen) -> (state, metrics); the state is donated.
      evaluate: (params, batch, frozen) -> metrics, see `training.eval_step`.
      predict: (params, batch, frozen) -> arrays per clip, see `training.predict_step`.
      state: the shapes of a TrainState, with shardings.
      frozen: the shapes of what is not trained, with shardings; {} for nothing.
      batch: the shapes of a training batch, with shardings.
      held_out: the names of the arrays of a held-out batch.
      mesh: that they are for.
      model_config: what the model is.
      compute: how it is computed.
      graphdef: of the model.
      schedule: step -> learning rate.
      attention: which kernel computes it and why, a line for the log.
    """

    init: Callable
    train: Callable
    evaluate: Callable
    predict: Callable
    state: training.TrainState
    frozen: dict[str, Any]
    batch: dict[str, jax.ShapeDtypeStruct]
    held_out: tuple[str, ...]
    mesh: Mesh
    model_config: VideoMAEConfig
    compute: Compute
    graphdef: nnx.GraphDef
    schedule: optim.Schedule
    attention: str

    @property
    def arguments(self) -> tuple:
        """The shapes that `train` is called with."""
        return self.state, self.batch, self.frozen


def make_steps(
    config: Any,
    task: Task,
    *,
    num_records: int | None,
    class_names: Sequence[str] = (),
    devices: Sequence[jax.Device] | None = None,
    slices: int | None = None,
) -> Steps:
    """The steps that a configuration describes.

    Args:
      config: as `configs/default.py` has it.
      task: of the configuration, see `tasks.make_task`.
      num_records: training records of the data set, which make an epoch unless
        `config.data.num_clips` says how many do; None if the data set was not opened.
      class_names: as of `make_model_config`, see `classes_of`.
      devices: of the mesh; all that there are by default. They may be descriptions, to compile for
        a machine that is not there.
      slices: as of `sharding.make_mesh`.
    Raises:
      SettingError: for settings that cannot work together, named as they stand in the
        configuration.
    """
    devices = jax.devices() if devices is None else list(devices)
    model_config = make_model_config(config, class_names)
    compute, attention = resolve_attention(
        Compute(**config.compute),
        model_config,
        None if devices == jax.devices() else devices[0].platform,
    )
    mesh = sharding.make_mesh(
        **config.mesh,
        heads=(model_config.num_attention_heads, model_config.decoder_num_attention_heads),
        devices=devices,
        slices=slices,
    )
    sharding.check_batch(
        mesh,
        config.data.batch_size,
        repeat=config.data.repeat,
        accumulation=config.optimizer.accumulation,
    )
    schedule = make_schedule(config, num_records)
    settings = dict(config.optimizer.items())
    accumulation, patterns = settings.pop("accumulation"), settings.pop("train")
    ema_decay = _checked_decay(settings.pop("ema_decay"))
    optimizer = optim.make_optimizer(
        schedule, num_layers=model_config.num_hidden_layers, **settings
    )

    def make_params():
        model = task.make_model(model_config, compute, nnx.Rngs(params=config.seed))
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        return training.split_params(params, task.frozen_parts)

    patterns = task.trains if patterns is None else patterns
    selection = None if patterns is None else select(jax.eval_shape(make_params)[0], patterns)
    compute = dataclasses.replace(compute, trained=trained_layers(selection))

    def init():
        params, frozen_params = make_params()
        frozen = task.make_frozen(model_config, compute)
        if frozen_params:
            frozen = {**frozen, "model": frozen_params}
        averages = ema_decay is not None
        return training.init_state(params, optimizer, selection, averages=averages), frozen

    shapes = jax.eval_shape(init)
    shardings = sharding.state_shardings(shapes, mesh)
    state, frozen = jax.tree.map(
        lambda x, lies: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies), shapes, shardings
    )
    on_all = sharding.replicated(mesh)
    compile_options = _compiler_options(config.run.deterministic, devices[0].platform)
    model = nnx.eval_shape(lambda: task.make_model(model_config, compute, nnx.Rngs(params=0)))
    bound = {"graphdef": nnx.graphdef(model), "seed": config.seed}
    train = functools.partial(
        training.train_step,
        prepare=task.prepare,
        objective=task.objective,
        optimizer=optimizer,
        schedule=schedule,
        accumulation=accumulation,
        selection=selection,
        ema_decay=ema_decay,
        **bound,
    )
    objective = functools.partial(task.objective, evaluation=True)
    evaluate = functools.partial(training.eval_step, objective=objective, **bound)
    predict = functools.partial(training.predict_step, predict=task.predict, **bound)
    return Steps(
        init=jax.jit(init, out_shardings=shardings),
        train=jax.jit(
            train,
            donate_argnums=0,
            out_shardings=(shardings[0], on_all),
            compiler_options=compile_options,
        ),
        evaluate=jax.jit(evaluate, out_shardings=on_all, compiler_options=compile_options),
        predict=jax.jit(predict, out_shardings=on_all, compiler_options=compile_options),
        state=state,
        frozen=frozen,
        batch=batch_shapes(config, task, model_config, mesh),
        held_out=(*task.batch(model_config, config.data, held_out=True), "index", "weight"),
        mesh=mesh,
        model_config=model_config,
        compute=compute,
        graphdef=bound["graphdef"],
        schedule=schedule,
        attention=attention,
    )


def _checked_decay(ema_decay: float | None) -> float | None:
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise SettingError(f"optimizer.ema_decay={ema_decay} must be in [0, 1), e.g. 0.9999.")
    return ema_decay


def classes_of(task: Task, source: VideoSource) -> Sequence[str]:
    """The names of the classes that a run learns: none if its model has no classifier."""
    return source.class_names if "classifier" in task.parts else ()


def make_model_config(config: Any, class_names: Sequence[str] = ()) -> VideoMAEConfig:
    """The published size, with the fields that the run's configuration sets otherwise.

    Args:
      config: of the run.
      class_names: of its classifier, by number; () if there is none, or nobody names its classes.
    Raises:
      SettingError: for values that cannot work; if the number of classes is not that of the names.
    """
    changes = {name: value for name, value in config.model.items() if value is not None}
    if class_names:
        changes |= _classes(changes.get("num_labels"), class_names)
    return VideoMAEConfig.from_size(changes.pop("size"), **changes)


def _classes(num_labels: int | None, names: Sequence[str]) -> dict[str, Any]:
    if num_labels not in (None, len(names)):
        raise SettingError(
            f"model.num_labels={num_labels}, and the data set names {len(names)} classes "
            f"({', '.join(names[:3])}, ...); leave it out, or correct the data set."
        )
    return {"num_labels": len(names), "id2label": dict(enumerate(names))}


def make_schedule(config: Any, num_records: int | None) -> optim.Schedule:
    """The run's schedule; all `num_records` make an epoch, unless the configuration says how many
    do.

    Raises:
      ValueError: if the numbers make no schedule, or an epoch has no known length.
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


def batch_shapes(
    config: Any, task: Task, model_config: VideoMAEConfig, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """What the train step gets of a batch."""
    num_groups = config.data.batch_size // config.data.repeat
    split = sharding.batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((num_groups * shape[0], *shape[1:]), dtype, sharding=split)
        for name, (shape, dtype) in task.batch(model_config, config.data, held_out=False).items()
    }


def _compiler_options(deterministic: bool, platform: str) -> dict[str, bool] | None:
    """CPUs and TPUs compute the same twice by themselves."""
    return {"xla_gpu_deterministic_ops": True} if deterministic and platform == "gpu" else None
