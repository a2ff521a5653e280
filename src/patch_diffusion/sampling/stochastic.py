"""Stochastic solvers, which add noise as they go, and all solvers by name.

Fresh noise forgets the errors of earlier steps, at the price of more steps. These solvers are called like those in
`solvers`; ``noise(index)`` returns the standard normal numbers of a step, so the caller decides how they are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

from torch import Tensor

from patch_diffusion.denoise.process import EDM, PROCESSES, Process
from patch_diffusion.errors import InputError, option_error
from patch_diffusion.sampling.solvers import begin_step, dpm_solver_2m, dpm_solver_3m, euler, heun, heun_step, unipc
from patch_diffusion.sampling.step import Callback, Denoise, Images, Sigmas, StepNoise
from patch_diffusion.sampling.straight import flow_heun, flow_heun_step


def euler_maruyama(
    denoise: Denoise,
    noisy: Images,
    sigmas: Sigmas,
    *,
    noise: StepNoise | None = None,
    callback: Callback | None = None,
    process: Process | None = None,
) -> Images:
    """Solve the reverse SDE dx = [f - g^2 score] dt + g dw to first order (score-SDE, arXiv 2011.13456, section 4).

    The steps are in the time and the scale of ``process``, though ``noisy`` and the result are not scaled. The solver
    needs small steps, some hundreds. The step to 0 takes the denoised image, without noise.

    Args:
        denoise, noisy, sigmas, noise, callback: as for `ancestral`, as is the result.
        process: `EDM`, `VE`, `VP` or `Flow`; None: EDM.

    Raises:
        InputError: ``noise`` is not given.

    >>> def denoise(noisy, sigma):  # where all data is grey
    ...     return torch.zeros_like(noisy)
    >>> levels = torch.tensor([80.0, 1.0, 0.0])
    >>> euler_maruyama(denoise, torch.ones(1, 3, 2, 2), levels, noise=lambda index: torch.randn(1, 3, 2, 2)).abs().max()
    tensor(0.)
    """
    noise = _needed(noise, "euler_maruyama")
    process = process or EDM()
    times = process.time(sigmas)
    scaled = process.scale(times[0]) * noisy
    for index, (time, next_time) in enumerate(pairwise(times)):
        noisy = scaled / process.scale(time)
        denoised = begin_step(denoise, noisy, sigmas[index], index, callback)
        if sigmas[index + 1] == 0:
            return denoised
        drift, diffusion = process.reverse(noisy, denoised, time)
        scaled = scaled + (next_time - time) * drift + diffusion * (time - next_time).sqrt() * noise(index)
    return scaled / process.scale(times[-1])


def stochastic_heun(
    denoise: Denoise,
    noisy: Images,
    sigmas: Sigmas,
    *,
    noise: StepNoise | None = None,
    callback: Callback | None = None,
    churn: float = 40.0,
    churn_min: float = 0.05,
    churn_max: float = 50.0,
    churn_noise: float = 1.003,
    step: Callable[..., Images] = heun_step,
) -> Images:
    """Solve by Heun's steps, each from a noise level first raised a little (EDM, arXiv 2206.00364, algorithm 2).

    The defaults are EDM's for ImageNet (table 5). The steps given to ``callback`` have the raised level.

    Args:
        denoise, noisy, sigmas, noise, callback: as for `ancestral`, as is the result.
        churn: S_churn, at least 0: each level is raised by the factor 1 + min(churn / steps, sqrt(2) - 1).
        churn_min, churn_max: S_tmin and S_tmax, the noise levels between which levels are raised.
        churn_noise: S_noise, standard deviation of the fresh noise; a little above 1 makes up for lost detail.
        step: Heun's step, `heun_step` or `flow_heun_step`.

    Raises:
        InputError: ``noise`` is not given, or an option is out of its range.

    >>> def denoise(noisy, sigma):  # where all data is grey
    ...     return torch.zeros_like(noisy)
    >>> levels = torch.tensor([80.0, 1.0, 0.0])
    >>> stochastic_heun(denoise, torch.ones(1, 3, 2, 2), levels, noise=lambda index: torch.zeros(1)).abs().max()
    tensor(0.)
    """
    noise = _needed(noise, "stochastic_heun")
    if not churn >= 0 or not churn_noise >= 0:
        raise option_error("churn", f"and churn_noise are at least 0, not {churn} and {churn_noise}")
    if not churn_min <= churn_max:
        raise option_error("churn_min", f"must not be above churn_max, as {churn_min} and {churn_max} are")
    most = min(churn / max(len(sigmas) - 1, 1), math.sqrt(2) - 1)
    for index, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        if most > 0 and churn_min <= sigma <= churn_max:
            raised = (1 + most) * sigma
            noisy = noisy + churn_noise * (raised**2 - sigma**2).sqrt() * noise(index)
            sigma = raised
        denoised = begin_step(denoise, noisy, sigma, index, callback)
        noisy = step(denoise, noisy, denoised, sigma, next_sigma)
    return noisy


def ancestral(
    denoise: Denoise,
    noisy: Images,
    sigmas: Sigmas,
    *,
    noise: StepNoise | None = None,
    callback: Callback | None = None,
    eta: float = 1.0,
) -> Images:
    """Solve by Euler's steps to below the next noise level, and add fresh noise up to that level.

    An eta of 1 is ancestral sampling as in DDPM (arXiv 2006.11239, equation 7), 0 is Euler, or DDIM, and between them
    are the solvers of DDIM (arXiv 2010.02502, equation 16).

    Args:
        denoise: ``denoise(noisy, sigma)``, which returns the denoised images (n, c, h, w), such as by a `Denoiser`.
        noisy: images (n, c, h, w) with noise of level ``sigmas[0]``.
        sigmas: noise levels from high to low, the last may be 0; see `karras_sigmas`.
        noise: ``noise(index)``, which returns standard normal numbers like ``noisy`` for a step.
        callback: called with every step.
        eta: the share of fresh noise, from 0, none, to 1.

    Returns:
        The images at ``sigmas[-1]``.

    Raises:
        InputError: ``noise`` is not given, or eta is out of its range.

    >>> def denoise(noisy, sigma):  # where all data is grey
    ...     return torch.zeros_like(noisy)
    >>> levels = torch.tensor([80.0, 1.0, 0.0])
    >>> ancestral(denoise, torch.ones(1, 3, 2, 2), levels, noise=lambda index: torch.randn(1, 3, 2, 2)).abs().max()
    tensor(0.)
    """
    noise = _needed(noise, "ancestral")
    if not 0 <= eta <= 1:
        raise option_error("eta", f"is between 0 (no noise) and 1, not {eta}")
    for index, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        denoised = begin_step(denoise, noisy, sigma, index, callback)
        if next_sigma == 0:
            return denoised
        fresh = eta * next_sigma * (1 - (next_sigma / sigma) ** 2).sqrt()
        left = (next_sigma**2 - fresh**2).sqrt()
        noisy = denoised + left / sigma * (noisy - denoised) + fresh * noise(index)
    return noisy


def consistency(
    denoise: Denoise,
    noisy: Images,
    sigmas: Sigmas,
    *,
    noise: StepNoise | None = None,
    callback: Callback | None = None,
) -> Images:
    """Sample by a consistency function: go to the image, and add fresh noise of the next level (arXiv 2303.01469).

    It is for models that `tune` has made, with `few_sigmas`: ``denoise`` has to return the end of the path of the ODE
    on which the noisy image lies. An ordinary denoiser returns a mean of images, which is blurred.

    Args:
        denoise, noisy, sigmas, noise, callback: as for `ancestral`, as is the result.

    Raises:
        InputError: ``noise`` is not given.

    >>> def denoise(noisy, sigma):  # where all data is grey
    ...     return torch.zeros_like(noisy)
    >>> levels = torch.tensor([80.0, 1.0, 0.0])
    >>> consistency(denoise, torch.ones(1, 3, 2, 2), levels, noise=lambda index: torch.randn(1, 3, 2, 2)).abs().max()
    tensor(0.)
    """
    noise = _needed(noise, "consistency")
    for index, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
        noisy = begin_step(denoise, noisy, sigma, index, callback)
        if next_sigma > 0:
            noisy = noisy + next_sigma * noise(index)
    return noisy


SOLVERS: dict[str, Callable[..., Tensor]] = {
    "euler": euler,
    "heun": heun,
    "dpm_solver_2m": dpm_solver_2m,
    "dpm_solver_3m": dpm_solver_3m,
    "unipc": unipc,
    "euler_maruyama": euler_maruyama,
    "stochastic_heun": stochastic_heun,
    "ancestral": ancestral,
    "consistency": consistency,
}
"""The solvers by name, for `Sampling` and ``sample --solver``.

>>> sorted(SOLVERS)[:3]
['ancestral', 'consistency', 'dpm_solver_2m']
"""


STOCHASTIC = ("euler_maruyama", "stochastic_heun", "ancestral", "consistency")
"""The names of the solvers that add noise."""

OF_EACH: dict[str, dict[str, Callable[..., Tensor]]] = {
    **dict.fromkeys(PROCESSES, SOLVERS),
    "flow": SOLVERS | {"heun": flow_heun, "stochastic_heun": partial(stochastic_heun, step=flow_heun_step)},
}
"""The solvers of each process, by the names of both."""


def _needed(noise: StepNoise | None, solver: str) -> StepNoise:
    if noise is None:
        raise InputError(f"{solver} adds noise at every step: give noise=, a function of the step's index")
    return noise
