"""Does a model copy what it was trained on? Nearest training images, and how much nearer they are than the next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from patch_diffusion.data.inspection.sheet import Thumbnail, thumbnail, write_sheet
from patch_diffusion.evaluation.intervals import Measure, interval_of_mean, interval_of_rate
from patch_diffusion.evaluation.neighbours import Nearest, nearest_two
from patch_diffusion.evaluation.stream import Stream

RATIO = 1 / 3
"""An image is a near copy where the nearest training image is at most so far away as a share of the second nearest's
distance (Yoon et al. 2023, "Diffusion probabilistic models generalize when they fail to memorize", section 3)."""

SIDE = 32
"""Pixels are compared at this height and width."""

_PAIRS = 15  # in the picture, of a kind


@dataclass(frozen=True)
class Likeness:
    """How near some images are to training images, by their ``pixels`` and by their ``features``."""

    pixels: Nearest
    features: Nearest

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


def likeness(small: Tensor, features: Tensor, training: Stream, training_features: Tensor) -> Likeness:
    """How near images are to those a model was trained on.

    Args:
        small: the images, see `small_pixels`.
        features: theirs.
        training: all images of the training.
        training_features: of those.
    """
    return Likeness(
        nearest_two(small.float(), (small_pixels(batch).float() for batch in training.batches())),
        nearest_two(features, [training_features]),
    )


def small_pixels(images: Tensor) -> Tensor:
    """Images (n, c, h, w) as they are compared: uint8 (n, c * 32 * 32), grey ones in three equal channels."""
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    found = F.interpolate(images.float(), (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    return found.round().clamp(0, 255).to(torch.uint8).flatten(1)


def verdict(generated: Measure, held_out: Measure | None) -> str:
    """What the user should know of the rates; empty where there is nothing to fear."""
    if held_out is None:
        if generated.low is None or generated.low <= 0.01:
            return ""
        return (
            f"{generated.value:.1%} of the images are near copies of training images; how many of images that are not "
            "would be is not known: give --held-out DATA"
        )
    assert generated.low is not None and held_out.high is not None
    if generated.low <= held_out.high:
        return ""
    return (
        f"the model copies: {generated.value:.1%} of the images are near copies of training images, and of held-out "
        f"ones {held_out.value:.1%}; train for a shorter time, on more images, or with augmentation"
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
    measures = {
        f"{name}{whose}": found[whose][place]
        for place, name in enumerate(("near_copies", "nearest_ratio"))
        for whose in of_both
    }
    said = verdict(measures["near_copies"], measures.get("near_copies_held_out"))
    return measures, [said] if said else []
