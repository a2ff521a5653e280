"""Processes of a distributed training: starting them without torchrun or a scheduler, and reporting errors once."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import get_context
from typing import Any

from patch_diffusion.errors import InputError


def started_by_launcher() -> bool:
    """True if a launcher such as torchrun started this process, according to its environment variables."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_processes(num: int, function: Callable[..., Any], *arguments: Any) -> None:
    """Run a function in ``num`` processes that can communicate, and wait for them.

    Args:
        num: the number of processes.
        function: a function that can be imported by name, like the arguments' classes.

    Raises:
        InputError: one of the processes raised an `InputError`, or died; the others are stopped.
        KeyboardInterrupt: the processes were interrupted and have saved.
    """
    from torch.multiprocessing.spawn import ProcessExitedException, start_processes

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        answers = get_context("spawn").SimpleQueue()
    except OSError as error:
        raise InputError(
            f"several processes cannot be started ({error.strerror}): make room in /dev/shm, in a container by "
            "--shm-size, or train with one process"
        ) from None
    context = start_processes(
        _one_process, (num, port, answers, function, arguments), num, join=False, start_method="spawn"
    )
    assert context is not None
    started: list[Any] = context.processes

    def pass_on(number: int, *_: object) -> None:
        for process in started:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, number)

    # Ctrl-C reaches all processes of a terminal by itself, but SIGTERM reaches only this one, which passes it on.
    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous = {
            signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on),
            signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
        }
    try:
        while not context.join():
            pass
    except ProcessExitedException as error:
        raise InputError(f"process {error.error_index} of the run died ({error})") from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        reasons = []
        while not answers.empty():
            reasons.append(answers.get())
        if "interrupted" in reasons:
            raise KeyboardInterrupt
        if reasons:
            raise reasons[0]


def _one_process(
    rank: int, num: int, port: int, answers: Any, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num),
        "LOCAL_WORLD_SIZE": str(num),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        function(*arguments)
    except KeyboardInterrupt:
        answers.put("interrupted")
    except InputError as error:
        answers.put(error)
        raise SystemExit(1) from None


# A process that ended is noticed at once, since its connections close. A machine that lost its power or its network
# closes none, so it is given up after this time, which is also the longest delay between the first and the last start.
GIVEN_UP_AFTER = timedelta(minutes=10)


@contextmanager
def explain_lost_peer() -> Iterator[None]:
    """Turn a failed communication with other processes in the with block into an `InputError`; also a decorator.

    Raises:
        InputError: another process is gone or does not answer. Other errors are passed on.
    """
    try:
        yield
    except RuntimeError as error:
        from torch.distributed import DistError

        if not isinstance(error, DistError) and "gloo" not in str(error):
            raise
        raise InputError(
            f"another process of this run is gone or does not answer ({_reason(error)}): see what it said last; the "
            "same command continues from the last checkpoint, with as many processes as there are"
        ) from None


def _reason(error: RuntimeError) -> str:
    """Return the first sentence of an error message, without the position in the library's source code."""
    text = re.sub(r"^\[[^\]]*\.(cc|cpp|h):\d+\]\s*", "", str(error).strip())
    return re.split(r"\.\s|\n", text, maxsplit=1)[0].rstrip(".")


# A launcher ends the other processes of a machine within a tenth of a second after the first one fails.
_SECONDS_TO_LISTEN = 3.0


def is_first() -> bool:
    """True if this process is rank 0, which reports results."""
    return os.environ.get("RANK", "0") == "0"


def listen() -> None:
    """Wait before this process reports an error, so that rank 0 of this machine can report it first.

    If rank 0 has the same error, the launcher ends this process meanwhile; otherwise this process then reports its own.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(_SECONDS_TO_LISTEN)
