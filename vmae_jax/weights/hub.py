"""Checkpoints on the Hugging Face hub: which files of a repository make one, and how they get here.

`files.hub` fetches the files.
"""

from __future__ import annotations

import json
import os

from vmae_jax.errors import SettingError
from vmae_jax.files.hub import Commit
from vmae_jax.files.hub import is_hub_id as is_hub_id

CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
# The first that a repository has is taken, and no other: they hold the same tensors.
WEIGHTS_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_INDEX = ".index.json"


def download_checkpoint(repo_id: str, revision: str | None = None) -> str:
    """The local directory of a checkpoint, after fetching what is not in the cache yet.

    It holds `config.json`, `preprocessor_config.json` if the repository has one, and the first of
    `WEIGHTS_FILES` that it has (an index along with its shards): never weights in two formats, and
    nothing else. All are of one commit, even if someone pushes meanwhile. Files appear whole or not
    at all. Without the hub, the cache answers.

    Args:
      repo_id: "organisation/name".
      revision: a branch, a tag or a commit; None for "main".
    Raises:
      FileNotFoundError: if there is no such repository, revision, configuration or weights, or if
        `repo_id` cannot be a hub id.
      PermissionError: if the repository is gated, or a token refused.
      ConnectionError: if the hub cannot be reached, or the download breaks off, and the cache lacks
        a file.
      OSError: if the hub refuses for another reason, or the cache cannot be written (disk full,
        permissions), with its `errno`.
      ValueError: if the index of the shards is damaged.
    """
    commit = Commit(repo_id, revision)
    config = commit.first_of([CONFIG_FILE])
    weights = commit.first_of(WEIGHTS_FILES)
    directory = os.path.dirname(commit.download(config))
    if commit.has(PREPROCESSOR_FILE):
        commit.download(PREPROCESSOR_FILE)
    path = commit.download(weights)
    if weights.endswith(_INDEX):
        for shard in _read_shard_names(path):
            commit.download(shard)
    return directory


def _read_shard_names(path: str) -> list[str]:
    """The files that an index of shards names, which all must be of the format of the index."""
    suffix = os.path.splitext(path.removesuffix(_INDEX))[1]
    try:
        with open(path, encoding="utf-8") as file:
            shards = sorted(set(json.load(file)["weight_map"].values()))
        if not all(shard.endswith(suffix) for shard in shards):
            raise SettingError(f"it names files that do not end in {suffix}: {shards}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingError(
            f"{path} is damaged or no index of shards ({error}); tell the authors of the "
            "repository, or choose another revision."
        ) from error
    return shards
