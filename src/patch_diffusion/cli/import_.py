"""``patch-diffusion import``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

import patch_diffusion
from patch_diffusion.cli.parsing import parse


@dataclass(frozen=True)
class Import:
    """Make a run of a published EDM or Patch-Diffusion network.

    patch-diffusion import edm-cifar10-32x32-cond-vp.pkl --out runs/cifar10

    The file is read as data: nothing in it is run, and one that asks for more than a network needs is refused.
    """

    source: Annotated[Positional[Path], arg(metavar="FILE")]
    """The published .pkl, or its tensors by their published names as .safetensors or .pt."""
    out: Annotated[Path, arg(metavar="RUN")]
    """The run folder, new or empty."""
    json: bool = False
    """Print what was recognised as JSON on stdout."""

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Import:
        """From words."""
        return parse(cls, "import", arguments)

    def run(self) -> dict[str, Any]:
        """Read the network and write the run."""
        return patch_diffusion.import_model(self.source, self.out)

    def message(self, result: dict[str, Any]) -> str:
        """What the user is told at the end."""
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

    def after_interrupt(self) -> str:
        """What the user is told after Ctrl-C."""
        return ""
