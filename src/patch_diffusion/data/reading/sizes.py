"""Target sizes of images, and cropping and resizing to them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from patch_diffusion.config import Data, Fit
from patch_diffusion.errors import InputError

Size = tuple[int, int]
"""Height and width of an image in pixels."""

MOST_ENLARGED = 4
"""The largest factor an image is enlarged by: there is nothing to learn from an image that is enlarged more."""

LEAST_IN_BUCKET = 8
"""The fewest images in a bucket (of one size); a smaller one joins the nearest, as its steps would repeat images."""

_FINEST_BUCKETS = 16  # smallest step in pixels between the sides of buckets
_LONGEST_BUCKET = 4.0  # largest aspect ratio of a bucket
_BUCKET_AREA = 0.25  # share by which the area of a bucket may differ from resolution^2


def resolution_of(options: Data) -> Size | None:
    """Return the resolution option as height and width; None if images keep their size."""
    resolution = options.resolution
    return (resolution, resolution) if isinstance(resolution, int) else resolution


def choose_sizes(
    sizes: Mapping[int, Size], name: Callable[[int], str], resolution: Size | None, fit: Fit
) -> dict[int, Size]:
    """Return the size, height and width, that each image is resized to, as a dict by image index.

    "crop" and "stretch" resize all to the resolution, "bucket" and "multiples" each to the nearest of `bucket_sizes`.
    Without a resolution all must have one size; the error takes the name of an image by its index from ``name``.
    """
    if resolution is None:
        return dict.fromkeys(sizes, _common_size(sizes, name))
    if fit in ("bucket", "multiples"):
        return _nearest_buckets(sizes, bucket_sizes(resolution, multiples=fit == "multiples"))
    return dict.fromkeys(sizes, resolution)


def bucket_sizes(resolution: Size, *, multiples: bool = False) -> list[Size]:
    """Return the sizes of aspect-ratio buckets, which all have about the area of the resolution.

    They are the resolution, lying and standing, and others whose sides are multiples of a quarter of the resolution's
    side, rounded to a multiple of 16; with ``multiples`` these alone, as long as there are any.

    >>> bucket_sizes((64, 64))[:4]
    [(32, 112), (32, 128), (48, 80), (48, 96)]
    """
    area = resolution[0] * resolution[1]
    step = max(_FINEST_BUCKETS, _FINEST_BUCKETS * round(math.sqrt(area) / 4 / _FINEST_BUCKETS))
    sizes: set[Size] = set()
    for side in range(step, int(math.sqrt(area * _LONGEST_BUCKET)) + step, step):
        other = max(step, step * round(area / side / step))
        long_enough = max(side, other) / min(side, other) <= _LONGEST_BUCKET
        if long_enough and abs(side * other / area - 1) <= _BUCKET_AREA:
            sizes |= {(side, other), (other, side)}
    if multiples:
        return sorted(sizes) or [resolution]
    asked = {resolution, resolution[::-1]}
    aspects = {height / width for height, width in asked}
    return sorted(asked | {size for size in sizes if size[0] / size[1] not in aspects})


def too_small(size: Size, target: Size) -> str:
    """Return why an image is unusable if an axis must be enlarged more than 4 times to the target; else nothing."""
    if MOST_ENLARGED * size[0] >= target[0] and MOST_ENLARGED * size[1] >= target[1]:
        return ""
    return f"{size[0]}x{size[1]} is too small to enlarge to {target[0]}x{target[1]}"


def describe_changes(sizes: Mapping[int, Size], targets: Mapping[int, Size], fit: Fit) -> list[str]:
    """Return notes for the user on how many images are resized, cropped or stretched, and to which sizes."""
    notes = []
    resized = [index for index, target in targets.items() if sizes[index] != target]
    changed = sum(sizes[i][0] * targets[i][1] != targets[i][0] * sizes[i][1] for i in resized)
    counts = Counter(targets.values())
    if len(counts) > 1:
        shapes = ", ".join(f"{count:,} {height}x{width}" for (height, width), count in counts.most_common())
        notes.append(f"the images have {len(counts)} shapes: {shapes}")
    if resized:
        (height, width), _ = counts.most_common(1)[0]
        to = f"{height}x{width}" if len(counts) == 1 else "the nearest shape"
        what = "stretched" if fit == "stretch" else "cropped"
        which = f"{len(resized):,} of {len(targets):,}" if len(resized) < len(targets) else f"all {len(targets):,}"
        how = f", {changed:,} of them {what} to its aspect" if changed < len(resized) else f", and {what}"
        notes.append(f"{which} images resized to {to}{how if changed else ''}")
    return notes


def resize(
    image: Image.Image, size: Size, fit: Fit, method: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """Resize an image: stretch it, or else crop it, centred, to the aspect ratio of the size first."""
    height, width = size
    if image.size == (width, height):
        return image
    if fit == "stretch":
        return image.resize((width, height), method)
    return ImageOps.fit(image, (width, height), method)


def resize_values(pixels: NDArray[Any], size: Size | None, fit: Fit) -> NDArray[Any]:
    """Crop or stretch an array (c, h, w) of uint8, uint16 or float32 to a size, each channel on its own."""
    if size is None or pixels.shape[1:] == size:
        return pixels
    if pixels.dtype == np.uint8:
        return np.stack([np.asarray(resize(Image.fromarray(channel), size, fit)) for channel in pixels])
    resized = np.stack(
        [np.asarray(resize(Image.fromarray(channel.astype(np.float32)), size, fit)) for channel in pixels]
    )
    if pixels.dtype == np.uint16:
        resized = resized.round().clip(0, 65535).astype(np.uint16)
    return resized


def _common_size(sizes: Mapping[int, Size], name: Callable[[int], str]) -> Size:
    (height, width), _ = Counter(sizes.values()).most_common(1)[0]
    others = [index for index, size in sizes.items() if size != (height, width)]
    if others:
        other = sizes[others[0]]
        side = min(height, width)
        raise InputError(
            f"{len(others):,} of {len(sizes):,} images are not {height}x{width} like the others (first: "
            f"{name(others[0])}, {other[0]}x{other[1]}): give --resolution, for example --resolution {side}, to crop "
            "and resize all; with --data.fit stretch they are stretched instead, and in training with --data.fit "
            "bucket each goes to the nearest of several shapes"
        )
    return height, width


def _nearest_buckets(sizes: Mapping[int, Size], buckets: Sequence[Size]) -> dict[int, Size]:
    of_size = {size: _nearest(size, buckets) for size in set(sizes.values())}
    counts = Counter(of_size[size] for size in sizes.values())
    while len(counts) > 1:
        bucket, count = min(counts.items(), key=lambda entry: (entry[1], entry[0]))
        if count >= LEAST_IN_BUCKET:
            break
        del counts[bucket]
        other = _nearest(bucket, sorted(counts))
        counts[other] += count
        of_size = {size: other if chosen == bucket else chosen for size, chosen in of_size.items()}
    return {index: of_size[size] for index, size in sizes.items()}


def _nearest(size: Size, buckets: Sequence[Size]) -> Size:
    """Return the size in ``buckets`` with the aspect ratio nearest to ``size``'s; of equally near ones, the larger."""
    aspect = math.log(size[0] / size[1])
    return min(buckets, key=lambda bucket: (abs(math.log(bucket[0] / bucket[1]) - aspect), -bucket[0] * bucket[1]))
