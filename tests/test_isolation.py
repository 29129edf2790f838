"""Functions that misbehave in child processes: what comes back, and what is left behind.

The functions stand at module level: children import this file by its name.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import video_corpus
from painted_source import random_clip

from vmae_jax.data.sources.video_source import VideoRecord, VideoSource
from vmae_jax.data.video.reader import VideoError
from vmae_jax.processes import isolation
from vmae_jax.processes.isolation import ChildDied, Isolated

ARRAYS = {
    "video": np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), np.uint8),
    "transposed": np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
    "strided": np.arange(40, dtype=np.float32)[::-3],
    "fortran": np.asfortranarray(np.arange(12, dtype=np.int16).reshape(3, 4)),
    "scalar": np.array(1.5),
    "empty": np.zeros((0, 4), np.float64),
    "big_endian": np.arange(5, dtype=">i4"),
    "bool": np.array([True, False, True]),
    "half": np.linspace(0, 1, 7, dtype=np.float16),
    "complex": np.array([1 + 2j, 3 - 4j]),
    "text": np.array(["a", "bcd"]),
    "time": np.array(["2020-01-01", "NaT"], "datetime64[D]"),
    "record": np.array([(1, 2.5)], [("a", "i4"), ("b", "f8")]),
    "object": np.array([None, "x", 3], object),
}


class OwnError(Exception):
    """Cannot be unpickled: two arguments, one of which reaches `args`."""

    def __init__(self, a, b):
        super().__init__(a)


def identity(value):
    return {"value": value}


def process_id(*_):
    return {"pid": os.getpid()}


def arrays():
    return ARRAYS


def modules():
    main = sys.modules["__main__"]
    return {"names": sorted(sys.modules), "main": main.__spec__.name, "path": list(sys.path)}


def signals():
    numbers = (signal.SIGTERM, signal.SIGINT)
    return {"ignored": [signal.getsignal(n) == signal.SIG_IGN for n in numbers]}


def misbehave(how, *_):
    if how == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif how == "exit":
        os._exit(7)
    elif how == "hang":
        time.sleep(1000)
    elif how == "sys.exit":
        sys.exit(3)
    elif how == "lambda":
        return {"value": lambda: None}
    elif how == "bomb":
        hoard = [np.zeros(256 << 20, np.uint8) for _ in range(1000)]  # claimed, never touched
        return {"value": len(hoard)}
    return {"value": how}


def crash_once(file):
    """Leaves a mark and crashes; where the mark is, does its work."""
    if os.path.exists(file):
        return {"value": "done"}
    open(file, "w").close()
    os.kill(os.getpid(), signal.SIGSEGV)


def fail(kind):
    if kind == "VideoError":
        raise VideoError("a.mp4", "it is torn; copy it again.")
    if kind == "OwnError":
        raise OwnError("a", "b")
    if kind == "with a lock":
        raise ValueError("locked", threading.Lock())
    raise KeyError("plain")


def shout():
    print("to the screen", flush=True)
    os.write(1, b"raw bytes\n" * 1000)
    sys.stderr.write("and here\n")
    return {"value": np.arange(3)}


@pytest.fixture
def isolated():
    """(function, timeout) -> Isolated, closed at the end."""
    made = []

    def make(function, timeout=60.0):
        made.append(Isolated(function, timeout=timeout))
        return made[-1]

    yield make
    for one in made:
        one.close()


def gone(pid: int, seconds: float = 20) -> bool:
    """Whether a process ends in time; a zombie has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] in "ZX":
                    return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_results_and_arrays_of_any_kind_survive(isolated):
    for _ in range(2):  # the second call meets the same child
        result = isolated(arrays)()
        assert sorted(result) == sorted(ARRAYS)
        for name, expected in ARRAYS.items():
            assert result[name].dtype == expected.dtype, name
            assert result[name].shape == expected.shape, name
            np.testing.assert_array_equal(result[name], expected, err_msg=name)
        result["video"][:] = 0  # the caller's own, and writable


def test_a_child_is_kept_for_the_next_call(isolated):
    function = isolated(process_id)
    pids = {function()["pid"] for _ in range(5)}
    assert len(pids) == 1
    assert os.getpid() not in pids


def test_exceptions_travel(isolated):
    function = isolated(fail)
    with pytest.raises(VideoError, match="it is torn") as info:
        function("VideoError")
    assert (info.value.path, info.value.reason) == ("a.mp4", "it is torn; copy it again.")
    with pytest.raises(KeyError, match="plain"):
        function("KeyError")
    with pytest.raises(RuntimeError, match="OwnError: a"):
        function("OwnError")
    with pytest.raises(RuntimeError, match=r"ValueError: .*locked"):
        function("with a lock")
    with pytest.raises(KeyError, match="plain"):  # the same child, still in order
        function("KeyError")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("segfault", "SIGSEGV"),
        ("exit", "exit code 7"),
        ("sys.exit", "exit code 3"),
        ("lambda", "exit code 1"),
        ("hang", "took longer than 1 s"),
    ],
)
def test_what_ends_a_child_costs_one_call(how, reason, isolated):
    function = isolated(misbehave, timeout=1)
    with pytest.raises(ChildDied, match=reason):
        function(how)
    assert function("well")["value"] == "well"


def test_a_memory_bomb_leaves_the_parent_and_the_child_unharmed(isolated):
    function = isolated(misbehave)
    with pytest.raises(MemoryError):
        function("bomb")
    assert function("well")["value"] == "well"


def test_what_fails_once_is_tried_again(isolated, tmp_path):
    mark = tmp_path / "mark"
    assert isolated(crash_once)(str(mark))["value"] == "done"
    assert mark.exists()


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_a_timeout_that_no_call_can_keep_is_refused(timeout):
    with pytest.raises(ValueError, match=f"timeout={timeout} must be above 0"):
        Isolated(identity, timeout=timeout)


def test_it_is_tried_twice_and_no_more(isolated, monkeypatch):
    function, started = isolated(misbehave), []
    real = isolation._Child
    monkeypatch.setattr(isolation, "_Child", lambda f: started.append(1) or real(f))
    with pytest.raises(ChildDied):
        function("exit")
    assert len(started) == 2


def test_children_that_die_between_calls_are_no_fault_of_the_next(isolated):
    function = isolated(process_id)
    threads = [threading.Thread(target=function) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    before = list(function._all)
    for child in before:
        os.kill(child._process.pid, signal.SIGKILL)
    for child in before:
        child._process.wait()
    assert function()["pid"] not in {child._process.pid for child in before}
    assert len(function._all) == 1


def test_children_outlive_the_thread_that_started_them(isolated):
    # Linux's parent-death signal counts the thread as the parent.
    function, pids = isolated(process_id), []
    thread = threading.Thread(target=lambda: pids.append(function()["pid"]))
    thread.start()
    thread.join()
    assert not gone(pids[0], seconds=0.5)
    assert function()["pid"] == pids[0]


def test_many_threads_get_each_its_own_result(isolated):
    function, wrong = isolated(identity), []

    def ask(number):
        for k in range(20):
            value = np.full((50, number + 1), 100 * number + k)
            got = function(value)["value"]
            if got.shape != value.shape or (got != value).any():
                wrong.append((number, k))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert 1 <= len(function._all) <= 4


def test_a_childs_output_does_not_reach_the_channel(isolated, capfd):
    np.testing.assert_array_equal(isolated(shout)()["value"], [0, 1, 2])
    out, err = capfd.readouterr()
    assert "to the screen" in out
    assert "raw bytes" in out
    assert "and here" in err


def test_a_child_imports_neither_jax_nor_the_main_script(isolated):
    result = isolated(modules)()
    assert not {"jax", "flax", "grain"} & set(result["names"])
    assert result["main"] == "vmae_jax.processes.isolation"
    assert set(filter(None, sys.path)) <= set(result["path"])


def test_decoding_a_clip_needs_no_jax(isolated, tmp_path):
    file = str(tmp_path / "a.mp4")
    video_corpus.encode(file, frames=12, size=(32, 32))
    make = random_clip(VideoSource([VideoRecord(file, "a")]), 4, 2, (16, 16))
    expected = make(0, 1, 2)
    result = isolated(ModulesAfter(make))(0, 1, 2)
    assert not {"jax", "flax", "grain"} & set(result["names"])
    assert "vmae_jax.data.clip_maker" in result["names"]
    np.testing.assert_array_equal(result["video"], expected["video"])


class ModulesAfter:
    """Calls a function, and adds the names of the modules that are loaded then."""

    def __init__(self, function):
        self.function = function

    def __call__(self, *args):
        return {**self.function(*args), "names": sorted(sys.modules)}


def test_children_ignore_the_signals_that_are_the_trainers(isolated):
    assert isolated(signals)()["ignored"] == [True, True]
    function = isolated(process_id)
    pid = function()["pid"]
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(pid, number)
    assert function()["pid"] == pid


PARENT = """
import sys, threading
import test_isolation
from vmae_jax.processes.isolation import Isolated
function = Isolated(test_isolation.process_id, timeout=60)
print(function()["pid"], flush=True)
hanging = Isolated(test_isolation.misbehave, timeout=600)
threading.Thread(target=hanging, args=("hang",), daemon=True).start()
while not hanging._all: pass
print(next(iter(hanging._all))._process.pid, flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["input()", "sys.exit()"])
def test_children_end_with_their_parent(end):
    """Idle or at work, whether it is killed or ends without closing them."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(end=end)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    with parent:
        children = [int(parent.stdout.readline()) for _ in range(2)]
        time.sleep(0.5)  # the second is at work by then
        if end == "input()":
            parent.kill()
        parent.wait(timeout=120)
        assert all(gone(pid) for pid in children)


@pytest.mark.parametrize("attempts", [1, 2])
def test_close_ends_children_and_fails_the_calls_under_way(attempts, isolated, monkeypatch):
    monkeypatch.setattr(isolation, "ATTEMPTS", attempts)
    function, errors = isolated(misbehave), []

    def ask():
        try:
            function("hang")
        except Exception as error:
            errors.append(error)

    assert function("well")
    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.2)
    pids = [child._process.pid for child in function._all]
    function.close()
    thread.join(timeout=60)
    assert not thread.is_alive()
    # not ChildDied, which would call the clip bad
    assert [type(error) for error in errors] == [RuntimeError]
    assert "closed" in str(errors[0])
    assert pids
    assert all(gone(pid) for pid in pids)
    with pytest.raises(RuntimeError, match="closed"):
        function("well")
    function.close()
    assert not function._all


def test_a_child_that_cannot_start_says_so(isolated, monkeypatch):
    function = isolated(identity)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match=r"could not start \(exit code 1\)"):
        function(1)
