"""The command ``patch-diffusion train``: a model from images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, Suppress, arg

import patch_diffusion
from patch_diffusion.cli.options import Preset, given_options
from patch_diffusion.cli.parsing import value_of
from patch_diffusion.cli.verb import DataName, Json, Verb
from patch_diffusion.config import BUDGETS, Config
from patch_diffusion.config_dict import changed_names, read_yaml
from patch_diffusion.data.named import check_labels
from patch_diffusion.errors import InputError, did_you_mean
from patch_diffusion.files import user_path
from patch_diffusion.presets import PRESETS, with_budget
from patch_diffusion.processes import is_first
from patch_diffusion.runs.named import model_name
from patch_diffusion.runs.paths import RunPaths


@dataclass(frozen=True)
class Train(Verb):
    """Train a model on images, or continue a stopped run.

    patch-diffusion train photos.zip --resolution 64 --out runs/photos

    patch-diffusion train --out runs/photos
    """

    source: Annotated[Positional[DataName], arg(metavar="DATA")] = ""
    """Images to train on: a folder, a zip, an array (.npy, .npz, .h5, .zarr), hf:NAME, wds:SHARDS, or "digits". Not
    needed to continue a run."""
    out: Annotated[Path | None, arg(metavar="RUN")] = None
    """Run folder (required): a new one, or that of the run to continue."""
    preset: Preset = None
    config: Annotated[Path | None, arg(metavar="FILE.yaml")] = None
    """YAML file of options; they override those of the preset."""
    allow: tuple[str, ...] = ()
    """Options that may change in the run to continue, such as optimizer.learning_rate."""
    json: Json = None
    """Print the result as JSON on stdout, or write it to a file."""
    options: Annotated[Config, arg(name="")] = field(default_factory=Config)
    given: Annotated[frozenset[str] | None, Suppress] = None

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Train:
        """Parse the arguments of ``train``, which override a config file, and the preset or a stopped run's options."""
        base = _preset_and_file(arguments)
        command = cls.parsed(arguments, cls(options=base))
        if command.out is None:
            raise InputError("train needs --out RUN, the folder for the run")
        source = command.source or base.data.source
        given = given_options(arguments, command.config)
        if not source:
            if value_of("--preset", arguments) is not None:
                raise InputError(f"--preset is for a new run, and {command.out} has its settings: leave it out")
            base = _stored(command.out)
            base = base if command.config is None else _one_budget(base, read_yaml(command.config, base))
            command = cls.parsed(arguments, cls(options=base))
            source = base.data.source
        options = replace(command.options, data=replace(command.options.data, source=source))
        return replace(command, source=source, options=settled(options, base, command.preset), given=given)

    def check_given(self) -> None:
        """Raise an `InputError` if an option cannot be right."""
        super().check_given()
        check_labels(self.options.data.labels, self.source)
        check_labels(next(iter(self.options.data.conditions or ()), None), self.source, "data.conditions")
        if self.options.start is not None and not (self.out and RunPaths(user_path(self.out)).is_run()):
            model_name(self.options.start)

    def run(self) -> dict[str, Any]:
        """Train, and return a description of the run as a dict, which is empty on ranks other than 0."""
        assert self.out is not None  # parse refuses arguments without --out
        given = self.given
        if given is not None and self.preset is not None and RunPaths(user_path(self.out)).is_run():
            given |= changed_names(PRESETS[self.preset])  # they were asked for, and may not be the run's own
        patch_diffusion.train(self.options, self.out, given=given, allow=self.allow)
        return patch_diffusion.describe(self.out) if is_first() else {}

    def message(self, result: dict[str, Any]) -> str:
        """Return the message after training: where the model is, and how to sample from it."""
        return f"the model is in {self.out}; to sample from it: patch-diffusion sample {self.out} --out pictures"

    def after_interrupt(self) -> str:
        """Return the text that follows "interrupted" after Ctrl-C: how to continue the run."""
        started = self.out is not None and (self.out / "config.json").exists()
        return f"; continue with: patch-diffusion train --out {self.out}" if started else ""


def _preset_and_file(arguments: Sequence[str]) -> Config:
    preset, file = value_of("--preset", arguments), value_of("--config", arguments)
    if preset is not None and preset not in PRESETS:
        raise InputError(f"there is no preset '{preset}'{did_you_mean(preset, PRESETS)}")
    base = Config() if preset is None else PRESETS[preset]
    return base if file is None else _one_budget(base, read_yaml(file, base))


def _stored(out: Path) -> Config:
    none = f"there is no run to continue in {out}"
    advice = ": give DATA to train on, a folder, a zip, or digits"
    if not user_path(out).exists():
        raise InputError(none + advice)
    from patch_diffusion.runs.folder import RunFolder

    run = RunFolder(user_path(out))
    if not run.is_run():
        raise InputError(none + (run.lost_config() or advice))
    config, _ = run.read_config()
    if not config.data.source:
        raise InputError(f"the images of {out} were given in Python: continue it from there")
    return config


def settled(options: Config, base: Config, preset: str | None) -> Config:
    """Return the options with a single budget; batch "auto" becomes the preset's, in as few microbatches as fit."""
    if options.batch == "auto" and preset is not None:
        batch = PRESETS[preset].batch if base.batch == "auto" else base.batch
        parts = "auto" if options.engine.accumulation == 1 else options.engine.accumulation
        options = replace(options, batch=batch, engine=replace(options.engine, accumulation=parts))
    return with_budget(_one_budget(base, options))


def _one_budget(base: Config, options: Config) -> Config:
    """Return the options with only the given budget (steps, images or minutes), without the one that ``base`` has."""
    given = {name for name in BUDGETS if getattr(options, name) not in (None, getattr(base, name))}
    return replace(options, **{name: None for name in BUDGETS if name not in given}) if given else options
