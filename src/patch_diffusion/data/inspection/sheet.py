"""A contact sheet: one image of thumbnails of the data, in sections with headings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from patch_diffusion.errors import InputError
from patch_diffusion.files import check_writable, replacing

_SIDE = 88  # side of a thumbnail in pixels
_GAP = 4
_COLUMNS = 10
_CAPTION = 12  # height of a line of text in pixels
_PAPER, _INK = (245, 245, 245), (30, 30, 30)
_ENDINGS = (".png", ".webp", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class Thumbnail:
    """A small 8-bit image with a caption on a contact sheet; if ``joined``, it makes a pair with the next one."""

    picture: Image.Image
    caption: str = ""
    joined: bool = False


def thumbnail(pixels: NDArray[Any], low: float, high: float) -> Image.Image:
    """Make a thumbnail, a small 8-bit image, of pixels (c, h, w), with ``low`` as black and ``high`` as white.

    Four channels are colour and opacity, shown over grey; of any number but 1, 3 and 4, the mean channel is shown.
    """
    channels, height, width = pixels.shape
    if channels not in (1, 3, 4):
        pixels = pixels.mean(axis=0, keepdims=True)
    values = ((pixels.astype(np.float32) - low) * (255 / max(high - low, 1e-12))).round().clip(0, 255).astype(np.uint8)
    array = values.transpose(1, 2, 0)
    picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    if channels == 4:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "grey"), picture)
    scale = _SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # Images of few pixels are enlarged without smoothing, so that each pixel shows as a square.
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS if scale < 2 else Image.Resampling.NEAREST)


def write_sheet(path: str | Path, sections: Sequence[tuple[str, Sequence[Thumbnail]]]) -> None:
    """Write a contact sheet: one image with sections of thumbnails, each under its heading; see `check_sheet`."""
    path = Path(path)
    check_sheet(path)
    rows = [(heading, _rows(pictures)) for heading, pictures in sections if pictures]
    line = _SIDE + _CAPTION + _GAP
    height = _GAP + sum(2 * _CAPTION + line * len(lines) for _, lines in rows)
    sheet = Image.new("RGB", (_GAP + _COLUMNS * (_SIDE + _GAP), max(height, line)), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    top = _GAP
    for heading, lines in rows:
        draw.text((_GAP, top + _CAPTION // 2), heading, fill=_INK, font=font)
        top += 2 * _CAPTION
        for pictures in lines:
            _draw_row(sheet, draw, font, pictures, top)
            top += line
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        sheet.save(partial, Image.registered_extensions()[path.suffix.lower()])


def check_sheet(path: Path) -> None:
    """Raise InputError if a contact sheet cannot be written, or not in the lossless format of its file extension."""
    if path.suffix.lower() not in _ENDINGS:
        raise InputError(f"a sheet is written as .png (or .webp, .tiff, .bmp), not as '{path.name}'")
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a picture")
    check_writable(path)


def _rows(pictures: Sequence[Thumbnail]) -> list[list[Thumbnail]]:
    """Arrange thumbnails in rows of at most 10 columns, with both images of a pair in the same row."""
    rows: list[list[Thumbnail]] = [[]]
    pair: list[Thumbnail] = []
    for picture in pictures:
        pair.append(picture)
        if picture.joined:
            continue
        if len(rows[-1]) + len(pair) > _COLUMNS:
            rows.append([])
        rows[-1] += pair
        pair = []
    return rows


def _draw_row(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, font: Any, pictures: Sequence[Thumbnail], top: int
) -> None:
    for column, one in enumerate(pictures):
        left = _GAP + column * (_SIDE + _GAP)
        picture = one.picture
        sheet.paste(picture, (left + (_SIDE - picture.width) // 2, top + (_SIDE - picture.height) // 2))
        if one.joined:
            middle = top + _SIDE // 2
            draw.line([(left + _SIDE - 2, middle), (left + _SIDE + _GAP + 1, middle)], fill=(220, 0, 0), width=3)
        draw.text((left, top + _SIDE), _shortened(one.caption, font), fill=_INK, font=font)


def _shortened(text: str, font: Any) -> str:
    """Shorten a caption to the width of a thumbnail, keeping the end of the name, which tells files apart."""
    while text and font.getlength(text) > _SIDE:
        text = "~" + text[2:] if text.startswith("~") else "~" + text[1:]
    return text
