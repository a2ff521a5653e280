"""The command ``patch-diffusion tune``: a run that samples in a few steps, from a trained one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, Suppress, arg

import patch_diffusion
from patch_diffusion.cli.options import given_options
from patch_diffusion.cli.verb import DataName, Json, ModelPath, Verb
from patch_diffusion.config import Config, Data, Network, Noise
from patch_diffusion.config_dict import option_names
from patch_diffusion.errors import InputError
from patch_diffusion.limits import LIMITS
from patch_diffusion.processes import is_first


@dataclass(frozen=True)
class _Options(Config):
    """The options of training, without those that a tuned run has from the run that it begins with."""

    data: Suppress[Data] = field(default_factory=Data)
    network: Suppress[Network] = field(default_factory=Network)
    noise: Suppress[Noise] = field(default_factory=Noise)
    few_steps: Suppress[int | None] = None
    batch_pixels: Suppress[int | None] = None
    seed: Suppress[int] = 0
    steps: Suppress[int | None] = None
    images: Suppress[int | None] = None
    minutes: Suppress[float | None] = None
    wall_minutes: Suppress[float | None] = None


@dataclass(frozen=True)
class Tune(Verb):
    """Make a run that samples in 1, 2 or 4 steps, from a trained one.

    patch-diffusion tune runs/photos --steps 2 --minutes 15 --out runs/few

    patch-diffusion sample runs/few --out pictures

    The new run has the options of the other one, unless you give others. If it is stopped, the same command continues.
    """

    source: Annotated[Positional[ModelPath], arg(metavar="RUN")]
    """The run folder to begin with, or one of its checkpoints."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Run folder: a new one, or that of the tuning to continue."""
    steps: int = 2
    """Number of steps of sampling that the new run is made for: 1, 2 or 4. The budget is --minutes or --images."""
    minutes: float | None = None
    """Budget in minutes of training, such as a quarter of those of RUN."""
    images: int | None = None
    """Budget in training images, counted each time one is used."""
    data: Annotated[DataName | None, arg(metavar="DATA")] = None
    """Images to tune on. Default: those of RUN."""
    json: Json = None
    """Print the result as JSON on stdout, or write it to a file."""
    options: Annotated[_Options, arg(name="")] = field(default_factory=_Options)
    given: Annotated[frozenset[str], Suppress] = frozenset()

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Tune:
        """Parse the arguments of ``tune``, and note which options of training were given."""
        command = cls.parsed(arguments)
        least, most = LIMITS["few_steps"]
        if not least <= command.steps <= most:
            raise InputError(
                f"--steps are the steps of sampling that the new run is made for, {least} to {most}, not "
                f"{command.steps:,}: the budget is --minutes or --images",
                option="steps",
            )
        if (command.minutes is None) == (command.images is None):
            raise InputError("tune needs a budget, one of --minutes and --images; --steps are the steps of sampling")
        own = {"out", "steps", "minutes", "images", "data", "json"}
        given = (given_options(arguments) & option_names()) - own
        return cls(**{**vars(command), "given": frozenset(given)})

    def run(self) -> dict[str, Any]:
        """Tune, and return a description of the new run as a dict, which is empty on ranks other than 0."""
        patch_diffusion.tune(
            self.source,
            self.out,
            steps=self.steps,
            minutes=self.minutes,
            images=self.images,
            data=self.data,
            config=self.options,
            given=self.given,
        )
        return patch_diffusion.describe(self.out) if is_first() else {}

    def message(self, result: dict[str, Any]) -> str:
        """Return the message after tuning: where the model is, and how to sample from it."""
        return (
            f"the model is in {self.out}; to sample from it in {self.steps} steps: patch-diffusion sample {self.out} "
            "--out pictures"
        )

    def after_interrupt(self) -> str:
        """Return the text that follows "interrupted" after Ctrl-C: how to continue."""
        return "; the same command continues" if (self.out / "config.json").exists() else ""
