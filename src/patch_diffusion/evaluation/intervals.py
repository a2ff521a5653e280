"""How far a number may be off: intervals that hold the true one in 95 of 100 cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from patch_diffusion.streams import generator

GROUPS = 8
"""Groups that images are divided into for numbers that are not means over images."""

_LEAST_IN_A_GROUP = 2
_HALVES = 40
_STUDENT = {3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365}
"""97.5 % quantiles of Student's t, by degrees of freedom."""

_REPLICATES = 1000
_DRAWN_AT_ONCE = 10_000_000


@dataclass(frozen=True)
class Measure:
    """A number: its ``value``, its interval of 95 % from ``low`` to ``high`` where there is one, what made it."""

    value: float
    low: float | None = None
    high: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        interval = None if self.low is None or self.high is None else [self.low, self.high]
        return {"value": self.value, "interval": interval, "settings": self.settings}


def num_groups(num: int) -> int:
    """Groups that so many images make; 0 where they are too few for an interval."""
    groups = min(GROUPS, num // _LEAST_IN_A_GROUP) // 2 * 2
    return groups if groups >= 4 else 0


def groups_of(num: int) -> list[range]:
    """The images of each group, nearly equal numbers of neighbours; one group where they are too few for more."""
    count = num_groups(num) or 1
    return [range(num * place // count, num * (place + 1) // count) for place in range(count)]


def interval_of_halves(value: float, of_groups: Callable[[Sequence[int]], float], count: int, seed: int) -> Measure:
    """An interval for a number that is no mean over images, such as a distance.

    A bootstrap without replacement: the number is computed of random halves of the groups, and the variance of these
    numbers estimates that of the whole (delete-half jackknife; Shao and Wu 1989, The Annals of Statistics 17). Drawing
    with replacement would not do, as the Frechet distance of a set with repeated images is another one. The factor is
    Student's, as there are few groups.

    Args:
        value: of all groups.
        of_groups: the number of some groups.
        count: how many groups there are; below 4 there is no interval.
        seed: of the halves.
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


def interval_of_mean(values: Tensor, seed: int) -> Measure:
    """The mean of a number per image, with the percentiles of means of images drawn with replacement (bootstrap)."""
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
    """A share of images, with Wilson's interval (1927), which says something even where none or all are counted."""
    rate, z = count / num, 1.96
    centre = (rate + z**2 / (2 * num)) / (1 + z**2 / num)
    reach = z * math.sqrt(rate * (1 - rate) / num + z**2 / (4 * num**2)) / (1 + z**2 / num)
    return Measure(rate, max(0.0, centre - reach), min(1.0, centre + reach))
