"""Detection of exact duplicates and near duplicates in a data set, by content hashes and perceptual hashes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# These limits were chosen by eye on 3,795 aligned cat faces and 10,000 images of CIFAR-10: nearly all pairs within both
# are the same photograph, also after strong JPEG compression, resizing or another colouring, and images of similar
# things are not within them. Copies that are cropped by 5 % are mostly missed.
MOST_BITS = 10
"""The most bits, of 64, in which the perceptual hashes of near duplicates may differ."""
LEAST_CORRELATION = 0.93
"""The lowest correlation between the small grey copies of near duplicates."""

MOST_PAIRS = 100_000
"""The number of near-duplicate pairs after which the search ends."""

SMALL = 16
"""The side, in pixels, of the small grey copies whose correlation is computed."""

_SIDE = 2 * SMALL  # side of the grey copies that are hashed
_BLOCK = 2048  # number of images whose hashes are compared at a time
_HITS = 2**16  # number of pairs with similar hashes whose small copies are compared at a time


@dataclass(frozen=True)
class Likeness:
    """The perceptual hash and a small copy of an image, by which near duplicates are found.

    ``bits`` (64,) are the signs, -1 and 1, of the lowest frequencies of the grey image relative to their median.
    ``small`` (256,) is the grey image itself at 16 x 16 pixels, of mean 0 and norm 1; zeros for a constant image.
    """

    bits: NDArray[np.int8]
    small: NDArray[np.float16]


def content_hash(pixels: NDArray[Any]) -> bytes:
    """Return a hash of an image that is equal for images of the same shape, dtype and values, and for no others."""
    digest = hashlib.blake2b(f"{pixels.dtype} {pixels.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def likeness(pixels: NDArray[Any]) -> Likeness:
    """Compute the perceptual hash, and a small grey copy, of an image (c, h, w) of any values.

    Its bits say which of the 8 x 8 lowest frequencies of the cosine transform of the grey image at 32 x 32 pixels are
    above their median; the mean of the image, which is the first frequency, is not used and counts as below.
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
    """Return the indices of equal hashes, a list for every hash that occurs twice or more, in order of occurrence."""
    groups: dict[bytes, list[int]] = {}
    for index, value in enumerate(hashes):
        groups.setdefault(value, []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def near_pairs(pictures: Sequence[Likeness], most: int = MOST_PAIRS) -> list[tuple[int, int, float]]:
    """Return near duplicates as a list of (index, index, correlation), the most similar pair first.

    Every image is compared with every other, by products of blocks of signs: the number of differing bits is
    (64 - product) / 2. The time grows with the square of the number of images; 100,000 take about a minute. The search
    ends after ``most`` pairs, since among video frames nearly all are pairs.
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
"""The luma weights of red, green and blue (ITU-R BT.601), which image libraries use, so that grey copies are found."""

_COSINES = np.cos(math.pi / (2 * _SIDE) * np.outer(np.arange(8), 2 * np.arange(_SIDE) + 1)).astype(np.float32)
"""The first 8 rows (8, 32) of the discrete cosine transform (DCT-II)."""
