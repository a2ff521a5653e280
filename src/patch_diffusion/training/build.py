"""From options and images to a trainer."""

from __future__ import annotations

from collections.abc import Collection
from os import PathLike

import torch

from patch_diffusion.config import Config
from patch_diffusion.data.augment import Augment
from patch_diffusion.data.images import Images, hold_out
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.noise import NoiseLevels
from patch_diffusion.denoise.process import PROCESSES
from patch_diffusion.patches.schedule import PatchSchedule
from patch_diffusion.streams import stream_key
from patch_diffusion.training.run import build_network
from patch_diffusion.training.trainer import Trainer


def build_trainer(
    config: Config, images: Images, out: str | PathLike[str], *, allow: Collection[str] = (), show: bool = True
) -> Trainer:
    """The trainer that the options describe, with fresh weights that follow from the seed.

    What `train` fits; nothing is written before it does. Of the images, those that ``data.held_out`` says are held out.
    See `Trainer` for the errors.
    """
    patches = {name: value for name, value in vars(config.patches).items() if name != "coords"}
    schedule = PatchSchedule(**patches, seed=config.seed)
    images, held_out = hold_out(images, config.data.held_out, config.seed)
    torch.manual_seed(stream_key(config.seed, "weights"))
    augment = Augment(**vars(config.data.augment))
    network = build_network(
        config.network,
        images.channels,
        images.num_classes,
        augment_channels=augment.channels,
        coords=config.patches.coords,
        context=config.patches.context,
    )
    noise, process = config.noise, PROCESSES[config.noise.process]
    denoiser = Denoiser(
        network,
        images.standard_deviation if noise.sigma_data is None else noise.sigma_data,
        process=process,
        coords=config.patches.coords,
        context=config.patches.context,
        sigma_min=noise.sigma_min,
        sigma_max=noise.sigma_max,
    )
    return Trainer(
        denoiser,
        images,
        schedule,
        out=out,
        batch=config.batch,
        held_out=held_out,
        augment=augment,
        noise=NoiseLevels(noise.p_mean, noise.p_std, process),
        optimizer=config.optimizer,
        ema=config.ema,
        engine=config.engine,
        checkpoints=config.checkpoints,
        checkpoint_minutes=config.checkpoint_minutes,
        checkpoint_steps=config.checkpoint_steps,
        checkpoint_last=config.checkpoint_last,
        checkpoint_best=config.checkpoint_best,
        watchdog=config.watchdog,
        samples=config.samples,
        log_every=config.log_every,
        allow=allow,
        track=config.track,
        show=show,
    )
