"""Noise levels that fit the images: their mean, deviation and size."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from patch_diffusion.config import Config
from patch_diffusion.data.images import Images
from patch_diffusion.denoise.objective import settled_noise
from patch_diffusion.denoise.process import EDM, PROCESSES
from patch_diffusion.denoise.whole_image import SIGMAS
from patch_diffusion.patches.shapes import Shape

_LEAST_SHIFT = 0.5  # smallest shift of ln(noise) that is worth options
_LEAST_OFF_CENTRE = 0.1  # smallest squared mean, as a share of the variance, that is worth an option


def with_noise(images: Images, config: Config, given: Collection[str]) -> tuple[Config, list[str]]:
    """Centre the images if their mean is far from 0, and shift the noise if they are flatter, or larger, than usual.

    Images with k times the deviation are the same problem at k times the noise, and images with k times the side show
    as much at k times the noise (Hoogeboom et al., arXiv 2301.11093, section 2.1). So the noise of training, the
    highest of sampling, and the levels of measures go together; the lowest of sampling follows the deviation alone,
    since a larger image shows finer detail as well.
    """
    noise, moments = settled_noise(config.noise), images.moments
    config = replace(config, noise=noise)
    variance = moments.deviation(moments.means) ** 2
    process = PROCESSES[noise.process]
    if not isinstance(process, EDM) or not variance > 0:
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
    assert noise.p_mean is not None  # of these processes, it is settled
    shifted: dict[str, Any] = {
        "p_mean": round(noise.p_mean + math.log(factor), 1),
        "sigma_max": _short(factor * process.sigma_max),
        "sigma_min": _short(math.exp(flatter) * process.sigma_min),
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


def _side(resolution: Shape, context: int | None) -> float:
    """Return the side of what a network makes at once: of images, or given a small copy, of that or of its pixels.

    A copy is made as an image of its own; then it tells all that is larger than the part behind one of its pixels.
    """
    side, shorter = math.sqrt(math.prod(resolution)), min(resolution)
    return side if context is None else max(side * context / shorter, shorter / context)
