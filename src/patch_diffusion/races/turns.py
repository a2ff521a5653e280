"""The turns of a race: all arms train with one seed, side by side.

Each turn is a lap of some seconds, so that noise of the machine hits all arms alike. At the same moments all arms are
judged and saved, which does not count as training time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from patch_diffusion.data.images import Images
from patch_diffusion.denoise.whole_image import whole_image_loss
from patch_diffusion.errors import InputError
from patch_diffusion.evaluation.meter import SampleMeter
from patch_diffusion.runs.log import read_log
from patch_diffusion.training.budget import Budget
from patch_diffusion.training.trainer import Trainer

JUDGES = 256
"""The most held-out images that every arm is judged by."""

Measurements = list[dict[str, Any]]
"""Measurements of an arm by rising time, each with step, images, seconds, spent, loss, by_noise and, if samples are
measured, their distances."""

SECONDS_PER_LAP = 15.0
"""The longest time that an arm trains before it is the turn of the next arm."""

_ROUNDED = 1e-6  # the log rounds the spent fraction of a budget


def judgement(trainer: Trainer, judges: Images) -> dict[float, float]:
    """Compute the loss of a trainer's averaged model on whole held-out images, by noise level."""
    return whole_image_loss(trainer.state.average.denoiser, judges, most=JUDGES)


def mean(losses: Mapping[float, float]) -> float:
    """Return the mean loss over the noise levels, by which arms are compared."""
    return math.fsum(losses.values()) / len(losses)


def read_measurements(log_file: Path) -> Measurements:
    """Read all measurements of an arm so far from the log of its run."""
    found: Measurements = []
    of_samples: dict[int, dict[str, float]] = {}
    for line in read_log(log_file):
        if line is not None and "samples" in line:
            of_samples[line["step"]] = line["samples"]
        elif line is not None and "held_out" in line:
            counts = {key: line[key] for key in ("step", "images", "seconds", "spent")}
            found.append(counts | line["held_out"] | of_samples.get(line["step"], {}))
    return found


def run_turns(
    trainers: Mapping[str, Trainer],
    judges: Images,
    budgets: Mapping[str, Budget],
    moments: int,
    after: Callable[[int], None] = lambda moment: None,
    meter: SampleMeter | None = None,
) -> None:
    """Train all arms in turns until their budgets are spent; stopped arms continue in step with the others.

    The measurements go into the log of each run, as losses of held-out images.

    Args:
        trainers: the trainers by name; they do nothing but train.
        judges: the held-out images that all arms are judged by.
        budgets: the budgets by name. If they differ, a lap is the same fraction of each.
        moments: how often the arms are judged, evenly over their budgets.
        after: is called with the number of each moment after it.
        meter: measures samples of all arms at the same moments, and compares them with the training images.

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
            for number, (until, moment) in enumerate(_laps(budgets.values(), moments)):
                # The order alternates, because one arm may leave the machine warmer for the next.
                for name in names if number % 2 == 0 else names[::-1]:
                    at_work = name
                    laps[name](until)
                    at_work = None
                if moment is not None:
                    for name, trainer in trainers.items():
                        _measure(name, trainer, judges, budgets[name], moment / moments, meter)
                    after(moment)
        except InputError as error:
            raise InputError(f"arm '{at_work}': {error}" if at_work else str(error)) from None
        except KeyboardInterrupt:
            for name, trainer in trainers.items():
                # The arm at work has saved itself, or was stopped within a step.
                if name != at_work and budgets[name].spent(trainer.state.counters) < 1:
                    trainer.save(keep=False)
            raise


def _laps(budgets: Collection[Budget], moments: int) -> Iterator[tuple[float, int | None]]:
    """Yield the fraction of the budget at which each lap ends, and the number of the moment that follows it or None."""
    minutes = max(budget.minutes or 0.0 for budget in budgets)
    per_moment = max(1, math.ceil(60 * minutes / moments / SECONDS_PER_LAP))
    for lap in range(1, moments * per_moment + 1):
        yield lap / (moments * per_moment), None if lap % per_moment else lap // per_moment


def _measure(
    name: str, trainer: Trainer, judges: Images, budget: Budget, due: float, meter: SampleMeter | None
) -> None:
    """Judge an arm, then save it: in this order, because log lines after the checkpoint's step are void.

    An arm that was stopped on the way to a later moment has been judged already.
    """
    before = read_measurements(trainer.run.log_file)
    if before and before[-1]["spent"] >= due - _ROUNDED:
        return
    spent, losses = budget.spent(trainer.state.counters), judgement(trainer, judges)
    if not math.isfinite(mean(losses)):
        raise InputError(
            f"arm '{name}': the loss of held-out images is not finite any more, so there is nothing to compare: give a "
            "lower optimizer.learning_rate, in another folder"
        )
    if meter is not None:
        trainer.progress.log_samples(trainer.state.counters, spent, meter(trainer.state.average.denoiser).numbers)
    trainer.progress.log_held_out(trainer.state.counters, spent, losses)
    if spent < 1:
        trainer.save(keep=False)
