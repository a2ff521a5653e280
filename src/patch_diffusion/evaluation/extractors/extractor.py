"""The interface of feature extractors: any callable from images to features, with a name and identifying settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from patch_diffusion.errors import InputError


@dataclass(frozen=True)
class Extractor:
    """A function from images to features, by which sets of images are compared.

    Args:
        name: the name that is reported with metrics of its features.
        function: maps uint8 images (n, c, h, w) to features (n, d) of any float dtype.
        settings: everything that the features depend on, as JSON can store it, such as a digest of the weights; numbers
            are comparable if their settings agree. None if unknown; then the features are not cached on disk.
        channels: the channels of the images it takes; others are converted, see `conversion`. None: any number.
        note: a note for the user on how to read these metrics.

    >>> means = Extractor("channel means", lambda images: images.float().mean(dim=(2, 3)))
    >>> means(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape
    torch.Size([2, 3])
    """

    name: str
    function: Callable[[Tensor], Tensor]
    settings: Mapping[str, Any] | None = None
    channels: int | None = 3
    note: str = ""

    def __call__(self, images: Tensor) -> Tensor:
        """Compute the features (n, d), float32 on the CPU, of uint8 images (n, c, h, w).

        Raises:
            InputError: the images do not suit the extractor, or its features have a wrong shape or are not finite.
        """
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise InputError(
                f"features are made of uint8 images (n, c, h, w), not {images.dtype} {tuple(images.shape)}"
            )
        with torch.inference_mode():
            found = self.function(with_channels(images, self.channels, self.name))
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images):
            what = f"{tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise InputError(f"the extractor '{self.name}' must make ({len(images)}, d) features, and made {what}")
        features = found.to("cpu", torch.float32)
        broken = ~features.isfinite().all(dim=1)
        if broken.any():
            raise InputError(
                f"the extractor '{self.name}' made features that are not finite numbers of {int(broken.sum())} of "
                f"{len(images)} images: its weights are damaged, or it does not suit these images"
            )
        return features


def as_extractor(function: Extractor | Callable[[Tensor], Tensor]) -> Extractor:
    """Wrap a callable as an extractor, taking its attributes ``name``, ``settings`` and ``channels`` if it has them."""
    if isinstance(function, Extractor):
        return function
    name = getattr(function, "name", None) or getattr(function, "__qualname__", type(function).__name__)
    return Extractor(
        str(name), function, getattr(function, "settings", None), channels=getattr(function, "channels", None)
    )


def conversion(channels: int, wanted: int | None) -> str:
    """Return a phrase on how images are converted to the channels of an extractor; an empty string if not at all."""
    if wanted is None or channels == wanted:
        return ""
    if channels == 1:
        return f"images of 1 channel are repeated to {wanted}"
    if channels == 4 and wanted == 3:
        return "images of 4 channels are laid over grey"
    return f"images of {channels} channels cannot become {wanted}"


def with_channels(images: Tensor, wanted: int | None, name: str) -> Tensor:
    """Convert images (n, c, h, w) to the channels that an extractor takes, as `conversion` describes."""
    channels = images.shape[1]
    if not conversion(channels, wanted):
        return images
    assert wanted is not None
    if channels == 1:
        return images.expand(-1, wanted, -1, -1)
    if channels == 4 and wanted == 3:
        opacity = images[:, 3:].float() / 255
        return (images[:, :3] * opacity + 128 * (1 - opacity)).round().to(torch.uint8)
    raise InputError(
        f"the extractor '{name}' takes images of {wanted} channels, not {channels}: take --extractor random, which "
        "takes any"
    )
