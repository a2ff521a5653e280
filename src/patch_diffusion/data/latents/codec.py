"""The codec of latents, which maps them to model space, and model space to pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patch_diffusion.data.codec import PixelCodec, check_finite
from patch_diffusion.data.latents.autoencoder import Autoencoder
from patch_diffusion.errors import InputError
from patch_diffusion.files import user_path
from patch_diffusion.records import Strict, check_limits, in_short, record_of
from patch_diffusion.transfer import to_device

STANDARD_DEVIATION = 0.5
"""The standard deviation of latent channels in model space, about that of pixels, so that noise levels fit both."""


@dataclass(frozen=True)
class LatentCodec(Strict):
    """A codec that maps stored latents to model space, and model space to pixels by the autoencoder's decoder.

    In model space each channel has mean 0 and standard deviation 0.5 over the data, whatever the autoencoder.

    Args:
        mean, deviation: mean and standard deviation of each latent channel over the data.
        posterior: true if the standard deviations of the posterior are stored after the means.
        factor: pixels per latent, along each axis.
        vae: folder of the autoencoder, needed for decoding only.
        digest: digest of that autoencoder; None accepts any whose latents have these channels and this factor, for
            example one with a fine-tuned decoder.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    posterior: bool
    factor: int
    vae: str
    digest: str | None = None

    @property
    def dtype(self) -> str:
        """The dtype of latents, which are continuous values."""
        return "float32"

    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map stored latents (n, stored channels, h, w) to model space, float32.

        Args:
            stored: latents of whole images or crops of them.
            noise: standard normal noise (n, c, h, w) that samples from the posterior; None takes its mean.
        """
        latents = stored.float()
        if self.posterior:
            latents, spread = latents.chunk(2, dim=1)
            latents = latents if noise is None else latents + spread * noise
        mean, factor = self._whitening(latents)
        return (latents - mean) / factor

    def latents(self, images: Tensor) -> Tensor:
        """Map model space to latents at the autoencoder's own scale, float32, as its decoder takes them."""
        mean, factor = self._whitening(images)
        return (images * factor + mean).float()

    def decode(self, images: Tensor) -> Tensor:
        """Decode model space (n, c, h, w) to uint8 pixels (n, c', factor h, factor w), on the device of the images.

        Raises:
            InputError: the autoencoder is missing or is a different one; the error message says which one is needed.
            NotFiniteError: some images hold NaN or infinity, as latents or decoded.
        """
        check_finite(images)
        pixels = (self.autoencoder.decode(self.latents(images)) + 1) * 127.5
        check_finite(pixels)
        return pixels.round().clamp(0, 255).to(torch.uint8)

    def decode_with_range(self, images: Tensor) -> tuple[Tensor, tuple[float, float]]:
        """Return decoded pixels (latents without the autoencoder), and the values to display as black and as white."""
        if self.can_decode:
            return self.decode(images), (0, 255)
        # All images are displayed with the same range, so that they can be compared by eye.
        around = list(zip(self.mean, self.deviation, strict=True))
        low, high = min(mean - 3 * spread for mean, spread in around), max(mean + 3 * spread for mean, spread in around)
        check_finite(images)
        return self.latents(images), (low, high)

    @property
    def can_decode(self) -> bool:
        """True if the folder of the autoencoder exists."""
        return Path(self.vae).is_dir()

    def decoded_by(self, vae: str | Path) -> LatentCodec:
        """Return the same codec with the autoencoder in another folder, whatever its weights, to decode the latents."""
        return replace(self, vae=str(user_path(vae).resolve()), digest=None)

    def as_dict(self) -> dict[str, Any]:
        """Return the codec's settings as a dict that JSON can store."""
        return {"kind": "latents", **asdict(self), "mean": list(self.mean), "deviation": list(self.deviation)}

    def _whitening(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the scale of each latent channel, (c, 1, 1), which standardize latents to model space."""
        mean, deviation = (
            to_device(torch.tensor(numbers, dtype=like.dtype), like.device)[:, None, None]
            for numbers in (self.mean, self.deviation)
        )
        return mean, deviation / STANDARD_DEVIATION

    @cached_property
    def autoencoder(self) -> Autoencoder:
        """The autoencoder that decodes the latents; an `InputError` if it is missing or not the one that made them."""
        if not self.can_decode:
            raise InputError(
                f"latents are decoded by the VAE that made them, but {self.vae} is not there: bring that folder "
                "back, or say where it is now (vae)"
            )
        vae = Autoencoder(self.vae)
        if (vae.latent_channels, vae.factor) != (len(self.mean), self.factor):
            raise InputError(
                f"the VAE in {self.vae} has {vae.latent_channels} channels at 1/{vae.factor} of the resolution, but "
                f"these latents have {len(self.mean)} at 1/{self.factor}"
            )
        if self.digest not in (None, vae.digest):
            raise InputError(f"the VAE in {self.vae} is not the one that made these latents: its weights differ")
        return vae


_LIMITS = {"factor": (1, 1024), "mean": (-1e6, 1e6), "deviation": (1e-6, 1e6)}


def codec_of(facts: Mapping[str, Any], where: str = "the codec", name: str = "") -> PixelCodec | LatentCodec:
    """Make the codec of pixels or latents from the dict of its settings, as ``as_dict`` returns it.

    Raises:
        InputError: the settings are not those of a codec; ``where`` and ``name`` say of which, see `record_of`.
    """
    facts = dict(facts)
    kind = facts.pop("kind", "pixels")
    if kind == "pixels":
        return record_of(PixelCodec, facts, where, name)
    if kind != "latents":
        raise InputError(f"{where}: a codec is of pixels or latents, not {in_short(kind)}")
    codec = record_of(LatentCodec, facts, where, name)
    check_limits(vars(codec), _LIMITS, where)
    if not codec.mean or len(codec.mean) != len(codec.deviation):
        raise InputError(f"{where}: a codec of latents has a mean and a deviation of each channel")
    return codec
