"""The prospects of a training: the held-out loss that it will reach, and the time until it has learned the layout.

Both follow from trainings of two data sets at equal operations, see `law`. Losses of other images are told by their
linear floor, the loss of the best linear denoiser: after as many operations on images of as many pixels, a loss is
about the same multiple of the floor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from patch_diffusion.training.choices.law import PIXELS

ENOUGH = 5e13
"""The operations, for images of 64 x 64, after which a model gets below the linear floor at the highest noise level.

CIFAR-10 came within one percent of it after as many as 4e13, and the line through the losses of cat faces meets it at
6e13. Samples of shorter trainings have the colours and textures of the images, but not their layout."""


@dataclass(frozen=True)
class Measured:
    """The best held-out losses of one data set.

    Attributes:
        name: the images, in words.
        side: their height and width.
        floor: the linear floor of the same held-out images.
        losses: by operations of training.
    """

    name: str
    side: int
    floor: float
    losses: dict[float, float]

    def multiple(self, operations: float, pixels: float) -> float:
        """Return the loss, as a multiple of the floor, after so many operations on images of so many pixels."""
        known = np.log(list(self.losses))
        found = np.log(list(self.losses.values())) - math.log(self.floor)
        return math.exp(np.interp(math.log(operations * self.side**2 / pixels), known, found))


MEASURED = (
    Measured("cat faces of 64x64", 64, 0.2793, {1e12: 0.3723, 1e13: 0.2723}),
    Measured("CIFAR-10", 32, 0.3089, {1e12: 0.3633, 1e13: 0.2916}),
)
"""The data sets that were measured, see `benchmarks/size_law.py`."""


def expected(operations: float, pixels: float, floor: float) -> tuple[float, float]:
    """Return the lower and the higher loss to expect, by each data set that was measured.

    Beyond the budgets that were measured, it is that of the nearest.

    Args:
        operations: of the training.
        pixels: of an image.
        floor: the linear floor of the images.
    """
    found = sorted(floor * each.multiple(operations, pixels) for each in MEASURED)
    return found[0], found[-1]


def minutes_of_layout(pixels: float, rate: float) -> float:
    """Return the minutes of training that learn the layout, at a rate in operations a second.

    >>> minutes_of_layout(32 * 32, rate=1e11) < minutes_of_layout(64 * 64, rate=1e11)
    True
    """
    return ENOUGH * pixels / PIXELS / rate / 60
