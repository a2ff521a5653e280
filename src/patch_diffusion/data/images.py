"""Images ready to train on, in memory or memory-mapped."""

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
"""Share of the images that is held out where nothing else is asked for."""

FEWEST_TO_HOLD_OUT = 640
"""Images of which some are held out without being asked to: of fewer, 64 would be more than a tenth."""

_LEAST_HELD_OUT = 64

_MEASURED, _MEASURED_VALUES = 16_384, 2**31
"""Images that the standard deviation is measured on, evenly over the data set, or values where that is less; all where
there are fewer."""

_PIECE = 2**22
"""Values that are measured at a time, about: what is read of large images does not grow with them."""


@dataclass(frozen=True)
class Subset:
    """``num`` images from the place ``first`` on, of all in an order that follows from ``seed``: it takes no memory.

    Of images that are there several times, ``first`` counts each once.
    """

    seed: int
    first: int
    num: int


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one size: ``pixels`` (n, c, h, w) and, where there are classes, ``labels`` (n,) integers.

    ``pixels`` are uint8, uint16 or float32, in memory or memory-mapped, and then only the requested images are read.
    ``options`` are the options the images were opened with, ``notes`` are remarks for the user about the reading, and
    ``codec`` maps pixels to model space. ``file`` is the file that pixels are mapped from, which must not be truncated
    while it is in use. ``part`` makes this a subset of the images, see `hold_out`. ``mirrored`` is 2 if all images are
    followed by their mirror images in the same order, else 1.

    Raises:
        InputError: the numbers cannot be pixels or labels, or there is not one label per image.

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
        """The sets of equal size that it consists of: itself."""
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
        """Where some images are in ``pixels`` and ``labels``."""
        if self.part is None:
            return indices
        num, of_part = len(self.pixels) // self.mirrored, self.part.num // self.mirrored
        rows = permute(indices % of_part + self.part.first, num, self.part.seed, "held out")
        return rows + indices // of_part * num

    def batch(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        """Pixels and labels of some images."""
        return Gather(self.pixels)(self.rows(indices)), self.labels_of(indices)

    def labels_of(self, indices: NDArray[np.int64]) -> Tensor | None:
        """Labels of some images."""
        return None if self.labels is None else self.labels[torch.from_numpy(self.rows(indices))]

    @cached_property
    def standard_deviation(self) -> float:
        """Of pixels in model space, [-1, 1]: the sigma_data of the denoiser."""
        return _standard_deviation([self])


@dataclass(frozen=True, eq=False)
class ImageBuckets:
    """Images of several sizes, in one set for each. A step of the training takes all its images from one of them.

    What `open_images` gives for ``fit="bucket"``. ``len`` counts the images of all of them; ``resolution`` is that
    of the largest one.

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
        """Height and width of the largest bucket's images, which is what is sampled unless another is asked for."""
        return max(self.buckets, key=len).resolution

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, where they have any."""
        return self.buckets[0].class_names

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        return max(bucket.num_classes for bucket in self.buckets)

    @property
    def codec(self) -> Codec:
        """What brings pixels to model space."""
        return self.buckets[0].codec

    @cached_property
    def standard_deviation(self) -> float:
        """Of pixels in model space, [-1, 1]: the sigma_data of the denoiser."""
        return _standard_deviation(self.buckets)


Images = ImageSet | ImageBuckets


def hold_out(images: Images, share: float, seed: int) -> tuple[Images, Images | None]:
    """The images to train on, and those that are held out to see how well others than these are denoised.

    Which they are follows from the seed alone, and the pixels stay where they are.

    Args:
        images: all of them.
        share: that is held out, of every bucket, from 0 to 0.5; of a few images 64 are, or half of them.
        seed: of the run.
    """
    if not 0 <= share <= 0.5:
        raise InputError(f"data.held_out is a share of the images from 0 to 0.5, not {share}")
    options = replace(images.options, held_out=share)
    share = max(share, min(_LEAST_HELD_OUT / len(images), 0.5)) if share else 0.0
    numbers = [bucket.mirrored * round(share * len(bucket) / bucket.mirrored) for bucket in images.buckets]
    if share and not sum(numbers):
        raise InputError("of so few images none can be held out: set data.held_out to 0")
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


def _standard_deviation(buckets: Sequence[ImageSet]) -> float:
    """Of all pixels of a fixed choice of images, in double precision."""
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
    """Some images, several at a time or a few rows of one, (k, c, h, w)."""
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
