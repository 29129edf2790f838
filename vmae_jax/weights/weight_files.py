"""The tensors of a Hugging Face directory or of one safetensors file, read one at a time.

    with open_directory("videomae-base") as tensors:
        weight = tensors["videomae.layernorm.weight"].read()

Opening reads names, shapes and dtypes alone, and checks them; the values stay on disk until
`read()`. No file is trusted: whatever is wrong with what one holds is a `WeightFileError`.

safetensors files are memory-mapped and hold no checksums: a changed weight is read as it is, and a
file that is cut short while it is open ends the process. Files are to be replaced, not rewritten.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from vmae_jax.weights.tensors import (
    DTYPES,
    MAX_RANK,
    Tensor,
    WeightFileNotFound,
    damaged,
    explained,
    refuse,
    shown,
    some,
)
from vmae_jax.weights.torch_file import open_state_dict

# Far above any checkpoint: a header takes about 130 bytes a tensor. Python takes up to fifty times
# the size of hostile JSON to parse it, so this is what keeps that below 200 MiB.
MAX_JSON_BYTES = 4 << 20
MAX_ELEMENTS = 1 << 40  # of a tensor, axes of length 0 left out: numpy fails on larger shapes
MAX_NAMED = 100  # tensors or files in a message

CODES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"},
    **{f"I{bits}": f"int{bits}" for bits in (64, 32, 16, 8)},
    **{f"U{bits}": f"uint{bits}" for bits in (64, 32, 16, 8)},
}


def _is_there(path: str) -> bool:
    """Also a link that leads nowhere; a folder that may not be searched raises."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _open_regular(path: str) -> BinaryIO:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if os.path.islink(path):
            refuse(
                f"is a symbolic link to {os.readlink(path)!r}, which does not exist; download it "
                "again"
            )
        raise
    if not stat.S_ISREG(mode):  # a pipe would be waited for
        refuse("is a directory or a device, not a file; give the file meant")
    return open(path, "rb")


def _refuse_failed_download(head: bytes) -> None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"version https://git-lfs"):
        refuse("is a Git LFS pointer, not weights; run git lfs pull, or download it again")
    if text.startswith(b"<"):
        refuse("is a web page, not weights, for the download failed; download it again")


def _refuse_other_formats(head: bytes) -> None:
    if head.startswith(b"PK\3\4"):
        refuse(
            "is a zip archive, not safetensors; if torch.save wrote it, name it pytorch_model.bin, "
            "otherwise unpack it"
        )
    if b"\0" in head[:8]:  # as in all safetensors: they begin with a number far below 2**56
        return
    _refuse_failed_download(head)
    if head.startswith(b"\x80"):
        refuse(
            "is a pickle, not safetensors; if torch.save wrote it, name it pytorch_model.bin, "
            "otherwise download it again"
        )
    if all(32 <= byte < 127 or byte in b"\t\n\r" for byte in head):
        refuse(f"is text that begins with {head[:40].decode()!r}, not weights; download it again")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = {}
    for key, value in pairs:
        if key in result:
            damaged(f"its JSON has the key {shown(key)} twice")
        result[key] = value
    return result


def _parse_object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text.decode(), object_pairs_hook=_without_duplicates)
    except RecursionError:
        damaged("its JSON is nested too deeply")
    except ValueError as error:  # neither UTF-8 nor JSON, or a number of thousands of digits
        damaged(f"it holds no valid JSON ({error})")
    if not isinstance(found, dict):
        damaged("its JSON is not an object")
    return found


class _Place(NamedTuple):
    shape: tuple[int, ...]
    dtype: str
    begin: int  # bytes after the header
    end: int


def _checked_place(name: str, entry: Any, room: int) -> _Place:
    match entry:
        case {"dtype": str(code), "shape": [*shape], "data_offsets": [begin, end], **more}:
            if more:
                damaged(
                    f"its header has more than dtype, shape, data_offsets: {shown(min(more))}", name
                )
        case _:
            damaged("its header does not have a dtype, a shape and two data_offsets", name)
    if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        damaged("its shape and data_offsets are not all integers of 0 or more", name)
    if code not in CODES:
        refuse(
            f"dtype={shown(code)} is not one of {', '.join(CODES)}, which are read; save the model "
            "in one of them, or get the file again if it should be",
            name,
        )
    if len(shape) > MAX_RANK or math.prod(max(n, 1) for n in shape) > MAX_ELEMENTS:
        damaged(f"its shape has more than {MAX_RANK} axes, or {MAX_ELEMENTS} elements", name)
    if end > room:
        damaged(f"its values end outside the {room} bytes that the file has for them", name)
    expected = math.prod(shape) * DTYPES[CODES[code]].itemsize
    if end - begin != expected:
        damaged(
            f"dtype={code}, shape={tuple(shape)} takes {expected} bytes, not the {end - begin} "
            f"of data_offsets={[begin, end]}",
            name,
        )
    return _Place(tuple(shape), CODES[code], begin, end)


def _read_header(path: str) -> dict[str, _Place]:
    with _open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(512)
        if not head:
            damaged("is empty")
        _refuse_other_formats(head)
        length = int.from_bytes(head[:8], "little")
        if 8 + length > size:
            damaged(f"has {size} bytes, and a header of {length} that begins at byte 8")
        if length > MAX_JSON_BYTES:
            damaged(f"its header of {length} bytes is longer than {MAX_JSON_BYTES}")
        if head[8:9] != b"{":
            damaged("its header does not begin with {")
        file.seek(8)
        entries = _parse_object(file.read(length))
    notes = entries.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        damaged("its __metadata__ are not texts by name")
    room = size - 8 - length
    places = {name: _checked_place(name, entry, room) for name, entry in entries.items()}
    at = 0
    for name, place in sorted(places.items(), key=lambda item: (item[1].begin, item[1].end)):
        if place.begin != at:
            kind = "overlap those before" if place.begin < at else "leave a gap before them"
            damaged(f"its values begin at byte {place.begin}, not {at}: they {kind}", name)
        at = place.end
    if at != room:
        damaged(f"its values end at byte {at} of {room}")
    return places


@contextlib.contextmanager
def open_safetensors(path: str | os.PathLike[str]) -> Iterator[dict[str, Tensor]]:
    """The tensors of a safetensors file by name, none of their values read yet.

    The values are read by the safetensors library, which would accept more: a name that occurs
    twice, absurd shapes without elements, headers of up to 100 MB (here 4 MiB), and dtypes of
    complex numbers and of floats of 8 bits or less.

    Raises:
      WeightFileError: whatever is wrong with the file; `WeightFileNotFound` if there is none.
      OSError: if it cannot be read for another reason.
    """
    # Here, because models of random weights are to work where it is not installed.
    from safetensors import SafetensorError, safe_open

    path = os.fspath(path)

    def ask(question: Callable[..., Any], *args: Any) -> Any:
        try:
            return question(*args)
        except SafetensorError as error:
            refuse(f"the safetensors library refuses it ({shown(str(error))}); get the file again")

    with explained(path):
        places = _read_header(path)
        file = ask(safe_open, path, "numpy")

    def read(name: str) -> np.ndarray:
        with explained(path, name):
            if file is None:
                refuse("the file has been closed; read tensors inside the with block")
            value = ask(file.get_tensor, name)
            if (value.shape, value.dtype) != (places[name].shape, DTYPES[places[name].dtype]):
                refuse("the file was replaced while it was opened; open it again")
            return value

    try:
        yield {
            name: Tensor(place.shape, place.dtype, functools.partial(read, name))
            for name, place in places.items()
        }
    finally:
        file = None  # ends the memory map


def _shown_some(names: set[str]) -> str:
    return some(map(shown, sorted(names)), MAX_NAMED)


def _read_index(path: str) -> dict[str, set[str]]:
    """The names of the tensors in each shard, by the shard's file name."""
    with _open_regular(path) as file:
        text = file.read(MAX_JSON_BYTES + 1)
    if len(text) > MAX_JSON_BYTES:
        damaged(f"is longer than the {MAX_JSON_BYTES} bytes that an index may have")
    _refuse_failed_download(text[:512])
    files = _parse_object(text).get("weight_map")
    if not files or not isinstance(files, dict):
        damaged("its weight_map is not an object of tensors and their files")
    shards: dict[str, set[str]] = {}
    for name, file in files.items():
        # Nothing but a name in this directory; unprintable ones (NUL, half a surrogate pair) and
        # those of more than 255 bytes are not even looked for.
        if (
            not isinstance(file, str)
            or file in ("", ".", "..")
            or {"/", "\\"} & set(file)
            or not file.isprintable()
            or len(os.fsencode(file)) > 255
        ):
            refuse(
                f"its weight_map puts {shown(name)} into {shown(str(file))}, which is not the bare "
                "name of a file beside it; do not use files of this origin"
            )
        shards.setdefault(file, set()).add(name)
    return shards


@contextlib.contextmanager
def _open_shards(
    index: str, open_shard: Callable[[str], contextlib.AbstractContextManager[dict[str, Tensor]]]
) -> Iterator[dict[str, Tensor]]:
    folder = os.path.dirname(index)
    with contextlib.ExitStack() as stack:
        with explained(index):
            shards = _read_index(index)
            missing = {file for file in shards if not _is_there(os.path.join(folder, file))}
            if missing:
                names = _shown_some(missing)
                refuse(f"of its {len(shards)} files these are missing: {names}; get them")
        tensors = {}
        for file, listed in shards.items():
            path = os.path.join(folder, file)
            found = stack.enter_context(open_shard(path))
            with explained(path):
                if listed - found.keys():
                    lost = _shown_some(listed - found.keys())
                    damaged(f"does not hold {lost}, which {index!r} says are in it")
                if found.keys() - listed:
                    extra = _shown_some(found.keys() - listed)
                    damaged(f"holds {extra}, which {index!r} places elsewhere or nowhere")
            tensors |= found
        yield tensors


@contextlib.contextmanager
def open_directory(directory: str | os.PathLike[str]) -> Iterator[dict[str, Tensor]]:
    """The tensors of a Hugging Face directory by name, none of their values read yet.

    The first of these that is there is opened: model.safetensors, model.safetensors.index.json with
    its shards, pytorch_model.bin, pytorch_model.bin.index.json with its shards. Symbolic links are
    followed, for the cache of the hub is made of them. Of a .bin, what is no tensor is left out.

    Raises:
      WeightFileError: whatever is wrong with the files, those of torch.save included;
        `WeightFileNotFound` if none of them is there.
      OSError: if they cannot be read for another reason.
    """
    looked_for = []
    for name, open_file in (
        ("model.safetensors", open_safetensors),
        ("pytorch_model.bin", open_state_dict),
    ):
        path = os.path.join(directory, name)
        index = f"{path}.index.json"
        if _is_there(path):
            opened = open_file(path)
        elif _is_there(index):
            opened = _open_shards(index, open_file)
        else:
            looked_for += [name, os.path.basename(index)]
            continue
        with opened as tensors:
            yield tensors
        return
    raise WeightFileNotFound(
        os.fspath(directory),
        None,
        f"has none of {', '.join(looked_for)}; give the directory that has the weights",
    )
