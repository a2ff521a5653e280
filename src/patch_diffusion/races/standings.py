"""Who has won, and by how much: from curves to the time that one arm needs for what another reaches."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

Curve = Sequence[tuple[float, float]]
"""(time, loss) at the moments of a race, by rising time. Time is in minutes, or steps or images, as the budget is."""


def time_to(curve: Curve, loss: float) -> float | None:
    """When a curve first comes down to a loss, in a straight line between two moments; None where it never does.

    Where it is as low at the first moment already, that moment: it may have been there before, nobody looked.

    >>> time_to([(1, 0.75), (2, 0.25), (3, 0.125)], 0.5)
    1.5
    """
    if curve and curve[0][1] <= loss:
        return float(curve[0][0])
    for (before, higher), (after, lower) in pairwise(curve):
        if lower <= loss:
            return before + (after - before) * (higher - loss) / (higher - lower)
    return None


def standings(curves: Mapping[str, Mapping[int, Curve]]) -> dict[str, Any]:
    """Final losses, and how fast each arm is where another ends.

    Args:
        curves: of each arm, by seed; seeds that some arm has not finished are to be left out.

    Returns:
        ``seeds``: those that count. ``final``: of each arm the mean loss at the end, its ``deviation`` over the seeds
        and each seed's. ``reaches``: of each arm and each other, "at" what time it has the other's final loss and
        the ``ratio`` of the other's time to that one, above 1 where it is faster: the mean and the geometric mean over
        the seeds, None where it is not reached with all of them; ``reached`` with how many, and all of it
        ``by_seed``. Losses of an arm on the way are those of a learning rate that has not fallen yet, so that a ratio
        is rather too small.
    """
    seeds = sorted(set.intersection(*(set(found) for found in curves.values()))) if curves else []
    finals = {name: {seed: found[seed][-1][1] for seed in seeds} for name, found in curves.items()}
    return {
        "seeds": seeds,
        "final": {name: _spread(list(found.values())) | {"by_seed": found} for name, found in finals.items()},
        "reaches": {
            name: {
                other: _reaches(curves[name], curves[other], finals[other], seeds) for other in curves if other != name
            }
            for name in curves
        }
        if seeds
        else {},
    }


def _reaches(
    mine: Mapping[int, Curve], others: Mapping[int, Curve], finals: Mapping[int, float], seeds: Sequence[int]
) -> dict[str, Any]:
    by_seed = {}
    for seed in seeds:
        at = time_to(mine[seed], finals[seed])
        by_seed[seed] = {"at": at, "ratio": None if at is None else others[seed][-1][0] / at}
    times = [found["at"] for found in by_seed.values() if found["at"] is not None]
    ratios = [found["ratio"] for found in by_seed.values() if found["ratio"] is not None]
    always = len(times) == len(seeds)
    return {
        "at": statistics.fmean(times) if always else None,
        "ratio": math.exp(statistics.fmean(map(math.log, ratios))) if always else None,
        "reached": len(times),
        "by_seed": by_seed,
    }


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    return {
        "loss": statistics.fmean(values) if values else None,
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
    }
