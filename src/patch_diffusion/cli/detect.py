"""The command ``patch-diffusion detect``: maps of what is unlike the training images."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from patch_diffusion.cli.choosing import read_from
from patch_diffusion.cli.say import say
from patch_diffusion.cli.verb import DataName, Json, ModelPath, Verb
from patch_diffusion.errors import InputError, counted
from patch_diffusion.evaluation.detection.options import DetectionOptions
from patch_diffusion.files import check_apart, user_path


@dataclass(frozen=True)
class Detect(Verb):
    """Make maps of what is unlike the training images.

    patch-diffusion detect runs/parts new-photos/ --out found --false-alarms 0.01

    patch-diffusion detect runs/parts new.png --normal good-photos/ --out found

    Images whose map is above the threshold somewhere are alarms. The threshold follows from ordinary images.
    """

    source: Annotated[Positional[ModelPath], arg(metavar="RUN")]
    """The run folder, or one of its checkpoints."""
    images: Annotated[Positional[DataName], arg(metavar="IMAGES")]
    """The images to look at: a folder, a zip, an array or one picture."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder for the results: table.csv, detect.json, and maps/ with a picture of each map over its image."""
    normal: Annotated[DataName | None, arg(metavar="DATA")] = None
    """Ordinary images that were not trained on. Default: those that the run held out."""
    options: Annotated[DetectionOptions, arg(name="")] = field(default_factory=DetectionOptions)
    json: Json = None
    """Print the result as JSON on stdout, or write it to a file."""

    def check_given(self) -> None:
        """Raise an `InputError` if an option cannot be right."""
        super().check_given()
        self.options.check()

    def run(self) -> dict[str, Any]:
        """Look at the images, write the table and the maps, and return the settings with the number of alarms."""
        from patch_diffusion.evaluation.detection.detect import open_detection
        from patch_diffusion.evaluation.detection.folder import MAPS, SETTINGS, TABLE, write_findings

        out = user_path(self.out)
        if out.exists() and not out.is_dir():
            raise InputError(f"{out} is a file: give a folder for the maps")
        inputs = [*read_from(user_path(self.source)), self.images, self.normal]
        check_apart([out, *(out / name for name in (TABLE, SETTINGS, MAPS))], inputs)
        with ExitStack() as stack:
            detector, images, notes = open_detection(
                stack, self.source, self.images, self.normal, self.options, show=True
            )
            for note in notes:
                say(note, aside=True)
            settings = {"run": str(self.source), "data": self.images, "normal": self.normal, **detector.settings}
            findings = detector.findings(images, show=True)
            return write_findings(findings, out, detector.model.codec, detector.threshold, settings, notes)

    def message(self, result: dict[str, Any]) -> str:
        """Return the message at the end: how many images have an alarm, and what the rate of false alarms is."""
        checked = result["checked_false_alarms"]
        of = f"asked for: {result['false_alarms']:.2%} of ordinary images"
        of += ", too few to check it" if checked is None else f", checked on the other half of them: {checked:.2%}"
        alarms = f"{result['alarms']:,} of {counted(result['images'], 'image')} with an alarm"
        return f"{alarms} (false alarms {of})\nthe maps and the table are in {self.out}"
