"""The law of size: the network and the step that a number of operations of training is worth.

Between 1e12 and 4e13 operations it is measured: `benchmarks/evidence/sizes.py` compares widths, batches and learning
rates at equal operations, and `benchmarks/size_law.py` fits the parameters below. The batches rest on one scan at 1e13
operations. Beyond, it is interpolated to published networks at the budgets that they were trained with.

Images of another size count by their pixels: a training on images of 32 x 32 shows a network four times as many of them
for the same operations, so it is worth as large a network as a training of four times the operations on 64 x 64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Source = Literal["measured", "interpolated", "extrapolated"]

_USUAL_BATCH = 8  # fewer images leave a processor idle
PIXELS = 64 * 64
"""The pixels of the images that the law's operations are for."""


@dataclass(frozen=True)
class Knot:
    """A point of the law.

    Attributes:
        operations: floating-point operations of a training on images of 64 x 64.
        parameters: the number of parameters that learns most from them.
        batch: the batch above which a larger one needs as many more images as it has.
        measured: True if it is measured, and not published.
        source: the experiment, or the publication.
    """

    operations: float
    parameters: float
    batch: float
    measured: bool
    source: str


KNOTS = (
    Knot(1e12, 7.2e4, 4, True, "benchmarks/results/size-law-cpu.json"),
    Knot(4e13, 3.2e5, 12, True, "benchmarks/results/size-law-cpu.json"),
    # EDM's DDPM++ of 56 million parameters for CIFAR-10, a batch of 512, and of 62 million for 64 x 64, a batch of 256.
    Knot(7e19, 5.9e7, 360, False, "EDM, arXiv 2206.00364, tables 7 and 8: 200 million images"),
    Knot(6.0e20, 1.25e8, 2048, False, "EDM2-XS, arXiv 2312.02696, table 6: 2,147 million images"),
    Knot(1.5e21, 2.9e8, 2048, False, "EDM2-S and EDM's ADM: 2,147 and 2,500 million images"),
    Knot(2.3e21, 4.98e8, 2048, False, "EDM2-M: 2,147 million images"),
    Knot(3.6e21, 1.5e9, 2048, False, "EDM2-L, -XL and -XXL: 1,879, 1,476 and 940 million images"),
)
"""The points of the law, by operations."""


@dataclass(frozen=True)
class Worth:
    """The worth of a training budget: the number of ``parameters`` and the critical ``batch``, and how it is known."""

    parameters: float
    batch: float
    source: Source


def worth(operations: float, pixels: float) -> Worth:
    """Return the network and the batch that a training is worth.

    Args:
        operations: floating-point operations of the whole training, see `training_flops`.
        pixels: the pixels of a whole image.

    >>> worth(1e13, 64 * 64).source
    'measured'
    """
    like = operations * PIXELS / pixels
    measured = [knot.operations for knot in KNOTS if knot.measured]
    source: Source = "measured" if measured[0] <= like <= measured[-1] else "interpolated"
    if not KNOTS[0].operations <= like <= KNOTS[-1].operations:
        source = "extrapolated"
    return Worth(_at(like, "parameters"), _at(like, "batch"), source)


def operations_worth(parameters: float, pixels: float) -> float:
    """Return the operations of training that a network of so many parameters is worth: the inverse of `worth`.

    >>> round(worth(operations_worth(1e6, 32 * 32), 32 * 32).parameters)
    1000000
    """
    return _between(parameters, [(knot.parameters, knot.operations) for knot in KNOTS]) * pixels / PIXELS


def batch_for(parameters: float, pixels: float) -> int:
    """Return the batch that suits a network of so many parameters, where nothing is known of budget and machine."""
    return max(_USUAL_BATCH, rounded(worth(operations_worth(parameters, pixels), pixels).batch))


def rounded(batch: float) -> int:
    """Round a batch to a power of two, or to three halves of one, and to at least 2, so that two threads share it."""
    power = 2 ** math.floor(math.log2(max(batch, 2.0)))
    return min((power, 3 * power // 2, 2 * power), key=lambda each: abs(math.log(each / max(batch, 2.0))))


def _at(operations: float, name: str) -> float:
    return _between(operations, [(knot.operations, getattr(knot, name)) for knot in KNOTS])


def _between(value: float, points: Sequence[tuple[float, float]]) -> float:
    """Interpolate in logarithms; below the first point go on as between the first two, above the last stay at it."""
    known, found = (np.log([point[place] for point in points]) for place in (0, 1))
    at = math.log(value)
    if at < known[0]:
        return math.exp(found[0] + (at - known[0]) * (found[1] - found[0]) / (known[1] - known[0]))
    return math.exp(np.interp(at, known, found))
