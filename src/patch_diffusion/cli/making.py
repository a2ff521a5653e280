"""Signs of life of the commands that make pictures: a progress bar on a terminal, and plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from patch_diffusion.cli.say import say

if TYPE_CHECKING:
    from patch_diffusion.sampling.step import Step

T = TypeVar("T")

_FIRST, _BETWEEN = 5.0, 10.0  # seconds until the first plain line, and between lines


class Making:
    """The progress of pictures that are made: a bar on a terminal; elsewhere a plain line every ten seconds.

    Args:
        num: the number of pictures.
        steps: the number of solver steps of each.
    """

    def __init__(self, num: int, steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._num, self._steps, self._made = num, steps, 0
        self._console = Console(stderr=True)
        columns = BarColumn(bar_width=16), TaskProgressColumn(), TextColumn("{task.description}", markup=False)
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("", total=max(num, 1))
        self._next = time.monotonic() + _FIRST

    def step(self, step: Step) -> None:
        """Take notice of a solver step of the pictures of a batch; a callback of `generate` and `edit`."""
        place = step.index + 1
        self._show(len(step.noisy) * place / self._steps, f"step {place} of {self._steps}, ")

    def each(self, samples: Iterable[T]) -> Iterator[T]:
        """Yield the pictures as they are made."""
        with self._bar:
            for sample in samples:
                yield sample
                self._made += 1
                self._show(0, "")

    def _show(self, begun: float, at: str) -> None:
        """Show that so many pictures are made, and a batch begun that amounts to ``begun`` of them."""
        done, text = self._made + begun, f"{at}{self._made:,} of {self._num:,} pictures done"
        self._bar.update(self._task, completed=done, description=text)
        if not self._console.is_terminal and time.monotonic() > self._next:
            self._next = time.monotonic() + _BETWEEN
            say(f"{min(done / max(self._num, 1), 1):4.0%}  {text}", aside=True, flush=True)
