"""Samples as picture files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor
from torch import Tensor

from patch_diffusion.errors import InputError

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_SMALLEST_GRID = 512  # pixels; grids of small images are enlarged by a whole number


def to_image(pixels: Tensor) -> Image.Image:
    """A Pillow image of uint8 pixels (c, h, w) with 1, 3 or 4 channels."""
    if len(pixels) not in _MODES:
        raise InputError(f"images of {len(pixels)} channels are no pictures; take sample.pixels")
    array = np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())
    return Image.fromarray(array[..., 0] if len(pixels) == 1 else array, _MODES[len(pixels)])


def picture_grid(pictures: Sequence[Tensor], columns: int | None = None) -> Image.Image:
    """Pictures (c, h, w) side by side, row by row, a grey pixel between them; near-square without ``columns``.

    Small pictures are enlarged by a whole number, so that the grid can be looked at.
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


def write_picture(picture: Image.Image, path: str | Path) -> None:
    """Write a picture; its folder is made, and a half-written file is never left under its name."""
    path = Path(path)
    if path.suffix.lower() not in (".png", ".webp", ".tif", ".tiff", ".bmp"):
        raise InputError(f"pictures are written as .png (or .webp, .tiff, .bmp), not as '{path.name}'")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        picture.save(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
