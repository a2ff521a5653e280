"""Pictures that are in a data set twice: to the byte, or to the eye."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Found on 3,795 aligned cat faces and 10,000 pictures of CIFAR-10, by eye: nearly all pairs within both limits are the
# same photograph, also after strong JPEG compression, resizing or another colouring, while two pictures of like things
# are outside of them. Copies cut 5 % closer are mostly missed.
MOST_BITS = 10
"""Bits of 64 that the hashes of near duplicates may differ in."""
LEAST_CORRELATION = 0.93
"""Of the small grey pictures of near duplicates."""

MOST_PAIRS = 100_000
"""Pairs after which the search ends."""

SMALL = 16
"""Side of the pictures that are compared."""

_SIDE = 2 * SMALL  # of the pictures that are hashed
_BLOCK = 2048  # pictures whose hashes are compared at a time
_HITS = 2**16  # pairs of like hashes whose pictures are compared at a time


@dataclass(frozen=True)
class Likeness:
    """What near duplicates share.

    ``bits`` (64,) are the signs, -1 and 1, of the lowest frequencies of the grey picture against their median.
    ``small`` (256,) is the grey picture itself at 16 x 16 pixels, of mean 0 and norm 1; zeros for one of a single grey.
    """

    bits: NDArray[np.int8]
    small: NDArray[np.float16]


def content_hash(pixels: NDArray[Any]) -> bytes:
    """Equal for pictures of the same shape, type and values, and for no others."""
    digest = hashlib.blake2b(f"{pixels.dtype} {pixels.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def likeness(pixels: NDArray[Any]) -> Likeness:
    """The perceptual hash of a picture (c, h, w) of any values.

    The 8 x 8 lowest frequencies of the cosine transform of the picture at 32 x 32 pixels, above or below their median;
    the mean of the picture, which comes first among them, is not used and counts as below.
    """
    colour = len(pixels) in (3, 4)
    grey = np.tensordot(_LUMA, pixels[:3], axes=1) if colour else pixels.mean(axis=0, dtype=np.float32)
    square = np.asarray(Image.fromarray(grey).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS))
    frequencies = (_COSINES @ square @ _COSINES.T).ravel()
    above = frequencies > np.median(frequencies[1:])
    above[0] = False
    small = square.reshape(SMALL, 2, SMALL, 2).mean(axis=(1, 3)).ravel().astype(np.float64)
    small -= small.mean()
    norm = np.linalg.norm(small)
    return Likeness(np.where(above, 1, -1).astype(np.int8), (small / norm if norm > 0 else small).astype(np.float16))


def equal_groups(hashes: Sequence[bytes]) -> list[list[int]]:
    """Indices of equal hashes, for every hash that is there twice or more, in the order of the first of each."""
    groups: dict[bytes, list[int]] = {}
    for index, value in enumerate(hashes):
        groups.setdefault(value, []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def near_pairs(pictures: Sequence[Likeness], most: int = MOST_PAIRS) -> list[tuple[int, int, float]]:
    """Pairs of pictures that look the same: their indices and their correlation, the most alike first.

    Every picture is compared with every other, as products of blocks of signs: the bits that differ are (64 - product)
    / 2. The time grows with the square of their number; 100,000 take about a minute.

    Args:
        pictures: see `likeness`.
        most: pairs after which the search ends, as among the frames of a video nearly all are pairs.
    """
    if len(pictures) < 2:
        return []
    signs = np.stack([picture.bits for picture in pictures]).astype(np.float32)
    small = np.stack([picture.small for picture in pictures])
    pairs: list[tuple[int, int, float]] = []
    for top in range(0, len(signs), _BLOCK):
        rows = signs[top : top + _BLOCK]
        for left in range(top, len(signs), _BLOCK):
            close = rows @ signs[left : left + _BLOCK].T >= 64 - 2 * MOST_BITS
            first, second = np.nonzero(np.triu(close, 1) if left == top else close)
            for part in range(0, len(first), _HITS):
                ones, others = first[part : part + _HITS] + top, second[part : part + _HITS] + left
                alike = np.einsum("ij,ij->i", small[ones], small[others], dtype=np.float32)
                hits = np.flatnonzero(alike >= LEAST_CORRELATION)
                pairs += zip(ones[hits].tolist(), others[hits].tolist(), alike[hits].tolist(), strict=True)
                if len(pairs) >= most:
                    return _sorted(pairs[:most])
    return _sorted(pairs)


def _sorted(pairs: list[tuple[int, int, float]]) -> list[tuple[int, int, float]]:
    return sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1]))


_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Of red, green and blue (ITU-R BT.601), as pictures are made grey, so that a grey copy is found."""

_COSINES = np.cos(math.pi / (2 * _SIDE) * np.outer(np.arange(8), 2 * np.arange(_SIDE) + 1)).astype(np.float32)
"""(8, 32): the first rows of the discrete cosine transform (DCT-II)."""
