"""Levels of a network, and patch sizes, that go together and with the shape of the images."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from patch_diffusion.config import Config, Network, Patches
from patch_diffusion.denoise.networks.dit import DiT
from patch_diffusion.denoise.networks.unet import UNet
from patch_diffusion.errors import InputError
from patch_diffusion.patches.schedule import PatchSchedule
from patch_diffusion.patches.shapes import Shape, patch_shape
from patch_diffusion.runs.model import DIT_ONLY, U_NETS, UNET_ONLY

LARGEST_AS_PRESET = 128
"""The square root of the largest image area for which a preset's levels suffice; each doubling adds a level, since the
cost of attention at the lowest levels grows with the square of the number of pixels there."""

FURTHEST_SIZE = math.sqrt(2)
"""The largest factor between a wanted patch size and the one that is chosen so that the network can take it."""
_FEWEST_LEVELS = 2
_LARGEST_DENOMINATOR = 32


def stride(network: Network) -> int:
    """Return the number by which the height and width of every input of a network must be divisible."""
    if network.kind in U_NETS:
        return 2 ** (len(_multipliers(network)) - 1)
    if network.kind == "dit":
        return network.token or _default(DiT, "token")
    if network.kind == "diffusers" and network.unet is not None:
        return 2 ** (len(network.unet["model"]["block_out_channels"]) - 1)
    return 1


def consistent(network: Network, given: Collection[str]) -> tuple[Network, list[str]]:
    """Replace what was not given of a network and does not go with what was; return the network, and sentences."""

    def free(*names: str) -> list[str]:
        return [name for name in names if f"network.{name}" not in given and getattr(network, name) is not None]

    reasons: list[str] = []
    others = free(*(UNET_ONLY if network.kind == "dit" else DIT_ONLY if network.kind in U_NETS else ()))
    if others:
        others = sorted({*others, *free("width")})
        network = replace(network, **dict.fromkeys(others))
        reasons.append(f"{', '.join(others)} of the preset are left out: network.kind {network.kind} has others")
    if network.kind in U_NETS and free("attention"):
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


def seen_by(patches: Patches, resolutions: Sequence[Shape]) -> Sequence[Shape]:
    """Return the input shapes of the network: whole images, or patches if it never sees whole images at full size."""
    if patches.whole > 0 or patches.context is None:
        return resolutions
    try:
        return [patch_shape(size, whole) for whole in resolutions for size, share in patches.sizes.items() if share > 0]
    except InputError:
        return resolutions


def _multipliers(network: Network) -> tuple[int, ...]:
    return network.multipliers or _default(UNet, "multipliers")


def networks_for(network: Network, resolutions: Sequence[Shape], given: Collection[str]) -> Iterator[Network]:
    """Yield network options, in order of preference: more levels for large images, as given, fewer levels."""
    if "network.multipliers" in given or network.kind not in U_NETS:
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


def sizes_for_network(
    wanted: dict[str, float], whole: float, resolutions: Sequence[Shape], stride: int, given: Collection[str]
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


def _nearest(size: str, resolutions: Sequence[Shape], stride: int) -> str | None:
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


def _distance(size: str, target: Fraction, resolutions: Sequence[Shape]) -> float:
    """Return how far patches of a size are from a fraction of the images: the largest |ln ratio| of a side."""
    schedule = PatchSchedule(whole=0, sizes={size: 1.0})
    ratios = [
        pixels / (whole * target)
        for resolution in resolutions
        for pixels, whole in zip(schedule.sizes_for(resolution)[0].shape, resolution, strict=True)
    ]
    return max(abs(math.log(ratio)) for ratio in ratios)


def _fits(sizes: Collection[str], resolutions: Sequence[Shape], stride: int) -> bool:
    """Return True if a network of this stride takes patches of these sizes, and the whole images."""
    schedule = PatchSchedule(whole=0.5, sizes={size: 1 / len(sizes) for size in sizes})
    try:
        for resolution in resolutions:
            schedule.sizes_for(resolution, stride)
    except InputError:
        return False
    return True


def reasons_for(base: Config, chosen: Config, resolutions: Sequence[Shape], wanted: dict[str, float]) -> list[str]:
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
