"""The fewest steps of a solver with which the pictures of a model are nearly those of many steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError
from patch_diffusion.sampling.generate import generate
from patch_diffusion.sampling.options import Sampling
from patch_diffusion.sampling.solvers import TOO_FEW
from patch_diffusion.sampling.stochastic import STOCHASTIC

TRIED = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
WITHIN = 2.0
"""The usual distance of two pictures, in levels of 256."""

SEEDS = (0, 1, 2, 3)


@dataclass(frozen=True)
class FewestSteps:
    """A number of ``steps`` with which pictures differ by ``distance`` from those of twice as many.

    ``distance`` is the root of the mean square over all pixels of the pictures of ``seeds``, in levels of 256.
    ``tried`` are the numbers before, each with its distance. It is above ``within`` if no number up to 128 is enough.
    """

    steps: int
    distance: float
    within: float
    seeds: tuple[int, ...]
    tried: tuple[tuple[int, float], ...]

    def settings(self) -> dict[str, Any]:
        """Return how the number was found, as a dict that JSON can store."""
        return {"within": self.within, "distance": self.distance, "seeds": list(self.seeds), "tried": self.tried}


def fewest_steps(
    model: Denoiser,
    sampling: Sampling | None = None,
    *,
    label: int | None = None,
    seeds: Iterable[int] = SEEDS,
    within: float = WITHIN,
) -> FewestSteps:
    """Return the fewest steps with which pictures differ by at most ``within`` from those of twice as many steps.

    Numbers of steps are tried in rising order, each once. The same call gives the same number.

    Args:
        model: from `load`, or any `Denoiser`.
        sampling: all options but the steps; the solver must add no noise, as fresh noise makes other pictures.
        label: the class of the pictures, as for `generate`.
        seeds: the seeds of the pictures.
        within: root of the mean squared difference, in levels of 256.

    Raises:
        InputError: an option does not suit the model, the solver adds noise, or ``within`` is not above 0.

    >>> fewest_steps(load("runs/digits"), Sampling(solver="unipc"), seeds=[0], within=20.0).distance < 20
    True
    """
    sampling = sampling or Sampling()
    solver = sampling.settled(model).solver or ""
    if solver in STOCHASTIC:
        raise InputError(
            f"{solver} adds noise at each step, so pictures of more steps are other ones: give a number",
            option="steps",
        )
    if not within > 0:
        raise InputError(f"a distance between pictures is above 0, not {within}", option="within")
    chosen = tuple(seeds)
    # The compiled network would be made anew for each number of steps, and differs by rounding alone.
    options = replace(sampling, steps=None, compile=False)

    @cache
    def pictures(steps: int) -> Tensor:
        samples = generate(model, chosen, options, steps=steps, labels=label)
        return torch.stack([sample.pixels.double() * 255 / (sample.range[1] - sample.range[0]) for sample in samples])

    tried: list[tuple[int, float]] = []
    for steps in TRIED:
        if "heun" in solver and steps < TOO_FEW:
            continue
        distance = float((pictures(steps) - pictures(2 * steps)).square().mean().sqrt())
        if distance <= within or steps == TRIED[-1]:
            return FewestSteps(steps, distance, within, chosen, tuple(tried))
        tried.append((steps, distance))
    raise AssertionError("the last number is always returned")
