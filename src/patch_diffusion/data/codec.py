"""Codecs, which map stored values, such as 8-bit pixels, to model space (-1 to 1 for pixels) and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from patch_diffusion.errors import InputError, NotFiniteError, option_error

DTYPES = {"uint8": torch.uint8, "uint16": torch.uint16, "float32": torch.float32}
_LARGEST = {"uint8": 255.0, "uint16": 65535.0}


class Codec(Protocol):
    """The interface of codecs, which map stored pixels or latents to model space (about -1 to 1) and back to pixels."""

    @property
    def dtype(self) -> str:
        """The dtype of the stored values."""
        ...

    @property
    def posterior(self) -> bool:
        """True if `encode` uses its noise to sample latents from a stored posterior; false if it is deterministic."""
        ...

    @property
    def can_decode(self) -> bool:
        """True if `decode` has everything it needs, such as the autoencoder of latents."""
        ...

    def encode(self, pixels: Tensor, noise: Tensor | None = None, /) -> Tensor:
        """Map stored values to model space, float32."""
        ...

    def decode(self, images: Tensor) -> Tensor:
        """Map images in model space to pixels; raise `NotFiniteError` if some hold NaN or infinity."""
        ...

    def decode_with_range(self, images: Tensor) -> tuple[Tensor, tuple[float, float]]:
        """Map images in model space to pixels; return these and the pixel values to display as black and as white."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """Return the codec's settings as a dict that JSON can store."""
        ...


def check_finite(images: Tensor) -> None:
    """Raise `NotFiniteError` if some of n made images (n, ...) hold NaN or infinity."""
    finite = images.flatten(1).isfinite().all(dim=1).tolist()
    if not all(finite):
        raise NotFiniteError.of(finite)


@dataclass(frozen=True)
class PixelCodec:
    """A codec of pixels, which maps values from ``low`` to ``high`` linearly to -1 to 1 in model space.

    Args:
        dtype: the dtype of the pixels, "uint8", "uint16" or "float32".
        low, high: the values that become -1 and 1; by default 0 and the dtype's largest value. Floats need both.

    >>> PixelCodec("uint16", 0, 4095).encode(torch.full((1, 1, 2, 2), 4095).to(torch.uint16)).max()
    tensor(1.)
    """

    # As `records.Strict` has it, which no export carries.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}

    dtype: str = "uint8"
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"pixels are {', '.join(DTYPES)}, not {self.dtype}")
        if self.dtype == "float32" and (self.low is None or self.high is None):
            raise InputError("the range of float pixels must be given: low and high")
        largest = _LARGEST.get(self.dtype, 1.0)
        object.__setattr__(self, "low", 0.0 if self.low is None else float(self.low))
        object.__setattr__(self, "high", largest if self.high is None else float(self.high))
        if not self.range[0] < self.range[1]:
            raise option_error("data.range", f"goes from a lower to a higher value, not from {self.low} to {self.high}")

    @property
    def range(self) -> tuple[float, float]:
        """The pixel values that become -1 and 1 in model space."""
        assert self.low is not None and self.high is not None
        return self.low, self.high

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map pixels (n, c, h, w) to float32, [low, high] to [-1, 1]. It is deterministic and ignores ``noise``."""
        low, high = self.range
        return (pixels.float() - low) / ((high - low) / 2) - 1

    def decode(self, images: Tensor) -> Tensor:
        """Map model space to pixels. Integer pixels are rounded and clipped to [low, high]; floats are not clipped."""
        check_finite(images)  # whole numbers would hide it
        low, high = self.range
        values = (images + 1) * ((high - low) / 2) + low
        if self.dtype != "float32":  # an integer dtype may hold less than the range, and would wrap around
            values = values.round().clamp(max(low, 0.0), min(high, _LARGEST[self.dtype]))
        on_host = self.dtype == "uint16" and values.device.type == "mps"  # where not every torch has that type
        return (values.cpu() if on_host else values).to(DTYPES[self.dtype])

    def decode_with_range(self, images: Tensor) -> tuple[Tensor, tuple[float, float]]:
        """Map images in model space to pixels; return these and the pixel values to display as black and as white."""
        return self.decode(images), self.range

    @property
    def posterior(self) -> bool:
        """False, since encoding pixels is deterministic and takes no noise."""
        return False

    @property
    def can_decode(self) -> bool:
        """True, since decoding pixels needs no autoencoder."""
        return True

    def as_dict(self) -> dict[str, Any]:
        """Return the dtype and value range as a dict that JSON can store."""
        return {"dtype": self.dtype, "low": self.range[0], "high": self.range[1]}
