"""Images of a map-style data set in Python: a list, or any object with a length and indexed items."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from patch_diffusion.config import Data
from patch_diffusion.data.arrays.read import channel_axis, pixel_dtype, to_pixels
from patch_diffusion.data.classes import Labels
from patch_diffusion.data.files.collection import Collection, Files
from patch_diffusion.data.files.decode import Header, ImageFile, quiet, read_header, reason
from patch_diffusion.data.reading.groups import groups_of_values
from patch_diffusion.data.reading.labels import labels_of_values
from patch_diffusion.data.reading.parallel import progress
from patch_diffusion.errors import InputError

_IMAGE_NAMES = ("image", "img", "images", "pixel_values")
_LABEL_NAMES = ("label", "labels", "class")

Opened = IO[bytes] | Image.Image | NDArray[Any]


def find_in_map_style(source: Any, options: Data, *, show: bool = False) -> Collection:
    """Collect all images of a map-style data set, whose items are images, (image, label), or mappings of them.

    An image is a Pillow image, a path, or an array or tensor (h, w), (c, h, w) or (h, w, c). Every item is loaded
    twice, for its header and for its pixels, and must be the same both times: random augmentation belongs to training.
    The options ``key``, ``labels`` and ``group`` name the image, label and group in mappings, ``layout`` is the layout
    of arrays. All images have a label, or none.
    """
    if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
        raise InputError(
            f"a data set needs a length and items by index, which {type(source).__name__} lacks: give a list, say"
        )
    if not len(source):
        raise InputError("the data set is empty")
    items = _Items(source, options)
    files = Files(len(source), lambda index: ImageFile(f"item {index:,}", partial(items.open, index)))
    values: list[Any] = []
    groups: list[Any] = []
    headers: dict[int, Header] = {}
    unusable: dict[int, str] = {}
    with quiet():
        for index, file in progress(enumerate(files), len(files), "looking at images", show=show):
            try:
                headers[index] = items.headers[index] = read_header(file)
            # The items come from the user's code, which can raise any exception.
            except Exception as error:
                unusable[index] = reason(error)
            values.append(items.label)
            groups.append("" if index in unusable else items.group)
            items.label = items.group = None
    labels = _labels(files, values, unusable, source, options)
    of_files = None if options.group is None else groups_of_values(groups, len(files), "the data set")
    return Collection("the data set", files, labels, headers=headers, unusable=unusable, groups=of_files)


def array_of(tensor: torch.Tensor) -> NDArray[Any]:
    """Convert a tensor to a NumPy array on the CPU; bfloat16 becomes float32, as NumPy has no bfloat16."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


class _Items:
    """The items of a map-style data set behind a lock, since the data set may not be thread-safe."""

    def __init__(self, source: Any, options: Data) -> None:
        self.source, self.options = source, options
        self.lock = Lock()
        self.label: Any = None  # the label and the group of the item loaded last
        self.group: Any = None
        self.headers: dict[int, Header] = {}

    def open(self, index: int) -> Opened:
        """Load the image of an item, and check that it has the same header as the first time."""
        with self.lock:
            image, self.label = self._parts(self.source[index])
            opened = _opened(image, self.options)
        before = self.headers.get(index)
        if before is None or not isinstance(opened, (Image.Image, np.ndarray)):
            return opened
        if read_header(ImageFile("", lambda: opened)) != before:
            raise InputError("is a different image each time it is loaded: leave random augmentation out of it")
        return opened

    def _parts(self, item: Any) -> tuple[Any, Any]:
        if isinstance(item, Mapping):
            key = self.options.key or next((name for name in _IMAGE_NAMES if name in item), None)
            if key not in item:
                raise InputError(f"has no image '{key or 'image'}', only {', '.join(map(str, item))}: see data.key")
            label = self.options.labels or next((name for name in _LABEL_NAMES if name in item), None)
            self.group = item.get(self.options.group)
            return item[key], item.get(label)
        if isinstance(item, (tuple, list)):
            if len(item) not in (1, 2):
                raise InputError(f"has {len(item)} elements, and is not an image or (image, label)")
            return item[0], item[1] if len(item) == 2 else None
        return item, None


def _opened(image: Any, options: Data) -> Opened:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, (str, Path)):
        return Path(image).open("rb")
    if isinstance(image, torch.Tensor):
        image = array_of(image)
    if not isinstance(image, np.ndarray):
        raise InputError(f"is a {type(image).__name__}, and not a Pillow image, an array or a tensor")
    if not image.size:
        raise InputError(f"has no pixels: its shape is {image.shape}")
    axis = channel_axis((1, *image.shape), options.layout, "an item")
    array = image[None] if axis == 0 else np.moveaxis(image, axis - 1, 0)
    return to_pixels(array, pixel_dtype(image.dtype, "an item"), "an item")


def _labels(
    files: Sequence[ImageFile], values: list[Any], unusable: Mapping[int, str], source: Any, options: Data
) -> Labels | None:
    if options.classes is False:
        return None
    usable = [index for index in range(len(files)) if index not in unusable]
    if not usable:
        return None
    missing = [index for index in usable if values[index] is None]
    if len(missing) == len(usable):
        if options.classes or options.labels:
            raise InputError("the data set has no labels: its items must be (image, label)")
        return None
    if missing:
        raise InputError(
            f"the data set has no label for {len(missing):,} of {len(files):,} images (first: {files[missing[0]].name})"
            ": add them, or set classes to False"
        )
    plain = [
        value.item() if isinstance(value, (torch.Tensor, np.generic)) and value.ndim == 0 else value for value in values
    ]
    # Labels of unusable images do not count, so any valid label stands in for them.
    labels, class_names = labels_of_values([plain[usable[0]] if i in unusable else plain[i] for i in range(len(files))])
    return labels, class_names or _class_names(source, labels, files)


def _class_names(source: Any, labels: NDArray[np.int64], files: Sequence[ImageFile]) -> tuple[str, ...]:
    """Return the class names in a data set's attribute ``classes``, as in torchvision; () if that holds no names."""
    names = getattr(source, "classes", None)
    if not isinstance(names, Iterable) or isinstance(names, (str, bytes)):
        return ()
    names = tuple(map(str, names))
    highest = int(labels.argmax())
    if labels[highest] >= len(names):
        raise InputError(
            f"the data set names {len(names):,} classes, and the label of {files[highest].name} is {labels[highest]}, "
            "where numbers count from 0: mend either, or set classes to False"
        )
    return names
