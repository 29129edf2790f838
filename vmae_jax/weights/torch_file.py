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
import os
import pickle  # for the names of its opcodes
import stat
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NoReturn

import numpy as np

from vmae_jax.weights.torch_pickle import (
    CHUNK,
    MAX_ENTRIES,
    MAX_PICKLE_BYTES,
    SAVE_AGAIN,
    Refusal,
    Storage,
    TorchFileError,
    _Machine,
    damaged,
    dict_key,
    refuse,
    shown,
)


def _read_at(file: BinaryIO, start: int, count: int) -> bytes:
    file.seek(start)
    data = file.read(count)
    if len(data) < count:
        damaged(f"the file ends before byte {start + count}")
    return data


def _zip_directory(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Number of entries, and where their list starts and stops."""
    tail = _read_at(file, max(0, size - 98), min(98, size)).rjust(98, b"\0")
    wide, pointer, end = tail[:56], tail[56:76], tail[76:]
    if end[:4] != b"PK\5\6" or end[20:] != b"\0\0":
        damaged("the end of the zip archive is missing")
    found = struct.unpack("<10xHLL2x", end)
    stop = size - 22
    if pointer[:4] == b"PK\6\7":  # all of it again, in 64 bits
        stop = size - 98
        narrow, found = found, struct.unpack("<32xQQQ", wide)
        agree = zip(narrow, found, (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF), strict=True)
        if (
            wide[:4] != b"PK\6\6"
            or struct.unpack("<8xQ4x", pointer) != (stop,)
            or not all(a in (b, too_large) for a, b, too_large in agree)
        ):
            damaged("the end of the zip archive is inconsistent")
    count, length, start = found
    if count > MAX_ENTRIES or length > MAX_PICKLE_BYTES:
        damaged(f"the zip archive has {count} entries, and at most {MAX_ENTRIES} are read")
    if start + length != stop:
        damaged("the list of the zip archive's entries is not where it should be")
    return count, start, stop


def _widened(extra: bytes, values: tuple[int, int, int]) -> Iterator[int]:
    """The values, from the extra field where they do not fit 32 bits."""
    wide = b""
    while len(extra) >= 4 and not wide:
        kind, length = struct.unpack_from("<HH", extra)
        wide = extra[4 : 4 + length] if kind == 1 else b""
        extra = extra[4 + length :]
    for value in values:
        if value == 0xFFFFFFFF:
            if len(wide) < 8:
                damaged("the list of the zip archive's entries is damaged")
            value, wide = int.from_bytes(wide[:8], "little"), wide[8:]
        yield value


def _zip_entries(owner: TorchFile, file: BinaryIO, size: int) -> dict[str, Storage]:
    """All entries by their names: none packed, in another, or longer than the file."""
    count, start, stop = _zip_directory(file, size)
    listed = _read_at(file, start, stop - start)
    found = []
    at = 0
    for _ in range(count):
        if listed[at : at + 4] != b"PK\1\2" or at + 46 > len(listed):
            damaged("the list of the zip archive's entries is damaged")
        fields = struct.unpack_from("<8xHH4xLLLHHH8xL", listed, at)
        flags, method, crc, packed, nbytes, len_name, len_extra, len_comment, header = fields
        name = listed[at + 46 : at + 46 + len_name]
        at += 46 + len_name
        nbytes, packed, header = _widened(listed[at : at + len_extra], (nbytes, packed, header))
        at += len_extra + len_comment
        if method or flags & 1 or packed != nbytes:
            refuse(
                f"entry {shown(name.decode(errors='replace'))} is compressed or encrypted, which "
                "torch.save never does; if a folder was packed by hand, pack it without "
                "compression (zip -0 -r)"
            )
        found.append((header, name, nbytes, crc))
    if at != len(listed):
        damaged("the list of the zip archive's entries is damaged")
    entries = {}
    for header, raw_name, nbytes, crc in sorted(found, reverse=True):  # the last first
        name = raw_name.decode(errors="replace")
        if name in entries:
            damaged(f"the zip archive has two entries {shown(name)}")
        local = _read_at(file, header, 30 + len(raw_name))
        method, len_name, len_extra = struct.unpack_from("<8xH16xHH", local)
        begin = header + 30 + len_name + len_extra
        if local[:4] != b"PK\3\4" or method or len_name != len(raw_name) or local[30:] != raw_name:
            damaged(f"entry {shown(name)} is not where the zip archive's list says")
        if begin + nbytes > start:
            damaged(f"entry {shown(name)} overlaps the next, or ends outside the file")
        entries[name] = Storage(owner, name, nbytes, begin, crc)
        start = header
    return entries


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


class TorchFile:
    """An open file of torch.save, and a context manager. It belongs to one thread.

    Attributes:
      path: as given.
      tree: what was saved; see the module.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)
        self._big_endian = False
        with contextlib.ExitStack() as on_error, self._explained(None):
            self._file = on_error.enter_context(self._open())
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

    @contextlib.contextmanager
    def _explained(self, entry: str | None) -> Iterator[None]:
        try:
            yield
        except Refusal as refusal:
            raise TorchFileError(self.path, entry, str(refusal)) from None
        except PermissionError as error:
            reason = "may not be read by this user; change its permissions, or its folder's"
            raise TorchFileError(self.path, entry, reason) from error
        except OSError as error:
            reason = f"cannot be read: {error.strerror or error}; check the file and its disk"
            raise TorchFileError(self.path, entry, reason) from error

    def _open(self) -> BinaryIO:
        try:
            mode = os.stat(self.path).st_mode
        except FileNotFoundError:
            if os.path.islink(self.path):
                target = os.readlink(self.path)
                refuse(f"is a symbolic link to {target!r}, which does not exist; get that file")
            refuse("does not exist; check the path")
        if stat.S_ISDIR(mode):
            refuse("is a directory; give the path of the file in it")
        if not stat.S_ISREG(mode):  # a pipe would be waited for, a device has no end
            refuse("is not a regular file; copy its contents to one")
        return open(self.path, "rb")

    def _load(self) -> Any:
        head = _read_at(self._file, 0, min(512, self._size))
        if not head:
            damaged("is empty")
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= self._size - 8:
            refuse("is a safetensors file; give it a name that ends in .safetensors")
        if head[257:262] == b"ustar":
            refuse(f"is a tar archive, perhaps of torch before 0.2; {SAVE_AGAIN}")
        if head.startswith(b"PK\3\4"):
            return self._load_zip()
        if head.startswith(pickle.PROTO):
            return self._load_legacy()
        _refuse_by_first_bytes(head)

    def _load_zip(self) -> Any:
        entries = _zip_entries(self, self._file, self._size)
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
            said = self._read_small(order)
            if said not in (b"little", b"big"):
                damaged("its byteorder is neither little nor big")
            self._big_endian = said == b"big"

        def find_storage(key: str, numel: int, itemsize: int) -> Storage:
            storage = entries.get(f"{folder}data/{key}")
            if storage is None:
                damaged(f"storage {shown(key)} is missing from the archive")
            if storage.nbytes != numel * itemsize:
                size = f"{numel} elements of {itemsize}"
                damaged(f"storage {shown(key)} has {storage.nbytes} bytes, not {size}")
            return storage

        with self._explained(names[0]):
            data = self._read_small(entries[names[0]])
            return _Machine(io.BytesIO(data), len(data), find_storage).load()

    def _load_legacy(self) -> Any:
        storages: dict[str, tuple[Storage, int]] = {}

        def find_storage(key: str, numel: int, itemsize: int) -> Storage:
            new = Storage(self, f"storage {key}", numel * itemsize, None, None)
            storage, _ = storages.setdefault(key, (new, numel))
            if storage.nbytes != new.nbytes:
                damaged(f"storage {shown(key)} has two sizes")
            return storage

        self._file.seek(0)
        machine = _Machine(self._file, self._size, find_storage)
        if machine.load() != 0x1950A86A20F9469CFC6C:
            refuse(f"is a pickle, but not one of torch.save; {SAVE_AGAIN}")
        if machine.load() != 1001:
            refuse(f"is of an unknown version; {SAVE_AGAIN}")
        match machine.load():
            case {"little_endian": False}:
                refuse(f"was written on a big-endian machine; {SAVE_AGAIN}")
        tree = machine.load()
        keys = machine.load()
        if not isinstance(keys, list) or {*map(dict_key, keys)} != storages.keys():
            damaged("the storages that it lists are not those of its tensors")
        at = self._file.tell()
        for key in keys:
            storage, numel = storages[key]
            if storage.start is not None or _read_at(self._file, at, 8) != struct.pack("<q", numel):
                damaged(f"storage {shown(key)} does not have the {numel} elements announced")
            storage.start = at + 8
            at += 8 + storage.nbytes
        if at != self._size:
            damaged(f"its contents end at byte {at}, the file at {self._size}")
        return tree

    def _read_small(self, entry: Storage) -> bytes:
        if entry.nbytes > MAX_PICKLE_BYTES:
            refuse(
                f"entry {shown(entry.entry)} has {entry.nbytes} bytes, and {MAX_PICKLE_BYTES} is "
                f"the limit for what is not weights; {SAVE_AGAIN}"
            )
        return self._read_storage(entry, 0, entry.nbytes).tobytes()

    def _read_storage(self, storage: Storage, start: int, count: int) -> np.ndarray:
        """Bytes [start, start + count), uint8; the first time all are read, for the checksum."""
        if self._file.closed:
            refuse("the file has been closed; read tensors inside the with block")
        wanted = np.empty(count, np.uint8)
        if storage.crc is None:
            self._read_into(storage.start + start, wanted)
            return wanted
        crc = 0
        unwanted = np.empty(min(CHUNK, storage.nbytes), np.uint8)
        stop = start + count
        for begin, end in ((0, start), (start, stop), (stop, storage.nbytes)):
            for at in range(begin, end, CHUNK):
                target = wanted[at - start :] if (begin, end) == (start, stop) else unwanted
                chunk = target[: min(CHUNK, end - at)]
                self._read_into(storage.start + at, chunk)
                crc = zlib.crc32(chunk, crc)
        if crc != storage.crc and storage.crc == 0:
            damaged(
                "has no checksum (torch.serialization.set_crc32_options(False); save it again with "
                "True), or a wrong one"
            )
        if crc != storage.crc:
            damaged("its checksum is wrong")
        storage.crc = None
        return wanted

    def _read_into(self, start: int, target: np.ndarray) -> None:
        self._file.seek(start)
        if self._file.readinto(target) < len(target):
            damaged(f"the file ends before byte {start + len(target)}")


def open_torch_file(path: str | os.PathLike[str]) -> TorchFile:
    """An open `.pth`, `.pt`, `.bin` or `.ckpt` file, none of its tensors read yet.

    Raises:
      TorchFileError: whatever is wrong with the file.
    """
    return TorchFile(path)
