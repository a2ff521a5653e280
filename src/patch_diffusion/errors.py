"""The error for mistakes of the user, and checks that word its messages."""

from __future__ import annotations

import difflib
import math
import operator
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from numbers import Real
from typing import Any

_CONTROLS = {
    code: ascii(chr(code))[1:-1]
    for codes in (range(32), range(127, 160), range(0x2028, 0x202F), range(0x2066, 0x206A))
    for code in codes
}
"""Characters that a terminal obeys, which end a line or turn its direction, and what stands for them."""


def shown(text: str, *, lines: bool = False) -> str:
    """Return text, such as with names that others chose, for a terminal or a log: control characters are escaped.

    With ``lines`` the ends of lines stay as they are.

    >>> shown("a\\x1b[31mb\\n.png")
    'a\\\\x1b[31mb\\\\n.png'
    """
    return "\n".join(map(shown, text.split("\n"))) if lines else text.translate(_CONTROLS)


class InputError(ValueError):
    """An error for options, data or files of the user that cannot be used.

    The message is one sentence that says what is wrong, where, and what to do, in one line, see `shown`; the command
    line prints it without a traceback. ``option`` is the full name of the option of a `Config` or of `Sampling` at
    fault, if it is one.

    >>> try:
    ...     PatchSchedule(whole=2)
    ... except InputError as error:
    ...     print(error.option, "|", error)
    patches.whole | patches.whole is a probability between 0 and 1, not 2
    """

    def __init__(self, message: str = "", *, option: str | None = None) -> None:
        super().__init__(shown(message))
        self.option = option

    def reworded(self, message: str) -> InputError:
        """Return an error with another message about the same option."""
        return InputError(message, option=self.option)


class Note(UserWarning):
    """A warning that is a sentence for the user, which the command line prints as it stands."""


@dataclass(frozen=True)
class Checked:
    """A mark on the type of an option: ``check`` raises an `InputError` if a given value cannot be right.

    The command line calls it before it imports libraries that take long, so it imports none.
    """

    check: Callable[[Any], object]


def option_error(option: str, is_wrong: str) -> InputError:
    """Return the error for one option, whose full name begins the sentence."""
    return InputError(f"{option} {is_wrong}", option=option)


@contextmanager
def about(option: str) -> Iterator[None]:
    """Name the option at fault in each `InputError` of the with block that names none; also a decorator."""
    try:
        yield
    except InputError as error:
        error.option = error.option or option
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error, of Python, NumPy or torch on any device, says that memory has run out."""
    names = {kind.__name__ for kind in type(error).__mro__}  # torch is not imported for its error alone
    if names & {"MemoryError", "OutOfMemoryError"}:
        return True
    # Of the CPU; of an Apple GPU, and of what CUDA takes beside torch's own memory.
    words = ("can't allocate memory", "backend out of memory", "CUDA error: out of memory")
    return "RuntimeError" in names and any(each in str(error) for each in words)


def reason_of(error: BaseException) -> str:
    """Return an error as a part of a sentence: its message in one line, after its type if that is not a usual one."""
    text = " ".join(str(error).split())[:200]
    return text if isinstance(error, InputError | OSError) else f"{type(error).__name__}: {text}"


class NotFiniteError(InputError):
    """An error for images that hold NaN or infinity; ``finite`` says of each image of the batch whether it does not."""

    finite: Sequence[bool] = ()

    @classmethod
    def of(cls, finite: Sequence[bool], names: Sequence[str] = ()) -> NotFiniteError:
        """Return the error for a batch of images, which names those that are not finite if they have names."""
        lost = [place for place, is_finite in enumerate(finite) if not is_finite]
        are = "are" if len(lost) > 1 else "is"
        told = f" ({', '.join(names[place] for place in lost[:3])}{', ...' * (len(lost) > 3)})" if names else ""
        error = cls(
            f"{len(lost)} of {len(finite)} images {are} not finite{told}: the weights are damaged or diverged in "
            "training, or guidance or noise levels are too large"
        )
        error.finite = finite
        return error


def whole_number(name: str, value: Any) -> int:
    """Return a whole number, of Python, NumPy or torch, as an int, or raise an `InputError` that names it."""
    try:
        return operator.index(value)
    except TypeError:
        raise InputError(f"{name} is a whole number, not {value!r}", option=None if " " in name else name) from None


def finite_number(name: str, value: Any) -> float:
    """Return a real number, of Python or NumPy, as one of Python, or raise an `InputError` that names it."""
    too_large = isinstance(value, int) and abs(value) > sys.float_info.max  # for `isfinite`
    if not isinstance(value, Real) or too_large or not math.isfinite(value):
        raise InputError(f"{name} is a finite number, not {value!r}", option=None if " " in name else name)
    return value if isinstance(value, int | float) else float(value)


def decimal(text: str) -> int | None:
    """Return the whole number that a text of decimal digits means; None if it is no such text, or is beyond 64 bits.

    Python's own error for thousands of digits is no `InputError`.

    >>> decimal("07"), decimal("-7"), decimal("9" * 5000)
    (7, None, None)
    """
    number = int(text) if text.isdecimal() and len(text) <= 20 else 2**63
    return number if number < 2**63 else None


def checked_seeds(seeds: Iterable[int]) -> Sequence[int]:
    """Return seeds as Python's integers, a range, however long, as it is, or raise an `InputError` that names one."""
    found = seeds if isinstance(seeds, range) else [whole_number("a seed", seed) for seed in seeds]
    for seed in (*found[:1], *found[-1:]) if isinstance(found, range) else found:
        if not 0 <= seed < 2**63:
            raise InputError(f"seeds are integers from 0 to 2^63 - 1, not {seed}")
    return found


def counted(num: int, noun: str) -> str:
    """Return a number with its noun, such as "1 image" or "1,797 images"."""
    return f"{num:,} {noun}{'' if num == 1 else 's'}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of an error sentence: the nearest known word, ``"; did you mean 'heun'?"``, or all known words."""
    known = list(known)
    nearest = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{nearest[0]}'?" if nearest else f"; choose from {', '.join(known)}"


def check_name(kind: str, name: str, known: Collection[str]) -> None:
    """Raise an `InputError` if the value of an option that takes a name, such as a "solver", is not a known one."""
    if name not in known:
        raise InputError(f"there is no {kind} '{name}'{did_you_mean(name, known)}", option=kind)


def check_library(library: str, extra: str, what: str) -> None:
    """Raise the `InputError` of `need` if an optional library is not installed, without importing it."""
    if find_spec(library) is None:
        raise _lacking(library, extra, what)


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
        raise _lacking(library, extra, what) from None


def _lacking(library: str, extra: str, what: str) -> InputError:
    return InputError(f"{what} needs {library}: pip install 'patch_diffusion[{extra}]'")
