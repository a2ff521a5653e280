"""Confidence intervals of metrics, which contain the true value in 95 of 100 cases, given the reference.

The true value is the mean over all sets of samples of that size; what another reference would change is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from patch_diffusion.errors import InputError
from patch_diffusion.streams import generator

GROUPS = 8
"""The number of groups that images are divided into for metrics that are not means over images."""

_LEAST_IN_A_GROUP = 2
_HALVES = 40
_STUDENT = {3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365}
"""97.5 % quantiles of Student's t, by degrees of freedom."""

_REPLICATES = 1000
_DRAWN_AT_ONCE = 10_000_000


@dataclass(frozen=True)
class Measure:
    """The ``value`` of a metric, its 95 % confidence interval (``low``, ``high``) if it has one, and its settings."""

    value: float
    low: float | None = None
    high: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for value in (self.value, self.low, self.high):
            if value is not None and not math.isfinite(value):
                raise InputError(f"a metric is not a finite number, but {value}: the model or the images are damaged")

    def as_dict(self) -> dict[str, Any]:
        """Return the value, the confidence interval and the settings of a metric as a dict that JSON can store."""
        interval = None if self.low is None or self.high is None else [self.low, self.high]
        return {"value": self.value, "interval": interval, "settings": self.settings}


def num_groups(num: int) -> int:
    """Return the number of groups, even and at most `GROUPS`, for ``num`` images; 0 if too few for an interval."""
    groups = min(GROUPS, num // _LEAST_IN_A_GROUP) // 2 * 2
    return groups if groups >= 4 else 0


def groups_of(num: int) -> list[range]:
    """Return a list of index ranges that split ``num`` images into groups of nearly equal size; one if too few."""
    count = num_groups(num) or 1
    return [range(num * place // count, num * (place + 1) // count) for place in range(count)]


def interval_of_halves(value: float, of_groups: Callable[[Sequence[int]], float], count: int, seed: int) -> Measure:
    """Return a metric that is not a mean over images, such as a distance, with its confidence interval.

    This is a bootstrap without replacement: the metric is computed for random halves of the groups, and the variance of
    these values estimates that of the whole (delete-half jackknife; Shao and Wu 1989, The Annals of Statistics 17).
    Drawing with replacement would not do, because repeated images change the Frechet distance of a set. The factor is
    Student's, because there are few groups.

    Args:
        value: the metric of all groups together.
        of_groups: a function from the indices of some groups to the metric of these groups.
        count: the number of groups; below 4 there is no interval.
        seed: the seed of the random halves.
    """
    if count < 4:
        return Measure(value)
    random = generator(seed, "halves")
    halves: list[float] = []
    for _ in range(_HALVES // 2):
        order = torch.randperm(count, generator=random).tolist()
        halves += [of_groups(sorted(order[: count // 2])), of_groups(sorted(order[count // 2 :]))]
    mean = sum(halves) / len(halves)
    deviation = math.sqrt(sum((half - mean) ** 2 for half in halves) / len(halves))
    reach = _STUDENT[count - 1] * deviation
    return Measure(value, value - reach, value + reach)


def interval_without_groups(share: float, without: Sequence[float]) -> Measure:
    """Return a share that is not a mean over samples, such as recall, with its confidence interval.

    This is the delete-a-group jackknife. Its variance is that of the share without one group of samples, on average
    rather more (Efron and Stein 1981, The Annals of Statistics 9). Halves would not do: their deviation is 0.5 to 0.7
    of that of the coverage, which grows with the number of samples, and ever more slowly.

    Args:
        share: the share by all samples.
        without: the share without each group; below 4 groups there is no interval.
    """
    count = len(without)
    if count < 4:
        return Measure(share)
    mean = sum(without) / count
    deviation = math.sqrt((count - 1) / count * sum((each - mean) ** 2 for each in without))
    reach = _STUDENT[count - 1] * deviation
    return Measure(share, max(0.0, share - reach), min(1.0, share + reach))


def interval_of_mean(values: Tensor, seed: int) -> Measure:
    """Return the mean of one number per image with its bootstrap confidence interval (draws with replacement)."""
    values = values.double()
    mean, num = float(values.mean()), len(values)
    if num < 2:
        return Measure(mean)
    random = generator(seed, "bootstrap")
    at_once = max(1, _DRAWN_AT_ONCE // num)
    means: list[Tensor] = []
    for start in range(0, _REPLICATES, at_once):
        chosen = torch.randint(num, (min(at_once, _REPLICATES - start), num), generator=random)
        means.append(values[chosen].mean(dim=1))
    low, high = torch.cat(means).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Measure(mean, low, high)


def interval_of_rate(count: int, num: int) -> Measure:
    """Return the share ``count / num`` with Wilson's confidence interval (1927), informative even at 0 and 1."""
    rate, z = count / num, 1.96
    centre = (rate + z**2 / (2 * num)) / (1 + z**2 / num)
    reach = z * math.sqrt(rate * (1 - rate) / num + z**2 / (4 * num**2)) / (1 + z**2 / num)
    return Measure(rate, max(0.0, centre - reach), min(1.0, centre + reach))
