"""Suggested options that fit the images: noise, levels of the network, patch sizes, batch, and number format."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction

from patch_diffusion.config import Config, Network, Patches
from patch_diffusion.data.images import Images
from patch_diffusion.data.latents.codec import LatentCodec
from patch_diffusion.denoise.networks.unet import STYLES, UNet
from patch_diffusion.devices import choose_device, processor_has_bf16
from patch_diffusion.errors import InputError
from patch_diffusion.patches.schedule import PatchSchedule, patch_shape

Resolution = tuple[int, ...]

LARGEST_AS_PRESET = 128
"""The square root of the largest image area for which a preset's levels suffice; each doubling adds a level, since the
cost of attention at the lowest levels grows with the square of the number of pixels there."""

FURTHEST_SIZE = math.sqrt(2)
"""The largest factor between a wanted patch size and the one that is chosen so that the network can take it."""

# Latents are trained whole or in halves, as published (Patch Diffusion, arXiv 2304.12526, section 4).
_SIZES_OF_LATENTS = {"1/2": 1.0}

_FEWEST_IMAGES = 2  # smallest batch, so that two threads can share it
# Compared with 0.5 on faces of 64 x 64, three seeds, and on photographs together with the batch: LOG.md, "Smaller steps
# on larger images".
_WHOLE_WHERE_LARGE = 0.25
# Images with smaller sides gain little: LOG.md, "bf16 by the clock".
_SMALLEST_IN_BF16 = 64
_LEAST_SHIFT = 0.5  # smallest shift of p_mean that is worth an option
_FEWEST_LEVELS = 2
_LARGEST_DENOMINATOR = 32


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
    if "network.label_dropout" in given and base.network.label_dropout and not images.num_classes:
        raise InputError(
            "network.label_dropout hides classes in training, and these images have none: give --data.classes True if "
            "their sub-folders are classes, or leave it out"
        )
    base, reasons = _shifted(images, base, given)
    resolutions = [bucket.resolution for bucket in images.buckets]
    latents = isinstance(images.codec, LatentCodec) and "patches.sizes" not in given
    wanted = _SIZES_OF_LATENTS if latents else base.patches.sizes
    for network in _networks(base.network, _seen(base.patches, resolutions), given):
        sizes = _sizes(wanted, base.patches.whole, resolutions, stride(network), given)
        if sizes is not None:
            chosen = replace(base, network=network, patches=replace(base.patches, sizes=sizes))
            reasons += _reasons(base, chosen, resolutions, wanted)
            chosen, more = limit_pixels(chosen, images, stride(network), given)
            chosen, why = _number_format(chosen, resolutions, given)
            return chosen, reasons + more + why
    return base, reasons


def stride(network: Network) -> int:
    """Return the number by which the height and width of every input of a network must be divisible."""
    if network.kind in STYLES:
        return 2 ** (len(_multipliers(network)) - 1)
    if network.kind == "dit":
        from patch_diffusion.denoise.networks.dit import DiT

        return network.token or inspect.signature(DiT).parameters["token"].default
    return 1


def _shifted(images: Images, config: Config, given: Collection[str]) -> tuple[Config, list[str]]:
    """Shift the noise levels if images are flatter, or larger, than a preset expects; return the config and reasons.

    Images with k times the deviation are the same problem at k times the noise, and images with k times the side show
    as much at k times the noise (Hoogeboom et al., arXiv 2301.11093, section 2.1).
    """
    if {"noise.p_mean", "noise.p_std", "noise.process"} & set(given) or config.noise.process != "edm":
        return config, []
    deviation, side = images.standard_deviation, math.sqrt(math.prod(images.resolution))
    shift = math.log(deviation / 0.5) + math.log(max(side, 64) / 64) if deviation > 0 else 0.0
    if abs(shift) < _LEAST_SHIFT:
        return config, []
    usual = -1.2 if config.noise.p_mean is None else config.noise.p_mean
    p_mean = round(usual + shift, 1)
    reason = (
        f"noise.p_mean {p_mean:g}: {usual:g} is for images of deviation 0.5 and up to 64 pixels, and these have "
        f"{deviation:.2f} and {side:.0f}"
    )
    return replace(config, noise=replace(config.noise, p_mean=p_mean)), [reason]


def limit_pixels(config: Config, images: Images, stride: int, given: Collection[str]) -> tuple[Config, list[str]]:
    """Reduce the batch, and then also the share of whole images, to ``batch_pixels``; return the config and reasons."""
    most, batch = config.batch_pixels, config.batch
    if most is not None and most < 1:
        raise InputError(f"batch_pixels is at least 1, not {most}")
    if most is None or "batch" in given or batch == "auto":
        if most is not None and "batch_pixels" in given:
            raise InputError("batch_pixels is for a batch that is not given: leave one of them out")
        return config, []
    schedule = PatchSchedule.of(config.patches)
    pixels, side = max(
        (size.growth * math.prod(size.shape), "x".join(map(str, bucket.resolution)))
        for bucket in images.buckets
        for size in schedule.sizes_for(bucket.resolution, stride)
    )
    fewer = max(_FEWEST_IMAGES, int(most / pixels))
    if fewer >= batch:
        return config, []
    reasons = [f"batch {fewer}: a step on {batch} images of {side} would be on more than {most:,} pixels"]
    patches = config.patches
    if "patches.whole" not in given and _WHOLE_WHERE_LARGE < patches.whole < 1:
        patches = replace(patches, whole=_WHOLE_WHERE_LARGE)
        reasons.append(
            f"patches.whole {patches.whole:g}, not {config.patches.whole:g}: whole images of this size cost most"
        )
    return replace(config, batch=fewer, patches=patches), reasons


def _number_format(
    config: Config, resolutions: Sequence[Resolution], given: Collection[str]
) -> tuple[Config, list[str]]:
    """Choose bf16 on a CPU that has it, if images or patches are large enough to gain; return config and reasons."""
    engine = config.engine
    side = max(math.sqrt(math.prod(seen)) for seen in _seen(config.patches, resolutions))
    # The machines of a run with several processes may differ, and compiled networks were not measured.
    settled = engine.precision != "auto" or engine.compile or int(os.environ.get("WORLD_SIZE", "1")) > 1
    if "engine.precision" in given or settled or side < _SMALLEST_IN_BF16:
        return config, []
    if choose_device(engine.device).type != "cpu" or not processor_has_bf16():
        return config, []
    reason = "engine.precision bf16: this processor computes in it, and takes longer for images of this size in fp32"
    return replace(config, engine=replace(engine, precision="bf16")), [reason]


def _seen(patches: Patches, resolutions: Sequence[Resolution]) -> Sequence[Resolution]:
    """Return the input shapes of the network: whole images, or patches if it never sees whole images at full size."""
    if patches.whole > 0 or patches.context is None:
        return resolutions
    try:
        return [patch_shape(size, whole) for whole in resolutions for size, share in patches.sizes.items() if share > 0]
    except InputError:
        return resolutions


def _multipliers(network: Network) -> tuple[int, ...]:
    return network.multipliers or inspect.signature(UNet).parameters["multipliers"].default


def _networks(network: Network, resolutions: Sequence[Resolution], given: Collection[str]) -> Iterator[Network]:
    """Yield network options, in order of preference: more levels for large images, as given, fewer levels."""
    if "network.multipliers" in given or network.kind not in STYLES:
        yield network
        return
    multipliers = _multipliers(network)
    side = max(math.sqrt(height * width) for height, width in resolutions)
    more = max(0, math.ceil(math.log2(side / LARGEST_AS_PRESET) - 1e-9))
    fewest = min(len(multipliers), _FEWEST_LEVELS)
    for change in range(more, fewest - len(multipliers) - 1, -1):
        levels = len(multipliers) + change
        if change == 0:
            yield network
            continue
        attention = network.attention
        if attention is not None and "network.attention" not in given:
            attention = tuple(sorted({min(level + max(change, 0), levels - 1) for level in attention}))
        if attention is None or max(attention, default=0) < levels:
            longer = (*multipliers, *[multipliers[-1]] * max(change, 0))
            yield replace(network, multipliers=longer[:levels], attention=attention)


def _sizes(
    wanted: dict[str, float], whole: float, resolutions: Sequence[Resolution], stride: int, given: Collection[str]
) -> dict[str, float] | None:
    """Return the patch sizes with shares, or the nearest ones that a network of this stride can take; None if none."""
    if any(side % stride for resolution in resolutions for side in resolution):
        return None
    if whole >= 1 or _fits(wanted, resolutions, stride):
        return wanted
    if "patches.sizes" in given:
        return None
    sizes: dict[str, float] = {}
    for size, share in wanted.items():
        nearest = _nearest(size, resolutions, stride)
        if nearest is not None:
            sizes[nearest] = sizes.get(nearest, 0.0) + share
    total = math.fsum(sizes.values())
    if total <= 0:
        return None
    return sizes if math.isclose(total, 1) else {size: share / total for size, share in sizes.items()}


def _nearest(size: str, resolutions: Sequence[Resolution], stride: int) -> str | None:
    """Return the patch size or the nearest that fits, in pixels if possible, else as a simple fraction; or None."""
    if _fits([size], resolutions, stride):
        return size
    shorter = min(map(min, resolutions))
    target = Fraction(size) if "/" in size else Fraction(int(size), shorter)
    candidates = [
        f"{part}/{whole}"
        for whole in range(2, _LARGEST_DENOMINATOR + 1)
        for part in range(1, whole)
        if math.gcd(part, whole) == 1
    ]
    # If the shorter sides of images differ, a size in pixels would be a different fraction of each.
    if len(set(map(min, resolutions))) == 1:
        candidates = [str(side) for side in range(stride, shorter, stride)] + candidates
    fitting = [
        (_distance(candidate, target, resolutions), candidate)
        for candidate in candidates
        if _fits([candidate], resolutions, stride)
    ]
    # min takes the first of equals: pixels before fractions, small denominators before large ones.
    distance, nearest = min(fitting, key=lambda item: item[0], default=(math.inf, ""))
    return nearest if distance <= math.log(FURTHEST_SIZE) else None


def _distance(size: str, target: Fraction, resolutions: Sequence[Resolution]) -> float:
    """Return how far patches of a size are from a fraction of the images: the largest |ln ratio| of a side."""
    schedule = PatchSchedule(whole=0, sizes={size: 1.0})
    ratios = [
        pixels / (whole * target)
        for resolution in resolutions
        for pixels, whole in zip(schedule.sizes_for(resolution)[0].shape, resolution, strict=True)
    ]
    return max(abs(math.log(ratio)) for ratio in ratios)


def _fits(sizes: Collection[str], resolutions: Sequence[Resolution], stride: int) -> bool:
    """Return True if a network of this stride takes patches of these sizes, and the whole images."""
    schedule = PatchSchedule(whole=0.5, sizes={size: 1 / len(sizes) for size in sizes})
    try:
        for resolution in resolutions:
            schedule.sizes_for(resolution, stride)
    except InputError:
        return False
    return True


def _reasons(base: Config, chosen: Config, resolutions: Sequence[Resolution], wanted: dict[str, float]) -> list[str]:
    """Return a sentence for each changed option of network levels and patch sizes: its value and the reason."""
    height, width = max(resolutions, key=math.prod)
    others = " and others" if len(resolutions) > 1 else ""
    images = f"images of {height}x{width}{others}"
    reasons = []
    multipliers = _multipliers(chosen.network)
    levels, before = len(multipliers), len(_multipliers(base.network))
    option = f"network.multipliers {' '.join(map(str, multipliers))}"
    if levels > before:
        reasons.append(f"{option}: {images} take more levels, since attention at the lowest is slow among many pixels")
    elif levels < before:
        reasons.append(f"{option}: {images}, or their patches, cannot be halved {before - 1} times")
        multiple = stride(base.network)
        whole = [max(side // multiple, 1) * multiple for side in (height, width)]
        if whole != [height, width] and not others:
            sides = str(whole[0]) if whole[0] == whole[1] else f"{whole[0]} {whole[1]}"
            reasons[-1] += f" (with --resolution {sides} they can)"
    sizes = " ".join(f"{size}={share:.3g}" for size, share in chosen.patches.sizes.items())
    if chosen.patches.sizes != wanted:
        multiple = stride(chosen.network)
        reasons.append(
            f"patches.sizes {sizes}, not {' '.join(wanted)}: patches of {images} must be multiples of "
            f"{multiple} for the network"
        )
    elif wanted != base.patches.sizes:
        reasons.append(f"patches.sizes {sizes}: of latents, a quarter holds too little")
    return reasons
