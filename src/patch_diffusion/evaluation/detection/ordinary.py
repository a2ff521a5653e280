"""The errors of ordinary, held-out images at each place and level, and the threshold that follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated as Float, Annotated as Int

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patch_diffusion.errors import InputError, option_error
from patch_diffusion.evaluation.detection.errors import deviations_over_places, medians, smoothed
from patch_diffusion.evaluation.detection.options import FALSE_ALARMS

FEWEST = 8
"""The fewest ordinary images: each has its mean and variance from the others."""

FOLDS = 8
"""The number of parts of the ordinary images; the images of each are judged by the moments of the others."""

_TAIL = 0.02
_LEAST_DEVIATION = 0.1
"""The least deviation of the logarithm of an error, where ordinary images hardly differ."""


@dataclass(frozen=True)
class Ordinary:
    """The mean and deviation of the log errors of ordinary images at each place, by level and smoothing.

    ``low`` and ``high`` bound the medians of ordinary images: an image that is harder to denoise as a whole, by no more
    than ordinary images are, is ordinary.
    """

    mean: Float[Tensor, "features *shape"]
    deviation: Float[Tensor, "features *shape"]
    low: Float[Tensor, "features"]
    high: Float[Tensor, "features"]

    @classmethod
    def of(cls, logs: Float[Tensor, "n features *shape"], typical: Float[Tensor, "n features"]) -> Ordinary:
        """Return the moments of the log errors of ordinary images, given their medians, too."""
        low, high = (typical.quantile(share, dim=0) for share in (_TAIL, 1 - _TAIL))
        logs = logs.float() - _along(typical.clamp(low, high), logs)
        mean, width = logs.mean(dim=0, keepdim=True), deviations_over_places(logs.shape[2:])
        variance = smoothed((logs - mean).square().mean(dim=0, keepdim=True), width)[0]
        return cls(smoothed(mean, width)[0], variance.sqrt().clamp(min=_LEAST_DEVIATION), low, high)

    def map(self, logs: Float[Tensor, "n features *shape"]) -> Float[Tensor, "n *shape"]:
        """Return how many deviations the log errors of images are above the ordinary, as a mean over the features."""
        typical = medians(logs).clamp(self.low, self.high)
        return ((logs - _along(typical, logs) - self.mean) / self.deviation).mean(dim=1)


@dataclass(frozen=True)
class Threshold:
    """The value above which a pixel is an alarm, and how it was found.

    Args:
        value: an image has an alarm if the largest value of its map is above.
        false_alarms: the rate that was asked for: the share of ordinary images with an alarm.
        images: the number of ordinary images.
        checked: the share of ordinary images with an alarm, each half of them by the threshold of the other half; None
            if the halves are too few for the rate.
    """

    value: float
    false_alarms: float
    images: int
    checked: float | None


def scores_of(maps: Float[Tensor, "n *shape"]) -> Float[Tensor, "n"]:
    """Return the scores of images: the largest value of each map."""
    return maps.flatten(1).amax(dim=1)


def rate_for(asked: float | None, num: int) -> float:
    """Return the rate of false alarms for so many ordinary images, see `threshold_of`.

    Raises:
        InputError: there are too few ordinary images for the rate that was asked for.
    """
    lowest = 1 / (num + 1)
    if asked is None:
        return max(FALSE_ALARMS, lowest)
    if asked < lowest * (1 - 1e-9):
        need = math.ceil(1 / asked - 1 - 1e-9)
        raise option_error(
            "false_alarms",
            f"{asked:g} needs at least {need:,} ordinary images, and there are {num:,}: give more as normal, or ask "
            f"for {math.ceil(1000 * lowest) / 1000:g} or more",
        )
    return asked


def quantile_above(scores: NDArray[np.float64], rate: float) -> float:
    """Return the least score that at most a share of new scores like these exceeds, on average over such sets.

    It is the k-th of n sorted scores, k = ceil((n + 1) (1 - rate)): a new score is as likely to have any rank.

    >>> quantile_above(np.arange(1.0, 100), 0.01)
    99.0
    """
    rank = math.ceil((len(scores) + 1) * (1 - rate) - 1e-9)
    return float(np.sort(scores)[rank - 1])


def threshold_of(scores: NDArray[np.float64], halves: NDArray[np.bool_], rate: float) -> Threshold:
    """Return the threshold that the scores of ordinary images give, and its check by halves.

    Args:
        scores: scores of ordinary images, each by the moments of others.
        halves: the half that each image belongs to.
        rate: the share of ordinary images with an alarm, see `rate_for`.
    """
    checked = None
    if min(halves.sum(), (~halves).sum()) + 1 >= 1 / rate:
        alarms = sum((scores[halves == side] > quantile_above(scores[halves != side], rate)).sum() for side in (0, 1))
        checked = float(alarms / len(scores))
    return Threshold(quantile_above(scores, rate), rate, len(scores), checked)


def folds_of(keys: NDArray[np.uint64]) -> Int[Tensor, "n"]:
    """Return the part of each image, 0 to 7, by the key of its group or content; equal keys are in one part."""
    from patch_diffusion.data.keys import draws_of

    values, places = np.unique(draws_of(keys, 0), return_inverse=True)
    if len(values) < 2:
        raise InputError("the ordinary images are all identical, or of one group: give several as normal")
    return torch.from_numpy(places * min(FOLDS, len(values)) // len(values))


def _along(numbers: Float[Tensor, "n k"], maps: Float[Tensor, "n k *shape"]) -> Tensor:
    return numbers.view(*numbers.shape, *[1] * (maps.ndim - 2))
