"""One trainer per run folder."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from patch_diffusion.errors import InputError

LOCK_FILE = ".lock"

_SECONDS_FOR_LOOKERS, _SECONDS_BETWEEN = 10.0, 0.002  # `holder` has the lock for a moment


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other process can train into the folder.

    The operating system frees the lock when the process ends, however it ends, so a killed run leaves none behind.
    Where it has no such locks (Windows), there is none.

    Raises:
        InputError: another process holds the lock; which one.
    """
    if sys.platform == "win32":
        yield
        return
    with (folder / LOCK_FILE).open("a+", encoding="utf-8") as file:
        if not _taken(file):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise InputError(f"{folder} is being trained by {holder}: wait for it, stop it, or choose another folder")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def holder(folder: Path) -> str | None:
    """Who trains into the folder, such as "process 123 on name"; None where nobody does, or where it cannot be known.

    The lock is asked for and given back at once, which a trainer that starts in this moment waits for.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        with (folder / LOCK_FILE).open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return file.read().strip() or "another process"
    except OSError:
        pass
    return None


def _taken(file: TextIO) -> bool:
    """Whether the lock is now ours alone: a trainer has it alone, those who look share it, and they are waited for."""
    import fcntl

    end = time.monotonic() + _SECONDS_FOR_LOOKERS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            pass
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(file, fcntl.LOCK_UN)
        except OSError:
            return False
        if time.monotonic() > end:
            return False
        time.sleep(_SECONDS_BETWEEN)
