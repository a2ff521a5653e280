"""The error for mistakes of the user, and helpers that word its messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import import_module
from typing import Any


class InputError(ValueError):
    """An error for options, data or files of the user that cannot be used.

    The message is one sentence that says what is wrong, where, and what to do; the command line prints it without a
    traceback.

    >>> try:
    ...     PatchSchedule(whole=2)
    ... except InputError as error:
    ...     print(error)
    patches.whole is a probability between 0 and 1, not 2
    """


def reason_of(error: BaseException) -> str:
    """Return an error as a part of a sentence: its message in one line, after its type if that is not a usual one."""
    text = " ".join(str(error).split())[:200]
    return text if isinstance(error, InputError | OSError) else f"{type(error).__name__}: {text}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of an error sentence: the nearest known word, ``"; did you mean 'heun'?"``, or all known words."""
    known = list(known)
    nearest = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{nearest[0]}'?" if nearest else f"; choose from {', '.join(known)}"


def need(library: str, extra: str, what: str) -> Any:
    """Import and return an optional library, or raise an `InputError` that says how to install it.

    Args:
        library: the name of the library.
        extra: the extra of this package that installs it.
        what: the feature that needs it, with which the error message begins.
    """
    try:
        return import_module(library)
    except ImportError:
        raise InputError(f"{what} needs {library}: pip install 'patch_diffusion[{extra}]'") from None
