"""Records: dataclasses made of what a file holds, of the right types and within limits, or an error that says where.

Whoever reads a file of a run makes a record of it at once, so that nobody after has to look again. It imports no heavy
library before it is used.
"""

from __future__ import annotations

import functools
import reprlib
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from patch_diffusion.errors import InputError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

MOST_IN_A_LIST = 1000
"""The most entries of a list of numbers that is limited, see `check_limits`."""


class Strict:
    """Base of dataclasses that pydantic reads: an unknown name, or a number that is not finite, is an error."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}
    """By the name that pydantic looks for."""


def record_of(kind: type[T], content: Any, where: str, name: str = "") -> T:
    """Return a record of a kind, a dataclass, made of the content of a file.

    Args:
        kind: the dataclass, or another type that pydantic knows.
        content: dicts, lists, texts and numbers, as JSON and YAML hold them.
        where: the name of the file or source, with which an error begins.
        name: the full name of the content in it; empty for all of it.

    Raises:
        InputError: some value is missing, unknown or of another type; the error names it.
    """
    from pydantic import ValidationError

    try:
        return _validator(kind).validate_python(content)
    except UnicodeEncodeError as error:
        raise InputError(f"{where} has half of a character, a surrogate: {ascii(error.object)[:200]}") from None
    except ValidationError as error:
        errors = [(_name_of(found["loc"], content, name), found) for found in error.errors(include_url=False)]
        first, found = errors[0]
        # A value that may have several types has one error for each of them.
        same = [each["msg"].removeprefix("Value error, ") for other, each in errors if other == first]
        reasons = ", or ".join(dict.fromkeys(reason[:1].lower() + reason[1:] for reason in same))
        if found["type"] == "missing":
            raise InputError(f"{where}: {first} is missing", option=first) from None
        told = f"{first} is {in_short(found['input'])}: " if first else ""
        raise InputError(f"{where}: {told}{reasons[:200]}", option=first) from None


def check_limits(values: Mapping[str, Any], limits: Mapping[str, tuple[float, float]], where: str = "") -> None:
    """Raise an `InputError` that names the first of the values that is below its least or above its most.

    Limits of a list are those of each of its numbers. None, text and values without limits are passed over.
    """
    for name, (least, most) in limits.items():
        value = values.get(name)
        several = value if isinstance(value, list | tuple) else [value]
        begin = ": ".join(filter(None, (where, name)))
        if len(several) > MOST_IN_A_LIST:
            raise InputError(f"{begin} has at most {MOST_IN_A_LIST:,} numbers, not {len(several):,}", option=name)
        for number in several:
            if isinstance(number, int | float) and not least <= number <= most:
                limit = f"at least {least:,}" if number < least else f"at most {most:,}"
                raise InputError(f"{begin} is {limit}, not {in_short(number)}", option=name)


def in_short(value: Any) -> str:
    """Return a value as Python writes it, cut in the middle if it is long, and without building all of a deep one."""
    return _short.repr(value)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60


@functools.cache
def _validator(kind: Any) -> TypeAdapter[Any]:
    """Return pydantic's validator of a type, made once, since making it takes longer than validating."""
    from pydantic import ConfigDict, TypeAdapter

    # Dataclasses have their own settings.
    of_its_own: bool = is_dataclass(kind)
    return TypeAdapter[Any](kind, config=None if of_its_own else ConfigDict(allow_inf_nan=False))


def _name_of(location: tuple[str | int, ...], content: Any, name: str) -> str:
    """Return the full name of the value that a validation error is about, without the value types at its end."""
    parts = [name] if name else []
    for place, part in enumerate(location):
        missing = place == len(location) - 1 and isinstance(content, dict)
        if isinstance(content, dict) and part in content:
            content = content[part]
        elif not isinstance(part, int) and not missing:
            break
        parts.append(str(part))
    return ".".join(parts)
