"""Uploaded pictures: decoding, and conversion to the channels and resolution that a model was trained on."""

from __future__ import annotations

import base64
import binascii
import io
import math
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from patch_diffusion.data.files.decode import ImageFile, decode_file, quiet, read_header, reason
from patch_diffusion.data.files.tiff import is_tiff
from patch_diffusion.errors import InputError
from patch_diffusion.runs.folder import ModelFacts
from patch_diffusion.sampling.pictures import MODES, to_image
from patch_diffusion.web import limits

MOST_BYTES = 32 * 2**20
MOST_PIXELS = 24_000_000

# Pillow reads other formats too, some of them by running external programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def fitted(content: bytes, facts: ModelFacts, own_size_of: int | None = None) -> bytes:
    """Convert a picture to a PNG with a model's channels and resolution: upright, cropped at its centre and resized.

    Args:
        content: the bytes of an image file.
        facts: the model's resolution and channels, see `ModelFacts`.
        own_size_of: if given, keep the size of the picture, but crop it so that its sides are multiples of this
            number.

    Raises:
        InputError: the file is not a picture or is too large, or the model takes no such pictures.
    """
    if facts.codec.get("dtype") != "uint8" or facts.image_channels not in MODES:
        raise InputError("this page edits pictures of 8 bits in grey, RGB or RGBA, and this model makes other images")
    pixels = _read(content, MODES[facts.image_channels], None if own_size_of else facts.resolution)
    return png(to_image(pixels if own_size_of is None else _cropped(pixels, own_size_of)))


def pixels_of(text: str, mode: str) -> Tensor:
    """Decode the pixels (c, h, w) of a small picture in base64, as the page sends them.

    Raises:
        InputError: the text is not a picture, or the picture is too large.
    """
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError("the picture is not sent as base64") from None
    return _read(content, mode)


def png(picture: Image.Image) -> bytes:
    """Encode a picture as the bytes of a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _cropped(pixels: Tensor, multiple: int) -> Tensor:
    """Crop the pixels of a picture at its centre, so that both sides are multiples of a number."""
    found = pixels.shape[1:]
    height, width = (side // multiple * multiple for side in found)
    if not height or not width or height * width > limits.MOST_PIXELS:
        raise InputError(
            f"a picture that keeps its own size has at least {multiple}x{multiple} pixels and at most "
            f"{limits.MOST_PIXELS:,}, not {found[0]}x{found[1]}: have it brought to the size of the run"
        )
    top, left = (found[0] - height) // 2, (found[1] - width) // 2
    return pixels[:, top : top + height, left : left + width]


def _read(content: bytes, mode: str, size: tuple[int, int] | None = None) -> Tensor:
    with quiet():
        file = ImageFile("the picture", partial(io.BytesIO, content))
        try:
            if not is_tiff(content[:4]):
                Image.open(io.BytesIO(content), formats=_FORMATS).close()
            header = read_header(file)
        except Exception as error:  # Pillow raises many kinds of errors for damaged files
            raise InputError(f"this is not a picture that can be read: {reason(error)}") from None
        num_pixels = math.prod(header.size) * (header.channels or 1)
        if num_pixels > MOST_PIXELS:
            raise InputError(
                f"the picture has {num_pixels / 1e6:.1f} megapixels, and at most {MOST_PIXELS / 1e6:g} are taken: make "
                "it smaller"
            )
        try:
            if header.dtype != "uint8":
                raise InputError(f"the picture has pixels of {header.dtype}, and this model takes 8 bits")
            return torch.from_numpy(np.array(decode_file(file, size, mode)))
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"the picture cannot be read: {reason(error)}") from None
