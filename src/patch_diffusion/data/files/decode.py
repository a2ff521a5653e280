"""Reading of image files: a pass over their headers, and the decoding of their pixels."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from patch_diffusion.config import Fit
from patch_diffusion.data.arrays.read import to_pixels
from patch_diffusion.data.files.tiff import StoredTiff, check_pages, is_misread, is_tiff
from patch_diffusion.data.keys import key_of_array, key_of_bytes
from patch_diffusion.data.reading.parallel import in_order
from patch_diffusion.data.reading.sizes import Size, resize, resize_values
from patch_diffusion.errors import InputError
from patch_diffusion.files import read_at_most

_GREY = {"1", "L", "LA", "La"}
_EXIF_ORIENTATION = 0x0112
_ANIMATED = {"AVIF", "FLI", "GIF", "PNG", "WEBP"}  # frames of other formats are layers, or one image in several sizes
_MOST_BYTES_PER_PIXEL, _MOST_PIXELS = 16, 2**32  # four floats of 32 bits
_TIFF_WIDTH = 256
_TIFF_KIND_OF_PAGE = 254  # tag whose lowest bit marks a smaller version of another page
_TIFF_SIGN = 339
_PNG, _JPEG = b"\x89PNG", b"\xff\xd8\xff"
_NOT_PIXELS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # chunks of a PNG
_MOST_IN_DRAFT = 2.5  # times Pillow's limit, since a progressive JPEG takes memory for all its pixels

NOT_READ = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats that Pillow names and cannot read by itself; an EPS is a program, which it would hand to Ghostscript."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image of a data set, which can be opened: its name, and a function that opens it.

    ``name`` is its name within the data set. ``open`` returns a stream of the file, or, for data sets in Python, a
    Pillow image or an array (c, h, w) of uint8, uint16 or float32.
    """

    name: str
    open: Callable[[], IO[bytes] | Image.Image | NDArray[Any]]


@dataclass(frozen=True)
class Header:
    """The size, dtype and channels of an image, as known before its pixels are decoded."""

    size: Size
    """Height and width of the upright image."""
    dtype: str = "uint8"
    """The dtype of the pixels: "uint8", "uint16" or "float32"."""
    channels: int | None = None
    """The number of channels; None for 8-bit images, which can be converted to L, RGB or RGBA."""
    grey: bool = False
    transparent: bool = False
    frames: int = 1
    """The number of frames of an animation, of which only the first is used."""
    reduced: bool = False
    """True if the file has 16 bits per colour channel, which Pillow reads as 8."""
    rgb16: bool = False
    """True if it is a TIFF of which the mode "RGB16" reads all 16 bits."""

    def read_as(self, mode: str) -> Header:
        """Return the header of the same file when it is read in a mode, see `decode_file`."""
        return Header(self.size, "uint16", 3) if mode == "RGB16" and self.rgb16 else self


def read_headers(files: Sequence[ImageFile], *, show: bool = False) -> tuple[dict[int, Header], dict[int, str]]:
    """Read the headers of all files; return two dicts by index: the headers, and why the other files are unusable."""
    headers, unusable, known = {}, {}, {}
    with quiet():
        for index, found in in_order(
            lambda i: read_header(files[i]), range(len(files)), "looking at images", show=show
        ):
            if isinstance(found, Exception):
                unusable[index] = reason(found)
            else:
                headers[index] = known.setdefault(found, found)  # most of millions are equal and can share one object
    return headers, unusable


def read_header(file: ImageFile) -> Header:
    """Read the size, dtype and channels of an image file without decoding its pixels.

    Raises:
        InputError: the file is empty, has too many pixels, or has pages that do not make one image.
        Exception: Pillow may raise any exception on a broken file; `reason` puts it in words.
    """
    try:
        return _header_of(file.open())
    except ValueError as error:
        return _header_of(_without_text(file.open, error))


def _header_of(source: IO[bytes] | Image.Image | NDArray[Any]) -> Header:
    with _opened(source) as image:
        if isinstance(image, np.ndarray):
            channels, height, width = image.shape
            return Header((height, width), image.dtype.name, channels)
        if isinstance(image, StoredTiff):
            if image.mode is None:
                return Header(image.size, image.dtype, image.channels)
            return Header(image.size, grey=image.mode in _GREY, transparent=image.mode not in ("L", "RGB"))
        num_pages = len(_pages(image))
        width, height = image.size
        _refuse_bomb(width * height * num_pages, in_draft=image.format == "JPEG")
        # For a TIFF, newer versions of Pillow report the upright size, although the image is rotated when decoded.
        is_upright = image.format == "TIFF" and width != _tiff_tag(image, _TIFF_WIDTH, width)
        if _orientation(image) >= 5 and not is_upright:
            width, height = height, width
        dtype, reduced = _dtype(image), _is_reduced(image)
        return Header(
            (height, width),
            dtype,
            channels=num_pages if num_pages > 1 or dtype != "uint8" else None,
            grey=image.mode in _GREY,
            transparent=image.has_transparency_data,
            frames=getattr(image, "n_frames", 1) if image.format in _ANIMATED else 1,
            reduced=reduced,
            rgb16=reduced and image.format == "TIFF" and image.mode == "RGB" and num_pages == 1,
        )


def decode_file(
    file: ImageFile, size: Size | None = None, mode: str = "RGB", fit: Fit = "crop", *, draft: bool = False
) -> NDArray[Any]:
    """Decode an image file to pixels, see `decode_with_key`."""
    return decode_with_key(file, size, mode, fit, draft=draft)[0]


def decode_with_key(
    file: ImageFile, size: Size | None = None, mode: str = "RGB", fit: Fit = "crop", *, draft: bool = False
) -> tuple[NDArray[Any], int]:
    """Decode an image file to upright pixels (c, h, w) of uint8, uint16 or float32; also return its key.

    The key is a hash of the file's bytes, or of the image's values where there is no file.

    Args:
        file: the image file.
        size: height and width to resize to; None keeps the image's own.
        mode: "L", "RGB" or "RGBA", which 8-bit images are converted to; all others keep their channels. "RGB16" reads
            TIFF with 16 bits a colour as it is.
        fit: "stretch" to stretch the image; any other value crops it to the aspect ratio of the size.
        draft: True if a JPEG of more pixels than are read may lose its own size, to be looked at.

    Raises:
        InputError: a value is not finite or does not fit 16 bits, or `read_header` would refuse the file, or the size
            of a JPEG that has too many pixels is not smaller.
        Exception: Pillow may raise any exception on a broken file.
    """
    source = file.open()
    if isinstance(source, np.ndarray):
        key = key_of_array(source)
    elif isinstance(source, Image.Image):
        key = key_of_bytes(f"{source.mode} {source.size} ".encode() + source.tobytes())
    else:
        with source:
            most = _MOST_BYTES_PER_PIXEL * (Image.MAX_IMAGE_PIXELS or _MOST_PIXELS)
            # All of it: Pillow stops before the end, where a zip finds out that it is damaged.
            content = read_at_most(source, most)
            if len(content) > most:
                raise InputError(f"more than {most:,} bytes, which no image of the most pixels has")
        source, key = BytesIO(content), key_of_bytes(content)
        try:
            return _decoded(source, size, mode, fit, draft), key
        except ValueError as error:
            source = _without_text(lambda: BytesIO(content), error)
    return _decoded(source, size, mode, fit, draft), key


def _decoded(
    source: IO[bytes] | Image.Image | NDArray[Any], size: Size | None, mode: str, fit: Fit, draft: bool
) -> NDArray[Any]:
    with _opened(source, as_stored=mode == "RGB16") as image:
        if isinstance(image, StoredTiff):
            image = image.decoded()
        if isinstance(image, np.ndarray):
            return resize_values(_finite(image), size, fit)
        pages = _pages(image)
        if len(pages) == 1 and _dtype(image) == "uint8":
            _make_draft(image, size, draft)
            return _picture(image, size, mode, fit)
        channels = []
        for page in pages:
            if len(pages) > 1:
                image.seek(page)
            channels.append(_values(image))
        return resize_values(_finite(np.stack(channels)), size, fit)


def is_palette(file: ImageFile) -> bool:
    """Return True if the pixels of a file are numbers of colours in a palette, as in label maps."""
    with _opened(file.open()) as image:
        return isinstance(image, Image.Image) and image.mode == "P"


def decode_labels(file: ImageFile, size: Size, fit: Fit) -> NDArray[np.uint16]:
    """Decode a label map to its upright numbers (1, h, w), resized by taking the nearest, so that none is made up.

    Raises:
        InputError: it has several channels, or numbers that are not whole or beyond 16 bits.
    """
    with _opened(file.open()) as image:
        if isinstance(image, StoredTiff):
            image = image.decoded()
        values = image if isinstance(image, np.ndarray) else np.asarray(_upright(image))
    values = values[0] if values.ndim == 3 and len(values) == 1 else values
    if values.ndim != 2:
        raise InputError(f"has {values.ndim} axes or several channels, and a label map has one number for each pixel")
    if values.dtype.kind == "f" and not (values == np.floor(values)).all():
        raise InputError("has numbers that are not whole, and labels are")
    if values.min() < 0 or values.max() > 65535:
        raise InputError(f"has labels from {values.min()} to {values.max()}, beyond 16 bits")
    nearest = resize(Image.fromarray(values.astype(np.float32)), size, fit, Image.Resampling.NEAREST)
    return np.asarray(nearest).astype(np.uint16)[None]


def reason(error: Exception) -> str:
    """Return a few words that say why a file cannot be used, given the exception that reading it raised."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or a broken one"
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings inside the with block, such as Pillow's about odd files, and make too many pixels an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextmanager
def _opened(
    source: IO[bytes] | Image.Image | NDArray[Any], *, as_stored: bool = False
) -> Iterator[Image.Image | NDArray[Any] | StoredTiff]:
    if isinstance(source, (Image.Image, np.ndarray)):
        yield source
        return
    with source:
        start = source.read(4)
        if not start:
            raise InputError("an empty file")
        source.seek(0)
        try:
            image = Image.open(source)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            found = re.search(r"\d+", str(error))
            _refuse_bomb(int(found[0]) if found else None, in_draft=start.startswith(_JPEG))
            if not start.startswith(_JPEG):
                raise
            source.seek(0)
            image = JpegImageFile(source)  # which is decoded to fewer pixels, if to any
        except Exception:
            if not is_tiff(start):
                raise
            image = None
        if image is not None and not (image.format == "TIFF" and (as_stored or is_misread(image))):
            with image:
                if image.format in NOT_READ:  # whatever its name ends in
                    raise InputError(f"a kind of file that is not read ({image.format}): convert it to PNG")
                yield image
            return
        source.seek(0)
        stored = StoredTiff.of(source)
        _refuse_bomb(stored.size[0] * stored.size[1] * (1 if stored.channels <= 4 else stored.channels))
        yield stored


def _refuse_bomb(num_pixels: int | None, *, in_draft: bool = False) -> None:
    most = Image.MAX_IMAGE_PIXELS
    if num_pixels is None or most is None:
        return
    most, how = (int(_MOST_IN_DRAFT * most), "") if in_draft else (most, ", or a JPEG, and give --resolution")
    if num_pixels > most:
        raise InputError(f"{num_pixels:,} pixels, more than the {most:,} that are read: make it smaller{how}")


def _make_draft(image: Image.Image, size: Size | None, any_size: bool) -> None:
    """Have a JPEG of more pixels than are read decoded to fewer of them, if it is resized to a smaller size anyway."""
    most = Image.MAX_IMAGE_PIXELS
    if image.format != "JPEG" or most is None or math.prod(image.size) <= most:
        return
    width, height = image.size
    height, width = size or ((1, 1) if any_size else (height, width))
    image.draft(None, (height, width) if size and _orientation(image) >= 5 else (width, height))
    num = math.prod(image.size)
    if num > most:
        raise InputError(
            f"{num:,} pixels, more than the {most:,} that are kept: make it smaller, or give a lower --resolution"
        )


def _without_text(open_file: Callable[[], Any], error: ValueError) -> BytesIO:
    """Return a PNG without the text and colour profile for which Pillow refuses it; raise the error if it has none."""
    if isinstance(error, InputError) or isinstance(source := open_file(), Image.Image | np.ndarray):
        raise error
    with source:
        content = source.read()
    kept, place = [content[:8]], 8
    while place < len(content) and content.startswith(_PNG):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")  # of length, kind, content, checksum
        if content[place + 4 : place + 8] not in _NOT_PIXELS:
            kept.append(content[place:end])
        place = end
    bare = b"".join(kept)
    if len(bare) in (8, len(content)):
        raise error
    return BytesIO(bare)


def _pages(image: Image.Image) -> list[int]:
    """Return the indices of the pages of a TIFF that are the channels of one image; [0] for all other formats."""
    if image.format != "TIFF" or getattr(image, "n_frames", 1) == 1:
        return [0]
    pages: list[int] = []
    kinds: list[tuple[tuple[int, int], str]] = []
    for page in range(getattr(image, "n_frames", 1)):
        image.seek(page)
        if not _tiff_tag(image, _TIFF_KIND_OF_PAGE, 0) & 1:
            pages.append(page)
            kinds.append((image.size, image.mode))
    image.seek(pages[0] if pages else 0)
    check_pages(kinds, colour=_dtype(image) == "uint8" and image.mode not in ("1", "L"))
    return pages or [0]


def _tiff_tag(image: Image.Image, tag: int, default: Any) -> Any:
    return image.tag_v2.get(tag, default)  # pyright: ignore[reportAttributeAccessIssue]


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 being upright. EXIF data after a PNG's pixels is ignored: finding it is slow."""
    exif = Image.Image.getexif(image) if image.format == "PNG" else image.getexif()
    return exif.get(_EXIF_ORIENTATION, 1)


def _upright(image: Image.Image) -> Image.Image:
    return image if _orientation(image) == 1 else ImageOps.exif_transpose(image)


def _dtype(image: Image.Image) -> str:
    """Return the dtype of the pixels for an image's Pillow mode: "uint8", "uint16" or "float32"."""
    if image.format == "TIFF" and image.mode == "I":  # more than 16 bits, or with a sign: as of an array
        return "float32"
    return {"I": "uint16", "F": "float32"}.get(image.mode[0], "uint8")


def _is_reduced(image: Image.Image) -> bool:
    if _dtype(image) != "uint8" or not getattr(image, "tile", None):
        return False
    raw = image.tile[0].args  # pyright: ignore[reportAttributeAccessIssue]
    raw = raw if isinstance(raw, tuple) else (raw,)
    if image.format == "PPM":  # its second argument is the largest value
        return len(raw) > 1 and isinstance(raw[1], int) and raw[1] > 255
    return isinstance(raw[0], str) and ";16" in raw[0]


def _picture(image: Image.Image, size: Size | None, mode: str, fit: Fit) -> NDArray[np.uint8]:
    image = _upright(image)
    if image.has_transparency_data and mode != "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    elif image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image = image if image.mode == mode else image.convert(mode)
    array = np.asarray(image if size is None else resize(image, size, fit))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _values(image: Image.Image) -> NDArray[Any]:
    """Return the upright values (h, w) of a single channel as they are stored: uint8, uint16 or float32."""
    dtype = _dtype(image)
    has_sign = image.format != "TIFF" or image.mode != "I" or 2 in _tiff_tag(image, _TIFF_SIGN, ())
    values = np.asarray(_upright(image))
    values = values if has_sign else values.view(np.uint32)
    if dtype == "uint16" and (values.min() < 0 or values.max() > 65535):
        raise InputError(f"values from {values.min():,} to {values.max():,} are more than 16 bits; save it as floats")
    return to_pixels(values, dtype, "it")


def _finite(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError("holds NaN or infinity")
    return values
