"""A thread pool that runs one task per item and gives the results in order, and a progress bar."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

from patch_diffusion.processes import cores

_MOST_AT_ONCE = 16

T = TypeVar("T")
R = TypeVar("R")


def in_order(
    task: Callable[[T], R], items: Sequence[T], what: str, *, show: bool = False
) -> Iterator[tuple[T, R | Exception]]:
    """Run a task on each item in a thread pool, and yield each item with its result or exception, in order.

    Only as many results as keep the threads busy are held in memory, whatever the number of items. ``what`` is the
    caption of the progress bar, see `progress`.
    """
    yield from progress(_in_order(task, items), len(items), what, show=show)


def results_in_order(task: Callable[[T], R], items: Sequence[T], what: str, *, show: bool = False) -> Iterator[R]:
    """Run a task on each item as `in_order` does, and yield only the results; the first exception is raised."""
    for _, found in in_order(task, items, what, show=show):
        if isinstance(found, Exception):
            raise found
        yield found


def progress(items: Iterable[T], num: int | None, what: str, *, show: bool = False) -> Iterator[T]:
    """Yield the items, and show a progress bar if ``show`` is true and stderr is a terminal."""
    console = Console(stderr=True)
    if not (show and console.is_terminal):
        yield from items
        return
    # This is not rich's `track`, because that waits for a thread at its end, see below.
    columns = ("{task.description}", BarColumn(), TaskProgressColumn(show_speed=True), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=num)
        for item in items:
            yield item
            bar.advance(task)


def _in_order(task: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[T, R | Exception]]:
    def guarded(item: T) -> tuple[T, R | Exception]:
        try:
            return item, task(item)
        # Image readers raise many kinds of errors on broken files.
        except Exception as error:
            return item, error

    def several(start: int) -> list[tuple[T, R | Exception]]:
        return [guarded(items[index]) for index in range(start, min(start + at_once, len(items)))]

    num_threads = cores()
    # Handing over a small image takes half as long as decoding it, so threads get several at once.
    at_once = max(1, min(_MOST_AT_ONCE, len(items) // (8 * num_threads)))
    pool = ThreadPoolExecutor(num_threads)
    try:
        waiting: deque[Future[list[tuple[T, R | Exception]]]] = deque()
        for start in range(0, len(items), at_once):
            waiting.append(pool.submit(several, start))
            if len(waiting) > 2 * num_threads:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        # A generator that is not exhausted is closed when garbage is collected, by any thread, such as one that is
        # just starting and holds a lock of `threading`. Waiting there for the pool's threads would be a deadlock.
        pool.shutdown(wait=False, cancel_futures=True)
