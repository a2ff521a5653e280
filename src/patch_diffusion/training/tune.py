"""Consistency tuning of a trained run: a new run that samples in a few steps."""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from dataclasses import replace
from os import PathLike
from typing import Any

from patch_diffusion.config import BUDGETS, Config
from patch_diffusion.config_dict import changed_names, with_options
from patch_diffusion.data.digest import change_of, digest_of
from patch_diffusion.data.images import Images
from patch_diffusion.data.sources import open_data
from patch_diffusion.denoise.consistency import P_MEAN, P_STD
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError, option_error
from patch_diffusion.files import user_path
from patch_diffusion.limits import check_numbers
from patch_diffusion.processes import is_first, run_processes, started_by_launcher
from patch_diffusion.runs.folder import RunFolder, step_in
from patch_diffusion.runs.model import load
from patch_diffusion.sampling.folder import digest_of as digest_of_weights
from patch_diffusion.training.budget import Budget
from patch_diffusion.training.clock import Clock
from patch_diffusion.training.train import train
from patch_diffusion.training.trainer import Trainer

RATE = 0.1
"""The share of the run's own learning rate that tuning begins with, as the weights are good already."""


def tune(
    run: str | PathLike[str],
    out: str | PathLike[str],
    *,
    steps: int = 2,
    minutes: float | None = None,
    images: int | None = None,
    data: str | None = None,
    config: Config | None = None,
    given: Collection[str] | None = None,
    show: bool = True,
) -> Denoiser:
    """Tune the model of a run for sampling in a few steps, into a new run folder; or continue a stopped tuning.

    The new run has the options, images and averaged weights of the other one, and another objective, see
    `ConsistencyObjective`. All that takes a run takes it, but for what needs a denoiser: edits, inversion and bits.

    Args:
        run: the run folder to begin with, or one of its checkpoints.
        out: the folder of the new run, or that of a stopped tuning.
        steps: the number of steps of sampling that the result is made for: 1, 2 or 4. It is no budget.
        minutes, images: the budget, one of them, see `Trainer.fit`. A quarter of what the run was trained with is much.
        data: the images to tune on; None: those of the run.
        config: options that differ from those of the run; its noise levels and learning rate are chosen if not given.
        given: names of the options of ``config`` that count; None: those that are not at their defaults.
        show: True to show progress on stderr.

    Returns:
        The averaged model.

    Raises:
        InputError: the run cannot be tuned, its images are not there, or an option does not suit.

    >>> tune("runs/digits", "runs/few", images=64, show=False).few_steps  # doctest: +SKIP
    2
    """
    budget = Budget(minutes=minutes, images=images)
    asked = config or Config()
    names = frozenset(changed_names(asked) if given is None else given) - {*BUDGETS, "few_steps"}
    other = RunFolder(user_path(out))
    if other.is_run():
        return _continued(other, steps, budget, asked, names, show=show)
    source = user_path(run)
    parent = RunFolder(source.parent.parent if source.parent.name == "checkpoints" else source)
    config = config_for(parent, steps, budget, asked, names)
    if data is not None:
        config = replace(config, data=replace(config.data, source=data))
    if not config.data.source:
        raise InputError(f"the images of {parent.path} were given in Python: say where they are, as data")
    check_numbers(config)
    processes = config.engine.processes
    if processes is None or processes == 1 or started_by_launcher():
        return _tuned(os.fspath(source), config, out, data is None, show)
    run_processes(processes, _tuned, os.fspath(source), config, os.fspath(out), data is None, show)
    return load(out, device=config.engine.device)


def config_for(parent: RunFolder, steps: int, budget: Budget, asked: Config, names: Collection[str]) -> Config:
    """Return the options of a tuning: those of the run, those asked for by name, and noise levels and learning rate."""
    stored, facts = parent.read_config()
    if stored.network.kind == "custom":
        raise InputError(
            f"the network of {parent.path} is a module of your own: tune it from Python, by a Trainer of a Denoiser "
            f"with few_steps={steps}"
        )
    if stored.few_steps is not None:
        raise InputError(f"{parent.path} was tuned already: tune the run that it was tuned from")
    config = with_options(stored, asked, names)
    chosen: dict[str, Any] = {
        "noise.p_mean": round(P_MEAN + math.log(2 * facts.sigma_data), 4),
        "noise.p_std": P_STD,
        "noise.weight": "process",  # at high levels the loss is tiny and tells little: a learned weight would raise it
        "optimizer.learning_rate": RATE * (stored.optimizer.learning_rate or 0.0),
        "checkpoint_best": False,
        "checkpoint_by": "loss",
    }
    if {"optimizer.kind"} & set(names):
        chosen.pop("optimizer.learning_rate")  # that of another optimizer
    for name, value in chosen.items():
        if name not in names:
            group, _, last = name.rpartition(".")
            config = replace(
                config, **{group: replace(getattr(config, group), **{last: value})} if group else {last: value}
            )
    if config.engine.compile is not False and config.network.dropout:
        raise option_error("engine.compile", "and network.dropout do not go together here: leave engine.compile out")
    return replace(config, few_steps=steps, **vars(budget))


def _tuned(run: str, config: Config, out: str | PathLike[str], same_data: bool, show: bool) -> Denoiser:
    """Fit a trainer of the objective that begins with the weights of a run."""
    clock = Clock()
    show = show and is_first()
    source = user_path(run)
    parent = RunFolder(source.parent.parent if source.parent.name == "checkpoints" else source)
    stored, facts = parent.read_config()
    images = parent.as_trained(open_data(config.data, show=show))
    notes = [f"tuned for sampling in {config.few_steps} steps, from {run}"]
    if same_data and (change := change_of(facts.data_digest, digest_of(images))):
        notes.append(f"WARNING: the data have changed since {run} was trained: {change}")
    images, held_out = held_out_as(parent, replace(images, notes=(*images.notes, *notes)), stored)
    model = load(source, device="cpu")
    model.few_steps = config.few_steps
    step = step_in(source)
    begun = {"run": run, "weights": digest_of_weights(model), **({} if step is None else {"step": step})}
    trainer = Trainer(model, images, config, out=out, held_out=held_out, show=show)
    trainer.facts = replace(trainer.facts, parent=begun)
    trainer.clock = clock  # it has run since before the images were read
    return trainer.fit(**vars(Budget.of(config)))


def held_out_as(parent: RunFolder, images: Images, stored: Config) -> tuple[Images, Images | None]:
    """Hold out the images that a run has held out, and return both parts."""
    return parent.hold_out(images, stored.data.held_out or 0.0, stored.seed)


def _continued(
    other: RunFolder, steps: int, budget: Budget, asked: Config, names: Collection[str], *, show: bool
) -> Denoiser:
    """Continue a stopped tuning, which has all that it needs in its own folder."""
    stored, _ = other.read_config()
    if stored.few_steps != steps:
        what = (
            "an ordinary run" if stored.few_steps is None else f"a run tuned for {stored.few_steps} steps of sampling"
        )
        raise InputError(f"{other.path} holds {what}: choose another folder for one tuned for {steps}")
    config = replace(with_options(stored, asked, names), **vars(budget))
    return train(
        config, other.path, given={*names, *(name for name, value in vars(budget).items() if value)}, show=show
    )
