"""Input images that belong to the images of a data set, such as low resolutions, other contrasts or label maps.

A model of pairs is shown the inputs as more channels of what it denoises: cut by the same windows, with a one that says
that an input is given, and beside it a small copy of the whole input, so that a crop knows what lies around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated as Float, Annotated as Shaped, Any, ClassVar

import torch
from torch import Tensor

from patch_diffusion.data.codec import PixelCodec

SMALL_SHARE = 4
"""The number of times that the small copy of an input is smaller than the input."""


@dataclass(frozen=True)
class PairedInput:
    """One input of a model of pairs: images of some channels and values, or label maps of some categories.

    >>> maps = PairedInput("labels", 1, {"dtype": "uint8", "low": 0.0, "high": 255.0}, categories=(0, 7))
    >>> maps.encode(torch.tensor([[[[7, 0]]]], dtype=torch.uint8))[0, :, 0]
    tensor([[0., 1.],
            [1., 0.]])
    """

    # As of `Strict`, which an export does not carry.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}

    name: str
    channels: int
    codec: dict[str, Any]
    categories: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """The number of channels that show it to a network, besides the one that says that it is given."""
        return len(self.categories) or self.channels

    def encode(self, pixels: Shaped[Tensor, "n c *shape"]) -> Float[Tensor, "n width *shape"]:
        """Return what a network is shown of pixels: values from -1 to 1, or a one in the channel of each category."""
        if not self.categories:
            return PixelCodec(**self.codec).encode(pixels)
        known = torch.tensor(self.categories, device=pixels.device).view(1, -1, *[1] * (pixels.ndim - 2))
        return (pixels.to(torch.int32) == known).float()


@dataclass(frozen=True, eq=False)
class Paired:
    """An input of all images of a set: ``pixels`` (rows, c, h, w), and which of them are there, (rows,); None: all.

    ``file`` is the file that pixels are mapped from, if they are.
    """

    about: PairedInput
    pixels: Shaped[Tensor, "rows c h w"]
    there: Tensor | None = None
    file: Path | None = None

    def known_as(self, about: PairedInput) -> Paired:
        """Return the input with the values and categories that a model knows it by."""
        return replace(self, about=about)


def channels_of(inputs: Sequence[PairedInput]) -> int:
    """Return the number of channels by which a network is shown some inputs, with their small copies."""
    return sum(2 * each.width + 1 for each in inputs)


def shown_as(
    encoded: Sequence[Float[Tensor, "n width *shape"]], given: Float[Tensor, "n inputs"]
) -> Float[Tensor, "n channels *shape"]:
    """Return the channels that show crops of inputs to a network: what each encodes to, and whether it is given.

    Args:
        encoded: the pixels of each input, see `PairedInput.encode`.
        given: 1 for each input of an image that is given, else 0; what is not given is zeros.
    """
    shown = []
    for each, mask in zip(encoded, given.unbind(dim=1), strict=True):
        mask = mask.view(-1, *[1] * (each.ndim - 1))
        shown += [each * mask, mask.expand(-1, 1, *each.shape[2:])]
    return torch.cat(shown, dim=1)


def around_of(
    encoded: Sequence[Float[Tensor, "n width *small_shape"]], given: Float[Tensor, "n inputs"]
) -> Float[Tensor, "n channels *small_shape"]:
    """Return small copies of whole inputs as a network is shown them; zeros of those that are not given."""
    pairs = zip(encoded, given.unbind(dim=1), strict=True)
    return torch.cat([each * mask.view(-1, *[1] * (each.ndim - 1)) for each, mask in pairs], dim=1)


def small_side(resolution: Sequence[int]) -> int:
    """Return the shorter side of the small copies of inputs of this height and width."""
    return max(min(resolution) // SMALL_SHARE, 1)
