"""The command ``patch-diffusion export``: a model for other tools."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

import patch_diffusion
from patch_diffusion.cli.verb import FilePath, Json, ModelPath, Verb
from patch_diffusion.errors import Checked
from patch_diffusion.interop.request import check_request
from patch_diffusion.sampling.options import check_schedule, check_solver


@dataclass(frozen=True)
class Export(Verb):
    """Write the model of a run for other tools, with a model card.

    patch-diffusion export runs/photos --to diffusers --out photos-model
    """

    source: Annotated[Positional[ModelPath], arg(metavar="RUN")]
    """The run folder, or one of its checkpoints."""
    to: Literal["diffusers", "onnx", "torch"]
    """Format to write. diffusers: a folder that diffusers opens without patch_diffusion, and that gives the same images
    as sample. onnx, torch: the denoiser as a graph, for any number of images of one size."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder to write, new or empty."""
    checkpoint: int | Literal["best"] | None = None
    """Step of the checkpoint to export, or best, see --checkpoint-by of train. Default: the newest weights."""
    ema_length: Annotated[float | None, arg(metavar="0.1")] = None
    """Length of the weight average to use, as a share of the training, such as 0.1. It needs a run that was trained
    with --ema.lengths. Default: the average that every run has."""
    vae: Annotated[FilePath | None, arg(metavar="FOLDER")] = None
    """Autoencoder to include in a pipeline of latents, as a folder. Default: the one that made the latents."""
    resolution: int | tuple[int, int] | None = None
    """Size of the images, in pixels: one number for squares, or height and width. A pipeline can make other sizes, too;
    a graph cannot. Default: that of the training images."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Number format of the weights in a pipeline. Default: float32."""
    solver: Annotated[str | None, Checked(check_solver), arg(metavar="NAME")] = None
    """Solver of a pipeline, as for sample. Default: heun, or consistency for tuned runs."""
    schedule: Annotated[str | None, Checked(check_schedule), arg(metavar="NAME")] = None
    """Spacing of the noise levels in a pipeline, as for sample. Default: karras, few for tuned runs, or flow for models
    of noise.process flow. With --solver euler such a pipeline has diffusers' own FlowMatchEulerDiscreteScheduler."""
    license: Annotated[str | None, arg(metavar="apache-2.0")] = None
    """Licence under which you publish the model, for the model card."""
    evaluation: Annotated[FilePath | None, arg(metavar="FILE.json")] = None
    """File with metrics for the model card, written by evaluate --json."""
    push: Annotated[str | None, arg(metavar="OWNER/NAME")] = None
    """Repository of the Hugging Face hub to upload the folder to; a new one is made, and is private."""
    public: bool = False
    """Make the new repository of --push public."""
    json: Json = None
    """Print the result as JSON on stdout, or write it to a file."""

    def check_given(self) -> None:
        """Raise an `InputError` if an option cannot be right."""
        super().check_given()
        check_request(self.out, self.to, license=self.license, push_to=self.push, public=self.public)

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
            call = f'DiffusionPipeline.from_pretrained("{self.out}", trust_remote_code=True)'
            how = f"open it with {call}, which runs its code"
        else:
            how = f"its outputs differ from the model's by at most {result['difference']:.1e}"
        lines = [f"the model is in {self.out}: {how}", f"its model card says how to use it: {self.out / 'README.md'}"]
        if self.license is None:
            lines.append("without a licence nobody else may use the model: give one with --license if you publish it")
        lines += result["notes"]
        if result["pushed"]:
            lines.append(f"pushed to {result['pushed']}")
        return "\n".join(lines)

    def after_interrupt(self) -> str:
        """Return the text that follows "interrupted" in the message after Ctrl-C."""
        return "; nothing was written" if not self.out.exists() else ""
