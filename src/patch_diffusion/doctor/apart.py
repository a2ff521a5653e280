"""A function in a process of its own: it may fail, crash or hang without harm to the one that asks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from patch_diffusion.doctor.private import scrubbed
from patch_diffusion.errors import InputError, reason_of
from patch_diffusion.files import read_json, to_json, write_json, write_text

# The path to import from is that of the process that asks, before anything is imported by it.
_CODE = "import sys; sys.path[:] = sys.argv[2:]; from patch_diffusion.doctor.apart import answer; answer(sys.argv[1])"
_ASKED, _ANSWER = "asked.json", "answer.json"

# What is compiled or decoded comes to lie in the folder of the process, and launchers are none of its business.
_CACHES = ("TMPDIR", "TEMP", "TMP", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "PATCH_DIFFUSION_CACHE")
_OF_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class AbsentError(Exception):
    """This machine lacks what a check is about; the message says what."""


class FailedError(Exception):
    """A check found that something does not work; the message says what."""


@dataclass(frozen=True)
class Outcome:
    """The end of a function that ran in a process of its own.

    Args:
        value: what it returned, as JSON holds it.
        reason: one line that says why it returned nothing; empty if it did. It names no path, user or machine.
        absent: True if the reason is that the machine lacks what it is about.
        late: True if the reason is that it took too long.
        seconds: the time it took, the start of the process included.
    """

    value: Any = None
    reason: str = ""
    absent: bool = False
    late: bool = False
    seconds: float = 0.0


def apart(function: Callable[..., Any], *arguments: Any, within: float, **options: Any) -> Outcome:
    """Call a function in a process of its own, which is ended when the time is over, and return how it went.

    Args:
        function: a function that can be imported by name.
        arguments, options: values that JSON can store; so is what the function returns.
        within: the longest time that it may take, in seconds.

    >>> import math
    >>> apart(math.gcd, 12, 18, within=60).value
    6
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="doctor-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        call = [function.__module__, function.__qualname__]
        write_json(folder / _ASKED, {"call": call, "arguments": arguments, "options": options})
        environment = {key: value for key, value in os.environ.items() if key not in _OF_LAUNCHERS}
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _CODE, name, *sys.path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment | dict.fromkeys(_CACHES, name),
            start_new_session=True,
        )
        late = False
        try:
            reason = _ending(process.wait(within))
        except subprocess.TimeoutExpired:
            late, reason = True, f"it took more than {within:.0f} s, and was ended"
        finally:
            _end(process)
        try:
            found = read_json(folder / _ANSWER)
        except InputError:  # it did not come so far
            found = {"reason": reason}
    reason = scrubbed(" ".join(str(found.get("reason", "")).split()))
    return Outcome(found.get("value"), reason, bool(found.get("absent")), late, time.monotonic() - began)


def answer(folder: str) -> None:
    """Call the function that a folder's file asks for, and write how it went to another; for `apart`."""
    asked = read_json(Path(folder) / _ASKED)
    module, name = asked["call"]
    found: dict[str, Any]
    try:
        function: Any = import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
        found = {"value": function(*asked["arguments"], **asked["options"])}
        to_json(found)
    except (AbsentError, FailedError) as error:
        found = {"reason": str(error), "absent": isinstance(error, AbsentError)}
    except Exception as error:
        found = {"reason": reason_of(error)}
    write_text(Path(folder) / _ANSWER, to_json(found))


def _ending(status: int) -> str:
    """Return how a process ended that wrote no answer."""
    if status >= 0:
        return f"its process ended with status {status}"
    with suppress(ValueError):
        return f"its process crashed ({signal.Signals(-status).name})"
    return f"its process was ended by signal {-status}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those it started."""
    with suppress(OSError):  # there is none left
        if sys.platform != "win32":
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
    process.wait()
