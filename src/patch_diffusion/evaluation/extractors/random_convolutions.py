"""Random convolutions as features that need no weight file, the same on every machine.

Even untrained convolutions tell sets of images apart (Naeem et al., arXiv 2002.09797, use them where trained features
do not suit the images). Each is followed by the absolute value, as in scattering transforms, so that no filter is
silent. The features see colours, edges and textures, but no objects.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from patch_diffusion.evaluation.extractors.extractor import Extractor
from patch_diffusion.streams import generator

WIDTHS = (16, 32, 64, 64)
"""The number of filters of each layer; after each layer, height and width are halved."""

_LARGEST = 128  # the largest side; larger images are downscaled
_PARTS = 2  # the last layer is pooled into this many parts along each axis, so that layout counts


def random_convolutions(seed: int = 0, device: torch.device | str = "cpu") -> Extractor:
    """Make an extractor of 368 features: the mean output of each random filter of four layers, per quarter in the last.

    Args:
        seed: the seed of the filters.
        device: the device of the filters.
    """

    @cache
    def filters(channels: int) -> list[Tensor]:
        inputs = (channels, *WIDTHS)
        # Variance 1 / inputs keeps the mean square of values.
        return [
            torch.randn(outputs, inputs[layer], 3, 3, generator=generator(seed, "random features", layer))
            .mul(math.sqrt(1 / (9 * inputs[layer])))
            .to(device)
            for layer, outputs in enumerate(WIDTHS)
        ]

    return Extractor(
        "random",
        lambda images: _features(images.to(device), filters(images.shape[1])),
        {"kind": "random convolutions", "version": 1, "seed": seed, "widths": list(WIDTHS), "largest": _LARGEST},
        channels=None,
        note="distances by the extractor random compare samples of the same data with each other, not with published "
        "numbers",
    )


def _features(images: Tensor, filters: list[Tensor]) -> Tensor:
    values = images.float() / 127.5 - 1
    height, width = values.shape[-2:]
    if max(height, width) > _LARGEST:
        scale = _LARGEST / max(height, width)
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        values = F.interpolate(values, size, mode="bilinear", antialias=True)
    features: list[Tensor] = []
    for layer, weight in enumerate(filters):
        values = F.conv2d(F.pad(values, (1, 1, 1, 1), mode="replicate"), weight).abs()
        parts = _PARTS if layer == len(filters) - 1 else 1
        features.append(F.adaptive_avg_pool2d(values, parts).flatten(1))
        values = F.avg_pool2d(values, 2, ceil_mode=True)
    return torch.cat(features, dim=1)
