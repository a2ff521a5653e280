"""A background thread that writes checkpoints while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class BackgroundWriter:
    """A background thread that runs one task at a time; an error of a task is raised by the next `start` or `wait`."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._last: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """True if a task is running in the background."""
        return self._last is not None and not self._last.done()

    def start(self, task: Callable[[], None]) -> None:
        """Start a task in the background, once the previous task is done.

        Raises:
            OSError: the previous task failed; the new one is not started.
        """
        self.wait()
        self._last = self._pool.submit(task)

    def wait(self) -> None:
        """Wait until no task is running.

        Raises:
            OSError: the last task failed; this is raised only once.
        """
        last, self._last = self._last, None
        if last is not None:
            last.result()
