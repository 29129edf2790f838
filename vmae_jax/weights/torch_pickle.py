"""The pickles inside torch's files, run by a machine that can do no harm.

A pickle is a program. `pickletools` of the standard library reads its opcodes; the machine below
acts on those that torch writes. Names are only looked up in `torch_names`; nothing is imported,
called or given attributes, and what a hostile program may cost is limited. What comes out has the
structure of what was saved: tensors as `Tensor`, of which no byte is read before `read()`, any
other object an `Inert` note that it was there, a dict with an order or a default a plain one.
"""

from __future__ import annotations

import math
import pickle  # for the newest protocol
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from vmae_jax.weights.tensors import MAX_RANK, Tensor, damaged, refuse, shown
from vmae_jax.weights.torch_names import ITEM_BYTES, KNOWN_NAMES, MODULES, STORAGES

# Far above any checkpoint. What a hostile file may cost follows from them.
MAX_OPCODES = 1_000_000  # each leaves at most about 100 bytes behind, and takes microseconds
MAX_TENSORS = 100_000  # each takes as long as ten or twenty opcodes
MAX_DEPTH = 64  # of dicts, lists and tuples in one another

SAVE_AGAIN = (
    "if you trust the file, open it once with torch and save only the weights: "
    'torch.save({"model": weights}, path)'
)


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


class Storage(Protocol):
    """Bytes of the file, of which tensors are views; `torch_file.Storage`."""

    entry: str
    nbytes: int

    def tensor(self, dtype: str, shape: tuple, strides: tuple, start: int, lazy: tuple) -> Tensor:
        """The view; strides in elements, start in bytes."""


class _Elements(NamedTuple):
    """How a pickle refers to a storage, or to the part of it that old files call a view."""

    storage: Storage
    dtype: str
    start: int  # bytes
    nbytes: int


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
) -> Tensor:
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
    lazy = tuple(name for name in ("conj", "neg") if known.get(name))
    start = elements.start + first * itemsize
    return storage.tensor(dtype, shape, strides, start, lazy)


def _rebuild_tensor(*args: Any) -> Tensor:
    if len(args) not in (4, 6, 7):
        damaged("its pickle rebuilds a tensor from the wrong number of arguments")
    return _tensor(*args)


def _rebuild_tensor_v3(*args: Any) -> Tensor:
    match args[6:]:  # for a dtype of which torch has no typed storage
        case [Inert(args=None) as dtype] | [Inert(args=None) as dtype, _] if (
            name := dtype.name.removeprefix("torch.")
        ) in ITEM_BYTES:
            return _tensor(*args[:6], *args[7:], dtype=name)
    damaged("its pickle rebuilds a tensor of unknown dtype")


def _rebuild_parameter(*args: Any) -> Any:
    match args:
        case [Tensor() | Inert() as data, *_]:
            return data
    damaged("its pickle makes a parameter of what is not a tensor")


def _rebuild_from_type(*args: Any) -> Tensor:
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


# Each name to itself: a file may ask for one a million times, and gets the same string.
NAMES = {name: name for name in (*KNOWN_NAMES, *BUILDERS)}

# The machine


def read_pickles(
    stream: Any, find_storage: Callable[[str, int, int], Storage]
) -> Callable[[], Any]:
    """A function that gives what the next pickle builds, each time it is called.

    All of them share the limits.

    Args:
      stream: pickles of protocol 2 or later, one after another, by `read` and `readline`, which
        refuse to give fewer bytes than asked for.
      find_storage: (key, number of elements, bytes of one) -> Storage.
    """
    return _Machine(stream, find_storage).load


class _Machine:
    def __init__(self, stream: Any, find_storage: Callable[[str, int, int], Storage]):
        self._stream = stream
        self.find_storage = find_storage
        self._budget = iter(range(MAX_OPCODES))
        self._tensors = 0

    def load(self) -> Any:
        self.stack: list = []
        self.outer: list[list] = []  # the stacks below the marks
        self.memo: dict[int, Any] = {}
        try:
            for _ in self._budget:
                name, argument = self._next_opcode()
                if name == "STOP":
                    result = self.stack.pop()
                    _check_nesting(result)
                    return result
                if name in LITERALS:
                    self.stack.append(CONSTANTS.get(name, argument))
                elif (make := VALUES.get(name)) is not None:
                    value = make(self, argument)  # may replace the stack
                    self.stack.append(value)
                else:
                    ACTIONS[name](self, argument)
        except IndexError:
            damaged("its pickle takes from an empty stack")
        refuse(f"its pickle has more than {MAX_OPCODES} opcodes; {SAVE_AGAIN}")

    def _next_opcode(self) -> tuple[str, Any]:
        code = self._stream.read(1)
        known = pickletools.code2op.get(code.decode("latin-1"))
        if known is None or known.name not in OPCODES:
            name = known.name if known else code.hex()
            refuse(f"its pickle has the opcode {name}, which is not read; {SAVE_AGAIN}")
        try:
            if known.name == "GLOBAL":  # pickletools takes backslashes in names for escapes
                return known.name, [self._stream.readline()[:-1].decode() for _ in range(2)]
            return known.name, known.arg and known.arg.reader(self._stream)
        except UnicodeDecodeError:
            damaged("its pickle has text that is not UTF-8")
        except ValueError as error:  # a number of bytes that no machine can have
            damaged(f"its pickle cannot be read ({error})")

    def recall(self, index: int) -> Any:
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
        full_name = f"{MODULES.get(module, module)}.{name}"
        known = NAMES.get(full_name)
        if known is None:
            refuse(
                f"its pickle asks for {shown(full_name)}, which is not on the list of what "
                f"checkpoints hold, so nothing was run or loaded; {SAVE_AGAIN}"
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
        self._tensors += isinstance(value, Tensor)
        if self._tensors > MAX_TENSORS:
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

    def check_protocol(self, version: int):
        if version > pickle.HIGHEST_PROTOCOL:
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


# Opcodes by what they do: the value is always the same, or the argument,
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINBYTES", "SHORT_BINBYTES", "BYTEARRAY8", *CONSTANTS),
}
# or it is made, and goes on the stack,
VALUES: dict[str, Callable[[_Machine, Any], Any]] = {
    "EMPTY_LIST": lambda m, _: [],
    "EMPTY_DICT": lambda m, _: {},
    "EMPTY_SET": lambda m, _: Inert("builtins.set", ()),
    "TUPLE": lambda m, _: tuple(m.since_mark()),
    "TUPLE1": lambda m, _: m.last(1),
    "TUPLE2": lambda m, _: m.last(2),
    "TUPLE3": lambda m, _: m.last(3),
    "FROZENSET": lambda m, _: Inert("builtins.frozenset", tuple(m.since_mark())),
    "BINGET": lambda m, index: m.recall(index),
    "LONG_BINGET": lambda m, index: m.recall(index),
    "GLOBAL": lambda m, names: m.named(*names),
    "STACK_GLOBAL": lambda m, _: m.named(*m.last(2)),
    "REDUCE": lambda m, _: m.call(),
    "NEWOBJ": lambda m, _: m.call(),
    "BINPERSID": lambda m, _: m.persistent(),
}
# or what is there changes.
ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda m, version: m.check_protocol(version),
    "FRAME": lambda m, size: None,  # how much may be read ahead
    "MARK": lambda m, _: m.mark(),
    "BINPUT": lambda m, index: m.remember(index),
    "LONG_BINPUT": lambda m, index: m.remember(index),
    "MEMOIZE": lambda m, _: m.remember(len(m.memo)),
    "APPEND": lambda m, _: m.extend([m.stack.pop()]),
    "APPENDS": lambda m, _: m.extend(m.since_mark()),
    "ADDITEMS": lambda m, _: m.extend(m.since_mark()),
    "SETITEM": lambda m, _: m.set_items(m.last(2)),
    "SETITEMS": lambda m, _: m.set_items(m.since_mark()),
    "BUILD": lambda m, _: m.set_state(),
}
OPCODES = LITERALS | VALUES.keys() | ACTIONS.keys() | {"STOP"}


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
