"""Tuning of an arm before a race: a small sweep finds its best learning rate, batch size and options of patches.

The sweep looks along one option after the other, from the best settings so far. Every trial is a complete training
whose learning rate falls to its end. All trials are planned to take equally long, at a speed that is measured once, and
they count steps: so the clock of a busy machine does not choose. Where there is no time for enough steps in each, fewer
settings are tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from patch_diffusion.config import Config
from patch_diffusion.config_dict import flat_options
from patch_diffusion.patches.schedule import Growth
from patch_diffusion.races.cost import Cost
from patch_diffusion.training.budget import Budget
from patch_diffusion.training.optimizing.optimizers import settled

LEAST_STEPS = 50
"""The fewest steps of a trial. Where there is no time for them, a sweep tries fewer settings."""

WHOLE_SHARES = (0.1, 0.25, 0.5, 0.75)
"""The shares of whole images that are tried, those next to the given one first."""

RATE, BATCH, SHARE, SIZES, GROWTH = (
    "optimizer.learning_rate",
    "batch",
    "patches.whole",
    "patches.sizes",
    "patches.growth",
)

MOST_VALUES = 3
"""The most values of one option that are tried, besides the given one."""

_ORDERED = (RATE, BATCH, SHARE)

_PLANNED = 0.9  # the part of a sweep's minutes that is planned for, as the speed was measured on a few steps

Run = Callable[[Config, int], tuple[float, float]]
"""A function that trains a config for some steps; it returns the held-out loss, and the seconds of training."""


def searched(config: Config, given: Collection[str] = ()) -> list[str]:
    """Return the names of the options that a sweep searches, in order.

    Learning rate and batch size are searched even if they were given. Of patches only what was not given is, and only
    if the budget is in minutes, as steps and images do not count what patches save. If it is in steps, the batch size
    stays the same, since a larger one would win by seeing more images.
    """
    names = {"steps": [RATE], "images": [RATE, BATCH]}.get(Budget.of(config).unit, [RATE, BATCH, SHARE, SIZES, GROWTH])
    on_patches = config.patches.whole < 1
    return [name for name in names if name in (RATE, BATCH) or (on_patches and name not in given)]


def most_trials(config: Config, given: Collection[str] = ()) -> int:
    """Return the number of trainings in a sweep, at most."""
    return 1 + sum(_most_values(config, name) for name in searched(config, given))


def tune(
    config: Config,
    budget: float,
    run: Run,
    cost: Cost,
    *,
    given: Collection[str] = (),
    known: Sequence[Mapping[str, Any]] = (),
    tell: Callable[[Mapping[str, Any]], None] = lambda trial: None,
) -> tuple[Config, dict[str, Any]]:
    """Find the best settings for a config; return the config with them and a dict on the sweep.

    Args:
        config: the config to tune; the unit of its budget (steps, images or minutes) is that of ``budget``, too.
        budget: the budget of all trials together, which is kept to but for the last trial if the machine is slower
            than it was when the speed was measured.
        run: a function that trains a config for some steps.
        cost: a function from a config to the part of the budget that a step takes.
        given: names of options that were given for this config.
        known: the trials that an earlier call finished, as it passed them to ``tell``.
        tell: a function that is called with each finished trial, a dict that JSON can store.
    """
    config = with_option(config, RATE, settled(config.optimizer, config.network.kind).learning_rate)
    sweep = _Sweep(config, budget, run, cost, given, known, tell)
    best, names = config, searched(config, given)
    if sweep.num > 1:
        loss = sweep.loss(config, "")
        for name in names:
            best, loss = _along(best, loss, name, sweep)
    options = flat_options(best)
    found = {
        "options": {name: options[name] for name in names if options[name] != flat_options(config)[name]},
        "trials": sweep.trials,
        "outermost": [name for name in _ORDERED if _is_outermost(options, name, sweep.trials)],
        "left_out": sweep.left_out(),
    }
    return best, found


def with_option(config: Config, name: str, value: Any) -> Config:
    """Return a copy of a config with another value of one option, by its full name.

    >>> with_option(Config(), "patches.whole", 0.25).patches.whole
    0.25
    """
    group, _, option = name.rpartition(".")
    if not group:
        return replace(config, **{option: value})
    return replace(config, **{group: replace(getattr(config, group), **{option: value})})


class _Sweep:
    """The trials of a sweep, as many as there is time for.

    Attributes:
        num: the number of trials that are planned.
        trials: those that are finished.
    """

    def __init__(
        self,
        config: Config,
        budget: float,
        run: Run,
        cost: Cost,
        given: Collection[str],
        known: Sequence[Mapping[str, Any]],
        tell: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._config, self._budget, self._run, self._cost = config, budget, run, cost
        self._given, self._known, self._tell = given, known, tell
        self._timed = Budget.of(config).unit == "minutes"
        planned = (_PLANNED if self._timed else 1.0) * budget
        self._asked = most_trials(config, given)
        self.num: int = min(self._asked, int(planned / (LEAST_STEPS * cost(config)) + 1e-9))
        self._length = planned / max(self.num, 1)
        self.trials: list[Mapping[str, Any]] = []
        self._skipped: dict[str, None] = {}

    def loss(self, tried: Config, name: str) -> float:
        """Train a config and return its loss, infinity if training diverged or there is no time for the trial.

        ``name`` is the option in which it differs from the best so far.
        """
        steps = int(self._length / self._cost(tried) + 1e-9)
        if not self._has_room() or steps < LEAST_STEPS:
            self._skipped[name] = None
            return math.inf
        options = flat_options(tried)
        changed = {each: options[each] for each in searched(self._config, self._given)}
        place = len(self.trials)
        known = self._known[place] if place < len(self._known) else {}
        if known.get("options") != changed or known.get("steps") != steps:
            self._known = self._known[:place]  # of other settings, so those after it are, too
            loss, seconds = self._run(tried, steps)
            known = {"options": changed, "steps": steps, "loss": loss if math.isfinite(loss) else None}
            known |= {"seconds": round(seconds, 3)} if self._timed else {}
            self._tell(known)
        self.trials.append(known)
        return math.inf if known["loss"] is None else known["loss"]

    def left_out(self) -> str:
        """Return a sentence on what was not tried as there was no time for it; an empty text if all was."""
        if self.num < 2:
            needed = f"two trainings of {LEAST_STEPS} steps, the fewest that tell settings apart"
            return f"no settings were tried, as there is no time for {needed}"
        if not self._skipped:
            return ""
        names = ", ".join(self._skipped)
        return f"no time was left for some values of {names}: each trial takes {LEAST_STEPS} steps or more"

    def _has_room(self) -> bool:
        used = sum(trial.get("seconds", 0.0) for trial in self.trials) / 60
        slower = max(1.0, used / (len(self.trials) * self._length)) if self.trials else 1.0
        return len(self.trials) < self.num and used + slower * self._length <= self._budget


def _along(best: Config, least: float, name: str, sweep: _Sweep) -> tuple[Config, float]:
    """Return the best config along one option and its loss: the first one, of a loss of ``least``, if none is better.

    Of an option whose values have an order, what follows a better value is tried next, and what lies on the other side
    only if the first one is no better.
    """
    first, left = best, MOST_VALUES
    for values in _directions(first, name):
        for value in values[:left]:
            tried, left = with_option(first, name, value), left - 1
            loss = sweep.loss(tried, name)
            if loss < least:
                best, least = tried, loss
            elif name in _ORDERED:
                break
        if best is not first:
            break
    return best, least


def _directions(config: Config, name: str) -> Iterator[list[Any]]:
    """Yield lists of the values of an option to try, of which each begins next to that of the config."""
    if name in (RATE, BATCH):
        value, least = flat_options(config)[name], _parts(config)
        for factor in (2, 1 / 2) if name == RATE else (1 / 2, 2):
            values = [value * factor**times for times in range(1, MOST_VALUES + 1)]
            rounded = values if name == RATE else [max(least, round(each)) for each in values]
            yield [each for each in dict.fromkeys(rounded) if each != value]
    elif name == SHARE:
        yield [share for share in reversed(WHOLE_SHARES) if share < config.patches.whole]
        yield [share for share in WHOLE_SHARES if share > config.patches.whole]
    elif name == SIZES:
        yield [{size: 1.0} for size in config.patches.sizes] if len(config.patches.sizes) > 1 else []
    else:
        yield [growth for growth in get_args(Growth) if growth != config.patches.growth]


def _most_values(config: Config, name: str) -> int:
    return min(MOST_VALUES, sum(map(len, _directions(config, name))))


def _is_outermost(options: Mapping[str, Any], name: str, trials: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if the best value of an option is the largest or smallest one tried, of several."""
    values = sorted({trial["options"][name] for trial in trials if name in trial["options"]})
    return len(values) > 1 and options[name] in (values[0], values[-1])


def taken(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the options that a finished sweep has chosen, by name, from its dict; None if it is not finished.

    Sweeps of earlier versions searched the batch size and the learning rate, and have both in their dict.
    """
    if "batch" in found:
        return {BATCH: found["batch"], RATE: found["learning_rate"]}
    return found.get("options")


def _parts(config: Config) -> int:
    """Return the smallest possible batch size of a config: one image for each microbatch."""
    return config.engine.accumulation if isinstance(config.engine.accumulation, int) else 1
