"""A heat: all arms of a race with one seed, side by side.

They take turns, a lap of some seconds each, so that noise of the machine hits all alike. At the same moments all are
looked at and saved. Neither counts as training time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack

from patch_diffusion.data.images import Images
from patch_diffusion.errors import InputError
from patch_diffusion.evaluation.meter import SampleMeter
from patch_diffusion.races.judging import look, mean, measured
from patch_diffusion.training.budget import Budget
from patch_diffusion.training.trainer import Trainer

SECONDS_PER_LAP = 15.0
"""That an arm trains, at most, before it is the next one's turn."""

_ROUNDED = 1e-6  # what the log leaves of the fraction that is spent


def run_heat(
    trainers: Mapping[str, Trainer],
    judges: Images,
    budgets: Mapping[str, Budget],
    moments: int,
    after: Callable[[int], None] = lambda moment: None,
    meter: SampleMeter | None = None,
) -> None:
    """Train all until their budget is spent; those that were stopped go on, in step with the others.

    What is measured is in the log of each run, as the loss of held-out images.

    Args:
        trainers: by name; they do nothing but train.
        judges: the images that all are looked at with.
        budgets: of each, by name. Where they are not alike a lap is as large a part of each.
        moments: how often they are looked at, evenly over their budgets.
        after: is called after each moment.
        meter: measures samples of all at the same moments, beside the images that they are trained on.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once a checkpoint of all is written.
    """
    if meter is not None:
        some = next(iter(trainers.values()))
        meter.begin(some.images, judges, some.engine.device)
    with ExitStack() as stack:
        laps = {name: stack.enter_context(trainer.in_laps(**vars(budgets[name]))) for name, trainer in trainers.items()}
        names, at_work = list(trainers), None
        try:
            for number, (until, moment) in enumerate(_laps(budgets.values(), moments)):
                # Each begins as often as the others, should one leave the machine warmer than the next one finds it.
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
                # The one at work has saved itself, or was stopped within a step.
                if name != at_work and budgets[name].spent(trainer.state.counters) < 1:
                    trainer.save(keep=False)
            raise


def _laps(budgets: Collection[Budget], moments: int) -> Iterator[tuple[float, int | None]]:
    """The fraction of its budget that each lap of an arm ends at, and the moment that comes then, if one does."""
    minutes = max(budget.minutes or 0.0 for budget in budgets)
    per_moment = max(1, math.ceil(60 * minutes / moments / SECONDS_PER_LAP))
    for lap in range(1, moments * per_moment + 1):
        yield lap / (moments * per_moment), None if lap % per_moment else lap // per_moment


def _measure(
    name: str, trainer: Trainer, judges: Images, budget: Budget, due: float, meter: SampleMeter | None
) -> None:
    """Look at an arm, and save it: in this order, as what is in the log of later steps than the checkpoint is void.

    One that was stopped on the way to a later moment has been looked at.
    """
    before = measured(trainer.run.log_file)
    if before and before[-1]["spent"] >= due - _ROUNDED:
        return
    spent, losses = budget.spent(trainer.state.counters), look(trainer, judges)
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
