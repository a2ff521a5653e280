"""Statistics of pixel values, gathered while images are read, and the value range chosen from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.errors import InputError

ONE_VALUE = "have one value only"
"""The words of a note on images of a single value."""

_LEAST_SHARE_OF_RANGE = 1 / 8
"""The share of the range that most values should span; otherwise a note tells the user."""

_USUAL_RANGES = ((0.0, 1.0), (-1.0, 1.0))
"""Ranges of floats that are taken for the range of images whose values lie within, and come near to an end but 0."""

_NEAR = 0.01  # how near, as a share of the range
_SAMPLED_IMAGES, _SAMPLED_PLACES = 128, 1021  # at odd steps, since even ones would meet the same columns
_GREY = 2  # the most levels by which the channels of a grey JPEG differ


@dataclass
class Survey:
    """Running statistics of pixel values: the lowest and the highest, and the number of images of a single value.

    ``usual`` are the 1st and 99th percentile of a sample of the values, but for the lowest and the highest themselves,
    which may stand for a missing value or a clipped one; None if there are no others.
    """

    num_images: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    num_constant: int = 0
    first_constant: str = ""
    usual: Sequence[float] | None = None
    name: Callable[[int], str] = field(default=lambda index: f"image {index}", repr=False)
    _sample: dict[int, NDArray[Any]] = field(default_factory=dict, repr=False)
    _step: int = 1

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
        self._keep_some(rows.reshape(len(rows), 3 if pixels.ndim == 4 and pixels.shape[1] == 3 else 1, -1), first)

    def facts(self) -> dict[str, Any]:
        """Return the statistics as a dict that JSON can store; without images, none has a lowest or highest value."""
        self._judge()
        left_out = {"name", "_sample", "_step", *(() if self.num_images else ("low", "high"))}
        return {name: value for name, value in vars(self).items() if name not in left_out}

    def is_grey(self) -> bool:
        """Return True if pictures of three channels are grey, as far as the sample of them tells."""
        kept = [each.astype(np.int32) for each in self._sample.values()]
        return bool(kept) and all(len(each) == 3 and np.ptp(each, axis=0).max() <= _GREY for each in kept)

    def _keep_some(self, pixels: NDArray[Any], first: int) -> None:
        """Keep some places of each image (c, values) whose index is a multiple of the step, which doubles in time."""
        for index in range(-(-first // self._step) * self._step, first + len(pixels), self._step):
            num = pixels.shape[2]
            places = np.linspace(0, num - 1, min(num, _SAMPLED_PLACES)).astype(np.int64)
            self._sample[index] = pixels[index - first][:, places]
        while len(self._sample) > _SAMPLED_IMAGES:
            self._step *= 2
            self._sample = {index: kept for index, kept in self._sample.items() if index % self._step == 0}

    def _judge(self) -> None:
        """Set the percentiles of the sample."""
        values = np.concatenate([np.empty(0), *(each.ravel() for each in self._sample.values())])
        values = values[(values > self.low) & (values < self.high)]
        self.usual = [float(value) for value in np.percentile(values, (1, 99))] if len(values) else None


def codec_of(dtype: str, given: tuple[float, float] | None, found: Survey) -> PixelCodec:
    """Return the pixel codec for a given value range, or else for that of the integer dtype or of the floats read."""
    if given is not None or dtype != "float32":
        return PixelCodec(dtype, *(given or ()))
    if not found.low < found.high:
        raise InputError(f"all values of the images are {found.low:g}: there is nothing to learn")
    return PixelCodec(dtype, *(_usual_range(found) or (found.low, found.high)))


def _usual_range(found: Survey) -> tuple[float, float] | None:
    """Return the range from 0 or -1 to 1 that images were scaled to, by the looks of the floats found; else None.

    >>> _usual_range(Survey(low=-0.294, high=1.0)), _usual_range(Survey(low=0.0, high=0.4))
    ((-1.0, 1.0), None)
    """
    for low, high in _USUAL_RANGES:
        if low <= found.low and found.high <= high:
            near = _NEAR * (high - low)
            return (low, high) if found.high >= high - near or (low and found.low <= low + near) else None
    return None


def notes_of(codec: PixelCodec, given: tuple[float, float] | None, found: Survey) -> list[str]:
    """Return notes for the user on the range of the pixel values and on images of a single value."""
    notes = []
    low, high = codec.range
    values = f"values from {found.low:g} to {found.high:g}"
    least = _LEAST_SHARE_OF_RANGE * (high - low)
    if found.low < low or found.high > high:
        notes.append(f"the data has {values}, beyond the data.range of {low:g} to {high:g}; they are not clipped")
    elif given is None and found.high - found.low < least:
        notes.append(
            f"the data has only {values} of the range {low:g} to {high:g}; --data.range sets the values that become -1 "
            "and 1"
        )
    elif given is None and codec.dtype != "uint8" and found.usual and 0 < found.usual[1] - found.usual[0] < least:
        few, most = (f"{value:.4g}" for value in found.usual)
        notes.append(
            f"the data has {values}, but 98% of those between lie from {few} to {most}: change outliers, and markers "
            f"of missing values, to {few} or {most} in the data; --data.range {few} {most} makes these -1 and 1"
        )
    elif given is None and codec.dtype == "float32":
        if (low, high) == (found.low, found.high):
            notes.append(f"the data has {values}, which become -1 and 1; --data.range changes that")
        else:
            notes.append(
                f"the data has {values}, taken as values of the range {low:g} to {high:g}; --data.range changes that"
            )
    if found.num_constant:
        which = f"{found.num_constant:,} of {found.num_images:,} images checked"
        notes.append(f"{which} {ONE_VALUE} (first: {found.first_constant})")
    return notes
