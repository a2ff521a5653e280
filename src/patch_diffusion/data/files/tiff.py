"""Images in the kinds of TIFF that Pillow does not read, or not with all values as they are stored, by tifffile."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from patch_diffusion.data.arrays.read import pixel_dtype, to_pixels
from patch_diffusion.data.reading.sizes import Size
from patch_diffusion.errors import InputError, need

for _name in ("tifffile", "PIL.TiffImagePlugin"):  # they would print what the errors say, too
    logging.getLogger(_name).addHandler(logging.NullHandler())

_INVERTED, _GREY, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_JPEG, _WEBP = (6, 7), 50001
_ORIENTATION, _PREMULTIPLIED, _ALPHA = 274, 1, 2
_PICTURES = {(1, None): "L", (3, None): "RGB", (2, _ALPHA): "LA", (4, _ALPHA): "RGBA", (4, _PREMULTIPLIED): "RGBa"}


def is_tiff(start: bytes) -> bool:
    """True if the first bytes of a file are those of a TIFF, BigTIFF included."""
    return start.startswith(tuple(TiffImagePlugin.PREFIXES))


def is_misread(image: Image.Image) -> bool:
    """True if Pillow would leave out channels of a TIFF or take its values for others, without a word."""
    tags = image.tag_v2  # pyright: ignore[reportAttributeAccessIssue]
    bits, planes, channels = max(tags.get(258, (1,))), tags.get(284, 1), tags.get(277, 1)
    more = tags.get(262) in (_INVERTED, _GREY, _RGB) and channels > len(image.getbands())
    signed = bits == 8 and 2 in tags.get(339, ())
    return more or signed or (bits == 16 and planes == 2 and channels > 1) or tags.get(259) == _WEBP


def check_pages(kinds: list[Any], *, colour: bool) -> None:
    """Raise an `InputError` if the pages of a TIFF, each of a size and type, are not the channels of one image."""
    if len(set(kinds)) > 1:
        raise InputError(f"its {len(kinds)} pages differ in size or type, so they cannot be channels of one image")
    if len(kinds) > 1 and colour:
        raise InputError(f"has {len(kinds)} pages of colour, and only grey ones can be the channels of one image")


@dataclass(frozen=True)
class StoredTiff:
    """An image in an open TIFF file, of which only the headers of its ``pages`` are read until it is decoded.

    ``mode`` is its Pillow mode if it is a picture of 8 bits, else None; ``size`` is that of the upright image, which is
    turned as EXIF has it.
    """

    pages: list[Any]
    mode: str | None
    channels: int
    size: Size
    dtype: str
    turned: int

    @classmethod
    def of(cls, stream: IO[bytes]) -> StoredTiff:
        """Read the headers of a file's pages; versions of a page in fewer pixels are left out.

        Raises:
            InputError: a library is not installed, or the pages are no image, or one of a kind that is not read.
            UnidentifiedImageError: the file is broken.
        """
        library, _ = (need(name, "data", "this kind of TIFF") for name in ("tifffile", "imagecodecs"))
        try:
            pages = [page for page in library.TiffFile(stream).pages if not page.is_reduced]
        except Exception:  # tifffile raises many kinds of errors for broken files
            pages = []
        if not pages:
            raise UnidentifiedImageError
        first = pages[0]
        samples, kind = first.samplesperpixel, first.photometric
        check_pages(
            [(page.shaped, page.dtype, page.photometric) for page in pages], colour=samples > 1 or kind == _PALETTE
        )
        is_known = kind in (_INVERTED, _GREY, _RGB, _PALETTE) or (kind == _YCBCR and first.compression in _JPEG)
        if first.dtype is None or not is_known or first.imagedepth > 1 or 1 < first.bitspersample < 8:
            name = f"{getattr(kind, 'name', kind)} of {first.dtype or 'unknown numbers'}".lower()
            raise InputError(f"a kind of TIFF that is not read ({name}): make an .npy of all images")
        dtype = "uint8" if kind == _PALETTE else pixel_dtype(first.dtype, "it")
        channels = 3 if kind == _PALETTE else samples * len(pages)
        alpha = (*first.extrasamples, None)[0] if len(first.extrasamples) < 2 else 0
        mode = _PICTURES.get((channels, alpha)) if dtype == "uint8" and len(pages) == 1 else None
        size, turned = (first.imagelength, first.imagewidth), getattr(first.tags.get(_ORIENTATION), "value", 1)
        return cls(pages, mode, channels, size[::-1] if turned in (5, 6, 7, 8) else size, dtype, turned)

    def decoded(self) -> Image.Image | NDArray[Any]:
        """Decode the upright image: a Pillow image of ``mode``, or pixels (c, h, w) of ``dtype`` as they are stored."""
        first = self.pages[0]
        stored = [page.asarray(maxworkers=1).reshape(page.shaped)[:, 0] for page in self.pages]  # planes, h, w, samples
        values = np.moveaxis(np.stack(stored), -1, 2).reshape(-1, *stored[0].shape[1:3])
        if first.photometric == _PALETTE:
            values = (first.colormap[:, values[0]] >> 8).astype(np.uint8)
        pixels = to_pixels(values, self.dtype, "it")
        if self.mode is not None and first.photometric == _INVERTED:
            pixels = 255 - pixels
        pixels = pixels.swapaxes(1, 2) if self.turned in (5, 6, 7, 8) else pixels
        pixels = pixels[:, :: -1 if self.turned in (3, 4, 7, 8) else 1, :: -1 if self.turned in (2, 3, 6, 7) else 1]
        if self.mode is None:
            return np.ascontiguousarray(pixels)
        return Image.frombytes(self.mode, (self.size[1], self.size[0]), pixels.transpose(1, 2, 0).tobytes())
