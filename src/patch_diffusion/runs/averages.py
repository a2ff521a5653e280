"""Power-function averages of the weights of any length, combined from the averages that a run's checkpoints hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patch_diffusion.errors import InputError

LONGEST = 1 / 12**0.5
"""The greatest length of a power-function average: that of the plain mean of all weights, gamma = 0."""

_SHORTEST = 0.0001


def average_name(length: float) -> str:
    """Return the name that a checkpoint gives to the weight average of this length, such as "ema-0.1"."""
    return f"ema-{length:g}"


def exponent(length: float) -> float:
    """Return the exponent gamma of an average of this length: length^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))."""
    if not _SHORTEST <= length <= LONGEST + 1e-9:
        raise InputError(
            f"the length of an average is a share of the training in [{_SHORTEST}, {LONGEST:.3f}], not {length}"
        )
    # (gamma + 2)^2 (gamma + 3) - (gamma + 1) / length^2 = 0
    roots = np.roots([1, 7, 16 - length**-2, 12 - length**-2])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-6))


def combination(times: Sequence[float], lengths: Sequence[float], length: float, time: float) -> NDArray[np.float64]:
    """Return one coefficient per stored average, for the sum nearest to the average of ``length`` at ``time``.

    More checkpoints bring the sum nearer. The sum is exact if an average of this length was stored at this time.

    Args:
        times, lengths: the time and the length of each stored average; both have the same number of entries.
        length, time: the length and the time of the average that is wanted.
    """
    gammas = np.array([exponent(each) for each in lengths])
    ends = np.asarray(times, np.float64)
    wanted = np.array([exponent(length)])
    overlaps = _overlap(ends[:, None], gammas[:, None], ends, gammas)
    with_wanted = _overlap(ends[:, None], gammas[:, None], np.array([float(time)]), wanted)
    # A Lagrange multiplier adds the condition that the coefficients sum to 1 to the least squares.
    scale, ones = overlaps.max(), np.ones((len(ends), 1))
    system = np.block([[overlaps / scale, ones], [ones.T, np.zeros((1, 1))]])
    solution = np.linalg.lstsq(system, np.append(with_wanted[:, 0] / scale, 1.0), rcond=1e-12)[0]
    return np.asarray(solution[:-1], np.float64)


def combine(averages: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """Sum averages with these factors in double precision, tensor by tensor; take integer tensors from the last one."""
    result = {}
    for name, last in averages[-1].items():
        if not last.is_floating_point():
            result[name] = last
            continue
        total = torch.zeros_like(last, dtype=torch.float64)
        for average, weight in zip(averages, weights, strict=True):
            total.add_(average[name].double(), alpha=float(weight))
        result[name] = total.to(last.dtype)
    return result


def _overlap(
    time: NDArray[np.float64], gamma: NDArray[np.float64], other_time: NDArray[np.float64], other: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Integrate the product of two profiles over tau, each (gamma + 1) tau^gamma / time^(gamma + 1) up to its time."""
    least = np.minimum(time, other_time)
    ratio = (least / time) ** gamma * (least / other_time) ** other / np.maximum(time, other_time)
    return (gamma + 1) * (other + 1) / (gamma + other + 1) * ratio
