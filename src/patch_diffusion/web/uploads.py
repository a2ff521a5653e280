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

from patch_diffusion.data.files.decode import Header, ImageFile, decode_file, quiet, read_header, reason
from patch_diffusion.data.files.tiff import is_tiff
from patch_diffusion.errors import InputError
from patch_diffusion.runs.folder import ModelFacts
from patch_diffusion.sampling.editing.image import mask_of
from patch_diffusion.sampling.pictures import MODES, to_image
from patch_diffusion.web import limits

MOST_BYTES = 32 * 2**20
MOST_PIXELS = 24_000_000

Size = tuple[int, int]

# Pillow reads other formats too, some of them by running external programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def fitted(content: bytes, facts: ModelFacts, own_size_of: int | None = None) -> tuple[bytes, Size]:
    """Convert a picture to a PNG with a model's channels and resolution: upright, cropped at its centre and resized.

    Args:
        content: the bytes of an image file.
        facts: the model's resolution and channels, see `ModelFacts`.
        own_size_of: if given, keep the size of the picture, but crop it so that its sides are multiples of this
            number.

    Returns:
        The PNG, and the height and width of the picture as it was.

    Raises:
        InputError: the file is not a picture or is too large, or the model takes no such pictures.
    """
    if facts.codec.get("dtype") != "uint8" or facts.image_channels not in MODES:
        raise InputError("this page edits pictures of 8 bits in grey, RGB or RGBA, and this model makes other images")
    file, header = _opened("the picture", content)
    pixels = _decoded(file, MODES[facts.image_channels], None if own_size_of else facts.resolution)
    return png(to_image(pixels if own_size_of is None else _cropped(pixels, own_size_of))), header.size


def fitted_mask(content: bytes, image: Size, original: Size, *, own: bool) -> tuple[bytes, str]:
    """Convert a mask, read as `read_mask` does, to a black and white PNG that fits an image.

    Args:
        content: the bytes of an image file, white where the image is to be filled.
        image: height and width of the image on the page.
        original: height and width of the picture that it was made of by `fitted`; a mask of this size is cropped and
            resized in the same way.
        own: True if the image has kept its size, but for what was cropped.

    Returns:
        The PNG, and a note for the user, which is empty for a mask in black and white.

    Raises:
        InputError: the file is not a picture or is too large, has another size, or does not tell what is to be filled.
    """
    file, header = _opened("the mask", content)
    if header.size not in (image, original):
        sizes = " or ".join(dict.fromkeys(f"{height}x{width}" for height, width in (original, image)))
        raise InputError(
            f"the mask is {header.size[0]}x{header.size[1]}, but the image is {sizes} (height x width): give a mask of "
            "its size"
        )
    mask, note = mask_of(file)
    if not mask.any():
        raise InputError("the mask is black everywhere: make white what is to be filled in")
    pixels = mask[None].to(torch.uint8) * 255
    if header.size != image and own:
        pixels = _centre(pixels, image)
    elif header.size != image:
        whole = ImageFile("the mask", partial(io.BytesIO, png(to_image(pixels))))
        pixels = torch.from_numpy(np.where(_decoded(whole, "L", image) >= 128, np.uint8(255), np.uint8(0)))
    return png(to_image(pixels)), note


def pixels_of(text: str, mode: str) -> Tensor:
    """Decode the pixels (c, h, w) of a small picture in base64, as the page sends them.

    Raises:
        InputError: the text is not a picture, or the picture is too large.
    """
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError("the picture is not sent as base64") from None
    return _decoded(_opened("the picture", content)[0], mode)


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
    return _centre(pixels, (height, width))


def _centre(pixels: Tensor, size: Size) -> Tensor:
    """Crop the pixels of a picture to a height and width at its centre."""
    top, left = ((found - side) // 2 for found, side in zip(pixels.shape[1:], size, strict=True))
    return pixels[:, top : top + size[0], left : left + size[1]]


def _opened(name: str, content: bytes) -> tuple[ImageFile, Header]:
    """Return the bytes of a picture of 8 bits as a file with this name in messages, and its header."""
    with quiet():
        file = ImageFile(name, partial(io.BytesIO, content))
        try:
            if not is_tiff(content[:4]):
                Image.open(io.BytesIO(content), formats=_FORMATS).close()
            header = read_header(file)
        except Exception as error:  # Pillow raises many kinds of errors for damaged files
            raise InputError(f"{name} is no image file that can be read: {reason(error)}") from None
        num_pixels = math.prod(header.size) * (header.channels or 1)
        if num_pixels > MOST_PIXELS:
            raise InputError(
                f"{name} has {num_pixels / 1e6:.1f} megapixels, and at most {MOST_PIXELS / 1e6:g} are taken: make "
                "it smaller"
            )
        if header.dtype != "uint8":
            raise InputError(f"{name} has pixels of {header.dtype}, and this page takes 8 bits")
        return file, header


def _decoded(file: ImageFile, mode: str, size: Size | None = None) -> Tensor:
    with quiet():
        try:
            return torch.from_numpy(np.array(decode_file(file, size, mode)))
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{file.name} cannot be read: {reason(error)}") from None
