"""Readers of an image and a mask from files, in the form that a model takes."""

from __future__ import annotations

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
from patch_diffusion.errors import InputError
from patch_diffusion.files import user_path
from patch_diffusion.sampling.pictures import MODES

_NAMES = {1: "grey", 3: "RGB", 4: "RGB with transparency"}


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

    An array is (h, w), (c, h, w) or (h, w, c).

    Raises:
        InputError: there is no image, or it has other channels or another dtype than the model's images.

    >>> image = read_image("photo.png", model)  # doctest: +SKIP
    """
    path = user_path(path)
    codec, channels = pixel_codec(model), model.image_channels
    if path.suffix.lower() == ".npy":
        return _from_array(_load(path), path, codec.dtype, channels)
    file, header = _picture(path)
    found = header.channels or (4 if header.transparent else 1 if header.grey else 3)
    if found != (channels or found):
        assert channels is not None
        raise InputError(f"{path} has {_words(found)}, but this run's images have {_words(channels)}: convert it")
    if header.dtype != codec.dtype:
        raise InputError(f"{path} has pixels of {header.dtype}, but this run's are {codec.dtype}: convert it")
    with _reading(path):
        pixels = decode_file(file, mode=MODES.get(found, "RGB"))
    return torch.from_numpy(np.array(pixels))


def read_mask(path: str | Path) -> Bool[Tensor, "h w"]:
    """Read a mask, True where an image is to be filled: nearer to white in a picture, or not 0 in an .npy.

    Raises:
        InputError: there is no mask.

    >>> mask = read_mask("mask.png")  # doctest: +SKIP
    """
    path = user_path(path)
    if path.suffix.lower() == ".npy":
        array = _load(path)
        if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
            array = array[0] if array.shape[0] == 1 else array[..., 0]
        if array.ndim != 2:
            raise InputError(f"{path} has the shape {array.shape}, and a mask is (height, width)")
        return torch.from_numpy(array != 0)
    file, header = _picture(path)
    if header.dtype != "uint8":
        raise InputError(f"{path} has pixels of {header.dtype}, and a mask is a black and white picture of 8 bits")
    with _reading(path):
        pixels = decode_file(file, mode="L")
    return torch.from_numpy(pixels[0] >= 128)


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


def _load(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"there is no file at {path}") from None
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} holds several arrays, as an .npz does: give one by itself")
    if not array.size:
        raise InputError(f"{path} is empty: its shape is {array.shape}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _picture(path: Path) -> tuple[ImageFile, Header]:
    if not path.is_file():
        raise InputError(f"there is no file at {path}")
    file = ImageFile(str(path), partial(open, path, "rb"))
    with _reading(path):
        return file, read_header(file)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise an `InputError` in place of what Pillow raises in the with block, and keep Pillow's warnings quiet."""
    try:
        with quiet():
            yield
    except Exception as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from None


def _words(channels: int) -> str:
    name = f" ({_NAMES[channels]})" if channels in _NAMES else ""
    return f"{channels} channel{'s' if channels > 1 else ''}{name}"
