"""Work in threads that a process does not wait for at its end, as an executor's would make it."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background(threading.Thread):
    """A thread that is started at once, and whose error is kept.

    Attributes:
      error: what the work raised, once it has ended.
    """

    def __init__(self, work: Callable[[], None], name: str):
        super().__init__(name=name, daemon=True)
        self._work = work
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        """In the thread."""
        try:
            self._work()
        except Exception as error:
            self.error = error
        finally:
            del self._work  # and all that it holds, before the thread counts as ended

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it has ended, at the latest after some seconds.

        A process may end after that, and not before: the interpreter aborts if a thread lets go of
        arrays while it shuts down.
        """
        self.join(timeout)
        return not self.is_alive()
