"""The standings of a race: final losses, and the time that one arm needs to reach the final loss of another."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

LossCurve = Sequence[tuple[float, float]]
"""The losses or distances of one arm of a race: pairs (time, loss) by rising time, in the unit of the budget."""


def time_to(curve: LossCurve, loss: float) -> float | None:
    """Return the time at which a loss curve first falls to ``loss``, interpolated linearly; None if it never does.

    If the first point is already as low, its time is returned, because earlier losses are unknown.

    >>> time_to([(1, 0.75), (2, 0.25), (3, 0.125)], 0.5)
    1.5
    """
    if curve and curve[0][1] <= loss:
        return float(curve[0][0])
    for (before, higher), (after, lower) in pairwise(curve):
        if lower <= loss:
            return before + (after - before) * (higher - loss) / (higher - lower)
    return None


def standings(curves: Mapping[str, Mapping[int, LossCurve]]) -> dict[str, Any]:
    """Compute the final loss of each arm of a race, and how fast it reaches the final loss of each other arm.

    Args:
        curves: the loss curves of each arm, by seed; only seeds that all arms have count.

    Returns:
        ``seeds``: the seeds that count. ``final``: for each arm the mean loss at the end, its ``deviation`` over the
        seeds, and each seed's loss. ``reaches``: for each arm and each other, "at" what time the arm has the other's
        final loss and the ``ratio`` of the other's time to that time, above 1 if the arm is faster: the mean and the
        geometric mean over the seeds, None unless all seeds reach the loss; ``reached``, the number of seeds that do,
        and the same ``by_seed``. Before its end, an arm's loss is that of a learning rate that has not fallen yet, so
        a ratio is rather too small.
    """
    seeds = sorted(set.intersection(*(set(found) for found in curves.values()))) if curves else []
    finals = {name: {seed: found[seed][-1][1] for seed in seeds} for name, found in curves.items()}
    return {
        "seeds": seeds,
        "final": {name: _spread(list(found.values())) | {"by_seed": found} for name, found in finals.items()},
        "reaches": {
            name: {each: _reaches(found, curves[each], finals[each], seeds) for each in curves if each != name}
            for name, found in (curves.items() if seeds else ())
        },
    }


def _reaches(
    mine: Mapping[int, LossCurve], others: Mapping[int, LossCurve], finals: Mapping[int, float], seeds: Sequence[int]
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
