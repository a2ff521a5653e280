"""The command ``patch-diffusion evaluate``: metrics of samples."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

import patch_diffusion
from patch_diffusion.cli.choosing import check_guide, open_guide, read_from
from patch_diffusion.cli.verb import DataName, Json, Verb, tell
from patch_diffusion.data.named import check_source
from patch_diffusion.errors import Checked
from patch_diffusion.evaluation.options import EvaluationOptions, known_metrics
from patch_diffusion.files import check_apart
from patch_diffusion.limits import LIMITS
from patch_diffusion.processes import is_first
from patch_diffusion.records import check_limits
from patch_diffusion.sampling.options import Sampling

if TYPE_CHECKING:
    from patch_diffusion.evaluation.evaluate import Evaluation


_Subject = Annotated[str, Checked(lambda name: check_source(name, "run or data"))]


@dataclass(frozen=True)
class Evaluate(Verb):
    """Measure how good a run's samples are, and whether they are copies.

    patch-diffusion evaluate runs/photos --samples 1000 --pairs pairs.png

    patch-diffusion evaluate pictures/ --data photos/ --held-out others/

    Every number comes with its 95 % interval and its settings.
    """

    source: Annotated[Positional[_Subject], arg(metavar="RUN")]
    """The run folder or one of its checkpoints, or images: a folder, a zip or an array."""
    data: Annotated[DataName | None, arg(metavar="DATA")] = None
    """Training images. Default: those of the run."""
    held_out: Annotated[DataName | None, arg(metavar="DATA", aliases=["--held-out-data"])] = None
    """Images that were not trained on. Default: those that the run held out."""
    reference: Annotated[DataName | None, arg(metavar="DATA|FILE.npz")] = None
    """Images to compare the samples with, or their statistics mu and sigma (.npz). Default: the training images."""
    extractor: Annotated[str, arg(metavar="KIND|FILE")] = "random"
    """Feature extractor: random (needs no file), inception or dinov2; or a file of its weights, or a folder with it."""
    sampling: Annotated[Sampling, arg(name="")] = field(default_factory=Sampling)
    options: Annotated[EvaluationOptions, arg(name="")] = field(default_factory=EvaluationOptions)
    processes: int = 1
    """Number of processes on this machine that share the work, such as one for each GPU."""
    json: Json = None
    """Print the result as JSON on stdout, or write it to a file."""

    def check_given(self) -> None:
        """Raise an `InputError` if an option cannot be right."""
        super().check_given()
        check_guide(str(self.sampling.guide))
        known_metrics(self.options.metrics)

    def run(self) -> dict[str, Any]:
        """Evaluate, and print a table of metrics on stdout unless JSON goes there; of several ranks, rank 0 prints."""
        check_limits({"processes": self.processes}, {"processes": LIMITS["engine.processes"]})
        if self.options.pairs:
            inputs = [self.data, self.held_out, self.reference, self.extractor]
            check_apart([Path(self.options.pairs)], [*read_from(Path(self.source)), *inputs])
        from patch_diffusion.evaluation.processes import distributed_evaluation
        from patch_diffusion.processes import run_processes, started_by_launcher

        if self.processes > 1 and not started_by_launcher():
            run_processes(self.processes, _run_and_tell, self)
            return {}
        with distributed_evaluation(self.options.device) as device:
            found = self._measure(device)
        if not is_first():
            return {}
        result = found.as_dict()
        if not self.prints_json:
            from patch_diffusion.cli.tables import print_measures

            print_measures(found)
        return result

    def _measure(self, device: str) -> Evaluation:
        guide = open_guide(str(self.sampling.guide), Path(self.source), device=device)
        found = patch_diffusion.evaluate(
            self.source,
            self.data,
            held_out=self.held_out,
            reference=self.reference,
            extractor=self.extractor,
            sampling=replace(self.sampling, guide=guide),
            options=replace(self.options, device=device, pairs=self.options.pairs if is_first() else None),
            show=is_first(),
        )
        if guide is not self.sampling.guide:  # the settings cannot say which model a guide is
            found = replace(found, settings=found.settings | {"guide": self.sampling.guide})
        return found

    def message(self, result: dict[str, Any]) -> str:
        """Return the message at the end: where the picture of pairs is."""
        return f"the closest pairs are in {self.options.pairs}" if self.options.pairs else ""


def _run_and_tell(command: Evaluate) -> None:
    """Run ``patch-diffusion evaluate`` in one of several processes, and print its result."""
    tell(command, command.run())
