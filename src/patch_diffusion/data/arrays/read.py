"""Reading of images in one array: memory-mapped if possible, otherwise copied once, block by block."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patch_diffusion.config import Data, Layout
from patch_diffusion.data.arrays.stored import StoredArray
from patch_diffusion.data.classes import Labels
from patch_diffusion.data.images import Images
from patch_diffusion.data.keys import keys_of_rows
from patch_diffusion.data.reading import cache
from patch_diffusion.data.reading.attributes import attributes_of_rows
from patch_diffusion.data.reading.groups import groups_of_values
from patch_diffusion.data.reading.labels import labels_of_values
from patch_diffusion.data.reading.parallel import progress, results_in_order
from patch_diffusion.data.reading.pixels import MOST_IN_MEMORY, ArrayPlan, Plan, Read, ReadArray, images_of, read
from patch_diffusion.data.reading.sizes import Size, choose_sizes, resize_values, resolution_of, too_small
from patch_diffusion.data.reading.survey import Survey
from patch_diffusion.errors import InputError, option_error

_LOOKED_AT = 256
"""The number of images whose values are examined when a memory-mapped array of integers is opened."""

_MOST_EXACT = 2**24
"""The largest integer n for which float32 represents all integers from -n to n exactly."""

_FEW_CHANNELS = 4


def read_array(
    stored: StoredArray, options: Data, *, conditions: Mapping[str, Any] | None = None, show: bool = False
) -> Images:
    """Read the images of a stored array into an image set with uint8, uint16 or float32 pixels.

    ``conditions`` are values of attributes by their names, in place of those that are stored with the array.

    An array that is memory-mapped, or in memory, in the layout and dtype that training takes is used without a copy.
    Then the value range of integers is taken from a sample of images; floats are scanned once, for their range and for
    NaN, which is an error, and the result is kept in the cache for the next time.
    """
    if not all(stored.shape):
        what = "pixels" if stored.shape[0] else "images"
        raise InputError(f"{stored.source} holds no {what}: its shape is {_words(stored.shape)}")
    axis = channel_axis(stored.shape, options.layout, stored.source)
    dtype = pixel_dtype(stored.dtype, stored.source)
    labels = _labels(stored, options)
    groups = None if stored.groups is None else groups_of_values(stored.groups, stored.shape[0], stored.source)
    inner = stored.shape[1:]
    channels, height, width = (1, *inner) if axis == 0 else inner if axis == 1 else (inner[2], inner[0], inner[1])
    if options.mode != "auto" and channels != len(options.mode):
        raise option_error(
            "data.mode", f"{options.mode} is for image files, and {stored.source} has {channels} channels: leave it out"
        )
    target = choose_sizes({0: (height, width)}, lambda _: stored.source, resolution_of(options), options.fit)[0]
    if too_small((height, width), target):
        raise InputError(
            f"images of {height}x{width} in {stored.source} are too small to enlarge to {target[0]}x{target[1]}"
        )
    notes = _notes(stored, dtype, (height, width), target, options)
    attributes, more = attributes_of_rows(conditions or stored.conditions, stored.shape[0], stored.source)
    notes += more
    key = None if stored.identity is None else {"array": stored.identity, "axis": axis, "key": options.key}

    mapped, survey = stored.mapped, Survey(name=lambda index: f"image {index:,} of {stored.source}")
    as_it_is = mapped is not None and mapped.flags.c_contiguous and mapped.dtype == dtype and target == (height, width)
    if mapped is not None and as_it_is and not (options.cache == "memory" and isinstance(mapped, np.memmap)):
        found = _mapped(stored, mapped, axis, key, options, survey, show)
    else:
        keys = array("Q")

        def blocks() -> Iterator[NDArray[Any]]:
            for block in progress(stored.blocks(), None, "reading arrays", show=show):
                keys.extend(keys_of_rows(block).tolist())
                moved = block[:, None] if axis == 0 else np.moveaxis(block, axis, 1)
                pixels = _resized(to_pixels(moved, dtype, stored.source), target, options)
                survey.add(pixels)
                yield pixels

        if key is not None:
            key |= {"resolution": target, "fit": options.fit}
        plan = Plan(dtype, [ArrayPlan((channels, *target), stored.shape[0], blocks, keys=keys)], survey)
        found = read(lambda: plan, key, options, often=key is not None)
    return images_of(found, labels, options, notes, groups, attributes)


def channel_axis(shape: tuple[int, ...], layout: Layout, source: str) -> int:
    """Return the index of the channel axis in an array of images (n, ...): 1 or 3; 0 if it has no channel axis.

    For four dimensions, "auto" takes the first or last axis of an image as channels: the one whose length is at most 4,
    or else less than half of both other lengths. If it is neither or both, that is an `InputError`.
    """
    if len(shape) == 3 and (layout != "auto" or shape[2] > _FEW_CHANNELS):
        return 0
    if len(shape) == 3:
        raise InputError(
            f"{source} has the shape {_words(shape)}, which is one image, or images of a few columns: add a dimension, "
            "or give --data.layout channels_last"
        )
    if len(shape) != 4:
        raise InputError(
            f"{source} has the shape {_words(shape)}: images are n x c x h x w, n x h x w x c or n x h x w"
        )
    if layout != "auto":
        return 1 if layout == "channels_first" else 3
    _, first, middle, last = shape
    could_be_first, could_be_last = first <= _FEW_CHANNELS, last <= _FEW_CHANNELS
    if not could_be_first and not could_be_last:
        could_be_first, could_be_last = 2 * first < min(middle, last), 2 * last < min(first, middle)
    if could_be_first == could_be_last:
        raise InputError(
            f"{source} has the shape {_words(shape)}, which does not tell where the channels are: give --data.layout "
            "channels_first or channels_last",
            option="data.layout",
        )
    return 1 if could_be_first else 3


def pixel_dtype(dtype: np.dtype[Any], source: str) -> str:
    """Return the dtype to store pixels as: "uint8" for uint8 and bool, "uint16", else "float32" for real numbers."""
    if dtype.hasobject:
        raise InputError(f"{source} holds Python objects, which are not read: save numbers, of one shape")
    if dtype.kind == "b":
        return "uint8"
    if dtype.kind == "u" and dtype.itemsize <= 2:
        return f"uint{8 * dtype.itemsize}"
    if dtype.kind in "iuf":
        return "float32"
    raise InputError(f"{source} holds {dtype}: pixels are whole numbers, floats or bools")


def to_pixels(values: NDArray[Any], dtype: str, source: str) -> NDArray[Any]:
    """Convert values to the dtype that `pixel_dtype` chose, which must hold integers exactly; True becomes 255."""
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if dtype == "float32" and values.dtype.kind in "iu":
        largest = max(int(values.max()), -int(values.min()))
        if largest > _MOST_EXACT:
            raise InputError(
                f"{source} has whole numbers of {largest:,}; up to {_MOST_EXACT:,} can be kept: scale them"
            )
    with np.errstate(over="ignore"):  # values that overflow to infinity are reported later, with the image's name
        return values.astype(dtype, copy=False)


def _mapped(
    stored: StoredArray,
    mapped: NDArray[Any],
    axis: int,
    key: dict[str, Any] | None,
    options: Data,
    survey: Survey,
    show: bool,
) -> Read:
    def look_at_all() -> dict[str, Any]:
        for block in progress(stored.blocks(), None, "reading values", show=show):
            survey.add(block)
        return survey.facts()

    if mapped.dtype.kind != "f":
        for index in np.unique(np.linspace(0, len(mapped) - 1, min(len(mapped), _LOOKED_AT)).astype(np.int64)):
            survey.add(_one(stored, mapped, int(index)), int(index))
        found = survey.facts()
    elif key is None or options.cache == "memory":
        found = look_at_all()
    else:
        found = cache.remember({"survey of": key, "percentiles": True}, lambda: (look_at_all(), {}))[0]
    tensor = cache.as_tensor(mapped)
    tensor = tensor.unsqueeze(1) if axis == 0 else tensor.movedim(axis, 1)
    facts = {"dtype": mapped.dtype.name, "survey": found, "notes": []}
    file = mapped.filename if isinstance(mapped, np.memmap) else None
    many = key is not None and options.cache != "memory" and mapped.nbytes > MOST_IN_MEMORY
    keys = partial(_cached_keys, mapped, {"keys of": key}) if many else None
    return Read([ReadArray(tensor, keys=keys, file=None if file is None else Path(file))], facts)


def _cached_keys(mapped: NDArray[Any], key: dict[str, Any]) -> NDArray[np.uint64]:
    """Return the keys of the images in a large file; they are kept in the cache, if that can be written to."""
    return cache.remember(key, lambda: ({}, {"keys": keys_of_rows(mapped)}))[1]["keys"]


def _one(stored: StoredArray, array: NDArray[Any], index: int) -> NDArray[Any]:
    """Return one image (1, ...); a mapped file is read instead, since a page fault would load megabytes around it."""
    if stored.identity is None or not isinstance(array, np.memmap) or array.filename is None:
        return array[index : index + 1]
    size = math.prod(array.shape[1:])
    offset = array.offset + index * size * array.itemsize
    return np.fromfile(array.filename, array.dtype, size, offset=offset).reshape(1, *array.shape[1:])


def _resized(block: NDArray[Any], size: Size, options: Data) -> NDArray[Any]:
    if block.shape[2:] == size:
        return block
    return np.stack(
        list(results_in_order(lambda row: resize_values(block[row], size, options.fit), range(len(block)), ""))
    )


def _labels(stored: StoredArray, options: Data) -> Labels | None:
    if options.classes is False:
        return None
    if stored.labels is None:
        if options.classes:
            raise InputError(f"{stored.source} has no labels: name them with --data.labels", option="data.labels")
        return None
    labels, class_names = labels_of_values(stored.labels)
    if len(labels) != stored.shape[0]:
        raise InputError(f"{stored.source} has {stored.shape[0]:,} images, but {len(labels):,} labels")
    return labels, class_names


def _notes(stored: StoredArray, dtype: str, size: Size, target: Size, options: Data) -> list[str]:
    notes = []
    if stored.dtype.kind == "b":
        notes.append("bools are kept as 0 and 255")
    elif stored.dtype.newbyteorder("=") != np.dtype(dtype):
        notes.append(f"{stored.dtype.name} values are kept as {dtype}")
    if size != target:
        how = {"stretch": "stretched"}.get(options.fit, "cropped")
        how = f"{how} and " if size[0] * target[1] != target[0] * size[1] else ""
        notes.append(f"{stored.shape[0]:,} images of {size[0]}x{size[1]} {how}resized to {target[0]}x{target[1]}")
    return notes


def _words(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "none"
