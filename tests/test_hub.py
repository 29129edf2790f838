"""Against a hub on this machine; every download runs in a process of its own, because
huggingface_hub reads its environment when it is imported."""

import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import hub_server
import pytest
from hub_server import Repository, commit_hash, repository

from vmae_jax.weights import hub

SAFE = {"model.safetensors": b"safe" * 1000}
BIN = {"pytorch_model.bin": b"bin" * 1000}
SMALL = {"config.json": b'{"model_type": "videomae"}', "preprocessor_config.json": b"{}"}
# What other libraries and people leave in repositories.
OTHERS = {
    name: name.encode()
    for name in (
        ".gitattributes",
        "README.md",
        "flax_model.msgpack",
        "modeling_videomae.py",
        "model.fp16.safetensors",
        "optimizer.pt",
        "tf_model.h5",
        "training_args.bin",
        "checkpoint-1/model.safetensors",
    )
}


def sharded(name, shards):
    first, last = (f"{name[0]}-0000{i}-of-00002.{name[1]}" for i in (1, 2))
    index = {"metadata": {}, "weight_map": {"a": first, "b": last, "c": first}}
    content = {".".join([*name, "index.json"]): json.dumps(index).encode()}
    return {**content, first: shards[0], last: shards[1]}


SAFE_SHARDS = sharded(("model", "safetensors"), (b"one", b"two"))
BIN_SHARDS = sharded(("pytorch_model", "bin"), (b"three", b"four"))


@pytest.fixture(scope="module")
def running_hub():
    with hub_server.running() as server:
        yield server


@pytest.fixture
def server(running_hub):
    running_hub.repositories = {"org/name": repository({**OTHERS, **SMALL, **SAFE})}
    running_hub.requests = []
    running_hub.cut = set()
    running_hub.short = set()
    running_hub.broken = False
    return running_hub


@pytest.fixture
def python(server, tmp_path):
    """Runs calls of `hub` in a process of their own.

    For each: what it returned, or (class of the error, message); for one call no list of that.
    """

    def run(*calls, before="", stderr=subprocess.PIPE, **environment):
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))},
            "PYTHONPATH": str(Path(hub.__file__).parents[2]),
            "NO_PROXY": "*",
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "home"),
            **environment,
        }
        script = (
            f"import json, sys\nimport vmae_jax.files.hub\nfrom vmae_jax.weights import hub\n{before}\n"
            "names = {**vars(vmae_jax.files.hub), **vars(hub)}\nresults = []\n"
            f"for call in {calls}:\n"
            "    try:\n"
            "        results.append(eval(call, names))\n"
            "    except (OSError, ValueError) as error:\n"
            "        results.append((type(error).__name__, str(error)))\n"
            "assert 'jax' not in sys.modules\n"
            "print(json.dumps(results))\n"
        )
        found = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            timeout=60,
            check=False,
        )
        assert found.returncode == 0, found.stderr
        results = json.loads(found.stdout)
        return results[0] if len(calls) == 1 else results

    return run


def contents(directory):
    """File name -> content; fails if `directory` is none."""
    assert os.path.isdir(directory), directory
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def everything_below(directory):
    return [path for path in Path(directory).rglob("*") if path.is_file()]


# Names


NAMES = [
    "MCG-NJU/videomae-base", "videomae-base", "a/b", "a", "_a/b_", "a.b/c.d", "1/2", "a" * 96,
    f"{'a' * 96}/{'b' * 96}",
    "", "/", "a/", "/a", "a/b/c", "./a", "../a", "~/a", "a--b/c", "a..b", "a/b.git", "-a/b", "a/b-",
    "a/.b", "a b/c", "a/b\n", "a\\b", "C:\\a", "hf://a/b", "café/b", "a" * 97, "a/b@main",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_hub_ids_are_those_that_the_library_accepts(name, tmp_path, monkeypatch):
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    monkeypatch.chdir(tmp_path)  # where none of them exists
    try:
        validate_repo_id(name)
        expected = not os.path.exists(name)
    except HFValidationError:
        expected = False
    assert hub.is_hub_id(name) == expected


def test_what_exists_here_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.is_hub_id("runs/tiny")
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    assert not hub.is_hub_id("runs/tiny")


@pytest.mark.parametrize("name", ["/no/such/place", "./runs", "a/b/c"])
def test_a_name_that_is_neither_path_nor_id_is_refused_as_both(name):
    with pytest.raises(FileNotFoundError, match=r"no such file or directory .*organisation/name"):
        hub.download_checkpoint(name)


# What is fetched


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (SAFE, SAFE),
        ({**SAFE, **BIN}, SAFE),
        ({**SAFE, **SAFE_SHARDS, **BIN_SHARDS}, SAFE),
        ({**SAFE_SHARDS, **BIN}, SAFE_SHARDS),
        ({**SAFE_SHARDS, **BIN_SHARDS}, SAFE_SHARDS),
        (BIN, BIN),
        ({**BIN, **BIN_SHARDS}, BIN),
        (BIN_SHARDS, BIN_SHARDS),
    ],
    ids=lambda files: "+".join(sorted(files)),
)
def test_configuration_and_one_set_of_weights_are_fetched_and_nothing_else(
    server, python, weights, expected
):
    server.repositories["org/name"] = repository({**OTHERS, **SMALL, **weights})
    directory = python("download_checkpoint('org/name')")
    assert contents(directory) == {**SMALL, **expected}
    assert server.fetched() == sorted({**SMALL, **expected})


def test_a_repository_need_not_have_a_preprocessor_configuration(server, python):
    files = {"config.json": b"{}", **SAFE}
    server.repositories["org/name"] = repository(files)
    assert contents(python("download_checkpoint('org/name')")) == files


def test_one_file_alone_can_be_fetched(server, python):
    path = python("download_file('org/name', 'preprocessor_config.json')")
    assert Path(path).read_bytes() == SMALL["preprocessor_config.json"]
    assert server.fetched() == ["preprocessor_config.json"]


def test_revisions_are_branches_tags_and_commits(server, python):
    commits = {
        commit_hash(name): {"config.json": b"{}", "model.safetensors": name.encode()}
        for name in ("new", "old", "oldest")
    }
    refs = {"main": commit_hash("new"), "v1.0": commit_hash("old"), "pr/1": commit_hash("oldest")}
    server.repositories["org/name"] = Repository(commits, refs)
    given = [None, "main", "v1.0", "pr/1", commit_hash("oldest")]
    found = python(*(f"download_checkpoint('org/name', revision={name!r})" for name in given))
    weights = [contents(directory)["model.safetensors"] for directory in found]
    assert weights == [b"new", b"new", b"old", b"oldest", b"oldest"]
    path = python("download_file('org/name', 'model.safetensors', revision='v1.0')")
    assert Path(path).read_bytes() == b"old"


def test_a_token_opens_a_private_repository(server, python):
    server.repositories["org/name"].token = "hf_right"
    kind, message = python("download_checkpoint('org/name')")
    assert kind == "FileNotFoundError"
    assert "private" in message
    assert "hf auth login" in message
    assert "directory of that name" in message
    directory = python("download_checkpoint('org/name')", HF_TOKEN="hf_right")
    assert contents(directory) == {**SMALL, **SAFE}


def test_a_download_shows_its_progress_in_a_terminal(server, python):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    python("download_checkpoint('org/name')", stderr=theirs)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()  # fails if nothing was written
    os.close(ours)
    assert "model.safetensors: 100%" in shown


# The cache, and life without the hub


def test_what_is_cached_is_not_fetched_again(server, python):
    first = python("download_checkpoint('org/name')")
    server.requests.clear()
    assert python("download_checkpoint('org/name')") == first
    assert server.requests  # the hub was asked whether the branch had moved
    assert {path.split("/")[1] for _, path in server.requests} == {"api"}


def test_a_branch_that_moved_is_followed_and_files_that_did_not_change_are_kept(server, python):
    python("download_checkpoint('org/name')")
    server.requests.clear()
    files = {**SMALL, **SAFE, "config.json": b'{"model_type": "videomae", "new": 1}'}
    server.repositories["org/name"] = Repository(
        {commit_hash("next"): files}, {"main": commit_hash("next")}
    )
    assert contents(python("download_checkpoint('org/name')")) == files
    assert server.fetched() == ["config.json"]


def test_offline_the_cache_answers(server, python):
    calls = ["download_checkpoint('org/name')", "download_file('org/name', 'config.json')"]
    online = python(*calls)
    server.requests.clear()
    assert python(*calls, HF_HUB_OFFLINE="1") == online
    assert server.requests == []


NOBODY = {"HF_ENDPOINT": "http://127.0.0.1:9"}  # no program may listen there


def test_when_the_hub_is_gone_the_cache_answers(server, python):
    server.repositories["org/name"] = repository({**SMALL, **BIN_SHARDS})
    online = python("download_checkpoint('org/name')")
    assert python("download_checkpoint('org/name')", **NOBODY) == online
    server.broken = True
    assert python("download_checkpoint('org/name')") == online


def test_offline_files_that_another_program_cached_one_by_one_will_do(server, python):
    # as transformers does it, which leaves no listing of the repository
    before = "from huggingface_hub import hf_hub_download\n" + "\n".join(
        f"hf_hub_download('org/name', {name!r})" for name in ("config.json", *SAFE)
    )
    python("is_hub_id('x')", before=before)
    directory = python("download_checkpoint('org/name')", HF_HUB_OFFLINE="1")
    assert contents(directory).keys() == {"config.json", *SAFE}


def test_offline_and_not_cached_names_the_variable(server, python):
    calls = ["download_checkpoint('a/b')", "download_file('a/b', 'config.json')"]
    for kind, message in python(*calls, HF_HUB_OFFLINE="1"):
        assert kind == "ConnectionError"
        assert "HF_HUB_OFFLINE is set" in message
        assert "local directory" in message
    assert server.requests == []


def test_the_hub_gone_and_not_cached_says_to_check_the_connection(python):
    kind, message = python("download_checkpoint('org/name')", **NOBODY)
    assert kind == "ConnectionError"
    assert "not in the cache" in message
    assert "Connection refused" in message
    assert "check the connection" in message
    assert NOBODY["HF_ENDPOINT"] in message


def test_offline_a_half_cached_checkpoint_is_an_error(server, python):
    python("download_file('org/name', 'config.json')")
    # a commit needs no look-up, a branch does; neither may end in half a checkpoint
    revisions = [None, commit_hash("main")]
    calls = [f"download_checkpoint('org/name', revision={revision!r})" for revision in revisions]
    for kind, message in python(*calls, HF_HUB_OFFLINE="1") + python(*calls, **NOBODY):
        assert kind == "ConnectionError"
        assert "not in the cache" in message


def test_a_broken_hub_is_told_from_a_broken_connection(server, python):
    server.broken = True
    kind, message = python("download_checkpoint('org/name')")
    assert kind == "ConnectionError"
    assert "status 500" in message


# Downloads that fail


@pytest.mark.parametrize("fault", ["cut", "short"])
def test_an_interrupted_download_leaves_no_weights_and_can_be_repeated(
    server, python, tmp_path, fault
):
    setattr(server, fault, {"model.safetensors"})
    kind, message = python("download_checkpoint('org/name')")
    assert kind == "ConnectionError"
    assert "try again" in message
    assert "/elsewhere/org/name" in server.requests[-1][1]  # it had begun
    left = everything_below(tmp_path / "home")
    assert any(path.name == "config.json" for path in left)
    assert not any(path.name == "model.safetensors" for path in left)
    whole = SAFE["model.safetensors"]
    assert not any(path.read_bytes() and whole.startswith(path.read_bytes()) for path in left)
    assert python("download_checkpoint('org/name')", HF_HUB_OFFLINE="1")[0] == "ConnectionError"

    setattr(server, fault, set())
    assert contents(python("download_checkpoint('org/name')")) == {**SMALL, **SAFE}


def test_a_repository_that_does_not_exist(python, server):
    kind, message = python("download_checkpoint('org/nmae')")
    assert kind == "FileNotFoundError"
    assert f"'org/nmae' at {server.url} does not exist or is private" in message


def test_a_revision_that_does_not_exist(python):
    revisions = ["v9", commit_hash("never")]
    calls = [f"download_checkpoint('org/name', revision={revision!r})" for revision in revisions]
    for revision, (kind, message) in zip(revisions, python(*calls), strict=True):
        assert kind == "FileNotFoundError"
        assert f"revision={revision!r} is no branch, tag or commit of 'org/name'" in message


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({**SMALL, **OTHERS}, " or ".join(hub.WEIGHTS_FILES)),
        ({**SAFE, **OTHERS}, "config.json"),
    ],
)
def test_a_repository_without_a_checkpoint_says_what_was_looked_for(server, python, files, wanted):
    server.repositories["org/name"] = repository(files)
    kind, message = python("download_checkpoint('org/name')")
    assert kind == "FileNotFoundError"
    assert f"has no {wanted}, only " in message
    assert "tf_model.h5" in message
    assert server.fetched() == []


def test_a_file_that_the_repository_lacks(python):
    kind, message = python("download_file('org/name', 'video_preprocessor_config.json')")
    assert kind == "FileNotFoundError"
    assert "has no video_preprocessor_config.json, only " in message


def test_a_damaged_index_of_shards_is_refused(server, python):
    shards = [{"a": 1}, {"a": "pytorch_model.bin"}, {"a": "modeling_videomae.py"}]
    damaged = [b"{", b"[]", b"{}", b"\xff"]
    damaged += [json.dumps({"weight_map": shard}).encode() for shard in shards]
    server.repositories = {
        f"org/{i}": repository({**SMALL, **OTHERS, **BIN, "model.safetensors.index.json": index})
        for i, index in enumerate(damaged)
    }
    calls = [f"download_checkpoint({repo_id!r})" for repo_id in server.repositories]
    for kind, message in python(*calls):
        assert kind == "SettingError"
        assert "model.safetensors.index.json is damaged" in message
    assert set(server.fetched()) == {*SMALL, "model.safetensors.index.json"}


def test_a_shard_that_the_repository_lacks(server, python):
    files = {**SMALL, **SAFE_SHARDS}
    del files["model-00002-of-00002.safetensors"]
    server.repositories["org/name"] = repository(files)
    kind, message = python("download_checkpoint('org/name')")
    assert kind == "FileNotFoundError"
    assert "model-00002-of-00002.safetensors" in message


def test_a_gated_repository_says_where_to_ask(server, python):
    server.repositories["org/name"].gated = True
    kind, message = python("download_checkpoint('org/name')")
    assert kind == "PermissionError"
    assert f"ask for access at {server.url}/org/name" in message


def test_a_token_that_is_refused_is_named_as_the_cause(python):
    kind, message = python("download_checkpoint('org/name')", HF_TOKEN="hf_revoked")
    assert kind == "PermissionError"
    assert "refused your token" in message
    assert "HF_TOKEN" in message


@pytest.mark.parametrize(
    ("code", "kind", "remedy"),
    [
        ("ENOSPC", "OSError", "free some space"),
        ("EDQUOT", "OSError", "free some space"),
        ("EACCES", "PermissionError", "make it writable"),
    ],
)
def test_a_cache_that_cannot_be_written_is_named(python, tmp_path, code, kind, remedy):
    # simulated: root may write everywhere, and no disk is to be filled
    before = (
        "import errno, os\nfrom huggingface_hub import file_download\n"
        "def fail(*args, **kwargs):\n"
        f"    raise OSError(errno.{code}, os.strerror(errno.{code}))\n"
        "file_download.http_get = fail"
    )
    found, message = python("download_checkpoint('org/name')", before=before)
    assert found == kind
    assert str(tmp_path / "home") in message
    assert remedy in message
    assert "HF_HOME" in message


def test_a_cache_below_a_file_is_named(python, tmp_path):
    (tmp_path / "file").touch()
    kind, message = python("download_checkpoint('org/name')", HF_HOME=str(tmp_path / "file"))
    assert kind == "NotADirectoryError"
    assert str(tmp_path / "file") in message
