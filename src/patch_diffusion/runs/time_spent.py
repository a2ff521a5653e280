"""The time of a run by what it went into: steps, waiting for data, saves, evaluation."""

from __future__ import annotations

from collections.abc import Mapping

IN_TRAINING = ("data", "saves")
"""The parts of the training time that are not steps: waiting for data, and saves that hold up a step."""

BESIDE_TRAINING = ("evaluation", "metrics", "start", "end")
"""The parts of a run's time that are not training: pictures of samples and held-out losses; metrics of samples, of the
options ``watch``; all before the first step; and the last checkpoint."""


def time_spent(seconds: float, parts: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds of a run by what they went into.

    Args:
        seconds: seconds of training.
        parts: seconds of `IN_TRAINING`, which are among them, and of `BESIDE_TRAINING`.
    """
    known = {name: float(parts.get(name, 0.0)) for name in (*IN_TRAINING, *BESIDE_TRAINING)}
    return {"steps": seconds - sum(known[name] for name in IN_TRAINING), **known}


def shares(spent: Mapping[str, float]) -> str:
    """Return in words the shares of the training time, given seconds as `time_spent` returns them."""
    training = {name: spent[name] for name in ("steps", *IN_TRAINING)}
    total = sum(training.values()) or 1.0
    return ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in training.items())


def beside(spent: Mapping[str, float]) -> str:
    """Return in words the times that are not training, given seconds as `time_spent` returns them."""
    return ", ".join(f"{name} {clock(spent[name])}" for name in ("evaluation", "metrics", "start") if spent[name] >= 1)


def clock(seconds: float) -> str:
    """Return seconds as text: "2 h 05 min", "3 min 20 s" or "12 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    if hours := minutes // 60:
        return f"{hours:,} h {minutes % 60:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
