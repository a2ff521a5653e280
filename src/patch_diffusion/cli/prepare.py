"""The command ``patch-diffusion prepare``: a zip of images, or latents, to train on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from patch_diffusion.cli.verb import DataName, FilePath, Json, Verb
from patch_diffusion.config import Data, Layout, Mode
from patch_diffusion.data.named import check_labels
from patch_diffusion.errors import InputError, counted


@dataclass(frozen=True)
class Prepare(Verb):
    """Convert a data set into a zip of checked images of one size.

    patch-diffusion prepare photos/ photos-64.zip --resolution 64

    Leaves out broken images, small ones and duplicates, and lists them in a report.

    If it is stopped, the same command continues from there.
    """

    source: Annotated[Positional[DataName], arg(metavar="DATA")]
    """Images to convert: a folder, a zip, an array or another source, as for train."""
    out: Annotated[Positional[Path], arg(metavar="OUT.zip")]
    """Zip file to write, in the layout of StyleGAN and EDM; a folder for latents."""
    resolution: Annotated[int | tuple[int, int] | None, arg(name="data.resolution", aliases=["--resolution"])] = None
    """Size that images are resized to, in pixels: one number for squares, or height and width. Default: the images' own
    size, if all have the same."""
    fit: Annotated[Literal["crop", "stretch"], arg(name="data.fit")] = "crop"
    """Handling of other aspect ratios. crop: cut off the edges. stretch: distort."""
    mode: Annotated[Mode, arg(name="data.mode")] = "auto"
    """Channels of the images: L is grey, RGBA has transparency. auto: L if all files are grey, RGBA if all have
    transparency, else RGB."""
    classes: Annotated[bool | None, arg(name="data.classes")] = None
    """Keep class labels: those of the data, or else the names of the sub-folders. Default: True if the data has labels,
    or if at least two sub-folders hold all images."""
    labels: Annotated[str | None, arg(name="data.labels")] = None
    """Source of the class labels: a CSV file with a first line file,label, or the name of an array or column."""
    group: Annotated[str | None, arg(name="data.group")] = None
    """Groups of images to keep, which training holds out together: folder, a column or a pattern, as for train."""
    key: Annotated[str | None, arg(name="data.key")] = None
    """Name of the images in the data: an array in a file, a column of a table, or a file ending in shards."""
    layout: Annotated[Layout, arg(name="data.layout")] = "auto"
    """Position of the channel axis in arrays. auto: detected from the shape."""
    keep_duplicates: bool = False
    """Keep images whose pixels are identical to those of another image."""
    latents: Annotated[FilePath | None, arg(metavar="VAE")] = None
    """Autoencoder of diffusers (AutoencoderKL or AutoencoderDC) to make latents with instead of a zip, as a folder."""
    flips: bool = False
    """Make latents of the mirrored images, too."""
    json: Json = None
    """Print the report as JSON on stdout, or write it to a file."""

    def check_given(self) -> None:
        """Raise an `InputError` if an option cannot be right."""
        super().check_given()
        check_labels(self.labels, self.source)

    def run(self) -> dict[str, Any]:
        """Write the zip of images and its report, or the folder of latents; return the report as a dict."""
        if self.latents is not None:
            return self._make_latents(self.latents)
        if self.flips:
            raise InputError("--flips is for --latents: pictures are flipped in training, by data.augment.flip")
        from patch_diffusion.data.preparation.prepare import prepare_images

        return prepare_images(self._options(), self.out, keep_duplicates=self.keep_duplicates, show=True)

    def _options(self) -> Data:
        asked = ("source", "resolution", "fit", "mode", "classes", "labels", "group", "key", "layout")
        return Data(**{name: getattr(self, name) for name in asked})

    def _make_latents(self, vae: Path) -> dict[str, Any]:
        from patch_diffusion.data.latents.folder import encode_latents
        from patch_diffusion.data.preparation.prepare import keeping_classes
        from patch_diffusion.data.sources import open_data
        from patch_diffusion.devices import choose_device

        if self.keep_duplicates:
            raise InputError("--keep-duplicates is for pictures: latents are made of all images")
        images = open_data(keeping_classes(self._options()), show=True)
        latents = encode_latents(images, vae, self.out, flips=self.flips, device=choose_device(), show=True)
        return {"images": len(latents), "resolution": list(latents.resolution), "channels": latents.channels}

    def message(self, result: dict[str, Any]) -> str:
        """Return the message after preparation: how many images are where, and how many were left out."""
        height, width = result["resolution"]
        if self.latents is not None:
            train = f"patch-diffusion train {self.out} --out RUN"
            channels = result["channels"]
            return f"{result['images']:,} latents of {height}x{width}x{channels} are in {self.out}; to train: {train}"
        num_classes = result["num_classes"]
        classes = f", {num_classes} classes" if num_classes else ""
        lines = [*result["notes"], f"{result['images']:,} images of {height}x{width}{classes} are in {self.out}"]
        dropped = result["dropped"]
        if dropped:
            first = f"{dropped[0]['file']}: {dropped[0]['dropped']}"
            lines.append(
                f"{len(dropped):,} of {counted(result['files'], 'file')} left out (first: {first}); they are listed in "
                f"{self.out.with_suffix('.report.json')}"
            )
        return "\n".join(lines)

    def after_interrupt(self) -> str:
        """Return the text that follows "interrupted" after Ctrl-C: whether the same command continues."""
        return "; the same command goes on from here" if self.out.with_name(self.out.name + ".partial").exists() else ""
