"""Picture files, grids and Pillow images of samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated as Shaped, Annotated as UInt8, Any

import numpy as np
import torch
from PIL import Image, ImageColor
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from patch_diffusion.data.files.decode import quiet, reason
from patch_diffusion.errors import InputError
from patch_diffusion.files import check_writable, reading, replacing, to_json

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's names of pictures by their number of channels."""

METADATA = "patch_diffusion"
"""The keyword of the text in a PNG that says, as JSON, how it was made."""

_SMALLEST_GRID = 512  # pixels; grids of small images are enlarged by a whole number


def to_image(pixels: UInt8[Tensor, "c h w"]) -> Image.Image:
    """Convert pixels with 1, 3 or 4 channels to a Pillow image."""
    if len(pixels) not in MODES:
        raise InputError(f"images of {len(pixels)} channels are no pictures; take sample.pixels")
    array = np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())
    return Image.fromarray(array[..., 0] if len(pixels) == 1 else array, MODES[len(pixels)])


def to_uint8(pixels: Shaped[Tensor, "*shape"], low: float, high: float) -> UInt8[Tensor, "*shape"]:
    """Convert pixels of any dtype to uint8: ``low`` becomes 0, ``high`` becomes 255, and values beyond are clamped."""
    if pixels.dtype == torch.uint8 and (low, high) == (0, 255):
        return pixels
    return ((pixels.float() - low) * (255 / (high - low))).round().clamp(0, 255).to(torch.uint8)


def visible(pixels: Shaped[Tensor, "c h w"], low: float, high: float) -> UInt8[Tensor, "channels h width"]:
    """Convert pixels of any dtype for display, with ``low`` black and ``high`` white.

    One, three and four channels stay as they are; other numbers of channels are shown side by side, in grey.
    """
    pixels = to_uint8(pixels, low, high)
    return pixels if len(pixels) in MODES else pixels.transpose(0, 1).flatten(1)[None]


def write_pixels(pixels: Shaped[Tensor, "c h w"], path: Path, told: Mapping[str, Any] | None = None) -> Path:
    """Write pixels without loss, as a PNG if it can hold them, else as a NumPy array.

    Args:
        pixels: pixels of any dtype.
        path: the path without a file extension.
        told: the metadata of a PNG; None: none.

    Returns:
        The path with its extension.
    """
    if pixels.dtype == torch.uint8 and len(pixels) in MODES:
        return write_picture(to_image(pixels), path.with_suffix(".png"), told)
    array = np.ascontiguousarray(pixels.cpu().numpy())
    if pixels.dtype == torch.uint16 and len(pixels) == 1:
        return write_picture(Image.fromarray(array[0]), path.with_suffix(".png"), told)
    path = path.with_suffix(".npy")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, partial.open("wb") as file:
        np.save(file, array)
    return path


def picture_grid(pictures: Sequence[Tensor], columns: int | None = None) -> Image.Image:
    """Return a grid of pictures (c, h, w), row by row, with a grey pixel between them.

    Small pictures are enlarged by a whole number, so that one can see them.

    Args:
        pictures: uint8 pixels of 1, 3 or 4 channels, all of one shape.
        columns: pictures in a row; None: as many as make the grid nearly square.

    Raises:
        InputError: there are no pictures, or they have another number of channels.

    >>> picture_grid([torch.zeros(3, 255, 255, dtype=torch.uint8)] * 4).size
    (1022, 1022)
    """
    if not pictures:
        raise InputError("there are no pictures for a grid")
    columns = columns or int(np.ceil(len(pictures) ** 0.5))
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    cells = [to_image(picture) for picture in pictures]
    width, height = cells[0].size
    size = (columns * (width + 1) - 1, rows * (height + 1) - 1)
    grid = Image.new(cells[0].mode, size, ImageColor.getcolor("grey", cells[0].mode))
    for index, cell in enumerate(cells):
        grid.paste(cell, (index % columns * (width + 1), index // columns * (height + 1)))
    scale = max(1, -(-_SMALLEST_GRID // max(grid.size)))
    return grid.resize((grid.width * scale, grid.height * scale), Image.Resampling.NEAREST)


def check_picture(path: str | Path) -> None:
    """Raise InputError if no picture can be written at a path; to be called before the work."""
    path = Path(path)
    _check_name(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a picture")
    check_writable(path)


def _check_name(path: Path) -> None:
    if path.suffix.lower() not in (".png", ".webp", ".tif", ".tiff", ".bmp"):
        raise InputError(f"pictures are written as .png (or .webp, .tiff, .bmp), not as '{path.name}'")


def write_picture(picture: Image.Image, path: str | Path, told: Mapping[str, Any] | None = None) -> Path:
    """Write a picture and return its path; its folder is created, and a half-written file never has its name.

    A PNG carries ``told`` as JSON, in a text chunk with the keyword `METADATA`.
    """
    path = Path(path)
    _check_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = PngInfo()
    if told is not None:
        metadata.add_text(METADATA, to_json(told, lines=False))
    with replacing(path) as partial:
        picture.save(partial, Image.registered_extensions()[path.suffix.lower()], pnginfo=metadata)
    return path


def metadata_of(path: str | Path) -> dict[str, Any]:
    """Return what a PNG says of how it was made: seed, class, model and settings, see `write_samples`.

    Raises:
        InputError: there is no such file, or it was not made by this package.
    """
    path = Path(path)
    with reading(path):
        try:
            with quiet(), Image.open(path, formats=["PNG"]) as picture:
                told = picture.info.get(METADATA)
        except Exception as error:  # Pillow raises many kinds of errors for damaged files
            raise ValueError(reason(error)) from None
        if isinstance(told, str) and isinstance(found := json.loads(told), dict):
            to_json(found)  # raises a ValueError for what is no JSON to others, such as NaN
            return found
    raise InputError(f"{path} does not say how it was made: it is no sample of this package, or was saved again")
