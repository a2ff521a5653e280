"""What the user sees of a run: ``log.jsonl``, and a bar or plain lines on stderr."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar
from torch import Tensor

from patch_diffusion.errors import InputError
from patch_diffusion.training.cost import Seen

_SECONDS_PER_PLAIN_LINE = 10


class Progress:
    """Keeps the losses on the device until a line is due, so that a step never waits for the host.

    Use as a context manager around the steps. Without a file nothing is logged.
    """

    def __init__(self, log_file: Path | None, *, show: bool = True) -> None:
        self._log_file = log_file
        self._losses: list[tuple[str, Tensor]] = []
        self._console = Console(stderr=True, quiet=not show, highlight=False, soft_wrap=True)
        self._bar = Bar(
            BarColumn(bar_width=16),
            TaskProgressColumn(),
            TextColumn("{task.description}", markup=False),
            console=self._console,
            disable=not (show and self._console.is_terminal),
        )
        self._task = self._bar.add_task("", total=1.0)
        self._start: tuple[float, float, int] | None = None  # clock, spent and images when this sitting began
        self._last_plain = -math.inf
        self._loss = ""

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def continue_log(self, step: int) -> None:
        """Drop lines of steps after ``step``: a stopped run may have logged more than its checkpoint holds."""
        if self._log_file is None or not self._log_file.exists():
            return
        kept = []
        for line in self._log_file.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a run that was killed while writing it
        self._log_file.write_text("".join(kept), encoding="utf-8")

    def say(self, text: str) -> None:
        """Tell the user something."""
        self._console.print(text, markup=False)

    def note(self, text: str, step: int) -> None:
        """Tell the user something, and keep it in the log."""
        self.say(text)
        self._write({"step": step, "note": text})

    def record(self, size: str, loss: Tensor) -> None:
        """Keep the loss of a step."""
        self._losses.append((size, loss.detach()))

    def show(self, seen: Seen, spent: float) -> None:
        """Move the bar, or print a plain line now and then."""
        now = time.monotonic()
        self._start = self._start or (now, spent, seen.images)
        began, spent_then, images_then = self._start
        elapsed = now - began
        rate = (seen.images - images_then) / elapsed if elapsed > 0 else 0.0
        left = elapsed * max(1 - spent, 0) / (spent - spent_then) if spent > spent_then else math.inf
        text = f"step {seen.step:,}{self._loss}  {rate:,.0f} images/s  {_clock(left)} left"
        self._bar.update(self._task, completed=min(spent, 1.0), description=text)
        if not self._console.is_terminal and (now - self._last_plain > _SECONDS_PER_PLAIN_LINE or spent >= 1):
            self._last_plain = now
            self._console.print(f"{min(spent, 1):4.0%}  {text}")

    def pending(self) -> dict[str, list[float]]:
        """Losses of the steps since the last line of the log, per size; a checkpoint keeps them.

        Raises:
            InputError: a loss is not a finite number, so the weights are not worth keeping.
        """
        losses: dict[str, list[float]] = {}
        if self._losses:
            values = torch.stack([loss for _, loss in self._losses]).double().tolist()
            for (size, _), value in zip(self._losses, values, strict=True):
                losses.setdefault(size, []).append(value)
                if not math.isfinite(value):
                    raise InputError(
                        f"the loss on {size} became {value}: training stopped, the last checkpoint is from before; "
                        "continue from it with a lower --optimizer.learning-rate in a new run, or look at the data"
                    )
        return losses

    def restore(self, pending: dict[str, list[float]]) -> None:
        """Undo `pending`."""
        self._losses = [(size, torch.tensor(value).double()) for size, values in pending.items() for value in values]

    def log(self, seen: Seen, spent: float, learning_rate: float) -> None:
        """Write a line of the mean losses since the last one."""
        losses = {size: math.fsum(values) / len(values) for size, values in sorted(self.pending().items())}
        self._losses.clear()
        self._write(
            {**seen.as_dict(), "spent": round(spent, 6), "learning_rate": learning_rate, "loss": losses},
        )
        mean = math.fsum(losses.values()) / len(losses) if losses else math.nan
        self._loss = f"  loss {mean:.3f}"

    def _write(self, line: dict[str, Any]) -> None:
        if self._log_file is None:
            return
        with self._log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
