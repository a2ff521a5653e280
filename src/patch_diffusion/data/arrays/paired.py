"""Paired inputs of images in arrays: other arrays, with as many images in the same order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from patch_diffusion.config import Data
from patch_diffusion.data.arrays.read import read_array
from patch_diffusion.data.arrays.stored import StoredArray
from patch_diffusion.data.images import ImageSet
from patch_diffusion.data.paired import Paired, PairedInput
from patch_diffusion.errors import InputError, option_error

OPTION = "data.paired"
MOST_CATEGORIES = 256


def pair_arrays(images: ImageSet, inputs: Mapping[str, StoredArray], options: Data, *, show: bool) -> ImageSet:
    """Return images with paired inputs from arrays, by name, which are resized to their height and width.

    Raises:
        InputError: an input has another number of images, or label maps have other sizes or numbers that are not whole.
    """
    paired = list(images.paired)
    for name, stored in inputs.items():
        if stored.shape[0] != len(images.pixels):
            raise option_error(
                OPTION,
                f"{name} has {stored.shape[0]:,} images, and there are {len(images.pixels):,} to make: give as many",
            )
        if options.paired_kind == "labels":
            paired.append(_label_maps(name, stored, images))
            continue
        own = replace(Data(source=stored.source), resolution=images.resolution, fit=options.fit, cache=options.cache)
        found: Any = read_array(replace(stored, labels=None, groups=None, conditions={}), own, show=show)
        paired.append(Paired(PairedInput(name, found.channels, found.codec.as_dict()), found.pixels, file=found.file))
    return replace(images, paired=tuple(paired))


def _label_maps(name: str, stored: StoredArray, images: ImageSet) -> Paired:
    values = np.concatenate(list(stored.blocks()))
    values = values[:, 0] if values.ndim == 4 and values.shape[1] == 1 else values
    values = values[..., 0] if values.ndim == 4 and values.shape[-1] == 1 else values
    if values.ndim != 3 or values.shape[1:] != images.resolution:
        raise option_error(
            OPTION,
            f"{name} holds {'x'.join(map(str, values.shape[1:]))}, and label maps have one number for each pixel of "
            f"images of {'x'.join(map(str, images.resolution))}",
        )
    if values.dtype.kind == "f" and not (values == np.floor(values)).all():
        raise option_error(OPTION, f"{name} has numbers that are not whole, and labels are")
    return label_maps(name, values)


def label_maps(name: str, values: np.ndarray[Any, Any]) -> Paired:
    """Return label maps (n, h, w) of whole numbers as an input of categories."""
    levels = np.unique(values)
    if not 2 <= len(levels) <= MOST_CATEGORIES or levels[0] < 0 or levels[-1] > 65535:
        raise InputError(
            f"{name} has {len(levels):,} different labels from {levels[0]} to {levels[-1]}: label maps have 2 to "
            f"{MOST_CATEGORIES} of 16 bits",
            option=OPTION,
        )
    codec = {"dtype": "uint16", "low": 0.0, "high": 65535.0}
    about = PairedInput(name, 1, codec, tuple(int(level) for level in levels))
    return Paired(about, torch.from_numpy(values.astype(np.uint16)[:, None]))
