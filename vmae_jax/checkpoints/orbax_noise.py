"""What Orbax says of a failure is kept back while it is called, and only then.

All of it is raised as well, and those who called say it in one line. Orbax's own account of a
damaged file or a full disk fills screens, and the other reads and writes that were under way report
their end one by one.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

_LOGGERS = ("absl", "asyncio")
_ORBAX = re.compile(r"[/\\]orbax[/\\]checkpoint[/\\]")
# the last: what TensorStore's threads find out, each with a stack, when nobody waits any more
_ABOUT_IT = re.compile(rf"{_ORBAX.pattern}|(?i:tensorstore)|Event loop is closed")
_lock = threading.Lock()
_open_calls = 0
_hook_before = sys.unraisablehook


@contextlib.contextmanager
def quiet(aftermath: float) -> Iterator[None]:
    """Lets an error through, and nothing else; several threads may be inside.

    Args:
      aftermath: seconds after an error in which what was under way beside it ends as well.
    """
    _enter()
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:  # what was under way ends once the error lets go of it
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        gc.collect()
        time.sleep(aftermath)
        raise
    finally:
        _leave()


def _enter() -> None:
    global _open_calls, _hook_before
    with _lock:
        _open_calls += 1
        if _open_calls == 1:
            for name in _LOGGERS:
                logging.getLogger(name).addFilter(_is_anothers)
            _hook_before, sys.unraisablehook = sys.unraisablehook, _report


def _leave() -> None:
    global _open_calls
    with _lock:
        _open_calls -= 1
        if _open_calls == 0:
            for name in _LOGGERS:
                logging.getLogger(name).removeFilter(_is_anothers)
            if sys.unraisablehook is _report:  # or somebody else has put another one there
                sys.unraisablehook = _hook_before


def _is_anothers(record: logging.LogRecord) -> bool:
    if _ABOUT_IT.search(record.getMessage()):
        return False
    frame = sys._getframe()
    while frame is not None and not _ORBAX.search(frame.f_code.co_filename):
        frame = frame.f_back
    return frame is None


def _report(unraisable: Any) -> None:
    if not _ABOUT_IT.search(str(unraisable.exc_value)) and not any(
        _ORBAX.search(frame.f_code.co_filename)
        for frame, _ in traceback.walk_tb(unraisable.exc_traceback)
    ):
        _hook_before(unraisable)
