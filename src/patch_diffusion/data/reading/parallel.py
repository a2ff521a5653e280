"""One task for each of many things, in threads, with results in order; and how far it has come."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import track

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
    hidden = not (show and console.is_terminal)
    yield from track(items, what, num, console=console, transient=True, disable=hidden)


def _in_order(task: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[T, R | Exception]]:
    def guarded(item: T) -> tuple[T, R | Exception]:
        try:
            return item, task(item)
        # Readers raise many kinds of errors on broken files.
        except Exception as error:
            return item, error

    num_threads = os.cpu_count() or 1
    with ThreadPoolExecutor(num_threads) as pool:
        waiting: deque[Future[tuple[T, R | Exception]]] = deque()
        for item in items:
            waiting.append(pool.submit(guarded, item))
            if len(waiting) > 8 * num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
