"""How long patches take to what whole images reach, and the other way round: several trainings, side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from patch_diffusion.config import Config, to_dict
from patch_diffusion.denoise.whole_image import SIGMAS
from patch_diffusion.errors import InputError
from patch_diffusion.evaluation.circumstances import circumstances
from patch_diffusion.files import user_path
from patch_diffusion.races.arms import check_arms
from patch_diffusion.races.judging import JUDGES, look, mean
from patch_diffusion.races.record import RaceFolder, Record
from patch_diffusion.races.setup import Field, budget_of
from patch_diffusion.races.summary import length
from patch_diffusion.races.tuning import tune
from patch_diffusion.races.turns import run_heat
from patch_diffusion.runs.lock import locked
from patch_diffusion.runs.report import clock
from patch_diffusion.training.trainer import Trainer

Tell = Callable[[str], None]


def race(
    arms: Mapping[str, Config],
    out: str | PathLike[str],
    *,
    seeds: Sequence[int] = (0,),
    tuned: Collection[str] = (),
    tune_budget: float | None = None,
    held_out: str | None = None,
    moments: int = 20,
    given: Mapping[str, Collection[str]] | None = None,
    tell: Tell = lambda text: None,
) -> dict[str, Any]:
    """Train all arms, usually for the same time, and tell which is better, or go on with a race that was stopped.

    What the command line's ``race`` calls. Each arm is a run of its own, ``OUT/ARM-seedS/``, which does what `train`
    would do, step by step, without the pictures and checkpoints that would take training time. ``race.json``, all that
    was found, and ``race.html``, a page of it, are written anew at every moment. Where the arms' ``watch`` has metrics,
    their samples are measured at the same moments, on nobody's time.

    Args:
        arms: what races, by name: options of runs that differ in how to train only, with the budget of each run. One
            with a smaller budget has a learning rate that falls within that.
        out: the folder of the race: new or empty, or that of a stopped race of the same arms; more seeds may be given.
        seeds: all arms race with each, one seed after the other.
        tuned: names of arms that get the best batch and learning rate of a sweep first, see `tune`.
        tune_budget: of each sweep, in the unit of the arms' budget, minutes, steps or images; None: as much as the
            largest of theirs.
        held_out: data to judge by. None: the share ``data.held_out`` of the images, which follows from the seed.
        moments: how often all are looked at, evenly over the budget of each.
        given: by arm, names of options that are wanted as they are, see `train`. None: all are.
        tell: is told how it goes, in lines.

    Returns:
        What is in ``race.json``.

    Raises:
        InputError: arms that cannot be compared, no held-out images, or a folder with something else.
        KeyboardInterrupt: after Ctrl-C, once checkpoints are written.

    >>> found = race({"whole": whole, "patches": patches}, "races/photos", tuned=["whole"])  # doctest: +SKIP
    """
    check_arms(arms)
    if moments < 1:
        raise InputError(f"moments is at least 1, not {moments}")
    if not seeds:
        raise InputError("a race takes a seed or more")
    field = Field.open(arms, held_out, given)
    tune_budget = field.extent if tune_budget is None else tune_budget
    if tuned and not tune_budget > 0:
        raise InputError(f"the budget of tuning is above 0, not {tune_budget}")
    folder = RaceFolder(user_path(out))
    plan = {
        "arms": {name: to_dict(config) for name, config in field.arms.items()},
        "held_out": held_out,
        "moments": moments,
        "tuning": {name: tune_budget for name in arms if name in tuned},
    }
    found = folder.check(plan)
    facts, here = _facts(field, seeds[0], folder)  # whatever is wrong with an arm is told before anything is written
    for note in field.told() if found is None else ():
        tell(note)
    folder.path.mkdir(parents=True, exist_ok=True)
    with locked(folder.path):
        record = Record(folder, found, plan, facts)
        record.sit_down(seeds, here)
        settings = {
            name: _tuned(name, field, record, tune_budget, tell) if name in tuned else config
            for name, config in field.arms.items()
        }
        heats = [seed for seed in record.seeds if not record.is_finished(seed)]
        began, before = time.monotonic(), sum(record.moments(seed) for seed in heats)
        for number, seed in enumerate(heats):

            def after(moment: int, number: int = number, seed: int = seed) -> None:
                done = number * moments + moment
                each = (time.monotonic() - began) / (done - before) if done > before else 0.0
                left = each * (len(heats) * moments - done)
                tell(_line(record.write()["points"], seed, moment / moments, left))

            _heat(settings, seed, field, folder, moments, after)
        return record.write()


def _heat(
    settings: Mapping[str, Config],
    seed: int,
    field: Field,
    folder: RaceFolder,
    moments: int,
    after: Callable[[int], None],
) -> None:
    """All arms with one seed; what that takes of memory is free afterwards."""
    built = {name: field.trainer(config, seed, folder.arm(name, seed)) for name, config in settings.items()}
    judges = next(iter(built.values()))[1]  # of all arms the same: they follow from the seed
    trainers = {name: trainer for name, (trainer, _) in built.items()}
    budgets = {name: budget_of(config) for name, config in settings.items()}
    run_heat(trainers, judges, budgets, moments, after, field.meter())


def _facts(field: Field, seed: int, folder: RaceFolder) -> tuple[dict[str, Any], dict[str, Any]]:
    """What there is to know of a race before it begins, and of where it is."""
    built = {name: field.trainer(config, seed, folder.tuning / "none") for name, config in field.arms.items()}
    trainer, judges = next(iter(built.values()))
    facts = {
        "unit": field.unit,
        "budget": field.extent,
        "source": next(iter(field.arms.values())).data.source,
        "images": {"resolution": list(field.images.resolution), "trained_on": len(trainer.images)},
        "judged_by": {"images": min(len(judges), JUDGES), "sigmas": list(SIGMAS)},
        "parameters": {name: trainer.facts.parameters for name, (trainer, _) in built.items()},
        "notes": {name: reasons for name, reasons in field.notes.items() if reasons},
    }
    return facts, circumstances(trainer.engine.device)


def _tuned(name: str, field: Field, record: Record, budget: float, tell: Tell) -> Config:
    """The settings of an arm with the batch and learning rate that suit it, by trials with the first seed."""
    seed, known = record.seeds[0], record.rounds(name)
    if not known:
        tell(f"tuning {name}: batch and learning rate, {length(budget, field.unit)} in all")

    def build(config: Config, out: Path) -> Trainer:
        return field.trainer(config, seed, out)[0]

    def judge(trainer: Trainer) -> float:
        return mean(look(trainer, judges))

    def told(finished: Mapping[str, Any]) -> None:
        record.add_round(name, finished)
        tell(f"tuning {name}: {_told(finished, field.unit)}")

    judges = field.trainer(field.arms[name], seed, record.folder.tuning / "none")[1]
    config, found = tune(field.arms[name], budget, record.folder.tuning, build, judge, known=known, tell=told)
    record.tuned(name, found)
    return config


def _told(finished: Mapping[str, Any], unit: str) -> str:
    trials = finished["trials"]
    best = min(trials, key=lambda trial: math.inf if trial["loss"] is None else trial["loss"])
    loss = "none learned, best" if best["loss"] is None else f"loss {best['loss']:.4f}"
    return (
        f"{len(trials)} settings, {length(finished['budget'], unit)} each: {loss} with batch {best['batch']}, "
        f"learning rate {best['learning_rate']:g}"
    )


def _line(points: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], seed: int, spent: float, left: float) -> str:
    """Where all arms are at a moment, and how many seconds are left, about."""
    losses = [f"{name} {found[str(seed)][-1]['loss']:.4f}" for name, found in points.items() if found[str(seed)]]
    return f"{spent:4.0%}  seed {seed}  {'  '.join(losses)}" + (f"  {clock(left)} left" if left >= 1 else "")
