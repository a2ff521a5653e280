"""Noise levels, preconditioning and solvers of an exported model, as a scheduler of diffusers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from patch_diffusion.denoise.process import PROCESSES, Preconditioning
from patch_diffusion.sampling.solvers import SCHEDULES, options_of
from patch_diffusion.sampling.step import Callback, Denoise, StepNoise
from patch_diffusion.sampling.stochastic import OF_EACH


class PatchDiffusionScheduler(SchedulerMixin, ConfigMixin):
    """A scheduler with the sampling settings of an exported model, and `solve`, which samples by them.

    Solvers choose where and how often to evaluate the network, some twice a step, so there is no method ``step``. Names
    in its config are those of diffusers' EDM schedulers if they mean the same, so that these can be made from it:
    ``EDMDPMSolverMultistepScheduler.from_config(pipe.scheduler.config)``.

    Args:
        process: "edm", "ve", "vp", "x_prediction" or "flow", the noise process of the training.
        sigma_data: standard deviation of the data in model space.
        sigma_min, sigma_max: the lowest and the highest noise level.
        solver, schedule: the names of the solver and the schedule, see ``SOLVERS`` and ``SCHEDULES``.
        rho, shift, churn, churn_min, churn_max, churn_noise, eta: options of solver and schedule; None: their own
            defaults.
        sigma_schedule, prediction_type: not used here; settings for diffusers' EDM schedulers.
    """

    @register_to_config
    def __init__(
        self,
        process: str = "edm",
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        solver: str = "heun",
        schedule: str = "karras",
        rho: float | None = None,
        shift: float = 1.0,
        churn: float | None = None,
        churn_min: float | None = None,
        churn_max: float | None = None,
        churn_noise: float | None = None,
        eta: float | None = None,
        sigma_schedule: str = "karras",
        prediction_type: str = "epsilon",
    ) -> None:
        # Wrong settings raise an error here already, not when sampling begins.
        self.sigmas(2)
        self._solver()

    def preconditioning(self, sigma: Tensor) -> Preconditioning:
        """Return the EDM factors c_skip, c_out, c_in and c_noise at noise levels, a tensor of any shape."""
        config: Any = self.config
        return PROCESSES[config.process].preconditioning(sigma, config.sigma_data)

    def sigmas(self, steps: int) -> Tensor:
        """Return the noise levels of ``steps`` steps from high to low, and then 0, as float64 ``(steps + 1,)``."""
        config: Any = self.config
        given = {
            "rho": config.rho,
            "shift": None if config.shift == 1 else config.shift,
        }  # a number, as diffusers has it
        options = options_of("schedule", config.schedule, SCHEDULES, given)
        if config.schedule == "few":
            options["sigma_data"] = config.sigma_data
        return SCHEDULES[config.schedule](steps, config.sigma_min, config.sigma_max, **options)

    def solve(
        self,
        denoise: Denoise,
        noise: StepNoise,
        start: Tensor,
        steps: int,
        callback: Callback | None = None,
        mean: Tensor | float = 0.0,
    ) -> Tensor:
        """Sample images (n, c, h, w) from normal numbers ``start`` about a mean; ``noise(index)`` is that of a step."""
        levels = self.sigmas(steps).to(start.dtype)
        return self._solver()(denoise, mean + start * levels[0], levels, noise=noise, callback=callback)

    def _solver(self) -> Any:
        config: Any = self.config
        names = ("churn", "churn_min", "churn_max", "churn_noise", "eta")
        solvers = OF_EACH[config.process]
        options = options_of("solver", config.solver, solvers, {name: config[name] for name in names})
        if config.solver == "euler_maruyama":
            options["process"] = PROCESSES[config.process]
        solve = partial(solvers[config.solver], **options)
        nothing = torch.zeros(1)
        solve(lambda noisy, sigma: noisy, nothing, nothing, noise=lambda index: nothing)  # no step: checks options
        return solve
