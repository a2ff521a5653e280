"""The progress of a training run: ``log.jsonl``, and a progress bar or plain lines on stderr."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress as Bar, TaskProgressColumn, TextColumn

from patch_diffusion.files import to_json, write_text
from patch_diffusion.runs.history import in_words
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
        self._console = Console(stderr=True, quiet=not show, highlight=False, soft_wrap=True)
        self._bar = Bar(
            BarColumn(bar_width=16),
            TaskProgressColumn(),
            TextColumn("{task.description}", markup=False),
            console=self._console,
            disable=not (show and self._console.is_terminal),
        )
        self._task = self._bar.add_task("", total=1.0)
        self._start: tuple[float, float, int] | None = None  # clock, spent and images when this process began
        self._last_plain = -math.inf
        self._loss = ""

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._trackers is not None:
            # After a second Ctrl-C, trackers are not waited for.
            for failure in self._trackers.close(wait=not isinstance(error, KeyboardInterrupt)):
                self.note(failure, self._step)

    def continue_log(self, step: int) -> None:
        """Drop the log lines of steps after ``step``: a stopped run may have logged more than its checkpoint holds.

        A negative step drops all lines.
        """
        if self._trackers is not None:
            self._trackers.begin(max(step, 0))
        if self._log_file is None or not self._log_file.exists():
            return
        kept = []
        for line in self._log_file.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a run that was killed while writing it
        write_text(self._log_file, "".join(kept))

    def say(self, text: str) -> None:
        """Print a line for the user on stderr."""
        self._console.print(text, markup=False)

    def note(self, text: str, step: int) -> None:
        """Print a line for the user, and write it as a note into the log."""
        self.say(text)
        self._write({"step": step, "note": text})

    def show(self, counters: Counters, spent: float) -> None:
        """Move the progress bar, or print a plain line every few seconds where there is no terminal."""
        now = time.monotonic()
        self._start = self._start or (now, spent, counters.images)
        began, spent_then, images_then = self._start
        elapsed = now - began
        rate = (counters.images - images_then) / elapsed if elapsed > 0 else 0.0
        left = elapsed * max(1 - spent, 0) / (spent - spent_then) if spent > spent_then else math.inf
        text = f"step {counters.step:,}{self._loss}  {rate:,.0f} images/s  {_clock(left)} left"
        self._bar.update(self._task, completed=min(spent, 1.0), description=text)
        if not self._console.is_terminal and (now - self._last_plain > _SECONDS_PER_PLAIN_LINE or spent >= 1):
            self._last_plain = now
            self._console.print(f"{min(spent, 1):4.0%}  {text}")

    def picture(self, path: Path, step: int) -> None:
        """Send a picture of samples to the trackers."""
        if self._trackers is not None:
            self._trackers.picture(step, path)

    def log(self, counters: Counters, spent: float, learning_rate: float, summary: Summary) -> None:
        """Append a line with counters, learning rate and the mean losses since the last such line to the log."""
        line = {
            **counters.as_dict(),
            "spent": round(spent, 6),
            "learning_rate": learning_rate,
            "loss": summary.by_size,
            "loss_by_noise": summary.by_noise,
            "skipped": summary.skipped,
        }
        self._write(line)
        losses = summary.by_size.values()
        self._loss = f"  loss {math.fsum(losses) / len(losses):.3f}" if losses else ""

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
        mean = math.fsum(losses.values()) / len(losses)
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
        with self._log_file.open("a", encoding="utf-8") as file:
            file.write(to_json(line, lines=False) + "\n")
        self._step = line["step"]
        if self._trackers is not None:
            self._trackers.log(line)
            for failure in self._trackers.failures():
                self.note(failure, self._step)


def _counts(counters: Counters, spent: float) -> dict[str, Any]:
    return {"step": counters.step, "images": counters.images, "seconds": counters.seconds, "spent": round(spent, 6)}


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
