"""What Orbax says of its failures is kept back while it is called, and nothing else ever is."""

from __future__ import annotations

import logging
import sys
import threading
import types

import pytest

from vmae_jax.checkpoints.orbax_noise import quiet


def said(unraisable, caplog) -> list[str]:
    """What reaches the user of an error that nobody can catch, and of four log records."""
    caplog.clear()
    sys.unraisablehook(unraisable)
    for name, text in [
        ("asyncio", "Task exception was never retrieved: /lib/orbax/checkpoint/load.py"),
        ("asyncio", "NOT_FOUND in TensorStore"),
        ("asyncio", "a task of another library"),
        ("absl", "anything"),
    ]:
        logging.getLogger(name).error(text)
    return [record.getMessage().split()[0] for record in caplog.records]


@pytest.fixture
def hook(monkeypatch):
    """A list of what came to the hook that was there before."""
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    return reported


def unraisable(text: str) -> types.SimpleNamespace:
    return types.SimpleNamespace(exc_value=RuntimeError(text), exc_traceback=None)


def test_only_what_is_about_orbax_is_kept_back_and_only_inside(hook, caplog):
    everything = ["Task", "NOT_FOUND", "a", "anything"]
    echo, other = unraisable("Event loop is closed"), unraisable("of another library")
    before = sys.unraisablehook
    assert said(echo, caplog) == everything
    with quiet(0):
        assert said(echo, caplog) == ["a", "anything"]
        assert said(other, caplog) == ["a", "anything"]
    assert said(echo, caplog) == everything
    assert hook == [echo, other, echo]
    assert sys.unraisablehook == before


def test_it_lasts_until_the_last_of_several_threads_has_left(hook):
    before, inside, may_leave = sys.unraisablehook, threading.Event(), threading.Event()

    def save():
        with quiet(0):
            inside.set()
            may_leave.wait(60)

    with quiet(0):
        thread = threading.Thread(target=save)
        thread.start()
        inside.wait(60)
    sys.unraisablehook(unraisable("Event loop is closed"))
    assert hook == []
    may_leave.set()
    thread.join()
    assert sys.unraisablehook == before


def test_errors_pass_and_another_hook_stays(hook):
    def mine(_):
        pass

    def fail():
        with quiet(0):
            sys.unraisablehook = mine
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert sys.unraisablehook is mine
