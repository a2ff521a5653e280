"""Collections of image files from any kind of source, and their decoding to pixels of one size or of a few buckets."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patch_diffusion.config import Data
from patch_diffusion.data.attributes import Attributes
from patch_diffusion.data.classes import Labels
from patch_diffusion.data.files.decode import Header, ImageFile, decode_with_key, quiet, read_headers, reason
from patch_diffusion.data.files.pixel_type import common_pixel_type
from patch_diffusion.data.images import Images
from patch_diffusion.data.reading.parallel import in_order
from patch_diffusion.data.reading.pixels import ArrayPlan, Plan, images_of, read
from patch_diffusion.data.reading.sizes import (
    Size,
    bucket_sizes,
    choose_sizes,
    describe_changes,
    resolution_of,
    too_small,
)
from patch_diffusion.data.reading.survey import Survey
from patch_diffusion.errors import InputError

MOST_UNUSABLE = 0.01
"""The largest share of the files that may be unusable; with more of them, training is refused."""

_MOST_NAMED = 20
_IMAGES_IN_A_BLOCK = 16


@dataclass(frozen=True)
class Files(Sequence[ImageFile]):
    """A lazy sequence of image files: each object is made on access, since a list of millions takes long to make."""

    num: int
    make: Callable[[int], ImageFile]

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: Any) -> Any:
        places = range(self.num)[index]
        return self.make(places) if isinstance(places, int) else [self.make(place) for place in places]


@dataclass
class Collection:
    """The image files of a data set, in order, with their labels, as found in a folder, an archive or a table.

    ``labels`` are the class numbers of all files and the names of the classes; ``notes`` are remarks for the user.
    ``identity`` is JSON data that changes when the files do; None if that cannot be known. ``headers`` and ``unusable``
    are results of `read_headers`, if there are any already. If ``slow``, decoded images are cached on disk even if they
    are few. ``folders`` are sub-folders that could be classes, if the files have no labels and it was not said whether
    they are. ``groups`` names the group of each file, if any is known; ``attributes`` are what else is known of it.
    """

    source: str
    files: Sequence[ImageFile]
    labels: Labels | None = None
    notes: list[str] = field(default_factory=list)
    identity: Any = None
    headers: dict[int, Header] | None = None
    unusable: dict[int, str] = field(default_factory=dict)
    slow: bool = False
    folders: tuple[str, ...] = ()
    groups: Sequence[str] | None = None
    attributes: Attributes | None = None


Pairing = Callable[[Images, Sequence[NDArray[np.int64]]], Images]
"""A function that adds paired inputs to images, given the indices of the files of each bucket."""


def read_collection(found: Collection, options: Data, pairing: Pairing | None = None, *, show: bool = False) -> Images:
    """Decode all images of a collection to an image set, upright, with equal channels, of one size or in size buckets.

    More than 1 % unusable files are an `InputError`, as are several pixel types, or sizes without a resolution.
    """
    key = None
    if found.identity is not None:
        asked = {name: getattr(options, name) for name in ("resolution", "mode", "fit", "key", "layout")}
        key = {"files": found.identity, **asked}
        if options.fit == "bucket" and (resolution := resolution_of(options)):
            key["buckets"] = bucket_sizes(resolution)
        if len(found.files) and found.files[0].name.lower().endswith((".tif", ".tiff")):
            key["tiff"] = "all kinds"  # earlier versions read some kinds otherwise
    with quiet():
        pixels = read(lambda: _plan(found, options, show), key, options, often=found.slow)
    notes = list(found.notes)
    if found.folders:
        notes.append(
            f"there are {len(found.folders)} sub-folders: with --data.classes True their names become class labels"
        )
    images = images_of(pixels, found.labels, options, notes, found.groups, found.attributes)
    if pairing is None:
        return images
    every = np.arange(len(found.files))
    with quiet():
        return pairing(images, [each.own(every) for each in pixels.arrays if len(each.pixels)])


def _plan(found: Collection, options: Data, show: bool) -> Plan:
    """Return the plan of which files are decoded to which size and pixel type, after a pass over their headers."""
    files, unusable, headers = found.files, dict(found.unusable), found.headers
    if headers is None:
        headers, unusable = read_headers(files, show=show)
    _refuse_many_unusable(files, unusable)
    sizes = {index: header.size for index, header in headers.items()}
    targets = choose_sizes(sizes, lambda index: files[index].name, resolution_of(options), options.fit)
    for index, target in list(targets.items()):
        if why := too_small(sizes[index], target):
            unusable[index] = why
            del targets[index]
    _refuse_many_unusable(files, unusable)
    pixel_type, notes = common_pixel_type(files, {index: headers[index] for index in targets}, options.mode, show=show)
    notes = describe_changes(sizes, targets, options.fit) + notes
    survey = Survey(name=lambda index: files[index].name)

    def array_of_size(size: Size) -> ArrayPlan:
        indices = [index for index, target in targets.items() if target == size]
        kept: list[int] = []
        keys = array("Q")

        def decode(index: int) -> tuple[NDArray[Any], int]:
            return decode_with_key(files[index], size, pixel_type.mode, options.fit)

        def blocks() -> Iterator[NDArray[Any]]:
            together: list[NDArray[Any]] = []  # images of consecutive indices

            def block() -> NDArray[Any]:
                stacked = np.stack(together)
                survey.add(stacked, kept[-1] + 1 - len(together))
                together.clear()
                return stacked

            for index, decoded in in_order(decode, indices, "reading images", show=show):
                if together and (index != kept[-1] + 1 or len(together) == _IMAGES_IN_A_BLOCK):
                    yield block()
                if isinstance(decoded, Exception):
                    unusable[index] = reason(decoded)
                    continue
                pixels, key = decoded
                kept.append(index)
                keys.append(key)
                together.append(pixels)
            if together:
                yield block()

        return ArrayPlan((pixel_type.channels, *size), len(indices), blocks, kept, keys)

    def finish() -> None:
        _refuse_many_unusable(files, unusable)
        notes.extend(f"skipped {files[index].name}: {unusable[index]}" for index in sorted(unusable)[:_MOST_NAMED])
        if len(unusable) > _MOST_NAMED:
            notes.append(f"skipped {len(unusable) - _MOST_NAMED:,} more")
        pictures = all(headers[index].channels is None for index in targets)
        if pictures and options.mode == "auto" and survey.is_grey():
            notes.append(
                "the images are grey, but stored as RGB: --data.mode L reads one channel instead of three and loses "
                "nothing"
            )

    arrays = [array_of_size(size) for size in sorted(set(targets.values()))]
    return Plan(pixel_type.dtype, arrays, survey, notes, finish)


def passed_over(num: int) -> str:
    """Return words for how many unusable files of a data set are passed over, at the most."""
    least = round(1 / MOST_UNUSABLE)
    return f"skips at most {MOST_UNUSABLE:.0%}" if num >= least else f"skips none in data of fewer than {least}"


def _refuse_many_unusable(files: Sequence[ImageFile], unusable: Mapping[int, str]) -> None:
    if len(unusable) <= MOST_UNUSABLE * len(files):
        return
    if len(unusable) == len(files):  # then prepare would leave nothing
        advice = "repair or convert them"
    else:
        advice = "repair, convert or remove them; patch-diffusion prepare leaves them out"
    first = [f"{files[index].name} ({unusable[index]})" for index in sorted(unusable)[:3]]
    more = ", ..." if len(unusable) > len(first) else ""
    raise InputError(
        f"{len(unusable):,} of {len(files):,} images cannot be used, and training {passed_over(len(files))}: "
        f"{', '.join(first)}{more}; {advice}"
    )
