"""What `torch.save` wrote, without torch and without trusting the file.

    with open_torch_file("checkpoint.pth") as file:
        weight = file.tree["model"]["encoder.norm.weight"].read()

A pickle is a program, so it is run here by a machine that cannot do anything: names in the file are
only looked up in the tables below; nothing is imported, called or given attributes. `tree` has the
structure of what was saved, but nothing in it is the saved object: a tensor is a `LazyTensor`, of
which no byte is read before `read()`, any other object an `Inert` note that it was there, and a
dict with an order or a default a plain one.

Both of torch's formats are read: a zip archive (torch >= 1.6), in which checksums protect every
entry, and a row of pickles with the raw storages behind them, in which nothing is protected: there
a damaged weight is read as it is.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import pickle  # for the names of its opcodes
import pickletools
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple, NoReturn

import ml_dtypes
import numpy as np

# Far above any checkpoint. What a hostile file may cost follows from them.
MAX_PICKLE_BYTES = 16 << 20
MAX_OPCODES = 1_000_000  # each leaves at most about 100 bytes behind, and takes microseconds
MAX_ENTRIES = 100_000
MAX_DEPTH = 64  # of dicts, lists and tuples in one another
MAX_RANK = 16  # axes of a tensor
CHUNK = 1 << 20  # bytes read, and added to the checksum, at a time

SAVE_AGAIN = (
    "if you trust the file, open it once with torch and save only the weights: "
    'torch.save({"model": weights}, path)'
)

DTYPES = {
    name: np.dtype(name)
    for name in ["float64", "float32", "float16", "bool"]
    + [f"{kind}{bits}" for kind in ("int", "uint") for bits in (64, 32, 16, 8)]
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
ITEM_BYTES = {name: dtype.itemsize for name, dtype in DTYPES.items()} | {
    # known, but not read
    **{"complex32": 4, "complex64": 8, "complex128": 16},
    **{"qint8": 1, "quint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1},
    **{"float8_e4m3fn": 1, "float8_e4m3fnuz": 1, "float8_e5m2": 1, "float8_e5m2fnuz": 1},
    **{"float8_e8m0fnu": 1, "float4_e2m1fn_x2": 1},
}
STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
    "torch.ComplexFloatStorage": "complex64",
    "torch.ComplexDoubleStorage": "complex128",
    "torch.QInt8Storage": "qint8",
    "torch.QUInt8Storage": "quint8",
    "torch.QInt32Storage": "qint32",
    "torch.QUInt4x2Storage": "quint4x2",
    "torch.QUInt2x4Storage": "quint2x4",
    "torch.UntypedStorage": "uint8",
    "torch.storage.UntypedStorage": "uint8",
}
# What training scripts leave beside the weights: of these, name, arguments and state are kept.
INERT = """
    argparse Namespace
    builtins object int float complex bool str bytes bytearray list tuple dict set frozenset
    builtins range slice
    _codecs encode
    collections Counter deque
    copyreg _reconstructor
    datetime date datetime timedelta
    deepspeed.runtime.fp16.loss_scaler LossScaler DynamicLossScaler
    deepspeed.runtime.zero.config ZeroStageEnum
    deepspeed.utils.tensor_fragment fragment_address
    mmengine.logging.history_buffer HistoryBuffer
    numpy dtype ndarray bool_ int32 int64 float32 float64
    numpy.core.multiarray scalar _reconstruct
    numpy._core.multiarray scalar _reconstruct
    numpy.core.numeric _frombuffer
    numpy._core.numeric _frombuffer
    numpy.dtypes BoolDType Int32DType Int64DType UInt32DType Float32DType Float64DType
    pathlib Path PosixPath PurePosixPath WindowsPath PureWindowsPath
    pathlib._local Path PosixPath PurePosixPath WindowsPath PureWindowsPath
    torch device Generator Tensor per_tensor_affine per_channel_affine
    torch._utils _rebuild_sparse_tensor _rebuild_nested_tensor _rebuild_meta_tensor_no_storage
    torch._utils _rebuild_wrapper_subclass _rebuild_device_tensor_from_numpy
    torch.nn.parameter Parameter
    torch.serialization _get_layout
    types SimpleNamespace
"""


class TorchFileError(ValueError):
    """A file that cannot be used; its text names the file, the entry, the reason and the remedy."""

    def __init__(self, path: str, entry: str | None, reason: str):
        # All go to args, so that the error survives pickling between processes.
        super().__init__(path, entry, reason)
        self.path = path
        self.entry = entry
        self.reason = reason

    def __str__(self) -> str:
        entry = "" if self.entry is None else f", entry {self.entry!r}"
        return f"{self.path!r}{entry}: {self.reason}."


class _Refusal(Exception):
    """A reason, to which `TorchFile._explained` adds where."""


def _refuse(reason: str) -> NoReturn:
    raise _Refusal(reason)


def _damaged(reason: str) -> NoReturn:
    _refuse(f"{reason}: the download or copy is incomplete or damaged; get the file again")


def _shown(name: str) -> str:
    return repr(name if len(name) <= 100 else name[:100] + "...")


# What the tree is made of


@dataclass(slots=True, eq=False, repr=False)
class Inert:
    """An object that was not made.

    Attributes:
      name: its class or function, as "argparse.Namespace".
      args: what that would be called with; None if it is the bare name.
      state: what its attributes would be set from: of a Namespace a dict.
    """

    name: str
    args: tuple | None = None
    state: Any = None

    def __repr__(self) -> str:  # contents may be large, or contain this
        return f"<{self.name}>"


@dataclass(slots=True, eq=False)
class _Storage:
    """Bytes of a file, of which tensors are views."""

    file: TorchFile
    entry: str
    nbytes: int
    start: int | None  # position in the file; None until known
    crc: int | None  # None: checked already, or nothing to check


class _Elements(NamedTuple):
    """How a pickle refers to a storage, or to the part of it that old files call a view."""

    storage: _Storage
    dtype: str
    start: int  # bytes
    nbytes: int


@dataclass(frozen=True, slots=True, eq=False)
class LazyTensor:
    """A tensor still in its file.

    Attributes:
      shape: sizes, as in torch.
      dtype: torch's name for it, "float32", which is numpy's too ("bfloat16": ml_dtypes').
      entry: where in the file its values are; tensors that share memory have the same.
    """

    shape: tuple[int, ...]
    dtype: str
    entry: str
    _strides: tuple[int, ...] = field(repr=False)  # elements
    _start: int = field(repr=False)  # bytes into the storage
    _storage: _Storage = field(repr=False)
    _views: tuple[str, ...] = field(repr=False)  # "conj", "neg": what torch would still apply

    def read(self) -> np.ndarray:
        """A copy of the values, read now: costs their size, twice that if they are not contiguous.

        Raises:
          TorchFileError: if the bytes are damaged, the file is closed, or such tensors are not
            read: complex, quantised, of 8-bit floats, or expanded to more than the file stores.
        """
        with self._storage.file._explained(self.entry):
            return self._read()

    def _read(self) -> np.ndarray:
        if self.dtype not in DTYPES:
            _refuse(f"dtype={self.dtype} is not read; {SAVE_AGAIN}, as float32")
        if self._views:
            _refuse(f"a lazy {self._views[0]} view is not read; {SAVE_AGAIN}, after .clone()")
        dtype = DTYPES[self.dtype]
        size = math.prod(self.shape)
        if size == 0:
            return np.empty(self.shape, dtype)
        if size * dtype.itemsize > self._storage.nbytes:
            _refuse(
                f"shape={self.shape} is expanded from {self._storage.nbytes} bytes, which is not "
                f"read; {SAVE_AGAIN}, after .contiguous()"
            )
        strides = [stride * dtype.itemsize for stride in self._strides]
        extent = sum((n - 1) * stride for n, stride in zip(self.shape, strides, strict=True))
        file = self._storage.file
        values = file._read_storage(self._storage, self._start, extent + dtype.itemsize)
        if file._big_endian:
            values.view(f"u{dtype.itemsize}").byteswap(inplace=True)
        if self.dtype == "bool" and values.max() > 1:
            _damaged("a bool is neither 0 nor 1")
        view = np.ndarray(self.shape, dtype, values, strides=strides)
        return np.array(view, order="C", copy=None)  # a copy only if not contiguous


# What names in the file may build: arguments -> value


def _are_sizes(values: Any) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) <= MAX_RANK
        and all(type(n) is int and 0 <= n < 1 << 63 for n in values)
    )


def _tensor(
    elements: Any,
    first: Any,
    shape: Any,
    strides: Any,
    _requires_grad: Any = None,
    _hooks: Any = None,
    metadata: Any = None,
    dtype: str | None = None,
) -> LazyTensor:
    """In the order of torch's arguments."""
    right = isinstance(elements, _Elements) and all(map(_are_sizes, ((first,), shape, strides)))
    if not right or len(shape) != len(strides):
        _damaged("its pickle describes a tensor that cannot be")
    storage = elements.storage
    dtype = dtype or elements.dtype
    itemsize = ITEM_BYTES[dtype]
    last = first + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if 0 not in shape and (last + 1) * itemsize > elements.nbytes:
        _damaged(
            f"a tensor of shape={shape}, strides={strides}, offset={first} and dtype={dtype} ends "
            f"outside its storage {_shown(storage.entry)} of {elements.nbytes} bytes"
        )
    if 0 in shape and math.prod(n or 1 for n in shape) * itemsize >= 1 << 63:
        _damaged(f"shape={shape} is impossible even for an empty tensor")
    known = metadata if isinstance(metadata, dict) else {}
    views = tuple(name for name in ("conj", "neg") if known.get(name))
    start = elements.start + first * itemsize
    return LazyTensor(shape, dtype, storage.entry, strides, start, storage, views)


def _rebuild_tensor(*args: Any) -> LazyTensor:
    if len(args) not in (4, 6, 7):
        _damaged("its pickle rebuilds a tensor from the wrong number of arguments")
    return _tensor(*args)


def _rebuild_tensor_v3(*args: Any) -> LazyTensor:
    match args[6:]:  # for a dtype of which torch has no typed storage
        case [Inert(args=None) as dtype] | [Inert(args=None) as dtype, _] if (
            name := dtype.name.removeprefix("torch.")
        ) in ITEM_BYTES:
            return _tensor(*args[:6], *args[7:], dtype=name)
    _damaged("its pickle rebuilds a tensor of unknown dtype")


def _rebuild_parameter(*args: Any) -> Any:
    match args:
        case [LazyTensor() | Inert() as data, *_]:
            return data
    _damaged("its pickle makes a parameter of what is not a tensor")


def _rebuild_from_type(*args: Any) -> LazyTensor:
    match args:  # a tensor that had attributes: they are left out
        case [Inert(name="torch._utils._rebuild_tensor_v2"), Inert(), tuple() as inner, _]:
            return _rebuild_tensor(*inner)
        case [Inert(name="torch._utils._rebuild_tensor_v3"), Inert(), tuple() as inner, _]:
            return _rebuild_tensor_v3(*inner)
    _refuse(f"its pickle has a tensor of a class of its own; {SAVE_AGAIN}")


def _size(*args: Any) -> tuple:
    match args:
        case [tuple() as sizes]:
            return sizes
    _damaged("its pickle makes a torch.Size of what are not sizes")


def _getattr(*args: Any) -> Inert:
    match args:  # mmengine's training files name the methods of one class
        case [Inert("mmengine.logging.history_buffer.HistoryBuffer", None), str()]:
            return Inert("builtins.getattr", args)
    _refuse("its pickle calls getattr, which weights do not need: the file may be hostile")


BUILDERS: dict[str, Callable[..., Any]] = {
    "builtins.getattr": _getattr,
    "collections.OrderedDict": lambda *args: {},  # its items follow
    "collections.defaultdict": lambda *args: {},
    "torch.Size": _size,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._utils._rebuild_qtensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
}


def _known_names() -> dict[str, str]:
    """Each name to itself: a file may ask for one a million times, and gets the same string."""
    names = {f"torch.{dtype}" for dtype in ITEM_BYTES} | STORAGES.keys() | BUILDERS.keys()
    for line in INERT.split("\n"):
        module, *members = line.split() or [""]
        names |= {f"{module}.{member}" for member in members}
    return {name: name for name in names}


NAMES = _known_names()

# The machine


class _Machine:
    """Runs pickles of protocol 2 or later, one after another, from the next `limit` bytes.

    Args:
      find_storage: (key, number of elements, bytes of one) -> _Storage.
    """

    def __init__(
        self, stream: BinaryIO, limit: int, find_storage: Callable[[str, int, int], _Storage]
    ):
        self.stream = stream
        self.left = min(limit, MAX_PICKLE_BYTES)
        self.find_storage = find_storage
        self.budget = iter(range(MAX_OPCODES))

    def load(self) -> Any:
        self.stack: list = []
        self.outer: list[list] = []  # the stacks below the marks
        self.memo: dict[int, Any] = {}
        try:
            for _ in self.budget:
                opcode = self.take(1)
                if opcode == pickle.STOP:
                    result = self.stack.pop()
                    _check_nesting(result)
                    return result
                if (make := VALUES.get(opcode)) is not None:
                    value = make(self)  # may replace the stack
                    self.stack.append(value)
                elif (act := ACTIONS.get(opcode)) is not None:
                    act(self)
                else:
                    known = pickletools.code2op.get(opcode.decode("latin-1"))
                    name = known.name if known else opcode.hex()
                    _refuse(f"its pickle has the opcode {name}, which is not read; {SAVE_AGAIN}")
        except IndexError:
            _damaged("its pickle takes from an empty stack")
        except UnicodeDecodeError:
            _damaged("its pickle has text that is not UTF-8")
        _refuse(f"its pickle has more than {MAX_OPCODES} opcodes; {SAVE_AGAIN}")

    def take(self, count: int) -> bytes:
        data = self.stream.read(count) if count <= self.left else b""
        if len(data) < count:
            _damaged(
                f"its pickle wants {count} bytes more, but ends, or has reached the limit of "
                f"{MAX_PICKLE_BYTES}"
            )
        self.left -= count
        return data

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, form: str) -> str:
        return self.take(self.number(form)).decode("utf-8", "surrogatepass")  # as pickle has it

    def line(self) -> str:
        line = self.stream.readline(min(self.left, 256))
        self.left -= len(line)
        if not line.endswith(b"\n"):
            _damaged("its pickle has a name without an end")
        return line[:-1].decode()

    def recall(self, form: str) -> Any:
        index = self.number(form)
        if index not in self.memo:
            _damaged("its pickle refers to an object before it is there")
        return self.memo[index]

    def since_mark(self) -> list:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def last(self, count: int) -> tuple:
        return tuple(reversed([self.stack.pop() for _ in range(count)]))

    def named(self, module: Any, name: Any) -> Inert:
        if not (isinstance(module, str) and isinstance(name, str)):
            _damaged("its pickle names a class by something other than text")
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        known = NAMES.get(f"{module}.{name}")
        if known is None:
            _refuse(
                f"its pickle asks for {_shown(f'{module}.{name}')}, which is not on the list of "
                f"what checkpoints hold, so nothing was run or loaded; {SAVE_AGAIN}"
            )
        return Inert(known)

    def call(self) -> Any:
        function, args = self.last(2)
        if not (isinstance(function, Inert) and function.args is None and isinstance(args, tuple)):
            _damaged("its pickle calls what is not a class or function")
        build = BUILDERS.get(function.name)
        return Inert(function.name, args) if build is None else build(*args)

    def persistent(self) -> _Elements:
        match self.stack.pop():
            case ("storage", Inert(args=None) as kind, str() as key, _, int() as numel, *view) if (
                kind.name in STORAGES and 0 <= numel < 1 << 63
            ):
                dtype = STORAGES[kind.name]
            case _:
                _damaged("its pickle refers to a storage in a form that torch.save never writes")
        itemsize = ITEM_BYTES[dtype]
        storage = self.find_storage(key, numel, itemsize)
        match view:
            case [] | [None]:
                return _Elements(storage, dtype, 0, storage.nbytes)
            case [(_, int() as first, int() as count)] if 0 <= first <= first + count <= numel:
                return _Elements(storage, dtype, first * itemsize, count * itemsize)
        _damaged("its pickle has a view that ends outside its storage")

    def remember(self, index: int):
        self.memo[index] = self.stack[-1]

    def mark(self):
        self.outer.append(self.stack)
        self.stack = []

    def extend(self, items: list):
        target = self.stack[-1]
        if isinstance(target, list):
            target += items
        elif not _is_object(target):
            _damaged("its pickle appends to what is not a list")

    def set_items(self, items: list | tuple):
        target = self.stack[-1]
        if isinstance(target, dict) and len(items) % 2 == 0:
            target.update(zip(map(_key, items[::2]), items[1::2], strict=True))
        elif not _is_object(target):
            _damaged("its pickle sets items of what is not a dict")

    def set_state(self):
        state = self.stack.pop()
        target = self.stack[-1]
        if _is_object(target):
            target.state = state
        elif not isinstance(target, dict):  # a state dict's is its metadata, and left out
            _damaged("its pickle sets attributes of what has none")

    def check_protocol(self):
        if (version := self.number("<B")) > pickle.HIGHEST_PROTOCOL:
            _refuse(f"its pickle has the unknown protocol {version}; {SAVE_AGAIN}")


def _is_object(value: Any) -> bool:
    return isinstance(value, Inert) and value.args is not None


def _key(value: Any) -> Any:
    """What stands for a dict's key: other than these, a file could make keys that collide."""
    if isinstance(value, str | bytes) or value is None:
        return value
    if isinstance(value, int) and abs(value) < 1 << 60:
        return value
    return Inert("dict key", (value,))


VALUES: dict[bytes, Callable[[_Machine], Any]] = {
    pickle.NONE: lambda m: None,
    pickle.NEWTRUE: lambda m: True,
    pickle.NEWFALSE: lambda m: False,
    pickle.EMPTY_TUPLE: lambda m: (),
    pickle.EMPTY_LIST: lambda m: [],
    pickle.EMPTY_DICT: lambda m: {},
    pickle.EMPTY_SET: lambda m: Inert("builtins.set", ()),
    pickle.BININT: lambda m: m.number("<i"),
    pickle.BININT1: lambda m: m.number("<B"),
    pickle.BININT2: lambda m: m.number("<H"),
    pickle.LONG1: lambda m: int.from_bytes(m.take(m.number("<B")), "little", signed=True),
    pickle.BINFLOAT: lambda m: m.number(">d"),
    pickle.BINUNICODE: lambda m: m.text("<I"),
    pickle.SHORT_BINUNICODE: lambda m: m.text("<B"),
    pickle.BINBYTES: lambda m: m.take(m.number("<I")),
    pickle.SHORT_BINBYTES: lambda m: m.take(m.number("<B")),
    pickle.BYTEARRAY8: lambda m: m.take(m.number("<Q")),  # of numpy arrays, in protocol 5
    pickle.TUPLE: lambda m: tuple(m.since_mark()),
    pickle.TUPLE1: lambda m: m.last(1),
    pickle.TUPLE2: lambda m: m.last(2),
    pickle.TUPLE3: lambda m: m.last(3),
    pickle.FROZENSET: lambda m: Inert("builtins.frozenset", tuple(m.since_mark())),
    pickle.BINGET: lambda m: m.recall("<B"),
    pickle.LONG_BINGET: lambda m: m.recall("<I"),
    pickle.GLOBAL: lambda m: m.named(m.line(), m.line()),
    pickle.STACK_GLOBAL: lambda m: m.named(*m.last(2)),
    pickle.REDUCE: lambda m: m.call(),
    pickle.NEWOBJ: lambda m: m.call(),
    pickle.BINPERSID: lambda m: m.persistent(),
}
ACTIONS: dict[bytes, Callable[[_Machine], None]] = {
    pickle.PROTO: lambda m: m.check_protocol(),
    pickle.FRAME: lambda m: m.number("<Q"),  # how much to read ahead, which take() does not
    pickle.MARK: lambda m: m.mark(),
    pickle.BINPUT: lambda m: m.remember(m.number("<B")),
    pickle.LONG_BINPUT: lambda m: m.remember(m.number("<I")),
    pickle.MEMOIZE: lambda m: m.remember(len(m.memo)),
    pickle.APPEND: lambda m: m.extend([m.stack.pop()]),
    pickle.APPENDS: lambda m: m.extend(m.since_mark()),
    pickle.ADDITEMS: lambda m: m.extend(m.since_mark()),
    pickle.SETITEM: lambda m: m.set_items(m.last(2)),
    pickle.SETITEMS: lambda m: m.set_items(m.since_mark()),
    pickle.BUILD: lambda m: m.set_state(),
}


def _check_nesting(tree: Any):
    """Refuses what a plain recursion through dicts, lists and tuples would not survive.

    That is depth, cycles, and a few objects that contain one another along very many paths.
    """
    left = MAX_OPCODES
    levels = [iter((tree,))]
    while levels:
        for value in levels[-1]:
            left -= 1
            if isinstance(value, dict | list | tuple):
                levels.append(iter(value.values() if isinstance(value, dict) else value))
                break
        else:
            levels.pop()
        if left < 0 or len(levels) > MAX_DEPTH + 1:
            _refuse(
                f"its objects lie more than {MAX_DEPTH} deep in one another, contain themselves, "
                f"or are more than {MAX_OPCODES}; {SAVE_AGAIN}"
            )


# The zip archive


def _read_at(file: BinaryIO, start: int, count: int) -> bytes:
    file.seek(start)
    data = file.read(count)
    if len(data) < count:
        _damaged(f"the file ends before byte {start + count}")
    return data


def _zip_directory(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Number of entries, and where their list starts and stops."""
    tail = _read_at(file, max(0, size - 98), min(98, size)).rjust(98, b"\0")
    wide, pointer, end = tail[:56], tail[56:76], tail[76:]
    if end[:4] != b"PK\5\6" or end[20:] != b"\0\0":
        _damaged("the end of the zip archive is missing")
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
            _damaged("the end of the zip archive is inconsistent")
    count, length, start = found
    if count > MAX_ENTRIES or length > MAX_PICKLE_BYTES:
        _damaged(f"the zip archive has {count} entries, and at most {MAX_ENTRIES} are read")
    if start + length != stop:
        _damaged("the list of the zip archive's entries is not where it should be")
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
                _damaged("the list of the zip archive's entries is damaged")
            value, wide = int.from_bytes(wide[:8], "little"), wide[8:]
        yield value


def _zip_entries(owner: TorchFile, file: BinaryIO, size: int) -> dict[str, _Storage]:
    """All entries by their names: none packed, in another, or longer than the file."""
    count, start, stop = _zip_directory(file, size)
    listed = _read_at(file, start, stop - start)
    found = []
    at = 0
    for _ in range(count):
        if listed[at : at + 4] != b"PK\1\2" or at + 46 > len(listed):
            _damaged("the list of the zip archive's entries is damaged")
        fields = struct.unpack_from("<8xHH4xLLLHHH8xL", listed, at)
        flags, method, crc, packed, nbytes, len_name, len_extra, len_comment, header = fields
        name = listed[at + 46 : at + 46 + len_name]
        at += 46 + len_name
        nbytes, packed, header = _widened(listed[at : at + len_extra], (nbytes, packed, header))
        at += len_extra + len_comment
        if method or flags & 1 or packed != nbytes:
            _refuse(
                f"entry {_shown(name.decode(errors='replace'))} is compressed or encrypted, which "
                "torch.save never does; if a folder was packed by hand, pack it without "
                "compression (zip -0 -r)"
            )
        found.append((header, name, nbytes, crc))
    if at != len(listed):
        _damaged("the list of the zip archive's entries is damaged")
    entries = {}
    for header, raw_name, nbytes, crc in sorted(found, reverse=True):  # the last first
        name = raw_name.decode(errors="replace")
        if name in entries:
            _damaged(f"the zip archive has two entries {_shown(name)}")
        local = _read_at(file, header, 30 + len(raw_name))
        method, len_name, len_extra = struct.unpack_from("<8xH16xHH", local)
        begin = header + 30 + len_name + len_extra
        if local[:4] != b"PK\3\4" or method or len_name != len(raw_name) or local[30:] != raw_name:
            _damaged(f"entry {_shown(name)} is not where the zip archive's list says")
        if begin + nbytes > start:
            _damaged(f"entry {_shown(name)} overlaps the next, or ends outside the file")
        entries[name] = _Storage(owner, name, nbytes, begin, crc)
        start = header
    return entries


# The file

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
            _refuse(what)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"<"):
        _refuse("is an HTML or XML page: the download failed; look at it, and get the file again")
    if text and all(32 <= byte < 127 or byte in b"\t\n\r" for byte in text):
        _refuse(f"is text that begins with {text[:40].decode()!r}; get the checkpoint itself")
    _damaged(f"begins with the bytes {head[:8].hex()}, as nothing of torch.save does")


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
        except _Refusal as refusal:
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
                _refuse(f"is a symbolic link to {target!r}, which does not exist; get that file")
            _refuse("does not exist; check the path")
        if stat.S_ISDIR(mode):
            _refuse("is a directory; give the path of the file in it")
        if not stat.S_ISREG(mode):  # a pipe would be waited for, a device has no end
            _refuse("is not a regular file; copy its contents to one")
        return open(self.path, "rb")

    def _load(self) -> Any:
        head = _read_at(self._file, 0, min(512, self._size))
        if not head:
            _damaged("is empty")
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= self._size - 8:
            _refuse("is a safetensors file; give it a name that ends in .safetensors")
        if head[257:262] == b"ustar":
            _refuse(f"is a tar archive, perhaps of torch before 0.2; {SAVE_AGAIN}")
        if head.startswith(b"PK\3\4"):
            return self._load_zip()
        if head.startswith(pickle.PROTO):
            return self._load_legacy()
        _refuse_by_first_bytes(head)

    def _load_zip(self) -> Any:
        entries = _zip_entries(self, self._file, self._size)
        names = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(names) != 1:
            some = ", ".join(_shown(name) for name in list(entries)[-3:])
            _refuse(
                f"is a zip archive, but not one of torch.save, for it holds {some}; if the "
                "checkpoint is in it, unpack it"
            )
        folder = names[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in entries:
            _refuse(
                "is a TorchScript archive, a program; save the state_dict of the module instead"
            )
        if (order := entries.get(f"{folder}byteorder")) is not None:
            said = self._read_small(order)
            if said not in (b"little", b"big"):
                _damaged("its byteorder is neither little nor big")
            self._big_endian = said == b"big"

        def find_storage(key: str, numel: int, itemsize: int) -> _Storage:
            storage = entries.get(f"{folder}data/{key}")
            if storage is None:
                _damaged(f"storage {_shown(key)} is missing from the archive")
            if storage.nbytes != numel * itemsize:
                size = f"{numel} elements of {itemsize}"
                _damaged(f"storage {_shown(key)} has {storage.nbytes} bytes, not {size}")
            return storage

        with self._explained(names[0]):
            data = self._read_small(entries[names[0]])
            return _Machine(io.BytesIO(data), len(data), find_storage).load()

    def _load_legacy(self) -> Any:
        storages: dict[str, tuple[_Storage, int]] = {}

        def find_storage(key: str, numel: int, itemsize: int) -> _Storage:
            new = _Storage(self, f"storage {key}", numel * itemsize, None, None)
            storage, _ = storages.setdefault(key, (new, numel))
            if storage.nbytes != new.nbytes:
                _damaged(f"storage {_shown(key)} has two sizes")
            return storage

        self._file.seek(0)
        machine = _Machine(self._file, self._size, find_storage)
        if machine.load() != 0x1950A86A20F9469CFC6C:
            _refuse(f"is a pickle, but not one of torch.save; {SAVE_AGAIN}")
        if machine.load() != 1001:
            _refuse(f"is of an unknown version; {SAVE_AGAIN}")
        match machine.load():
            case {"little_endian": False}:
                _refuse(f"was written on a big-endian machine; {SAVE_AGAIN}")
        tree = machine.load()
        keys = machine.load()
        if not isinstance(keys, list) or {*map(_key, keys)} != storages.keys():
            _damaged("the storages that it lists are not those of its tensors")
        at = self._file.tell()
        for key in keys:
            storage, numel = storages[key]
            if storage.start is not None or _read_at(self._file, at, 8) != struct.pack("<q", numel):
                _damaged(f"storage {_shown(key)} does not have the {numel} elements announced")
            storage.start = at + 8
            at += 8 + storage.nbytes
        if at != self._size:
            _damaged(f"its contents end at byte {at}, the file at {self._size}")
        return tree

    def _read_small(self, entry: _Storage) -> bytes:
        if entry.nbytes > MAX_PICKLE_BYTES:
            _refuse(
                f"entry {_shown(entry.entry)} has {entry.nbytes} bytes, and {MAX_PICKLE_BYTES} is "
                f"the limit for what is not weights; {SAVE_AGAIN}"
            )
        return self._read_storage(entry, 0, entry.nbytes).tobytes()

    def _read_storage(self, storage: _Storage, start: int, count: int) -> np.ndarray:
        """Bytes [start, start + count), uint8; the first time all are read, for the checksum."""
        if self._file.closed:
            _refuse("the file has been closed; read tensors inside the with block")
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
            _damaged(
                "has no checksum (torch.serialization.set_crc32_options(False); save it again with "
                "True), or a wrong one"
            )
        if crc != storage.crc:
            _damaged("its checksum is wrong")
        storage.crc = None
        return wanted

    def _read_into(self, start: int, target: np.ndarray) -> None:
        self._file.seek(start)
        if self._file.readinto(target) < len(target):
            _damaged(f"the file ends before byte {start + len(target)}")


def open_torch_file(path: str | os.PathLike[str]) -> TorchFile:
    """An open `.pth`, `.pt`, `.bin` or `.ckpt` file, none of its tensors read yet.

    Raises:
      TorchFileError: whatever is wrong with the file.
    """
    return TorchFile(path)
