"""A fair opponent: the batch and the learning rate that suit an arm, found by a small sweep before the race.

Successive halving (Jamieson and Talwalkar, arXiv 1502.07943): all candidates are trained for a short while, the better
half for twice as long, and so on. Every trial is a whole training with a learning rate that falls to its end; those of
a round take turns, so that noise of the machine hits all alike. What was given stays in to the last round: what does
not beat it there is not taken. Where the best is the outermost that was tried, what lies further out is tried too.
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
from patch_diffusion.training.trainer import Trainer

BATCHES, RATES = (1 / 4, 1 / 2, 1, 2), (1 / 2, 1, 2)
"""Factors on the batch and on the learning rate that are tried, in all combinations."""

_FURTHER = 2  # rounds of going further out, where the best is outermost

_TURNS = 8  # that each trial of a round takes

Judge = Callable[[Trainer], float]
"""The loss that the averaged model of a trainer has on held-out images."""

Build = Callable[[Config, Path], Trainer]


@dataclass(frozen=True)
class Candidate:
    """What is tried."""

    batch: int
    learning_rate: float

    def of(self, config: Config) -> Config:
        """The settings with it."""
        optimizer = replace(config.optimizer, learning_rate=self.learning_rate)
        return replace(config, batch=self.batch, optimizer=optimizer)


def candidates(config: Config) -> list[Candidate]:
    """All that are tried for these settings, the settings' own first.

    Where the budget is in steps a larger batch would win by seeing more, so then the batch is left alone.
    """
    assert isinstance(config.batch, int)
    batches = (1,) if config.steps is not None else BATCHES
    given = Candidate(config.batch, config.optimizer.learning_rate)
    found = [
        Candidate(max(_parts(config), round(batch * given.batch)), rate * given.learning_rate)
        for batch in batches
        for rate in RATES
    ]
    return list(dict.fromkeys([given, *found]))


def rounds(num: int) -> list[int]:
    """How many candidates take part in each round."""
    found = [num]
    while found[-1] >= 4:
        found.append(found[-1] // 2)
    return found


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
    """The settings with the best batch and learning rate, and how they were found.

    Args:
        config: the settings; their budget's kind, steps, images or minutes, is that of ``budget``.
        budget: of all trials together, about.
        folder: for the trials, removed after each round.
        build: makes a trainer.
        judge: says how good it is in the end.
        known: rounds that were finished before, as they were told.
        tell: is given every round that is finished, ready for JSON.
    """
    grid = candidates(config)
    given, sizes = grid[0], rounds(len(grid))
    last = 2 ** (len(sizes) - 1)  # a trial of the last round, in trials of the first
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
    for _ in range(_FURTHER):
        if further := _further_out(best, grid, config):
            trials = [*trials, *run(further, unit * last)]
            grid = [*grid, *further]
            (best,) = _best(trials, 1)
    return best.of(config), {**vars(best), "rounds": finished, "outermost": _outermost(best, grid)}


def _best(trials: Sequence[Mapping[str, Any]], num: int, given: Candidate | None = None) -> list[Candidate]:
    """The best of some trials of one length, in the order of their losses; the given one in any case."""
    trials = sorted(trials, key=lambda trial: trial["loss"] if trial["loss"] is not None else math.inf)
    found = [Candidate(trial["batch"], trial["learning_rate"]) for trial in trials]
    return found[:num] if given is None or given in found[:num] else [*found[: num - 1], given]


def _outermost(best: Candidate, tried: Sequence[Candidate]) -> list[str]:
    """In what the best is the largest or the smallest that was tried, so that what was not tried may be better."""
    return [
        name
        for name in ("batch", "learning_rate")
        if len(values := sorted({getattr(each, name) for each in tried})) > 1
        and getattr(best, name) in (values[0], values[-1])
    ]


def _further_out(best: Candidate, tried: Sequence[Candidate], config: Config) -> list[Candidate]:
    """Half or twice of that in which the best is outermost, the other as it is."""
    found = []
    for name in _outermost(best, tried):
        value = getattr(best, name)
        factor = 2 if value == max(getattr(each, name) for each in tried) else 1 / 2
        other = replace(best, **{name: factor * value})
        found.append(replace(other, batch=max(_parts(config), round(other.batch))))
    return [each for each in found if each not in tried]


def _parts(config: Config) -> int:
    """The smallest batch there is."""
    return config.engine.accumulation if isinstance(config.engine.accumulation, int) else 1


def _round(configs: Sequence[Config], budget: float, folder: Path, build: Build, judge: Judge) -> list[float | None]:
    """The losses after training each for that long; None where there is none, as training went wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with ExitStack() as stack:
            # A trial that goes wrong is no reason to end: it has lost.
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
    """The budget of a trial, of the kind that the config's is."""
    if config.minutes is not None:
        return {"minutes": budget}
    name = "steps" if config.steps is not None else "images"
    return {name: max(1, round(budget))}
