"""Reading of images: blocks of decoded pixels go into memory, or into the disk cache, from where they are mapped."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patch_diffusion.config import Data
from patch_diffusion.data.attributes import Attributes
from patch_diffusion.data.classes import Labels, occurring
from patch_diffusion.data.images import ImageBuckets, Images, ImageSet, Keys
from patch_diffusion.data.keys import keys_of_groups
from patch_diffusion.data.reading import cache
from patch_diffusion.data.reading.groups import notes_of_groups
from patch_diffusion.data.reading.labels import notes_of_labels
from patch_diffusion.data.reading.survey import Survey, codec_of, notes_of
from patch_diffusion.errors import InputError, shown

MOST_IN_MEMORY = 128 * 2**20
"""The most bytes of decoded images that the cache option "auto" keeps in memory."""


@dataclass
class ArrayPlan:
    """A plan to read images of one size into one array.

    ``blocks`` yields arrays (k, *shape), ``most`` images in all at the most. ``kept`` collects the indices of images
    that could be read, and is complete after the last block; it is None if no image can be missing. ``keys`` collects
    the keys of these images, if they do not follow from the pixels, see `ImageSet`.
    """

    shape: tuple[int, ...]
    most: int
    blocks: Callable[[], Iterator[NDArray[Any]]]
    kept: list[int] | None = None
    keys: array[int] | None = None


@dataclass
class Plan:
    """A plan to read all images of a data set, with one array for each image size.

    ``survey`` and ``notes`` are complete when all blocks of all arrays have been read and ``finish`` was called, which
    may raise an `InputError`.
    """

    dtype: str
    arrays: list[ArrayPlan]
    survey: Survey = field(default_factory=Survey)
    notes: list[str] = field(default_factory=list)
    finish: Callable[[], None] = lambda: None

    @property
    def num_bytes(self) -> int:
        """The size of all pixels in bytes, if every image can be read."""
        return sum(each.most * math.prod(each.shape) for each in self.arrays) * np.dtype(self.dtype).itemsize

    def facts(self) -> dict[str, Any]:
        """Return the dtype, the survey of the values and the notes as a dict that JSON can store."""
        return {"dtype": self.dtype, "survey": self.survey.facts(), "notes": self.notes}


@dataclass(frozen=True)
class ReadArray:
    """Images of one size that have been read, and their indices among all images (None: all)."""

    pixels: Tensor
    kept: NDArray[np.int64] | None = None
    keys: Keys | Callable[[], Keys] | None = None
    """The keys of the images, if they do not follow from the pixels."""
    file: Path | None = None
    """The file that the pixels are mapped from; None if they are in memory."""

    def own(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the values of these images, given those of all images."""
        return values if self.kept is None else values[self.kept]


@dataclass(frozen=True)
class Read:
    """Images that have been read, an array for each image size, and facts."""

    arrays: list[ReadArray]
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def survey(self) -> Survey:
        """The range of the pixel values and the constant images, as found while reading."""
        return Survey(**self.facts["survey"])


def read(make_plan: Callable[[], Plan], key: Mapping[str, Any] | None, options: Data, *, often: bool = False) -> Read:
    """Read images into memory or into the disk cache, or find them in the cache.

    Args:
        make_plan: a function that makes the plan for reading; it is not called if the cache has the images.
        key: everything that determines the result, as JSON data; None if it is unknown, as for objects in Python.
        options: the data options; ``cache`` chooses between memory and disk.
        often: if true, "auto" means disk even for few images. It does, too, if several processes train: one of them
            decodes, and all map the file it wrote.

    Raises:
        InputError: there is no room on the disk. Errors of reading are passed on, too.
    """
    key = None if key is None else {**key, "keys": True}  # earlier versions kept none beside the pixels
    if key is not None and options.cache != "memory" and (entry := cache.find(key)):
        return _from_cache(entry)
    plan = make_plan()
    shared = key is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1
    many = often or shared or plan.num_bytes > MOST_IN_MEMORY
    on_disk = options.cache == "disk" or (options.cache == "auto" and many)
    if on_disk and not _can_write():
        closed = f"{cache.cache_folder()} cannot be written to ({cache.FOLDER_VARIABLE} names another)"
        if options.cache == "disk":
            raise InputError(closed)
        return replace(_into_memory(plan), notes=(f"decoded images are kept in memory: {closed}",))
    if not on_disk:
        return _into_memory(plan)
    if key is not None:
        entry = cache.make(key, lambda folder: _write(plan, folder), num_bytes=plan.num_bytes)
        return _from_cache(entry)
    facts, arrays = cache.make_nameless(lambda folder: _write(plan, folder), num_bytes=plan.num_bytes)
    return _of_tensors(facts, arrays.__getitem__, cache.cache_folder())


def images_of(
    found: Read,
    labels: Labels | None,
    options: Data,
    notes: list[str],
    groups: Sequence[str] | None = None,
    attributes: Attributes | None = None,
) -> Images:
    """Make an image set to train on from decoded pixels: an `ImageSet`, or `ImageBuckets` for several sizes.

    ``labels``, the names of ``groups`` and ``attributes`` are those of all images, also of those that could not be
    read; ``notes`` are remarks for the user in addition to those of the reading.
    """
    dtype, survey = found.facts["dtype"], found.survey
    codec = codec_of(dtype, options.range, survey)
    numbers, class_names = labels or (None, ())
    all_notes = [*found.facts["notes"], *notes, *notes_of(codec, options.range, survey), *found.notes]
    own_labels: list[Tensor | None] = [None] * len(found.arrays)
    if numbers is not None:
        numbers, class_names = occurring(np.concatenate([each.own(numbers) for each in found.arrays]), class_names)
        own_labels = list(torch.from_numpy(numbers).split([len(each.pixels) for each in found.arrays]))
        all_notes += notes_of_labels(numbers, class_names)
    num_classes = 0 if numbers is None else int(numbers.max(initial=-1)) + 1
    grouped = None if groups is None else keys_of_groups(groups)
    if grouped is not None:
        known = [each.keys for each in found.arrays if isinstance(each.keys, np.ndarray)]
        of_groups = np.concatenate([each.own(grouped) for each in found.arrays])
        all_notes += notes_of_groups(of_groups, np.concatenate(known) if known else None)
    all_notes = list(map(shown, all_notes))
    shared = {"class_names": class_names, "options": options, "codec": codec, "num_classes": num_classes}
    sets = []
    for each, own in zip(found.arrays, own_labels, strict=True):
        if len(each.pixels):
            of_size = None if grouped is None else each.own(grouped)
            told = None if attributes is None else attributes.select(each.own(np.arange(len(attributes))))
            of_each = {"file": each.file, "keys": each.keys, "groups": of_size, "attributes": told}
            sets.append(ImageSet(each.pixels, own, **of_each, **shared))
    if len(sets) == 1:
        return replace(sets[0], notes=tuple(all_notes))
    return ImageBuckets(tuple(sets), options, tuple(all_notes))


def _can_write() -> bool:
    """True if the cache folder can be written to; false, for example, on a machine without a home folder."""
    try:
        cache.cache_folder().mkdir(parents=True, exist_ok=True)
        probe = cache.cache_folder() / ".probe"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _into_memory(plan: Plan) -> Read:
    arrays = []
    for each in plan.arrays:
        values = np.empty((each.most, *each.shape), plan.dtype)
        count = 0
        for block in each.blocks():
            values[count : count + len(block)] = block
            count += len(block)
        kept = None if each.kept is None else np.array(each.kept, np.int64)
        keys = None if each.keys is None else np.array(each.keys, np.uint64)
        arrays.append(ReadArray(torch.from_numpy(values[:count]), kept, keys))
    plan.finish()
    return Read(arrays, plan.facts())


def _write(plan: Plan, folder: Path) -> dict[str, Any]:
    for number, each in enumerate(plan.arrays):
        cache.write_blocks(folder / f"pixels-{number}.npy", each.blocks(), each.shape, plan.dtype)
        if each.kept is not None:
            np.save(folder / f"kept-{number}.npy", np.array(each.kept, np.int64))
        if each.keys is not None:
            np.save(folder / f"keys-{number}.npy", np.array(each.keys, np.uint64))
    plan.finish()
    has = {name: [getattr(each, name) is not None for each in plan.arrays] for name in ("kept", "keys")}
    return {**plan.facts(), **has}


def _from_cache(entry: cache.Entry) -> Read:
    found = _of_tensors(entry.facts, entry.tensor, entry.folder)
    num_bytes = sum(each.pixels.nbytes for each in found.arrays)
    note = f"decoded images are kept in {entry.folder} ({num_bytes / 1e6:,.1f} MB); you can delete that folder"
    return replace(found, notes=(note,))


def _of_tensors(facts: dict[str, Any], tensor: Callable[[str], Tensor], folder: Path) -> Read:
    arrays = []
    for number in range(len(facts["kept"])):
        kept, keys = (
            tensor(f"{name}-{number}.npy").numpy() if facts[name][number] else None for name in ("kept", "keys")
        )
        arrays.append(ReadArray(tensor(name := f"pixels-{number}.npy"), kept, keys, folder / name))
    return Read(arrays, facts)
