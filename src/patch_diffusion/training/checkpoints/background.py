"""Writing while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class BackgroundWriter:
    """Does one thing at a time in a thread. What goes wrong there is reported when it is next asked for anything."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._last: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a task is under way."""
        return self._last is not None and not self._last.done()

    def start(self, task: Callable[[], None]) -> None:
        """Begin a task, once the one before is done.

        Raises:
            OSError: the one before failed; the new one is not begun.
        """
        self.wait()
        self._last = self._pool.submit(task)

    def wait(self) -> None:
        """Return when nothing is under way.

        Raises:
            OSError: the last task failed; told once.
        """
        last, self._last = self._last, None
        if last is not None:
            last.result()
