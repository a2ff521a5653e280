"""The plan of the doctor: what is tried, in which order, for how long; and what is left out when the time is over."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from patch_diffusion.data.held_out import HELD_OUT
from patch_diffusion.doctor.apart import Outcome, apart
from patch_diffusion.doctor.checks import CHECKS, COMPILE
from patch_diffusion.doctor.equality import PAIRS
from patch_diffusion.doctor.machine import machine
from patch_diffusion.doctor.report import (
    Comparison,
    Diagnosis,
    Finding,
    ShortRace,
    Speed,
    State,
    comparison_text,
    products_text,
    race_text,
)
from patch_diffusion.doctor.speed import ON_CPU, ON_GPU, measure, predicted_speeds, rates, usual_format
from patch_diffusion.doctor.trials import DIGITS
from patch_diffusion.errors import InputError
from patch_diffusion.processes import started_by_launcher
from patch_diffusion.races.arms import PATCHES, WHOLE, whole_images
from patch_diffusion.races.race import race
from patch_diffusion.version import __version__

_LONGEST, _LONGEST_COMPILED = 90.0, 240.0  # seconds of one trial
_NO_RATES: dict[str, Any] = {"products": {}, "bandwidth": None}
_LEAST = 15.0  # seconds that a prediction takes
_MOST_STEPS = 100_000
_DEVICES = {"cpu": "CPUs", "cuda": "CUDA GPUs", "mps": "Apple GPUs"}


@dataclass(frozen=True)
class Plan:
    """How much is tried, and until when.

    Args:
        quick: True for the quick checks and comparisons, and the speed of the first preset alone.
        checks, comparisons, speeds: seconds on the clock from which on no more of these begin.
        timed: seconds for which the steps of a preset are timed.
        race: minutes of training of each arm of the race; 0 is no race.
        whole: seconds on the clock at which what runs is ended.
    """

    quick: bool = False
    checks: float = 240.0
    comparisons: float = 280.0
    speeds: float = 430.0
    timed: float = 4.0
    race: float = 0.4
    whole: float = 540.0


FULL, QUICK = Plan(), Plan(True, checks=60.0, comparisons=80.0, speeds=110.0, timed=3.0, race=0.0, whole=150.0)


class _Clock:
    """The time of a plan, and what was left out since it was over."""

    def __init__(self, whole: float, tell: Callable[[str], None]) -> None:
        self._began, self._whole, self._tell = time.monotonic(), whole, tell
        self.left_out: list[str] = []

    @property
    def seconds(self) -> float:
        """The time so far."""
        return time.monotonic() - self._began

    def has_time(self, name: str, until: float) -> bool:
        """True if something may begin, as it is not yet ``until`` on the clock; else it is noted as left out."""
        if self.seconds < until:
            return True
        self.left_out.append(name)
        return False

    def call(
        self, name: str, function: Callable[..., Any], *arguments: Any, within: float, **options: Any
    ) -> Outcome | None:
        """Call a function apart; None if the whole of the plan ends before it, which notes it as left out."""
        left = max(self._whole - self.seconds, 1.0)
        done = apart(function, *arguments, within=min(within, left), **options)
        if done.late and left < within:
            self.left_out.append(name)
            return None
        return done

    def tell(self, name: str, text: str) -> None:
        """Tell of something that is done, with the time so far."""
        minutes, seconds = divmod(round(self.seconds), 60)
        self._tell(f"{minutes}:{seconds:02}  {name}: {text}")


def diagnose(*, quick: bool = False, tell: Callable[[str], None] = lambda text: None) -> Diagnosis:
    """Try on this machine what training and sampling need, and measure how fast it is, in some minutes.

    The command line's ``doctor`` calls it. Each trial runs in a process of its own, so that one that fails, crashes or
    hangs is one line of the result. Nothing in the result names a user, a machine, a path or the environment.

    Args:
        quick: take about a minute: the main checks, and the speed of one preset.
        tell: a function that is called with each line of text on the progress.

    Raises:
        InputError: this is one of several processes of a launcher.

    >>> found = diagnose(quick=True)  # doctest: +SKIP
    >>> found.failed  # doctest: +SKIP
    []
    """
    return carry_out(QUICK if quick else FULL, tell)


def carry_out(plan: Plan, tell: Callable[[str], None]) -> Diagnosis:
    """Carry out a plan, see `diagnose`."""
    if started_by_launcher():
        raise InputError("the doctor starts processes of its own: call it without torchrun or another launcher")
    clock, here = _Clock(plan.whole, tell), machine()
    checks = list(_checks(plan, clock, here["device"]))
    comparisons = list(_comparisons(plan, clock, here["device"]))
    compiles = any(check.name == COMPILE and check.state == "ok" for check in checks)
    found, speeds = _speeds(plan, clock, ON_GPU if here["gpus"] else ON_CPU, compiles)
    raced = _race(plan, clock)
    if here["device"] == "cuda":
        speeds = list(_predicted(speeds, plan, clock, found))
    return Diagnosis(
        version=__version__,
        quick=plan.quick,
        seconds=round(clock.seconds, 1),
        machine=here,
        checks=checks,
        comparisons=comparisons,
        products=found["products"],
        bandwidth=found["bandwidth"],
        speeds=speeds,
        race=raced,
        left_out=clock.left_out,
    )


def _checks(plan: Plan, clock: _Clock, device: str) -> Iterator[Finding]:
    for check in CHECKS:
        if plan.quick and not check.quick:
            continue
        if device not in check.devices:
            yield Finding(
                check.name, "not here", 0.0, f"it is for {' and '.join(_DEVICES[each] for each in check.devices)}"
            )
            continue
        if not clock.has_time(check.name, plan.checks):
            continue
        done = clock.call(check.name, check.function, *check.arguments, within=check.seconds)
        if done is None:
            continue
        state: State = "ok" if not done.reason else "not here" if done.absent else "failed"
        told = done.reason or str(done.value)
        clock.tell(check.name, f"{state}, {told}")
        yield Finding(check.name, state, round(done.seconds, 1), told, check.advice if state == "failed" else "")


def _comparisons(plan: Plan, clock: _Clock, device: str) -> Iterator[Comparison]:
    for pair in PAIRS:
        if (plan.quick and not pair.quick) or device not in pair.devices:
            continue
        if not clock.has_time(pair.name, plan.comparisons):
            continue
        done = clock.call(pair.name, pair.function, within=_LONGEST)
        if done is None:
            continue
        found = {"all": [None, 0.0]} if done.reason else done.value
        for what, (difference, tolerance) in found.items() if not done.absent else ():
            comparison = Comparison(pair.name, what, difference, tolerance, done.reason)
            clock.tell(f"{pair.name}, {what}", comparison_text(comparison))
            yield comparison


def _speeds(plan: Plan, clock: _Clock, presets: Sequence[str], compiles: bool) -> tuple[dict[str, Any], list[Speed]]:
    """Return what `rates` measured, and the speeds of presets."""
    formats = ["float32", *(["bfloat16"] if usual_format() != "fp32" else [])]
    if not clock.has_time("speed", plan.speeds):
        return _NO_RATES, []
    done = clock.call("matrix products", rates, formats, within=_LONGEST)
    found = (done.value if done else None) or _NO_RATES
    clock.tell("matrix products", products_text(found["products"]))
    ways = (each for each in _ways(presets, compiles, plan.quick) if clock.has_time(each.name, plan.speeds))
    speeds = [_measured(each, plan, clock, found["products"]) for each in ways]
    return found, [speed for speed in speeds if speed is not None]


def _predicted(speeds: list[Speed], plan: Plan, clock: _Clock, found: Mapping[str, Any]) -> Iterator[Speed]:
    """Yield the speeds with those that the roofline model predicts for eager training on this GPU."""
    values: dict[tuple[str, str], float] = {}
    eager = [speed for speed in speeds if speed.way == "eager" and not speed.told]
    for preset in dict.fromkeys(speed.preset for speed in eager):
        name = f"prediction of {preset}"
        if not clock.has_time(name, plan.whole - _LEAST):
            continue
        half = any(speed.format != "float32" for speed in eager)
        ways = [(preset, False), (preset, True)]
        done = clock.call(name, predicted_speeds, ways, half, found["products"], found["bandwidth"], within=_LONGEST)
        if done is None:
            continue
        clock.tell(name, done.reason or "done")
        values |= zip([(preset, "patches"), (preset, "whole")], done.value or (), strict=False)
    for speed in speeds:
        yield replace(speed, predicted=values.get((speed.preset, speed.images))) if speed in eager else speed


def _ways(presets: Sequence[str], compiles: bool, quick: bool) -> Iterator[Speed]:
    """Yield what is measured, the most telling first; on a CPU compiling a preset takes minutes for each patch size."""
    first, second, *others = presets
    gpu = presets is ON_GPU
    for preset in [first] if quick else presets:
        yield from (Speed(preset, images, "eager") for images in ("patches", "whole"))
        if compiles and not quick and gpu and preset in (first, second):
            yield Speed(preset, "patches", "compiled")
    if compiles and not quick:
        yield from (Speed(preset, "patches", "compiled") for preset in others if gpu)
        yield from [] if gpu else [Speed(first, "whole", "compiled")]


def _measured(speed: Speed, plan: Plan, clock: _Clock, products: Mapping[str, float]) -> Speed | None:
    """Return a speed with its figures, or with the reason why there are none; None if it is left out."""
    done = clock.call(
        speed.name,
        measure,
        speed.preset,
        usual_format(),
        compiled=speed.way == "compiled",
        whole=speed.images == "whole",
        steps=_MOST_STEPS,
        seconds=plan.timed,
        within=_LONGEST_COMPILED if speed.way == "compiled" else _LONGEST,
    )
    if done is None:
        return None
    if done.reason:
        clock.tell(speed.name, f"failed, {done.reason}")
        return replace(speed, told=done.reason)
    found = dict(done.value)
    flops, peak = found.pop("flops_per_second"), products.get(found["format"])
    clock.tell(speed.name, f"{found['images_per_second']:,.3g} images/s")
    each = flops / found["images_per_second"]
    return replace(speed, **found, flops_per_image=each, utilisation=flops / peak if peak else None)


def _race(plan: Plan, clock: _Clock) -> ShortRace | None:
    seconds = 2 * 60 * plan.race
    if not plan.race or not clock.has_time("race", plan.whole - 1.5 * seconds):
        return None
    done = clock.call("race", short_race, plan.race, within=2 * seconds + _LONGEST)
    if done is None:
        return None
    raced = ShortRace(plan.race, told=done.reason) if done.reason else ShortRace(plan.race, **done.value)
    clock.tell("race", race_text(raced))
    return raced


def short_race(minutes: float) -> dict[str, Any]:
    """Race patches against whole images on the built-in digits, for some minutes each.

    Returns:
        ``losses``, held-out losses of each arm in the order of time, and ``images_per_second``.
    """
    patches = replace(DIGITS, data=replace(DIGITS.data, held_out=HELD_OUT), batch=32, minutes=minutes)
    with tempfile.TemporaryDirectory() as folder:
        arms = {WHOLE: whole_images(patches), PATCHES: patches}
        points = race(arms, Path(folder) / "race", moments=4)["points"]
    ends = {name: by_seed["0"] for name, by_seed in points.items()}
    return {
        "losses": {name: [point["loss"] for point in found] for name, found in ends.items()},
        "images_per_second": {name: found[-1]["images"] / found[-1]["seconds"] for name, found in ends.items()},
    }
