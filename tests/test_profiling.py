"""Profiles of some steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from bucket import mount

from vmae_jax.files.storage import list_files
from vmae_jax.running.profiling import Profile


def run(profile, steps):
    """A loop of these steps; which of them were waited for."""
    square, waited = jax.jit(lambda x: x @ x), []
    with profile:
        for step in steps:
            profile.before(step)
            value = square(jnp.ones((8, 8)))

            def wait(step=step, value=value):
                waited.append(step)
                jax.block_until_ready(value)

            profile.after(step, wait)
    return waited


def traces(folder):
    """What XProf and Perfetto open."""
    names = list_files(str(folder))
    xprof = [name for name in names if name.endswith(".xplane.pb")]
    assert all(name.startswith("plugins/profile/") for name in xprof)
    return xprof, [name for name in names if name.endswith(".trace.json.gz")]


@pytest.mark.parametrize(
    ("text", "steps", "waited"),
    [
        ("3:4", range(1, 8), [4]),
        ("1:1", range(1, 3), [1]),
        ("3:9", range(5, 12), [9]),  # goes on from step 4
        ("3:9", range(1, 5), []),  # ends within
    ],
)
def test_a_range_of_steps_is_traced(text, steps, waited, tmp_path):
    assert run(Profile(text, tmp_path), steps) == waited
    xprof, perfetto = traces(tmp_path)
    assert len(xprof) == len(perfetto) == 1


@pytest.mark.parametrize("text", ["", "3:4"])
def test_nothing_to_trace_leaves_nothing(text, tmp_path):
    assert run(Profile(text, tmp_path / "none"), range(5, 8)) == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("text", ["100", "5:4", "0:4", "a:b", "1:2:3", "-1:4", "1.5:2", ":"])
def test_other_texts_are_refused(text, tmp_path):
    with pytest.raises(ValueError, match=r"is not first:last with 1 <= first <= last; try 100:105"):
        Profile(text, tmp_path)


def test_an_exception_ends_the_trace_and_is_not_hidden(tmp_path):
    profile = Profile("1:9", tmp_path)

    def fail():
        with profile:
            profile.before(1)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert traces(tmp_path)[0]
    assert run(Profile("1:1", tmp_path / "again"), [1]) == [1]  # none is left running


def test_a_trace_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    assert run(Profile("2:3", tmp_path / "file"), range(1, 6)) == [3]
    assert "no profile: " in caplog.text


def test_a_remote_folder_gets_the_files(monkeypatch):
    mount(monkeypatch)
    run(Profile("1:2", "gs://bucket/run/profile"), range(1, 4))
    xprof, _ = traces("gs://bucket/run/profile")
    assert len(xprof) == 1
