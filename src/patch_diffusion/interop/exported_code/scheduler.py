"""Noise levels, preconditioning and solvers of an exported model, as a scheduler of diffusers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from patch_diffusion.denoise.process import PROCESSES, Preconditioning
from patch_diffusion.sampling.choices import SOLVERS, options_of
from patch_diffusion.sampling.schedules import SCHEDULES
from patch_diffusion.sampling.step import Callback, Denoise, StepNoise


class PatchDiffusionScheduler(SchedulerMixin, ConfigMixin):
    """The settings that samples are made with, and `solve`, which makes them.

    Its solvers evaluate the network as often and where they like, some twice a step, so it has no ``step``; the names
    in its config are those of diffusers' EDM schedulers where they mean the same, so that one of those can be made of
    it: ``EDMDPMSolverMultistepScheduler.from_config(pipe.scheduler.config)``.

    Args:
        process: "edm", "ve" or "vp", what the network was trained in.
        sigma_data: standard deviation of the data in model space.
        sigma_min, sigma_max: the noise levels to go between.
        solver, schedule: their names, see ``SOLVERS`` and ``SCHEDULES``.
        rho, churn, churn_min, churn_max, churn_noise, eta: their options; their own defaults where None.
        sigma_schedule, prediction_type: not used here; what diffusers' EDM schedulers are to be told.
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
        churn: float | None = None,
        churn_min: float | None = None,
        churn_max: float | None = None,
        churn_noise: float | None = None,
        eta: float | None = None,
        sigma_schedule: str = "karras",
        prediction_type: str = "epsilon",
    ) -> None:
        # What is wrong with the settings is said when they are given.
        self.sigmas(2)
        self._solver()

    def preconditioning(self, sigma: Tensor) -> Preconditioning:
        """c_skip, c_out, c_in and c_noise at noise levels of any shape."""
        config: Any = self.config
        return PROCESSES[config.process].preconditioning(sigma, config.sigma_data)

    def sigmas(self, steps: int) -> Tensor:
        """Noise levels from high to low and then 0, ``(steps + 1,)`` float64."""
        config: Any = self.config
        options = options_of("schedule", config.schedule, SCHEDULES, {"rho": config.rho})
        return SCHEDULES[config.schedule](steps, config.sigma_min, config.sigma_max, **options)

    def solve(
        self, denoise: Denoise, noise: StepNoise, start: Tensor, steps: int, callback: Callback | None = None
    ) -> Tensor:
        """Images (n, c, h, w) out of ``start``, standard normal numbers; ``noise(index)`` gives those of a step."""
        levels = self.sigmas(steps).to(start.dtype)
        return self._solver()(denoise, start * levels[0], levels, noise=noise, callback=callback)

    def _solver(self) -> Any:
        config: Any = self.config
        names = ("churn", "churn_min", "churn_max", "churn_noise", "eta")
        options = options_of("solver", config.solver, SOLVERS, {name: config[name] for name in names})
        if config.solver == "euler_maruyama":
            options["process"] = PROCESSES[config.process]
        solve = partial(SOLVERS[config.solver], **options)
        nothing = torch.zeros(1)
        solve(lambda noisy, sigma: noisy, nothing, nothing, noise=lambda index: nothing)  # no step: checks its options
        return solve
