"""Readers of an image and a mask from files, in the form that a model takes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated as Bool, Annotated as Shaped, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.data.files.decode import Header, ImageFile, decode_file, quiet, read_header, reason
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError, Note
from patch_diffusion.files import user_path
from patch_diffusion.sampling.pictures import MODES

_NAMES = {1: "grey", 3: "RGB", 4: "RGB with transparency"}
_HALF = 128  # of 255: from there on a pixel is nearer to white than to black, or to opaque than to transparent


def pixel_codec(model: Denoiser) -> PixelCodec:
    """Return the pixel codec of a model, which must not be a model of latents.

    Raises:
        InputError: the model is one of latents, in which a pixel has no place.
    """
    if not isinstance(model.codec, PixelCodec):
        raise InputError("this is a model of latents, and images are edited by models of pixels")
    return model.codec


def read_image(path: str | Path, model: Denoiser) -> Shaped[Tensor, "c h w"]:
    """Read the pixels of a picture, or of an array in an .npy, in the dtype of the model's data.

    A picture of 8 bits is converted to grey, RGB or RGBA as the model's images are, as in training: what is transparent
    is laid on white. An array is (h, w), (c, h, w) or (h, w, c).

    Raises:
        InputError: there is no image, or it has another dtype than the model's images, or channels that no picture has.

    >>> image = read_image("photo.png", model)  # doctest: +SKIP
    """
    path = _file(path)
    codec, channels = pixel_codec(model), model.image_channels
    if path.suffix.lower() == ".npy":
        return _from_array(_load(path), path, codec.dtype, channels)
    file = ImageFile(str(path), partial(open, path, "rb"))
    header = _header_of(file)
    found = header.channels or (4 if header.transparent else 1 if header.grey else 3)
    wanted = channels or found
    if header.dtype != codec.dtype:
        raise InputError(f"{path} has pixels of {header.dtype}, but this run's are {codec.dtype}: convert it")
    if found != wanted and (header.channels or wanted not in MODES):
        raise InputError(f"{path} has {_words(found)}, but this run's images have {_words(wanted)}: convert it")
    if found != wanted:
        own = "grey with transparency" if header.grey and header.transparent else _NAMES[found]
        laid = ", what is transparent laid on white" if header.transparent else ""
        warnings.warn(f"{path} is {own}, and was converted to {_NAMES[wanted]}{laid}", Note, stacklevel=2)
    with _reading(path):
        pixels = decode_file(file, mode=MODES.get(wanted, "RGB"))
    return torch.from_numpy(np.array(pixels))


def read_mask(path: str | Path) -> Bool[Tensor, "h w"]:
    """Read a mask, True where an image is to be filled: nearer to white in a picture, or not 0 in an .npy.

    Of a picture with transparent parts, it is what is painted, in one colour or brightness. Of a picture of two levels
    that are both dark, such as 0 and 1, it is the brighter one.

    Raises:
        InputError: there is no mask, or a picture does not tell what is to be filled.

    >>> mask = read_mask("mask.png")  # doctest: +SKIP
    """
    path = _file(path)
    if path.suffix.lower() == ".npy":
        array = _load(path)
        if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
            array = array[0] if array.shape[0] == 1 else array[..., 0]
        if array.ndim != 2:
            raise InputError(f"{path} has the shape {array.shape}, and a mask is (height, width)")
        return torch.from_numpy(array != 0)
    mask, note = mask_of(ImageFile(str(path), partial(open, path, "rb")))
    if note:
        warnings.warn(note, Note, stacklevel=2)
    return mask


def mask_of(file: ImageFile) -> tuple[Bool[Tensor, "h w"], str]:
    """Return the mask in a picture, see `read_mask`, and a note for the user unless it is plainly black and white.

    Raises:
        InputError: the picture cannot be read, or does not tell what is to be filled.
    """
    path = file.name
    header = _header_of(file)
    if header.dtype != "uint8":
        raise InputError(f"{path} has pixels of {header.dtype}, and a mask is a black and white picture of 8 bits")
    with _reading(path):
        *colours, opacity = decode_file(file, mode="RGBA")
        (grey,) = decode_file(file, mode="L")
    painted = opacity >= _HALF
    if not painted.all():
        bright = np.max(colours, axis=0)[painted] >= _HALF
        if bright.any() and not bright.all():
            raise InputError(
                f"{path} has transparent, dark and bright parts, so it does not say what is to be filled: give a mask "
                "in black and white, or paint in one colour on transparency"
            )
        return torch.from_numpy(painted), f"{path} has transparent parts: what is painted is filled in"
    levels = np.unique(grey)
    if levels[-1] >= _HALF or levels[-1] == 0:
        return torch.from_numpy(grey >= _HALF), ""
    if len(levels) > 2:
        raise InputError(
            f"{path} is dark: its brightest pixel is {levels[-1]} of 255, and it has {len(levels)} levels of grey: "
            "make white what is to be filled"
        )
    note = f"{path} has no white: its brightest level, {levels[-1]} of 255, is filled in"
    return torch.from_numpy(grey == levels[-1]), note


def _from_array(array: NDArray[Any], path: Path, dtype: str, channels: int | None) -> Tensor:
    shape = array.shape
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and shape[0] != channels and shape[2] == channels:
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or len(array) != (channels or len(array)):
        raise InputError(
            f"{path} has the shape {shape}, but this run's images have {channels} channels: (channels, height, width)"
        )
    if array.dtype.name != dtype:
        if dtype != "float32" or array.dtype.kind not in "fiu":
            raise InputError(f"{path} has numbers of {array.dtype.name}, but this run's images are {dtype}: convert it")
        array = array.astype(np.float32)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"{path} holds NaN or infinity")
    return torch.from_numpy(np.array(array, order="C"))


def _file(path: str | Path) -> Path:
    path = user_path(path)
    if not path.is_file():
        raise InputError(f"{path} is a folder: give a file" if path.is_dir() else f"there is no file at {path}")
    return path


def _load(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} holds several arrays, as an .npz does: give one by itself")
    if not array.size:
        raise InputError(f"{path} is empty: its shape is {array.shape}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _header_of(file: ImageFile) -> Header:
    with _reading(file.name):
        return read_header(file)


@contextmanager
def _reading(name: str | Path) -> Iterator[None]:
    """Raise an `InputError` in place of what Pillow raises in the with block, and keep Pillow's warnings quiet."""
    try:
        with quiet():
            yield
    except Exception as error:
        raise InputError(f"{name} cannot be read: {reason(error)}") from None


def _words(channels: int) -> str:
    name = f" ({_NAMES[channels]})" if channels in _NAMES else ""
    return f"{channels} channel{'s' if channels > 1 else ''}{name}"
