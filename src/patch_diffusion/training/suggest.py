"""Suggested options that fit the images: noise, levels of the network, patch sizes, batch, and number format."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from patch_diffusion.config import Config, Network, Noise, Patches
from patch_diffusion.data.images import Images
from patch_diffusion.data.latents.codec import LatentCodec
from patch_diffusion.denoise.networks.dit import DiT
from patch_diffusion.denoise.networks.unet import STYLES, UNet
from patch_diffusion.denoise.process import EDM
from patch_diffusion.denoise.whole_image import SIGMAS
from patch_diffusion.devices import choose_device, processor_has_bf16
from patch_diffusion.errors import InputError, option_error
from patch_diffusion.patches.schedule import PatchSchedule, patch_shape
from patch_diffusion.runs.model import DIT_ONLY, UNET_ONLY

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
_LEAST_SHIFT = 0.5  # smallest shift of ln(noise) that is worth options
_LEAST_OFF_CENTRE = 0.1  # smallest squared mean, as a share of the variance, that is worth an option
_FEWEST_LEVELS = 2
_LARGEST_DENOMINATOR = 32


def suggest(
    images: Images, base: Config, given: Collection[str] = (), *, stored: Noise | None = None
) -> tuple[Config, list[str]]:
    """Suggest options that fit the images: noise levels, levels of the network, patch sizes, batch and number format.

    Options that fit are not changed, nor are options that the user gave. If no allowed change would help, the options
    are returned as they were, and the trainer reports what is wrong with them.

    Args:
        images: the images, of one resolution or several.
        base: the options to start from, for instance those of a preset.
        given: names of the options that the user gave, such as "patches.sizes" or "network.multipliers".
        stored: the noise options of the run that continues, which stay as an earlier version suggested them.

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
        raise option_error(
            "network.label_dropout",
            "hides classes in training, and these images have none: give --data.classes True if "
            "their sub-folders are classes, or leave it out",
        )
    network, replaced = _consistent(base.network, given)
    base = replace(base, network=network)
    base, reasons = _with_noise(images, base, given) if stored is None else (_as_stored(base, stored, given), [])
    reasons = [*replaced, *reasons]
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
        return network.token or _default(DiT, "token")
    return 1


def _consistent(network: Network, given: Collection[str]) -> tuple[Network, list[str]]:
    """Replace what was not given of a network and does not go with what was; return the network, and sentences."""

    def free(*names: str) -> list[str]:
        return [name for name in names if f"network.{name}" not in given and getattr(network, name) is not None]

    reasons: list[str] = []
    others = free(*(UNET_ONLY if network.kind == "dit" else DIT_ONLY if network.kind in STYLES else ()))
    if others:
        others = sorted({*others, *free("width")})
        network = replace(network, **dict.fromkeys(others))
        reasons.append(f"{', '.join(others)} of the preset are left out: network.kind {network.kind} has others")
    if network.kind in STYLES and free("attention"):
        lowest = len(_multipliers(network)) - 1
        attention = tuple(sorted({min(level, lowest) for level in network.attention or ()}))
        if attention != network.attention:
            network = replace(network, attention=attention)
            multipliers = " ".join(map(str, _multipliers(network)))
            told = f"network.multipliers {multipliers} make no level below {lowest}"
            reasons.append(f"network.attention {' '.join(map(str, attention))}: {told}")
    if network.kind == "dit":
        width, heads = (getattr(network, name) or _default(DiT, name) for name in ("width", "heads"))
        fitting = [fewer for fewer in range(1, heads) if width % (4 * fewer) == 0]
        if width % (4 * heads) and fitting and "network.heads" not in given:
            network = replace(network, heads=fitting[-1])
            reasons.append(f"network.heads {fitting[-1]}: a width of {width} is shared out to heads in multiples of 4")
        elif width % (4 * heads) and "network.width" not in given:
            network = replace(network, width=4 * heads * max(round(width / (4 * heads)), 1))
            reasons.append(f"network.width {network.width}: a multiple of 4 for each of {heads} heads")
    return network, reasons


def _default(kind: type[UNet] | type[DiT], name: str) -> Any:
    return inspect.signature(kind).parameters[name].default


def _with_noise(images: Images, config: Config, given: Collection[str]) -> tuple[Config, list[str]]:
    """Centre the images if their mean is far from 0, and shift the noise if they are flatter, or larger, than usual.

    Images with k times the deviation are the same problem at k times the noise, and images with k times the side show
    as much at k times the noise (Hoogeboom et al., arXiv 2301.11093, section 2.1). So the noise of training, the
    highest of sampling, and the levels of measures go together; the lowest of sampling follows the deviation alone,
    since a larger image shows finer detail as well.
    """
    noise, moments = config.noise, images.moments
    variance = moments.deviation(moments.means) ** 2
    if noise.process != "edm" or not variance > 0:
        return config, []
    reasons: list[str] = []
    if noise.mean_data is None and moments.square > (1 + _LEAST_OFF_CENTRE) * variance:
        noise = replace(noise, mean_data=tuple(round(mean, 2) for mean in moments.means))
        reasons.append(
            f"noise.mean_data {' '.join(f'{mean:g}' for mean in noise.mean_data or ())}: the mean of these images is "
            "far from the middle of their range, so training subtracts it and sampling starts from it"
        )
    deviation, side = moments.deviation(noise.mean_data), _side(images.resolution, config.patches.context)
    flatter, larger = math.log(deviation / 0.5), math.log(max(side, 64) / 64)
    if abs(flatter + larger) < _LEAST_SHIFT:
        return replace(config, noise=noise), reasons
    factor = _short(math.exp(flatter + larger))
    usual = -1.2 if noise.p_mean is None else noise.p_mean
    shifted: dict[str, Any] = {
        "p_mean": round(usual + math.log(factor), 1),
        "sigma_max": _short(factor * EDM.sigma_max),
        "sigma_min": _short(math.exp(flatter) * EDM.sigma_min),
        "levels": tuple(_short(factor * sigma) for sigma in SIGMAS),
    }
    if abs(flatter) < _LEAST_SHIFT:
        del shifted["sigma_min"]
    settled = {name for name in shifted if f"noise.{name}" in given or (name != "p_mean" and getattr(noise, name))}
    if "noise.p_std" in given:
        settled.add("p_mean")
    shifted = {name: value for name, value in shifted.items() if name not in settled}
    if shifted:
        first, *others = [
            f"noise.{name} " + (f"{value[0]:g} to {value[-1]:g}" if isinstance(value, tuple) else f"{value:g}")
            for name, value in shifted.items()
        ]
        reasons.append(
            f"{first}: {factor:g} times the usual noise levels, which suit images of standard deviation 0.5 and up to "
            f"64 pixels; these have {deviation:.2f} and {side:.0f}{', so also ' * bool(others)}{', '.join(others)}"
        )
    return replace(config, noise=replace(noise, **shifted)), reasons


def _short(number: float) -> float:
    """Round to two digits, so that people can read what is suggested."""
    return float(f"{number:.2g}")


def _as_stored(config: Config, stored: Noise, given: Collection[str]) -> Config:
    """Return the config with the options that `_with_noise` suggests as a run has stored them, unless given."""
    names = [
        name for name in ("p_mean", "sigma_min", "sigma_max", "mean_data", "levels") if f"noise.{name}" not in given
    ]
    return replace(config, noise=replace(config.noise, **{name: getattr(stored, name) for name in names}))


def _side(resolution: Resolution, context: int | None) -> float:
    """Return the side of what a network makes at once: of images, or given a small copy, of that or of its pixels.

    A copy is made as an image of its own; then it tells all that is larger than the part behind one of its pixels.
    """
    side, shorter = math.sqrt(math.prod(resolution)), min(resolution)
    return side if context is None else max(side * context / shorter, shorter / context)


def limit_pixels(config: Config, images: Images, stride: int, given: Collection[str]) -> tuple[Config, list[str]]:
    """Reduce the batch, and then also the share of whole images, to ``batch_pixels``; return the config and reasons."""
    most, batch = config.batch_pixels, config.batch
    if most is not None and most < 1:
        raise option_error("batch_pixels", f"is at least 1, not {most}")
    if most is None or "batch" in given or batch == "auto":
        if most is not None and "batch_pixels" in given:
            raise option_error("batch_pixels", "is for a batch that is not given: leave one of them out")
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
    reasons = [f"batch {fewer}: {batch} images of {side} exceed the limit of {most:,} pixels in a step"]
    patches = config.patches
    if "patches.whole" not in given and _WHOLE_WHERE_LARGE < patches.whole < 1:
        patches = replace(patches, whole=_WHOLE_WHERE_LARGE)
        reasons.append(
            f"patches.whole {patches.whole:g}, not {config.patches.whole:g}: whole images of this size take most of "
            "the time"
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
    reason = "engine.precision bf16: on this processor it is faster than fp32 for images of this size"
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
    return network.multipliers or _default(UNet, "multipliers")


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
        reasons.append(
            f"{option}: {images} need more levels, because attention at the lowest one is slow for many pixels"
        )
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
        reasons.append(f"patches.sizes {sizes}: a quarter of a latent image shows too little")
    return reasons
