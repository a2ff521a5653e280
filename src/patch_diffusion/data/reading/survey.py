"""What pixels hold, found while they go by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.errors import InputError

_LEAST_SHARE_OF_RANGE = 1 / 8
"""Of the values that whole numbers can have; where less is found, the user is told."""


@dataclass
class Survey:
    """The lowest and highest value of the images looked at, and which of them are of one value only."""

    num_images: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    num_constant: int = 0
    first_constant: str = ""
    name: Callable[[int], str] = field(default=lambda index: f"image {index}", repr=False)

    def add(self, pixels: NDArray[Any], first: int) -> None:
        """Take in images (n, c, h, w), the first of which has the index ``first``.

        Raises:
            InputError: NaN or infinity, with the image's name.
        """
        rows = pixels.reshape(len(pixels), -1)
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
        """Ready for JSON."""
        return {
            "num_images": self.num_images,
            "low": self.low,
            "high": self.high,
            "num_constant": self.num_constant,
            "first_constant": self.first_constant,
        }


def codec_of(dtype: str, given: tuple[float, float] | None, found: Survey) -> PixelCodec:
    """The range that was given; else all that whole numbers can be, or what was found of floats."""
    if given is not None or dtype != "float32":
        return PixelCodec(dtype, *(given or ()))
    if not found.low < found.high:
        raise InputError(f"all values of the images are {found.low:g}: there is nothing to learn")
    return PixelCodec(dtype, found.low, found.high)


def notes_of(codec: PixelCodec, given: tuple[float, float] | None, found: Survey) -> list[str]:
    """What the user should know of the values."""
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
        notes.append(f"{which} have one value only (first: {found.first_constant})")
    return notes
