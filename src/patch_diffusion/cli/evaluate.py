"""The command ``patch-diffusion evaluate``: metrics of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

import patch_diffusion
from patch_diffusion.cli.choosing import data_of, open_guide, write_result
from patch_diffusion.cli.parsing import parse, with_files
from patch_diffusion.errors import InputError
from patch_diffusion.evaluation.options import EvaluationOptions
from patch_diffusion.files import check_apart
from patch_diffusion.processes import is_first
from patch_diffusion.sampling.options import Sampling

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
    held_out: Annotated[str | None, arg(metavar="DATA", aliases=["--held-out-data"])] = None
    """Images it was not trained on. None: those that the run held out."""
    reference: Annotated[str | None, arg(metavar="DATA|FILE.npz")] = None
    """Images to compare samples with, or statistics mu and sigma. None: the images it was trained on."""
    extractor: Annotated[str, arg(metavar="KIND|FILE")] = "random"
    """Extractor of features: random (needs no file), inception, dinov2; or a file of weights or a folder of these."""
    sampling: Annotated[Sampling, arg(name="")] = field(default_factory=Sampling)
    options: Annotated[EvaluationOptions, arg(name="")] = field(default_factory=EvaluationOptions)
    processes: int = 1
    """Processes of this machine that share the samples, for instance one for each of its GPUs."""
    json_file: Annotated[str | None, arg(name="json", metavar="[FILE.json]")] = None
    """Write the result as JSON; without a file, print it on stdout."""

    @property
    def json(self) -> bool:
        """True if the result is printed as JSON on stdout."""
        return self.json_file == ""

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Evaluate:
        """Parse the arguments of ``patch-diffusion evaluate``; a word after --json is its file if it ends in .json."""
        return parse(cls, "evaluate", with_files(arguments, {"--json": (".json",)}))

    def run(self) -> dict[str, Any]:
        """Evaluate, and print a table of metrics on stdout unless JSON goes there; of several ranks, rank 0 prints."""
        if self.json_file and Path(self.json_file).is_dir():
            raise InputError(f"{self.json_file} is a folder: give a file for the result")
        if self.processes < 1:
            raise InputError(f"processes is at least 1, not {self.processes}")
        self._check_places()
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
        if self.json_file:
            write_result(self.json_file, result)
        if not self.json:
            from patch_diffusion.cli.tables import print_measures

            print_measures(found)
        return result

    def _check_places(self) -> None:
        """Raise InputError if the result or the picture of pairs would replace what is read."""
        from patch_diffusion.runs.folder import RunFolder

        source = Path(self.source)
        run = RunFolder(source.parent.parent if source.parent.name == "checkpoints" else source)
        read = [run.config_file, run.model_file, run.log_file, data_of(source)] if run.is_run() else [self.source]
        outputs = [Path(path) for path in (self.json_file, self.options.pairs) if path]
        check_apart(outputs, [*read, self.data, self.held_out, self.reference, self.extractor])

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
        """Return the message at the end: where the files are."""
        files = [f"the result is in {self.json_file}"] if self.json_file else []
        files += [f"the closest pairs are in {self.options.pairs}"] if self.options.pairs else []
        return "; ".join(files)

    def after_interrupt(self) -> str:
        """Return no text, since an interrupted evaluation leaves no files behind."""
        return ""


def _run_and_tell(command: Evaluate) -> None:
    """Run ``patch-diffusion evaluate`` in one of several processes, and print its result."""
    from patch_diffusion.cli import tell

    tell(command, command.run())
