"""What a zip archive of `torch.save` holds, and where: its entries lie there byte by byte.

`zipfile` would read more than torch writes (packed entries, what stands before or after), and a
directory of any length; here an archive is exact or refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from vmae_jax.weights.tensors import damaged, refuse, shown

MAX_ENTRIES = 100_000  # far above any checkpoint
MAX_DIRECTORY = 16 << 20  # bytes


class Entry(NamedTuple):
    """A file in the archive: its name, bytes, position in the archive, and CRC-32 checksum."""

    name: str
    nbytes: int
    start: int
    crc: int


def read_at(file: BinaryIO, start: int, count: int) -> bytes:
    """So many bytes, not fewer."""
    file.seek(start)
    data = file.read(count)
    if len(data) < count:
        damaged(f"the file ends before byte {start + count}")
    return data


def _find_directory(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Number of entries, and where their list starts and stops."""
    tail = read_at(file, max(0, size - 98), min(98, size)).rjust(98, b"\0")
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
    if count > MAX_ENTRIES or length > MAX_DIRECTORY:
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


def read_directory(file: BinaryIO, size: int) -> dict[str, Entry]:
    """All entries by their names: none packed, in another, or longer than the file.

    Args:
      file: anywhere.
      size: its bytes.
    """
    count, start, stop = _find_directory(file, size)
    listed = read_at(file, start, stop - start)
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
        local = read_at(file, header, 30 + len(raw_name))
        method, len_name, len_extra = struct.unpack_from("<8xH16xHH", local)
        begin = header + 30 + len_name + len_extra
        if local[:4] != b"PK\3\4" or method or len_name != len(raw_name) or local[30:] != raw_name:
            damaged(f"entry {shown(name)} is not where the zip archive's list says")
        if begin + nbytes > start:
            damaged(f"entry {shown(name)} overlaps the next, or ends outside the file")
        entries[name] = Entry(name, nbytes, begin, crc)
        start = header
    return entries
