"""The one error a user's mistake raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import import_module
from typing import Any


class InputError(ValueError):
    """Something given by the user cannot be used.

    The message is one sentence that says what is wrong, where, and what to do; the command line prints it as it is,
    without a traceback.

    >>> try:
    ...     PatchSchedule(whole=2)
    ... except InputError as error:
    ...     print(error)
    patches.whole is a probability between 0 and 1, not 2
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence that names the nearest known word: ``"; did you mean 'heun'?"``, or the whole list."""
    known = list(known)
    nearest = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{nearest[0]}'?" if nearest else f"; choose from {', '.join(known)}"


def need(library: str, source: str) -> Any:
    """The library, or an error that says how it is installed."""
    try:
        return import_module(library)
    except ImportError:
        raise InputError(f"reading {source} needs {library}: pip install 'patch_diffusion[data]'") from None
