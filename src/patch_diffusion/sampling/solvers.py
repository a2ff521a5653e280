"""Noise levels of a sample, and solvers of the probability-flow ODE that go from one level to the next.

Each schedule returns ``steps`` levels from sigma_max to sigma_min, then 0. They differ in where the steps are small.

The ODE is dx/dsigma = (x - D(x; sigma)) / sigma (EDM, arXiv 2206.00364, equation 1). Each solver is a pure function
``solver(denoise, noisy, sigmas, *, noise=None, callback=None)``: from images (n, c, h, w) at noise level ``sigmas[0]``
to images at ``sigmas[-1]``, which may be 0. Solvers know neither networks nor coordinates nor classes; those are bound
into ``denoise``. They call ``callback`` with every step. ``noise`` is there so that all solvers are called alike: those
in `stochastic` draw from it, these do not.

>>> def denoise(noisy, sigma):  # where all data is grey
...     return torch.zeros_like(noisy)
>>> heun(denoise, torch.ones(1, 3, 2, 2), torch.tensor([80.0, 1.0, 0.0])).max()
tensor(0.)
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Annotated as Float64, Any

import torch
from torch import Tensor

from patch_diffusion.denoise.process import VP
from patch_diffusion.errors import InputError, check_name, option_error
from patch_diffusion.sampling.step import Callback, Denoise, Images, Level, Sigmas, Step, StepNoise

_MOST_STEPS = 1_000_000


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Float64[Tensor, "{steps}+1"]:
    """Return noise levels that are even in sigma^(1/rho), so a larger rho has more low ones (EDM, equation 5).

    Args:
        steps: the number of noise levels before the 0, at least 1.
        sigma_min, sigma_max: the lowest noise level, above 0, and the highest.
        rho: the exponent, above 0.

    Raises:
        InputError: a number is out of its range.

    >>> karras_sigmas(3, 1.0, 4.0, rho=2.0)
    tensor([4.0000, 2.2500, 1.0000, 0.0000], dtype=torch.float64)
    """
    ramp = _ramp(steps, sigma_min, sigma_max, rho)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _exactly((high + ramp * (low - high)) ** rho, sigma_min, sigma_max)


def vp_sigmas(steps: int, sigma_min: float, sigma_max: float) -> Float64[Tensor, "{steps}+1"]:
    """Return noise levels that are even in the time of the VP process (EDM, table 1; score-SDE, arXiv 2011.13456).

    Args:
        steps, sigma_min, sigma_max: as for `karras_sigmas`, as is the result.

    >>> vp_sigmas(18, 0.002, 80.0).shape
    torch.Size([19])
    """
    ramp = _ramp(steps, sigma_min, sigma_max)
    process = VP()
    last, first = process.time(torch.tensor([sigma_min, sigma_max], dtype=torch.float64))
    return _exactly(process.sigma(first + ramp * (last - first)), sigma_min, sigma_max)


def ve_sigmas(steps: int, sigma_min: float, sigma_max: float) -> Float64[Tensor, "{steps}+1"]:
    """Return geometric noise levels, as in the time of the VE process (EDM, table 1; score-SDE, arXiv 2011.13456).

    Args:
        steps, sigma_min, sigma_max: as for `karras_sigmas`, as is the result.

    >>> ve_sigmas(3, 1.0, 4.0)
    tensor([4., 2., 1., 0.], dtype=torch.float64)
    """
    ramp = _ramp(steps, sigma_min, sigma_max)
    return _exactly(sigma_max * (sigma_min / sigma_max) ** ramp, sigma_min, sigma_max)


def exponential_sigmas(
    steps: int, sigma_min: float, sigma_max: float, rho: float = 1.0
) -> Float64[Tensor, "{steps}+1"]:
    """Return noise levels whose logarithm falls as (1 - i / (steps - 1))^rho; with a rho of 1 they are `ve_sigmas`.

    A rho above 1 has more low levels, a rho below 1 more high ones.

    Args:
        steps, sigma_min, sigma_max: as for `karras_sigmas`, as is the result.
        rho: the exponent, above 0.

    >>> exponential_sigmas(3, 1.0, 16.0, rho=2.0)
    tensor([16.,  2.,  1.,  0.], dtype=torch.float64)
    """
    ramp = _ramp(steps, sigma_min, sigma_max, rho)
    return _exactly(sigma_min * (sigma_max / sigma_min) ** ((1 - ramp) ** rho), sigma_min, sigma_max)


def few_sigmas(steps: int, sigma_min: float, sigma_max: float, sigma_data: float = 0.5) -> Float64[Tensor, "{steps}+1"]:
    """Return the levels of a few steps, for `consistency`: even in atan(sigma / sigma_data)^p, without sigma_min.

    The power p puts the second of two levels from 80 on at 1.64 sigma_data: at 0.82 for images of deviation 0.5, as
    published (iCT, arXiv 2310.14189, for CIFAR-10).

    Args:
        steps, sigma_min, sigma_max: as for `karras_sigmas`, as is the result; sigma_min is the level that one step
            more than the last would have.
        sigma_data: standard deviation of the images.

    >>> few_sigmas(2, 0.002, 80.0)[1:]
    tensor([0.8207, 0.0000], dtype=torch.float64)
    """
    _ramp(steps, sigma_min, sigma_max)
    left = 1 - torch.arange(steps, dtype=torch.float64) / steps
    low, high = math.atan(sigma_min / sigma_data), math.atan(sigma_max / sigma_data)
    sigmas = sigma_data * (low + left**_TOWARDS_LOW * (high - low)).tan()
    return _exactly(sigmas, float(sigmas[-1]), sigma_max)


_TOWARDS_LOW = 0.614


def flow_sigmas(steps: int, sigma_min: float, sigma_max: float, shift: float = 1.0) -> Float64[Tensor, "{steps}+1"]:
    """Return noise levels that are even in the time t = sigma / (1 + sigma) of the process `Flow`, or shifted.

    A shift k multiplies the noise levels of even times, so that t becomes k t / (1 + (k - 1) t): above 1 there are more
    high levels, as large images need (arXiv 2403.03206, section 5.3.2). diffusers' FlowMatchEulerDiscreteScheduler has
    the same levels for the same ends.

    Args:
        steps, sigma_min, sigma_max: as for `karras_sigmas`, as is the result.
        shift: the factor k, above 0.

    >>> flow_sigmas(3, 1 / 3, 3.0)
    tensor([3.0000, 1.0000, 0.3333, 0.0000], dtype=torch.float64)
    """
    ramp = _ramp(steps, sigma_min, sigma_max)
    if not shift > 0:
        raise option_error("shift", f"is a number above 0, not {shift}")

    def even(first: float, last: float) -> Tensor:
        return first + ramp * (last - first)

    times = even(sigma_max / (shift + sigma_max), sigma_min / (shift + sigma_min))
    rest = even(shift / (shift + sigma_max), shift / (shift + sigma_min))  # 1 - times, which would round to 0
    return _exactly(shift * times / rest, sigma_min, sigma_max)


TOO_FEW = 5
"""The number of steps below which heun and stochastic_heun make only noise."""

UNTUNED = "the solver consistency blurs the images of a model that was not tuned for it by patch-diffusion tune"
TUNED = "this model was tuned for the solver consistency, and {} distorts its images: leave solver out"
"""The notes on a solver that does not suit a model: consistency, or another."""

ONLY_NOISE = "{} makes only noise with {} steps: use 8 or more, or the solver dpm_solver_2m"
"""The note on a solver and its number of steps, if they are fewer."""

SCHEDULES: dict[str, Callable[..., Tensor]] = {
    "karras": karras_sigmas,
    "vp": vp_sigmas,
    "ve": ve_sigmas,
    "exponential": exponential_sigmas,
    "few": few_sigmas,
    "flow": flow_sigmas,
}
"""The schedules of noise levels by name, for `Sampling` and ``sample --schedule``.

>>> SCHEDULES["karras"](18, 0.002, 80.0).shape
torch.Size([19])
"""


def euler(
    denoise: Denoise, noisy: Images, sigmas: Sigmas, *, noise: StepNoise | None = None, callback: Callback | None = None
) -> Images:
    """Solve by Euler's method, of first order, with one evaluation a step; the same as DDIM (arXiv 2010.02502).

    Args:
        denoise, noisy, sigmas, noise, callback: as for `heun`, as is the result.

    >>> def denoise(noisy, sigma):  # where all data is grey
    ...     return torch.zeros_like(noisy)
    >>> euler(denoise, torch.ones(1, 3, 2, 2), torch.tensor([80.0, 1.0, 0.0])).abs().max()
    tensor(0.)
    """
    for index, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        denoised = begin_step(denoise, noisy, sigma, index, callback)
        noisy = denoised + next_sigma / sigma * (noisy - denoised)
    return noisy


def heun(
    denoise: Denoise, noisy: Images, sigmas: Sigmas, *, noise: StepNoise | None = None, callback: Callback | None = None
) -> Images:
    """Solve by Heun's method, of second order: two evaluations a step, one in the step to 0 (EDM, algorithm 1).

    Args:
        denoise: ``denoise(noisy, sigma)``, which returns the denoised images (n, c, h, w), such as by a `Denoiser`.
        noisy: images (n, c, h, w) with noise of level ``sigmas[0]``.
        sigmas: noise levels from high to low, the last may be 0, or upwards without a 0; see `karras_sigmas`.
        noise: unused; it is there so that all solvers are called alike.
        callback: called with every step.

    Returns:
        The images at ``sigmas[-1]``.

    >>> def denoise(noisy, sigma):  # where all data is grey
    ...     return torch.zeros_like(noisy)
    >>> heun(denoise, torch.ones(1, 3, 2, 2), torch.tensor([80.0, 1.0, 0.0])).abs().max()
    tensor(0.)
    """
    for index, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        denoised = begin_step(denoise, noisy, sigma, index, callback)
        noisy = heun_step(denoise, noisy, denoised, sigma, next_sigma)
    return noisy


def begin_step(denoise: Denoise, noisy: Images, sigma: Tensor, index: int, callback: Callback | None) -> Images:
    """Denoise the images that a step begins with, report the step if there is a callback, and return the denoised."""
    denoised = denoise(noisy, sigma)
    if callback:
        callback(Step(index, sigma, noisy, denoised))
    return denoised


def heun_step(denoise: Denoise, noisy: Images, denoised: Images, sigma: Level, next_sigma: Level) -> Images:
    """Take an Euler step, then take it again with the mean of the slopes at its two ends."""
    slope = (noisy - denoised) / sigma
    predicted = noisy + (next_sigma - sigma) * slope
    if next_sigma == 0:
        return predicted
    next_slope = (predicted - denoise(predicted, next_sigma)) / next_sigma
    return noisy + (next_sigma - sigma) * (slope + next_slope) / 2


def dpm_solver_2m(
    denoise: Denoise, noisy: Images, sigmas: Sigmas, *, noise: StepNoise | None = None, callback: Callback | None = None
) -> Images:
    """Solve by DPM-Solver++(2M), of second order, with one evaluation a step (arXiv 2211.01095, algorithm 2).

    In l = -ln(sigma) the ODE is dx/dl = D - x, so a step of h in l is x' = e^-h x + (1 - e^-h) D for a constant D. D is
    taken at the middle of the step, on the line through the last two D; the first step and the step to 0 take D itself.

    Args:
        denoise, noisy, sigmas, noise, callback: as for `heun`, as is the result.

    >>> def denoise(noisy, sigma):  # where all data is grey
    ...     return torch.zeros_like(noisy)
    >>> dpm_solver_2m(denoise, torch.ones(1, 3, 2, 2), torch.tensor([80.0, 1.0, 0.0])).abs().max()
    tensor(0.)
    """
    last = noisy
    for index, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        denoised = begin_step(denoise, noisy, sigma, index, callback)
        if next_sigma == 0:
            return denoised
        kept = next_sigma / sigma  # e^-h
        middle = denoised
        if index > 0:
            ratio = kept.log() / (sigma / sigmas[index - 1]).log()  # of h to that of the last step
            middle = denoised + ratio / 2 * (denoised - last)
        noisy = kept * noisy + (1 - kept) * middle
        last = denoised
    return noisy


def dpm_solver_3m(
    denoise: Denoise, noisy: Images, sigmas: Sigmas, *, noise: StepNoise | None = None, callback: Callback | None = None
) -> Images:
    """Solve by DPM-Solver++ with the last three D, of third order, with one evaluation a step (arXiv 2211.01095).

    A step of h in l = -ln(sigma) is x' = e^-h x + integral over u from 0 to h of e^-(h - u) D(l + u), here with the
    parabola D + slope u + curve u^2 through the last three D, or through as many as the first two steps have. With less
    than some 25 steps the parabola overshoots, and `dpm_solver_2m` is better.

    Args:
        denoise, noisy, sigmas, noise, callback: as for `heun`, as is the result.

    >>> def denoise(noisy, sigma):  # where all data is grey
    ...     return torch.zeros_like(noisy)
    >>> dpm_solver_3m(denoise, torch.ones(1, 3, 2, 2), torch.tensor([80.0, 1.0, 0.0])).abs().max()
    tensor(0.)
    """
    known: list[tuple[Tensor, Tensor]] = []  # l and D, the newest first
    for index, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        denoised = begin_step(denoise, noisy, sigma, index, callback)
        if next_sigma == 0:
            return denoised
        h = (sigma / next_sigma).log()
        kept = next_sigma / sigma  # e^-h
        known = [(-sigma.log(), denoised), *known[:2]]
        noisy = kept * noisy + (1 - kept) * denoised
        if len(known) > 1:
            (now, _), (before, last) = known[:2]
            slope = (denoised - last) / (now - before)
            if len(known) > 2:
                earliest, first = known[2]
                curve = (slope - (last - first) / (before - earliest)) / (now - earliest)
                slope = slope + curve * (now - before)
                noisy = noisy + (h**2 - 2 * h + 2 * (1 - kept)) * curve
            noisy = noisy + (h - (1 - kept)) * slope
    return noisy


def unipc(
    denoise: Denoise, noisy: Images, sigmas: Sigmas, *, noise: StepNoise | None = None, callback: Callback | None = None
) -> Images:
    """Solve by UniPC-2, a predictor and a corrector of third order, with one evaluation a step (arXiv 2302.04867).

    A step of h in l = -ln(sigma) is predicted as by `dpm_solver_2m`, which is UniP-2 with B(h) = e^h - 1 for denoised
    images. D at the predicted image also corrects it (UniC-2): the step is then taken again, with the parabola through
    the last two D and this one. The first step has a line through two, by its middle. D is not evaluated a second time,
    so the last step is predicted alone, to 0 by D itself.

    Args:
        denoise, noisy, sigmas, noise, callback: as for `heun`, as is the result.

    >>> def denoise(noisy, sigma):  # where all data is grey
    ...     return torch.zeros_like(noisy)
    >>> unipc(denoise, torch.ones(1, 3, 2, 2), torch.tensor([80.0, 1.0, 0.0])).abs().max()
    tensor(0.)
    """
    known: list[tuple[Tensor, Tensor]] = []  # l and D, the newest first
    start = noisy  # of the step that was predicted last
    for index, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        denoised = begin_step(denoise, noisy, sigma, index, callback)
        if next_sigma == 0:
            return denoised
        known = [(-sigma.log(), denoised), *known[:2]]
        if index > 0:
            noisy = _corrected(start, known)
        kept, middle = next_sigma / sigma, denoised  # e^-h
        if index > 0:
            (now, _), (before, last) = known[:2]
            middle = denoised - kept.log() / (now - before) / 2 * (denoised - last)
        start, noisy = noisy, kept * noisy + (1 - kept) * middle
    return noisy


def _corrected(start: Tensor, known: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Take the step from ``start`` to the newest of the known l again, by what D is there, see `dpm_solver_3m`."""
    (now, denoised), (before, last) = known[:2]
    h = now - before
    kept = (-h).exp()
    if len(known) < 3:
        return kept * start + (1 - kept) * (last + denoised) / 2
    earliest, first = known[2]
    slope = (denoised - last) / h
    curve = (slope - (last - first) / (before - earliest)) / (now - earliest)
    slope = slope - curve * h  # where the step begins
    return kept * start + (1 - kept) * last + (h - (1 - kept)) * slope + (h**2 - 2 * h + 2 * (1 - kept)) * curve


def options_of(
    kind: str, name: str, known: Mapping[str, Callable[..., Tensor]], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the options of a solver or schedule: given values, and its own defaults for those that are None.

    Raises:
        InputError: the name is not among the ``known`` ones, or a given option is not one of its own.
    """
    check_name(kind, name, known)
    defaults = {function: _defaults(known[function], given) for function in known}
    for option, value in given.items():
        if value is not None and option not in defaults[name]:
            users = ", ".join(f"'{function}'" for function in known if option in defaults[function])
            raise option_error(option, f"is not an option of the {kind} '{name}', only of {users}")
    return {
        option: given[option] if given[option] is not None else default for option, default in defaults[name].items()
    }


def _defaults(function: Callable[..., Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    return {option: parameters[option].default for option in options if option in parameters}


def wide(device: torch.device) -> torch.dtype:
    """Return the dtype in which solvers compute on a device: float64, or float32 on devices without it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _ramp(steps: int, sigma_min: float, sigma_max: float, rho: float = 1.0) -> Float64[Tensor, "{steps}"]:
    """Return evenly spaced numbers from 0 to 1; raise InputError if a schedule's option is out of range."""
    if not 1 <= steps <= _MOST_STEPS:
        raise InputError(f"sampling takes at least 1 step and at most {_MOST_STEPS:,}, not {steps}", option="steps")
    if not 0 < sigma_min <= sigma_max:
        raise InputError(
            f"noise levels must be 0 < sigma_min <= sigma_max, not {sigma_min} and {sigma_max}", option="sigma_min"
        )
    least = max(0.0, math.log(sigma_max) / 700)  # sigma_max^(1 / rho) is a number
    if not rho > least:
        raise option_error("rho", f"is a number above {least:.2g}, not {rho}")
    return torch.linspace(0, 1, steps, dtype=torch.float64)


def _exactly(sigmas: Tensor, sigma_min: float, sigma_max: float) -> Tensor:
    """Set the ends of the noise levels, which rounding has changed, to sigma_max and sigma_min, and append a 0."""
    sigmas[-1] = sigma_min
    sigmas[0] = sigma_max  # also of a single one
    return torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])
