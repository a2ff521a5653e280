"""Training from a config: reading the images, choosing what is not given, and fitting the trainer."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from os import PathLike

from patch_diffusion.config import Config
from patch_diffusion.config_dict import changed_names, with_options
from patch_diffusion.data.images import refuse_ids
from patch_diffusion.data.sources import open_data
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import option_error
from patch_diffusion.files import user_path
from patch_diffusion.interop.start import open_start
from patch_diffusion.limits import check_numbers
from patch_diffusion.presets import with_budget
from patch_diffusion.processes import is_first, run_processes, started_by_launcher
from patch_diffusion.runs.folder import RunFolder
from patch_diffusion.runs.model import load
from patch_diffusion.training.budget import Budget
from patch_diffusion.training.build import build_trainer
from patch_diffusion.training.choices.choose import choose
from patch_diffusion.training.choices.source import with_source
from patch_diffusion.training.clock import Clock
from patch_diffusion.training.timing import measure_speed


def train(
    config: Config,
    out: str | PathLike[str],
    *,
    start: str | PathLike[str] | None = None,
    given: Collection[str] | None = None,
    allow: Collection[str] = (),
    show: bool = True,
) -> Denoiser:
    """Train a model as the config describes into the run folder ``out``, or continue a stopped run there.

    The command line's ``train`` calls it. See `Trainer` for the errors and `Trainer.fit` for the result. With
    ``engine.processes`` above 1 it starts that many; a program that calls it then needs ``if __name__ == "__main__":``.

    Args:
        config: all options, a budget among them.
        out: the run folder.
        start: the model to train on from, in place of the option ``start``: a run, "RUN:best" and so on, a published
            file, or a folder of a diffusers pipeline. Only a new run reads it.
        given: names of the options to take as they are, such as "patches.sizes"; others are chosen to suit images,
            budget and machine, see `choose`, and the log says which and why. None: those that are not at their
            defaults.
        allow: names of options that may differ from those of the run that continues, see `Trainer`.
        show: True to show progress on stderr.

    >>> from dataclasses import replace
    >>> small = PRESETS["digits"]
    >>> config = replace(small, data=replace(small.data, source="digits"), minutes=None, steps=1, samples=0)
    >>> train(config, "runs/trained", show=False).resolution
    (16, 16)
    """
    if start is not None:
        config, given = replace(config, start=os.fspath(start)), None if given is None else {*given, "start"}
    check_numbers(config)
    processes = config.engine.processes
    if processes is not None and processes < 1:
        raise option_error("engine.processes", f"is at least 1, not {processes}")
    if processes is None or processes == 1 or started_by_launcher():
        return _train(config, out, given, allow, show)
    run_processes(processes, _train, config, os.fspath(out), given, allow, show)
    return load(out, device=config.engine.device)


def _train(
    config: Config, out: str | PathLike[str], given: Collection[str] | None, allow: Collection[str], show: bool
) -> Denoiser:
    clock = Clock()
    if given is None:
        given = changed_names(config)
        if config.batch_pixels is not None:  # the limit of a preset, for its own batch
            given -= {"batch", "batch_pixels"}
    show = show and is_first()
    run = RunFolder(user_path(out))
    run.check_files()  # before the images are read, and the speed is measured
    stored = run.read_config()[0] if run.is_run() else None
    if stored is not None:
        fit = config.data.fit
        config = with_options(stored, config, {"data.source", *given})
        if (fit, stored.data.fit) == ("bucket", "multiples"):  # the buckets of an earlier version
            config = replace(config, data=replace(config.data, fit="multiples"))
    config = with_budget(config)
    start = None if stored is not None or config.start is None else open_start(config.start)
    images = open_data(config.data, show=show)
    if stored is None:
        refuse_ids(images)
        if start is not None:
            config, given = with_source(config, given, start.model, images.channels)
        config, reasons = choose(images, config, given, measure=lambda config: measure_speed(images, config))
        images = replace(images, notes=(*images.notes, *reasons))
    elif "batch" in given:
        config = replace(config, batch_pixels=None)
    trainer = build_trainer(config, images, out, start=start, allow=allow, show=show)
    trainer.clock = clock  # it has run since before the images were read
    return trainer.fit(**vars(Budget.of(config)))
