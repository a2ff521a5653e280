"""The classes of images: those that occur, in order, and the places of their names among others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from patch_diffusion.errors import InputError

Labels = tuple[NDArray[np.int64], tuple[str, ...]]
"""Class numbers, one per image, and the names of the classes by number, empty if they are named by their numbers."""

_INTEGER = re.compile(r"-?[0-9]{1,4000}")  # of more digits Python makes no number
_NUMBER = re.compile(r"-?[0-9]{1,4000}(\.[0-9]{1,4000})?")
_FEW_TO_JUDGE = 20  # of fewer images, any number may have a class of its own


def ordered(names: Iterable[str]) -> list[str]:
    """Return different names in numeric order if all are numbers, else in alphabetical order."""
    names = set(names)
    if all(map(_NUMBER.fullmatch, names)):
        return sorted(names, key=lambda name: (Decimal(name), name))
    return sorted(names)


def occurring(numbers: NDArray[np.int64], names: Sequence[str] = ()) -> Labels:
    """Count the classes that occur from 0 on, in the order of their numbers, or of names that are all integers.

    Args:
        numbers: class numbers of at least 0, one per image.
        names: the names of the classes by number; empty if they are named by their numbers.

    Returns:
        Labels from 0 to classes - 1, and the names of the classes; no names if each is the label already.

    >>> occurring(np.array([30, 10, 30]))
    (array([1, 0, 1]), ('10', '30'))
    """
    found, labels = np.unique(numbers, return_inverse=True)
    if not names:
        dense = not len(found) or found[-1] == len(found) - 1
        return (numbers, ()) if dense else (labels.astype(np.int64), tuple(map(str, found.tolist())))
    chosen = [str(names[number]) for number in found.tolist()]
    in_order = ordered(chosen) if all(map(_INTEGER.fullmatch, chosen)) else chosen
    places = {name: place for place, name in enumerate(in_order)}
    return np.array([places[name] for name in chosen], np.int64)[labels], tuple(in_order)


def too_many(num_classes: int, num_images: int) -> bool:
    """True if there are more classes than half of the images, as if labels were ids of images."""
    return num_images >= _FEW_TO_JUDGE and 2 * num_classes > num_images


def refuse_many_classes(num_classes: int, num_images: int) -> None:
    """Raise InputError if labels look like ids of images, not like classes."""
    if too_many(num_classes, num_images):
        raise InputError(
            f"{num_images:,} images have {num_classes:,} different labels: these look like ids, not classes; use "
            "--data.classes False, or name the classes by --data.labels"
        )


def places_among(own: Sequence[str], names: Sequence[str], num: int) -> list[int] | None:
    """Return the places of class names among the classes of a model; None if it lacks one.

    Args:
        own: the names of the classes to find.
        names: the names of the model's classes; empty if they are the numbers from 0 on, as of earlier versions,
            which counted all numbers up to the largest.
        num: the number of the model's classes.
    """
    if num == 1:  # earlier versions took a folder around everything for the one class
        return [0] * len(own)
    if names:
        places = {name: place for place, name in enumerate(names)}
        found = [places.get(name, num) for name in own]
    elif all(map(_INTEGER.fullmatch, own)):
        found = [int(name) if int(name) >= 0 else num for name in own]
    else:
        found = list(range(len(own))) if len(own) == num else [num]
    return found if all(place < num for place in found) else None
