"""Who speaks when a launcher has started several processes of one command: one of them, not all in chorus.

Launchers tell a process its number in RANK, and its number on this machine in LOCAL_RANK.
"""

from __future__ import annotations

import os
import time

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
