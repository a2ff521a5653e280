"""Text without what is private: paths, and the names of the user and of the machine."""

from __future__ import annotations

import getpass
import os
import platform
import re
from collections.abc import Iterator
from contextlib import suppress

HIDDEN = "..."
"""The text that stands for what is private."""

_PATH = re.compile(r"(?<![\w./\\])(?:[A-Za-z]:[\\/]|~?/|\\\\)[^\s'\"<>|,;()\[\]]+")
_SHORTEST_VALUE = 6  # characters of an environment variable; shorter ones are words such as "1" and "true"


def scrubbed(text: str) -> str:
    """Return a text without paths, names of user and machine, and values of environment variables.

    >>> scrubbed("cannot open '/home/anna/photos/1.png' at 12 images/s")
    "cannot open '...' at 12 images/s"
    """
    for word in sorted(set(_private_words()), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", HIDDEN, text)
    return _PATH.sub(HIDDEN, text)


def _private_words() -> Iterator[str]:
    """Yield the words that are private on this machine, but for paths, which have a form of their own."""
    host = platform.node()
    yield from filter(None, (host, host.partition(".")[0]))
    with suppress(OSError, KeyError, ImportError):  # a container may know no name of its user
        yield getpass.getuser()
    for value in os.environ.values():
        if len(value) >= _SHORTEST_VALUE and not value.isdecimal():
            yield value
