"""Statistics of pixel values, gathered while images are read, and the value range chosen from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.errors import InputError

ONE_VALUE = "have one value only"
"""The words of a note on images of a single value."""

_LEAST_SHARE_OF_RANGE = 1 / 8
"""The share of the range of an integer dtype that the values should span; otherwise a note tells the user."""


@dataclass
class Survey:
    """Running statistics of pixel values: the lowest and the highest, and the number of images of a single value."""

    num_images: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    num_constant: int = 0
    first_constant: str = ""
    name: Callable[[int], str] = field(default=lambda index: f"image {index}", repr=False)

    def add(self, pixels: NDArray[Any], first: int | None = None) -> None:
        """Update the statistics with images (n, c, h, w), from the index ``first`` on; None: those that come next.

        NaN or infinity is an `InputError`, which names the image.
        """
        rows, first = pixels.reshape(len(pixels), -1), self.num_images if first is None else first
        self.num_images += len(rows)
        lows, highs = rows.min(1), rows.max(1)
        if pixels.dtype.kind == "f" and not (np.isfinite(lows) & np.isfinite(highs)).all():
            bad = int(np.argmin(np.isfinite(lows) & np.isfinite(highs)))
            raise InputError(f"{self.name(first + bad)} holds NaN or infinity: repair or remove it")
        self.low, self.high = min(self.low, float(lows.min())), max(self.high, float(highs.max()))
        constant = np.flatnonzero(lows == highs)
        if len(constant) and not self.num_constant:
            self.first_constant = self.name(first + int(constant[0]))
        self.num_constant += len(constant)

    def facts(self) -> dict[str, Any]:
        """Return the statistics as a dict that JSON can store; without images, none has a lowest or highest value."""
        left_out = ("name",) if self.num_images else ("name", "low", "high")
        return {name: value for name, value in vars(self).items() if name not in left_out}


def codec_of(dtype: str, given: tuple[float, float] | None, found: Survey) -> PixelCodec:
    """Return the pixel codec for a given value range, or else for that of the integer dtype or of the floats read."""
    if given is not None or dtype != "float32":
        return PixelCodec(dtype, *(given or ()))
    if not found.low < found.high:
        raise InputError(f"all values of the images are {found.low:g}: there is nothing to learn")
    return PixelCodec(dtype, found.low, found.high)


def notes_of(codec: PixelCodec, given: tuple[float, float] | None, found: Survey) -> list[str]:
    """Return notes for the user on the range of the pixel values and on images of a single value."""
    notes = []
    low, high = codec.range
    values = f"values from {found.low:g} to {found.high:g}"
    if given is None and codec.dtype == "float32":
        notes.append(f"{values}, which become -1 and 1 (--data.range says otherwise)")
    elif found.low < low or found.high > high:
        notes.append(f"{values} were found, beyond the data.range of {low:g} to {high:g}")
    elif given is None and found.high - found.low < _LEAST_SHARE_OF_RANGE * (high - low):
        notes.append(f"{values} were found, of {low:g} to {high:g} (--data.range says what becomes -1 and 1)")
    if found.num_constant:
        which = f"{found.num_constant:,} of {found.num_images:,} images looked at"
        notes.append(f"{which} {ONE_VALUE} (first: {found.first_constant})")
    return notes
