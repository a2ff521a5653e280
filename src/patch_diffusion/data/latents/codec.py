"""Latents in place of images: what brings them to model space, and back to pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.data.latents.autoencoder import Autoencoder
from patch_diffusion.errors import InputError
from patch_diffusion.files import user_path

STANDARD_DEVIATION = 0.5
"""Of each channel in model space, about that of pixels, so that noise levels mean what they mean for pixels."""


@dataclass(frozen=True)
class LatentCodec:
    """Latents as they are stored to model space, and model space to pixels by the autoencoder's decoder.

    In model space each channel has mean 0 and standard deviation 0.5 over the data, whatever the autoencoder.

    Args:
        mean, deviation: of each channel of the latents over the data.
        posterior: whether standard deviations are stored after the means.
        factor: pixels that are one latent, along each axis.
        vae: folder of the autoencoder, needed to decode only.
        digest: of that autoencoder; None takes any that makes latents of such a shape, for example one with a decoder
            that was trained on.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    posterior: bool
    factor: int
    vae: str
    digest: str | None = None

    @property
    def dtype(self) -> str:
        """Latents are numbers without levels."""
        return "float32"

    def encode(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """Stored latents (n, stored channels, h, w) to model space, float32.

        Args:
            stored: whole or cut.
            noise: standard normal numbers (n, c, h, w) that choose from the posterior; its mean where None.
        """
        latents = stored.float()
        if self.posterior:
            latents, spread = latents.chunk(2, dim=1)
            latents = latents if noise is None else latents + spread * noise
        mean, factor = self._whitening(latents)
        return (latents - mean) / factor

    def latents(self, images: Tensor) -> Tensor:
        """Model space to latents as the autoencoder makes them, float32: what any decoder of it takes."""
        mean, factor = self._whitening(images)
        return (images * factor + mean).float()

    def decode(self, images: Tensor) -> Tensor:
        """Model space (n, c, h, w) to uint8 pixels (n, c', factor h, factor w), on the device of the images.

        Raises:
            InputError: the autoencoder is not where it was, or is another; the sentence says which to bring.
        """
        pixels = (self.autoencoder.decode(self.latents(images)) + 1) * 127.5
        return pixels.round().clamp(0, 255).to(torch.uint8)

    def decode_with_range(self, images: Tensor) -> tuple[Tensor, tuple[float, float]]:
        """Pixels, or latents where the autoencoder is not there, and the two values that are shown black and white."""
        if self.can_decode:
            return self.decode(images), (0, 255)
        # The same for all images, which else could not be compared by what can be seen of them.
        around = list(zip(self.mean, self.deviation, strict=True))
        low, high = min(mean - 3 * spread for mean, spread in around), max(mean + 3 * spread for mean, spread in around)
        return self.latents(images), (low, high)

    @property
    def can_decode(self) -> bool:
        """Whether the folder of the autoencoder is there."""
        return Path(self.vae).is_dir()

    def decoded_by(self, vae: str | Path) -> LatentCodec:
        """The same latents, and the autoencoder in another folder to decode them, whatever its weights."""
        return replace(self, vae=str(user_path(vae).resolve()), digest=None)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"kind": "latents", **asdict(self), "mean": list(self.mean), "deviation": list(self.deviation)}

    def _whitening(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and factor of each channel, (c, 1, 1)."""
        mean, deviation = (
            torch.tensor(numbers, dtype=like.dtype).to(like.device, non_blocking=True)[:, None, None]
            for numbers in (self.mean, self.deviation)
        )
        return mean, deviation / STANDARD_DEVIATION

    @cached_property
    def autoencoder(self) -> Autoencoder:
        """What decodes the latents; refused where it is not there or is another."""
        if not self.can_decode:
            raise InputError(
                f"latents become pixels by the VAE that made them, and {self.vae} is not there: bring that folder "
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


def codec_of(facts: Mapping[str, Any]) -> PixelCodec | LatentCodec:
    """The codec whose ``as_dict`` this is."""
    facts = dict(facts)
    if facts.pop("kind", "pixels") == "pixels":
        return PixelCodec(**facts)
    return LatentCodec(**{**facts, "mean": tuple(facts["mean"]), "deviation": tuple(facts["deviation"])})
