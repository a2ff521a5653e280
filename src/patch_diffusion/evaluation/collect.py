"""One pass over the images that are evaluated: of each batch stays what the metrics need, and no image."""

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
"""Images whose features and small pixels are kept; the moments are those of all."""


@dataclass(frozen=True)
class Collected:
    """What one pass leaves.

    ``moments`` of each group of the images, ``features`` (k, d) and ``small`` pixels (k, 3072) of the first ones.
    ``channels`` and ``resolution`` are those of the first image.
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
    """Go through all images once.

    Args:
        images: what to go through.
        extractor: of features; None where no metric needs them, and then none are made.
        what: named beside the progress bar.
        moments: whether a metric needs those.
        show: a progress bar, on a terminal.
    """
    groups = groups_of(images.num)
    of_groups = [Moments() for _ in groups]
    features: list[Tensor] = []
    small: list[Tensor] = []
    num = 0
    shape = torch.Size()

    def look(number: int) -> list[tuple[torch.Size, Tensor, Tensor | None]]:
        """What is kept of the batches of a part, and their shapes."""
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
