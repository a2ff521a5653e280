"""Attributes of images, which a model can be told by name: numbers, categories and vectors, such as an age or a colour.

Each becomes a part of one vector for each image: a one that says that the attribute is given, and then its normalised
numbers, or a one in the place of its category. All are zero if it is not given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Annotated as Float, Any, ClassVar

import torch
from torch import Tensor

from patch_diffusion.errors import InputError, counted, did_you_mean, option_error
from patch_diffusion.transfer import to_device

_FAR = 0.5
"""The distance from the range of the training images, in its widths, beyond which a number is called far outside."""

_MOST_IN_WORDS = 20  # categories


@dataclass(frozen=True)
class Attribute:
    """One attribute: its name, and its categories, or the mean, deviation and range of its numbers in training.

    >>> age = Attribute("age", mean=(40.0,), deviation=(10.0,), lowest=(20.0,), highest=(60.0,))
    >>> age.encode(torch.tensor([[50.0], [math.nan]]))
    tensor([[1., 1.],
            [0., 0.]])
    """

    # As of `Strict`, which an export does not carry.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}

    name: str
    categories: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    lowest: tuple[float, ...] = ()
    highest: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """The length of the part of an image's vector that tells this attribute."""
        return 1 + (len(self.categories) or len(self.mean))

    def encode(self, values: Float[Tensor, "n numbers"]) -> Float[Tensor, "n width"]:
        """Return the vectors of values: numbers, or the number of a category; NaN if it is not given."""
        given = values.isfinite().all(dim=1, keepdim=True)
        if self.categories:
            numbers = (values == torch.arange(len(self.categories))) * math.sqrt(len(self.categories))
        else:
            numbers = (values - torch.tensor(self.mean)) / torch.tensor(self.deviation)
        return torch.cat([given, numbers], dim=1).where(given, 0).float()

    def values_of(self, wanted: Sequence[Any]) -> tuple[Float[Tensor, "n numbers"], str]:
        """Return the values of a user's words or numbers, NaN for None and "", and a note on those far outside.

        Raises:
            InputError: there is no such category, or it is no number or vector of the right length.
        """
        rows = [self._row(each) for each in wanted]
        values = torch.tensor(rows, dtype=torch.float32)
        if self.categories:
            return values, ""
        low, high = torch.tensor(self.lowest), torch.tensor(self.highest)
        beyond = torch.maximum(low - values, values - high) > _FAR * (high - low)
        if not beyond.any():
            return values, ""
        first = values[beyond][0].item()
        where = beyond.nonzero()[0, 1]
        return values, (
            f"{self.name} {first:g} is far outside of the training images, which go from {self.lowest[where]:g} to "
            f"{self.highest[where]:g}"
        )

    def describe(self) -> str:
        """Return its categories, the range of its numbers, or the length of its vectors, in words."""
        if self.categories:
            more = ", ..." if len(self.categories) > _MOST_IN_WORDS else ""
            return f"{len(self.categories)} categories: {', '.join(self.categories[:_MOST_IN_WORDS])}{more}"
        if len(self.mean) != 1:
            return f"vectors of {len(self.mean):,} numbers"
        return f"{self.lowest[0]:g} to {self.highest[0]:g}, mean {self.mean[0]:.3g}"

    def plain(self, row: Sequence[float]) -> Any:
        """Return a row of values as JSON stores it: a number, the name of a category, a list; None if not given."""
        if not all(map(math.isfinite, row)):
            return None
        if self.categories:
            return self.categories[int(row[0])]
        return row[0] if len(row) == 1 else list(row)

    def _row(self, wanted: Any) -> list[float]:
        if wanted is None or (isinstance(wanted, str) and not wanted.strip()):
            return [math.nan] * (self.width - 1 if self.mean else 1)
        if self.categories:
            if (text := str(wanted).strip()) not in self.categories:
                raise InputError(f"the condition {self.name} has no '{text}'{did_you_mean(text, self.categories)}")
            return [float(self.categories.index(text))]
        parts: Any = wanted.split(",") if isinstance(wanted, str) and len(self.mean) > 1 else wanted
        if hasattr(parts, "tolist"):  # an array or a tensor
            parts = parts.tolist()
        numbers: Sequence[Any] = parts if isinstance(parts, list | tuple) else [parts]
        try:
            row = [float(each) for each in numbers]
        except (TypeError, ValueError):
            row = [math.nan]
        if len(row) != len(self.mean):
            raise InputError(f"the condition {self.name} is a vector of {len(self.mean):,} numbers, not {len(row):,}")
        if not all(map(math.isfinite, row)):
            kind = "a vector of finite numbers" if len(self.mean) > 1 else "a finite number"
            raise InputError(f"the condition {self.name} is {kind}, not {wanted!r:.60}")
        return row


@dataclass(frozen=True, eq=False)
class Attributes:
    """The attributes of n images: what they are, and the values of each, ``(n, numbers)``, NaN where it is not given.

    >>> width = Attribute("width", mean=(1.0,), deviation=(0.5,), lowest=(0.0,), highest=(2.0,))
    >>> Attributes((width,), (torch.tensor([[1.0], [2.0]]),)).encode([1])
    tensor([[1., 2.]])
    """

    columns: tuple[Attribute, ...]
    values: tuple[Float[Tensor, "n numbers"], ...]

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        for name in names:
            if names.count(name) > 1:
                raise option_error("data.conditions", f"names {name} twice")

    def __len__(self) -> int:
        return len(self.values[0])

    def select(self, rows: Any) -> Attributes:
        """Return the attributes of the images in some rows, an array of their indices."""
        chosen = torch.as_tensor(rows)
        return Attributes(self.columns, tuple(values[chosen] for values in self.values))

    def named(self, row: int) -> dict[str, Any]:
        """Return the values of one image by name, as JSON stores them; those that are not given are left out."""
        pairs = zip(self.columns, self.values, strict=True)
        found = {column.name: column.plain(values[row].tolist()) for column, values in pairs}
        return {name: value for name, value in found.items() if value is not None}

    def encode(self, rows: Any) -> Float[Tensor, "k width"]:
        """Return the vectors that tell a network the attributes of the images in these rows."""
        chosen = torch.as_tensor(rows)
        parts = zip(self.columns, self.values, strict=True)
        return torch.cat([column.encode(values[chosen]) for column, values in parts], dim=1)

    def known_as(self, columns: Sequence[Attribute]) -> Attributes:
        """Return the attributes as a model knows them: one that the images lack is not given, others are left out.

        Raises:
            InputError: an image has a category that the model does not know.
        """
        own = {column.name: place for place, column in enumerate(self.columns)}
        values = []
        for column in columns:
            place = own.get(column.name)
            if place is None:
                values.append(torch.full((len(self), len(column.mean) or 1), math.nan))
            else:
                values.append(_translated(self.columns[place], self.values[place], column))
        return Attributes(tuple(columns), tuple(values))


def width_of(columns: Sequence[Attribute]) -> int:
    """Return the length of the vector that tells all attributes."""
    return sum(column.width for column in columns)


def keep_some(
    encoded: Float[Tensor, "n width"], columns: Sequence[Attribute], kept: Tensor
) -> Float[Tensor, "n width"]:
    """Return vectors with zeros for each attribute whose place in ``kept``, (n or 1, attributes), is False."""
    widths = torch.tensor([column.width for column in columns])
    return encoded * to_device(kept.repeat_interleave(widths, dim=1).to(encoded.dtype), encoded.device)


def vectors_of(columns: Sequence[Attribute], wanted: Sequence[Mapping[str, Any]]) -> Float[Tensor, "n width"]:
    """Return the vectors of n images of which a user wants these values by name; what is not named is not given."""
    parts = [column.encode(column.values_of([each.get(column.name) for each in wanted])[0]) for column in columns]
    return torch.cat(parts, dim=1)


def by_name(columns: Sequence[Attribute], rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the values of some images as lists by name, None where one is not given; nothing if none is at all."""
    return {column.name: [row.get(column.name) for row in rows] for column in columns if any(rows)}


def wanted_of(
    columns: Sequence[Attribute], given: Mapping[str, Any], num: int
) -> tuple[Iterable[Mapping[str, Any]], list[str]]:
    """Return what a user wants of each of ``num`` images, by name and as JSON stores it; and notes on far values.

    Args:
        columns: the attributes that a model knows.
        given: a value for all images, or a list of one for each, by the name of the attribute.
        num: the number of images.

    Raises:
        InputError: the model does not know the attribute or the value, or there is not one for each image.
    """
    names = [column.name for column in columns]
    for name in given:
        if name not in names:
            known = did_you_mean(name, names) if names else ": it was trained without data.conditions"
            raise InputError(f"the model knows no condition '{name}'{known}", option="condition")
    told: dict[str, Sequence[Any]] = {}
    notes, several = list[str](), False
    for column in columns:
        if column.name not in given:
            continue
        values = given[column.name]
        if hasattr(values, "tolist"):  # an array or a tensor
            values = values.tolist()
        rows: Sequence[Any] = values if isinstance(values, list | tuple) else ()
        nested = any(each is None or isinstance(each, list | tuple) for each in rows)
        each = isinstance(values, list | tuple) and (len(column.mean) < 2 or nested)
        if each and len(values) != num:
            raise InputError(f"{counted(num, 'image')} need as many values of {column.name}, not {len(values)}")
        several |= each
        found, note = column.values_of(values if each else [values])
        told[column.name] = [column.plain(row) for row in found.tolist()]
        notes += [note] if note else []

    def of_image(row: int) -> dict[str, Any]:
        chosen = {name: values[row if len(values) > 1 else 0] for name, values in told.items()}
        return {name: value for name, value in chosen.items() if value is not None}

    return map(of_image, range(num)) if several else repeat(of_image(0)), notes


def _translated(own: Attribute, values: Tensor, other: Attribute) -> Tensor:
    """Return the values of a column by the categories of another of the same name."""
    if bool(own.categories) != bool(other.categories) or len(own.mean) != len(other.mean):
        raise InputError(f"the condition {own.name} of these images is of another kind than the model knows")
    if own.categories == other.categories:
        return values
    places = {text: float(place) for place, text in enumerate(other.categories)}
    for text in own.categories:
        if text not in places:
            raise InputError(
                f"the condition {own.name} of these images has '{text}', which the model does not "
                f"know{did_you_mean(text, other.categories)}"
            )
    table = torch.tensor([places[text] for text in own.categories])
    return table[values.nan_to_num().long()].where(values.isfinite(), math.nan)
