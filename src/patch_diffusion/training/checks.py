"""Checks of training options that do not go together, made before anything is written."""

from __future__ import annotations

from patch_diffusion.config import Config, Watch
from patch_diffusion.data.attributes import width_of
from patch_diffusion.data.augment import Augment
from patch_diffusion.data.images import Images
from patch_diffusion.data.latents.folder import LatentSet
from patch_diffusion.data.paired import channels_of
from patch_diffusion.denoise.denoiser import NO_PLACES, Denoiser
from patch_diffusion.errors import InputError, option_error


def check_network(denoiser: Denoiser, images: Images, augment: Augment, context: int | None) -> None:
    """Raise InputError if channels, classes, augmentation or context (small copies) do not suit the network."""
    if denoiser.context not in (None, context):
        raise InputError(
            f"the denoiser has a context of {denoiser.context}, but patches.context is {context}",
            option="patches.context",
        )
    if context is not None and not denoiser.coords:
        raise InputError(NO_PLACES, option="patches.coords")
    has = getattr(denoiser.network, "context", None)
    if has is not None and has != (context is not None):
        raise InputError(
            f"the network has context={has}, but patches.context is {context}: build it with context={not has}",
            option="patches.context",
        )
    if augment.channels not in (0, denoiser.augment_channels):
        raise InputError(
            f"the network is told of augmentation by {denoiser.augment_channels} numbers, but data.augment gives "
            f"{augment.channels}: build it with augment_channels={augment.channels}",
            option="data.augment",
        )
    if isinstance(images, LatentSet) and (augment.p or augment.flip):
        raise InputError(
            "latents cannot be augmented: make those of the mirrored images too (prepare --flips)",
            option="data.augment",
        )
    if denoiser.image_channels not in (None, images.channels):
        raise InputError(f"the network takes {denoiser.image_channels} channels, but the images have {images.channels}")
    if denoiser.mean_data is not None and len(denoiser.mean_data) not in (1, images.channels):
        raise option_error(
            "noise.mean_data", f"has {len(denoiser.mean_data)} numbers, but the images have {images.channels} channels"
        )
    if denoiser.attribute_channels not in (0, told := width_of(images.columns)):
        raise InputError(
            f"the network is told of attributes by {denoiser.attribute_channels} numbers, but the conditions of the "
            f"images have {told}: build it with attribute_channels={told}",
            option="data.conditions",
        )
    if denoiser.paired_channels not in (0, shown := channels_of(images.inputs)):
        raise InputError(
            f"the network is shown paired inputs by {denoiser.paired_channels} channels, but those of the images have "
            f"{shown}: build it with paired_channels={shown}",
            option="data.paired",
        )
    if images.inputs and context is not None:
        raise InputError(
            "patches.context makes images in two stages, and data.paired are inputs for one: leave one of them out",
            option="patches.context",
        )
    if denoiser.num_classes and denoiser.num_classes != images.num_classes:
        raise InputError(
            f"the network knows {denoiser.num_classes} classes, but the images have {images.num_classes or 'none'}"
        )


def check_watching(config: Config, images: Images, held_out: Images | None, *, continues: bool) -> None:
    """Raise InputError if the best checkpoint is to be chosen by a metric that is not, or cannot be, measured.

    Args:
        config: all options.
        images, held_out: the training images, and the held-out ones if there are any.
        continues: True if a run continues, whose metrics may be switched off now.
    """
    watch, best, by = config.watch, config.checkpoint_best, config.checkpoint_by
    idle = [name for name, value in vars(watch).items() if value != getattr(Watch(), name)]
    if idle and not watch.metrics and not continues:
        raise option_error(
            f"watch.{idle[0]}", "has no effect without watch.metrics: add --watch.metrics frechet, or leave it out"
        )
    if watch.metrics and isinstance(images, LatentSet):
        raise option_error(
            "watch.metrics",
            "compare samples with the images of the training, and these are latents: measure afterwards, "
            "with evaluate --data IMAGES",
        )
    if by != "loss" and not best:
        raise option_error("checkpoint_by", f"{by} says which checkpoint is the best: add checkpoint_best")
    if by != "loss" and by not in watch.metrics:
        raise option_error("checkpoint_by", f"{by} needs it to be measured: add watch.metrics {by}")
    if best and by == "loss" and config.few_steps is not None:
        raise option_error(
            "checkpoint_best",
            "needs checkpoint_by kernel and watch.metrics kernel here: a loss does not tell how good few steps are",
        )
    if best and by == "loss" and held_out is None:
        raise option_error("checkpoint_best", "needs images that are held out: give data.held_out, for example 0.05")
