"""Does a model copy what it was trained on? Nearest training images, and how much nearer they are than the next.

A model may also put images together of parts that it copies, so that no whole image is a copy. So patches are looked
at, too, each beside those at the same place in the training images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from patch_diffusion.data.inspection.sheet import Thumbnail, thumbnail, write_sheet
from patch_diffusion.errors import InputError
from patch_diffusion.evaluation.intervals import Measure, interval_of_mean, interval_of_rate
from patch_diffusion.evaluation.neighbours import Nearest, NearestTwo, nearest_two
from patch_diffusion.evaluation.stream import Stream

RATIO = 1 / 3
"""An image is a near copy where the nearest training image is at most so far away as a share of the second nearest's
distance (Yoon et al. 2023, "Diffusion probabilistic models generalize when they fail to memorize", section 3)."""

SIDE = 32
"""Pixels are compared at this height and width."""

PARTS = {"1/2": 2, "1/4": 4}
"""Patches that are compared, by their size: images are divided into so many along each axis."""

COMMON = 10.0
"""A patch whose second nearest is within so many levels of 255, root mean square, is one that many images have."""

MOST_CUT = 1000
"""Images whose patches are compared, the first ones."""

_BLOCK = 2048  # training images that are compared at a time
_PAIRS = 15  # in the picture, of a kind


@dataclass(frozen=True)
class Likeness:
    """How near some images are to training images, by their ``pixels`` and by their ``features``.

    ``patches``: by size, the lowest ratio of nearest to second nearest among the patches of each of the first images.
    """

    pixels: Nearest
    features: Nearest
    patches: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def ratios(self) -> Tensor:
        """The lower of both ratios of nearest to second nearest, (n,)."""
        return torch.minimum(self.pixels.ratios, self.features.ratios)

    @property
    def near_copies(self) -> Tensor:
        """Whether an image is a near copy, (n,) booleans."""
        return self.ratios < RATIO

    def measures(self, extractor: str, seed: int) -> tuple[Measure, Measure]:
        """The share of near copies, and the mean ratio."""
        near = self.near_copies
        rate = interval_of_rate(int(near.sum()), len(near))
        settings: dict[str, Any] = {
            "images": len(near),
            "near": f"nearest / second nearest < {RATIO:.3f}",
            "pixels": f"{SIDE}x{SIDE}",
            "extractor": extractor,
        }
        by = {
            f"{name} by {way}": float(value)
            for way, nearest in (("pixels", self.pixels), ("features", self.features))
            for name, value in (
                ("share", (nearest.ratios < RATIO).float().mean()),
                ("median ratio", nearest.ratios.median()),
            )
        }
        ratio = interval_of_mean(self.ratios, seed)
        return (
            Measure(rate.value, rate.low, rate.high, {**settings, **by}),
            Measure(ratio.value, ratio.low, ratio.high, settings),
        )

    def of_patches(self, size: str) -> Measure:
        """The share of images with a patch of this size that is a near copy of one at the same place."""
        near = self.patches[size] < RATIO
        rate = interval_of_rate(int(near.sum()), len(near))
        side = SIDE // PARTS[size]
        settings: dict[str, Any] = {
            "images": len(near),
            "near": f"nearest / second nearest < {RATIO:.3f}",
            "pixels": f"{side}x{side} of {SIDE}x{SIDE}",
        }
        return Measure(rate.value, rate.low, rate.high, settings)


def likeness(small: Tensor, features: Tensor, training: Stream, training_features: Tensor) -> Likeness:
    """How near images are to those a model was trained on.

    Args:
        small: the images, see `small_pixels`.
        features: theirs.
        training: all images of the training.
        training_features: of those.
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
    return Likeness(whole.found(), nearest_two(features, [training_features]), of_patches)


def _blocks(images: Stream) -> Iterator[Tensor]:
    """Small pixels, of many images at a time: what is done once for each block is then little."""
    waiting: list[Tensor] = []
    for batch in images.batches():
        waiting.append(small_pixels(batch))
        if sum(map(len, waiting)) >= _BLOCK:
            yield torch.cat(waiting)
            waiting.clear()
    if waiting:
        yield torch.cat(waiting)


def cut(small: Tensor, parts: int) -> tuple[Tensor, ...]:
    """The patches (n, d) at each place of images as `small_pixels` makes them, so many along each axis."""
    side = SIDE // parts
    grid = small.reshape(len(small), -1, parts, side, parts, side).permute(2, 4, 0, 1, 3, 5)
    return grid.reshape(parts * parts, len(small), -1).unbind()


def _ratios(nearest: Nearest, size: int) -> Tensor:
    """Of patches (n, d): one that many have, such as a black corner, is a copy of none of them."""
    apart = nearest.distances[:, 1] / math.sqrt(size)
    return torch.where(apart <= COMMON, 1.0, nearest.ratios)


def small_pixels(images: Tensor) -> Tensor:
    """Images (n, c, h, w) as they are compared: uint8 (n, c * 32 * 32), grey ones in three equal channels."""
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    found = F.interpolate(images.float(), (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    return found.round().clamp(0, 255).to(torch.uint8).flatten(1)


def verdict(generated: Measure, held_out: Measure | None, size: str = "") -> str:
    """What the user should know of the rates, of images or of patches of a ``size``; empty where there is nothing."""
    are = f"have a patch of {size} of the side that is a near copy" if size else "are near copies of training images"
    if held_out is None:
        # Of patches some always are: without others beside them their number says nothing.
        if size or generated.low is None or generated.low <= 0.01:
            return ""
        return (
            f"{generated.value:.1%} of the images {are}; how many of images that are not would be is not known without "
            "held-out images (--held-out)"
        )
    assert generated.low is not None and held_out.high is not None
    if generated.low <= held_out.high:
        return ""
    return (
        f"the model copies: {generated.value:.1%} of the images {are}, and of held-out ones {held_out.value:.1%}; "
        "train for a shorter time, on more images, or with augmentation"
    )


def write_pairs(
    path: str | Path, training: Stream, training_places: Tensor, sections: Iterable[tuple[str, Stream, Likeness]]
) -> None:
    """A picture of the images that are nearest to a training image, each beside that one.

    Args:
        path: of the picture.
        training: the training images.
        training_places: which of them each of the training features belongs to.
        sections: a heading, images, and how near they are.
    """
    write_sheet(
        path,
        [(heading, list(_pairs(images, near, training, training_places))) for heading, images, near in sections],
    )


def _pairs(images: Stream, near: Likeness, training: Stream, training_places: Tensor) -> Iterator[Thumbnail]:
    closest = near.ratios.argsort()[:_PAIRS].tolist()
    others = [_nearest_place(near, place, training_places) for place in closest]
    for place, image, original in zip(closest, images.some(closest), training.some(others), strict=True):
        yield Thumbnail(_picture(image), f"ratio {float(near.ratios[place]):.2f}", joined=True)
        yield Thumbnail(_picture(original), "training")


def _nearest_place(near: Likeness, place: int, training_places: Tensor) -> int:
    """Of the training image that is nearest by what tells more."""
    if near.pixels.ratios[place] <= near.features.ratios[place]:
        return int(near.pixels.places[place, 0])
    return int(training_places[near.features.places[place, 0]])


def _picture(image: Tensor) -> Any:
    return thumbnail(image.numpy(), 0, 255)


def rates(
    generated: Likeness, held_out: Likeness | None, extractor: str, seed: int
) -> tuple[dict[str, Measure], Sequence[str]]:
    """The measures by their names, and what the user should know of them."""
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
    # Copies of whole images have copies of patches in them.
    return measures, [said] if said else [text for text in of_patches if text][:1]
