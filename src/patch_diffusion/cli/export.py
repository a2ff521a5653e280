"""The command ``patch-diffusion export``: a model for other tools."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

import patch_diffusion
from patch_diffusion.cli.verb import FilePath, Json, RunPath, Verb


@dataclass(frozen=True)
class Export(Verb):
    """Write the model of a run for other tools, with a model card.

    patch-diffusion export runs/photos --to diffusers --out photos-model
    """

    source: Annotated[Positional[RunPath], arg(metavar="RUN")]
    """The run folder, or one of its checkpoints."""
    to: Literal["diffusers", "onnx", "torch"]
    """diffusers: a folder that diffusers opens without patch_diffusion, for the same pictures as sample; onnx, torch:
    the denoiser as a graph, for any number of images of one shape."""
    out: Annotated[Path, arg(metavar="DIR")]
    """The folder to write, new or empty."""
    checkpoint: int | Literal["best"] | None = None
    """The step of a checkpoint, or best, see --checkpoint-by of train. None: the newest weights."""
    ema_length: Annotated[float | None, arg(metavar="0.1")] = None
    """Average the weights over this share of the training; needs a run that was trained with --ema.lengths."""
    vae: Annotated[FilePath | None, arg(metavar="FOLDER")] = None
    """For a pipeline of latents: the autoencoder to include, in place of the one that made the latents."""
    resolution: int | tuple[int, int] | None = None
    """Side, or height and width. None: as the training images. A pipeline can make other sizes too, a graph cannot."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Number format in which a pipeline's weights are stored. None: float32."""
    solver: Annotated[str | None, arg(metavar="NAME")] = None
    """The solver of a pipeline, as for sample. None: heun."""
    schedule: Annotated[str | None, arg(metavar="NAME")] = None
    """The noise levels of a pipeline, as for sample. None: karras."""
    license: Annotated[str | None, arg(metavar="apache-2.0")] = None
    """The licence under which you publish the model, for the model card."""
    evaluation: Annotated[FilePath | None, arg(metavar="FILE.json")] = None
    """Metrics for the model card: a file written by evaluate --json."""
    push: Annotated[str | None, arg(metavar="OWNER/NAME")] = None
    """Upload the folder to this repository of the Hugging Face hub, which is made private if it is new."""
    public: bool = False
    """Make the new repository of --push public."""
    json: Json = None
    """Print the result as JSON on stdout, or write it to a file."""

    def run(self) -> dict[str, Any]:
        """Export the model to the folder, and push the folder to the hub if --push is given."""
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
        """Return the message after the export: where the model is, how to use it, and notes."""
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
        """Return the text that follows "interrupted" in the message after Ctrl-C."""
        return "; nothing was written" if not self.out.exists() else ""
