"""``patch-diffusion sample``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

import patch_diffusion
from patch_diffusion.cli.choosing import class_number, guide_of
from patch_diffusion.cli.parsing import parse, parse_seeds


@dataclass(frozen=True)
class Sample:
    """Sample whole images from a run, as PNG files named by their seeds.

    patch-diffusion sample runs/photos --seeds 0-63 --out pictures --grid grid.png
    """

    source: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder, or one of its checkpoints."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder for 000000.png ... and samples.json."""
    seeds: Annotated[str, arg(metavar="0-63")] = "0-15"
    """Seeds, as in 0-63 or 3,5,8-11. A seed always gives the same picture."""
    label: Annotated[str | None, arg(name="class", metavar="K")] = None
    """Class, by number or name. Without it, seed k gets class k mod classes."""
    steps: int = 18
    """Solver steps."""
    solver: Annotated[str, arg(metavar="NAME")] = "heun"
    """euler, heun, dpm_solver_2m, dpm_solver_3m; or, adding noise and so needing more steps, stochastic_heun,
    ancestral, euler_maruyama. heun and stochastic_heun evaluate the network twice a step, the others once."""
    schedule: Annotated[str, arg(metavar="NAME")] = "karras"
    """Where the steps are small: karras, vp, ve, exponential."""
    sigma_min: float | None = None
    """Lowest noise level. None: the model's own."""
    sigma_max: float | None = None
    """Highest noise level. None: the model's own."""
    rho: float | None = None
    """For karras (7) and exponential (1): the larger, the more of the levels are low."""
    churn: float | None = None
    """For stochastic_heun (40): how much noise is added."""
    churn_min: float | None = None
    """For stochastic_heun (0.05): lowest noise level at which noise is added."""
    churn_max: float | None = None
    """For stochastic_heun (50): highest noise level at which noise is added."""
    churn_noise: float | None = None
    """For stochastic_heun (1.003): standard deviation of what is added."""
    eta: float | None = None
    """For ancestral (1): how much of the noise is fresh, from 0 to 1."""
    guidance: float = 1.0
    """Scale of guidance; 1 is none."""
    guide: Annotated[str, arg(metavar="NAME")] = "class"
    """What guidance leads away from. class: the model without the class. crops: the model on crops, of half the sides
    or as in crops:1/4. step:400: an earlier checkpoint. ema:0.02: an average of another length. Or another run."""
    guidance_interval: Annotated[tuple[float, float] | None, arg(metavar="LOW HIGH")] = None
    """Guidance only at noise levels above LOW, up to HIGH. None: at all."""
    ema_length: Annotated[float | None, arg(metavar="0.1")] = None
    """Average the weights over this share of the training, where --ema.lengths kept what it takes."""
    vae: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """For a model of latents: an autoencoder to decode with, in place of the one that made them."""
    resolution: int | tuple[int, int] | None = None
    """Side, or height and width. None: that of the training images."""
    coords: Annotated[Literal["stretch", "extend", "repeat"] | None, arg(metavar="NAME")] = None
    """Coordinates of an image of another resolution. stretch: as those of an image of training. extend: beyond them.
    repeat: each tile as an image of its own. None: stretch, or repeat for tiles of larger images."""
    tile: int | tuple[int, int] | None = None
    """Side, or height and width, of overlapping tiles for images that are too large for the memory. None: none."""
    overlap: int | None = None
    """Pixels that tiles overlap by. None: a quarter of their side."""
    grid: Annotated[Path | None, arg(metavar="FILE.png")] = None
    """One picture of the first 100 samples, sorted by class."""
    batch: int = 64
    """Images at a time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    json: bool = False
    """Print the result as JSON on stdout."""

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Sample:
        """From words."""
        return parse(cls, "sample", arguments)

    def run(self) -> dict[str, Any]:
        """Sample and write the pictures."""
        from rich.console import Console
        from rich.progress import track

        from patch_diffusion.sampling.guides import named

        seeds = parse_seeds(self.seeds)
        model = patch_diffusion.load(self.source, ema_length=self.ema_length, vae=self.vae, device=self.device)
        guide = guide_of(self.guide, self.source, device=self.device)
        samples = patch_diffusion.generate(
            model,
            seeds,
            steps=self.steps,
            solver=self.solver,
            schedule=self.schedule,
            sigma_min=self.sigma_min,
            sigma_max=self.sigma_max,
            rho=self.rho,
            churn=self.churn,
            churn_min=self.churn_min,
            churn_max=self.churn_max,
            churn_noise=self.churn_noise,
            eta=self.eta,
            labels=class_number(self.label, model.class_names),
            guidance=self.guidance,
            guide=guide,
            guidance_interval=self.guidance_interval,
            resolution=self.resolution,
            coords=self.coords,
            tile=self.tile,
            overlap=self.overlap,
            batch=self.batch,
        )
        samples = named(samples, guide, self.guide)
        console = Console(stderr=True)
        shown = track(samples, "sampling", len(seeds), console=console, disable=not console.is_terminal)
        source = str(self.source)
        num = patch_diffusion.write_samples(
            shown, self.out, class_names=model.class_names, source=source, grid=self.grid
        )
        return {"samples": num, "out": str(self.out), "grid": None if self.grid is None else str(self.grid)}

    def message(self, result: dict[str, Any]) -> str:
        """What the user is told at the end."""
        return f"{result['samples']} pictures in {self.out}" + (f", a grid in {self.grid}" if self.grid else "")

    def after_interrupt(self) -> str:
        """What the user is told after Ctrl-C."""
        return f"; what was sampled is in {self.out}" if self.out.exists() else ""
