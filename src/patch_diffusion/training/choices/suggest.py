"""Suggested options that fit the images: noise, levels of the network, patch sizes, batch, and number format."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from dataclasses import replace

from patch_diffusion.config import Config
from patch_diffusion.data.images import Images
from patch_diffusion.data.latents.codec import LatentCodec
from patch_diffusion.devices import choose_device, processor_has_bf16
from patch_diffusion.errors import option_error
from patch_diffusion.patches.shapes import Shape
from patch_diffusion.training.choices.batch import limit_pixels
from patch_diffusion.training.choices.noise import with_noise
from patch_diffusion.training.choices.shapes import (
    consistent,
    networks_for,
    reasons_for,
    seen_by,
    sizes_for_network,
    stride,
)
from patch_diffusion.training.optimizing.optimizers import settled

# Latents are trained whole or in halves, as published (Patch Diffusion, arXiv 2304.12526, section 4).
_SIZES_OF_LATENTS = {"1/2": 1.0}
# Images with smaller sides gain little: LOG.md, "bf16 by the clock".
_SMALLEST_IN_BF16 = 64


def suggest(images: Images, base: Config, given: Collection[str] = ()) -> tuple[Config, list[str]]:
    """Suggest options that fit the images: noise levels, levels of the network, patch sizes, batch and number format.

    Options that fit are not changed, nor are options that the user gave. If no allowed change would help, the options
    are returned as they were, and the trainer reports what is wrong with them.

    Args:
        images: the images, of one resolution or several.
        base: the options to start from, for instance those of a preset.
        given: names of the options that the user gave, such as "patches.sizes" or "network.multipliers".

    Returns:
        The options, and a sentence for each option that was changed.

    Raises:
        InputError: an option was given that has no meaning for such images.

    >>> images = ImageSet(torch.zeros(9, 1, 28, 28, dtype=torch.uint8))
    >>> config, reasons = suggest(images, PRESETS["small"])
    >>> config.patches.sizes
    {'16': 0.6, '8': 0.4}
    """
    if "network.label_dropout" in given and base.network.label_dropout and not (images.num_classes or images.columns):
        raise option_error(
            "network.label_dropout",
            "hides classes in training, and these images have none: give --data.classes True if "
            "their sub-folders are classes, or leave it out",
        )
    network, replaced = consistent(base.network, given)
    base, rate = _learning_rate(replace(base, network=network), given)
    base, reasons = with_noise(images, base, given)
    reasons = [*replaced, *rate, *reasons]
    resolutions = [bucket.resolution for bucket in images.buckets]
    latents = isinstance(images.codec, LatentCodec) and "patches.sizes" not in given
    wanted = _SIZES_OF_LATENTS if latents else base.patches.sizes
    for network in networks_for(base.network, seen_by(base.patches, resolutions), given):
        sizes = sizes_for_network(wanted, base.patches.whole, resolutions, stride(network), given)
        if sizes is not None:
            chosen = replace(base, network=network, patches=replace(base.patches, sizes=sizes))
            reasons += reasons_for(base, chosen, resolutions, wanted)
            chosen, more = limit_pixels(chosen, images, stride(network), given)
            chosen, why = _number_format(chosen, resolutions, given)
            return chosen, reasons + more + why
    return base, reasons


def _learning_rate(config: Config, given: Collection[str]) -> tuple[Config, list[str]]:
    """Replace a preset's learning rate where edm2 was asked for in place of its network; return config and reasons."""
    optimizer, asked = config.optimizer, "network.kind" in given and "optimizer.learning_rate" not in given
    if config.network.kind != "edm2" or not asked or optimizer.learning_rate is None:
        return config, []
    usual = settled(replace(optimizer, learning_rate=None), config.network.kind)
    if usual == optimizer:
        return config, []
    larger = "the weights of network.kind edm2 are larger than those of the preset"
    return replace(config, optimizer=usual), [f"optimizer.learning_rate {usual.learning_rate:g}: {larger}"]


def _number_format(config: Config, resolutions: Sequence[Shape], given: Collection[str]) -> tuple[Config, list[str]]:
    """Choose bf16 on a CPU that has it, if images or patches are large enough to gain; return config and reasons."""
    engine = config.engine
    side = max(math.sqrt(math.prod(seen)) for seen in seen_by(config.patches, resolutions))
    # The machines of a run with several processes may differ, and compiled networks were not measured.
    settled = engine.precision != "auto" or engine.compile or int(os.environ.get("WORLD_SIZE", "1")) > 1
    if "engine.precision" in given or settled or side < _SMALLEST_IN_BF16:
        return config, []
    if choose_device(engine.device).type != "cpu" or not processor_has_bf16():
        return config, []
    reason = "engine.precision bf16: on this processor it is faster than fp32 for images of this size"
    return replace(config, engine=replace(engine, precision="bf16")), [reason]
