"""One trainer per run folder."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from patch_diffusion.errors import InputError

LOCK_FILE = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other process can train into the folder.

    The operating system frees the lock when the process ends, however it ends, so a killed run leaves none behind.
    Where it has no such locks (Windows), there is none.

    Raises:
        InputError: another process holds the lock; which one.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (folder / LOCK_FILE).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise InputError(
                f"{folder} is being trained by {holder}: wait for it, stop it, or choose another folder"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield
