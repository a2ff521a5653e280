"""Reporting of a run's log to experiment trackers while it trains: TensorBoard, Weights & Biases, trackio.

Each tracker has its own thread, so that training waits neither for disks nor for networks. A tracker that fails is
dropped, with a note in the log.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from queue import Full, Queue
from threading import Thread
from typing import Any

from patch_diffusion.errors import InputError, did_you_mean, option_error, reason_of
from patch_diffusion.files import encoded
from patch_diffusion.runs.log import Line
from patch_diffusion.training.watching.tracking import TRACKERS, Tracker

_MOST_WAITING = 10_000  # most lines and pictures in the queue of a tracker
_SECONDS_AT_THE_END = 10.0  # time to empty the queues; an interrupted run should end soon


def choose_trackers(names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the trackers to use: the given ones, or for None TensorBoard if it is installed.

    Raises:
        InputError: there is no tracker of that name, or it is not installed.
    """
    if names is None:
        return ("tensorboard",) if _installed("tensorboard") else ()
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"there is no tracker '{name}'{did_you_mean(name, TRACKERS)}", option="track")
        if not _installed(name):
            raise option_error("track", f"{name} needs {name}: pip install 'patch_diffusion[track]', or leave it out")
    return tuple(dict.fromkeys(names))


class Trackers:
    """All experiment trackers that a run reports to.

    Args:
        names: the names of the trackers, from `choose_trackers`.
        run: the run folder.
    """

    def __init__(self, names: Sequence[str], run: Path) -> None:
        self._names, self._run = names, run
        self._step = 0
        self._told: list[_TrackerThread] | None = None  # None until there is something to report
        self._last: Line = {}

    def begin(self, step: int) -> None:
        """Close the trackers and prepare to report from ``step`` on; later steps are void. Nothing is opened yet."""
        self.close(wait=False)
        self._told, self._step, self._last = None, step, {}

    def log(self, line: Line) -> None:
        """Report a line of the log to all trackers."""
        values = scalars(line, self._last)
        if "loss" in line:
            self._last = line
        step, note = line["step"], encoded(str(line.get("note", ""))).decode()
        self._tell(lambda tracker: tracker.write(step, values, note))

    def picture(self, step: int, path: Path) -> None:
        """Report a picture of samples to all trackers."""
        self._tell(lambda tracker: tracker.picture(step, path))

    def failures(self) -> list[str]:
        """Return a sentence for each tracker that has failed since the last call, and drop these trackers."""
        told = self._told or []
        found = [one for one in told if one.failure]
        self._told = [one for one in told if not one.failure] if self._told is not None else None
        return [f"{one.name} gets no more data of this run ({one.failure}); training continues" for one in found]

    def close(self, *, wait: bool = True) -> list[str]:
        """End all trackers, wait some seconds for their queues, and return their failures as `failures` does."""
        for one in self._told or []:
            one.tell(None)
        deadline = time.monotonic() + (_SECONDS_AT_THE_END if wait else 0.0)
        for one in self._told or []:
            one.wait(max(deadline - time.monotonic(), 0.0))
        failed, self._told = self.failures(), []
        return failed

    def _tell(self, task: Callable[[Tracker], None]) -> None:
        if self._told is None:
            self._told = [_TrackerThread(name, self._run, self._step) for name in self._names]
        for one in self._told:
            one.tell(task)


def scalars(line: Line, before: Line) -> dict[str, float]:
    """Return the numbers in a line of the log by their names at the trackers; those that are not finite are left out.

    Args:
        line: a line of the log, of any kind.
        before: the previous line with training measurements, to compute the speed, or an empty one.
    """
    values: dict[str, Any] = {}
    if "loss" in line:
        values |= {f"loss/{size}": value for size, value in line["loss"].items()}
        values |= {f"noise/{level}": value for level, value in line.get("loss_by_noise", {}).items()}
        values |= {name: line[name] for name in ("learning_rate", "spent", "images", "skipped") if name in line}
        if before and (seconds := line["seconds"] - before["seconds"]) > 0:
            values["images_per_second"] = (line["images"] - before["images"]) / seconds
    if "held_out" in line:
        values["held_out/loss"] = line["held_out"]["loss"]
        for kind in ("noise", "size"):
            losses = line["held_out"].get(f"by_{kind}", {})
            values |= {f"held_out_{kind}/{name}": value for name, value in losses.items()}
    if "samples" in line:
        values |= {f"samples/{name}": value for name, value in line["samples"].items()}
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}


class _TrackerThread:
    """A thread that runs one experiment tracker and feeds it from a queue of tasks."""

    def __init__(self, name: str, run: Path, step: int) -> None:
        self.name = name
        self.failure = ""
        self._tasks: Queue[Callable[[Tracker], None] | None] = Queue(_MOST_WAITING)
        self._thread = Thread(target=self._work, args=(run, step), name=name, daemon=True)
        self._thread.start()

    def tell(self, task: Callable[[Tracker], None] | None) -> None:
        if self.failure:
            return
        try:
            self._tasks.put_nowait(task)
        except Full:
            self.failure = f"it has not taken the last {_MOST_WAITING:,} lines"

    def wait(self, seconds: float) -> None:
        self._thread.join(seconds)
        if self._thread.is_alive():
            self.failure = self.failure or f"it did not take the last lines within {_SECONDS_AT_THE_END:g} seconds"

    def _work(self, run: Path, step: int) -> None:
        try:
            tracker = TRACKERS[self.name](run, step)
            while (task := self._tasks.get()) is not None and not self.failure:
                task(tracker)
            tracker.finish()
        except (Exception, SystemExit) as error:
            self.failure = self.failure or reason_of(error)


def _installed(name: str) -> bool:
    """Return True if a package can be imported; a data folder of that name, as these tools leave behind, is none."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None
