"""A cache of small files between the header pass and the decode pass, so that they are read from disk only once."""

from __future__ import annotations

from functools import partial
from io import BytesIO
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patch_diffusion.data.files.decode import ImageFile, closed_on_error

SMALL = 2**16
"""The largest cached file in bytes; for larger files, opening and the header are a small part of the work."""

ROOM = 2**28
"""The most bytes that the cache holds."""


class SmallFileCache:
    """An in-memory cache of the contents of small image files between the header pass and the decode pass."""

    def __init__(self) -> None:
        self._contents: dict[int, bytes] = {}
        self._room = ROOM

    def for_header_pass(self, index: int, file: ImageFile) -> ImageFile:
        """Wrap a file so that opening it also puts its content into the cache, if it is small enough."""
        return ImageFile(file.name, partial(self._open, index, file))

    def for_decode_pass(self, index: int, file: ImageFile) -> ImageFile:
        """Wrap a file so that its content comes from the cache, if it is there, and remove it from the cache."""
        content = self._contents.pop(index, None)
        if content is None:
            return file
        self._room += len(content)
        return ImageFile(file.name, partial(BytesIO, content))

    def _open(self, index: int, file: ImageFile) -> IO[bytes] | Image.Image | NDArray[Any]:
        source = file.open()
        if isinstance(source, (Image.Image, np.ndarray)) or self._room < SMALL:
            return source
        with closed_on_error(source):
            content = source.read(SMALL + 1)
        if len(content) > SMALL:
            source.seek(0)
            return source
        source.close()
        self._contents[index] = content
        self._room -= len(content)
        return BytesIO(content)
