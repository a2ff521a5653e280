"""``patch-diffusion prepare``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

import patch_diffusion
from patch_diffusion.cli.parsing import parse
from patch_diffusion.config import Data, Layout, Mode
from patch_diffusion.errors import InputError


@dataclass(frozen=True)
class Prepare:
    """Make one zip of checked pictures of one size from a data set.

    patch-diffusion prepare photos/ photos-64.zip --resolution 64

    Leaves out what is broken, too small or there already, and reports it.

    Called again after it was stopped, it goes on from there.
    """

    source: Annotated[Positional[str], arg(metavar="DATA")]
    """What the images are read from, as in training."""
    out: Annotated[Positional[Path], arg(metavar="OUT.zip")]
    """The zip, in the layout of StyleGAN and EDM; a folder for latents."""
    resolution: int | tuple[int, int] | None = None
    """Side, or height and width, that images are brought to. None: as they are, all the same."""
    fit: Literal["crop", "stretch"] = "crop"
    """How: crop, centred, to the shape, or stretch to it."""
    mode: Mode = "auto"
    """Channels to convert to. auto: L where all are grey, RGBA where all are transparent, else RGB."""
    classes: bool | None = None
    """Keep classes: those of the data or the names of sub-folders. None: those of the data, where it has any."""
    labels: str | None = None
    """Where the classes are: a CSV of file,label, or the name of an array or a column."""
    key: str | None = None
    """Where the images are: the name of an array in a file, of a column, or the ending of images in shards."""
    layout: Layout = "auto"
    """Where the channels of arrays are. auto: as their shape tells."""
    keep_duplicates: bool = False
    """Keep images whose pixels are those of another."""
    latents: Annotated[Path | None, arg(metavar="VAE")] = None
    """Make latents by the autoencoder in this folder (AutoencoderKL or AutoencoderDC of diffusers), to train on."""
    flips: bool = False
    """Make the latents of the mirrored images too."""
    json: bool = False
    """Print the report as JSON on stdout."""

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Prepare:
        """From words."""
        return parse(cls, "prepare", arguments)

    def run(self) -> dict[str, Any]:
        """Write the zip and its report."""
        if self.latents is not None:
            return self._make_latents(self.latents)
        if self.flips:
            raise InputError("--flips is for --latents: pictures are flipped in training, by data.augment.flip")
        from patch_diffusion.data.preparation.prepare import prepare_images

        asked = ("source", "resolution", "fit", "mode", "classes", "labels", "key", "layout")
        options = Data(**{name: getattr(self, name) for name in asked})
        return prepare_images(options, self.out, keep_duplicates=self.keep_duplicates, show=True)

    def _make_latents(self, vae: Path) -> dict[str, Any]:
        from patch_diffusion.data.latents.folder import encode_latents
        from patch_diffusion.devices import choose_device

        if self.keep_duplicates:
            raise InputError("--keep-duplicates is for pictures: latents are made of all images")
        asked = ("resolution", "fit", "mode", "classes", "labels", "key", "layout")
        given = {name: getattr(self, name) for name in asked}
        images = patch_diffusion.open_images(self.source, **given, show=True)
        latents = encode_latents(images, vae, self.out, flips=self.flips, device=choose_device(), show=True)
        return {"images": len(latents), "resolution": list(latents.resolution), "channels": latents.channels}

    def message(self, result: dict[str, Any]) -> str:
        """What the user is told at the end."""
        height, width = result["resolution"]
        if self.latents is not None:
            train = f"patch-diffusion train {self.out} --patches.sizes 1/2=1"
            channels = result["channels"]
            return f"{result['images']:,} latents of {height}x{width}x{channels} are in {self.out}; to train: {train}"
        num_classes = result["num_classes"]
        classes = f", {num_classes} classes" if num_classes else ""
        lines = [*result["notes"], f"{result['images']:,} images of {height}x{width}{classes} are in {self.out}"]
        dropped = result["dropped"]
        if dropped:
            first = f"{dropped[0]['file']}: {dropped[0]['dropped']}"
            lines.append(
                f"{len(dropped):,} of {result['files']:,} files were left out (first: {first}); all of them are in "
                f"{self.out.with_suffix('.report.json')}"
            )
        return "\n".join(lines)

    def after_interrupt(self) -> str:
        """What the user is told after Ctrl-C."""
        return "; the same command goes on from here" if self.out.with_name(self.out.name + ".partial").exists() else ""
