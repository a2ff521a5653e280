"""From a config to a trained run: its images, its trainer, and what measures its samples."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from os import PathLike

from patch_diffusion.config import Config, Watch
from patch_diffusion.data.sources import open_images
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError
from patch_diffusion.files import user_path
from patch_diffusion.suggest import suggest
from patch_diffusion.training.budget import Budget
from patch_diffusion.training.build import build_trainer
from patch_diffusion.training.hardware.processes import run_processes, started_by_launcher
from patch_diffusion.training.model import load
from patch_diffusion.training.run import RunFolder


def train(
    config: Config,
    out: str | PathLike[str],
    *,
    given: Collection[str] | None = None,
    allow: Collection[str] = (),
    show: bool = True,
) -> Denoiser:
    """Train what the config describes into the run folder ``out``, or continue a stopped run there.

    What the command line's ``train`` calls. See `Trainer` for the errors and `Trainer.fit` for the result. With
    ``engine.processes`` above 1 it starts that many; a program that calls it then needs ``if __name__ == "__main__":``.

    Args:
        config: all options, a budget among them.
        out: the run folder.
        given: names of the options that are wanted as they are, such as "patches.sizes"; others give way to what suits
            the images, see `suggest`, and the log says which and why. None: all are taken as they are.
        allow: names of options that may differ from those of the run that continues, see `Trainer`.
        show: progress on stderr.

    >>> from dataclasses import replace
    >>> small = PRESETS["digits"]
    >>> config = replace(small, data=replace(small.data, source="digits"), minutes=None, steps=1, samples=0)
    >>> train(config, "runs/trained", show=False).resolution
    (16, 16)
    """
    processes = config.engine.processes
    if processes is not None and processes < 1:
        raise InputError(f"engine.processes is at least 1, not {processes}")
    if processes is None or processes == 1 or started_by_launcher():
        return _train(config, out, given, allow, show)
    run_processes(processes, _train, config, os.fspath(out), given, allow, show)
    return load(out, device=config.engine.device)


def _train(
    config: Config, out: str | PathLike[str], given: Collection[str] | None, allow: Collection[str], show: bool
) -> Denoiser:
    budget = Budget(config.steps, config.images, config.minutes)
    show = show and os.environ.get("RANK", "0") == "0"  # of several processes the first speaks
    how = {name: value for name, value in vars(config.data).items() if name not in ("augment", "held_out")}
    images = open_images(**how, show=show)
    if given is not None:
        config, reasons = suggest(images, config, given)
        images = replace(images, notes=(*images.notes, *reasons))
    meter = None
    idle = [name for name, value in vars(config.watch).items() if value != getattr(Watch(), name)]
    if idle and not config.watch.metrics and not RunFolder(user_path(out)).is_run():
        raise InputError(
            f"watch.{idle[0]} has no effect without watch.metrics: add --watch.metrics frechet, or leave it out"
        )
    if config.watch.metrics:
        from patch_diffusion.evaluation.meter import SampleMeter

        meter = SampleMeter(**vars(config.watch), seed=config.seed)
    return build_trainer(config, images, out, meter=meter, allow=allow, show=show).fit(**vars(budget))
