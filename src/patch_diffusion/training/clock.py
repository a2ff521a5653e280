"""The clock of a training: its seconds by use, so that a budget of minutes is one of training alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from patch_diffusion.runs.time_spent import BESIDE_TRAINING, IN_TRAINING


class Clock:
    """A clock that runs while training does, and stands still during evaluations.

    Args:
        began: the time of `time.monotonic` when the run was started; None: now.

    Attributes:
        parts: seconds by what they went into, see `time_spent`, over all continuations.
    """

    def __init__(self, began: float | None = None) -> None:
        self.parts: dict[str, float] = dict.fromkeys((*IN_TRAINING, *BESIDE_TRAINING), 0.0)
        self._started: float | None = time.monotonic() if began is None else began
        self._seconds = 0.0  # of training until the clock began to run
        self._since: float | None = None  # when it began to run, later by the time that is not training

    @property
    def seconds(self) -> float:
        """The seconds of training: steps, waiting for data, and saves."""
        return self._seconds + (0.0 if self._since is None else time.monotonic() - self._since)

    @property
    def wall(self) -> float:
        """The seconds of the run by the wall clock: of training, of evaluation, and before the first step."""
        started = 0.0 if self._started is None else time.monotonic() - self._started
        return self.seconds + started + sum(self.parts[name] for name in BESIDE_TRAINING)

    def restore(self, seconds: float, parts: Mapping[str, float]) -> None:
        """Go on from the seconds of training, and from the parts, of a stopped run."""
        self._seconds = seconds
        self.parts |= parts

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run in the with block, in which steps are taken; what was before the first one is the start."""
        self._since = time.monotonic()
        if self._started is not None:
            self.parts["start"] += self._since - self._started
            self._started = None
        try:
            yield
        finally:
            self._seconds, self._since = self.seconds, None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time of the with block as a part of the run's time."""
        began = time.monotonic()
        try:
            yield
        finally:
            took = time.monotonic() - began
            self.parts[name] += took
            if name in BESIDE_TRAINING and self._since is not None:
                self._since += took
