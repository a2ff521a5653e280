"""Image sets to train on, in memory or memory-mapped, and their split into training and held-out images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patch_diffusion.config import Data
from patch_diffusion.data.codec import DTYPES, Codec, PixelCodec
from patch_diffusion.data.gather import Gather
from patch_diffusion.data.order import permute
from patch_diffusion.errors import InputError

HELD_OUT = 0.05
"""The share of the images that is held out from training by default."""

FEWEST_TO_HOLD_OUT = 640
"""The fewest images of a data set that has some held out by default: of fewer, the 64 held out exceed a tenth."""

_LEAST_HELD_OUT = 64

_MEASURED, _MEASURED_VALUES = 16_384, 2**31
"""The most images, evenly over the data set, and the most values that the standard deviation is measured on, whichever
is less; all images of a smaller data set."""

_PIECE = 2**22
"""The number of values, about, that are measured at a time, so that memory does not grow with the size of images."""


@dataclass(frozen=True)
class Subset:
    """A subset of a data set: ``num`` images from position ``first`` on of a shuffled order, computed from ``seed``.

    If the data set also has the mirror image of every image, ``first`` counts each pair once.
    """

    seed: int
    first: int
    num: int


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A data set of images of one size: ``pixels`` (n, c, h, w) and, if there are classes, integer ``labels`` (n,).

    ``pixels`` are uint8, uint16 or float32, in memory or memory-mapped, and then only the requested images are read.
    ``options`` are the options the images were opened with, ``notes`` are remarks for the user about the reading, and
    ``codec`` maps pixels to model space. ``file`` is the file that pixels are mapped from, which must not be truncated
    while it is in use. ``part`` makes this a subset of the images, see `hold_out`. ``mirrored`` is 2 if all images are
    followed by their mirror images in the same order, else 1.

    Raises:
        InputError: the pixels or labels have a wrong shape, dtype or value, or there is not one label per image.

    >>> images = ImageSet(torch.zeros(10, 3, 24, 32, dtype=torch.uint8), labels=torch.arange(10) % 2)
    >>> len(images), images.channels, images.resolution, images.num_classes
    (10, 3, (24, 32), 2)
    """

    pixels: Tensor
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()
    options: Data = field(default_factory=Data)
    notes: tuple[str, ...] = ()
    codec: Codec = field(default_factory=PixelCodec)
    part: Subset | None = None
    file: Path | None = None
    mirrored: int = 1

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.dtype != DTYPES[self.codec.dtype]:
            raise InputError(
                f"images are {self.codec.dtype} tensors (n, channels, height, width), "
                f"not {self.pixels.dtype} {tuple(self.pixels.shape)}"
            )
        if len(self.pixels) == 0:
            raise InputError("there are no images")
        if self.labels is not None and (self.labels.shape != (len(self.pixels),) or self.labels.min() < 0):
            raise InputError("labels are integers from 0, one per image")

    def __len__(self) -> int:
        return len(self.pixels) if self.part is None else self.part.num

    @property
    def buckets(self) -> tuple[ImageSet, ...]:
        """A tuple of this set alone, since all its images have one size; `ImageBuckets` have one set for each size."""
        return (self,)

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.pixels.shape[1]

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of an image."""
        return self.pixels.shape[2], self.pixels.shape[3]

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        if self.labels is None:
            return 0
        return len(self.class_names) or int(self.labels.max()) + 1

    def rows(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Map indices of this set, which may be a subset, to rows of ``pixels`` and ``labels``."""
        if self.part is None:
            return indices
        num, of_part = len(self.pixels) // self.mirrored, self.part.num // self.mirrored
        rows = permute(indices % of_part + self.part.first, num, self.part.seed, "held out")
        return rows + indices // of_part * num

    def batch(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        """Return the pixels (k, c, h, w) and labels (k,) of the images with these k indices."""
        return Gather(self.pixels)(self.rows(indices)), self.labels_of(indices)

    def labels_of(self, indices: NDArray[np.int64]) -> Tensor | None:
        """Return the labels (k,) of the images with these k indices; None without labels."""
        return None if self.labels is None else self.labels[torch.from_numpy(self.rows(indices))]

    @cached_property
    def standard_deviation(self) -> float:
        """The standard deviation of pixels in model space, [-1, 1]: the sigma_data of the denoiser."""
        return _standard_deviation([self])


@dataclass(frozen=True, eq=False)
class ImageBuckets:
    """Images of several sizes, with one image set (a bucket) per size. All images of a training step are of one bucket.

    `open_images` returns it for ``fit="bucket"``. ``len`` counts the images of all buckets; ``resolution`` is that of
    the bucket with the most images.

    >>> wide, tall = (torch.zeros(10, 3, *shape, dtype=torch.uint8) for shape in ((24, 32), (32, 24)))
    >>> images = ImageBuckets((ImageSet(wide), ImageSet(tall)))
    >>> len(images), [bucket.resolution for bucket in images.buckets]
    (20, [(24, 32), (32, 24)])
    """

    buckets: tuple[ImageSet, ...]
    options: Data = field(default_factory=Data)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return sum(map(len, self.buckets))

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.buckets[0].channels

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of images in the bucket with the most images, which is the default size of samples."""
        return max(self.buckets, key=len).resolution

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; empty if they have none."""
        return self.buckets[0].class_names

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        return max(bucket.num_classes for bucket in self.buckets)

    @property
    def codec(self) -> Codec:
        """The codec that maps pixels to model space and back."""
        return self.buckets[0].codec

    @cached_property
    def standard_deviation(self) -> float:
        """The standard deviation of pixels in model space, [-1, 1]: the sigma_data of the denoiser."""
        return _standard_deviation(self.buckets)


Images = ImageSet | ImageBuckets


def hold_out(images: Images, share: float, seed: int) -> tuple[Images, Images | None]:
    """Return images to train on, and held-out ones (None if ``share`` is 0) to measure how unseen images are denoised.

    The split follows from the seed and the number of images alone, and the pixels are not copied.

    Args:
        images: all images.
        share: the share of every bucket to hold out, from 0 to 0.5; of small data sets at least 64 images, or half.
        seed: the seed of the training.
    """
    if not 0 <= share <= 0.5:
        raise InputError(f"data.held_out is a share of the images from 0 to 0.5, not {share}")
    options = replace(images.options, held_out=share)
    share = max(share, min(_LEAST_HELD_OUT / len(images), 0.5)) if share else 0.0
    numbers = [bucket.mirrored * round(share * len(bucket) / bucket.mirrored) for bucket in images.buckets]
    if share and not sum(numbers):
        raise InputError("there are too few images to hold any out: set data.held_out to 0")
    if not share:
        return images, None
    parts = [
        (
            replace(bucket, part=Subset(seed, 0, len(bucket) - num), options=options),
            replace(bucket, part=Subset(seed, (len(bucket) - num) // bucket.mirrored, num), options=options),
        )
        for bucket, num in zip(images.buckets, numbers, strict=True)
    ]
    train, held_out = (tuple(one[side] for one in parts if len(one[side])) for side in (0, 1))
    if isinstance(images, ImageSet):
        return train[0], held_out[0]
    return replace(images, buckets=train, options=options), ImageBuckets(held_out, options)


def halved(images: Images) -> tuple[Images, Images]:
    """Return two halves of a data set, such as of held-out images, that share no image; of a single image it twice.

    The pixels are not copied. The first half of a subset begins as the subset does.
    """
    sides: tuple[list[ImageSet], list[ImageSet]] = [], []
    for bucket in images.buckets:
        part = bucket.part or Subset(0, 0, len(bucket))
        pairs = part.num // bucket.mirrored
        middle = (pairs + 1) // 2
        for side, (first, end) in zip(sides, ((0, middle), (middle, pairs)), strict=True):
            if end > first:
                chosen = replace(part, first=part.first + first, num=bucket.mirrored * (end - first))
                side.append(replace(bucket, part=chosen))
    if not sides[1]:
        return images, images
    if isinstance(images, ImageSet):
        return sides[0][0], sides[1][0]
    one, other = (replace(images, buckets=tuple(side)) for side in sides)
    return one, other


def _standard_deviation(buckets: Sequence[ImageSet]) -> float:
    """Return the standard deviation of pixels in model space, over a fixed choice of images, in double precision."""
    total = sum(map(len, buckets))
    count, first, second = 0, 0.0, 0.0
    for bucket in buckets:
        most = min(_MEASURED, max(_MEASURED_VALUES // bucket.pixels[0].numel(), 1))
        num = max(1, min(len(bucket), round(most * len(bucket) / total)))
        chosen = np.unique(np.linspace(0, len(bucket) - 1, num).astype(np.int64))
        for pixels in _pieces(bucket, chosen):
            values = bucket.codec.encode(pixels).double()
            count += values.numel()
            first += values.sum().item()
            second += values.square().sum().item()
    return float(max(second / count - (first / count) ** 2, 0.0) ** 0.5)


def _pieces(images: ImageSet, chosen: NDArray[np.int64]) -> Iterator[Tensor]:
    """Yield the chosen images as tensors (k, c, h, w): several images at a time, or a few rows of a large one."""
    height, values = images.resolution[0], images.pixels[0].numel()
    if values <= _PIECE:
        together = min(max(_PIECE // values, 1), 256)
        for start in range(0, len(chosen), together):
            yield images.batch(chosen[start : start + together])[0]
        return
    rows = max(_PIECE * height // values, 1)
    for index in images.rows(chosen).tolist():
        for top in range(0, height, rows):
            yield images.pixels[index : index + 1, :, top : top + rows]
