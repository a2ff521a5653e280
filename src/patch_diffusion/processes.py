"""Several processes on this machine, for those who do not start them with torchrun or a cluster's scheduler."""

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
    """Whether this is one of the processes of a run already, by torchrun's variables."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def run_processes(num: int, function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function in ``num`` processes that can talk to each other, and wait for them.

    Args:
        num: how many.
        function: importable by name, like the arguments' classes.

    Raises:
        InputError: what one of them raised as such; the others are stopped.
        KeyboardInterrupt: they were interrupted and have saved.
    """
    from torch.multiprocessing.spawn import ProcessExitedException, start_processes

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    answers = get_context("spawn").SimpleQueue()
    context = start_processes(
        _one_process, (num, port, answers, function, arguments), num, join=False, start_method="spawn"
    )
    assert context is not None
    started: list[Any] = context.processes

    def pass_on(number: int, *_: object) -> None:
        for process in started:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, number)

    # Ctrl-C reaches all processes of a terminal by itself; SIGTERM comes to this one alone.
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
            raise InputError(reasons[0])


def _one_process(
    rank: int, num: int, port: int, answers: Any, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        function(*arguments)
    except KeyboardInterrupt:
        answers.put("interrupted")
    except InputError as error:
        answers.put(str(error))
        raise SystemExit(1) from None


# One that ended is noticed at once, since its connections close. A machine that lost its power or its network closes
# none: it is given up after this time, which is also how much later than the first one the last may start.
GIVEN_UP_AFTER = timedelta(minutes=10)


@contextmanager
def explain_lost_peer() -> Iterator[None]:
    """Around what needs the other processes; also a decorator.

    Raises:
        InputError: another process is gone or does not answer. Other errors are left as they are.
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
    """Its first sentence, without the place in the library's source."""
    text = re.sub(r"^\[[^\]]*\.(cc|cpp|h):\d+\]\s*", "", str(error).strip())
    return re.split(r"\.\s|\n", text, maxsplit=1)[0].rstrip(".")


# Launchers end the other processes of a machine within a tenth of a second of the first that fails.
_SECONDS_TO_LISTEN = 3.0


def is_first() -> bool:
    """Whether this process is the one that tells results."""
    return os.environ.get("RANK", "0") == "0"


def listen() -> None:
    """Before an error is told: let the first process of this machine tell it.

    Where it has the same to tell, the launcher ends this process meanwhile; where it has not, this one tells.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(_SECONDS_TO_LISTEN)
