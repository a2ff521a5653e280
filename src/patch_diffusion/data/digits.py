"""The built-in data set of handwritten digits."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources

import numpy as np
import torch
from PIL import Image

from patch_diffusion.config import Data
from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.data.images import ImageSet
from patch_diffusion.data.keys import keys_of_rows
from patch_diffusion.data.reading.sizes import resolution_of


def read_digits(options: Data) -> ImageSet:
    """Load the test set of Alpaydin and Kaynak's Optical Recognition of Handwritten Digits, enlarged from 8 x 8."""
    with resources.files("patch_diffusion.data").joinpath("digits.npz").open("rb") as stream, np.load(stream) as arrays:
        small, labels = arrays["images"], arrays["labels"].astype(np.int64)
    height, width = resolution_of(options) or (16, 16)
    mode = "L" if options.mode == "auto" else options.mode
    pixels = [
        np.asarray(
            Image.fromarray((digit * (255 / 16)).round().astype(np.uint8))
            .resize((width, height), Image.Resampling.BICUBIC)
            .convert(mode)
        ).reshape(height, width, -1)
        for digit in small
    ]
    images = ImageSet(
        torch.from_numpy(np.stack(pixels).transpose(0, 3, 1, 2).copy()),
        options=options,
        codec=PixelCodec("uint8", *(options.range or ())),
        keys=keys_of_rows(small),
    )
    if options.classes is False:
        return images
    return replace(images, labels=torch.from_numpy(labels), class_names=tuple("0123456789"))
