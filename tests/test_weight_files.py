import gc
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import textwrap
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from vmae_jax.weights import torch_file, weight_files
from vmae_jax.weights.tensors import WeightFileError
from vmae_jax.weights.weight_files import MAX_JSON_BYTES, open_directory, open_safetensors


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


def assert_holds(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        found = tensors[name].read()
        assert (tensors[name].shape, tensors[name].dtype) == (value.shape, value.dtype.name)
        assert (found.shape, found.dtype) == (value.shape, value.dtype)
        assert found.tobytes() == value.tobytes()
        assert found.flags.c_contiguous
        assert found.flags.writeable


# Files that the library writes. What was given to it is what we expect.

DTYPES = {
    name: np.dtype(name)
    for name in ["float64", "float32", "float16", "bool"]
    + [f"{kind}{bits}" for kind in ("int", "uint") for bits in (64, 32, 16, 8)]
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}


def some_tensors():
    rng = np.random.default_rng(0)
    return {
        "encoder.weight": rng.standard_normal((3, 4)).astype(np.float32),
        "encoder.bias": rng.standard_normal(3).astype(np.float16),
        "head.weight": rng.standard_normal((2, 3)).astype(ml_dtypes.bfloat16),
        "steps": np.array(7, np.int64),
        "counts": np.arange(4),
        "scale": np.array(0.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "empty_row": np.zeros(0, np.float16),
    }


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(some_tensors(), path, metadata={"format": "pt"})
    return path


def test_every_dtype_is_read_bit_for_bit(tmp_path):
    bits = np.random.default_rng(0).integers(0, 256, (4, 3, 8), dtype=np.uint8)  # some are NaN
    expected = {
        name: bits > 127 if name == "bool" else bits.view(dtype) for name, dtype in DTYPES.items()
    }
    safetensors.numpy.save_file(expected, tmp_path / "a.safetensors")
    with open_safetensors(tmp_path / "a.safetensors") as tensors:
        assert_holds(tensors, expected)


def test_scalars_and_tensors_without_elements_are_read(weights):
    with open_safetensors(weights) as tensors:
        assert_holds(tensors, some_tensors())
    with open_directory(weights.parent) as tensors:
        assert_holds(tensors, some_tensors())


def test_bfloat16_of_torch_is_read(torch, tmp_path):
    values = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    pytest.importorskip("safetensors.torch").save_file({"a": values}, tmp_path / "a.safetensors")
    with open_safetensors(tmp_path / "a.safetensors") as tensors:
        found = tensors["a"].read()
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found.astype(np.float32), values.float().numpy())


def test_a_file_without_tensors_has_none(tmp_path):
    safetensors.numpy.save_file({}, tmp_path / "a.safetensors")
    with open_safetensors(tmp_path / "a.safetensors") as tensors:
        assert tensors == {}


def test_the_values_read_belong_to_the_caller(weights):
    before = weights.read_bytes()
    with open_safetensors(weights) as tensors:
        tensors["counts"].read()[:] = 9
        np.testing.assert_array_equal(tensors["counts"].read(), np.arange(4))
        kept = tensors["counts"].read()
    np.testing.assert_array_equal(kept, np.arange(4))
    assert weights.read_bytes() == before


def test_closed_files_are_not_read(torch, weights, tmp_path):
    torch.save({"counts": torch.arange(4)}, tmp_path / "pytorch_model.bin")
    with open_directory(tmp_path) as tensors:
        pass
    with pytest.raises(WeightFileError, match=r"entry 'counts': the file has been closed"):
        tensors["counts"].read()
    weights.unlink()
    with open_directory(tmp_path) as tensors:
        pass
    with pytest.raises(WeightFileError, match="the file has been closed"):
        tensors["counts"].read()


@pytest.mark.parametrize("error", [KeyError("mine"), WeightFileError("mine", None, "")])
def test_errors_of_the_caller_pass_through(weights, error):
    with pytest.raises(type(error), match="mine"), open_directory(weights.parent):
        raise error


def test_errors_survive_pickling():
    error = WeightFileError("a/b", "weight", "is damaged")
    assert str(pickle.loads(pickle.dumps(error))) == "'a/b', entry 'weight': is damaged."


def test_a_file_replaced_between_our_look_and_the_library_s_is_noticed(weights, monkeypatch):
    real = safetensors.safe_open

    def replace_first(path, *options):
        wider = some_tensors() | {"counts": np.arange(5), "scale": np.array(1, np.int32)}
        safetensors.numpy.save_file(wider, path)
        return real(path, *options)

    monkeypatch.setattr(safetensors, "safe_open", replace_first)
    with open_safetensors(weights) as tensors:
        for name in ("counts", "scale"):  # another shape, another dtype
            with pytest.raises(WeightFileError, match=f"entry '{name}': .* replaced while"):
                tensors[name].read()


# Headers that are not what they should be


def entry(dtype="F32", shape=(2,), begin=0, end=8, **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


def packed(header, data=bytes(8)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def open_bytes(tmp_path, data):
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with open_safetensors(path) as tensors:
        return {name: tensor.read() for name, tensor in tensors.items()}


def pairs(*entries):
    """JSON in which a key may stand twice."""
    return b"{%s}" % b",".join(b"%s:%s" % (k, json.dumps(v).encode()) for k, v in entries)


FIRST, SECOND = entry(), entry(begin=8, end=16)
HOSTILE = {
    "nothing but a length": (struct.pack("<Q", 0), "does not begin with {"),
    "a length without a header": (struct.pack("<Q", 20), "header of 20 .* incomplete or damaged"),
    "less than a length": (b"\x20\0\0", "has 3 bytes"),
    "a huge length": (struct.pack("<Q", 2**63) + b"{}", "header of 9223372036854775808"),
    "a length just too large": (struct.pack("<Q", 3) + b"{}", "has 10 bytes, and a header of 3"),
    "a long header": (packed(b"{%s}" % (b" " * MAX_JSON_BYTES)), "longer than 4194304"),
    "a list": (packed(b"[]"), "does not begin with {"),
    "no UTF-8": (packed(b'{"\xff":1}'), "no valid JSON .*utf-8"),
    "no JSON": (packed(b"{'a':1}"), "no valid JSON"),
    "more after the JSON": (packed(b"{}{}"), "no valid JSON"),
    "nested lists": (packed(b'{"a":' + b"[" * 100_000), "nested too deeply"),
    "nested dicts": (packed(b'{"a":' * 100_000), "nested too deeply"),
    "an endless number": (packed(b'{"a":%s}' % (b"9" * 5000)), "no valid JSON"),
    "a name twice": (packed(pairs((b'"a"', FIRST), (b'"a"', FIRST))), "the key 'a' twice"),
    "a name twice, once escaped": (
        packed(pairs((b'"a"', FIRST), (rb'"\u0061"', SECOND)), bytes(16)),
        "the key 'a' twice",
    ),
    "a field twice": (
        packed(b'{"a":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}'),
        "the key 'dtype' twice",
    ),
    "notes twice": (packed(pairs((b'"__metadata__"', {}), (b'"__metadata__"', {}))), "twice"),
    "notes that are a number": (packed({"__metadata__": 3, "a": FIRST}), "__metadata__"),
    "notes of numbers": (packed({"__metadata__": {"a": 3}, "a": FIRST}), "__metadata__"),
    "no notes": (packed({"__metadata__": None, "a": FIRST}), "__metadata__"),
    "an entry that is a number": (packed({"a": 3}), "entry 'a': .* does not have a dtype"),
    "no shape": (packed({"a": {"dtype": "F32", "data_offsets": [0, 8]}}), "does not have a dty"),
    "a field more": (packed({"a": entry(stride=[1])}), "more than .*'stride'"),
    "three offsets": (packed({"a": FIRST | {"data_offsets": [0, 4, 8]}}), "does not have a dty"),
    "a dtype that is a list": (packed({"a": entry([])}), "does not have a dtype"),
    "a shape that is text": (packed({"a": FIRST | {"shape": "2"}}), "does not have a dtype"),
    "an unknown dtype": (packed({"a": entry("F33")}), "dtype='F33' is not one of F64, F32"),
    "floats of 8 bits": (packed({"a": entry("F8_E4M3", [8])}), "dtype='F8_E4M3' is not .*save"),
    "floats of 4 bits": (packed({"a": entry("F4", [16])}), "dtype='F4' is not one of"),
    "complex numbers": (packed({"a": entry("C64", [1])}), "dtype='C64' is not one of"),
    "a negative shape": (packed({"a": entry(shape=[-2])}), "integers of 0 or more"),
    "two negative lengths": (packed({"a": entry(shape=[-1, -2])}), "integers of 0 or more"),
    "a broken length": (packed({"a": entry(shape=[2.0])}), "integers of 0 or more"),
    "a length that is true": (packed({"a": entry(shape=[2, True])}), "integers of 0 or more"),
    "a length that is a list": (packed({"a": entry(shape=[[2]])}), "integers of 0 or more"),
    "no length": (packed({"a": entry(shape=[2, None])}), "integers of 0 or more"),
    "a negative offset": (packed({"a": entry(begin=-8, end=0)}), "integers of 0 or more"),
    "a broken offset": (packed({"a": entry(end=8.0)}), "integers of 0 or more"),
    "a shape that overflows": (packed({"a": entry(shape=[2**62, 4, 2])}), "1099511627776 elem"),
    "a shape of nothing that overflows": (
        packed({"a": entry(shape=[0, 2**60], end=0)}, b""),
        "1099511627776 elements",
    ),
    "a shape of long numbers": (
        packed({"a": entry(shape=[10**4000] * 16)}),
        "1099511627776 elements",
    ),
    "a shape of 70 axes": (packed({"a": entry(shape=[1] * 69 + [2])}), "more than 16 axes"),
    "offsets that are too far": (packed({"a": FIRST, "b": SECOND}), "entry 'b': .* outside the 8"),
    "offsets of long numbers": (
        packed({"a": entry(begin=10**4000, end=10**4000 + 8)}),
        "outside the 8 bytes",
    ),
    "offsets in the wrong order": (packed({"a": entry(begin=8, end=0)}), "not the -8"),
    "offsets of another size": (packed({"a": entry(shape=[3])}), "takes 12 bytes, not the 8"),
    "values on one another": (packed({"a": FIRST, "b": FIRST}), "byte 0, not 8: they overlap"),
    "values that overlap": (
        packed({"a": FIRST, "b": entry(begin=4, end=12), "c": entry("U8", [4], 12, 16)}, bytes(16)),
        "byte 4, not 8: they overlap",
    ),
    "an empty tensor inside another": (
        packed({"a": FIRST, "b": entry(shape=[0], begin=4, end=4)}),
        "entry 'b': .* overlap",
    ),
    "a gap": (packed({"a": FIRST, "b": entry(begin=12, end=20)}, bytes(20)), "leave a gap"),
    "a gap at the start": (packed({"a": SECOND}, bytes(16)), "byte 8, not 0: they leave a gap"),
    "more at the end": (packed({"a": FIRST}, bytes(9)), "values end at byte 8 of 9"),
    "values without tensors": (packed({}), "values end at byte 0 of 8"),
    "half a surrogate pair": (packed({"\ud800": FIRST}), "the safetensors library refuses it"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused(tmp_path, name):
    data, reason = HOSTILE[name]
    with pytest.raises(WeightFileError, match=reason) as found:
        open_bytes(tmp_path, data)
    assert str(tmp_path / "a.safetensors") in str(found.value)
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 10_000


def test_headers_that_are_only_unusual_are_read(tmp_path):
    text = json.dumps({"b": SECOND, "": FIRST, "__metadata__": {}}).encode() + b" " * 9
    values = np.arange(4, dtype=np.float32)
    found = open_bytes(tmp_path, packed(text, values.tobytes()))
    np.testing.assert_array_equal(found[""], [0, 1])
    np.testing.assert_array_equal(found["b"], [2, 3])


def test_a_million_entries_are_refused_by_the_length_of_the_header(tmp_path):
    text = b",".join(
        b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(1_000_000)
    )
    with pytest.raises(WeightFileError, match="longer than 4194304"):
        open_bytes(tmp_path, packed(b"{%s}" % text, b""))


def torch_bytes(tmp_path, **options):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pth", **options)
    return (tmp_path / "a.pth").read_bytes()


def zip_bytes(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("model.safetensors", "")
    return (tmp_path / "a.zip").read_bytes()


OLD = {"_use_new_zipfile_serialization": False}


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "is a web page.*download it again"),
        (b"\xef\xbb\xbf\n <a>", "is a web page"),
        ("<p>Página não encontrada</p>".encode(), "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "LFS pointer.*git lfs pull"),
        (b"Entry not found", "is text that begins with 'Entry not found'"),
        (b'{"error":"Unauthorized"}', "is text that begins with"),
        (zip_bytes, "is a zip archive.*pytorch_model.bin, otherwise unpack it"),
        (torch_bytes, "is a zip archive.*pytorch_model.bin"),
        (lambda path: torch_bytes(path, **OLD), "is a pickle.*pytorch_model.bin"),
        (packed({"a": FIRST}).replace(b"\0{", b"\0<", 1), "does not begin with {"),
    ],
)
def test_other_files_are_called_what_they_are(tmp_path, contents, reason):
    data = contents if isinstance(contents, bytes) else contents(tmp_path)
    with pytest.raises(WeightFileError, match=reason):
        open_bytes(tmp_path, data)


@pytest.mark.parametrize("length", [0x3C, 0x33C, 0x280, 0x580])
def test_a_truncated_file_is_not_mistaken_for_a_page_or_a_pickle(tmp_path, length):
    # the first bytes of these lengths are those of a web page, of a pickle
    data = packed(json.dumps({"a": FIRST}).encode().ljust(length))
    for size in (8, 9, 50):
        with pytest.raises(WeightFileError, match="incomplete or damaged"):
            open_bytes(tmp_path, data[:size])


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")  # opening it would wait for a writer
    with pytest.raises(WeightFileError, match="not a file"), open_directory(tmp_path):
        pass
    with pytest.raises(WeightFileError, match="not a file"), open_safetensors(tmp_path):
        pass
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        open_safetensors(tmp_path / "none.safetensors").__enter__()


def test_errors_of_the_system_pass_with_their_path(torch, weights, tmp_path, monkeypatch):
    def refuse(path, mode):
        raise PermissionError(13, "Permission denied", path)

    with pytest.raises(NotADirectoryError, match=r"model\.safetensors"), open_directory(weights):
        pass
    monkeypatch.setattr(weight_files, "open", refuse, raising=False)
    monkeypatch.setattr(torch_file, "open", refuse, raising=False)
    with pytest.raises(PermissionError, match=r"model\.safetensors"), open_directory(tmp_path):
        pass
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(PermissionError, match=r"pytorch_model\.bin"), open_directory(tmp_path):
        pass


# Directories


def as_numpy(state):
    """Of tensors of torch."""
    return {name: value.detach().numpy() for name, value in state.items()}


def write_index(folder, weight_map, name="model.safetensors.index.json"):
    folder.mkdir(exist_ok=True)
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
    (folder / name).write_text(text)


def write_shards(folder, shards):
    """Shards of one float per name; the index names all of them where they are."""
    weight_map = {}
    for file, names in shards.items():
        folder.mkdir(exist_ok=True)
        tensors = {name: np.full(2, i, np.float32) for i, name in enumerate(names)}
        safetensors.numpy.save_file(tensors, folder / file)
        weight_map |= dict.fromkeys(names, file)
    write_index(folder, weight_map)
    return weight_map


def opening(folder):
    with open_directory(folder) as tensors:
        return {name: tensor.read() for name, tensor in tensors.items()}


def test_sharded_directories_of_transformers_are_read(torch, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(
        image_size=16, patch_size=8, num_channels=3, num_frames=4, hidden_size=16,
        num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        decoder_num_attention_heads=2, decoder_hidden_size=8, decoder_num_hidden_layers=1,
        decoder_intermediate_size=16,
    )  # fmt: skip
    model = transformers.VideoMAEForPreTraining(config)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="10KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    # the library's own reader; transformers splits and renames some tensors as it saves
    expected = safetensors.numpy.load_file(tmp_path / "one" / "model.safetensors")
    same = as_numpy(model.state_dict()).items()
    assert sum(np.array_equal(expected.get(name), value) for name, value in same) > 30
    for folder in ("one", "many"):
        with open_directory(tmp_path / folder) as tensors:
            assert_holds(tensors, expected)


def test_pytorch_model_bin_is_read(torch, tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7))
    state = model.state_dict()
    expected = as_numpy(state)
    torch.save({**state, "epoch": 3, "_metadata": {"version": 1}}, tmp_path / "pytorch_model.bin")
    with open_directory(tmp_path) as tensors:
        assert_holds(tensors, expected)
    with open_directory(str(tmp_path)) as tensors:
        assert_holds(tensors, expected)


def test_sharded_pytorch_model_bin_is_read(torch, tmp_path):
    state = {name: torch.full((3,), float(i)) for i, name in enumerate("abc")}
    torch.save({name: state[name] for name in "ab"}, tmp_path / "pytorch_model-1.bin")
    torch.save({"c": state["c"]}, tmp_path / "pytorch_model-2.bin")
    files = {name: f"pytorch_model-{1 if name in 'ab' else 2}.bin" for name in "abc"}
    write_index(tmp_path, files, "pytorch_model.bin.index.json")
    with open_directory(tmp_path) as tensors:
        assert_holds(tensors, as_numpy(state))


def test_bins_that_are_not_state_dicts_are_refused(torch, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    for value in ({"model": {"a": torch.ones(1)}}, torch.ones(1), {0: torch.ones(1)}):
        torch.save(value, path)
        with pytest.raises(WeightFileError, match=r"bin': holds no tensors by name.*state_dict"):
            opening(tmp_path)


def test_what_is_wrong_with_a_bin_is_the_same_error(torch, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"<html>")
    with pytest.raises(WeightFileError, match="HTML or XML page"):
        opening(tmp_path)
    torch.save({"a": torch.ones(3), "b": torch.full((3,), 7.0)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack("<f", 7.0) * 3)] ^= 1
    path.write_bytes(data)
    with open_directory(tmp_path) as tensors:
        np.testing.assert_array_equal(tensors["a"].read(), np.ones(3))
        with pytest.raises(WeightFileError, match="checksum is wrong"):
            tensors["b"].read()


def test_the_first_of_four_names_is_opened(torch, tmp_path):
    def write_bin(name, **values):
        torch.save({key: torch.tensor(value) for key, value in values.items()}, tmp_path / name)

    with pytest.raises(FileNotFoundError) as found:
        opening(tmp_path)
    for part in ("model.safetensors", "pytorch_model.bin", ".index.json", str(tmp_path)):
        assert part in str(found.value)
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        opening(tmp_path / "elsewhere")
    write_bin("shard.bin", a=1)
    write_index(tmp_path, {"a": "shard.bin"}, "pytorch_model.bin.index.json")
    assert opening(tmp_path) == {"a": 1}
    write_bin("pytorch_model.bin", b=2)
    assert opening(tmp_path) == {"b": 2}
    write_shards(tmp_path, {"shard.safetensors": ["c"]})
    assert opening(tmp_path).keys() == {"c"}
    safetensors.numpy.save_file({"d": np.ones(1)}, tmp_path / "model.safetensors")
    assert opening(tmp_path).keys() == {"d"}


def test_the_links_of_a_hub_cache_are_followed(weights, tmp_path):
    (tmp_path / "blobs").mkdir()
    snapshot = tmp_path / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    weights.rename(tmp_path / "blobs" / "5f3c")
    (snapshot / "model.safetensors").symlink_to("../../blobs/5f3c")
    with open_directory(snapshot) as tensors:
        assert_holds(tensors, some_tensors())
    (tmp_path / "blobs" / "5f3c").unlink()
    with pytest.raises(WeightFileError, match=r"symbolic link to '../../blobs/5f3c'.*not exist"):
        opening(snapshot)


def test_shards_may_be_links_and_dangling_ones_are_named(tmp_path):
    folder = tmp_path / "a"
    write_shards(folder, {"1.safetensors": ["a"], "2.safetensors": ["b"]})
    (folder / "2.safetensors").rename(tmp_path / "blob")
    (folder / "2.safetensors").symlink_to("../blob")
    assert opening(folder).keys() == {"a", "b"}
    (tmp_path / "blob").unlink()
    with pytest.raises(WeightFileError, match=r"a/2\.saf.* is a symbolic link to '../blob'"):
        opening(folder)


def test_all_missing_shards_are_named_at_once(tmp_path):
    write_shards(tmp_path, {f"{i}.safetensors": [f"w{i}"] for i in range(4)})
    for i in (1, 3):
        (tmp_path / f"{i}.safetensors").unlink()
    with pytest.raises(
        WeightFileError, match=r"of its 4 files .*missing: '1\.safetensors', '3\.safetensors'; get"
    ):
        opening(tmp_path)
    write_index(tmp_path, {f"w{i}": f"{i:03}" for i in range(150)})
    with pytest.raises(WeightFileError, match=r"'098', '099' and 50 more; get"):
        opening(tmp_path)


def test_shards_have_to_hold_what_the_index_says(tmp_path):
    files = {"1.safetensors": ["a", "b"], "2.safetensors": ["c"]}
    weight_map = write_shards(tmp_path, files)
    for change, reason in [
        ({"d": "2.safetensors"}, r"2\.saf.* does not hold 'd', which .*index\.json"),
        (
            {"b": "2.safetensors"},
            r"1\.saf.* holds 'b', which .* places elsewhere|2\.saf.* does not hold 'b'",
        ),
    ]:
        write_index(tmp_path, weight_map | change)
        with pytest.raises(WeightFileError, match=reason):
            opening(tmp_path)
    write_index(tmp_path, {name: weight_map[name] for name in "ac"})
    with pytest.raises(WeightFileError, match=r"1\.saf.* holds 'b', which .* places elsewhere"):
        opening(tmp_path)
    write_shards(tmp_path, {"1.safetensors": ["a", "b"], "2.safetensors": ["b", "c"]})
    with pytest.raises(
        WeightFileError, match=r"1\.saf.* holds 'b', which .* places elsewhere"
    ):  # in both
        opening(tmp_path)
    write_shards(tmp_path, files)
    assert opening(tmp_path).keys() == {"a", "b", "c"}


def test_a_damaged_shard_is_named(tmp_path):
    write_shards(tmp_path, {"1.safetensors": ["a"], "2.safetensors": ["b"]})
    (tmp_path / "2.safetensors").write_bytes(b"<html>")
    with pytest.raises(WeightFileError, match=r"2\.safetensors': is a web page"):
        opening(tmp_path)


@pytest.mark.parametrize(
    "file",
    [
        "../x", "/etc/passwd", "sub/x", "..", ".", "", "..\\x", "C:\\x", "x\0", "x\n", "\ud800",
        "x" * 256, 3, None, ["x"], {"x": 1},
    ],
)  # fmt: skip
def test_an_index_names_only_files_beside_it(tmp_path, file):
    folder = tmp_path / "a"
    write_shards(folder, {"1.safetensors": ["a"]})
    (folder / "sub").mkdir()
    for outside in (tmp_path / "x", folder / "sub" / "x"):  # what they would find is good
        safetensors.numpy.save_file({"b": np.ones(2)}, outside)
    write_index(folder, {"a": "1.safetensors", "b": file})
    with pytest.raises(WeightFileError, match=r"'b' into .* not the bare name of a file") as found:
        opening(folder)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "no valid JSON"),
        (b"<html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"{", "no valid JSON"),
        (b"[]", "its JSON is not an object"),
        (b"{}", "its weight_map is not"),
        (b'{"weight_map": {}}', "its weight_map is not"),
        (b'{"weight_map": ["a"]}', "its weight_map is not"),
        (b'{"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}}', "the key 'a' twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":"%s"}' % (b" " * MAX_JSON_BYTES), "is longer than the 4194304 bytes"),
    ],
)
def test_damaged_indices_are_refused(tmp_path, text, reason):
    (tmp_path / "model.safetensors.index.json").write_bytes(text)
    with pytest.raises(WeightFileError, match=rf"index\.json': .*{reason}"):
        opening(tmp_path)


# Damage and bombs, in a process of their own, so that its memory can be seen

CHILD = """
    import json, os, signal, struct, sys
    import ml_dtypes
    import numpy as np
    from vmae_jax.weights.tensors import WeightFileError
    from vmae_jax.weights.weight_files import MAX_JSON_BYTES, open_safetensors

    def peak():  # not ru_maxrss, which begins at what the parent had
        with open("/proc/self/status") as status:
            return 1024 * next(int(x.split()[1]) for x in status if x.startswith("VmHWM"))

    def attempt(path):
        signal.setitimer(signal.ITIMER_PROF, 10)  # of processor time; ends the process
        try:
            with open_safetensors(path) as tensors:
                for tensor in tensors.values():
                    value = tensor.read()
                    assert (value.shape, value.dtype.name) == (tensor.shape, tensor.dtype)
                return {
                    name: (tensor.shape, tensor.dtype, tensor.read().tobytes())
                    for name, tensor in tensors.items()
                }
        except WeightFileError as error:
            assert "\\n" not in str(error)
            assert path in str(error)
            return error
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def write(path, data):
        with open(path, "wb") as file:
            file.write(data)
"""


def run_child(script, *args):
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(__file__))}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, args)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# What a changed file says, by a reading of its own: each slice of the file, by the JSON.
DAMAGE = """
    CODES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    CODES |= {"BOOL": "bool"}
    CODES |= {f"{k[0].upper()}{b}": f"{k}{b}" for k in ("int", "uint") for b in (64, 32, 16, 8)}

    def as_it_says(data):
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        found, used = {}, 0
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            values = data[8 + length + begin : 8 + length + end]
            dtype = CODES[entry["dtype"]]
            np.frombuffer(values, np.dtype(dtype)).reshape(entry["shape"])
            found[name] = (tuple(entry["shape"]), dtype, values)
            used += len(values)
        assert 8 + length + used == len(data)
        return found

    def change_header(rng, data, start):
        header = json.loads(data[8:start])
        names = [name for name in header if name != "__metadata__"]
        name, other = rng.choice(names, size=2)
        entry, step = header[name], int(rng.integers(-9, 10))
        kind = rng.integers(9)
        if kind == 0:
            entry["dtype"] = str(rng.choice([*CODES, "F8_E4M3", "C64", "F4", ""]))
        elif kind == 1:
            entry["shape"].append(step)
        elif kind == 2:
            shape = entry["shape"]
            entry["shape"] = shape[::-1] if step > 3 else [step * n for n in shape]
        elif kind == 3:
            entry["data_offsets"][int(rng.integers(2))] += step
        elif kind == 4:
            entry["data_offsets"], header[other]["data_offsets"] = (
                header[other]["data_offsets"], entry["data_offsets"])
        elif kind == 5:
            del header[name]
        elif kind == 6:
            header[name + "x"] = header[other] if step > 0 else header.pop(name)
        elif kind == 7:
            odd = [None, True, 1.5, "1", [], {}, -1, 2**64, 10**400]
            entry[str(rng.choice([*entry, "more"]))] = odd[int(rng.integers(len(odd)))]
        else:
            header["__metadata__"] = {"a": ["1", 1, None, [], {}][int(rng.integers(5))]}
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data[start:]

    good, bad, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    data = open(good, "rb").read()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    expected = attempt(good)
    assert expected == as_it_says(data)
    before = peak()
    rng = np.random.default_rng(0)
    outcomes = {}
    for number in range(count):
        changed = bytearray(data)
        kind = ("flip", "flip values", "cut", "insert", "replace", "delete", "header", "header")[
            number % 8
        ]
        at, length = int(rng.integers(len(data))), int(rng.integers(1, 16))
        if kind.startswith("flip"):
            first = start * 8 if kind == "flip values" else 0
            for bit in rng.integers(first, len(data) * 8, size=rng.integers(1, 9)):
                changed[bit // 8] ^= 1 << bit % 8
        elif kind == "cut":
            del changed[at:]
        elif kind == "insert":
            changed[at:at] = rng.bytes(length) if number % 16 < 8 else b" " * length
        elif kind == "replace":
            changed[at : at + length] = rng.bytes(len(changed[at : at + length]))
        elif kind == "delete":
            del changed[at : at + length]
        else:
            changed = change_header(rng, data, start)
        write(bad, changed)
        found = attempt(bad)
        if isinstance(found, WeightFileError):
            result = "refused"
        else:
            assert found == as_it_says(changed), number
            result = "exact" if found == expected else "changed"
            if changed[:start] == data[:start]:  # nothing but values may differ then
                assert {k: v[:2] for k, v in found.items()} == {
                    k: v[:2] for k, v in expected.items()
                }
        key = f"{kind}: {result}"
        outcomes[key] = outcomes.get(key, 0) + 1
    print(json.dumps(outcomes | {"bytes": peak() - before}))
"""


def test_2000_damaged_files_are_read_as_they_are_or_refused(weights, tmp_path):
    found = run_child(
        textwrap.dedent(CHILD) + textwrap.dedent(DAMAGE), weights, tmp_path / "bad", 2000
    )
    outcomes = json.loads(found)
    assert outcomes.pop("bytes") < weights.stat().st_size + (300 << 20)
    assert sum(outcomes.values()) == 2000
    # Values have no checksum; all other bytes count, and so does the length of the file.
    assert outcomes.keys() >= {"flip values: changed", "header: exact", "header: changed"}
    assert not {"flip values: refused"} & outcomes.keys()
    for kind in ("cut", "insert", "delete"):
        assert outcomes[f"{kind}: refused"] == 250
    assert outcomes["flip: refused"] > 150
    assert outcomes["header: refused"] > 300


BOMBS = """
    def entry(value):
        return b'{"a":%s}' % value

    def fill(opening, part, closing):
        return opening + part * ((MAX_JSON_BYTES - 40) // len(part)) + closing

    def distinct(form, count):
        return b"{%s}" % b",".join(form % i for i in range(count))

    bombs = {
        "lists": entry(fill(b"[", b"[],", b"[]]")),
        "lists of one": entry(fill(b"[", b"[1],", b"[]]")),
        "deep lists": entry(fill(b"[", b"[" * 900 + b"]" * 900 + b",", b"[]]")),
        "dicts": entry(fill(b"[", b"{},", b"{}]")),
        "dicts of one": entry(fill(b"[", b'{"":0},', b"{}]")),
        "names": distinct(b'"%x":0', MAX_JSON_BYTES // 10),
        "dicts by name": distinct(b'"%x":{}', MAX_JSON_BYTES // 11),
        "numbers": entry(fill(b"[", b"1.5,", b"0]")),
        "shape": entry(b'{"dtype":"F32","data_offsets":[0,0],"shape":' +
            fill(b"[", b"999,", b"0]") [:-40] + b"9]}"),
        "texts": entry(fill(b"[", b'"\\xc3\\xa9!",', b"0]")),
        "wide text": entry(b'"\\xf0\\x9f\\x98\\x80%s"' % (b"a" * (MAX_JSON_BYTES - 40))),
        "long numbers": entry(fill(b"[", b"9" * 4299 + b",", b"0]")),
        "empty tensors": distinct(
            b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}', MAX_JSON_BYTES // 70),
    }
    before = peak()
    results = {}
    for name, text in bombs.items():
        assert MAX_JSON_BYTES // 2 < len(text) <= MAX_JSON_BYTES, (name, len(text))
        write(sys.argv[1], struct.pack("<Q", len(text)) + text)
        found = attempt(sys.argv[1])
        results[name] = found.reason[:60] if isinstance(found, WeightFileError) else len(found)
        del found  # its traceback holds what was parsed
    print(json.dumps({"bytes": peak() - before, "results": results}))
"""


def test_bombs_stay_within_300_mib_and_10_seconds(tmp_path):
    script = textwrap.dedent(CHILD) + textwrap.dedent(BOMBS)
    outcome = json.loads(run_child(script, tmp_path / "bomb"))
    assert outcome["bytes"] < 250 << 20  # the rest is numpy and Python
    read = {name for name, result in outcome["results"].items() if isinstance(result, int)}
    assert read == {"empty tensors"}  # no bomb, but the largest header that is read


def test_an_error_keeps_nothing_of_the_file_in_memory(tmp_path):
    # a notebook keeps the last error, and with it all that its frames hold
    path = tmp_path / "a.safetensors"
    path.write_bytes(packed(b'{"a":[%s[]]}' % (b"[]," * 500_000)))
    tracemalloc.start()
    try:
        with pytest.raises(WeightFileError) as found, open_safetensors(path):
            pass
        gc.collect()
        kept, peak = tracemalloc.get_traced_memory()
        assert kept < 1 << 20 < 20 << 20 < peak
        assert "does not have a dtype" in str(found.value)
    finally:
        tracemalloc.stop()


LAZY = """
    before = peak()
    with open_safetensors(sys.argv[1]) as opened:
        after_opening = peak() - before
        opened["w1"].read()
        print(json.dumps([after_opening, peak() - before]))
"""


def test_tensors_that_are_not_read_stay_on_disk(tmp_path):
    count, nbytes = 40, 32 << 20
    path = tmp_path / "large.safetensors"
    header = {
        f"w{i}": entry("F32", [nbytes // 4], i * nbytes, (i + 1) * nbytes) for i in range(count)
    }
    path.write_bytes(packed(header, b""))
    os.truncate(path, path.stat().st_size + count * nbytes)  # zeros that take no room
    script = textwrap.dedent(CHILD) + textwrap.dedent(LAZY)
    after_opening, after_reading = json.loads(run_child(script, path))
    assert after_opening < 8 << 20
    # the copy, and the bytes of the file that it was made from
    assert nbytes < after_reading < 2 * nbytes + (16 << 20)


def test_neither_torch_nor_jax_is_loaded():
    loaded = run_child("import sys, vmae_jax.weights.weight_files; print(*sys.modules)").split()
    assert "vmae_jax.weights.weight_files" in loaded
    assert not {"torch", "jax", "flax", "safetensors"} & set(loaded)
