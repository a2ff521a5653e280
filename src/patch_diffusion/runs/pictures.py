"""Pictures embedded in HTML pages as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from PIL import Image

_MOST_BYTES = 400_000  # largest picture that is embedded unreduced
_SIDE = 640  # longest side of a reduced picture, in pixels

T = TypeVar("T")


def evenly_spaced(these: Sequence[T], most: int) -> list[T]:
    """Return at most ``most`` items of a sequence: the first, the last, and others evenly spaced between them."""
    if len(these) <= most:
        return list(these)
    return [these[round(index * (len(these) - 1) / (most - 1))] for index in range(most)]


def as_data(path: Path, most: int = _MOST_BYTES) -> str | None:
    """Return a PNG file as a data URI for ``<img>``, reduced to ``most`` bytes if larger; None if it cannot be read."""
    from PIL import Image

    try:
        content, kind = path.read_bytes(), "png"
        with Image.open(io.BytesIO(content)) as picture:
            if picture.format != "PNG":
                return None
            if len(content) > most:
                content, kind = _smaller(picture, most), "jpeg"
    except (OSError, ValueError, SyntaxError):
        return None
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _smaller(picture: Image.Image, most: int) -> bytes:
    picture = picture.convert("RGB")
    picture.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    for quality in (90, 70, 50):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        if len(file.getvalue()) <= most:
            break
    return file.getvalue()
