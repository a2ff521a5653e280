"""The log of a training run as curves of bounded length, newest lines and notes, for pages and live views."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from patch_diffusion.runs.log import Line, read_log

_MOST_POINTS = 128  # most points of a curve, an even number; more would show noise
_RECENT = 10  # number of training lines from which the speed and the time left are computed
_FIRST_NOTES, _LAST_NOTES = 40, 160  # number of notes that are kept if there are very many

ENOUGH_IMAGES = 100_000
"""A rule of thumb for how many images a training draws, at the least, before samples are recognisable: about what
digits of 16 x 16 took. Cat faces of 32 x 32 were blurry after twice as many (LOG.md, "Settings of the demo")."""

TIMES = {"steps": ("step", 1.0), "images": ("images", 1.0), "minutes": ("seconds", 1 / 60)}
"""The units of a curve's horizontal axis, each with its key in a line of the log and the factor that converts it."""

DISTANCES = {"frechet": "Frechet distance", "kernel": "kernel distance"}
"""The display names of the distances between samples and images, by their keys in the log."""

SHARES = {
    "near_copies": "samples",
    "near_copies_held_out": "held-out images",
    "near_copies@1/2": "1/2 of samples",
    "near_copies_held_out@1/2": "1/2 of held-out images",
    "near_copies@1/4": "1/4 of samples",
    "near_copies_held_out@1/4": "1/4 of held-out images",
}
"""The display names of the images, or patches, whose share of near copies of training images is logged, by log key."""


def shows_few(num_images: float) -> bool:
    """Return True if a training that drew so many images has begun, but has not seen `ENOUGH_IMAGES`."""
    return 0 < num_images < ENOUGH_IMAGES


@dataclass(frozen=True)
class Point:
    """A point of a downsampled curve: the mean, lowest and highest of several values, at the mean of their steps."""

    step: float
    value: float
    least: float
    most: float


_Sums = tuple[int, float, float, float, float]
"""A point while values are added: number of values, sum of steps, sum of values, least value, greatest value."""


class Curve:
    """A curve of values over steps in bounded memory: when points are too many, neighbouring ones are merged in pairs.

    Args:
        most: the largest number of points.
    """

    def __init__(self, most: int = _MOST_POINTS) -> None:
        self._most = most
        self._per_point = 1
        self._points: list[_Sums] = []

    @classmethod
    def of(cls, points: Sequence[Point]) -> Curve:
        """Make a curve from finished points, which keep their lowest and highest values and are not merged."""
        curve = cls(most=max(2, 2 * len(points)))
        curve._points = [(1, point.step, point.value, point.least, point.most) for point in points]
        return curve

    def add(self, step: float, value: float) -> None:
        """Append a value to the curve; a value that is not finite is left out."""
        if not math.isfinite(value):
            return
        new = (1, float(step), value, value, value)
        if self._points and self._points[-1][0] < self._per_point:
            self._points[-1] = _joined(self._points[-1], new)
            return
        if len(self._points) == self._most:
            pairs = zip(self._points[::2], self._points[1::2], strict=True)
            self._points = [_joined(one, other) for one, other in pairs]
            self._per_point *= 2
        self._points.append(new)

    def __bool__(self) -> bool:
        return bool(self._points)

    def points(self) -> list[Point]:
        """Return the points of the curve in the order of their steps, at most ``most`` of them."""
        return [Point(steps / num, total / num, least, most) for num, steps, total, least, most in self._points]


class History:
    """The curves, newest lines and notes of a run's log, built up from log lines that are added one by one.

    Args:
        over: the unit of the horizontal axis of the curves, one of `TIMES`.

    Attributes:
        loss: a curve for each patch size, the largest first.
        by_noise, held_out_by_noise: a curve for each noise level, by rising level.
        held_out_by_size: a curve for each patch size, the largest first.
        samples: a curve for each metric of samples, by its name in the log.
        held_out, learning_rate, speed: a curve each, of held-out loss, learning rate, and images per second.
        last, last_held_out, last_samples: the newest line of each kind, empty if there is none.
        best_held_out: the line with the lowest loss of held-out images.
        notes: (step, text) of the first and the newest notes.
        num_lines, num_damaged, num_notes: the number of lines, of damaged lines and of notes so far.
    """

    def __init__(self, over: str = "steps") -> None:
        self._time, self._factor = TIMES[over]
        self._loss: dict[str, Curve] = {}
        self._newest_loss: dict[str, float] = {}
        self._by_noise: dict[str, Curve] = {}
        self._held_out_by_noise: dict[str, Curve] = {}
        self._held_out_by_size: dict[str, Curve] = {}
        self.samples: dict[str, Curve] = {}
        self.held_out: Curve = Curve()
        self.learning_rate: Curve = Curve()
        self.speed: Curve = Curve()
        self.last: Line = {}
        self.last_held_out: Line = {}
        self.best_held_out: Line = {}
        self.last_samples: Line = {}
        self.num_lines: int = 0
        self.num_damaged: int = 0
        self.num_notes: int = 0
        self._first_notes: list[tuple[int, str]] = []
        self._last_notes: deque[tuple[int, str]] = deque(maxlen=_LAST_NOTES)
        self._recent: deque[Line] = deque(maxlen=_RECENT)

    @classmethod
    def of(cls, lines: Iterable[Line | None], over: str = "steps") -> History:
        """Make a history (curves, newest lines, notes) from the lines of a log; None stands for a damaged line."""
        history = cls(over)
        for line in lines:
            history.add(line)
        return history

    @classmethod
    def read(cls, path: Path, over: str = "steps") -> History:
        """Read a log file into a history (curves, newest lines, notes), which is empty if the file is missing."""
        return cls.of(read_log(path), over)

    def add(self, line: Line | None) -> None:
        """Add the next log line to the curves and notes; count it as damaged if it is not as a trainer writes it."""
        self.num_lines += 1
        try:
            if line is None:
                raise ValueError("no JSON object with a step")
            self._add(line)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            self.num_damaged += 1

    def _add(self, line: Line) -> None:
        if "loss" in line:
            place = self._place(line)
            losses, by_noise = _numbers(line["loss"]), _by_level(line.get("loss_by_noise", {}))
            rate, _ = float(line["learning_rate"]), _seen(line)
            _add_each(self._loss, place, losses)
            self._newest_loss |= losses
            _add_each(self._by_noise, place, by_noise)
            self.learning_rate.add(place, rate)
            self.last = line
            self._recent.append(line)
            if self.images_per_second is not None:
                self.speed.add(place, self.images_per_second)
        elif "held_out" in line:
            place, held_out = self._place(line), line["held_out"]
            mean, by_noise = float(held_out["loss"]), _by_level(held_out.get("by_noise", {}))
            by_size = _numbers(held_out.get("by_size", {}))
            self.held_out.add(place, mean)
            _add_each(self._held_out_by_noise, place, by_noise)
            _add_each(self._held_out_by_size, place, by_size)
            self.last_held_out = line
            if not self.best_held_out or mean < self.best_held_out["held_out"]["loss"]:
                self.best_held_out = line
        elif "samples" in line:
            numbers = _numbers(line["samples"])
            _add_each(self.samples, self._place(line), numbers)
            self.last_samples = {**line, "samples": numbers}
        elif "note" in line:
            self.num_notes += 1
            kept = self._first_notes if len(self._first_notes) < _FIRST_NOTES else self._last_notes
            kept.append((line["step"], str(line["note"])))

    def _place(self, line: Line) -> float:
        return self._factor * float(line[self._time])

    @property
    def loss(self) -> dict[str, Curve]:
        """The training loss: a dict of one curve per patch size, the largest size first."""
        return _by_area(self._loss)

    @property
    def newest_loss(self) -> dict[str, float]:
        """The newest training loss of each size, the largest first; the newest line need not have all sizes."""
        return dict(sorted(self._newest_loss.items(), key=lambda item: _area(item[0]), reverse=True))

    @property
    def by_noise(self) -> dict[str, Curve]:
        """The training loss: a dict of one curve per noise level, by rising level."""
        return dict(sorted(self._by_noise.items(), key=lambda item: float(item[0])))

    @property
    def held_out_by_noise(self) -> dict[str, Curve]:
        """The loss on held-out images: a dict of one curve per noise level, by rising level."""
        return dict(sorted(self._held_out_by_noise.items(), key=lambda item: float(item[0])))

    @property
    def held_out_by_size(self) -> dict[str, Curve]:
        """The loss on patches of held-out images: a dict of one curve per patch size, the largest size first."""
        return _by_area(self._held_out_by_size)

    @property
    def notes(self) -> list[tuple[int, str]]:
        """The first and the newest notes of the log, each as (step, text)."""
        return [*self._first_notes, *self._last_notes]

    @property
    def spent(self) -> float:
        """The fraction of the training budget that is spent."""
        return float(self.last.get("spent", 0.0))

    @property
    def complete(self) -> bool:
        """True if the training budget is spent."""
        return self.spent >= 1

    @property
    def mean_loss(self) -> float | None:
        """The training loss in the newest log line, averaged over patch sizes; None before the first line."""
        losses = _numbers(self.last.get("loss", {})).values()
        return fmean(losses) if losses else None

    @property
    def images_per_second(self) -> float | None:
        """The training speed over the last log lines, in images per second; None if it is unknown."""
        images, seconds, _ = self._lately()
        return images / seconds if seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """An estimate of the training time that is left, in seconds, from the speed over the last log lines."""
        _, seconds, spent = self._lately()
        return seconds * max(1 - self.spent, 0.0) / spent if spent > 0 else None

    def _lately(self) -> tuple[float, float, float]:
        """Return how many images, how many seconds, and what fraction of the budget the last few log lines span."""
        if not self._recent:
            return 0.0, 0.0, 0.0
        first, last = self._recent[0], self._recent[-1]
        if first is last:  # a single line counts from the beginning of the run
            return last["images"], last["seconds"], last.get("spent", 0.0)
        then, now = _seen(first), _seen(last)
        return now[1] - then[1], now[0] - then[0], last.get("spent", 0.0) - first.get("spent", 0.0)


def _seen(line: Line) -> tuple[float, int]:
    return float(line["seconds"]), int(line["images"])


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in values.items() if value is not None}


def _by_level(values: dict[str, Any]) -> dict[str, float]:
    """Return a dict of losses by noise level, as floats; raise ValueError if a level is not a number."""
    return {name: value for name, value in _numbers(values).items() if float(name) >= 0}


def _add_each(curves: dict[str, Curve], place: float, values: dict[str, float]) -> None:
    for name, value in values.items():
        curves.setdefault(name, Curve()).add(place, value)


def size_in_words(size: str, resolution: Sequence[int]) -> str:
    """Return the name of a size in the log, told as that of whole images if it is theirs.

    >>> size_in_words("16x16", (16, 16)), size_in_words("8x8", (16, 16))
    ('16x16 (whole images)', '8x8')
    """
    return f"{size} (whole images)" if size == "x".join(map(str, resolution)) else size


def in_words(samples: Mapping[str, float]) -> str:
    """Format the metrics of a run's samples (distances, near copies, ...) as one line of text."""
    words = [f"{DISTANCES[name]} {value:.4g}" for name, value in samples.items() if name in DISTANCES]
    words += [f"{name} {value:.4g}" for name, value in samples.items() if name not in DISTANCES | SHARES]
    if "near_copies" in samples:
        words.append(f"near copies {samples['near_copies']:.1%}")
        if "near_copies_held_out" in samples:
            words[-1] += f" (of held-out images: {samples['near_copies_held_out']:.1%})"
    return ", ".join(words)


def _by_area(curves: dict[str, Curve]) -> dict[str, Curve]:
    return dict(sorted(curves.items(), key=lambda item: _area(item[0]), reverse=True))


def _area(size: str) -> int:
    numbers = [int(number) for number in size.removesuffix(" small").split("x") if re.fullmatch("[0-9]{1,9}", number)]
    return math.prod(numbers) if numbers else 0


def _joined(one: _Sums, other: _Sums) -> _Sums:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2], min(one[3], other[3]), max(one[4], other[4])
