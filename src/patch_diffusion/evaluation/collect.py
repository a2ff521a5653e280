"""One pass over the images to evaluate, which keeps features and downscaled pixels for the metrics, no whole image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from patch_diffusion.data.reading.parallel import progress
from patch_diffusion.evaluation.distances import Moments
from patch_diffusion.evaluation.extractors.extractor import Extractor
from patch_diffusion.evaluation.intervals import groups_of
from patch_diffusion.evaluation.memorization import small_pixels
from patch_diffusion.evaluation.processes import shared
from patch_diffusion.evaluation.stream import Stream

MOST_KEPT = 10_000
"""The maximum number of images whose features and downscaled pixels are kept; mean and scatter are those of all."""


@dataclass(frozen=True)
class Collected:
    """The features and pixels collected in one pass over ``num`` images.

    ``moments`` has mean and scatter of the features of each group of images; ``features`` (k, d) and downscaled pixels
    ``small`` (k, 3072) belong to the first k images, ``channels`` and ``resolution`` to the first image.
    """

    num: int
    moments: list[Moments]
    features: Tensor
    small: Tensor
    channels: int
    resolution: tuple[int, int]


def collect(images: Stream, extractor: Extractor, *, what: str, moments: bool = True, show: bool = False) -> Collected:
    """Read all images once and collect their features, their mean and scatter by group, and downscaled pixels.

    ``what`` is the label of the progress bar. Without ``moments`` mean and scatter are left out.
    """
    groups = groups_of(images.num)
    of_groups = [Moments() for _ in groups]
    features: list[Tensor] = []
    small: list[Tensor] = []
    num = 0
    shape = torch.Size()

    def look(number: int) -> list[tuple[torch.Size, Tensor, Tensor]]:
        """Return (image shape, downscaled pixels, features) for each tensor in a chunk of the stream."""
        return [(batch.shape[1:], small_pixels(batch), extractor(batch)) for batch in images.part(number)]

    for part in progress(shared(look, images.num_parts), images.num_parts, what, show=show):
        for of_batch, pixels, found in part:
            shape = shape or of_batch
            room = max(0, MOST_KEPT - num)
            if room:
                small.append(pixels[:room])
                features.append(found[:room])
            for group, of_group in zip(groups, of_groups, strict=True) if moments else ():
                of_group.add(found[max(group.start - num, 0) : max(group.stop - num, 0)])
            num += len(pixels)
    return Collected(num, of_groups, torch.cat(features), torch.cat(small), shape[0], (shape[1], shape[2]))
