"""From a config to a trained run."""

from __future__ import annotations

import os
from os import PathLike

import torch

from patch_diffusion.config import Config
from patch_diffusion.data.sources import open_images
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.noise import NoiseLevels
from patch_diffusion.denoise.process import PROCESSES
from patch_diffusion.errors import InputError
from patch_diffusion.patches.schedule import PatchSchedule
from patch_diffusion.streams import stream_key
from patch_diffusion.training.budget import Budget
from patch_diffusion.training.processes import run_processes, started_by_launcher
from patch_diffusion.training.run import build_network, load
from patch_diffusion.training.trainer import Trainer


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
    patches = {name: value for name, value in vars(config.patches).items() if name != "coords"}
    schedule = PatchSchedule(**patches, seed=config.seed)
    data = config.data
    images = open_images(data.source, resolution=data.resolution, classes=data.classes, mode=data.mode, show=show)
    torch.manual_seed(stream_key(config.seed, "weights"))
    network = build_network(config.network, images.channels, images.num_classes, coords=config.patches.coords)
    noise, process = config.noise, PROCESSES[config.noise.process]
    denoiser = Denoiser(
        network,
        images.standard_deviation if noise.sigma_data is None else noise.sigma_data,
        process=process,
        coords=config.patches.coords,
        sigma_min=noise.sigma_min,
        sigma_max=noise.sigma_max,
    )
    trainer = Trainer(
        denoiser,
        images,
        schedule,
        out=out,
        batch=config.batch,
        noise=NoiseLevels(noise.p_mean, noise.p_std, process),
        optimizer=config.optimizer,
        ema=config.ema,
        engine=config.engine,
        checkpoints=config.checkpoints,
        checkpoint_minutes=config.checkpoint_minutes,
        samples=config.samples,
        log_every=config.log_every,
        show=show,
    )
    return trainer.fit(**vars(budget))
