"""Image sets to train on, in memory or memory-mapped, and their split into training and held-out images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patch_diffusion.config import Data
from patch_diffusion.data.attributes import Attribute, Attributes
from patch_diffusion.data.classes import occurring, ordered, places_among, refuse_many_classes
from patch_diffusion.data.codec import DTYPES, Codec, PixelCodec
from patch_diffusion.data.gather import Gather
from patch_diffusion.data.keys import keys_of_rows
from patch_diffusion.data.paired import Paired, PairedInput
from patch_diffusion.errors import InputError

_MEASURED, _MEASURED_VALUES = 16_384, 2**31
"""The most images, evenly over the data set, and the most values that moments are measured on, whichever
is less; all images of a smaller data set."""

_PIECE = 2**22
"""The number of values, about, that are measured at a time, so that memory does not grow with the size of images."""


_ROUNDING = 1e-13
"""The share of a mean square below which a variance is what rounding has left of none."""

Keys = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Part:
    """One side of a split: the indices ``rows`` of its images, as int64.

    Images whose draw, see `draws_of`, is less than ``below`` are held out; None if they were chosen by their places. If
    the data set also has the mirror image of every image, ``rows`` has each pair once.
    """

    rows: NDArray[np.int64]
    below: float | None = None


class Moments(NamedTuple):
    """The mean of each channel of images in model space, and the mean square of all values."""

    means: tuple[float, ...]
    square: float

    def deviation(self, about: Sequence[float] | None = None) -> float:
        """Return the root mean square about a mean of each channel, or one for all; None: the mean of all values.

        >>> Moments((-0.5, 0.5), 0.25).deviation(), Moments((-0.5, 0.5), 0.25).deviation((-0.5, 0.5))
        (0.5, 0.0)
        """
        if about is None:
            about = [math.fsum(self.means) / len(self.means)]
        each = about if len(about) > 1 else [*about] * len(self.means)
        moved = [middle**2 - 2 * middle * mean for middle, mean in zip(each, self.means, strict=True)]
        variance = self.square + math.fsum(moved) / len(moved)
        return variance**0.5 if variance > _ROUNDING * self.square else 0.0


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A data set of images of one size: ``pixels`` (n, c, h, w) and, if there are classes, integer ``labels`` (n,).

    ``labels`` count ``class_names``. Without names the classes that occur are counted from 0 on, and named by their own
    numbers if they are not 0, 1, 2 and so on; ``num_classes`` is their number, to be given only if some do not occur.

    ``pixels`` are uint8, uint16 or float32, in memory or memory-mapped, and then only the requested images are read.
    ``options`` are the options the images were opened with, ``notes`` are remarks for the user about the reading, and
    ``codec`` maps pixels to model space. ``file`` is the file that pixels are mapped from, which must not be truncated
    while it is in use. ``part`` makes this a subset of the images, see `hold_out`. ``mirrored`` is 2 if all images are
    followed by their mirror images in the same order, else 1. ``keys`` are hashes of the images as uint64 (n,), of
    mirrored ones (n/2,), or a function that finds them when they are wanted; None: hashes of ``pixels``. ``groups`` are
    such hashes of the groups that images belong to. ``attributes`` are what else a model is told of each image, and
    ``paired`` are images that it is shown beside each.

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
    part: Part | None = None
    file: Path | None = None
    mirrored: int = 1
    num_classes: int = 0
    keys: Keys | Callable[[], Keys] | None = None
    groups: NDArray[np.uint64] | None = None
    attributes: Attributes | None = None
    paired: tuple[Paired, ...] = ()

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.dtype != DTYPES[self.codec.dtype]:
            raise InputError(
                f"images are {self.codec.dtype} tensors (n, channels, height, width), "
                f"not {self.pixels.dtype} {tuple(self.pixels.shape)}"
            )
        if not self.pixels.numel():
            raise InputError("the images have no pixels" if len(self.pixels) else "there are no images")
        if self.labels is not None and (self.labels.shape != (len(self.pixels),) or self.labels.min() < 0):
            raise InputError("labels are integers from 0, one per image")
        if self.attributes is not None and len(self.attributes) != len(self.pixels):
            raise InputError(f"{len(self.pixels):,} images cannot have the attributes of {len(self.attributes):,}")
        for each in self.paired:
            if len(each.pixels) != len(self.pixels) or each.pixels.shape[2:] != self.pixels.shape[2:]:
                raise InputError(
                    f"images {tuple(self.pixels.shape)} cannot have {tuple(each.pixels.shape)} as paired inputs"
                )
        self._count_classes()

    def __len__(self) -> int:
        return len(self.pixels) if self.part is None else self.mirrored * len(self.part.rows)

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

    def rows(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Map indices of this set, which may be a subset, to rows of ``pixels`` and ``labels``."""
        if self.part is None:
            return indices
        num, of_part = len(self.pixels) // self.mirrored, len(self.part.rows)
        return self.part.rows[indices % of_part] + indices // of_part * num

    def batch(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        """Return the pixels (k, c, h, w) and labels (k,) of the images with these k indices."""
        return Gather(self.pixels)(self.rows(indices)), self.labels_of(indices)

    def labels_of(self, indices: NDArray[np.int64]) -> Tensor | None:
        """Return the labels (k,) of the images with these k indices; None without labels."""
        return None if self.labels is None else self.labels[torch.from_numpy(self.rows(indices))]

    def attributes_of(self, indices: NDArray[np.int64]) -> Tensor | None:
        """Return the vectors (k, width) that tell the attributes of the images with these k indices, or None."""
        return None if self.attributes is None else self.attributes.encode(self.rows(indices))

    @property
    def columns(self) -> tuple[Attribute, ...]:
        """Descriptions of the attributes of the images; empty if they have none."""
        return () if self.attributes is None else self.attributes.columns

    @property
    def inputs(self) -> tuple[PairedInput, ...]:
        """Descriptions of the paired inputs of the images; empty if they have none."""
        return tuple(each.about for each in self.paired)

    def input_images(self, place: int) -> ImageSet:
        """Return the images of one paired input as an image set with the same indices."""
        each = self.paired[place]
        codec, keys = PixelCodec(**each.about.codec), np.zeros(len(self.pixels) // self.mirrored, np.uint64)
        return ImageSet(
            each.pixels,
            options=self.options,
            codec=codec,
            part=self.part,
            file=each.file,
            mirrored=self.mirrored,
            keys=keys,
        )

    def inputs_given(self, indices: NDArray[np.int64]) -> Tensor:
        """Return which paired inputs the images with these k indices have, (k, inputs): 1 or 0."""
        rows = torch.from_numpy(self.rows(indices))
        there = [torch.ones(len(rows)) if each.there is None else each.there[rows].float() for each in self.paired]
        return torch.stack(there, dim=1)

    @cached_property
    def moments(self) -> Moments:
        """The means and the mean square of pixels in model space, over a fixed choice of images."""
        return _moments([self])

    @cached_property
    def content(self) -> NDArray[np.uint64]:
        """Hashes of all images, of both sides of a split, as uint64; of mirrored images without their twins."""
        if self.keys is not None:
            return self.keys() if callable(self.keys) else self.keys
        pixels = self.pixels[: len(self.pixels) // self.mirrored]
        last = pixels.permute(0, 2, 3, 1)  # the layout in memory, whose parts can be read without the whole
        return keys_of_rows((pixels if pixels.is_contiguous() or not last.is_contiguous() else last).numpy())

    @property
    def standard_deviation(self) -> float:
        """The standard deviation of pixels in model space, [-1, 1]: the sigma_data of the denoiser."""
        return self.moments.deviation()

    def _count_classes(self) -> None:
        """Set ``num_classes``, and labels and names of the classes that occur if they are not named."""
        highest = -1 if self.labels is None else int(self.labels.max())
        num = len(self.class_names) if self.labels is not None else 0
        if num and highest >= num:
            raise InputError(f"labels go up to {highest}, but there are {num} class names, which they count from 0")
        if self.labels is not None and not num:
            num = self.num_classes
            if highest >= num:
                labels, names = occurring(self.labels.numpy())
                num = len(names) or highest + 1
                if names:
                    object.__setattr__(self, "labels", torch.from_numpy(labels))
                    object.__setattr__(self, "class_names", names)
        object.__setattr__(self, "num_classes", num)


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

    def __post_init__(self) -> None:
        classes = {(bucket.class_names, bucket.num_classes) for bucket in self.buckets}
        if len(classes) > 1 and all(num for _, num in classes):
            names = ordered(name for bucket in self.buckets for name in _names(bucket))
            alike = (_numbered_as(bucket, names, len(names)) for bucket in self.buckets)
            object.__setattr__(self, "buckets", tuple(bucket for bucket in alike if bucket is not None))

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
    def columns(self) -> tuple[Attribute, ...]:
        """Descriptions of the attributes of the images; empty if they have none."""
        return self.buckets[0].columns

    @property
    def inputs(self) -> tuple[PairedInput, ...]:
        """Descriptions of the paired inputs of the images; empty if they have none."""
        return self.buckets[0].inputs

    @property
    def codec(self) -> Codec:
        """The codec that maps pixels to model space and back."""
        return self.buckets[0].codec

    @cached_property
    def moments(self) -> Moments:
        """The means and the mean square of pixels in model space, over a fixed choice of images."""
        return _moments(self.buckets)

    @property
    def standard_deviation(self) -> float:
        """The standard deviation of pixels in model space, [-1, 1]: the sigma_data of the denoiser."""
        return self.moments.deviation()


Images = ImageSet | ImageBuckets


def numbered_as(images: Images, names: Sequence[str], num: int) -> Images | None:
    """Return images with the labels that a model has for their classes; None if it does not know one of the classes.

    Args:
        images: all images.
        names: the names of the model's classes, empty if they are the numbers from 0 on.
        num: the number of the model's classes; 0 takes the labels away.
    """
    if isinstance(images, ImageSet):
        return _numbered_as(images, names, num)
    found = [_numbered_as(bucket, names, num) for bucket in images.buckets]
    buckets = tuple(bucket for bucket in found if bucket is not None)
    return replace(images, buckets=buckets) if len(buckets) == len(found) else None


def with_columns(images: Images, columns: Sequence[Attribute]) -> Images:
    """Return images with their attributes as a model knows them, see `Attributes.known_as`; without any if it has none.

    Images without attributes get none either, which is the same as attributes that are not given.
    """
    if not isinstance(images, ImageSet):
        return replace(images, buckets=tuple(_with_columns(bucket, columns) for bucket in images.buckets))
    return _with_columns(images, columns)


def with_inputs(images: Images, inputs: Sequence[PairedInput]) -> Images:
    """Return images whose paired inputs have the values and categories that a model knows them by; or none at all."""
    if not isinstance(images, ImageSet):
        buckets = [with_inputs(bucket, inputs) for bucket in images.buckets]
        return replace(images, buckets=tuple(bucket for bucket in buckets if isinstance(bucket, ImageSet)))
    if not inputs or len(inputs) != len(images.paired):
        return replace(images, paired=())
    pairs = zip(images.paired, inputs, strict=True)
    return replace(images, paired=tuple(each.known_as(about) for each, about in pairs))


def with_codec(images: Images, codec: Codec) -> Images:
    """Return the same images with another codec."""
    if isinstance(images, ImageSet):
        return replace(images, codec=codec)
    return replace(images, buckets=tuple(replace(bucket, codec=codec) for bucket in images.buckets))


def refuse_one_value(images: Images) -> None:
    """Raise InputError if no value differs from the others of its channel, so that there is nothing to learn."""
    if not images.moments.deviation(images.moments.means) > 0:
        raise InputError("all images are of one and the same value, or colour: there is nothing to learn")


def refuse_ids(images: Images) -> None:
    """Raise InputError if most images have a label of their own, as if it were an id and no class."""
    num = sum(len(bucket.pixels) // bucket.mirrored for bucket in images.buckets)
    refuse_many_classes(images.num_classes, num)


def _with_columns(images: ImageSet, columns: Sequence[Attribute]) -> ImageSet:
    if images.attributes is None or images.columns == tuple(columns):
        return images
    return replace(images, attributes=images.attributes.known_as(columns) if columns else None)


def _numbered_as(images: ImageSet, names: Sequence[str], num: int) -> ImageSet | None:
    if images.labels is None or (images.class_names, images.num_classes) == (tuple(names), num):
        return images
    if not num:
        return replace(images, labels=None, class_names=())
    places = places_among(_names(images), names, num)
    if places is None or (not names and places == list(range(num))):
        return None if places is None else images
    labels = torch.tensor(places)[images.labels.long()]
    return replace(images, labels=labels, class_names=tuple(names), num_classes=num)


def _names(images: ImageSet) -> tuple[str, ...]:
    return images.class_names or tuple(map(str, range(images.num_classes)))


def _moments(buckets: Sequence[ImageSet]) -> Moments:
    """Return the moments of pixels in model space, over a fixed choice of images, in double precision."""
    total = sum(map(len, buckets))
    count, first, second = 0, torch.zeros(buckets[0].channels, dtype=torch.float64), 0.0
    for bucket in buckets:
        most = min(_MEASURED, max(_MEASURED_VALUES // bucket.pixels[0].numel(), 1))
        num = max(1, min(len(bucket), round(most * len(bucket) / total)))
        chosen = np.unique(np.linspace(0, len(bucket) - 1, num).astype(np.int64))
        for pixels in _pieces(bucket, chosen):
            values = bucket.codec.encode(pixels).double()
            count += values.numel()
            first += values.sum(dim=(0, 2, 3))
            second += values.square().sum().item()
    return Moments(tuple((first / (count / len(first))).tolist()), second / count)


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
