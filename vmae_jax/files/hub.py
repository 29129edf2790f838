"""Files by the name of their repository on the Hugging Face hub, e.g. "MCG-NJU/videomae-base".

Downloads go to the cache that all libraries of the hub share, and HF_HOME, HF_HUB_CACHE,
HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they mean there: huggingface_hub reads them when
it is first imported, so a program sets them before its first download. Nothing downloaded is run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence

from vmae_jax.errors import SettingError

_FULL = (errno.ENOSPC, errno.EDQUOT)
# The rules of huggingface_hub, which need not be installed to tell that a path does not exist.
_PART = r"\w(?:[\w.-]{0,94}\w)?"
_HUB_ID = re.compile(rf"(?:{_PART}/)?{_PART}", re.ASCII)
_LOGIN = "`hf auth login` or HF_TOKEN"
# Options of transformers for its downloads, and what is used here instead.
_ELSEWHERE = {
    "cache_dir": "set HF_HUB_CACHE",
    "force_download": "delete the repository from the cache, with `hf cache rm`",
    "local_files_only": "set HF_HUB_OFFLINE=1",
    "mirror": "set HF_ENDPOINT",
    "proxies": "set HTTPS_PROXY",
    "resume_download": "leave it out, for downloads are always resumed",
    "return_unused_kwargs": "leave it out, for an unknown option is an error, so none is left over",
    "subfolder": "download the repository with `hf download`, and give the folder's path",
    "token": f"use {_LOGIN}",
    "trust_remote_code": "leave it out, for no code of a repository is ever run",
    "use_auth_token": f"use {_LOGIN}",
}


def is_hub_id(name: str) -> bool:
    """Whether a name means a repository of the hub: "organisation/name", or "name" of the old ones.

    What exists here is no hub id, whatever its name.
    """
    return _may_be_hub_id(name) and not os.path.exists(name)


def refuse_download_options(names: Iterable[str]) -> None:
    """Checks that no option is one that the environment has.

    Raises:
      SettingError: with what to do instead.
    """
    for name in names:
        if name in _ELSEWHERE:
            raise SettingError(f"{name} is no option here; {_ELSEWHERE[name]}.")


def download_file(repo_id: str, filename: str, revision: str | None = None) -> str:
    """The local path of one file of a repository, after fetching what is not in the cache yet.

    Args:
      repo_id: "organisation/name".
      filename: its name in the repository.
      revision: a branch, a tag or a commit; None for "main".
    Raises:
      FileNotFoundError: if there is no such repository, revision or file, or if `repo_id` cannot be
        a hub id.
      OSError: as `Commit` says.
    """
    commit = Commit(repo_id, revision)
    return commit.download(commit.first_of([filename]))


class Commit:
    """One commit of a repository, as the hub shows it or, without the hub, the cache.

    Raises:
      FileNotFoundError: if there is no such repository or revision, or if `repo_id` cannot be a hub
        id; from `first_of` and `download` also for a file that the commit lacks.
      PermissionError: if the repository is gated, or a token refused.
      ConnectionError: if the hub cannot be reached, or the download breaks off, and the cache lacks
        a file.
      OSError: if the hub refuses for another reason, or the cache cannot be written (disk full,
        permissions), with its `errno`.
    """

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

        page = f"{constants.ENDPOINT}/{self._repo_id}"
        try:
            yield
        except errors.GatedRepoError as error:
            raise PermissionError(
                f"{self} is gated; ask for access at {page}, then give your token by {_LOGIN}."
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise FileNotFoundError(
                f"{self} does not exist or is private, and no directory of that name exists here; "
                f"check the spelling, or give a token that may read it by {_LOGIN}."
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


def upload(
    save: Callable[[str], object],
    repo_id: str,
    *,
    commit_message: str,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """One commit of what `save` writes; the repository is made if there is none.

    Args:
      save: writes files into the folder that it is given. Nothing is uploaded if it fails.
      repo_id: "organisation/name", or "name" in the user's own namespace.
      commit_message, commit_description: of the commit.
      private: whether a new repository is; None leaves it to the organisation.
      token: None for the one of `hf auth login` or HF_TOKEN.
      revision: the branch, made if there is none; None for "main".
      create_pr: whether to ask for the change by a pull request.
    Returns:
      huggingface_hub's `CommitInfo`: the address of the commit, with more in its attributes.
    Raises:
      PermissionError: without a token that may write there.
      ConnectionError: if the hub cannot be reached, or refuses for another reason.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    if not _may_be_hub_id(repo_id):
        raise SettingError(
            f"repo_id={repo_id!r} cannot be an id of the hub, which looks like 'organisation/name'."
        )
    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        additions = [
            CommitOperationAdd(name, os.path.join(folder, name))
            for name in sorted(os.listdir(folder))
        ]
        with _plain_upload_errors(repo_id):
            api = HfApi(token=token)
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None and not revision.startswith("refs/pr"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            return api.create_commit(
                repo_id,
                additions,
                commit_message=commit_message,
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
            )


@contextlib.contextmanager
def _plain_upload_errors(repo_id: str):
    from huggingface_hub import constants, errors

    target = f"{repo_id!r} at {constants.ENDPOINT}"
    otherwise = "save_pretrained writes the same files to a folder, for `hf upload`"
    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise ConnectionError(
            f"nothing can be pushed to {target} while HF_HUB_OFFLINE is set; unset it, or "
            f"{otherwise}."
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise PermissionError(
                f"the hub does not let you write to {target} (status {status}); give a token that "
                f"may by {_LOGIN}, or choose another repo_id."
            ) from error
        said = f", {error.server_message}" if error.server_message else ""
        raise ConnectionError(
            f"the hub refused what was pushed to {target} (status {status}{said}); {otherwise}."
        ) from error
    except errors.HTTPError as error:
        raise ConnectionError(
            f"{target} cannot be reached ({error}); check the connection, or {otherwise}."
        ) from error
