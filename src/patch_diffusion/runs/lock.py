"""The lock of a run folder, which lets only one process train into it."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from patch_diffusion.errors import InputError

LOCK_FILE = ".lock"
HOLDER_FILE = ".holder.lock"
"""The file that names who has the lock: on Windows the lock itself cannot be read meanwhile."""

_SECONDS_FOR_LOOKERS, _SECONDS_BETWEEN = 3.0, 0.002  # to wait, and between tries, while `holder` has it


@contextmanager
def locked(folder: Path) -> Iterator[Callable[[], bool]]:
    """Hold the lock of a run folder inside the with block, so that no other process can train into it.

    The operating system frees the lock when the process ends, however it ends, so a killed run leaves none behind.

    The with block gets a function that returns True as long as the folder is the one that was locked: it was neither
    deleted nor moved away, and no other has taken its place.

    Raises:
        InputError: another process holds the lock; the message names it.
    """
    path, named = folder / LOCK_FILE, folder / HOLDER_FILE
    lock, found = FileLock(path, thread_local=False), holder(folder)
    try:
        if found is None:
            lock.acquire(timeout=_SECONDS_FOR_LOOKERS, poll_interval=_SECONDS_BETWEEN)
    except (Timeout, NotImplementedError):  # the latter where the file system has no locks
        found = _name(folder)
    if found is not None:
        raise InputError(f"{folder} is being trained by {found}: wait for it, stop it, or choose another folder")
    own = path.stat()

    def is_ours() -> bool:
        try:
            return os.path.samestat(own, path.stat())
        except OSError:
            return False

    try:
        named.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield is_ours
    finally:
        with suppress(OSError):  # a file that is read just now stays, on Windows
            if is_ours():
                named.unlink()
        lock.release()


def holder(folder: Path) -> str | None:
    """Return the process that trains into a run folder, such as "process 123 on name"; None if there is none known.

    The function takes the lock and releases it at once; as a shared one, where it can, which needs no permission to
    write. A trainer that starts at this moment waits meanwhile.
    """
    path = folder / LOCK_FILE
    try:
        if sys.platform == "win32":
            if path.exists():
                FileLock(path).acquire(0).lock.release()
        else:
            import fcntl

            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, Timeout):
        return _name(folder)
    except OSError:
        pass
    return None


def _name(folder: Path) -> str:
    for name in (HOLDER_FILE, LOCK_FILE):  # the latter of a trainer of an earlier version
        with suppress(OSError):
            if found := (folder / name).read_text(encoding="utf-8", errors="replace").strip():
                return found
    return "another process"
