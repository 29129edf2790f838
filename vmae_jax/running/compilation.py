"""Compiling a run's programs before its first step, and keeping them for the next start."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from vmae_jax import host_memory
from vmae_jax.errors import SettingError
from vmae_jax.files import storage

logger = logging.getLogger(__name__)


def keep_compiled_programs(folder: str) -> None:
    """Makes a restart find its programs there instead of compiling them again.

    Programs are code: the folder must be one that only its user writes, so it is not the workdir.

    Args:
      folder: local or remote; "" for ~/.cache/vmae_jax/compiled. The environment's
        JAX_COMPILATION_CACHE_DIR goes first.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        compilation_cache.reset_cache()  # an earlier run of this process may have had none
        compilation_cache.set_cache_dir(folder or os.path.join(storage.cache_home(), "compiled"))


def compile_step(step: Any, *arguments: Any) -> None:
    """Compiles a jitted train step, so that its time and memory are known; calls find the program.

    Raises:
      SettingError: if the compiler finds no room for it.
    """
    started = time.perf_counter()
    try:
        memory = step.lower(*arguments).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise SettingError(
            "the train step does not fit into the memory of a device; lower data.batch_size, raise "
            "optimizer.accumulation or mesh.fsdp, or choose compute.remat ('attention', 'full'). "
            "`python -m vmae_jax plan` says what fits. "
            f"The compiler: {str(error).strip().splitlines()[0]}"
        ) from error
    host_memory.give_back_freed_pieces()
    logger.info(
        "compiled in %.0f s; a step takes %.2f GiB on each device",
        time.perf_counter() - started, memory.peak_memory_in_bytes / 2**30,
    )  # fmt: skip
