"""Checkpoints by their name on the Hugging Face hub, e.g. "MCG-NJU/videomae-base".

Files go to the cache that all libraries of the hub share, and HF_HOME, HF_HUB_CACHE, HF_ENDPOINT,
HF_TOKEN and HF_HUB_OFFLINE mean what they mean there: huggingface_hub reads them when it is first
imported, so a program sets them before its first download. Nothing downloaded is run.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Sequence

from vmae_jax.errors import SettingError

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
_FULL = (errno.ENOSPC, errno.EDQUOT)
# The rules of huggingface_hub, which need not be installed to tell that a path does not exist.
_PART = r"\w(?:[\w.-]{0,94}\w)?"
_HUB_ID = re.compile(rf"(?:{_PART}/)?{_PART}", re.ASCII)


def is_hub_id(name: str) -> bool:
    """Whether a name means a repository of the hub: "organisation/name", or "name" of the old ones.

    What exists here is no hub id, whatever its name.
    """
    return _may_be_hub_id(name) and not os.path.exists(name)


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
    commit = _Commit(repo_id, revision)
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


def download_file(repo_id: str, filename: str, revision: str | None = None) -> str:
    """The local path of one file of a repository; arguments and errors as `download_checkpoint`."""
    commit = _Commit(repo_id, revision)
    return commit.download(commit.first_of([filename]))


class _Commit:
    """One commit of a repository, as the hub shows it or, without the hub, the cache."""

    def __init__(self, repo_id: str, revision: str | None):
        if not _may_be_hub_id(repo_id):
            raise FileNotFoundError(
                f"{repo_id!r} is neither: no such file or directory exists, and an id of the "
                "Hugging Face hub looks like 'organisation/name'."
            )
        from huggingface_hub import HfApi, resolve_revision
        from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

        self._repo_id = repo_id
        self._revision = revision
        self._names: set[str] | None = None
        with self._plain_errors():
            self._sha = resolve_revision(repo_id, revision=revision).resolved
            try:
                siblings = HfApi().repo_info(repo_id, revision=self._sha).siblings
                self._names = {sibling.rfilename for sibling in siblings}
            except (HTTPError, OfflineModeIsEnabled) as error:
                self._unreachable = error  # no matter for what is cached: commits do not change

    def has(self, filename: str) -> bool:
        """Whether the commit holds a file; without the hub, whether the cache does."""
        from huggingface_hub import try_to_load_from_cache

        if self._names is not None:
            return filename in self._names
        return isinstance(try_to_load_from_cache(self._repo_id, filename, revision=self._sha), str)

    def first_of(self, filenames: Sequence[str]) -> str:
        """The first of some files that the commit holds."""
        for filename in filenames:
            if self.has(filename):
                return filename
        if self._names is None:
            with self._plain_errors():
                raise self._unreachable
        raise FileNotFoundError(
            f"{self} has no {' or '.join(filenames)}, only {', '.join(sorted(self._names)[:20])}; "
            "choose a repository, or a revision, that has."
        )

    def download(self, filename: str) -> str:
        """The local path of a file of the commit."""
        from huggingface_hub import hf_hub_download

        with self._plain_errors():
            return hf_hub_download(self._repo_id, filename, revision=self._sha)

    def __str__(self) -> str:
        from huggingface_hub import constants

        revision = f" (revision {self._revision!r})" if self._revision else ""
        return f"{self._repo_id!r}{revision} at {constants.ENDPOINT}"

    @contextlib.contextmanager
    def _plain_errors(self):
        """One sentence, with a remedy, for each way in which huggingface_hub fails.

        Most specific first: what it raises are subclasses of each other and of OSError.
        """
        from huggingface_hub import constants, errors

        login = "`hf auth login` or HF_TOKEN"
        page = f"{constants.ENDPOINT}/{self._repo_id}"
        try:
            yield
        except errors.GatedRepoError as error:
            raise PermissionError(
                f"{self} is gated; ask for access at {page}, then give your token by {login}."
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise FileNotFoundError(
                f"{self} does not exist or is private, and no directory of that name exists here; "
                f"check the spelling, or give a token that may read it by {login}."
            ) from error
        except errors.RevisionNotFoundError as error:
            raise FileNotFoundError(
                f"revision={self._revision!r} is no branch, tag or commit of {self._repo_id!r}; "
                f"{page}/tree/main lists them."
            ) from error
        except errors.RemoteEntryNotFoundError as error:
            raise FileNotFoundError(
                f"{self} lacks a file that its index names: {error.response.url}."
            ) from error
        except (
            errors.RevisionResolutionError,
            errors.LocalEntryNotFoundError,
            errors.HTTPError,
            errors.OfflineModeIsEnabled,
        ) as error:
            raise self._no_answer(error) from error
        except OSError as error:
            if error.errno is None:
                raise ConnectionError(f"{self}: the download broke off; try again.") from error
            remedy = "free some space there" if error.errno in _FULL else "make it writable"
            raise OSError(
                error.errno,
                f"{self} cannot be stored in the cache {constants.HF_HUB_CACHE} "
                f"({error.strerror}); {remedy}, or set HF_HOME to another directory",
            ) from error

    def _no_answer(self, error: Exception) -> OSError:
        """For when the hub was asked for what the cache lacks, and did not give it."""
        from huggingface_hub import constants
        from huggingface_hub.errors import HfHubHTTPError

        if constants.is_offline_mode():
            return ConnectionError(
                f"{self} is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set; "
                "unset it, or give a local directory."
            )
        cause = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else error
        if not isinstance(cause, HfHubHTTPError):
            return ConnectionError(
                f"{self} is not in the cache {constants.HF_HUB_CACHE}, and the hub cannot be "
                f"reached ({error.__cause__ or error}); check the connection, or give a local "
                "directory."
            )
        status = cause.response.status_code
        if status in (401, 403):
            return PermissionError(
                f"{self}: the hub refused your token (status {status}); renew it with "
                "`hf auth login`, or correct or unset HF_TOKEN."
            )
        return ConnectionError(
            f"{self} could not be fetched: the hub answered with status {status}; try again later, "
            "or give a local directory."
        )


def _may_be_hub_id(name: str) -> bool:
    return (
        _HUB_ID.fullmatch(name) is not None
        and "--" not in name
        and ".." not in name
        and not name.endswith(".git")
    )


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
