"""The turns of a race: all configurations (arms) are trained with one seed, taking turns.

A turn takes some seconds, so that noise of the machine hits all arms alike. All arms are judged by held-out images and
saved after the same shares of their budgets, which does not count as training time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from typing import Any

from patch_diffusion.data.images import Images
from patch_diffusion.errors import InputError
from patch_diffusion.evaluation.meter import SampleMeter
from patch_diffusion.races.judging import Judging, judgement
from patch_diffusion.runs.log import read_log
from patch_diffusion.training.budget import Budget, Cadence
from patch_diffusion.training.trainer import Trainer

Measurements = list[dict[str, Any]]
"""The measurements of one arm by rising time: dicts of step, images, seconds, spent, loss, by_noise and, if samples are
measured, their distances."""

_COUNTS = {"step", "images", "seconds", "spent"}

SECONDS_PER_LAP = 15.0
"""The longest time that an arm trains before it is the turn of the next arm."""

_ROUNDED = 1e-6  # the log rounds the spent fraction of a budget


def read_measurements(log_file: Path) -> Measurements:
    """Read held-out losses, and distances of samples if any, from a training log."""
    found: Measurements = []
    of_samples: dict[int, dict[str, float]] = {}
    for line in read_log(log_file):
        if line is not None and "samples" in line:
            of_samples[line["step"]] = line["samples"]
        elif line is not None and "held_out" in line and line.keys() >= _COUNTS:
            found.append(
                {key: line[key] for key in line if key in _COUNTS} | line["held_out"] | of_samples.get(line["step"], {})
            )
    return found


def run_turns(
    trainers: Mapping[str, Trainer],
    judges: Images,
    budgets: Mapping[str, Budget],
    plan: Judging,
    after: Callable[[int], None] = lambda moment: None,
    meter: SampleMeter | None = None,
) -> None:
    """Train several configurations (arms) in turns until their budgets are spent; arms that lag behind catch up first.

    The held-out losses of each arm are written to the log in its run folder.

    Args:
        trainers: the trainer of each arm by name, which neither samples nor judges itself.
        judges: the held-out images that all arms are judged by.
        budgets: the budget of each arm by name. If they differ, a turn is the same fraction of each.
        plan: when the arms are judged, by how many images, and when by samples.
        after: a function that is called after each judging of all arms, with its number from 1.
        meter: compares samples of all arms with the training images, as often as the plan says.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once checkpoints of all arms are written.
    """
    if meter is not None:
        some = next(iter(trainers.values()))
        meter.begin(some.images, judges, some.engine.device)
    with ExitStack() as stack:
        laps = {name: stack.enter_context(trainer.in_laps(**vars(budgets[name]))) for name, trainer in trainers.items()}
        names, at_work = list(trainers), None
        try:
            for number, (until, moment) in enumerate(_laps(budgets.values(), plan.loss.moments)):
                # The order alternates, because one arm may leave the machine warmer for the next.
                for name in names if number % 2 == 0 else names[::-1]:
                    at_work = name
                    laps[name](until)
                    at_work = None
                if moment is not None:
                    of_samples = meter if plan.measures_samples(moment) else None
                    for name, trainer in trainers.items():
                        _measure(name, trainer, judges, budgets[name], until, plan.loss.images, of_samples)
                    after(moment)
        except InputError as error:
            raise error.reworded(f"arm '{at_work}': {error}" if at_work else str(error)) from None
        except KeyboardInterrupt:
            for name, trainer in trainers.items():
                # The arm that was training has saved itself, or was stopped within a step.
                if name != at_work and budgets[name].spent(trainer.state.counters) < 1:
                    trainer.save(keep=False)
            raise


def _laps(budgets: Collection[Budget], moments: Cadence) -> Iterator[tuple[float, int | None]]:
    """Yield for each turn the share of the budget at which it ends, and the number of the judging after it, or None."""
    minutes = max(budget.minutes or 0.0 for budget in budgets)
    laps = moments.parts * max(1, math.ceil(60 * minutes / moments.parts / SECONDS_PER_LAP))
    judged = 0
    for lap in range(1, laps + 1):
        due = moments.is_due((lap - 1) / laps, lap / laps)
        judged += due
        yield lap / laps, judged if due else None


def _measure(
    name: str, trainer: Trainer, judges: Images, budget: Budget, due: float, most: int, meter: SampleMeter | None
) -> None:
    """Log an arm's held-out loss, then save it: in this order, because log lines after a checkpoint's step are void.

    An arm that was stopped after this judging, on the way to the next, is not judged again.
    """
    before = read_measurements(trainer.run.log_file)
    if before and before[-1]["spent"] >= due - _ROUNDED:
        return
    spent, losses = budget.spent(trainer.state.counters), judgement(trainer, judges, most)
    if not math.isfinite(fmean(losses.values())):
        raise InputError(
            f"arm '{name}': the loss of held-out images is not finite any more, so there is nothing to compare: give a "
            "lower optimizer.learning_rate, in another folder"
        )
    if meter is not None:
        trainer.progress.log_samples(trainer.state.counters, spent, meter(trainer.state.average.denoiser).numbers)
    trainer.progress.log_held_out(trainer.state.counters, spent, losses)
    if spent < 1:
        trainer.save(keep=False)
