"""The progress of a training run: ``log.jsonl``, and a progress bar or plain lines on stderr."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress as Bar, TaskProgressColumn, TextColumn

from patch_diffusion.errors import reason_of, shown
from patch_diffusion.files import append_text, to_json, write_text
from patch_diffusion.runs.history import in_words
from patch_diffusion.runs.log import text_up_to
from patch_diffusion.runs.time_spent import clock
from patch_diffusion.training.losses import Summary
from patch_diffusion.training.state import Counters
from patch_diffusion.training.watching.trackers import Trackers

_SECONDS_PER_PLAIN_LINE = 10


class Progress:
    """A progress bar, the log file and the trackers of a run; a context manager around the steps."""

    def __init__(self, log_file: Path | None, *, show: bool = True, trackers: Trackers | None = None) -> None:
        self._log_file = log_file
        self._trackers = trackers
        self._step = 0  # of the last line of the log
        self._waiting: list[str] = []  # lines of the log that could not be written yet
        self._failed: set[str] = set()  # what `optional` has told of
        self._lock = threading.RLock()  # of both, since a report is written in another thread
        self._console = _Terminal(stderr=True, quiet=not show, highlight=False, soft_wrap=True)
        self._bar = Bar(
            BarColumn(bar_width=16),
            TaskProgressColumn(),
            TextColumn("{task.description}", markup=False),
            console=self._console,
            disable=not (show and self._console.is_terminal),
        )
        self._task = self._bar.add_task("", total=1.0)
        self._start: tuple[float, float, float, int] | None = None  # clocks, spent and images when this process began
        self._last_plain = -math.inf
        self._loss = ""

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._bar.stop()
        with self.optional("trackers"):
            # After a second Ctrl-C, trackers are not waited for.
            wait = not isinstance(error, KeyboardInterrupt)
            for failure in self._trackers.close(wait=wait) if self._trackers is not None else ():
                self.note(failure, self._step)
        self._write_waiting()

    def continue_log(self, step: int) -> None:
        """Drop the log lines of steps after ``step``: a stopped run may have logged more than its checkpoint holds.

        A negative step drops all lines.
        """
        if self._trackers is not None:
            self._trackers.begin(max(step, 0))
        self._waiting = [text for text in self._waiting if json.loads(text)["step"] <= step]
        if self._log_file is not None and self._log_file.exists():
            write_text(self._log_file, text_up_to(self._log_file, step))

    @contextmanager
    def optional(self, what: str) -> Iterator[None]:
        """Guard what training can do without: an error in the with block is said, once for each ``what``."""
        try:
            yield
        except Exception as error:
            if what not in self._failed:
                self._failed.add(what)
                self.note(f"WARNING: training goes on without {what} ({reason_of(error)})", self._step)

    def say(self, text: str) -> None:
        """Print a line for the user on stderr, if there is still somebody to read it."""
        with suppress(OSError, ValueError):
            self._console.print(shown(text, lines=True), markup=False)

    def note(self, text: str, step: int) -> None:
        """Print a line for the user, and write it as a note into the log."""
        text = shown(text)  # names in it may have ends of lines
        self.say(text)
        self._write({"step": step, "note": text})

    def show(self, counters: Counters, spent: float, wall: float) -> None:
        """Move the progress bar, or print a plain line every few seconds where there is no terminal.

        Args:
            counters: the counts so far; images per second are those of its seconds, which are of training alone.
            spent: the spent fraction of the budget.
            wall: seconds by the wall clock, from which the time that is left is estimated.
        """
        self._start = self._start or (counters.seconds, wall, spent, counters.images)
        seconds_then, wall_then, spent_then, images_then = self._start
        seconds = counters.seconds - seconds_then
        rate = (counters.images - images_then) / seconds if seconds > 0 else 0.0
        per_budget = (wall - wall_then) / (spent - spent_then) if spent > spent_then else math.inf
        left = f"  {clock(per_budget * max(1 - spent, 0))} left" if math.isfinite(per_budget) else ""
        text = f"step {counters.step:,}{self._loss}  {rate:,.0f} images/s{left}"
        self._bar.update(self._task, completed=min(spent, 1.0), description=text)
        self._plain(f"{min(spent, 1):4.0%}  {text}", at_once=spent >= 1)

    @contextmanager
    def activity(self, text: str, *, long: bool = False) -> Iterator[None]:
        """Show for the with block that the run does something else than training, such as evaluating.

        Without a terminal, what takes ``long`` has a line of its own.
        """
        before = self._bar.tasks[self._task].description
        self._bar.update(self._task, description=text)
        self._plain(f"      {text}", at_once=long)
        try:
            yield
        finally:
            self._bar.update(self._task, description=before)

    def _plain(self, text: str, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._last_plain > _SECONDS_PER_PLAIN_LINE or at_once):
            self._last_plain = now
            self.say(text)

    def picture(self, path: Path, step: int) -> None:
        """Send a picture of samples to the trackers."""
        if self._trackers is not None:
            self._trackers.picture(step, path)

    def log(self, counters: Counters, spent: float, learning_rate: float, summary: Summary) -> None:
        """Append a line with counters, learning rate and the mean losses since the last such line to the log."""
        line = {
            **vars(counters),
            "spent": round(spent, 6),
            "learning_rate": learning_rate,
            "loss": summary.by_size,
            "loss_by_noise": summary.by_noise,
            "skipped": summary.skipped,
        }
        self._write(line)
        losses = summary.by_size.values()
        self._loss = f"  loss {fmean(losses):.3f}" if losses else ""

    def log_held_out(
        self,
        counters: Counters,
        spent: float,
        losses: Mapping[float, float],
        by_size: Mapping[str, float] | None = None,
    ) -> float | None:
        """Write the losses of held-out images by noise level and patch size into the log; return the mean.

        Losses that are not finite are told in a note, and their mean is None.
        """
        mean = fmean(losses.values())
        if not all(map(math.isfinite, [mean, *(by_size or {}).values()])):
            self.note("WARNING: the loss of held-out images is not finite", counters.step)
            return None
        found: dict[str, Any] = {"loss": mean, "by_noise": {f"{sigma:g}": loss for sigma, loss in losses.items()}}
        found |= {"by_size": dict(by_size)} if by_size else {}
        self._write({**_counts(counters, spent), "held_out": found})
        return mean

    def log_samples(self, counters: Counters, spent: float, numbers: Mapping[str, float]) -> None:
        """Write the metrics of samples into the log, and print them."""
        self._write({**_counts(counters, spent), "samples": dict(numbers)})
        self.say(f"step {counters.step:,}: {in_words(numbers)}")

    def _write(self, line: dict[str, Any]) -> None:
        if self._log_file is None:
            return
        with self._lock:
            self._step = line["step"]
            with self.optional("a line of the log"):
                self._waiting.append(to_json(line, lines=False) + "\n")
            self._write_waiting()
            with self.optional("trackers"):
                if self._trackers is not None:
                    self._trackers.log(line)
                    for failure in self._trackers.failures():
                        self.note(failure, self._step)

    def _write_waiting(self) -> None:
        """Append the lines that wait to the log; if it cannot be written, as on a full disk, they wait on."""
        if self._log_file is not None and self._waiting:
            with self._lock, self.optional(f"lines of {self._log_file}, which wait until it can be written"):
                append_text(self._log_file, "".join(self._waiting))
                self._waiting.clear()


class _Terminal(Console):
    """A terminal whose closing does not end the process, as rich would."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


def _counts(counters: Counters, spent: float) -> dict[str, Any]:
    return {"step": counters.step, "images": counters.images, "seconds": counters.seconds, "spent": round(spent, 6)}
