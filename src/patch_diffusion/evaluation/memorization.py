"""Detection of samples that copy a training image: the nearest one is far nearer than the second nearest.

A model may also assemble images from copied parts, so that no whole image is a copy. So patches are compared, too,
each with the patches at the same place in the training images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from patch_diffusion.data.inspection.sheet import Thumbnail, thumbnail, write_sheet
from patch_diffusion.errors import InputError
from patch_diffusion.evaluation.intervals import Measure, interval_of_mean, interval_of_rate
from patch_diffusion.evaluation.neighbours import Nearest, NearestTwo, nearest_two
from patch_diffusion.evaluation.stream import Stream

RATIO = 1 / 3
"""The largest ratio of nearest to second nearest distance at which an image is a near copy of the nearest training
image (Yoon et al. 2023, "Diffusion probabilistic models generalize when they fail to memorize", section 3)."""

SIDE = 32
"""The height and width to which images are downscaled before their pixels are compared."""

PARTS = {"1/2": 2, "1/4": 4}
"""The patch sizes to compare, as fractions of the image side, each with the number of patches along an axis."""

COMMON = 10.0
"""A root mean square distance of pixels (0 to 255); a patch whose second nearest is no further off counts as common."""

MOST_CUT = 1000
"""The maximum number of images whose patches are compared; the first ones are taken."""

_BLOCK = 2048  # training images compared at a time
_PAIRS = 15  # pairs (an image and its nearest training image) in each section of the picture


@dataclass(frozen=True)
class CopyCheck:
    """The two nearest training images of each of n images, by ``pixels`` and by ``features``.

    ``patches`` maps a patch size to each image's lowest ratio (n,) of nearest to second nearest distance of a patch.
    """

    pixels: Nearest
    features: Nearest
    patches: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def ratios(self) -> Tensor:
        """The nearest distance divided by the second nearest, by pixels or features, whichever ratio is lower, (n,)."""
        return torch.minimum(self.pixels.ratios, self.features.ratios)

    @property
    def near_copies(self) -> Tensor:
        """A boolean mask (n,) of the images that are near copies of a training image."""
        return self.ratios < RATIO

    def measures(self, extractor: str, seed: int) -> tuple[Measure, Measure]:
        """Return two measures: the share of near copies, and the mean ratio of nearest to second nearest distance."""
        rate = _rate(self.ratios, pixels=f"{SIDE}x{SIDE}", extractor=extractor)
        by = {
            f"{name} by {way}": float(value)
            for way, nearest in (("pixels", self.pixels), ("features", self.features))
            for name, value in (
                ("share", (nearest.ratios < RATIO).float().mean()),
                ("median ratio", nearest.ratios.median()),
            )
        }
        mean = replace(interval_of_mean(self.ratios, seed), settings=rate.settings)
        return replace(rate, settings=rate.settings | by), mean

    def of_patches(self, size: str) -> Measure:
        """Return the share of images in which a patch of this size nearly copies the same place of a training image."""
        side = SIDE // PARTS[size]
        return _rate(self.patches[size], pixels=f"{side}x{side} of {SIDE}x{SIDE}")


def _rate(ratios: Tensor, **settings: str) -> Measure:
    """Return the share of images whose ratio (n,) of nearest to second nearest distance is below `RATIO`."""
    about = {"images": len(ratios), "near": f"nearest / second nearest < {RATIO:.3f}", **settings}
    return replace(interval_of_rate(int((ratios < RATIO).sum()), len(ratios)), settings=about)


def find_copies(small: Tensor, features: Tensor, training: Stream, training_features: Tensor) -> CopyCheck:
    """Find the two nearest training images of each image, by pixels, by features and by patches.

    ``small`` are the downscaled pixels (n, d) of the images, see `small_pixels`; there can be fewer
    ``training_features`` (m, d) than training images.
    """
    whole = NearestTwo(small)
    patches = {size: [NearestTwo(each) for each in cut(small[:MOST_CUT], parts)] for size, parts in PARTS.items()}
    for others in _blocks(training):
        if others.shape[1] != small.shape[1]:
            own, theirs = (pixels.shape[1] // SIDE**2 for pixels in (small, others))
            raise InputError(f"images of {own} channels cannot be copies of images of {theirs}: convert one of them")
        whole.add(others)
        for size, parts in PARTS.items():
            for nearest, patch in zip(patches[size], cut(others, parts), strict=True):
                nearest.add(patch)
    of_patches = {
        size: torch.stack([_ratios(each.found(), small.shape[1] // len(nearest)) for each in nearest]).amin(dim=0)
        for size, nearest in patches.items()
    }
    return CopyCheck(whole.found(), nearest_two(features, [training_features]), of_patches)


def _blocks(images: Stream) -> Iterator[Tensor]:
    """Yield the downscaled pixels (m, d) of all images in large blocks, because each block has a fixed cost."""
    waiting: list[Tensor] = []
    for batch in images.batches():
        waiting.append(small_pixels(batch))
        if sum(map(len, waiting)) >= _BLOCK:
            yield torch.cat(waiting)
            waiting.clear()
    if waiting:
        yield torch.cat(waiting)


def cut(small: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Cut n downscaled images into ``parts`` x ``parts`` patches; return a tensor (n, d) for each place of a patch."""
    side = SIDE // parts
    grid = small.reshape(len(small), -1, parts, side, parts, side).permute(2, 4, 0, 1, 3, 5)
    return grid.reshape(parts * parts, len(small), -1).unbind()


def _ratios(nearest: Nearest, size: int) -> Tensor:
    """Return nearest / second nearest distance of n patches; 1 for common ones (black corners), which are no copies."""
    apart = nearest.distances[:, 1] / math.sqrt(size)
    return torch.where(apart <= COMMON, 1.0, nearest.ratios)


def small_pixels(images: Tensor) -> Tensor:
    """Downscale images (n, c, h, w) to 32 x 32, as uint8 (n, c * 32 * 32); grey images get three equal channels."""
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    found = F.interpolate(images.float(), (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    return found.round().clamp(0, 255).to(torch.uint8).flatten(1)


def verdict(generated: Measure, held_out: Measure | None, size: str = "") -> str:
    """Return a warning if near copies, whole or of a patch ``size``, are too frequent; otherwise an empty string."""
    are = f"have a patch of {size} of their side that is a near copy" if size else "are near copies of training images"
    if held_out is None:
        # Some patches always are near copies, so without held-out images their rate says nothing.
        if size or generated.low is None or generated.low <= 0.01:
            return ""
        return (
            f"{generated.value:.1%} of the images {are}; to see how many are by chance, compare with held-out images "
            "(--held-out)"
        )
    assert generated.low is not None and held_out.high is not None
    if generated.low <= held_out.high:
        return ""
    return (
        f"the model copies: {generated.value:.1%} of its images {are}, but only {held_out.value:.1%} of the held-out "
        "ones; train for a shorter time, on more images, or with augmentation"
    )


def write_pairs(
    path: str | Path, training: Stream, training_places: Tensor, sections: Iterable[tuple[str, Stream, CopyCheck]]
) -> None:
    """Write an image file that shows the images most like copies, each next to its nearest training image.

    ``training_places`` is the index of the training image of each training feature; each section has a heading, images,
    and their nearest training images.
    """
    shown = [(heading, list(_pairs(images, near, training, training_places))) for heading, images, near in sections]
    write_sheet(path, shown)


def _pairs(images: Stream, near: CopyCheck, training: Stream, training_places: Tensor) -> Iterator[Thumbnail]:
    closest = near.ratios.argsort()[:_PAIRS].tolist()
    others = [_nearest_place(near, place, training_places) for place in closest]
    for place, image, original in zip(closest, images.some(closest), training.some(others), strict=True):
        yield Thumbnail(thumbnail(image.numpy(), 0, 255), f"ratio {float(near.ratios[place]):.2f}", joined=True)
        yield Thumbnail(thumbnail(original.numpy(), 0, 255), "training")


def _nearest_place(near: CopyCheck, place: int, training_places: Tensor) -> int:
    """Return the index of an image's nearest training image, by pixels or by features, whichever ratio is lower."""
    if near.pixels.ratios[place] <= near.features.ratios[place]:
        return int(near.pixels.places[place, 0])
    return int(training_places[near.features.places[place, 0]])


def rates(
    generated: CopyCheck, held_out: CopyCheck | None, extractor: str, seed: int
) -> tuple[dict[str, Measure], Sequence[str]]:
    """Return the measures of near copies by metric name, and a list with a warning if the model copies."""
    of_both = {"": generated} if held_out is None else {"": generated, "_held_out": held_out}
    found = {whose: near.measures(extractor, seed) for whose, near in of_both.items()}
    measures = {f"near_copies{whose}": found[whose][0] for whose in of_both}
    for size in generated.patches:
        measures |= {f"near_copies{whose}@{size}": near.of_patches(size) for whose, near in of_both.items()}
    measures |= {f"nearest_ratio{whose}": found[whose][1] for whose in of_both}
    said = verdict(measures["near_copies"], measures.get("near_copies_held_out"))
    of_patches = [
        verdict(measures[f"near_copies@{size}"], measures.get(f"near_copies_held_out@{size}"), size)
        for size in generated.patches
    ]
    # A copy of a whole image has copied patches in it, so a warning about patches would repeat the first.
    return measures, [said] if said else [text for text in of_patches if text][:1]
