"""One pass over the evaluated images, which keeps features and small pixels for the metrics, and no whole image."""

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
"""The most images whose features and small pixels are kept; the moments are those of all images."""


@dataclass(frozen=True)
class Collected:
    """Results of one pass over images.

    ``moments`` are those of each group of images, ``features`` (k, d) and ``small`` pixels (k, 3072) those of the first
    k images. ``channels`` and ``resolution`` are those of the first image.
    """

    num: int
    moments: list[Moments]
    features: Tensor
    small: Tensor
    channels: int
    resolution: tuple[int, int]


def collect(
    images: Stream, extractor: Extractor | None, *, what: str, moments: bool = True, show: bool = False
) -> Collected:
    """Read all images once and collect their features, moments and small pixels.

    Args:
        images: the images to read.
        extractor: the feature extractor; None if no metric needs features, and then none are made.
        what: the label of the progress bar.
        moments: whether a metric needs the moments of the features.
        show: whether to show a progress bar, on a terminal.
    """
    groups = groups_of(images.num)
    of_groups = [Moments() for _ in groups]
    features: list[Tensor] = []
    small: list[Tensor] = []
    num = 0
    shape = torch.Size()

    def look(number: int) -> list[tuple[torch.Size, Tensor, Tensor | None]]:
        """Return the image shape, the small pixels and the features of each batch of a part."""
        return [
            (batch.shape[1:], small_pixels(batch), None if extractor is None else extractor(batch))
            for batch in images.part(number)
        ]

    for part in progress(shared(look, images.num_parts), images.num_parts, what, show=show):
        for of_batch, pixels, found in part:
            shape = shape or of_batch
            room = max(0, MOST_KEPT - num)
            if room:
                small.append(pixels[:room])
            if found is not None:
                if room:
                    features.append(found[:room])
                for group, of_group in zip(groups, of_groups, strict=True) if moments else ():
                    inside = range(max(group.start, num) - num, min(group.stop, num + len(pixels)) - num)
                    if len(inside):
                        of_group.add(found[inside.start : inside.stop])
            num += len(pixels)
    kept = torch.cat(features) if features else torch.empty(0, 0)
    return Collected(num, of_groups, kept, torch.cat(small), shape[0], (shape[1], shape[2]))
