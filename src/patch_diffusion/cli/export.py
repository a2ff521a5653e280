"""``patch-diffusion export``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

import patch_diffusion
from patch_diffusion.cli.parsing import parse


@dataclass(frozen=True)
class Export:
    """Write the model of a run for other tools, with a model card.

    patch-diffusion export runs/photos --to diffusers --out photos-model
    """

    source: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder, or one of its checkpoints."""
    to: Literal["diffusers", "onnx", "torch"]
    """diffusers: a folder that it opens without patch_diffusion and that makes the pictures of sample; onnx and torch:
    the denoiser as a graph, for any number of images of one shape."""
    out: Annotated[Path, arg(metavar="DIR")]
    """The folder, new or empty."""
    checkpoint: int | Literal["best"] | None = None
    """The step of a checkpoint, or the best, see --checkpoint-by of train. None: the newest weights."""
    ema_length: Annotated[float | None, arg(metavar="0.1")] = None
    """Average the weights over this share of the training, where --ema.lengths kept what it takes."""
    vae: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """For a pipeline of latents: the autoencoder to carry, in place of the one that made them."""
    resolution: int | tuple[int, int] | None = None
    """Side, or height and width. None: that of the training images. A pipeline makes others too, a graph does not."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """In which a pipeline's weights are stored. None: float32."""
    solver: Annotated[str | None, arg(metavar="NAME")] = None
    """The solver of a pipeline, as for sample. None: heun."""
    schedule: Annotated[str | None, arg(metavar="NAME")] = None
    """The noise levels of a pipeline, as for sample. None: karras."""
    license: Annotated[str | None, arg(metavar="apache-2.0")] = None
    """Under which you publish it, for the model card."""
    evaluation: Annotated[Path | None, arg(metavar="FILE.json")] = None
    """Figures for the model card: what evaluate --json wrote."""
    push: Annotated[str | None, arg(metavar="OWNER/NAME")] = None
    """Then put the folder into this repository of the Hugging Face hub, private where it is new."""
    public: bool = False
    """Make that repository public."""
    json: bool = False
    """Print the result as JSON on stdout."""

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Export:
        """From words."""
        return parse(cls, "export", arguments)

    def run(self) -> dict[str, Any]:
        """Write the folder, and push it where that is asked for."""
        return patch_diffusion.export_model(
            self.source,
            self.out,
            to=self.to,
            checkpoint=self.checkpoint,
            ema_length=self.ema_length,
            vae=self.vae,
            resolution=self.resolution,
            dtype=self.dtype,
            solver=self.solver,
            schedule=self.schedule,
            license=self.license,
            evaluation=self.evaluation,
            push_to=self.push,
            public=self.public,
        )

    def message(self, result: dict[str, Any]) -> str:
        """What the user is told at the end."""
        if self.to == "diffusers":
            how = f'DiffusionPipeline.from_pretrained("{self.out}", trust_remote_code=True) opens it, and runs its code'
        else:
            how = f"it gives what the model gives to within {result['difference']:.1e}"
        lines = [f"the model is in {self.out}: {how}", f"how to use it, and its card: {self.out / 'README.md'}"]
        if self.license is None:
            lines.append("no licence is given: others may use what you publish only with one (--license)")
        lines += result["notes"]
        if result["pushed"]:
            lines.append(f"pushed to {result['pushed']}")
        return "\n".join(lines)

    def after_interrupt(self) -> str:
        """What the user is told after Ctrl-C."""
        return "; nothing was written" if not self.out.exists() else ""
