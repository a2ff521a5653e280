"""Tuning of an arm before a race, as a fair opponent: a small sweep finds its best batch size and learning rate.

The sweep is successive halving (Jamieson and Talwalkar, arXiv 1502.07943): all candidates are trained for a short time,
the better half for twice as long, and so on. Every trial is a complete training whose learning rate falls to its end;
the trials of a round take turns, so that noise of the machine hits all alike. The given settings stay until the last
round, and other settings must beat them there. If the best is the outermost candidate, up to two are tried beyond it.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from patch_diffusion.config import Config
from patch_diffusion.training.budget import Budget
from patch_diffusion.training.optimizing.optimizers import settled
from patch_diffusion.training.trainer import Trainer

BATCHES, RATES = (1 / 4, 1 / 2, 1, 2), (1 / 2, 1, 2)
"""The factors on the batch and on the learning rate that are tried, in all combinations."""

_FURTHER = 2  # candidates further out, if the best is outermost

_TURNS = 8  # the number of turns that each trial of a round takes

Judge = Callable[[Trainer], float]
"""A function from a trainer to the loss of its averaged model on held-out images."""

Build = Callable[[Config, Path], Trainer]


@dataclass(frozen=True)
class Candidate:
    """A batch size and a learning rate to try in a tuning sweep."""

    batch: int
    learning_rate: float

    def of(self, config: Config) -> Config:
        """Return a copy of a config with this batch size and learning rate."""
        optimizer = replace(config.optimizer, learning_rate=self.learning_rate)
        return replace(config, batch=self.batch, optimizer=optimizer)


def candidates(config: Config) -> list[Candidate]:
    """Return all pairs of batch size and learning rate to try for a config, its own pair first.

    If the budget is in steps, a larger batch would win by seeing more images, so then the batch stays the same.
    """
    assert isinstance(config.batch, int)
    batches = (1,) if config.steps is not None else BATCHES
    usual = settled(config.optimizer, config.network.kind).learning_rate
    assert usual is not None
    given = Candidate(config.batch, usual)
    found = [
        Candidate(max(_parts(config), round(batch * given.batch)), rate * usual) for batch in batches for rate in RATES
    ]
    return list(dict.fromkeys([given, *found]))


def rounds(num: int) -> list[int]:
    """Return the number of candidates in each round of a sweep of ``num``, halved until fewer than 4 are left."""
    found = [num]
    while found[-1] >= 4:
        found.append(found[-1] // 2)
    return found


def num_trials(config: Config) -> int:
    """Return the number of trainings in a sweep, at most."""
    return sum(rounds(len(candidates(config)))) + 2 * _FURTHER


def tune(
    config: Config,
    budget: float,
    folder: Path,
    build: Build,
    judge: Judge,
    *,
    known: Sequence[Mapping[str, Any]] = (),
    tell: Callable[[Mapping[str, Any]], None] = lambda finished: None,
) -> tuple[Config, dict[str, Any]]:
    """Find the best batch size and learning rate for a config; return the config with them and a dict on the sweep.

    Args:
        config: the config to tune; the unit of its budget (steps, images or minutes) is that of ``budget``, too.
        budget: the budget of all trials together, which is kept to but for the last step of each trial.
        folder: a folder for the trial trainings, removed after each round.
        build: a function from a config and a run folder to a trainer.
        judge: a function from a trainer to the held-out loss of its model.
        known: the rounds that an earlier call finished, as it passed them to ``tell``.
        tell: a function that is called with each finished round, a dict that JSON can store.
    """
    grid = candidates(config)
    given, sizes = grid[0], rounds(len(grid))
    last = 2 ** (len(sizes) - 1)  # the length of a trial of the last round, in trials of the first
    unit = budget / (sum(num * 2**number for number, num in enumerate(sizes)) + _FURTHER * last)
    finished: list[Mapping[str, Any]] = []

    def run(tried: Sequence[Candidate], length: float) -> Sequence[Mapping[str, Any]]:
        if len(finished) < len(known):
            finished.append(known[len(finished)])
        else:
            losses = _round([each.of(config) for each in tried], length, folder, build, judge)
            trials = [{**vars(each), "loss": loss} for each, loss in zip(tried, losses, strict=True)]
            finished.append({"budget": length, "trials": trials})
            tell(finished[-1])
        return finished[-1]["trials"]

    trials = run(grid, unit)
    for number, num in enumerate(sizes[1:], start=1):
        trials = run(_best(trials, num, given), unit * 2**number)
    (best,) = _best(trials, 1)
    left = _FURTHER
    # Of a race that is continued all rounds count, of which earlier versions made more.
    while further := _further_out(best, grid, config)[: max(left, 2 * (len(finished) < len(known)))]:
        found = run(further, unit * last)
        trials, grid, left = [*trials, *found], [*grid, *_best(found, len(found))], left - len(found)
        (best,) = _best(trials, 1)
    return best.of(config), {**vars(best), "rounds": finished, "outermost": _outermost(best, grid)}


def _best(trials: Sequence[Mapping[str, Any]], num: int, given: Candidate | None = None) -> list[Candidate]:
    """Return the ``num`` candidates of lowest loss in trials of one length, always including ``given`` if not None."""
    trials = sorted(trials, key=lambda trial: trial["loss"] if trial["loss"] is not None else math.inf)
    found = [Candidate(trial["batch"], trial["learning_rate"]) for trial in trials]
    return found[:num] if given is None or given in found[:num] else [*found[: num - 1], given]


def _outermost(best: Candidate, tried: Sequence[Candidate]) -> list[str]:
    """Return the names of options whose value in the best candidate is the largest or smallest one tried."""
    return [
        name
        for name in ("batch", "learning_rate")
        if len(values := sorted({getattr(each, name) for each in tried})) > 1
        and getattr(best, name) in (values[0], values[-1])
    ]


def _further_out(best: Candidate, tried: Sequence[Candidate], config: Config) -> list[Candidate]:
    """Return new candidates beyond the best one: half or twice each outermost option, the other one unchanged."""
    found = []
    for name in _outermost(best, tried):
        value = getattr(best, name)
        factor = 2 if value == max(getattr(each, name) for each in tried) else 1 / 2
        other = replace(best, **{name: factor * value})
        found.append(replace(other, batch=max(_parts(config), round(other.batch))))
    return [each for each in found if each not in tried]


def _parts(config: Config) -> int:
    """Return the smallest possible batch size of a config: one image for each microbatch."""
    return config.engine.accumulation if isinstance(config.engine.accumulation, int) else 1


def _round(configs: Sequence[Config], budget: float, folder: Path, build: Build, judge: Judge) -> list[float | None]:
    """Train one model for each config and return the held-out losses in order, None where training diverged."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with ExitStack() as stack:
            # A trial that diverges has merely lost, so the watchdog must not end the sweep.
            trainers = [
                build(replace(config, watchdog="off"), folder / f"{place}") for place, config in enumerate(configs)
            ]
            laps = [
                stack.enter_context(trainer.in_laps(**_scaled(config, budget)))
                for trainer, config in zip(trainers, configs, strict=True)
            ]
            for turn in range(1, _TURNS + 1):
                for train_until in laps:
                    train_until(turn / _TURNS)
            losses = [judge(trainer) for trainer in trainers]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return [loss if math.isfinite(loss) else None for loss in losses]


def _scaled(config: Config, budget: float) -> dict[str, Any]:
    """Return the budget of a trial as a dict with one of "steps", "images" and "minutes", as the config has."""
    unit = Budget.of(config).unit
    return {unit: budget if unit == "minutes" else max(1, round(budget))}
