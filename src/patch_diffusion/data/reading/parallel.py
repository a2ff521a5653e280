"""One task for each of many things, in threads, with results in order; and how far it has come."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

_MOST_AT_ONCE = 16

T = TypeVar("T")
R = TypeVar("R")


def in_order(
    task: Callable[[T], R], items: Sequence[T], what: str, *, show: bool = False
) -> Iterator[tuple[T, R | Exception]]:
    """Each item with its result, or with the exception that came instead, in the order of the items.

    Only as many results as keep the threads busy are held, whatever the number of items.

    Args:
        task: what is done with an item.
        items: in order.
        what: named beside the progress bar.
        show: a progress bar, on a terminal.
    """
    yield from progress(_in_order(task, items), len(items), what, show=show)


def progress(items: Iterable[T], num: int | None, what: str, *, show: bool = False) -> Iterator[T]:
    """The items, with a progress bar on a terminal."""
    console = Console(stderr=True)
    if not (show and console.is_terminal):
        yield from items
        return
    # Not rich's `track`: at its end it waits for a thread, see below.
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
        # Readers raise many kinds of errors on broken files.
        except Exception as error:
            return item, error

    def several(start: int) -> list[tuple[T, R | Exception]]:
        return [guarded(items[index]) for index in range(start, min(start + at_once, len(items)))]

    num_threads = os.cpu_count() or 1
    # To hand over a small picture takes a thread as long as half of its decoding.
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
        # One that is not read to its end is closed whenever garbage is collected, by any thread, such as one that is
        # just starting and holds a lock of `threading`. To wait for the pool's threads there would be to wait forever.
        pool.shutdown(wait=False, cancel_futures=True)
