"""The turns of a race: all arms train with one seed, side by side.

Each turn is a lap of some seconds, so that noise of the machine hits all arms alike. At the same moments all arms are
judged and saved, which does not count as training time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack

from patch_diffusion.data.images import Images
from patch_diffusion.errors import InputError
from patch_diffusion.evaluation.meter import SampleMeter
from patch_diffusion.races.judging import judgement, mean, read_measurements
from patch_diffusion.training.budget import Budget
from patch_diffusion.training.trainer import Trainer

SECONDS_PER_LAP = 15.0
"""The longest time that an arm trains before it is the turn of the next arm."""

_ROUNDED = 1e-6  # the log rounds the spent fraction of a budget


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
