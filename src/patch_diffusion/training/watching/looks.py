"""What is looked at between steps: pictures of samples, the loss of held-out images, and how good samples are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from patch_diffusion.config import Watch
from patch_diffusion.data.images import Images
from patch_diffusion.data.small import small_shape
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.whole_image import losses_of_images
from patch_diffusion.evaluation.meter import MeterReading
from patch_diffusion.sampling.generate import generate
from patch_diffusion.sampling.pictures import picture_grid, write_picture
from patch_diffusion.training.watchdog import COLLAPSED

if TYPE_CHECKING:
    from patch_diffusion.training.trainer import Trainer

MOST_HELD_OUT = 64
"""Held-out images that are looked at whenever a checkpoint is written."""


LARGEST_PICTURE = 256
"""Root of the pixels of an image that, with a context, is sampled for a picture during training; of larger ones the
small copies are."""


class Meter(Protocol):
    """What measures samples while a model is trained, such as `SampleMeter`. The same model has the same numbers."""

    @property
    def options(self) -> Watch:
        """When, and of what; they are stored with the run."""
        ...

    def begin(self, images: Images, held_out: Images | None, device: torch.device) -> None:
        """Get ready, before the first step, with the images to train on and those that are held out.

        Raises:
            InputError: samples of a model of these cannot be measured.
        """
        ...

    def __call__(self, model: Denoiser) -> MeterReading:
        """Sample and measure."""
        ...


@dataclass(frozen=True)
class Copying:
    """What was said of copies, so that a run says it once, also one that was stopped and continues.

    ``clean``: the newest step after which samples were none. ``told``: that they are now is told already.
    """

    clean: int | None = None
    told: bool = False


def write_samples(trainer: Trainer) -> bool:
    """A picture of samples from fixed seeds; whether there is nothing to see in any of them.

    Processes that share the model all make it, and the first writes.
    """
    num = trainer.denoiser.num_classes
    seeds = range(min(num, 10) * 2 if num else 16)
    samples = generate(trainer.average.denoiser, seeds, resolution=picture_resolution(trainer))
    pictures = [sample.visible for sample in samples]
    if trainer.engine.group.first:
        grid = picture_grid(pictures, columns=len(seeds) // 2 if num else None)
        step = trainer.seen.step
        trainer.progress.picture(write_picture(grid, trainer.run.sample_file(step)), step)
    least = COLLAPSED * trainer.denoiser.sigma_data * 255 / 2
    return all(picture.float().std() < least for picture in pictures)


def held_out_loss(trainer: Trainer, spent: float) -> float | None:
    """Of the averaged model on images that are held out, into the log; None where none are.

    Beside whole images stand patches of them, of each size of the schedule.
    """
    images, model = trainer.held_out, trainer.average.denoiser
    if images is None or not trainer.engine.group.takes_part:
        return None
    whole = losses_of_images(model, images, most=MOST_HELD_OUT)
    by_noise = {sigma: float(losses.mean()) for sigma, losses in whole.items()}
    by_size: dict[str, list[torch.Tensor]] = {}
    means = torch.stack(list(whole.values())).mean(dim=0)
    parts = means.split([min(len(bucket), MOST_HELD_OUT) for bucket in images.buckets])
    for bucket, of_whole in zip(images.buckets, parts, strict=True):
        height, width = bucket.resolution
        by_size.setdefault(f"{height}x{width}", []).append(of_whole)
        for size in trainer.schedule.sizes_for(bucket.resolution, trainer.denoiser.stride):
            if size.shape != bucket.resolution and not size.small:
                losses = losses_of_images(model, bucket, most=MOST_HELD_OUT, size=size.shape)
                by_size.setdefault(str(size), []).append(torch.stack(list(losses.values())).mean(dim=0))
    of_sizes = {size: float(torch.cat(losses).mean()) for size, losses in by_size.items()}
    return trainer.progress.log_held_out(trainer.seen, spent, by_noise, of_sizes)


def measure_samples(trainer: Trainer, spent: float) -> Mapping[str, float]:
    """What the meter finds, into the log, with a warning where samples begin to be copies; empty where it is not asked.

    Processes that share the model all measure; of others the first does.
    """
    if trainer.meter is None or not trainer.engine.group.takes_part:
        return {}
    measured, step = trainer.meter(trainer.average.denoiser), trainer.seen.step
    trainer.progress.log_samples(trainer.seen, spent, measured.numbers)
    clean, told = trainer.copying.clean, trainer.copying.told
    if not measured.warning:
        trainer.copying = Copying(clean=step)
    elif not told:
        before = f"after step {clean:,} it did not: stop about there" if clean else "it did at the first look already"
        trainer.progress.note(f"WARNING: {measured.warning}; {before}", step)
        trainer.copying = Copying(clean, told=True)
    return measured.numbers


def picture_resolution(trainer: Trainer) -> tuple[int, int]:
    """Height and width of the samples in a picture: with a context, of large images the small copies."""
    context, resolution = trainer.schedule.context, trainer.images.resolution
    if context is None or math.prod(resolution) <= LARGEST_PICTURE**2:
        return resolution
    return small_shape(context, resolution, trainer.denoiser.stride)
