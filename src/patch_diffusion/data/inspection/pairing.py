"""Faults of paired images: inputs that are missing, of other shapes, swapped, or shifted against them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patch_diffusion.data.files.collection import Collection
from patch_diffusion.data.files.decode import ImageFile, decode_file, reason
from patch_diffusion.data.files.paired import places_of
from patch_diffusion.errors import InputError, counted

MOST_PAIRS = 200
"""The most pairs that are compared, evenly over the data."""

LARGEST_SHIFT = 1.0
"""The median shift, in pixels of the image, from which inputs are said not to lie on their images."""

_SIDE = 64  # side of the grey copies that are compared
_LEAST_SWAPPED = 0.02  # the share of pairs that match another one better, from which they are said to be swapped
_CLEAR = 0.1  # by how much more another one has to correlate


def check_pairs(own: Collection, found: Collection, *, alone: bool) -> list[str]:
    """Return sentences on what may be wrong with the inputs in a collection of the images in another one.

    Args:
        own: the images.
        found: their inputs.
        alone: True if it is the only input, which no image may lack.
    """
    names = [file.name for file in own.files]
    try:
        places, notes = places_of(names, found, alone=alone)
    except InputError as error:
        return [str(error)]
    number = min(len(names), MOST_PAIRS)
    chosen = [each * len(names) // number for each in range(number)]
    pairs = [(own.files[index], found.files[places[index]]) for index in chosen if places[index] >= 0]
    edges: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    scales: list[float] = []
    for image, other in pairs:
        try:
            one, two = (decode_file(each, mode="RGB").astype(np.float32).mean(axis=0) for each in (image, other))
        except Exception as error:  # Pillow may raise any exception on a broken file
            return [*notes, f"{image.name} or its input in {found.source} cannot be read: {reason(error)}"]
        if abs(one.shape[0] * two.shape[1] / (one.shape[1] * two.shape[0]) - 1) > 0.02:
            shapes = ["x".join(map(str, each.shape)) for each in (one, two)]
            return [
                *notes,
                f"{image.name} is {shapes[0]}, and its input in {found.source} {shapes[1]}: other proportions",
            ]
        edges.append((_edges(one), _edges(two)))
        scales.append(max(one.shape) / _SIDE)
    return [*notes, *_swapped(edges, pairs, found.source), *_shifted(edges, scales, found.source)]


def _edges(grey: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the size of the gradients of a grey copy of 64 x 64 pixels, of mean 0 and norm 1."""
    small = np.asarray(Image.fromarray(grey).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), np.float64)
    down, across = np.gradient(small)
    found = np.hypot(down, across)
    found -= found.mean()
    return found / max(float(np.linalg.norm(found)), 1e-12)


def _swapped(
    edges: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
    pairs: Sequence[tuple[ImageFile, ImageFile]],
    source: str,
) -> list[str]:
    """Return a sentence if several inputs match the image of another pair clearly better than their own."""
    if len(edges) < 2:
        return []
    images, inputs = (np.stack([pair[place].ravel() for pair in edges]) for place in (0, 1))
    alike = images @ inputs.T
    own = alike.diagonal().copy()
    np.fill_diagonal(alike, -1)
    best = alike.argmax(axis=1)
    wrong = np.flatnonzero(alike.max(axis=1) > own + _CLEAR)
    if len(wrong) < max(2, _LEAST_SWAPPED * len(edges)):
        return []
    first = int(wrong[0])
    names = pairs[first][0].name, pairs[int(best[first])][0].name
    return [
        f"{counted(len(wrong), 'image')} of {len(edges):,} that were compared match the input of another one in "
        f"{source} better than their own (first: {names[0]}, that of {names[1]}): swapped names?"
    ]


def _shifted(
    edges: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], scales: Sequence[float], source: str
) -> list[str]:
    """Return a sentence if the median shift of inputs against their images is above a pixel, by phase correlation."""
    shifts: list[tuple[float, float]] = []
    for (image, other), scale in zip(edges, scales, strict=True):
        crossed = np.fft.fft2(image) * np.fft.fft2(other).conj()
        peaks = np.fft.ifft2(crossed / np.maximum(np.abs(crossed), 1e-12)).real
        down, across = np.unravel_index(int(peaks.argmax()), peaks.shape)
        moved = [float((place + _SIDE // 2) % _SIDE - _SIDE // 2) * scale for place in (down, across)]
        shifts.append((moved[0], moved[1]))
    if not shifts:
        return []
    down, across = (float(np.median([shift[axis] for shift in shifts])) for axis in (0, 1))
    if max(abs(down), abs(across)) <= LARGEST_SHIFT:
        return []
    return [
        f"images lie {down:+.1f} pixels down and {across:+.1f} across from their inputs in {source} (median of "
        f"{len(shifts):,}): a model learns that shift"
    ]
