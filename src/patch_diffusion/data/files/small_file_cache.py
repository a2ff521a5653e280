"""Small files that are read twice, first for what they are and then for their pixels, from the disk only once."""

from __future__ import annotations

from functools import partial
from io import BytesIO
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patch_diffusion.data.files.decode import ImageFile, closed_on_error

SMALL = 2**16
"""Bytes of a file that is kept; of larger ones the header is a small part, to open them little of the work."""

ROOM = 2**28
"""Bytes of all that are kept, at most."""


class SmallFileCache:
    """What small files hold, from when they are looked at to when they are decoded."""

    def __init__(self) -> None:
        self._contents: dict[int, bytes] = {}
        self._room = ROOM

    def for_header_pass(self, index: int, file: ImageFile) -> ImageFile:
        """The file, which is kept when it is opened."""
        return ImageFile(file.name, partial(self._open, index, file))

    def for_decode_pass(self, index: int, file: ImageFile) -> ImageFile:
        """The file, which need not be opened again if it was kept, and is let go of."""
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
