"""Images with the names of their files, each read when it is its turn, in the shape that a model takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Annotated as Shaped, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patch_diffusion.config import Data
from patch_diffusion.data.files.collection import Collection
from patch_diffusion.data.files.decode import ImageFile, decode_file, quiet, read_headers, reason
from patch_diffusion.data.files.folders import image_endings
from patch_diffusion.data.images import Images
from patch_diffusion.data.inspection.as_files import found_images
from patch_diffusion.data.keys import keys_of_rows
from patch_diffusion.data.reading.sizes import choose_sizes, resolution_of, too_small
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError
from patch_diffusion.files import user_path
from patch_diffusion.patches.shapes import as_text
from patch_diffusion.sampling.pictures import MODES


@dataclass(frozen=True)
class Named:
    """Images to look at: their ``names`` and shapes, and a function that reads one by its place, (c, *shape).

    ``groups`` are keys of the groups that they belong to, if any are known. ``notes`` tell how they are read.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    read: Callable[[int], Shaped[Tensor, "c *shape"]]
    groups: NDArray[np.uint64] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def first(self, num: int) -> Named:
        """Return the first images."""
        groups = None if self.groups is None else self.groups[:num]
        return replace(self, names=self.names[:num], shapes=self.shapes[:num], groups=groups)

    def key(self, place: int, pixels: Tensor) -> int:
        """Return the key of an image's group, or of its content if it has none."""
        return int(keys_of_rows(pixels[None].numpy())[0] if self.groups is None else self.groups[place])


def of_images(images: Images) -> Named:
    """Return images that are open already; they are named by their places."""
    rows = [(bucket, row) for bucket in images.buckets for row in range(len(bucket))]
    grouped = [
        None if bucket.groups is None else bucket.groups[bucket.rows(np.arange(len(bucket))) % len(bucket.groups)]
        for bucket in images.buckets
    ]
    groups = None if any(each is None for each in grouped) else np.concatenate([g for g in grouped if g is not None])

    def read(place: int) -> Tensor:
        bucket, row = rows[place]
        return bucket.batch(np.array([row]))[0][0]

    names = tuple(f"image {place}" for place in range(len(rows)))
    return Named(names, tuple(bucket.resolution for bucket, _ in rows), read, groups)


@contextmanager
def of_source(
    source: str | os.PathLike[str], model: Denoiser, reading: dict[str, Any], *, own_size: bool, show: bool = False
) -> Iterator[Named]:
    """Find images by a path or a name, as `open_images` does, or one picture; they can be read in the with block.

    Args:
        source: a folder, a zip, an array or another data set, or a picture.
        model: the model that is to take them.
        reading: the arguments of `open_images` by which they are read.
        own_size: True to keep the size of each, which is at least that of the training images.
        show: whether to show a progress bar, on a terminal.

    Raises:
        InputError: there are no images, one cannot be read, or one is none that the model takes.
    """
    known = {field.name for field in fields(Data)}
    options = Data(source=os.fspath(source), **{name: value for name, value in reading.items() if name in known})
    with _found(options, show) as found:
        yield _named(found, options, model, own_size, show)


@contextmanager
def _found(options: Data, show: bool) -> Iterator[Collection]:
    path = user_path(options.source)
    if path.is_file() and path.suffix.lower() in image_endings():
        yield Collection(options.source, [ImageFile(path.name, partial(open, path, "rb"))])
        return
    with found_images(replace(options, classes=False), show=show) as (found, _):
        yield found


def _named(found: Collection, options: Data, model: Denoiser, own_size: bool, show: bool) -> Named:
    files, dtype, channels = found.files, model.codec.dtype, model.image_channels
    mode = MODES.get(channels or 0, "RGB") if dtype == "uint8" else options.mode
    headers, unusable = read_headers(files, show=show)
    for place in sorted(unusable):
        raise InputError(f"{files[place].name} cannot be read ({unusable[place]}): mend it or take it away")
    if not headers:
        raise InputError(f"there are no images in {found.source}")
    for place, header in sorted(headers.items()):
        header = header.read_as(mode)
        if header.dtype != dtype:
            raise InputError(
                f"{files[place].name} has pixels of {header.dtype}, but this run's are {dtype}: convert it"
            )
        if header.channels not in (None, channels):
            raise InputError(f"{files[place].name} has {header.channels} channels, but this run's images {channels}")
    sizes = {place: header.size for place, header in headers.items()}
    targets = (
        sizes if own_size else choose_sizes(sizes, lambda place: files[place].name, resolution_of(options), options.fit)
    )
    whole = model.resolution or ()
    for place, target in sorted(targets.items()):
        if own_size and any(side < least for side, least in zip(target, whole, strict=True)):
            raise InputError(
                f"{files[place].name} is {as_text(target)}, smaller than a tile of {as_text(whole)}: leave tiles out, "
                "so that images are resized as in training"
            )
        if why := too_small(sizes[place], target):
            raise InputError(f"{files[place].name}: {why}")

    def read(place: int) -> Tensor:
        with quiet():
            try:
                return torch.from_numpy(np.array(decode_file(files[place], targets[place], mode, options.fit)))
            except Exception as error:  # Pillow raises many kinds of errors for damaged files
                raise InputError(f"{files[place].name} cannot be read ({reason(error)})") from None

    resized = sum(sizes[place] != targets[place] for place in targets)
    notes = [f"{resized:,} of {len(targets):,} images in {found.source} are brought to the size of training"]
    names = tuple(files[place].name for place in range(len(files)))
    shapes = tuple(targets[place] for place in range(len(files)))
    return Named(names, shapes, read, _group_keys(found), tuple(notes if resized else ()))


def _group_keys(found: Collection) -> NDArray[np.uint64] | None:
    from patch_diffusion.data.keys import keys_of_groups

    return None if found.groups is None else keys_of_groups(found.groups)
