"""Fast header parsing and decoding of ordinary JPEG and PNG files, since opening small ones is most of the work.

They are taken only if they are certain to be simple: baseline or progressive JPEG of 8 bits, grey or YCbCr, and PNG of
8 bits, grey or RGB, without any marker of orientation, transparency, several images or anything else that changes how
they are decoded. All others are left to Pillow.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from io import BytesIO
from typing import IO

from PIL import Image

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_START_OF_FRAME = {0xC0, 0xC1, 0xC2}
_WITHOUT_MEANING = {0xC4, 0xDB, 0xDD, 0xE0, 0xFE}  # tables, JFIF's header, comments: none affects size or mode
_PLAIN_CHUNKS = {b"IHDR", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tIME", b"sBIT", b"bKGD"}
_MOST_SEGMENTS = 64


@dataclass(frozen=True)
class QuickHeader:
    """The height and width of an ordinary JPEG or PNG, and a flag that is true if it is grey."""

    size: tuple[int, int]
    grey: bool


def format_of(start: bytes) -> tuple[str, ...] | None:
    """Return the only format that Pillow needs to try on a file with these first bytes; None for all formats."""
    if start.startswith(_JPEG):
        return ("JPEG",)
    return ("PNG",) if start.startswith(_PNG) else None


def quick_header(stream: IO[bytes]) -> QuickHeader | None:
    """Parse the header of an ordinary JPEG or PNG; None for all others. The stream is not rewound."""
    start = stream.read(8)
    if start.startswith(_JPEG):
        stream.seek(2)
        return _jpeg(stream)
    return _png(stream) if start == _PNG else None


def quick_picture(content: bytes) -> Image.Image | None:
    """Decode an ordinary JPEG with the decoder and settings that Pillow itself uses.

    Return None for all others, and for files that are damaged or have too many pixels, which `Image.open` refuses.
    """
    if not content.startswith(_JPEG):
        return None
    stream = BytesIO(content)
    stream.seek(2)
    found = _jpeg(stream)
    if found is None or found.size[0] * found.size[1] > (Image.MAX_IMAGE_PIXELS or math.inf):
        return None
    mode, (height, width) = "L" if found.grey else "RGB", found.size
    try:
        return Image.frombytes(mode, (width, height), content, "jpeg", mode, "")
    except (ValueError, OSError):
        return None


def _jpeg(stream: IO[bytes]) -> QuickHeader | None:
    found = None
    for _ in range(_MOST_SEGMENTS):
        segment = stream.read(4)
        if len(segment) < 4 or segment[0] != 0xFF:
            return None
        marker, length = segment[1], segment[2] << 8 | segment[3]
        if marker == 0xDA:  # start of the compressed pixels
            return found
        content = stream.read(length - 2) if length > 2 else b""
        if len(content) != length - 2:
            return None
        if marker in _START_OF_FRAME and found is None and length >= 8:
            bits, height, width, components = struct.unpack_from(">BHHB", content)
            if bits != 8 or components not in (1, 3) or not height or not width:
                return None
            found = QuickHeader((height, width), components == 1)
        elif marker not in _WITHOUT_MEANING:
            return None
    return None


def _png(stream: IO[bytes]) -> QuickHeader | None:
    found = None
    for _ in range(_MOST_SEGMENTS):
        chunk = stream.read(8)
        if len(chunk) < 8:
            return None
        length, kind = struct.unpack(">I4s", chunk)
        if kind == b"IDAT":
            return found
        if kind not in _PLAIN_CHUNKS or length > 1024:
            return None
        content = stream.read(length + 4)
        if kind == b"IHDR" and found is None and length == 13:
            width, height, bits, colour, *_ = struct.unpack_from(">IIBBBBB", content)
            if bits != 8 or colour not in (0, 2) or not height or not width:
                return None
            found = QuickHeader((height, width), colour == 0)
    return None
