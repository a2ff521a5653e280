"""The order of training images, as a pure function of (seed, epoch, slot)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patch_diffusion.errors import InputError
from patch_diffusion.streams import stream_key, uniform

_ROUNDS = 6


@dataclass(frozen=True)
class SampleOrder:
    """An endless sampler that visits every image once per epoch, each epoch in a new order.

    The order is a keyed permutation, computed on demand, not a shuffled list: it needs no memory, and when training is
    continued, it goes on from the next position.

    >>> SampleOrder(num_images=5, seed=0).indices(0, 10).tolist()
    [1, 0, 2, 3, 4, 1, 2, 0, 3, 4]
    """

    num_images: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise InputError("there are no images to train on")

    def indices(self, start: int, count: int) -> NDArray[np.int64]:
        """Return the image indices at positions ``start`` to ``start + count`` of the endless sequence."""
        positions = np.arange(start, start + count, dtype=np.uint64)
        epochs, slots = np.divmod(positions, np.uint64(self.num_images))
        images = np.empty(count, np.int64)
        for epoch in np.unique(epochs):
            of_epoch = epochs == epoch
            images[of_epoch] = permute(slots[of_epoch], self.num_images, self.seed, "order", int(epoch))
        return images


def bucket_at(seed: int, step: int, lengths: Sequence[int]) -> int:
    """Return the index of a step's bucket (images of one size), random in proportion to the buckets' ``lengths``."""
    place = uniform(seed, "bucket", step) * sum(lengths)
    for bucket, length in enumerate(lengths):
        place -= length
        if place < 0:
            return bucket
    return len(lengths) - 1


def permute(slots: NDArray[Any], domain: int, seed: int, name: str, *index: int) -> NDArray[np.int64]:
    """Apply a pseudo-random permutation of the integers in [0, domain) to an array of them.

    It is a Feistel network over the next power of four, with cycle walking; seed, name and index are its key. Images
    and pairs of them are uniform over the places; of a power of four itself all permutations are even.
    """
    half = np.uint64(max(1, (max(domain - 1, 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = [np.uint64(stream_key(seed, name, *index, each)) for each in range(_ROUNDS)]

    def scramble(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> half, values & mask
        for key in keys:
            left, right = right, left ^ (mix(right ^ key) & mask)
        return (left << half) | right

    result = scramble(slots.astype(np.uint64))
    # Results outside the domain are permuted again along their cycle until they are inside (cycle walking).
    while (outside := result >= np.uint64(domain)).any():
        result[outside] = scramble(result[outside])
    return result.astype(np.int64)


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash 64-bit integers with the finaliser of SplitMix64 (Steele et al. 2014); products wrap around."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
