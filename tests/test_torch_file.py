import argparse
import collections
import datetime
import io
import json
import os
import pathlib
import pickle
import signal
import struct
import subprocess
import sys
import textwrap
import zipfile

import ml_dtypes
import numpy as np
import pytest

from vmae_jax.weights import torch_file, torch_pickle
from vmae_jax.weights.tensors import Tensor, WeightFileError
from vmae_jax.weights.torch_file import open_torch_file
from vmae_jax.weights.torch_pickle import Inert


@pytest.fixture(autouse=True)
def _no_hanging():
    def stop(*_):
        raise TimeoutError("60 s have passed")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


# Files that torch writes. What it loads from them is what we expect.

DTYPES = [
    *("float64", "float32", "float16", "bfloat16", "bool"),
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (64, 32, 16, 8)),
]


def training_checkpoint(torch):
    """What the official training script saves, of a model of two layers."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(3, 5)).square().sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 799,
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "args": argparse.Namespace(
            model="pretrain_videomae_base_patch16_224",
            lr=np.float64(1.5e-4),
            window_size=(8, 14, 14),
            opt_betas=[0.9, 0.95],
            output_dir=pathlib.PurePosixPath("runs/a"),
            device=torch.device("cpu"),
            dtype=torch.float16,
            names={"a", "b"},
            started=datetime.datetime(2022, 10, 13),
            best=np.float32(0.5),
            history=np.arange(3.0),
            counts=collections.defaultdict(list, {3: [1]}),
            seeds=frozenset([1]),
            nothing=None,
            large=-(2**70),
        ),
    }


def as_array(tensor):
    if str(tensor.dtype) == "torch.bfloat16":
        return tensor.detach().view(torch_of(tensor).int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()


def torch_of(_):
    return sys.modules["torch"]


def assert_same(ours, theirs):
    """`theirs` from torch.load. Objects of other classes only have to be noted."""
    if isinstance(ours, Tensor):
        expected = as_array(theirs)
        found = ours.read()
        assert (ours.shape, ours.dtype) == (expected.shape, expected.dtype.name)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        assert found.tobytes() == np.ascontiguousarray(expected).tobytes()
        assert found.flags.c_contiguous
        assert found.flags.writeable
    elif isinstance(ours, Inert):
        assert not isinstance(theirs, int | float | str | list | tuple | dict | None)
    elif isinstance(ours, dict):
        assert isinstance(theirs, dict)
        assert list(ours) == list(theirs)
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    else:
        assert type(ours) is type(theirs)
        assert ours == theirs


def assert_read_as_torch_does(torch, path):
    theirs = torch.load(path, weights_only=False)
    with open_torch_file(path) as file:
        assert_same(file.tree, theirs)
        return file.tree


FORMATS = {
    "zip": {},
    "zip-protocol-4": {"pickle_protocol": 4},
    "zip-protocol-5": {"pickle_protocol": 5},
    "legacy": {"_use_new_zipfile_serialization": False},
    "legacy-protocol-4": {"_use_new_zipfile_serialization": False, "pickle_protocol": 4},
}


@pytest.fixture(params=FORMATS)
def save(request, torch, tmp_path):
    def save_to(value, name="checkpoint.pth"):
        torch.save(value, tmp_path / name, **FORMATS[request.param])
        return tmp_path / name

    return save_to


def test_a_training_checkpoint_is_read_as_torch_reads_it(torch, save):
    path = save(training_checkpoint(torch))
    tree = assert_read_as_torch_does(torch, path)
    assert repr(tree["args"]) == "<argparse.Namespace>"
    state = tree["args"].state
    assert state["window_size"] == (8, 14, 14)
    assert state["large"] == -(2**70)
    assert repr(state["lr"]) == "<numpy._core.multiarray.scalar>"
    assert repr(state["dtype"]) == "<torch.float16>"
    assert state["device"].args == ("cpu",)
    assert {name: repr(state[name]) for name in ("names", "seeds", "started", "output_dir")} == {
        "names": "<builtins.set>",
        "seeds": "<builtins.frozenset>",
        "started": "<datetime.datetime>",
        "output_dir": "<pathlib.PurePosixPath>",
    }


def test_every_dtype_is_read_bit_for_bit(torch, save):
    bits = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 8), dtype=np.uint8))
    tensors = {
        name: (bits > 127 if name == "bool" else bits.clone().view(getattr(torch, name)))
        for name in DTYPES
    }
    path = save(tensors)
    with open_torch_file(path) as file:  # torch itself cannot load uint16 from the older format
        assert_same(file.tree, tensors)
        assert [tensor.dtype for tensor in file.tree.values()] == DTYPES


def test_views_shared_storages_and_parameters_are_read_as_torch_reads_them(torch, save):
    base = torch.arange(60.0).reshape(3, 4, 5)
    parameter = torch.nn.Parameter(torch.randn(2, 3))
    annotated = torch.ones(3)
    annotated.note = "kept out"
    with_state = torch.nn.Parameter(torch.zeros(2))
    with_state.note = "kept out"
    path = save(
        {
            "base": base,
            "transposed": base.permute(2, 0, 1),
            "strided": base[::2, 1:3, ::2],
            "row": base[1],
            "same": base,
            "one": base[2, 3, 4],
            "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
            "scalar": torch.tensor(3, dtype=torch.int16),
            "empty": torch.zeros(0),
            "empty_rows": torch.zeros(0, 7),
            "parameter": parameter,
            "parameter_view": parameter.t(),
            "with_state": with_state,
            "annotated": annotated,
            "shape": base.shape,
            "ones": torch.ones(1, 1, 3)[:, :, ::2],
        }
    )
    tree = assert_read_as_torch_does(torch, path)
    assert tree["base"].entry == tree["transposed"].entry == tree["same"].entry
    assert tree["base"].entry != tree["scalar"].entry
    assert tree["shape"] == (3, 4, 5)


def test_the_values_read_belong_to_the_caller(torch, save):
    with open_torch_file(save({"a": torch.ones(3)})) as file:
        first = file.tree["a"].read()
        first[:] = 5
        np.testing.assert_array_equal(file.tree["a"].read(), np.ones(3))


def test_views_of_old_files_are_read_as_torch_reads_them(torch, tmp_path):
    # torch < 0.4 wrote them; torch still reads them, which is what we compare with
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if value == "whole":
                return ("storage", torch.FloatStorage, "7", "cpu", 10, None)
            if value == "part":
                return ("storage", torch.FloatStorage, "7", "cpu", 10, ("8", 4, 5))
            return None

    class Rebuilt:
        def __init__(self, *args):
            self.args = args

        def __reduce__(self):
            return torch._utils._rebuild_tensor, self.args

    path = tmp_path / "old.pth"
    with path.open("wb") as file:
        for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(value, file, protocol=2)
        tensors = {
            "a": Rebuilt("whole", 0, (10,), (1,)),
            "b": Rebuilt("part", 1, (2, 2), (1, 2)),
        }
        Pickler(file, protocol=2).dump(tensors)
        pickle.dump(["7"], file, protocol=2)
        file.write(struct.pack("<q", 10) + np.arange(10, dtype=np.float32).tobytes())
    tree = assert_read_as_torch_does(torch, path)
    np.testing.assert_array_equal([[5, 7], [6, 8]], open_torch_file(path).tree["b"].read())
    assert tree["b"].shape == (2, 2)


def test_big_endian_files_are_read_as_torch_reads_them(torch, tmp_path):
    tensors = {
        "float32": torch.randn(3, 4),
        "bfloat16": torch.randn(3).bfloat16(),
        "int8": torch.arange(3, dtype=torch.int8),
        "float64": torch.randn(3, 4, dtype=torch.float64).t(),
    }
    torch.save(tensors, tmp_path / "little.pth")
    sizes = [4, 2, 1, 8]  # of the elements of storages 0, 1, ...
    with zipfile.ZipFile(tmp_path / "little.pth") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    for number, size in enumerate(sizes):
        name = f"little/data/{number}"
        swapped = np.frombuffer(entries[name], f"u{size}").byteswap()
        entries[name] = swapped.tobytes()
    entries["little/byteorder"] = b"big"
    path = write_zip(tmp_path / "big.pth", entries)
    with open_torch_file(path) as file:
        assert_same(file.tree, tensors)
    assert_read_as_torch_does(torch, path)


def test_odd_tensors_are_refused_only_when_they_are_read(torch, tmp_path):
    path = tmp_path / "odd.pth"
    torch.save(
        {
            "model": {"weight": torch.ones(2)},
            "optimizer": {
                "complex": torch.zeros(2, dtype=torch.complex64),
                "float8": torch.zeros(2).to(torch.float8_e4m3fn),
                "quantised": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
                "expanded": torch.ones(1).expand(1000),
                "negative": torch._neg_view(torch.ones(2)),
                "sparse": torch.eye(2).to_sparse(),
                "meta": torch.empty(2, device="meta"),
            },
        },
        path,
    )
    with open_torch_file(path) as file:
        np.testing.assert_array_equal(file.tree["model"]["weight"].read(), [1, 1])
        odd = file.tree["optimizer"]
        for name, reason in {
            "complex": "dtype=complex64",
            "float8": "dtype=float8_e4m3fn",
            "quantised": "dtype=qint8",
            "expanded": r"shape=\(1000,\) is expanded",
            "negative": "lazy neg view",
        }.items():
            with pytest.raises(WeightFileError, match=reason):
                odd[name].read()
        assert isinstance(odd["sparse"], Inert)
        assert isinstance(odd["meta"], Inert)


def test_neither_torch_nor_jax_is_loaded():
    script = "import sys, vmae_jax.weights.torch_file; print(*sys.modules)"
    loaded = run_child(script).split()
    assert "vmae_jax.weights.torch_file" in loaded
    assert not {"torch", "jax", "flax", "safetensors"} & set(loaded)


# Only what is read is read


class RecordingFile(io.FileIO):
    """Remembers which bytes were read."""

    ranges: list

    def readinto(self, buffer):
        start = self.tell()
        count = super().readinto(buffer)
        self.ranges.append((start, start + count))
        return count


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_tensors_that_are_not_read_stay_on_disk(torch, tmp_path, monkeypatch, form):
    path = tmp_path / "checkpoint.pth"
    checkpoint = {
        "model": {name: torch.randn(50_000) for name in "abc"},
        "optimizer": {name: torch.randn(50_000) for name in "abcdef"},
    }
    torch.save(checkpoint, path, **FORMATS[form])
    ranges = []

    def record(path, mode):
        raw = RecordingFile(path, mode.replace("b", ""))
        raw.ranges = ranges
        return io.BufferedReader(raw)

    monkeypatch.setattr(torch_file, "open", record, raising=False)
    with open_torch_file(path) as file:
        # 9 tensors of 200,000 bytes: opening is to read none, one tensor at most its own bytes
        assert sum(stop - start for start, stop in ranges) < 150_000
        for name in "abc":
            del ranges[:]
            found = file.tree["model"][name].read()
            assert found.tobytes() == checkpoint["model"][name].numpy().tobytes()
            assert sum(stop - start for start, stop in ranges) < 200_000 + 20_000


def test_damage_to_the_optimizer_does_not_matter_to_the_weights(torch, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": {"w": torch.ones(500)}, "optimizer": {"m": torch.full((500,), 7.0)}}, path)
    data = bytearray(path.read_bytes())
    where = data.index(struct.pack("<f", 7.0) * 500)
    data[where] ^= 1
    path.write_bytes(data)
    with open_torch_file(path) as file:
        np.testing.assert_array_equal(file.tree["model"]["w"].read(), np.ones(500))
        with pytest.raises(
            WeightFileError, match=r"entry 'checkpoint/data/1': its checksum is wro"
        ):
            file.tree["optimizer"]["m"].read()


def test_a_part_of_a_storage_is_only_read_after_all_of_it_was_checked(torch, tmp_path):
    path = tmp_path / "checkpoint.pth"
    values = torch.arange(1_000_000, dtype=torch.float32)  # more than one chunk
    torch.save({"all": values, "middle": values[600_000:600_003], "end": values[-2:]}, path)
    with open_torch_file(path) as file:
        np.testing.assert_array_equal(file.tree["middle"].read(), [600_000, 600_001, 600_002])
        np.testing.assert_array_equal(file.tree["end"].read(), [999_998, 999_999])
        np.testing.assert_array_equal(file.tree["all"].read(), np.arange(1_000_000))
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack("<f", 5.0) + struct.pack("<f", 6.0))] ^= 1
    path.write_bytes(data)
    with open_torch_file(path) as file, pytest.raises(WeightFileError, match="checksum is wrong"):
        file.tree["middle"].read()


# Files that are not what they should be


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML or XML page: the download failed"),
        (b"\n  <?xml version='1.0'?><Error>AccessDenied</Error>", "HTML or XML page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "git-lfs pointer.*git lfs pull",
        ),
        (b"Not found", "is text that begins with 'Not found'"),
        (b"\x1f\x8b\x08\x00", "compressed by gzip; unpack"),
        (struct.pack("<Q", 20) + b'{"a":{"dtype":"F32"}', "is a safetensors file"),
        (b"a" * 257 + b"ustar" + b"\0" * 400, "is a tar archive"),
        (bytes(600), "begins with the bytes 0000000000000000"),
        (b"PK\5\6" + bytes(18), "zip archive without entries"),
        (b"PK\3\4" + bytes(80), "end of the zip archive is missing"),
        (pickle.dumps({"weight": 1.0}, 2), "is a pickle, but not one of torch.save"),
        (pickle.dumps(np.zeros(3), 2), "is a pickle, but not one of torch.save"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1002, 2), "unknown version"),
    ],
)
def test_what_torch_did_not_write_is_named(tmp_path, contents, reason):
    path = tmp_path / "weights.pth"
    path.write_bytes(contents)
    with pytest.raises(WeightFileError, match=reason) as caught:
        open_torch_file(path)
    assert str(caught.value).startswith(repr(str(path)))
    assert "\n" not in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args


def test_paths_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    (tmp_path / "link.pth").symlink_to(tmp_path / "gone.pth")
    os.mkfifo(tmp_path / "pipe.pth")
    for name, reason in {
        "missing.pth": "does not exist; check the path",
        "link.pth": r"is a symbolic link to '.*gone.pth', which does not exist",
        ".": "is a directory",
        "pipe.pth": "is not a regular file",
    }.items():
        with pytest.raises(WeightFileError, match=reason):
            open_torch_file(tmp_path / name)

    def refuse(path, mode):  # root may read everything, so chmod would show nothing
        raise PermissionError(13, "Permission denied", path)

    (tmp_path / "locked.pth").write_bytes(b"PK\3\4")
    monkeypatch.setattr(torch_file, "open", refuse, raising=False)
    with pytest.raises(WeightFileError, match="may not be read by this user"):
        open_torch_file(tmp_path / "locked.pth")


def test_symbolic_links_are_followed(torch, tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "blob")
    (tmp_path / "link.bin").symlink_to("blob")
    with open_torch_file(tmp_path / "link.bin") as file:
        np.testing.assert_array_equal(file.tree["a"].read(), [1, 1])


def test_a_closed_file_says_so(torch, save):
    with open_torch_file(save({"a": torch.ones(2)})) as file:
        tensor = file.tree["a"]
    with pytest.raises(
        WeightFileError, match="has been closed; read tensors inside the with block"
    ):
        tensor.read()


def test_a_file_cut_off_anywhere_is_refused(torch, save, tmp_path):
    data = save({"model": {"a": torch.ones(30)}, "epoch": 1}).read_bytes()
    path = tmp_path / "cut.pth"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(WeightFileError):
            open_torch_file(path)


def test_files_without_checksums_are_told_from_damaged_ones(torch, tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(2)}, tmp_path / "weights.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    with pytest.raises(WeightFileError, match=r"has no checksum .*set_crc32_options"):
        open_torch_file(tmp_path / "weights.pth")


# Files made by hand. Opcodes are written out, so that the machine is tested with what no pickler
# would write.

FLOATS = np.arange(6, dtype=np.float32)
PERSISTENT = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ"
)


def write_zip(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def number(n):
    return b"\x8a" + bytes([len(data := n.to_bytes(17, "little", signed=True))]) + data


def tensor(first=0, shape=(2, 3), strides=(3, 1), storage=PERSISTENT):
    """Opcodes of one tensor."""
    sizes = b"".join(b"(" + b"".join(map(number, values)) + b"t" for values in (shape, strides))
    call = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return call + b"(" + storage + number(first) + sizes + b"\x89}tR"


def refers(*, kind=b"ctorch\nFloatStorage\n", key="0", numel=6, tag="storage"):
    key, tag = (b"X" + struct.pack("<I", len(text)) + text.encode() for text in (key, tag))
    return b"(" + tag + kind + key + b"X\x03\x00\x00\x00cpu" + number(numel) + b"tQ"


def checkpoint(program, **entries):
    """A zip file, the pickle of which runs `program`; its one storage is FLOATS."""
    stream = io.BytesIO()
    write_zip(stream, {"a/data.pkl": b"\x80\x02" + program + b".", "a/data/0": FLOATS.tobytes()})
    return stream.getvalue()


def open_bytes(tmp_path, data):
    path = tmp_path / "hostile.pth"
    path.write_bytes(data)
    return open_torch_file(path)


def test_the_file_made_by_hand_is_read(tmp_path):
    with open_bytes(tmp_path, checkpoint(tensor())) as file:
        np.testing.assert_array_equal(file.tree.read(), FLOATS.reshape(2, 3))
    with open_bytes(tmp_path, checkpoint(tensor(1, (2, 2), (1, 3)))) as file:
        np.testing.assert_array_equal(file.tree.read(), [[1, 4], [2, 5]])


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


RUN = {  # programs that would run something under pickle.loads
    "os.system": b"cos\nsystem\n" + text(b"touch SENTINEL") + b"\x85R",
    "posix.system": b"cposix\nsystem\n" + text(b"touch SENTINEL") + b"\x85R",
    "builtins.eval": b"c__builtin__\neval\n" + text(b"open('SENTINEL', 'w')") + b"\x85R",
    "builtins.exec": b"cbuiltins\nexec\n" + text(b"open('SENTINEL', 'w')") + b"\x85R",
    "builtins.open": b"c__builtin__\nopen\n" + text(b"SENTINEL") + text(b"w") + b"\x86R",
    "builtins.__import__": b"c__builtin__\n__import__\n" + text(b"antigravity") + b"\x85R",
    "subprocess.Popen": b"csubprocess\nPopen\n" + text(b"id") + b"\x85\x81",
    "os.system in protocol 4": text(b"os") + text(b"system") + b"\x93" + text(b"id") + b"\x85R",
    "through a class": b"ccollections\nOrderedDict.__init__.__globals__\n",
    "operator.attrgetter": b"coperator\nattrgetter\n" + text(b"system") + b"\x85R",
    "functools.partial": b"cfunctools\npartial\n",
    "torch.load": b"ctorch.serialization\nload\n" + text(b"x") + b"\x85R",
    "torch bytes": b"ctorch.storage\n_load_from_bytes\n" + text(b"x") + b"\x85R",
    "numpy.load": b"cnumpy\nload\n" + text(b"x") + b"\x85R",
}


@pytest.mark.parametrize("name", RUN)
def test_programs_are_refused_and_not_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    program = RUN[name]
    legacy = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {}))
    for data in (checkpoint(program), legacy + b"\x80\x02" + program + b"."):
        with pytest.raises(WeightFileError, match=r"asks for '.*', which is not on the list"):
            open_bytes(tmp_path, data)
    assert os.listdir(tmp_path) == ["hostile.pth"]


def test_the_hostile_programs_would_run_elsewhere(tmp_path, monkeypatch):
    # else the test above would show nothing
    monkeypatch.chdir(tmp_path)
    for name in ("os.system", "builtins.eval", "builtins.exec", "builtins.open"):
        pickle.loads(b"\x80\x02" + RUN[name] + b".")
        assert os.path.exists("SENTINEL"), name
        os.remove("SENTINEL")


NAMESPACE = b"cargparse\nNamespace\n)\x81"
HISTORY = b"cmmengine.logging.history_buffer\nHistoryBuffer\n"
GETATTR = b"c__builtin__\ngetattr\n"
REFUSED = {
    "getattr of a class": (GETATTR + b"ctorch\nTensor\n" + text(b"x") + b"\x86R", "getattr"),
    "getattr by an object": (GETATTR + HISTORY + b"N\x86R", "getattr"),
    "calling what getattr found": (GETATTR + HISTORY + text(b"min") + b"\x86R)R", "calls what is"),
    "calling an object": (NAMESPACE + b")R", "calls what is not a class"),
    "calling a text": (text(b"os.system") + b")R", "calls what is not a class"),
    "arguments that are a list": (b"cargparse\nNamespace\n]R", "calls what is not a class"),
    "attributes of a class": (b"cargparse\nNamespace\n}b", "sets attributes"),
    "attributes of a tensor": (tensor() + b"}b", "sets attributes"),
    "attributes of a list": (b"]}b", "sets attributes"),
    "items of a tensor": (tensor() + b"NNs", "sets items"),
    "items of a class": (b"cargparse\nNamespace\nNNs", "sets items"),
    "a key without a value": (b"}(Nu", "sets items"),
    "appending to a tuple": (b")Na", "appends"),
    "INST": (b"(ios\nsystem\n", "opcode INST"),
    "OBJ": (b"(cargparse\nNamespace\no", "opcode OBJ"),
    "EXT1": (b"\x82\x01", "opcode EXT1"),
    "EXT4": (b"\x84\x01\0\0\0", "opcode EXT4"),
    "PERSID": (b"Pstorage\n", "opcode PERSID"),
    "DUP": (b"N2", "opcode DUP"),
    "NEWOBJ_EX": (b"cargparse\nNamespace\n)}\x92", "opcode NEWOBJ_EX"),
    "NEXT_BUFFER": (b"\x97", "opcode NEXT_BUFFER"),
    "LONG": (b"L12345L\n", "opcode LONG"),
    "LONG4": (b"\x8b\xff\xff\xff\x7f1", "opcode LONG4"),
    "no opcode": (b"\xff", "opcode ff"),
    "protocol 9": (b"\x80\x09N", "unknown protocol 9"),
    "BINUNICODE beyond the file": (b"X\xff\xff\xff\xffabc", "wants 4294967295 bytes more"),
    "BYTEARRAY8 beyond all memory": (b"\x96" + b"\xff" * 8 + b"abc", "cannot be read .*maxsize"),
    "BINBYTES beyond the file": (b"B\xff\xff\xff\xffabc", "wants 4294967295 bytes more"),
    "an empty stack": (b"", "empty stack"),
    "a mark that is not there": (b"Nt", "empty stack"),
    "below a mark": (b"NN(\x86", "empty stack"),
    "an unknown memo": (b"h\x05", "before it is there"),
    "a name without an end": (b"c" + b"a" * 400, "name without an end"),
    "names that are no text": (b"]]\x93", "other than text"),
    "text that is not UTF-8": (b"X\x02\x00\x00\x00\xff\xff", "not UTF-8"),
    "itself": (b"]q\0h\0a", "contain themselves"),
    "a dict in itself": (b"}q\0" + text(b"a") + b"h\0s", "contain themselves"),
    "depth": (b"]" * 1000 + b"a" * 999, "64 deep"),
    "depth in tuples": (b")" + b"\x85" * 200_000, "64 deep"),
    "many paths": (b")q\0" + b"h\0h\0\x86q\0" * 40, "or are more than"),
    "many paths in lists": (b"]q\0" + b"](h\0h\0eq\0" * 40, "or are more than"),
    "storage of another folder": (refers(key="../../etc/passwd"), "'../../etc/passwd' is missing"),
    "storage by its whole name": (refers(key="/etc/passwd"), "is missing from the archive"),
    "storage that is the pickle": (refers(key="../data.pkl"), "is missing from the archive"),
    "storage of another size": (tensor(storage=refers(numel=7)), "has 24 bytes, not 7 elements"),
    "storage of another type": (refers(kind=b"ctorch\nDoubleStorage\n"), "has 24 bytes, not 6"),
    "storage of a negative size": (refers(numel=-6), "refers to a storage in a form"),
    "storage of an enormous size": (refers(numel=2**62), "has 24 bytes, not 4611686018427387904"),
    "storage of no type": (refers(kind=b"cargparse\nNamespace\n"), "refers to a storage in a form"),
    "a module": (refers(tag="module"), "refers to a storage in a form"),
    "reference that is a number": (b"K\x01Q", "refers to a storage in a form"),
    "reference that is a list": (b"]Q", "refers to a storage in a form"),
    "end outside": (tensor(1), "ends outside its storage 'a/data/0' of 24 bytes"),
    "stride outside": (tensor(0, (2, 3), (4, 1)), "ends outside its storage"),
    "far outside": (tensor(2**62, (1,), (1,)), "ends outside its storage"),
    "far by product": (tensor(0, (2**40, 2**40), (2**40, 1)), "ends outside its storage"),
    "negative offset": (tensor(-1, (1,), (1,)), "a tensor that cannot be"),
    "negative stride": (tensor(5, (6,), (-1,)), "a tensor that cannot be"),
    "negative size": (tensor(0, (-1,), (1,)), "a tensor that cannot be"),
    "sizes beyond 64 bits": (tensor(0, (2**64,), (0,)), "a tensor that cannot be"),
    "more strides than sizes": (tensor(0, (2,), (1, 1)), "a tensor that cannot be"),
    "17 axes": (tensor(0, (1,) * 17, (1,) * 17), "a tensor that cannot be"),
    "enormous and empty": (tensor(0, (0, 2**62), (1, 1)), "impossible even for an empty tensor"),
    "tensor of no storage": (tensor(storage=b"N"), "a tensor that cannot be"),
    "too few arguments": (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "wrong number of arguments"),
    "unknown dtype": (
        b"ctorch._utils\n_rebuild_tensor_v3\n(NNNNNNcargparse\nNamespace\ntR",
        "unknown dtype",
    ),
    "parameter of text": (
        b"ctorch._utils\n_rebuild_parameter\n" + text(b"a") + b"\x89}\x87R",
        "parameter of what is not a tensor",
    ),
    "tensor of another class": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_parameter\nN)NtR",
        "a class of its own",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_checkpoint_needs_is_refused(tmp_path, name):
    program, reason = REFUSED[name]
    with pytest.raises(WeightFileError, match=reason) as caught:
        open_bytes(tmp_path, checkpoint(program))
    assert caught.value.entry == "a/data.pkl"
    assert len(str(caught.value)) < 1000


def test_paths_of_every_version_of_python_are_the_same_note(tmp_path):
    # Python 3.13 keeps pathlib's classes in pathlib._local
    for module in (b"pathlib", b"pathlib._local"):
        program = b"c" + module + b"\nPosixPath\n" + text(b"runs") + b"\x85R"
        with open_bytes(tmp_path, checkpoint(program)) as file:
            assert (repr(file.tree), file.tree.args) == ("<pathlib.PosixPath>", ("runs",))


def test_odd_programs_that_do_no_harm_leave_inert_notes(tmp_path):
    def tree(program):
        with open_bytes(tmp_path, checkpoint(program)) as file:
            return file.tree

    # attributes of an object are kept as they are, never set
    state = tree(NAMESPACE + b"}" + text(b"__class__") + text(b"x") + b"sb").state
    assert state == {"__class__": "x"}
    assert repr(tree(GETATTR + HISTORY + text(b"min") + b"\x86R")) == "<builtins.getattr>"
    # keys that take long to hash, or were chosen to collide, are replaced
    nested = b")q\0" + b"h\0h\0\x86q\0" * 40
    (key,) = tree(nested + b"}h\0Ns")
    assert repr(key) == "<dict key>"
    (key,) = tree(b"}" + number((2**61 - 1) * 5) + b"Ns")
    assert repr(key) == "<dict key>"
    assert tree(b"}(K\x01N\x88K\x02u") == {1: 2}  # True is 1, as in Python
    # the memo may have any index
    assert tree(b"Kxr\xff\xff\xff\xffj\xff\xff\xff\xff\x86") == (120, 120)


def test_a_bool_that_is_neither_is_refused(tmp_path):
    storage = refers(kind=b"ctorch\nBoolStorage\n", numel=24)
    file = open_bytes(tmp_path, checkpoint(tensor(0, (24,), (1,), storage)))
    with file, pytest.raises(WeightFileError, match="neither 0 nor 1"):
        file.tree.read()


def test_an_expanded_tensor_of_2_to_the_40_elements_is_refused(tmp_path):
    file = open_bytes(tmp_path, checkpoint(tensor(0, (2**40,), (0,))))
    with file, pytest.raises(WeightFileError, match="is expanded from 24 bytes"):
        file.tree.read()


# Hostile archives


def archive_with(changes, entries=None):
    """The file made by hand, with fields of its directory changed: {name: {offset: bytes}}."""
    entries = entries or {}
    stream = io.BytesIO(checkpoint(tensor()))
    with zipfile.ZipFile(stream, "a") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    data = bytearray(stream.getvalue())
    at = struct.unpack("<L", data[-6:-2])[0]
    while data[at : at + 4] == b"PK\1\2":
        length, extra = struct.unpack_from("<HH", data, at + 28)
        name = data[at + 46 : at + 46 + length].decode()
        for offset, value in changes.get(name, {}).items():
            data[at + offset : at + offset + len(value)] = value
        at += 46 + length + extra
    return bytes(data)


FLAGS, METHOD, CRC, PACKED, SIZE, NAME, HEADER = 8, 10, 16, 20, 24, 46, 42  # in the directory
FEWER = struct.pack("<L", 20)
HUGE = struct.pack("<L", 2**31)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (archive_with({"a/data/0": {PACKED: HUGE, SIZE: HUGE}}), "overlaps the next, or ends"),
        (archive_with({"a/data.pkl": {PACKED: HUGE, SIZE: HUGE}}), "overlaps the next, or ends"),
        (archive_with({"a/data/0": {SIZE: HUGE}}), "compressed or encrypted"),
        (archive_with({"a/data/0": {PACKED: FEWER, SIZE: FEWER}}), "has 20 bytes, not 6 elements"),
        (archive_with({"a/data/0": {METHOD: b"\x08"}}), "compressed or encrypted"),
        (archive_with({"a/data/0": {FLAGS: b"\x01"}}), "compressed or encrypted"),
        (archive_with({"a/data.pkl": {CRC: b"\0\1"}}), "checksum is wrong"),
        (archive_with({"a/data/0": {HEADER: b"\x00\x00\x00\x00"}}), "not where the zip archive's"),
        (archive_with({"a/data/0": {HEADER: b"\xff\xff\xff\x7f"}}), "the file ends before"),
        (archive_with({"a/data/0": {NAME: b"a/data/1"}}), "not where the zip archive's"),
        (archive_with({"a/data/0": {0: b"PK\1\3"}}), "list of the zip archive's entries is dam"),
        (archive_with({}, {"a/constants.pkl": b""}), "TorchScript archive"),
        (archive_with({}, {"a/byteorder": b"middle"}), "neither little nor big"),
        (archive_with({}, {"b/data.pkl": b""}), "is a zip archive, but not one of torch.save"),
        (checkpoint(tensor())[:-1] + b"\1!", "end of the zip archive is missing"),
        (checkpoint(tensor()) + b"!", "end of the zip archive is missing"),
        (b"PK\3\4" + checkpoint(tensor()), "list .* is not where it should be"),
    ],
)
def test_inconsistent_archives_are_refused(tmp_path, data, reason):
    with pytest.raises(WeightFileError, match=reason):
        open_bytes(tmp_path, data)


def test_two_entries_in_one_place_or_of_one_name_are_refused(tmp_path):
    data = archive_with({"a/data/1": {HEADER: b"\0\0\0\0"}}, {"a/data/1": FLOATS.tobytes()})
    with pytest.raises(WeightFileError, match="not where the zip archive's list says"):
        open_bytes(tmp_path, data)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02N.")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a/data.pkl", b"\x80\x02K\x01.")
    with pytest.raises(WeightFileError, match=r"two entries 'a/data\.pkl'"):
        open_bytes(tmp_path, stream.getvalue())
    # an entry within another: its data hold a header of their own
    inner = struct.pack("<4s22xHH", b"PK\3\4", 8, 0) + b"a/data/1" + bytes(8)
    data = archive_with({}, {"a/data/0x": inner, "a/data/1": bytes(8)})
    where = struct.pack("<L", data.index(inner))
    with pytest.raises(WeightFileError, match="overlaps the next"):
        open_bytes(
            tmp_path,
            archive_with({"a/data/1": {HEADER: where}}, {"a/data/0x": inner, "a/data/1": bytes(8)}),
        )


def test_zipped_text_is_not_a_checkpoint(tmp_path):
    path = write_zip(tmp_path / "weights.pth", {"readme.txt": b"hello", "weights.pth": b"PK"})
    with pytest.raises(
        WeightFileError, match=r"holds 'weights.pth', 'readme.txt'; if the ch.*unpack"
    ):
        open_torch_file(path)


def test_a_zip_bomb_is_refused_by_its_list(tmp_path):
    entries = {"a/data.pkl": b"\x80\x02" + tensor() + b".", "a/data/0": bytes(1 << 27)}
    path = write_zip(tmp_path / "bomb.pth", entries, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 18
    with pytest.raises(WeightFileError, match="compressed or encrypted"):
        open_torch_file(path)


def test_too_many_entries_are_refused_by_their_number(tmp_path):
    end = struct.pack("<4s4xHHLLH", b"PK\5\6", 0xFFFF, 0xFFFF, 46 * 65535, 4, 0)
    data = b"PK\3\4" + bytes(46 * 65535) + end
    with pytest.raises(WeightFileError, match="entries is damaged"):
        open_bytes(tmp_path, data)
    wide = struct.pack("<4sQ12xQQQQ", b"PK\6\6", 44, 2**40, 2**40, 46, 4)
    pointer = struct.pack("<4s4xQ4x", b"PK\6\7", 50)
    end = b"PK\5\6" + b"\xff" * 16 + bytes(2)
    with pytest.raises(WeightFileError, match="has 1099511627776 entries, and at most 100000"):
        open_bytes(tmp_path, b"PK\3\4" + bytes(46) + wide + pointer + end)


def test_an_enormous_pickle_is_refused_unread(tmp_path):
    path = write_zip(tmp_path / "large.pth", {"a/data.pkl": bytes(torch_file.MAX_PICKLE_BYTES + 1)})
    with pytest.raises(WeightFileError, match="is the limit for what is not weights"):
        open_torch_file(path)


def test_sizes_and_positions_may_have_64_bits(tmp_path):
    # as in files above 4 GiB: all three fields of the directory are in the extra field
    data = checkpoint(tensor())
    start = struct.unpack("<L", data[-6:-2])[0]
    directory, at, count = b"", start, 0
    while data[at : at + 4] == b"PK\1\2":
        length = struct.unpack_from("<H", data, at + 28)[0]
        packed, size = struct.unpack_from("<LL", data, at + PACKED)
        header = struct.unpack_from("<L", data, at + HEADER)[0]
        entry = bytearray(data[at : at + 46 + length])
        entry[PACKED : SIZE + 4] = b"\xff" * 8
        entry[HEADER : HEADER + 4] = b"\xff" * 4
        other = struct.pack("<HHL", 0x5455, 4, 0)  # of another kind, to be passed over
        extra = other + struct.pack("<HHQQQ", 1, 24, size, packed, header)
        entry[30:32] = struct.pack("<H", len(extra))
        directory += bytes(entry) + extra
        at += 46 + length
        count += 1
    wide = struct.pack("<4sQ12xQQQQ", b"PK\6\6", 44, count, count, len(directory), start)
    pointer = struct.pack("<4s4xQL", b"PK\6\7", start + len(directory), 1)
    end = struct.pack("<4s4xHHLLH", b"PK\5\6", 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    with open_bytes(tmp_path, data[:start] + directory + wide + pointer + end) as file:
        np.testing.assert_array_equal(file.tree.read(), FLOATS.reshape(2, 3))


# Hostile files of the older format


def legacy(tree=None, keys=("0",), storages=None, info=None):
    """The same tensor, in the older format."""
    parts = [pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, info or {})]
    parts += [
        b"\x80\x02" + (tensor() if tree is None else tree) + b".",
        pickle.dumps(list(keys), 2),
    ]
    if storages is None:
        storages = [struct.pack("<q", 6) + FLOATS.tobytes()]
    return b"".join(parts + storages)


def view(first, count):
    end = b"X\x01\x00\x00\x001" + number(first) + number(count) + b"\x87tQ"
    return tensor(0, (1,), (1,), PERSISTENT.removesuffix(b"tQ") + end)


def test_hostile_files_of_the_older_format_are_refused(tmp_path):
    with open_bytes(tmp_path, legacy()) as file:
        np.testing.assert_array_equal(file.tree.read(), FLOATS.reshape(2, 3))
    with open_bytes(tmp_path, legacy(view(2, 4))) as file:
        np.testing.assert_array_equal(file.tree.read(), [2])
    one = struct.pack("<q", 6) + FLOATS.tobytes()
    for data, reason in [
        (legacy() + b"!", "its contents end at byte"),
        (legacy(storages=[struct.pack("<q", 7) + FLOATS.tobytes()]), "the 6 elements announced"),
        (legacy(storages=[struct.pack("<q", -6) + FLOATS.tobytes()]), "the 6 elements announced"),
        (legacy(keys=("0", "0"), storages=[one, one]), "the 6 elements announced"),
        (legacy(keys=("0", "1"), storages=[one, one]), "not those of its tensors"),
        (legacy(keys=(), storages=[]), "not those of its tensors"),
        (legacy(keys=(0,)), "not those of its tensors"),
        (legacy(keys=([],)), "not those of its tensors"),
        (legacy(view(2, 5)), "view that ends outside"),
        (legacy(view(-1, 2)), "view that ends outside"),
        (legacy(tensor(storage=refers(numel=2**60))), "ends at byte|elements announced"),
        (legacy(tensor() + refers(numel=7) + b"\x86"), "has two sizes"),
        (legacy(info={"little_endian": False}), "big-endian"),
    ]:
        with pytest.raises(WeightFileError, match=reason):
            open_bytes(tmp_path, data)


# Damage and bombs, in a process of their own, so that its memory can be seen

CHILD = """
    import json, signal, sys, zipfile
    import numpy as np
    from vmae_jax.weights.tensors import Tensor, WeightFileError
    from vmae_jax.weights.torch_file import open_torch_file
    from vmae_jax.weights.torch_pickle import Inert

    def peak():  # not ru_maxrss, which begins at what the parent had
        with open("/proc/self/status") as status:
            return 1024 * next(int(x.split()[1]) for x in status if x.startswith("VmHWM"))

    def contents(value):
        if isinstance(value, Tensor):
            return (value.shape, value.dtype, value.read().tobytes())
        if isinstance(value, Inert):
            return (value.name, contents(value.args), contents(value.state))
        if isinstance(value, dict):
            return [(contents(key), contents(item)) for key, item in value.items()]
        if isinstance(value, (list, tuple)):
            return [contents(item) for item in value]
        return value

    def attempt(path, read=contents):
        signal.setitimer(signal.ITIMER_PROF, 10)  # of processor time; ends the process
        try:
            with open_torch_file(path) as file:
                return read(file.tree)
        except WeightFileError as error:
            assert "\\n" not in str(error)
            return error
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
"""


def run_child(script, *args):
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(__file__))}
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, args)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


DAMAGE = """
    good, bad, count, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    data = open(good, "rb").read()
    expected = attempt(good)
    assert not isinstance(expected, WeightFileError), expected
    before = peak()
    rng = np.random.default_rng(seed)
    outcomes = {"exact": 0, "refused": 0, "other": 0}
    for number in range(count):
        changed = bytearray(data)
        at, length = int(rng.integers(len(data))), int(rng.integers(1, 64))
        kind = number % 6
        if kind == 0:
            for bit in rng.integers(len(data) * 8, size=rng.integers(1, 9)):
                changed[bit // 8] ^= 1 << bit % 8
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            changed[at : at + length] = bytes([rng.choice([0, 255, 0x80, 0x2e])]) * length
        elif kind == 3:
            changed[at : at + length] = rng.bytes(length)
        elif kind == 4:
            source = int(rng.integers(len(data)))
            changed[at : at + length] = data[source : source + length]
        else:
            del changed[at : at + length]
        with open(bad, "wb") as file:
            file.write(changed)
        found = attempt(bad)
        same = not isinstance(found, WeightFileError) and repr(found) == repr(expected)
        kind = "refused" if isinstance(found, WeightFileError) else "exact" if same else "other"
        outcomes[kind] += 1
    print(json.dumps(outcomes | {"bytes": peak() - before}))
"""


def damaged(good, tmp_path, count, seed):
    script = textwrap.dedent(CHILD) + textwrap.dedent(DAMAGE)
    return json.loads(run_child(script, good, tmp_path / "bad.pth", count, seed))


def test_2400_damaged_files_are_read_exactly_or_refused(torch, tmp_path):
    good = tmp_path / "good.pth"
    torch.save(training_checkpoint(torch), good)
    outcome = damaged(good, tmp_path, 2400, seed=0)
    assert outcome["other"] == 0
    assert outcome["exact"] > 100  # in padding, and what has no meaning
    assert outcome["refused"] > 1000
    assert outcome["bytes"] < good.stat().st_size + (300 << 20)


def test_damaged_files_of_the_older_format_are_read_or_refused(torch, tmp_path):
    # there is nothing in them by which a changed weight could be told
    good = tmp_path / "good.pth"
    torch.save(training_checkpoint(torch), good, _use_new_zipfile_serialization=False)
    outcome = damaged(good, tmp_path, 600, seed=1)
    assert outcome["refused"] > 200
    assert outcome["bytes"] < good.stat().st_size + (300 << 20)


REPAIRED = """
    good, bad, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with zipfile.ZipFile(good) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (name,) = [name for name in entries if name.endswith("/data.pkl")]
    program = entries[name]
    before, rng, refused = peak(), np.random.default_rng(2), 0
    for number in range(count):
        if number % 2:
            changed = bytearray(program)
            for at in rng.integers(len(program), size=rng.integers(1, 4)):
                changed[at] = rng.integers(256)
        else:  # parts of it in another order
            cuts = sorted(rng.integers(len(program), size=4))
            a, b, c, d = cuts
            changed = program[:a] + program[c:d] + program[b:c] + program[a:b] + program[d:]
        entries[name] = bytes(changed)
        with zipfile.ZipFile(bad, "w") as archive:
            for each, data in entries.items():
                archive.writestr(each, data)
        refused += isinstance(attempt(bad), WeightFileError)
    print(json.dumps({"refused": refused, "bytes": peak() - before}))
"""


def test_damaged_pickles_with_right_checksums_only_raise_the_one_error(torch, tmp_path):
    good = tmp_path / "good.pth"
    torch.save(training_checkpoint(torch), good)
    script = textwrap.dedent(CHILD) + textwrap.dedent(REPAIRED)
    outcome = json.loads(run_child(script, good, tmp_path / "bad.pth", 1000))
    assert outcome["refused"] > 400
    assert outcome["bytes"] < good.stat().st_size + (300 << 20)


MANY = torch_pickle.MAX_OPCODES - 1000
WIDE = b"a" * (15 << 20) + "\U0001f600".encode()  # makes all of the text four bytes a letter
LAUGHS = b")q\0" + b"h\0h\0\x86q\0" * 60
BOMBS = {
    "dicts": b"}" * MANY,
    "lists in marks": b"(]" * (MANY // 2),
    "dicts of one item": b"}NNs" * (MANY // 4),
    "objects": b"cargparse\nNamespace\nq\0" + b"h\0)\x81" * (MANY // 4),
    "names": b"cargparse\nNamespace\n" * 600_000,
    "memo": b"}\x94" * (MANY // 2),
    "sets": b"\x8f" * MANY,
    "tuples": b")" + b"\x85" * MANY,
    "tensors": b"ctorch._utils\n_rebuild_tensor_v2\nq\0"
    + tensor(0, (1,) * 16, (1,) * 16).removeprefix(b"ctorch._utils\n_rebuild_tensor_v2\n")[:-1]
    + b"q\1"
    + b"h\0h\1R" * (MANY // 3 - 100),
    "numbers": (b"G" + bytes(8)) * MANY,
    "wide text": text(WIDE),
    "wide text and dicts": text(WIDE[1 << 20 :]) + b"}" * MANY,
    "opcodes": b"N" * (15 << 20),
    "colliding keys": b"}("
    + b"".join(number((2**61 - 1) * i) + b"N" for i in range(400_000))
    + b"u",
    "keys that take long to hash": LAUGHS + b"}(" + b"h\0N" * 9 + b"u",
    "names that take long to print": LAUGHS + b"h\0h\0\x93",
    "one list in many": b"]q\0("
    + b"N" * 900_000
    + b"e"
    + b"ccollections\nOrderedDict\nh\0\x85R" * 9000,
}
BOMB = """
    before = peak()
    result = attempt(sys.argv[1], lambda tree: "read")
    print(json.dumps({"bytes": peak() - before, "result": str(result)}))
"""


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_stay_within_300_mib_and_10_seconds(tmp_path, name):
    path = tmp_path / "bomb.pth"
    path.write_bytes(checkpoint(BOMBS[name]))
    script = textwrap.dedent(CHILD) + textwrap.dedent(BOMB)
    outcome = json.loads(run_child(script, path))
    assert outcome["bytes"] < path.stat().st_size + (250 << 20)  # the rest is numpy and Python


def test_the_number_of_tensors_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_pickle, "MAX_TENSORS", 3)
    with open_bytes(tmp_path, checkpoint(b"(" + 3 * tensor() + b"t")) as file:
        assert len(file.tree) == 3
    with pytest.raises(WeightFileError, match="more than 3 tensors"):
        open_bytes(tmp_path, checkpoint(b"(" + 4 * tensor() + b"t"))


def test_bombs_of_the_older_format_share_one_budget(tmp_path):
    dicts = b"\x80\x02" + b"}" * (MANY // 2) + b"."
    parts = [pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001)]
    with pytest.raises(WeightFileError, match="more than 1000000 opcodes"):
        open_bytes(tmp_path, b"".join([*parts, dicts, dicts, dicts]))
