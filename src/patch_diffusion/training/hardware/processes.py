"""Several processes on this machine, for those who do not start them with torchrun or a cluster's scheduler."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

from torch.multiprocessing.spawn import ProcessExitedException, start_processes

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
