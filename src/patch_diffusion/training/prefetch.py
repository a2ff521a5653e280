"""A thread that prepares the next item while the device computes with the one before."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from patch_diffusion.errors import InputError

SECONDS_TO_A_NOTE = 60.0
"""Seconds without an item after which the user is told, for instance because a network disk does not answer."""

SECONDS_TO_THE_END = 1800.0
"""Seconds without an item after which training ends with an error."""


class _Follows(Protocol):
    """The interface of an item that knows the key of the next item."""

    @property
    def following(self) -> Any:
        """The key of the next item."""
        ...


Key = TypeVar("Key")
Item = TypeVar("Item", bound=_Follows)


class Prefetcher(Generic[Key, Item]):
    """A preparer of items, such as batches, in a thread, one item ahead. An item is a function of its key alone.

    Args:
        make: function that prepares the item of a key.
        where: function that names what is being read, for messages.
        note: function that reports a message to the user.
        fits: function that tells whether an item that was prepared ahead fits a key, as equal keys may hold different
            guesses that equality ignores; None: it always does.

    Attributes:
        waited: the seconds that were waited for items.
    """

    def __init__(
        self,
        make: Callable[[Key], Item],
        where: Callable[[], str] = lambda: "the images",
        note: Callable[[str], None] = lambda text: None,
        fits: Callable[[Item, Key], bool] | None = None,
    ) -> None:
        self._make, self._where, self._note, self._fits = make, where, note, fits
        self.waited: float = 0.0
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] | None = None
        self._ahead: tuple[Key, Future[Item]] | None = None

    def get(self, key: Key) -> Item:
        """Return the item of a key, and start to prepare the next item in the thread.

        Raises:
            InputError: nothing came for half an hour, or as `make` raises it.
        """
        if self._ahead is None or self._ahead[0] != key:  # the first item, or another one was prepared ahead
            self._ahead = (key, self._submit(key))
        future = self._ahead[1]
        item = future.result() if future.done() else self._wait(future)
        if self._fits is not None and not self._fits(item, key):
            item = self._wait(self._submit(key))
        self._ahead = (item.following, self._submit(item.following))
        return item

    def forget(self) -> None:
        """Drop the item that was prepared ahead, since `make` would now make another."""
        self._ahead = None

    def _submit(self, key: Key) -> Future[Item]:
        """Queue the preparation of a key's item in the thread, and return its future."""
        if self._tasks is None:
            self._tasks = SimpleQueue()
            threading.Thread(target=_work, args=(self._tasks,), name="preparing batches", daemon=True).start()
            # The thread holds the images, so it ends when this object is gone.
            weakref.finalize(self, self._tasks.put, None)
        future: Future[Item] = Future()
        make = self._make
        self._tasks.put((future, lambda: make(key)))
        return future

    def _wait(self, coming: Future[Item]) -> Item:
        waited, patience = 0.0, SECONDS_TO_A_NOTE
        while True:
            began = time.monotonic()
            wait([coming], patience)
            self.waited += time.monotonic() - began
            if coming.done():
                return coming.result()
            waited += patience
            if waited >= SECONDS_TO_THE_END:
                raise InputError(
                    f"no data from {self._where()} for {waited / 60:,.0f} minutes: is the disk there? The same command "
                    "continues from the last checkpoint"
                )
            self._note(f"waiting for data since {waited:,.0f} s: {self._where()}")
            patience = min(10 * SECONDS_TO_A_NOTE, SECONDS_TO_THE_END - waited)


def _work(tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]) -> None:
    while (asked := tasks.get()) is not None:
        future, task = asked
        try:
            future.set_result(task())
        # Any error is passed on to the caller that waits for the item.
        except BaseException as error:
            future.set_exception(error)
        del asked, future, task  # so that the thread does not keep the last batch while it waits
