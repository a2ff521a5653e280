"""Reading of paired inputs: for each image of a data set the file of the same name in another one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from patch_diffusion.config import Data
from patch_diffusion.data.files.collection import Collection
from patch_diffusion.data.files.decode import Header, decode_labels, decode_with_key, is_palette, read_headers
from patch_diffusion.data.files.pixel_type import PixelType, common_pixel_type
from patch_diffusion.data.images import Images, ImageSet
from patch_diffusion.data.paired import Paired, PairedInput
from patch_diffusion.data.reading.names import by_names
from patch_diffusion.data.reading.parallel import in_order
from patch_diffusion.data.reading.pixels import ArrayPlan, Plan, Read, read
from patch_diffusion.data.reading.sizes import Size
from patch_diffusion.data.reading.survey import Survey, codec_of
from patch_diffusion.errors import InputError, counted, option_error

OPTION = "data.paired"
MOST_CATEGORIES = 256

_ASPECT = 0.02  # the largest relative difference of the aspect ratios of an image and its input


def pair(
    images: Images,
    rows: Sequence[NDArray[np.int64]],
    *,
    own: Collection,
    inputs: Sequence[Collection],
    options: Data,
    show: bool,
) -> Images:
    """Return images with paired inputs from collections of other files.

    Args:
        images: the images.
        rows: the indices in ``own`` of the images of each bucket.
        own: the files of the images.
        inputs: the files of each input.
        options: the options of the data.
        show: True to show progress.

    Raises:
        InputError: an image has no input of its name, or one of another shape, or an input cannot be read.
    """
    buckets = list(images.buckets)
    notes: list[str] = []
    names = [file.name for file in own.files]
    for number, found in enumerate(inputs):
        places, more = places_of(names, found, alone=len(inputs) == 1)
        notes += more
        pixels, about = _read(
            own, found, places, rows, [bucket.resolution for bucket in buckets], options, number, show
        )
        for place, (bucket, array, chosen) in enumerate(zip(buckets, pixels.arrays, rows, strict=True)):
            there = torch.from_numpy(places[chosen] >= 0)
            made = Paired(about, array.pixels, None if bool(there.all()) else there, array.file)
            buckets[place] = replace(bucket, paired=(*bucket.paired, made))
    if isinstance(images, ImageSet):
        return replace(buckets[0], notes=(*images.notes, *notes))
    return replace(images, buckets=tuple(buckets), notes=(*images.notes, *notes))


def places_of(names: Sequence[str], found: Collection, *, alone: bool) -> tuple[NDArray[np.int64], list[str]]:
    """Return the index of each image's input among the files of a collection, -1 if it has none; and notes."""
    theirs = [file.name for file in found.files]
    known = {name: place for place, name in enumerate(theirs)}
    own, others, notes = by_names(known, names, found.source)
    if len(own) < len(names):  # the endings may differ
        known = {_stem(name): place for place, name in enumerate(theirs)}
        by_stem, others, more = by_names(known, [_stem(name) for name in names], found.source)
        own = {name: own.get(name, by_stem.get(_stem(name), -1)) for name in names}
        notes += more
    places = np.array([own.get(name, -1) for name in names], np.int64)
    missing = [name for name, place in zip(names, places.tolist(), strict=True) if place < 0]
    if len(missing) == len(names) or (missing and alone):
        raise option_error(
            OPTION,
            f"{found.source} has no file for {len(missing):,} of {len(names):,} images (first: {missing[0]}): inputs "
            "have the names of their images",
        )
    if missing:
        notes.append(
            f"{found.source} has no file for {counted(len(missing), 'image')} (first: {missing[0]}): not given"
        )
    if others:
        notes.append(f"{found.source} has {counted(len(others), 'file')} without an image (first: {others[0]})")
    return places, notes


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix("")) if "." in name else name


def _read(
    own: Collection,
    found: Collection,
    places: NDArray[np.int64],
    rows: Sequence[NDArray[np.int64]],
    sizes: Sequence[Size],
    options: Data,
    number: int,
    show: bool,
) -> tuple[Read, PairedInput]:
    """Read an input of all images of each bucket, resized to its size; and describe it."""
    used = sorted({int(place) for place in places if place >= 0})
    headers, unusable = read_headers([found.files[place] for place in used], show=show)
    if unusable:
        first = min(unusable)
        raise option_error(
            OPTION, f"{found.files[used[first]].name} in {found.source} cannot be read: {unusable[first]}"
        )
    by_place = {place: headers[index] for index, place in enumerate(used)}
    _refuse_other_shapes(own, found, places, by_place, show)
    maps = options.paired_kind == "labels" or (
        options.paired_kind == "auto" and all(is_palette(found.files[place]) for place in used[:8])
    )
    type_ = _type_of_maps() if maps else common_pixel_type(found.files, by_place, "auto", show=show)[0]
    survey = Survey(name=lambda index: f"{found.files[index].name} in {found.source}")
    levels: set[int] = set()

    def decode(place: int, size: Size) -> NDArray[Any]:
        if place < 0:
            return np.zeros((type_.channels, *size), type_.dtype)
        file = found.files[place]
        return (
            decode_labels(file, size, options.fit) if maps else decode_with_key(file, size, type_.mode, options.fit)[0]
        )

    def blocks(chosen: NDArray[np.int64], size: Size) -> Iterator[NDArray[Any]]:
        indices = places[chosen].tolist()
        for place, decoded in in_order(
            lambda i: decode(indices[i], size), range(len(indices)), "reading inputs", show=show
        ):
            if isinstance(decoded, Exception):
                raise InputError(f"{found.files[indices[place]].name} in {found.source} cannot be read: {decoded}")
            if indices[place] >= 0:
                survey.add(decoded[None], indices[place])
                levels.update(np.unique(decoded).tolist() if maps else ())
            yield decoded[None]

    arrays = [
        ArrayPlan((type_.channels, *size), len(chosen), partial(blocks, chosen, size))
        for chosen, size in zip(rows, sizes, strict=True)
    ]
    plan = Plan(type_.dtype, arrays, survey)
    pixels = read(lambda: plan, None, replace(options, cache="auto"))
    name = PurePosixPath(found.source).stem or f"input {number + 1}"
    if maps:
        if not 2 <= len(levels) <= MOST_CATEGORIES:
            raise option_error(
                OPTION,
                f"{found.source} has {len(levels):,} different labels, and label maps have 2 to {MOST_CATEGORIES}: "
                "give data.paired_kind image if these are pictures",
            )
        codec = codec_of(type_.dtype, None, survey).as_dict()
        return pixels, PairedInput(name, 1, codec, tuple(sorted(map(int, levels))))
    return pixels, PairedInput(name, type_.channels, codec_of(type_.dtype, None, survey).as_dict())


def _type_of_maps() -> PixelType:
    return PixelType("uint16", 1)


def _refuse_other_shapes(
    own: Collection, found: Collection, places: NDArray[np.int64], headers: dict[int, Header], show: bool
) -> None:
    """Raise InputError if an input has another aspect ratio than its image, so that their pixels do not correspond."""
    images, _ = read_headers(own.files, show=show)
    for index, header in images.items():
        if (place := int(places[index])) < 0:
            continue
        one, other = (size[0] / size[1] for size in (header.size, headers[place].size))
        if abs(one / other - 1) > _ASPECT:
            (height, width), size = header.size, headers[place].size
            raise option_error(
                OPTION,
                f"{found.files[place].name} in {found.source} is {size[0]}x{size[1]}, and its image {height}x{width}: "
                "both need the same proportions",
            )
