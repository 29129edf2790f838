"""Files on this machine and below remote roots ("gs://...", "s3://..."), used in the same way.

Remote ones go through etils.epath, which knows gs, s3, az and hf, and needs the package of each
(gcsfs, s3fs, ...); it is imported for them alone. A missing folder is an error here, never an empty
one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vmae_jax.errors import MissingPackage, SettingError

if TYPE_CHECKING:
    from etils import epath


def is_remote(path: str) -> bool:
    """Whether the path is an address."""
    return "://" in path


def remote_path(address: str) -> epath.Path:
    """An address as a path that shows what is there now.

    Raises:
      SettingError: if its scheme is unknown.
    """
    import fsspec
    from etils import epath

    for name in ("gs", "gcs"):  # gcsfs would show a folder for ever as it first saw it
        fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False
    try:
        return epath.Path(address)
    except KeyError as error:
        raise SettingError(
            f"path={address!r} has an unknown scheme; use gs://, s3://, az:// or hf://, or copy "
            "the data to this machine."
        ) from error
    except ImportError as error:
        raise MissingPackage(
            f"path={address!r} needs a package that is not installed ({error}); for gs:// run "
            "`pip install vmae_jax[gcs]`."
        ) from error


def join(root: str, path: str) -> str:
    """`path` below `root`; as it stands if root is "", or if it is absolute or an address."""
    if not root or is_remote(path) or os.path.isabs(path):
        return path
    return f"{root.rstrip('/')}/{path}" if is_remote(root) else os.path.join(root, path)


def cache_home() -> str:
    """This user's folder for what we can make again; it may not be there yet."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(home, "vmae_jax")


def list_files(root: str | None) -> list[str]:
    """All files below a folder, relative to it, with "/" between the parts, in sorted order.

    Links to folders are followed. Where one leads back to a folder that it lies in, it is left out.

    Raises:
      SettingError: if it is not a folder, or the scheme of an address is unknown.
      OSError: if a folder in it cannot be read.
    """
    if root and is_remote(root):
        return sorted(_remote_files(root))
    if not root or not os.path.isdir(root):
        raise SettingError(f"path={root!r} is not a folder; give one that exists.")
    return sorted(_local_files(root, "", {_identity(os.stat(root))}))


def list_folder(path: str) -> list[str]:
    """Names of what lies in a folder itself, in no order.

    Raises:
      OSError: if it cannot be read.
      SettingError: if the scheme of an address is unknown.
    """
    if is_remote(path):
        return [entry.name for entry in remote_path(path).iterdir()]
    return os.listdir(path)


def read_bytes(path: str, max_bytes: int) -> bytes:
    """The contents of a file.

    Raises:
      OSError: if it cannot be read.
      SettingError: if it is larger than max_bytes, or the scheme of an address is unknown.
    """
    remote = remote_path(path) if is_remote(path) else None
    size = remote.stat().length if remote else os.path.getsize(path)
    if size > max_bytes:
        raise SettingError(f"path={path!r} has {size} bytes, above {max_bytes}; split the file.")
    if remote:
        return remote.read_bytes()
    with open(path, "rb") as file:
        return file.read()


def write_bytes(path: str, data: bytes) -> None:
    """Writes a whole file, in place of the one before; folders are made as needed.

    Raises:
      OSError: if it cannot be written; remote file systems raise errors of their own besides.
      SettingError: if the scheme of an address is unknown.
    """
    if is_remote(path):
        remote = remote_path(path)
        remote.parent.mkdir(parents=True, exist_ok=True)
        remote.write_bytes(data)
        return
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


@contextlib.contextmanager
def local_folder(path: str) -> Iterator[str]:
    """A folder of this machine to write files in, which in the end are in the folder `path`.

    It is `path` itself if that is local; otherwise a temporary one, copied there at the end.

    Raises:
      OSError: if it cannot be written; remote file systems raise errors of their own besides.
    """
    if not is_remote(path):
        os.makedirs(path, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield folder
        for name in list_files(folder):
            file = os.path.join(folder, name)
            write_bytes(join(path, name), read_bytes(file, os.path.getsize(file)))


def read_text(path: str | None, max_bytes: int) -> str:
    """The contents of a UTF-8 file.

    Raises:
      SettingError: if it is missing, cannot be read, is too large, or is no UTF-8.
    """
    if not path:
        raise SettingError(f"path={path!r} is not a file; give the file that lists your videos.")
    try:
        return read_bytes(path, max_bytes).decode("utf-8-sig")
    except OSError as error:
        raise SettingError(
            f"path={path!r} cannot be read ({error}); give the file that lists your videos."
        ) from error
    except UnicodeDecodeError as error:
        raise SettingError(
            f"path={path!r} is not UTF-8 at byte {error.start}; convert the file."
        ) from error


def _local_files(folder: str, prefix: str, above: set[tuple[int, int]]) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                identity = _identity(entry.stat()) if entry.is_dir() else None
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                identity = None  # a link to itself, a file as any link that leads nowhere
            if identity is None:
                yield prefix + entry.name
            elif identity not in above:
                yield from _local_files(entry.path, f"{prefix}{entry.name}/", {*above, identity})


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _raise(error: OSError) -> None:
    raise error


def _remote_files(root: str) -> Iterator[str]:
    top = None
    try:
        # Only the first folder's own name tells how this backend spells the root.
        for folder, _, files in remote_path(root).walk(on_error=_raise):
            top = str(folder) if top is None else top
            below = str(folder)[len(top) :].strip("/")
            yield from (f"{below}/{file}" if below else file for file in files)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SettingError(
            f"path={root!r} is not a folder ({error}); give one that exists."
        ) from error
