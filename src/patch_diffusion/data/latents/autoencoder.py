"""Autoencoders in the format of diffusers, which encode images to latents and decode them."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from patch_diffusion.errors import InputError, need
from patch_diffusion.files import read_json, user_path

KINDS = {"AutoencoderKL": "block_out_channels", "AutoencoderDC": "encoder_block_out_channels"}
"""The supported autoencoder classes, and the config entry of each that has one number per level."""

_WEIGHTS = "diffusion_pytorch_model"
_PIXELS_AT_ONCE = 2**20


class Autoencoder:
    """An autoencoder that diffusers saved to a folder, as ``config.json`` and safetensors weights, loaded when needed.

    Args:
        folder: the folder of an AutoencoderKL or AutoencoderDC, or of a pipeline with one in its sub-folder ``vae``.

    Attributes:
        kind: the name of its class.
        image_channels, latent_channels: numbers of channels of the images and of the latents.
        factor: pixels per latent, along each axis.
        posterior: true if it encodes to a distribution of latents, as an AutoencoderKL does, and not to latents.

    Raises:
        InputError: the folder has no AutoencoderKL or AutoencoderDC, or no safetensors weights.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder: Path = user_path(folder)
        if (self.folder / "vae" / "config.json").exists():
            self.folder = self.folder / "vae"
        if not (self.folder / "config.json").exists():
            raise InputError(f"there is no VAE at {folder}: give a folder that diffusers saved, with a config.json")
        self._config = read_json(self.folder / "config.json")
        self.kind: str = str(self._config.get("_class_name"))
        if self.kind not in KINDS:
            raise InputError(f"{self.folder} holds a {self.kind}; latents are made by {' or '.join(KINDS)}")
        try:
            self.image_channels: int = self._config["in_channels"]
            self.latent_channels: int = self._config["latent_channels"]
            self.factor: int = 2 ** (len(self._config[KINDS[self.kind]]) - 1)
        except (KeyError, TypeError):
            raise InputError(f"{self.folder / 'config.json'} is not the config of an {self.kind}") from None
        self.posterior: bool = self.kind == "AutoencoderKL"
        files = sorted(self.folder.glob(f"{_WEIGHTS}*.safetensors"))
        # A folder may have weights in several precisions, marked in the file names; full precision has no mark.
        self._variant = min(map(_variant, files), default="")
        self._files = [path for path in files if _variant(path) == self._variant]
        if not files:
            raise InputError(
                f"{self.folder} has no {_WEIGHTS}.safetensors; weights in other formats are not read, because they can "
                "run code: save them with save_pretrained(..., safe_serialization=True)"
            )

    @cached_property
    def digest(self) -> str:
        """A digest of the autoencoder's config and weights, the same wherever its folder is."""
        digest = hashlib.blake2b(digest_size=16)
        architecture = {name: value for name, value in self._config.items() if not name.startswith("_")}
        digest.update(json.dumps([self.kind, architecture], sort_keys=True).encode())
        for path in self._files:
            with path.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
        return digest.hexdigest()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images (n, c, H, W) in [-1, 1] to latents, or to means and then standard deviations of a posterior."""
        module = self._module(images.device)
        if not self.posterior:
            return module.encode(images).latent
        found = module.encode(images).latent_dist
        return torch.cat([found.mean, found.std], dim=1)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (n, c, h, w), at the autoencoder's own scale, to images in about [-1, 1]."""
        module = self._module(latents.device)
        pixels = latents.shape[2] * latents.shape[3] * self.factor**2
        parts = latents.float().split(images_at_once(pixels))
        return torch.cat([module.decode(part).sample for part in parts])

    def save(self, folder: Path) -> None:
        """Save the autoencoder to a folder in the format of diffusers, with its weights in float32."""
        self._module(torch.device("cpu")).save_pretrained(folder)

    def _module(self, device: torch.device) -> Any:
        return self._loaded.to(device)

    @cached_property
    def _loaded(self) -> nn.Module:
        diffusers = need("diffusers", "hub", "the VAE of latents")
        try:
            module = getattr(diffusers, self.kind).from_pretrained(
                self.folder,
                variant=self._variant or None,
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=False,
            )
            return module.float().eval().requires_grad_(False)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"the VAE in {self.folder} cannot be loaded: {' '.join(str(error).split())}") from None


def _variant(path: Path) -> str:
    """Return the variant of a weights file, the "fp16" of ``diffusion_pytorch_model.fp16.safetensors`` or its parts."""
    return path.name.removeprefix(_WEIGHTS).removesuffix(".safetensors").split("-")[0].removeprefix(".")


def images_at_once(pixels: int) -> int:
    """Return how many images, each of ``pixels`` pixels, to encode or decode at a time."""
    return max(1, _PIXELS_AT_ONCE // pixels)
