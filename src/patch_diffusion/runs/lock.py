"""The lock of a run folder, which lets only one process train into it."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from patch_diffusion.errors import InputError

LOCK_FILE = ".lock"

_SECONDS_FOR_LOOKERS, _SECONDS_BETWEEN = 10.0, 0.002  # to wait, and between tries, while `holder` has it


@contextmanager
def locked(folder: Path) -> Iterator[Callable[[], bool]]:
    """Hold the lock of a run folder inside the with block, so that no other process can train into it.

    The operating system frees the lock when the process ends, however it ends, so a killed run leaves none behind.
    On Windows, which has no such locks, nothing is locked.

    The with block gets a function that returns True as long as the folder is the one that was locked: it was neither
    deleted nor moved away, and no other has taken its place.

    Raises:
        InputError: another process holds the lock; the message names it.
    """
    if sys.platform == "win32":
        yield folder.is_dir
        return
    with (folder / LOCK_FILE).open("a+", encoding="utf-8") as file:
        if not _taken(file):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise InputError(f"{folder} is being trained by {holder}: wait for it, stop it, or choose another folder")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield lambda: _is_at(file, folder / LOCK_FILE)


def holder(folder: Path) -> str | None:
    """Return the process that trains into a run folder, such as "process 123 on name"; None if there is none known.

    The function takes a shared lock and releases it at once. A trainer that starts at this moment waits meanwhile.
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


def _is_at(file: TextIO, path: Path) -> bool:
    """Return True if an open file is the one that lies at a path now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _taken(file: TextIO) -> bool:
    """Take the exclusive lock of a file; wait while `holder` has it, and return False if a trainer has it."""
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
