"""Handling of Ctrl-C between two training steps, never inside one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT or SIGTERM sets, so that a step can finish; the second acts as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread can handle signals
        yield event
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.getsignal(number) for number in signals}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def stop(*_: object) -> None:
        event.set()
        restore()

    for number in signals:
        signal.signal(number, stop)
    try:
        yield event
    finally:
        restore()
