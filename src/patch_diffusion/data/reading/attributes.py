"""Attributes of the images of a data set, made of the columns of a CSV, a table or arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patch_diffusion.data.attributes import Attribute, Attributes
from patch_diffusion.data.classes import ordered, refuse_many_classes
from patch_diffusion.data.reading.tables import FILE, columns_of_csv
from patch_diffusion.errors import InputError, did_you_mean, option_error

OPTION = "data.conditions"

_NUMBERS = 0.9  # the share of values that are numbers from which a word among them is a mistake
_FEW_TO_JUDGE = 20  # of fewer images, any numbers may be in order


def attributes_of_csv(
    content: bytes, wanted: Sequence[str], names: Sequence[str], source: str
) -> tuple[Attributes, list[str]]:
    """Return the attributes of images in the columns of a CSV, and notes for the user, see `columns_of_csv`."""
    columns, notes = columns_of_csv(content, wanted, names, source)
    if not columns:
        raise InputError(f"{source} has no column beside {FILE}: add one for each condition", option=OPTION)
    attributes, more = attributes_of_columns(columns, source)
    return attributes, [*notes, *more]


def attributes_of_rows(columns: Mapping[str, Any], num: int, source: str) -> tuple[Attributes | None, list[str]]:
    """Return the attributes of ``num`` images whose values, by name, are in their order, None of none; and notes."""
    for name, values in columns.items():
        if len(values) != num:
            raise option_error(OPTION, f"{name} has {len(values):,} values, and {source} has {num:,} images")
    return attributes_of_columns(columns, source) if columns else (None, [])


def attributes_of_columns(columns: Mapping[str, Any], source: str) -> tuple[Attributes, list[str]]:
    """Return the attributes of images, given the values of all of them by the name of each column; and notes."""
    found = [attribute_of(name, values, source) for name, values in columns.items()]
    described = tuple(column for column, _, _ in found)
    notes = [note for _, _, more in found for note in more]
    return Attributes(described, tuple(values for _, values, _ in found)), notes


def check_columns(wanted: Sequence[str], known: Sequence[str], source: str) -> None:
    """Raise InputError if one of the wanted columns is not a known one of a table."""
    for name in wanted:
        if name not in known:
            raise InputError(f"{source} has no column '{name}'{did_you_mean(name, known)}", option=OPTION)


def attribute_of(name: str, values: Sequence[Any] | NDArray[Any], source: str) -> tuple[Attribute, Tensor, list[str]]:
    """Make an attribute of the values of all images in a column: its description, its values (n, numbers), and notes.

    Numbers, also as text, are continuous, words are categories, and lists of numbers are vectors. An empty text or None
    is "not given".

    Raises:
        InputError: the column has one value only, NaN, a word among numbers, or a word of its own for most images.
    """
    array = values if isinstance(values, np.ndarray) and values.dtype.kind in "biuf" else None
    if array is None and any(isinstance(each, list | tuple | np.ndarray) for each in values):
        array = _vectors(name, values, source)
    if array is not None:
        numbers = torch.from_numpy(np.atleast_2d(array.astype(np.float32).T).T.copy())
        if not numbers.isfinite().all():
            row = int((~numbers.isfinite()).any(dim=1).nonzero()[0])
            raise option_error(OPTION, f"{name}: image {row:,} of {source} has NaN or infinity in it: mend it")
        return _continuous(name, numbers, source)
    texts = ["" if each is None else str(each).strip() for each in values]
    found = [_number(text) for text in texts]
    given = sum(map(bool, texts))
    num = sum(number is not None for number in found)
    if given and num >= _NUMBERS * given:
        finite = [_finite(text, number, name, source) for text, number in zip(texts, found, strict=True)]
        return _continuous(name, torch.tensor(finite)[:, None], source)
    names = ordered(text for text in texts if text)
    if len(names) < 2:
        raise _tells_nothing(name, source, *names)
    try:
        refuse_many_classes(len(names), given)
    except InputError:
        raise option_error(
            OPTION,
            f"{name} in {source} has {len(names):,} different words for {given:,} images: it looks like a name of each "
            "image; leave it out",
        ) from None
    places = {text: float(place) for place, text in enumerate(names)}
    numbers = torch.tensor([places.get(text, math.nan) for text in texts])[:, None]
    return Attribute(name, categories=tuple(names)), numbers, []


def _continuous(name: str, values: Tensor, source: str) -> tuple[Attribute, Tensor, list[str]]:
    given = values[values.isfinite().all(dim=1)].double()
    if not len(given) or bool((given == given[0]).all()):
        raise _tells_nothing(name, source, *[f"{first:g}" for first in given[:1, 0].tolist()])
    deviation = given.std(dim=0, correction=0)
    deviation = deviation.where(deviation > 0, 1)  # a constant place of a vector
    columns = (given.mean(dim=0), deviation, given.amin(dim=0), given.amax(dim=0))
    mean, spread, lowest, highest = (tuple(map(float, column.tolist())) for column in columns)
    notes = []
    if values.shape[1] == 1 and len(given) >= _FEW_TO_JUDGE:
        steps = given[1:, 0] - given[:-1, 0]
        if bool((steps == steps[0]).all()):
            notes.append(f"the condition {name} of {source} numbers the images one by one: it tells nothing of them")
    return Attribute(name, mean=mean, deviation=spread, lowest=lowest, highest=highest), values.float(), notes


def _vectors(name: str, values: Sequence[Any] | NDArray[Any], source: str) -> NDArray[Any]:
    lengths = {len(each) if isinstance(each, list | tuple | np.ndarray) else 1 for each in values}
    try:
        if len(lengths) > 1:
            raise ValueError
        return np.array([np.asarray(each, np.float32) for each in values])
    except (TypeError, ValueError):
        told = " and ".join(map(str, sorted(lengths)[:3]))
        raise option_error(
            OPTION, f"{name} in {source} has vectors of {told} numbers: all need the same length, and numbers only"
        ) from None


def _finite(text: str, number: float | None, name: str, source: str) -> float:
    if not text:
        return math.nan
    if number is None:
        raise option_error(OPTION, f"{name} in {source} is a column of numbers, but has '{text[:40]}' in it: mend it")
    if not math.isfinite(number):
        raise option_error(
            OPTION,
            f"{name} in {source} has {text[:40]} in it: give a number, or leave the cell empty if it is not known",
        )
    return number


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _tells_nothing(name: str, source: str, only: str = "") -> InputError:
    what = f"{only} for all images" if only else "no value"
    return option_error(OPTION, f"{name} in {source} has {what}, which tells no image from another: leave it out")
