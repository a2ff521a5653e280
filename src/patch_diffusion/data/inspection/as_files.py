"""A view of any data source as a collection of image files, of all its images or a sample of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patch_diffusion.config import Data
from patch_diffusion.data.arrays.stored import is_array
from patch_diffusion.data.classes import occurring
from patch_diffusion.data.files.collection import Collection as ImageCollection, read_collection
from patch_diffusion.data.files.decode import ImageFile, read_header
from patch_diffusion.data.files.paired import pair
from patch_diffusion.data.images import Images, ImageSet, numbered_as
from patch_diffusion.data.latents.folder import is_latents
from patch_diffusion.data.named import DIGITS, prefix_of
from patch_diffusion.data.reading.sizes import resolution_of
from patch_diffusion.data.sources import find_images, find_inputs, open_data
from patch_diffusion.errors import InputError
from patch_diffusion.files import user_path

_SAMPLE_BYTES = 2**28
_SAMPLE_IMAGES = 1024


@contextmanager
def found_images(options: Data, *, show: bool = False) -> Iterator[tuple[ImageCollection, list[str]]]:
    """Yield any data source as a collection of files, open in the with block, and the problems with its labels."""
    problems: list[str] = []
    with ExitStack() as stack:

        def find(options: Data) -> ImageCollection:
            return stack.enter_context(find_images(options, show=show)) if has_files(options) else as_files(options)

        try:
            found = find(options)
        except InputError as error:
            # If the error was about the labels, the images can be inspected without them.
            problems.append(str(error))
            found = find(replace(options, classes=False, labels=None))
        yield found, problems


def some_images(options: Data, *, without: Collection[str] = (), show: bool = False) -> Images:
    """Load up to 1,024 images evenly over a data set, exactly as training would get them.

    Files that are named in ``without`` are known to be unusable. What training would refuse is the same `InputError`.
    """
    if not has_files(options):
        return open_data(options, show=show)
    with find_images(options, show=show) as found, find_inputs(options, show=show) as inputs:
        usable = [index for index, file in enumerate(found.files) if file.name not in without]
        if not usable:
            raise InputError(f"none of the {len(found.files):,} images can be read")
        height, width = resolution_of(options) or read_header(found.files[usable[0]]).size
        most = max(1, min(_SAMPLE_IMAGES, _SAMPLE_BYTES // (4 * height * width)))
        chosen = [usable[place] for place in evenly(len(usable), most)]
        part, kept = _part(found, chosen), replace(options, cache="memory")
        pairing = partial(pair, own=part, inputs=inputs, options=kept, show=show) if inputs else None
        images = read_collection(part, kept, pairing, show=show)
        if found.labels is not None:  # classes that have no image here have some in training
            labels, names = occurring(found.labels[0][usable], found.labels[1])
            images = numbered_as(images, names, len(names) or int(labels.max()) + 1) or images
        return replace(images, options=options)


def has_files(options: Data) -> bool:
    """True if a source consists of image files; false for an array, latents or the digits."""
    path = user_path(options.source)
    if prefix_of(options.source) is not None:
        return True
    return options.source != DIGITS and not is_latents(path) and not (is_array(path) and path.exists())


def as_files(options: Data) -> ImageCollection:
    """Wrap the images of an array or other source without files as a collection of files, at their original size."""
    images = open_data(replace(options, resolution=None, fit="crop"))
    files, numbers, groups = [], [], []
    for bucket in images.buckets:
        files += [
            ImageFile(f"image {len(files) + index}", partial(_pixels, bucket, index)) for index in range(len(bucket))
        ]
        numbers += [] if bucket.labels is None else [bucket.labels.numpy()]
        groups += [] if bucket.groups is None else map(str, bucket.groups.tolist())
    labels = (np.concatenate(numbers), images.class_names) if numbers else None
    return ImageCollection(options.source, files, labels, groups=groups or None)


def evenly(num: int, most: int) -> list[int]:
    """Return at most ``most`` indices, evenly spaced over ``num`` items."""
    return np.unique(np.linspace(0, num - 1, min(num, most)).round().astype(np.int64)).tolist() if num else []


def _pixels(images: ImageSet, index: int) -> NDArray[Any]:
    return images.pixels[index].numpy()


def _part(found: ImageCollection, chosen: Sequence[int]) -> ImageCollection:
    """Return a collection of the chosen images and their labels only."""
    labels = None if found.labels is None else (found.labels[0][list(chosen)], found.labels[1])
    headers = None if found.headers is None else dict(enumerate(found.headers[index] for index in chosen))
    groups = None if found.groups is None else [found.groups[index] for index in chosen]
    told = None if found.attributes is None else found.attributes.select(np.array(chosen))
    found = replace(found, groups=groups, headers=headers, unusable={}, identity=None, folders=(), attributes=told)
    return replace(found, files=[found.files[index] for index in chosen], labels=labels)
