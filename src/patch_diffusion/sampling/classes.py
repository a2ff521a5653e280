"""A class that is asked for by its name, or by its place among the classes of a model."""

from __future__ import annotations

from collections.abc import Sequence

from patch_diffusion.errors import InputError, decimal, did_you_mean

CLASS = "class"
"""The name of the class of an image among its conditions."""

_MOST_NAMED = 5  # most classes that an error names


def class_place(wanted: int | str, names: Sequence[str], num: int) -> tuple[int, str]:
    """Return the place of a class among those of a model, and a note if it could have meant another; "" if not.

    Args:
        wanted: the name of the class, or else its place; so 3 is the class that is named 3, if there is one.
        names: the names of the model's classes in order, if they have any.
        num: the number of the model's classes.

    Raises:
        InputError: there is no such class.
    """
    if not num:
        raise InputError("this model was trained without classes, so its images have none")
    text = str(wanted)
    number = decimal(text) if text.isascii() else None
    if text in names:
        place = list(names).index(text)
        if number is None or number == place or number >= num:
            return place, ""
        return place, f"class {text} is taken as a name; class number {text} is {names[number]}"
    if number is None:
        raise InputError(f"there is no class '{text}'" + (did_you_mean(text, names) if names else ": give its number"))
    if number >= num:
        raise InputError(no_place(number, names, num))
    return number, ""


def no_place(number: int, names: Sequence[str], num: int) -> str:
    """Return the words of an error: a model has no class in a place."""
    named = f" ({', '.join(names[:_MOST_NAMED])}{', ...' if len(names) > _MOST_NAMED else ''})" if names else ""
    return f"class {number} does not exist: there are classes 0 to {num - 1}{named}"
