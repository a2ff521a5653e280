"""``patch-diffusion evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

import patch_diffusion
from patch_diffusion.cli.choosing import guide_of
from patch_diffusion.cli.parsing import parse
from patch_diffusion.errors import InputError
from patch_diffusion.processes import is_first

if TYPE_CHECKING:
    from patch_diffusion.evaluation.evaluate import Evaluation


@dataclass(frozen=True)
class Evaluate:
    """Measure how good the samples of a run are, and whether it copies.

    patch-diffusion evaluate runs/photos --samples 1000 --pairs pairs.png

    patch-diffusion evaluate pictures/ --data photos/ --held-out others/

    Every number comes with an interval of 95 % and the settings that made it.
    """

    source: Annotated[Positional[str], arg(metavar="RUN")]
    """The run folder or one of its checkpoints, or pictures: a folder, a zip, an array."""
    data: Annotated[str | None, arg(metavar="DATA")] = None
    """The images it was trained on. None: the run's own."""
    held_out: Annotated[str | None, arg(metavar="DATA")] = None
    """Images it was not trained on. None: those that the run held out."""
    reference: Annotated[str | None, arg(metavar="DATA|FILE.npz")] = None
    """What samples are compared with: images, or statistics mu and sigma. None: the images it was trained on."""
    metrics: Annotated[tuple[str, ...] | None, arg(metavar="NAME ...")] = None
    """frechet, kernel, precision (and recall), density (and coverage), memorization, denoising, bits. None: all of
    them that what is given allows, but bits, which take long."""
    samples: Annotated[int | None, arg(metavar="N")] = None
    """Samples. None: 1,000, or all pictures. Published Frechet distances take 50,000."""
    seed: int = 0
    """Of samples, noise and intervals. Sample k has the seed seed * samples + k."""
    extractor: Annotated[str, arg(metavar="KIND|FILE")] = "random"
    """What makes features: random (needs no file), inception, dinov2; or a file of weights or a folder of these."""
    steps: int = 18
    """Solver steps."""
    solver: Annotated[str, arg(metavar="NAME")] = "heun"
    """As in sample."""
    guidance: float = 1.0
    """Scale of guidance; 1 is none."""
    guide: Annotated[str, arg(metavar="NAME")] = "class"
    """As in sample: class, crops, step:400, ema:0.02, another run."""
    guidance_interval: Annotated[tuple[float, float] | None, arg(metavar="LOW HIGH")] = None
    """As in sample."""
    ema_length: Annotated[float | None, arg(metavar="0.1")] = None
    """As in sample."""
    vae: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """As in sample."""
    bits_images: int = 16
    """Held-out images whose bits are counted."""
    pairs: Annotated[Path | None, arg(metavar="FILE.png")] = None
    """A picture of the samples that are nearest to a training image, each beside it."""
    batch: int = 64
    """Images at a time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    processes: int = 1
    """Of this machine, that share the samples, for instance one for each of its GPUs."""
    json_file: Annotated[str | None, arg(name="json", metavar="[FILE.json]")] = None
    """Write the result as JSON; without a file, print it on stdout."""

    @property
    def json(self) -> bool:
        """Print the result as JSON on stdout."""
        return self.json_file == ""

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Evaluate:
        """From words. What follows --json is its file only where it is named so."""
        words = [
            word if word != "--json" or following.lower().endswith(".json") else "--json="
            for word, following in zip_longest(arguments, arguments[1:], fillvalue="")
        ]
        return parse(cls, "evaluate", words)

    def run(self) -> dict[str, Any]:
        """Measure; the table goes to stdout, unless the JSON does. Of several processes the first tells."""
        if self.json_file and Path(self.json_file).is_dir():
            raise InputError(f"{self.json_file} is a folder: give a file for the result")
        if self.processes < 1:
            raise InputError(f"processes is at least 1, not {self.processes}")
        from patch_diffusion.evaluation.processes import distributed_evaluation
        from patch_diffusion.processes import run_processes, started_by_launcher

        if self.processes > 1 and not started_by_launcher():
            run_processes(self.processes, _run_and_tell, self)
            return {}
        with distributed_evaluation(self.device) as device:
            found = self._measure(device)
        if not is_first():
            return {}
        result = found.as_dict()
        if self.json_file:
            from patch_diffusion.files import write_json

            Path(self.json_file).parent.mkdir(parents=True, exist_ok=True)
            write_json(Path(self.json_file), result)
        if not self.json:
            from patch_diffusion.cli.tables import print_measures

            print_measures(found)
        return result

    def _measure(self, device: str) -> Evaluation:
        guide = guide_of(self.guide, Path(self.source), device=device)
        found = patch_diffusion.evaluate(
            self.source,
            self.data,
            held_out=self.held_out,
            reference=self.reference,
            metrics=self.metrics,
            samples=self.samples,
            seed=self.seed,
            extractor=self.extractor,
            steps=self.steps,
            solver=self.solver,
            guidance=self.guidance,
            guide=guide,
            guidance_interval=self.guidance_interval,
            ema_length=self.ema_length,
            vae=self.vae,
            bits_images=self.bits_images,
            pairs=self.pairs if is_first() else None,
            batch=self.batch,
            device=device,
            show=is_first(),
        )
        if guide is not self.guide:  # of a model the settings cannot say which
            found = replace(found, settings=found.settings | {"guide": self.guide})
        return found

    def message(self, result: dict[str, Any]) -> str:
        """Where the files are."""
        files = [f"the result is in {self.json_file}"] if self.json_file else []
        files += [f"the closest pairs are in {self.pairs}"] if self.pairs else []
        return "; ".join(files)

    def after_interrupt(self) -> str:
        """Nothing is left behind."""
        return ""


def _run_and_tell(command: Evaluate) -> None:
    """What the command line does, in one of several processes."""
    from patch_diffusion.cli import tell

    tell(command, command.run())
