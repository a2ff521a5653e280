"""Keys of images, 64-bit hashes of their content or of their group, and the choice of held-out images by them.

A key depends on nothing but the image itself: not on its name, its place among the others, or the time of a file. So an
image stays on its side of the split when others come or go, and identical images are on the same side.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patch_diffusion.data.order import mix
from patch_diffusion.streams import stream_key

_SPANS, _SPAN_BYTES = 16, 256
"""The number and length of the spans, evenly over an image in an array, that its key is made of, if it is larger."""

_BYTES_AT_ONCE = 2**24


def key_of_bytes(content: bytes | memoryview) -> int:
    """Return the key of an image file, or of a group's name, given its bytes."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")


def key_of_array(image: NDArray[Any]) -> int:
    """Return the key of one image in memory."""
    return int(keys_of_rows(image[None])[0])


def keys_of_rows(images: NDArray[Any]) -> NDArray[np.uint64]:
    """Return the keys (n,) of images (n, ...) in an array: of their dtype, their number of values, and these values.

    Of an image above 4 KB only 16 spans count, so that not every byte of a huge file is read.
    """
    size = int(np.prod(images.shape[1:]))
    span = max(1, _SPAN_BYTES // images.dtype.itemsize)
    starts = np.linspace(0, size - span, _SPANS).astype(np.int64) if size > _SPANS * span else None
    kind = blake2b(f"{images.dtype} {size}".encode(), digest_size=16).digest()
    rows = max(1, _BYTES_AT_ONCE // max(1, size * images.dtype.itemsize))
    found = bytearray()
    for first in range(0, len(images), rows):
        block = images[first : first + rows].reshape(-1, size)
        if starts is not None:
            block = np.concatenate([block[:, start : start + span] for start in starts], axis=1)
        each = block.shape[1] * block.dtype.itemsize
        content = memoryview(np.ascontiguousarray(block).tobytes())
        for place in range(0, len(content), max(each, 1)):
            found += blake2b(content[place : place + each], digest_size=8, person=kind).digest()
    return np.frombuffer(bytes(found), "<u8").astype(np.uint64)


def keys_of_groups(groups: Iterable[str]) -> NDArray[np.uint64]:
    """Return a key for each image, given the names of the groups that they belong to."""
    known: dict[str, int] = {}
    return np.fromiter(
        (
            known.get(name) or known.setdefault(name, key_of_bytes(name.encode(errors="surrogatepass")))
            for name in groups
        ),
        np.uint64,
    )


def draws_of(keys: NDArray[np.uint64], seed: int) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each key, which follows from it and the seed and looks random."""
    draws = mix(keys ^ np.uint64(stream_key(seed, "held out")))
    return (draws >> np.uint64(11)).astype(np.float64) * 2.0**-53


def limit_for(draws: NDArray[np.float64], share: float) -> float | None:
    """Return the limit below which about a share of the draws lies, at least one and not all; None if all are equal."""
    values, counts = np.unique(draws, return_counts=True)
    if len(values) < 2:
        return None
    below = np.cumsum(counts)[:-1]
    return float(values[1 + int(np.argmin(np.abs(below - share * len(draws))))])
