"""``patch-diffusion prepare``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from patch_diffusion.cli.parsing import parse
from patch_diffusion.config import Data, Layout, Mode


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
    """The zip, in the layout of StyleGAN and EDM."""
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
    json: bool = False
    """Print the report as JSON on stdout."""

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Prepare:
        """From words."""
        return parse(cls, "prepare", arguments)

    def run(self) -> dict[str, Any]:
        """Write the zip and its report."""
        from patch_diffusion.data.prepare import prepare_images

        asked = ("source", "resolution", "fit", "mode", "classes", "labels", "key", "layout")
        options = Data(**{name: getattr(self, name) for name in asked})
        return prepare_images(options, self.out, keep_duplicates=self.keep_duplicates, show=True)

    def message(self, result: dict[str, Any]) -> str:
        """What the user is told at the end."""
        height, width = result["resolution"]
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
