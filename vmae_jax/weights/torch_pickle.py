"""The pickles inside torch's files, run by a machine that can do no harm.

A pickle is a program. Names in it are only looked up in the tables below; nothing is imported,
called or given attributes, and what a hostile one may cost is limited. What comes out has the
structure of what was saved: tensors as `LazyTensor`, of which no byte is read before `read()`, any
other object an `Inert` note that it was there, a dict with an order or a default a plain one.
"""

from __future__ import annotations

import math
import pickle  # for the names of its opcodes
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn

import ml_dtypes
import numpy as np

from vmae_jax.errors import SettingError

if TYPE_CHECKING:
    from vmae_jax.weights.torch_file import TorchFile

# Far above any checkpoint. What a hostile file may cost follows from them.
MAX_PICKLE_BYTES = 16 << 20
MAX_OPCODES = 1_000_000  # each leaves at most about 100 bytes behind, and takes microseconds
MAX_ENTRIES = 100_000
MAX_TENSORS = 100_000  # each takes as long as ten or twenty opcodes
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


class TorchFileError(SettingError):
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


class Refusal(Exception):
    """A reason, to which `TorchFile._explained` adds where."""


def refuse(reason: str) -> NoReturn:
    """Ends the reading: what the file holds is not read here."""
    raise Refusal(reason)


def damaged(reason: str) -> NoReturn:
    """Ends the reading: no writer makes such a file."""
    refuse(f"{reason}: the download or copy is incomplete or damaged; get the file again")


def shown(name: str) -> str:
    """A name from the file, safe to print."""
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
class Storage:
    """Bytes of a file, of which tensors are views."""

    file: TorchFile
    entry: str
    nbytes: int
    start: int | None  # position in the file; None until known
    crc: int | None  # None: checked already, or nothing to check


class _Elements(NamedTuple):
    """How a pickle refers to a storage, or to the part of it that old files call a view."""

    storage: Storage
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
    _storage: Storage = field(repr=False)
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
            refuse(f"dtype={self.dtype} is not read; {SAVE_AGAIN}, as float32")
        if self._views:
            refuse(f"a lazy {self._views[0]} view is not read; {SAVE_AGAIN}, after .clone()")
        dtype = DTYPES[self.dtype]
        size = math.prod(self.shape)
        if size == 0:
            return np.empty(self.shape, dtype)
        if size * dtype.itemsize > self._storage.nbytes:
            refuse(
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
            damaged("a bool is neither 0 nor 1")
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
        damaged("its pickle describes a tensor that cannot be")
    storage = elements.storage
    dtype = dtype or elements.dtype
    itemsize = ITEM_BYTES[dtype]
    last = first + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if 0 not in shape and (last + 1) * itemsize > elements.nbytes:
        damaged(
            f"a tensor of shape={shape}, strides={strides}, offset={first} and dtype={dtype} ends "
            f"outside its storage {shown(storage.entry)} of {elements.nbytes} bytes"
        )
    if 0 in shape and math.prod(n or 1 for n in shape) * itemsize >= 1 << 63:
        damaged(f"shape={shape} is impossible even for an empty tensor")
    known = metadata if isinstance(metadata, dict) else {}
    views = tuple(name for name in ("conj", "neg") if known.get(name))
    start = elements.start + first * itemsize
    return LazyTensor(shape, dtype, storage.entry, strides, start, storage, views)


def _rebuild_tensor(*args: Any) -> LazyTensor:
    if len(args) not in (4, 6, 7):
        damaged("its pickle rebuilds a tensor from the wrong number of arguments")
    return _tensor(*args)


def _rebuild_tensor_v3(*args: Any) -> LazyTensor:
    match args[6:]:  # for a dtype of which torch has no typed storage
        case [Inert(args=None) as dtype] | [Inert(args=None) as dtype, _] if (
            name := dtype.name.removeprefix("torch.")
        ) in ITEM_BYTES:
            return _tensor(*args[:6], *args[7:], dtype=name)
    damaged("its pickle rebuilds a tensor of unknown dtype")


def _rebuild_parameter(*args: Any) -> Any:
    match args:
        case [LazyTensor() | Inert() as data, *_]:
            return data
    damaged("its pickle makes a parameter of what is not a tensor")


def _rebuild_from_type(*args: Any) -> LazyTensor:
    match args:  # a tensor that had attributes: they are left out
        case [Inert(name="torch._utils._rebuild_tensor_v2"), Inert(), tuple() as inner, _]:
            return _rebuild_tensor(*inner)
        case [Inert(name="torch._utils._rebuild_tensor_v3"), Inert(), tuple() as inner, _]:
            return _rebuild_tensor_v3(*inner)
    refuse(f"its pickle has a tensor of a class of its own; {SAVE_AGAIN}")


def _size(*args: Any) -> tuple:
    match args:
        case [tuple() as sizes]:
            return sizes
    damaged("its pickle makes a torch.Size of what are not sizes")


def _getattr(*args: Any) -> Inert:
    match args:  # mmengine's training files name the methods of one class
        case [Inert("mmengine.logging.history_buffer.HistoryBuffer", None), str()]:
            return Inert("builtins.getattr", args)
    refuse("its pickle calls getattr, which weights do not need: the file may be hostile")


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
      find_storage: (key, number of elements, bytes of one) -> Storage.
    """

    def __init__(
        self, stream: BinaryIO, limit: int, find_storage: Callable[[str, int, int], Storage]
    ):
        self.stream = stream
        self.left = min(limit, MAX_PICKLE_BYTES)
        self.find_storage = find_storage
        self.budget = iter(range(MAX_OPCODES))
        self.tensors = 0

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
                    refuse(f"its pickle has the opcode {name}, which is not read; {SAVE_AGAIN}")
        except IndexError:
            damaged("its pickle takes from an empty stack")
        except UnicodeDecodeError:
            damaged("its pickle has text that is not UTF-8")
        refuse(f"its pickle has more than {MAX_OPCODES} opcodes; {SAVE_AGAIN}")

    def take(self, count: int) -> bytes:
        data = self.stream.read(count) if count <= self.left else b""
        if len(data) < count:
            damaged(
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
            damaged("its pickle has a name without an end")
        return line[:-1].decode()

    def recall(self, form: str) -> Any:
        index = self.number(form)
        if index not in self.memo:
            damaged("its pickle refers to an object before it is there")
        return self.memo[index]

    def since_mark(self) -> list:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def last(self, count: int) -> tuple:
        return tuple(reversed([self.stack.pop() for _ in range(count)]))

    def named(self, module: Any, name: Any) -> Inert:
        if not (isinstance(module, str) and isinstance(name, str)):
            damaged("its pickle names a class by something other than text")
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        known = NAMES.get(f"{module}.{name}")
        if known is None:
            refuse(
                f"its pickle asks for {shown(f'{module}.{name}')}, which is not on the list of "
                f"what checkpoints hold, so nothing was run or loaded; {SAVE_AGAIN}"
            )
        return Inert(known)

    def call(self) -> Any:
        function, args = self.last(2)
        if not (isinstance(function, Inert) and function.args is None and isinstance(args, tuple)):
            damaged("its pickle calls what is not a class or function")
        build = BUILDERS.get(function.name)
        if build is None:
            return Inert(function.name, args)
        value = build(*args)
        self.tensors += isinstance(value, LazyTensor)
        if self.tensors > MAX_TENSORS:
            refuse(f"its pickle has more than {MAX_TENSORS} tensors; {SAVE_AGAIN}")
        return value

    def persistent(self) -> _Elements:
        match self.stack.pop():
            case ("storage", Inert(args=None) as kind, str() as key, _, int() as numel, *view) if (
                kind.name in STORAGES and 0 <= numel < 1 << 63
            ):
                dtype = STORAGES[kind.name]
            case _:
                damaged("its pickle refers to a storage in a form that torch.save never writes")
        itemsize = ITEM_BYTES[dtype]
        storage = self.find_storage(key, numel, itemsize)
        match view:
            case [] | [None]:
                return _Elements(storage, dtype, 0, storage.nbytes)
            case [(_, int() as first, int() as count)] if 0 <= first <= first + count <= numel:
                return _Elements(storage, dtype, first * itemsize, count * itemsize)
        damaged("its pickle has a view that ends outside its storage")

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
            damaged("its pickle appends to what is not a list")

    def set_items(self, items: list | tuple):
        target = self.stack[-1]
        if isinstance(target, dict) and len(items) % 2 == 0:
            target.update(zip(map(dict_key, items[::2]), items[1::2], strict=True))
        elif not _is_object(target):
            damaged("its pickle sets items of what is not a dict")

    def set_state(self):
        state = self.stack.pop()
        target = self.stack[-1]
        if _is_object(target):
            target.state = state
        elif not isinstance(target, dict):  # a state dict's is its metadata, and left out
            damaged("its pickle sets attributes of what has none")

    def check_protocol(self):
        if (version := self.number("<B")) > pickle.HIGHEST_PROTOCOL:
            refuse(f"its pickle has the unknown protocol {version}; {SAVE_AGAIN}")


def _is_object(value: Any) -> bool:
    return isinstance(value, Inert) and value.args is not None


def dict_key(value: Any) -> Any:
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
            refuse(
                f"its objects lie more than {MAX_DEPTH} deep in one another, contain themselves, "
                f"or are more than {MAX_OPCODES}; {SAVE_AGAIN}"
            )
