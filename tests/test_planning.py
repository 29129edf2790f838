"""What a compiler's process says, or how it ends; and the search for the largest batch."""

from __future__ import annotations

import pytest

from vmae_jax.plan import chips, planning
from vmae_jax.plan.planning import Outcome

GiB = chips.GiB
TOO_LARGE = (
    "JaxRuntimeError: RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the "
    "total memory required for HLO temporaries (21.50G) exceeds available HBM (15.75G)."
)
USED = (
    "JaxRuntimeError: RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 23.90G of "
    "15.75G hbm. Exceeded hbm capacity by 8.15G."
)


def test_facts_come_through():
    assert planning.outcome({"ok": {"a": 1}}, 0, "noise") == Outcome("ok", {"a": 1}, "", None)


@pytest.mark.parametrize(("message", "size"), [(TOO_LARGE, 21.5), (USED, 23.9)])
def test_a_program_that_is_too_large_says_its_size(message, size):
    result = planning.outcome({"failed": message}, 0, "")
    assert (result.status, result.message) == ("too large", message)
    assert result.needed == pytest.approx(size * GiB)


def test_too_large_without_a_size_is_still_too_large():
    result = planning.outcome({"failed": "X: RESOURCE_EXHAUSTED: no more"}, 0, "")
    assert (result.status, result.needed) == ("too large", None)


@pytest.mark.parametrize(
    ("result", "returncode", "status", "message"),
    [
        ({"refused": "mesh.fsdp=3: ..."}, 0, "refused", r"mesh\.fsdp=3"),
        ({"failed": "XlaRuntimeError: INTERNAL: oh"}, 0, "failed", "INTERNAL: oh"),
        ({"error": "Traceback: TypeError: oh"}, 0, "error", "TypeError: oh"),
        ({}, -11, "crashed", "SIGSEGV: the last words"),
        ({}, -9, "crashed", r"SIGKILL \(the machine may have run out of memory\)"),
        ({}, 1, "failed", "ended with 1: the last words"),
    ],
)
def test_however_the_compiler_ends_it_is_an_outcome(result, returncode, status, message):
    found = planning.outcome(result, returncode, "the last words")
    assert found.status == status
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(found.message)


def size_of(facts):
    return facts["size"]


def compiler(fixed, per_clip, memory, tried):
    """Of a step that takes fixed + n * per_clip GiB."""

    def try_batch(n):
        tried.append(n)
        size = (fixed + n * per_clip) * GiB
        if size > memory * GiB:
            return Outcome("too large", None, "", size)
        return Outcome("ok", {"size": size}, "", None)

    return try_batch


@pytest.mark.parametrize(
    ("fixed", "per_clip", "memory"),
    [(1.2, 0.13, 15.75), (1.2, 0.13, 95.7), (8.0, 2.5, 15.75), (5.0, 1.2, 31.2), (1.0, 0.03, 139)],
)
def test_the_largest_batch_is_found_in_a_few_compilations(fixed, per_clip, memory):
    tried, said = [], []
    found, outcomes = planning.find_batch(
        compiler(fixed, per_clip, memory, tried), lambda facts: True, size_of, memory * GiB,
        start=8, say=said.append,
    )  # fmt: skip
    best = int((memory - fixed) / per_clip)
    assert best - max(1, best // 16) <= found <= best
    assert list(outcomes) == tried
    assert len(tried) == len(set(tried)) <= 8
    assert sum("compiling" in line for line in said) == len(tried)


def test_not_one_clip_fits():
    tried = []
    found, _ = planning.find_batch(
        compiler(20, 1, 16, tried),
        lambda facts: True,
        size_of,
        16 * GiB,
        start=8,
        say=lambda line: None,
    )
    assert found is None
    assert tried[-1] == 1


def test_a_step_that_compiles_but_does_not_fit_is_too_large():
    found, _ = planning.find_batch(
        compiler(1, 1, 1000, []), lambda facts: size_of(facts) <= 10 * GiB, size_of, 10 * GiB,
        start=4, say=lambda line: None,
    )  # fmt: skip
    assert found == 9


def test_other_failures_end_the_search():
    said = []
    found, outcomes = planning.find_batch(
        lambda n: Outcome("crashed", None, "SIGSEGV", None), lambda facts: True, size_of,
        16 * GiB, start=8, say=said.append,
    )  # fmt: skip
    assert found is None
    assert list(outcomes) == [8]
    assert "crashed: SIGSEGV" in said[-1]


def test_the_batch_of_all_devices():
    unit, override = planning.batches(
        "configs/default.py",
        ["--config.mesh.tensor=2", "--config.data.repeat=2", "--config.optimizer.accumulation=3"],
        chips.topology("v5e:4x4"),
    )
    assert unit == 6  # two crops of a video in each of three micro-batches
    assert override(5) == "--config.data.batch_size=240"  # 16 devices, 8 ways


def test_what_is_estimated_is_said():
    said = {name: " ".join(planning.estimated(chips.topology(name), None)) for name in
            ("v5e:2x2", "h200:8", "cpu:8")}  # fmt: skip
    assert "memory" not in said["v5e:2x2"].partition("times")[0]
    assert "times" in said["h200:8"]
    assert "for CPUs" in said["h200:8"]
    assert "times" not in said["cpu:8"]
    exact = {"dtype": "float32", "precision": "highest"}
    assert "float32's take" in " ".join(planning.estimated(chips.topology("v5e:2x2"), exact))
    assert "float32's" not in " ".join(planning.estimated(chips.topology("h200:8"), exact))


@pytest.mark.parametrize("setting", ["data.repeat", "optimizer.accumulation"])
def test_no_batch_has_parts_of_none(setting):
    with pytest.raises(ValueError, match=rf"{setting}=0 .*must be at least 1"):
        planning.batches("configs/default.py", [f"--config.{setting}=0"], chips.topology("v5e:4x4"))
