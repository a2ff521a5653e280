"""The command ``patch-diffusion inspect``: a check of a data set, and suggested settings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional, arg

from patch_diffusion.cli.options import given_options, option_words
from patch_diffusion.cli.say import say
from patch_diffusion.cli.train import _preset_and_file, settled
from patch_diffusion.cli.verb import DataName, Json, Verb
from patch_diffusion.config import Config
from patch_diffusion.data.named import check_labels
from patch_diffusion.errors import InputError
from patch_diffusion.limits import check_numbers
from patch_diffusion.presets import PRESETS

if TYPE_CHECKING:
    from patch_diffusion.advice import Advice

# Training chooses these options by itself if they are not given, so the suggested command leaves them out.
_CHOSEN_IN_TRAINING = (
    *(f"noise.{name}" for name in ("p_mean", "sigma_min", "sigma_max", "mean_data", "levels")),
    *(
        f"network.{name}"
        for name in ("width", "blocks", "multipliers", "attention", "dropout", "depth", "heads", "token")
    ),
    *(f"optimizer.{name}" for name in ("learning_rate", "betas", "decay")),
    *("patches.sizes", "patches.whole", "batch", "engine.accumulation", "noise.p_std"),
)


@dataclass(frozen=True)
class Inspect(Verb):
    """Check a data set, and suggest settings that fit it.

    patch-diffusion inspect photos/ --sheet sheet.png

    Takes all options of train, too, and estimates the cost of training with them.
    """

    source: Annotated[Positional[DataName], arg(metavar="DATA")] = ""
    """Images to check: a folder, a zip, an array or another source, as for train."""
    sheet: Annotated[Path | None, arg(metavar="FILE.png")] = None
    """File for a picture of some of the images, and of those that look alike or empty."""
    most: int = 100_000
    """Largest number of images to read; from a larger data set it reads this many, evenly spaced."""
    forecast: bool = True
    """Time some training steps, to estimate the cost of training."""
    preset: Annotated[str | None, arg(metavar="NAME")] = None
    """Settings to start from. Default: settings chosen for the images, the budget and this machine."""
    config: Annotated[Path | None, arg(metavar="FILE.yaml")] = None
    """YAML file of options; they override those of the preset."""
    json: Json = None
    """Print all findings and settings as JSON on stdout, or write them to a file."""
    options: Annotated[Config, arg(name="")] = field(default_factory=Config)
    arguments: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Inspect:
        """Parse the arguments of ``inspect``; they take precedence over the config file, and that over the preset."""
        base = _preset_and_file(arguments)
        command = cls.parsed(arguments, cls(options=base))
        source = command.source or base.data.source
        if not source:
            raise InputError("inspect needs DATA: a folder, a zip, an array, or digits")
        options = replace(command.options, data=replace(command.options.data, source=source))
        return replace(
            command,
            source=source,
            options=settled(options, base, command.preset),
            arguments=tuple(arguments),
        )

    def check_given(self) -> None:
        """Raise an `InputError` if an option cannot be right."""
        super().check_given()
        check_labels(self.options.data.labels, self.source)
        check_labels(next(iter(self.options.data.conditions or ()), None), self.source, "data.conditions")

    def run(self) -> dict[str, Any]:
        """Inspect the data set and time some steps; print the main points, unless --json prints everything."""
        from patch_diffusion.advice import advise
        from patch_diffusion.cli.inspection import inspection
        from patch_diffusion.data.inspection.inspect import inspect_images
        from patch_diffusion.data.inspection.sheet import check_sheet
        from patch_diffusion.files import check_apart

        check_numbers(self.options)
        if self.sheet is not None:
            check_sheet(self.sheet)
            check_apart([self.sheet], [self.source, self.config])
        findings = inspect_images(self.options.data, most=self.most, sheet=self.sheet, show=True)
        given = given_options(self.arguments, self.config)
        advice = advise(findings, self.options, given, timed=self.forecast, show=True)
        command = self._command(advice)
        if not self.prints_json:
            say(inspection(findings, advice, self.preset, command))
        return {"data": findings.as_dict(), "advice": advice.as_dict(), "preset": self.preset, "command": command}

    def message(self, result: dict[str, Any]) -> str:
        """Return the message that says where the sheet of pictures is, if one was written."""
        return "" if self.sheet is None else f"pictures of what was found are in {self.sheet}"

    def _command(self, advice: Advice) -> str:
        """Return the command line that trains with the suggested settings; empty if training would refuse the data."""
        if advice.refusal:
            return ""
        base = Config() if self.preset is None else PRESETS[self.preset]
        chosen = set(_CHOSEN_IN_TRAINING) - given_options(self.arguments, self.config)
        words = option_words(advice.config, base, without={"data.source", *chosen})
        preset = [] if self.preset is None else ["--preset", self.preset]
        name = re.sub(r"[^\w.-]+", "-", Path(self.source).stem).strip("-") or "model"
        return shlex.join(["patch-diffusion", "train", self.source, *preset, *words, "--out", f"runs/{name}"])
