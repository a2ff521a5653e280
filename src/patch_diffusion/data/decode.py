"""Image files to one array of equal pixels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track

from patch_diffusion.errors import InputError

MOST_UNUSABLE = 0.01
"""Share of the files that may be broken before training is refused."""

MOST_ENLARGED = 4
"""An image is not enlarged by more than this factor: there is nothing to learn from it."""

_GREY = {"1", "L", "LA", "La"}
_DEEP = ("I", "F")  # modes of more than 8 bits a channel begin so
_EXIF_ORIENTATION = 0x0112

T = TypeVar("T")


@dataclass(frozen=True)
class ImageFile:
    """An image that can be opened: its name within the data set, and how."""

    name: str
    open: Callable[[], IO[bytes]]


@dataclass
class Decoded:
    """``pixels`` (n, c, h, w) uint8 of the files ``kept`` (their indices), and what the user should know."""

    pixels: NDArray[np.uint8]
    kept: NDArray[np.int64]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Header:
    size: tuple[int, int]  # height, width, upright
    grey: bool
    transparent: bool


def decode_files(
    files: Sequence[ImageFile], resolution: tuple[int, int] | None, mode: str = "auto", *, show: bool = False
) -> Decoded:
    """Decode all files, upright, to the same size and channels.

    Args:
        files: what to read, in order.
        resolution: height and width to crop (centred, to the aspect) and resize to; None where all are the same.
        mode: "L", "RGB", "RGBA", or "auto": the least of them that keeps what all files have.
        show: a progress bar, on a terminal.

    Raises:
        InputError: files of several sizes and no resolution, or more than 1 % of the files unusable, by name.
    """
    unusable: dict[int, str] = {}
    notes: list[str] = []
    console = Console(stderr=True)

    def run(what: str, task: Callable[[int], T], indices: Sequence[int]) -> dict[int, T]:
        """The task's results for all usable files; the others are put down as unusable."""

        def guarded(index: int) -> T | None:
            try:
                return task(index)
            # Pillow's readers raise many kinds of errors on broken files.
            except Exception as error:
                unusable[index] = _reason(error)
                return None

        hidden = not (show and console.is_terminal)
        done = track(pool.map(guarded, indices), what, len(indices), console=console, transient=True, disable=hidden)
        results = dict(zip(indices, done, strict=True))
        _refuse_many_unusable(files, unusable)
        return {index: cast("T", result) for index, result in results.items() if index not in unusable}

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        headers = run("looking at images", lambda index: _read_header(files[index], resolution), range(len(files)))
        if resolution is None:
            resolution = _common_size(files, headers)
        else:
            notes += _changes(list(headers.values()), resolution)
        num_transparent = sum(header.transparent for header in headers.values())
        chosen = mode == "auto"
        if chosen:
            all_grey = all(header.grey for header in headers.values())
            mode = "RGBA" if num_transparent == len(headers) else "L" if all_grey else "RGB"
        if num_transparent and mode != "RGBA":
            notes.append(
                f"{num_transparent:,} transparent images laid over white (--data.mode RGBA keeps transparency)"
            )

        height, width = resolution
        channels = len(Image.new(mode, (1, 1)).getbands())
        pixels = np.empty((len(files), channels, height, width), np.uint8)

        def decode(index: int) -> None:
            with files[index].open() as stream, Image.open(stream) as image:
                pixels[index] = _to_array(image, (height, width), mode)

        kept = np.array(list(run("reading images", decode, list(headers))), np.int64)

    if len(kept) < len(files):
        pixels = pixels[kept]
    if chosen and mode == "RGBA" and (pixels[:, 3] == 255).all():
        pixels = pixels[:, :3]
        notes.append("an alpha channel that is opaque in every image was left out")
    notes += [f"skipped {files[index].name}: {reason}" for index, reason in sorted(unusable.items())]
    return Decoded(pixels, kept, notes)


def _read_header(file: ImageFile, resolution: tuple[int, int] | None) -> _Header:
    with file.open() as stream, Image.open(stream) as image:
        if image.mode.startswith(_DEEP):
            raise InputError("more than 8 bits a channel; convert it to 8 bits")
        width, height = image.size
        if image.getexif().get(_EXIF_ORIENTATION, 1) >= 5:
            width, height = height, width
        if resolution and (MOST_ENLARGED * height < resolution[0] or MOST_ENLARGED * width < resolution[1]):
            raise InputError(f"{height}x{width} is too small to enlarge to {resolution[0]}x{resolution[1]}")
        return _Header((height, width), image.mode in _GREY, image.has_transparency_data)


def _changes(headers: Sequence[_Header], resolution: tuple[int, int]) -> list[str]:
    """What bringing images to a resolution does to them."""
    height, width = resolution
    resized = [header.size for header in headers if header.size != resolution]
    cropped = sum(h * width != w * height for h, w in resized)
    if not resized:
        return []
    how = f", {cropped:,} of them cropped to its aspect," if cropped else ""
    return [f"{len(resized):,} of {len(headers):,} images{how} resized to {height}x{width}"]


def _common_size(files: Sequence[ImageFile], headers: dict[int, _Header]) -> tuple[int, int]:
    counts = Counter(header.size for header in headers.values())
    (height, width), _ = counts.most_common(1)[0]
    others = [index for index, header in headers.items() if header.size != (height, width)]
    if others:
        other = headers[others[0]].size
        raise InputError(
            f"{len(others):,} of {len(headers):,} images are not {height}x{width} like the others (first: "
            f"{files[others[0]].name}, {other[0]}x{other[1]}): give --resolution, for example "
            f"--resolution {min(height, width)}, to crop and resize all"
        )
    return height, width


def _to_array(image: Image.Image, resolution: tuple[int, int], mode: str) -> NDArray[np.uint8]:
    """(c, h, w), upright."""
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data and mode != "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    elif image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image = image.convert(mode)
    height, width = resolution
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _refuse_many_unusable(files: Sequence[ImageFile], unusable: dict[int, str]) -> None:
    if len(unusable) <= MOST_UNUSABLE * len(files):
        return
    first = [f"{files[index].name} ({unusable[index]})" for index in sorted(unusable)[:3]]
    more = ", ..." if len(unusable) > len(first) else ""
    raise InputError(
        f"{len(unusable):,} of {len(files):,} images cannot be used, more than the {MOST_UNUSABLE:.0%} that training "
        f"passes over: {', '.join(first)}{more}; repair or remove them"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or a broken one"
    return " ".join(str(error).split()) or type(error).__name__
