"""Suggestion of a resolution for a data set whose images are large, or of several sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from patch_diffusion.config import Fit
from patch_diffusion.data.reading.sizes import Size

_MOST_CROPPED = 0.15  # the largest mean share of an image cropped away; above it, buckets are suggested
_MULTIPLES = 16  # sides are multiples of this, so that a quarter of a side can be halved twice
_KEPT = 8  # sides that are multiples of this stay as they are, as a quarter of them can be halved
_LARGE = 1.5  # images are large if their side is more than this many times the target side


@dataclass(frozen=True)
class Resolution:
    """A suggested resolution for a data set, how images are fitted to it, and why they should not keep their size."""

    size: Size
    fit: Fit
    reason: str


def suggest_resolution(sizes: Mapping[Size, int], side: int) -> Resolution | None:
    """Suggest a height and width of about ``side``^2 pixels for images of these sizes; None if they can keep theirs.

    The aspect ratio is the median, unless too much would be cropped away: then buckets are suggested. Small images are
    not enlarged. ``sizes`` has the number of images by height and width.

    >>> suggest_resolution({(512, 768): 5}, side=64).size
    (48, 80)
    """
    num = sum(sizes.values())
    size, _ = max(sizes.items(), key=lambda item: item[1])
    large = math.sqrt(math.prod(size)) > _LARGE * side
    odd = any(length % 2 for length in size)
    if len(sizes) == 1 and not (large or odd):
        return None
    height, width = size
    why = f"{height}x{width} is {'slow to train with' if large else 'odd, so that no network can halve it'}"
    reason = why if len(sizes) == 1 else f"images have {len(sizes)} sizes"
    aspect = _quantile({size: size[0] / size[1] for size in sizes}, sizes, 1 / 2)
    side = min(side, int(_quantile({size: math.sqrt(math.prod(size)) for size in sizes}, sizes, 1 / 10)))
    cropped = sum(count * (1 - math.exp(-abs(math.log(h / w / aspect)))) for (h, w), count in sizes.items()) / num
    if cropped > _MOST_CROPPED:
        reason += f", and one shape for all would cut off {cropped:.0%} of them"
        return Resolution((_rounded(side), _rounded(side)), "bucket", reason)
    shape = (_rounded(side * math.sqrt(aspect)), _rounded(side / math.sqrt(aspect)))
    return Resolution(shape, "crop", reason)


def _quantile(values: Mapping[Size, float], counts: Mapping[Size, int], share: float) -> float:
    """Return the quantile of values, one per image size, weighted by the number of images of each size."""
    ordered = sorted(values, key=values.__getitem__)
    passed = accumulate(counts[size] for size in ordered)
    least = share * sum(counts.values())
    return next(values[size] for size, num in zip(ordered, passed, strict=True) if num >= least)


def _rounded(length: float) -> int:
    """Round a side to a multiple of 16, or down to a multiple of 4 if short, so that patches of it can be halved.

    A multiple of 8 stays as it is.
    """
    if length >= 2 * _MULTIPLES and length % _KEPT == 0:
        return int(length)
    multiple = _MULTIPLES if length >= 2 * _MULTIPLES else 4
    nearest = round(length / multiple) if length >= 2 * _MULTIPLES else int(length // multiple)
    return max(multiple, multiple * nearest)
