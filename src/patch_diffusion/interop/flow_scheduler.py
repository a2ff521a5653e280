"""diffusers' scheduler of flow matching, ``FlowMatchEulerDiscreteScheduler``, in both directions.

Its sigma is the time t of the process `Flow`, and its timestep is t times ``num_train_timesteps``. Its network takes
x_t = (1 - t) image + t noise and returns the velocity noise - image, so it is the network of a `Denoiser` as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.process import Flow
from patch_diffusion.errors import InputError
from patch_diffusion.sampling.options import Sampling

SCHEDULER = "FlowMatchEulerDiscreteScheduler"


class FlowFacts(NamedTuple):
    """The meaning of a scheduler of flow matching: a noise process, a factor, and options of sampling.

    ``timestep_scale`` is that of a `DiffusersNetwork`; by ``sampling`` the solver has the scheduler's levels.
    """

    process: Flow
    timestep_scale: float
    sampling: Sampling


def flow_of(config: Mapping[str, Any]) -> FlowFacts:
    """Return the meaning of a ``scheduler_config.json`` of diffusers' scheduler of flow matching.

    What it says of other levels (dynamic shifts; Karras, exponential and beta levels) or of fresh noise is about
    sampling alone, and not carried.

    Raises:
        InputError: it is another scheduler, or one whose time runs from noise to images.

    >>> flow_of({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}).sampling.shift
    3.0
    """
    name = config.get("_class_name")
    if name != SCHEDULER:
        raise InputError(f"a scheduler of flow matching is a {SCHEDULER}, not a {name}")
    if config.get("invert_sigmas"):
        raise InputError(f"a {SCHEDULER} with invert_sigmas runs from noise to images: this is not supported")
    num, shift = config.get("num_train_timesteps", 1000), config.get("shift", 1.0)
    last = 1 / num
    for _ in range(2):  # the scheduler shifts its lowest time twice
        last = shift * last / (1 + (shift - 1) * last)
    sampling = Sampling(solver="euler", schedule="flow", shift=shift, sigma_min=last / (1 - last))
    return FlowFacts(Flow(), num / Flow.num_times, sampling)


def flow_scheduler(model: Denoiser, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the config of diffusers' scheduler that samples a model as the settings say; None if there is none."""
    process = model.process
    usual = (model.sigma_min, model.sigma_max) == (process.sigma_min, process.sigma_max)
    if not isinstance(process, Flow) or not usual or dict(settings) != {"solver": "euler", "schedule": "flow"}:
        return None
    return {"_class_name": SCHEDULER, "num_train_timesteps": Flow.num_times, "shift": 1.0}
