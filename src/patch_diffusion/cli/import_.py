"""The command ``patch-diffusion import``: a run from an EDM or Patch-Diffusion checkpoint file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

import patch_diffusion
from patch_diffusion.cli.verb import FilePath, Json, Verb


@dataclass(frozen=True)
class Import(Verb):
    """Make a run from a published EDM or Patch-Diffusion network.

    patch-diffusion import edm-cifar10-32x32-cond-vp.pkl --out runs/cifar10

    The file is read as data: no code in it is run, and a file that asks for more than a network needs is refused.
    """

    source: Annotated[Positional[FilePath], arg(metavar="FILE")]
    """Published .pkl file, or its tensors under their published names as .safetensors or .pt."""
    out: Annotated[Path, arg(metavar="RUN")]
    """Run folder to write, new or empty."""
    json: Json = None
    """Print the recognised network as JSON on stdout, or write it to a file."""

    def run(self) -> dict[str, Any]:
        """Read the published checkpoint file (EDM or Patch-Diffusion) and write it as a run folder."""
        return patch_diffusion.import_model(self.source, self.out)

    def message(self, result: dict[str, Any]) -> str:
        """Return the message after the import: the recognised network, and how to sample from it."""
        model, options = result["model"], result["options"]
        height, width = model["resolution"]
        classes = f"{model['num_classes']} classes" if model["num_classes"] else "no classes"
        kind, process = options["network"]["kind"], options["noise"]["process"]
        coords = "with" if result["coords"] else "without"
        return (
            f"recognised: {kind} of {model['parameters']:,} parameters, {process} preconditioning, "
            f"{coords} coordinates, images of {height}x{width}x{model['image_channels']}, {classes}\n"
            f"the model is in {self.out}; to sample from it: patch-diffusion sample {self.out} --out pictures"
        )
