"""From a config to a trained run."""

from __future__ import annotations

import os
from os import PathLike

from patch_diffusion.config import Config
from patch_diffusion.data.sources import open_images
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError
from patch_diffusion.training.budget import Budget
from patch_diffusion.training.build import build_trainer
from patch_diffusion.training.processes import run_processes, started_by_launcher
from patch_diffusion.training.run import load


def train(config: Config, out: str | PathLike[str], *, show: bool = True) -> Denoiser:
    """Train what the config describes into the run folder ``out``, or continue a stopped run there.

    What the command line's ``train`` calls. See `Trainer` for the errors and `Trainer.fit` for the result. With
    ``engine.processes`` above 1 it starts that many; a program that calls it then needs ``if __name__ == "__main__":``.
    """
    processes = config.engine.processes
    if processes is not None and processes < 1:
        raise InputError(f"engine.processes is at least 1, not {processes}")
    if processes is None or processes == 1 or started_by_launcher():
        return _train(config, out, show)
    run_processes(processes, _train, config, os.fspath(out), show)
    return load(out, device=config.engine.device)


def _train(config: Config, out: str | PathLike[str], show: bool) -> Denoiser:
    budget = Budget(config.steps, config.images, config.minutes)
    show = show and os.environ.get("RANK", "0") == "0"  # of several processes the first speaks
    how = {name: value for name, value in vars(config.data).items() if name != "augment"}
    images = open_images(**how, show=show)
    return build_trainer(config, images, out, show=show).fit(**vars(budget))
