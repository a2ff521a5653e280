"""The split of a data set into images to train on and held-out ones, by hashes of the images or of their groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from patch_diffusion.data.images import ImageBuckets, Images, ImageSet, Part
from patch_diffusion.data.keys import draws_of, limit_for
from patch_diffusion.data.order import permute
from patch_diffusion.errors import InputError, about

HELD_OUT = 0.05
"""The share of the images that is held out from training by default."""

FEWEST_TO_HOLD_OUT = 640
"""The fewest images of a data set that has some held out by default: of fewer, the 64 held out exceed a tenth."""

_LEAST_HELD_OUT, _HALVES = 64, -1  # the seed of halves is no training's


@about("data.held_out")
def hold_out(
    images: Images, share: float, seed: int, *, below: float | None = None, by_place: bool = False
) -> tuple[Images, Images | None]:
    """Return images to train on, and held-out ones (None if ``share`` is 0) to measure how unseen images are denoised.

    Whether an image is held out follows from the seed and from its group, or else its content, so that other images
    that come or go do not move it. The pixels are not copied.

    Args:
        images: all images.
        share: the share of the images to hold out, from 0 to 0.5; of small data sets at least 64 images, or half.
        seed: the seed of the training.
        below: the limit of a split made before, see `Part`; None chooses one by the share.
        by_place: if true, hold out by the places of the images, as runs of earlier versions do.

    Raises:
        InputError: the images cannot be split, since they are too few, identical or of one group.
    """
    if not 0 <= share <= 0.5:
        raise InputError(f"data.held_out is a share of the images from 0 to 0.5, not {share}")
    if not share:
        return images, None
    options = replace(images.options, held_out=share)
    share = max(share, least_held_out(images) / len(images))
    if by_place:
        sides = [_sides_by_place(bucket, share, seed) for bucket in images.buckets]
    else:
        draws = [
            draws_of(bucket.content if bucket.groups is None else bucket.groups, seed) for bucket in images.buckets
        ]
        draws = [each[_rows(bucket)] for bucket, each in zip(images.buckets, draws, strict=True)]
        below = _limit(images, draws, share) if below is None else below
        sides = [(each >= below, each < below) for each in draws]
    parts = [
        tuple(
            replace(bucket, part=Part(_rows(bucket)[side], below), options=options, keys=bucket.content)
            for side in both
        )
        for bucket, both in zip(images.buckets, sides, strict=True)
    ]
    train, held_out = (tuple(both[number] for both in parts if len(both[number])) for number in (0, 1))
    if not train or not held_out:
        which = "none" if train else "all"
        raise InputError(f"{which} of these images would be held out: set data.held_out to 0, or choose another folder")
    if isinstance(images, ImageSet):
        return train[0], held_out[0]
    return replace(images, buckets=train, options=options), ImageBuckets(held_out, options)


def least_held_out(images: Images) -> float:
    """Return about how many images of a data set are held out, if any are: 64, or half of a small one."""
    return min(_LEAST_HELD_OUT, len(images) / 2)


def halved(images: Images) -> tuple[Images, Images]:
    """Return two halves of a data set, such as of held-out images, that share no image and no group.

    What cannot be divided, such as a single image, is returned twice.
    """
    try:
        one, other = hold_out(images, 0.5, _HALVES)
    except InputError:
        return images, images
    return one, other or images


def _rows(bucket: ImageSet) -> NDArray[np.int64]:
    """Return the rows of a set that may be a part already; of images with mirrored twins each pair once."""
    return np.arange(len(bucket.pixels) // bucket.mirrored) if bucket.part is None else bucket.part.rows


def _limit(images: Images, draws: Sequence[NDArray[np.float64]], share: float) -> float:
    """Return the limit of draws below which images are held out: about a share of them, and at least one."""
    limit = limit_for(np.concatenate(draws), share)
    if limit is not None:
        return limit
    if sum(map(len, draws)) < 2:
        raise InputError("there are too few images to hold any out: set data.held_out to 0")
    what = "identical" if images.buckets[0].groups is None else "of one group"
    raise InputError(f"all images are {what}, so none can be held out: set data.held_out to 0")


def _sides_by_place(bucket: ImageSet, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices to train on and to hold out by the rule of earlier versions: the last of a shuffled order."""
    total = len(bucket) // bucket.mirrored
    order = permute(np.arange(total), total, seed, "held out")
    num = total - round(share * total)
    return order[:num], order[num:]
