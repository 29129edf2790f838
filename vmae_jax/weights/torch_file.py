"""What `torch.save` wrote, without torch and without trusting the file.

    with open_torch_file("checkpoint.pth") as file:
        weight = file.tree["model"]["encoder.norm.weight"].read()

`tree` has the structure of what was saved, see `torch_pickle`. Both of torch's formats are read:
a zip archive (torch >= 1.6), in which checksums protect every entry, and a row of pickles with the
raw storages behind them, in which nothing is protected: there a damaged weight is read as it is.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

import numpy as np

from vmae_jax.weights.tensors import DTYPES, Tensor, damaged, explained, refuse, shown
from vmae_jax.weights.torch_pickle import SAVE_AGAIN, dict_key, read_pickles
from vmae_jax.weights.torch_zip import read_at, read_directory

MAX_PICKLE_BYTES = 16 << 20  # far above any checkpoint
_MAX_LINE = 256  # bytes: of a module or class
_CHUNK = 1 << 20  # bytes read, and added to the checksum, at a time

NOT_TORCH = {
    b"version https://git-lfs": "is a git-lfs pointer, not the file meant; run git lfs pull",
    b"\x1f\x8b": "is compressed by gzip; unpack it first",
    b"BZh": "is compressed by bzip2; unpack it first",
    b"\xfd7zXZ": "is compressed by xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd; unpack it first",
    b"7z\xbc\xaf": "is a 7z archive; unpack it first",
    b"\x89HDF": "is an HDF5 file; give the checkpoint in torch's format",
    b"PK\5\6": "is a zip archive without entries; get the file again",
}


def _refuse_by_first_bytes(head: bytes) -> NoReturn:
    """Says what a file is that is neither a zip archive nor a pickle."""
    for magic, what in NOT_TORCH.items():
        if head.startswith(magic):
            refuse(what)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"<"):
        refuse("is an HTML or XML page: the download failed; look at it, and get the file again")
    if text and all(32 <= byte < 127 or byte in b"\t\n\r" for byte in text):
        refuse(f"is text that begins with {text[:40].decode()!r}; get the checkpoint itself")
    damaged(f"begins with the bytes {head[:8].hex()}, as nothing of torch.save does")


@dataclass(eq=False)
class Storage:
    """Bytes of an open file, of which tensors are views.

    Attributes:
      file: that is read, from `path`.
      entry: name of the place, for messages.
      nbytes: how many.
      start: position in the file; None until known.
      crc: checksum of them all; None if it has been compared, or there is none.
      is_big_endian: the order of the bytes of a number.
    """

    file: BinaryIO
    path: str
    entry: str
    nbytes: int
    start: int | None = None
    crc: int | None = None
    is_big_endian: bool = False

    def tensor(
        self,
        dtype: str,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        start: int,
        lazy: tuple[str, ...],
    ) -> Tensor:
        """A view of these bytes, none of them read yet.

        Args:
          dtype: torch's name.
          shape, strides: in elements.
          start: first byte.
          lazy: "conj", "neg": what torch would still apply.
        """

        def read() -> np.ndarray:
            # costs its size, twice that if it is not contiguous
            with explained(self.path, self.entry):
                return self._read_view(dtype, shape, strides, start, lazy)

        return Tensor(shape, dtype, read, self.entry)

    def _read_view(self, name, shape, strides, start, lazy) -> np.ndarray:
        if name not in DTYPES:
            refuse(f"dtype={name} is not read; {SAVE_AGAIN}, as float32")
        if lazy:
            refuse(f"a lazy {lazy[0]} view is not read; {SAVE_AGAIN}, after .clone()")
        dtype = DTYPES[name]
        size = math.prod(shape)
        if size == 0:
            return np.empty(shape, dtype)
        if size * dtype.itemsize > self.nbytes:
            refuse(
                f"shape={shape} is expanded from {self.nbytes} bytes, which is not read; "
                f"{SAVE_AGAIN}, after .contiguous()"
            )
        steps = [stride * dtype.itemsize for stride in strides]
        extent = sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
        values = self.read(start, extent + dtype.itemsize)
        if self.is_big_endian:
            values.view(f"u{dtype.itemsize}").byteswap(inplace=True)
        if name == "bool" and values.max() > 1:
            damaged("a bool is neither 0 nor 1")
        view = np.ndarray(shape, dtype, values, strides=steps)
        return np.array(view, order="C", copy=None)  # a copy only if not contiguous

    def read(self, start: int, count: int) -> np.ndarray:
        """Bytes [start, start + count), uint8; the first time all are read, for the checksum."""
        if self.file.closed:
            refuse("the file has been closed; read tensors inside the with block")
        wanted = np.empty(count, np.uint8)
        if self.crc is None:
            self._read_into(start, wanted)
            return wanted
        crc = 0
        unwanted = np.empty(min(_CHUNK, self.nbytes), np.uint8)
        stop = start + count
        for begin, end in ((0, start), (start, stop), (stop, self.nbytes)):
            for at in range(begin, end, _CHUNK):
                target = wanted[at - start :] if (begin, end) == (start, stop) else unwanted
                chunk = target[: min(_CHUNK, end - at)]
                self._read_into(at, chunk)
                crc = zlib.crc32(chunk, crc)
        if crc != self.crc and self.crc == 0:
            damaged(
                "has no checksum (torch.serialization.set_crc32_options(False); save it again with "
                "True), or a wrong one"
            )
        if crc != self.crc:
            damaged("its checksum is wrong")
        self.crc = None
        return wanted

    def read_small(self) -> bytes:
        """All bytes of what holds no weights."""
        if self.nbytes > MAX_PICKLE_BYTES:
            refuse(
                f"entry {shown(self.entry)} has {self.nbytes} bytes, and {MAX_PICKLE_BYTES} is "
                f"the limit for what is not weights; {SAVE_AGAIN}"
            )
        return self.read(0, self.nbytes).tobytes()

    def _read_into(self, at: int, target: np.ndarray) -> None:
        self.file.seek(self.start + at)
        if self.file.readinto(target) < len(target):
            damaged(f"the file ends before byte {self.start + at + len(target)}")


class _Limited:
    """The next bytes of a file, as the machine reads them: never fewer, nor beyond the limit."""

    def __init__(self, file: BinaryIO, size: int):
        self._file = file
        self._left = min(size, MAX_PICKLE_BYTES)

    def read(self, count: int) -> bytes:
        data = self._file.read(count) if count <= self._left else b""
        if len(data) < count:
            damaged(
                f"its pickle wants {count} bytes more, but ends, or has reached the limit of "
                f"{MAX_PICKLE_BYTES}"
            )
        self._left -= count
        return data

    def readline(self) -> bytes:
        line = self._file.readline(min(self._left, _MAX_LINE))
        self._left -= len(line)
        if not line.endswith(b"\n"):
            damaged("its pickle has a name without an end")
        return line


class TorchFile:
    """An open file of torch.save, and a context manager. It belongs to one thread.

    Attributes:
      path: as given.
      tree: what was saved; see the module.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)
        with contextlib.ExitStack() as on_error, explained(self.path):
            self._file = on_error.enter_context(_open(self.path))
            self._size = self._file.seek(0, os.SEEK_END)
            self.tree = self._load()
            on_error.pop_all()

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends reading: tensors that have not been read cannot be any more."""
        self._file.close()

    def _load(self) -> Any:
        head = read_at(self._file, 0, min(512, self._size))
        if not head:
            damaged("is empty")
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= self._size - 8:
            refuse("is a safetensors file; give it a name that ends in .safetensors")
        if head[257:262] == b"ustar":
            refuse(f"is a tar archive, perhaps of torch before 0.2; {SAVE_AGAIN}")
        if head.startswith(b"PK\3\4"):
            return self._load_zip()
        if head.startswith(b"\x80"):
            return self._load_legacy()
        _refuse_by_first_bytes(head)

    def _load_zip(self) -> Any:
        entries = {
            name: Storage(self._file, self.path, *entry)
            for name, entry in read_directory(self._file, self._size).items()
        }
        names = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(names) != 1:
            some = ", ".join(shown(name) for name in list(entries)[-3:])
            refuse(
                f"is a zip archive, but not one of torch.save, for it holds {some}; if the "
                "checkpoint is in it, unpack it"
            )
        folder = names[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in entries:
            refuse("is a TorchScript archive, a program; save the state_dict of the module instead")
        if (order := entries.get(f"{folder}byteorder")) is not None:
            if (said := order.read_small()) not in (b"little", b"big"):
                damaged("its byteorder is neither little nor big")
            for storage in entries.values():
                storage.is_big_endian = said == b"big"

        def find_storage(key: str, numel: int, itemsize: int) -> Storage:
            storage = entries.get(f"{folder}data/{key}")
            if storage is None:
                damaged(f"storage {shown(key)} is missing from the archive")
            if storage.nbytes != numel * itemsize:
                size = f"{numel} elements of {itemsize}"
                damaged(f"storage {shown(key)} has {storage.nbytes} bytes, not {size}")
            return storage

        with explained(self.path, names[0]):
            data = entries[names[0]].read_small()
            return read_pickles(_Limited(io.BytesIO(data), len(data)), find_storage)()

    def _load_legacy(self) -> Any:
        storages: dict[str, tuple[Storage, int]] = {}

        def find_storage(key: str, numel: int, itemsize: int) -> Storage:
            new = Storage(self._file, self.path, f"storage {key}", numel * itemsize)
            storage, _ = storages.setdefault(key, (new, numel))
            if storage.nbytes != new.nbytes:
                damaged(f"storage {shown(key)} has two sizes")
            return storage

        self._file.seek(0)
        load_next = read_pickles(_Limited(self._file, self._size), find_storage)
        if load_next() != 0x1950A86A20F9469CFC6C:
            refuse(f"is a pickle, but not one of torch.save; {SAVE_AGAIN}")
        if load_next() != 1001:
            refuse(f"is of an unknown version; {SAVE_AGAIN}")
        match load_next():
            case {"little_endian": False}:
                refuse(f"was written on a big-endian machine; {SAVE_AGAIN}")
        tree = load_next()
        keys = load_next()
        if not isinstance(keys, list) or {*map(dict_key, keys)} != storages.keys():
            damaged("the storages that it lists are not those of its tensors")
        at = self._file.tell()
        for key in keys:
            storage, numel = storages[key]
            if storage.start is not None or read_at(self._file, at, 8) != struct.pack("<q", numel):
                damaged(f"storage {shown(key)} does not have the {numel} elements announced")
            storage.start = at + 8
            at += 8 + storage.nbytes
        if at != self._size:
            damaged(f"its contents end at byte {at}, the file at {self._size}")
        return tree


def _open(path: str) -> BinaryIO:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if os.path.islink(path):
            refuse(f"is a symbolic link to {os.readlink(path)!r}, which does not exist; get it")
        raise
    if stat.S_ISDIR(mode):
        refuse("is a directory; give the path of the file in it")
    if not stat.S_ISREG(mode):  # a pipe would be waited for, a device has no end
        refuse("is not a regular file; copy its contents to one")
    return open(path, "rb")


def open_torch_file(path: str | os.PathLike[str]) -> TorchFile:
    """An open `.pth`, `.pt`, `.bin` or `.ckpt` file, none of its tensors read yet.

    Raises:
      WeightFileError: if something is wrong with the file; `WeightFileNotFound` and
        `WeightFileNotPermitted` are FileNotFoundError and PermissionError as well.
      OSError: if it cannot be read for another reason.
    """
    return TorchFile(path)


@contextlib.contextmanager
def open_state_dict(
    path: str | os.PathLike[str], below: Sequence[str] = ()
) -> Iterator[dict[str, Tensor]]:
    """The tensors of a file of torch.save by name; optimizer, arguments and the like are left out.

    Args:
      path: of the file.
      below: keys of its top level under which the state dict is looked for first.
    Raises:
      WeightFileError, OSError: as `open_torch_file`; and if it has no tensors by name.
    """
    with open_torch_file(path) as file:
        tops = [file.tree]
        if isinstance(file.tree, Mapping):
            tops = [file.tree.get(key) for key in below] + tops
        found = filter(None, map(_tensors_by_name, tops))
        if (tensors := next(found, None)) is None:
            places = ", ".join([*below, "its top level"])
            with explained(file.path):
                refuse(
                    "holds no tensors by name, and so no state dict, at any of these places: "
                    f"{places}; save model.state_dict() alone in it"
                )
        yield tensors


def _tensors_by_name(value: Any) -> dict[str, Tensor]:
    if not isinstance(value, Mapping):
        return {}
    return {n: t for n, t in value.items() if isinstance(n, str) and isinstance(t, Tensor)}
