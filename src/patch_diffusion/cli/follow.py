"""A live view of a training run in the terminal, for ``patch-diffusion info RUN --follow``."""

from __future__ import annotations

import json as json_library
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from patch_diffusion.cli.say import say
from patch_diffusion.errors import shown
from patch_diffusion.files import user_path
from patch_diffusion.runs.folder import RunFolder
from patch_diffusion.runs.history import Curve, History, in_words
from patch_diffusion.runs.lock import holder
from patch_diffusion.runs.log import LogTail, News
from patch_diffusion.runs.time_spent import clock

if TYPE_CHECKING:
    from rich.console import RenderableType

_SECONDS_BETWEEN = 0.5  # interval at which the log is read
_SECONDS_PER_PLAIN_LINE = 10.0
_SILENT_SECONDS = 5.0  # after this time without log lines, a run with no known trainer counts as stopped
_NOTES = 4  # number of notes that are shown
_SPARKS = "▁▂▃▄▅▆▇█"
_NAME = 10  # width of the column of names


def follow(run: Path, *, json: bool = False) -> None:
    """Show the progress of a run until it is complete: a live view on a terminal, plain lines elsewhere.

    If the run stops, the view waits for it; if it continues and rewrites its log, the view goes on.

    Args:
        run: the run folder; the run may have no log yet.
        json: print the lines of the log as they are, beginning with the existing ones.

    Raises:
        InputError: there is no run in the folder.
        KeyboardInterrupt: the user pressed Ctrl-C.
    """
    folder = RunFolder(user_path(run))
    folder.read_config()
    if json:
        for news, _, _ in _looks(folder):
            for line in news.lines[news.known :]:
                if line is not None:
                    say(json_library.dumps(line), flush=True)
    elif sys.stdout.isatty():
        _show_live(folder)
    else:
        _print_lines(folder, lambda text: say(shown(text), flush=True))


def _looks(folder: RunFolder) -> Iterator[tuple[News, History, str]]:
    """Yield new log lines, their history and who trains the run, twice a second, until it is complete and none does."""
    tail, history, last_news = LogTail(folder.log_file), History(), -math.inf
    while True:
        # The lock is read before the log, since a trainer writes its last lines before it releases the lock.
        trainer = holder(folder.path)
        news = tail.read()
        if news.restarted:
            history = History()
        for line in news.lines:
            history.add(line)
        now = time.monotonic()
        if news.lines and history.num_lines > len(news.lines):
            last_news = now
        ended = history.complete and not trainer and not news.more
        # On file systems that do not share locks between machines, a growing log shows that somebody trains.
        grows = now - last_news < _SILENT_SECONDS and not ended
        yield news, history, trainer or ("another process" if grows else "")
        if ended:
            return
        if not news.more:
            time.sleep(_SECONDS_BETWEEN)


def _print_lines(folder: RunFolder, tell: Callable[[str], None]) -> None:
    """Print a progress line of a run every ten seconds, as a trainer does, and each note of its log at once."""
    last_told, standing, num_notes = 0.0, False, 0
    for news, history, trainer in _looks(folder):
        if news.more:
            continue
        if history.num_notes > num_notes:
            new = history.notes[-min(history.num_notes - num_notes, _NOTES) :]
            for step, note in new:
                tell(f"step {step:,}: {note}")
        num_notes = history.num_notes
        if any(line is not None and "samples" in line for line in news.lines) and history.last_samples:
            tell(f"step {history.last_samples['step']:,}: {in_words(history.last_samples['samples'])}")
        measured = any(line is not None and "loss" in line for line in news.lines)
        now = time.monotonic()
        if measured and (history.complete or now - last_told >= _SECONDS_PER_PLAIN_LINE or not last_told):
            last_told = now
            tell(f"{min(history.spent, 1):4.0%}  {_where(history)}")
        stands = not trainer and not history.complete
        if stands and not standing:
            tell(_not_running(folder))
        standing = stands
    tell(_complete(folder))


def _show_live(folder: RunFolder) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False, transient=False) as live:
        for _, history, trainer in _looks(folder):
            live.update(_view(folder, history, trainer), refresh=True)


def _view(folder: RunFolder, history: History, trainer: str) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    top = Table.grid(padding=(0, 1))
    spent = min(history.spent, 1.0)
    top.add_row(ProgressBar(1.0, spent, width=16), Text(f"{spent:4.0%}"), Text(_where(history)))
    rows = Table.grid(padding=(0, 2))
    rows.add_column(min_width=_NAME)
    for name, value, sparks in _rows(history):
        rows.add_row(Text(name, style="dim"), Text(value, justify="right"), Text(sparks, style="cyan"))
    notes = [Text(shown(f"step {step:,}: {note}"), style="dim") for step, note in history.notes[-_NOTES:]]
    if trainer:
        state = Text(f"trained by {trainer}", style="green")
    elif history.complete:
        state = Text(_complete(folder), style="green")
    else:
        state = Text(_not_running(folder), style="yellow")
    title = Text(shown(str(folder.path)), style="bold")
    return Group(title, top, Text(), rows, *([Text(), *notes] if notes else []), Text(), state)


def _rows(history: History) -> Iterator[tuple[str, str, str]]:
    """Yield the rows of the live view: name, newest value and sparkline of each curve."""
    for size, curve in history.loss.items():
        yield f"loss {size}", _newest(curve), sparkline(curve)
    for level, curve in history.by_noise.items():
        yield f"noise {level}", _newest(curve), sparkline(curve)
    if history.held_out:
        yield "held out", _newest(history.held_out), sparkline(history.held_out)
    for name, curve in history.samples.items():
        if name in ("frechet", "kernel", "near_copies", "near_copies_held_out"):
            yield name.replace("_", " "), _newest(curve), sparkline(curve)
    if history.learning_rate:
        yield "rate", f"{history.last['learning_rate']:.2g}", sparkline(history.learning_rate)
    if skipped := history.last.get("skipped"):
        yield "skipped", f"{skipped:,}", ""


def sparkline(curve: Curve, width: int = 32) -> str:
    """Draw a curve as a line of Unicode blocks, with the lowest block for the lowest value."""
    values = [point.value for point in curve.points()]
    parts = min(width, len(values))
    bounds = [len(values) * part // parts for part in range(parts + 1)] if parts else []
    means = [sum(values[low:high]) / (high - low) for low, high in pairwise(bounds)]
    if not means:
        return ""
    low, span = min(means), max(means) - min(means)
    return "".join(_SPARKS[round((len(_SPARKS) - 1) * (mean - low) / span) if span else 0] for mean in means)


def _newest(curve: Curve) -> str:
    points = curve.points()
    return f"{points[-1].value:.3f}" if points else ""


def _where(history: History) -> str:
    if not history.last:
        return "no step is logged yet"
    text = f"step {history.last['step']:,}"
    if history.mean_loss is not None:
        text += f"  loss {history.mean_loss:.3f}"
    if history.images_per_second is not None:
        text += f"  {history.images_per_second:,.0f} images/s"
    if history.seconds_left is not None:
        text += f"  {clock(history.seconds_left)} left"
    return text


def _not_running(folder: RunFolder) -> str:
    return f"not running; continue with: patch-diffusion train --out {shlex.quote(str(folder.path))}"


def _complete(folder: RunFolder) -> str:
    return f"complete; to sample from it: patch-diffusion sample {shlex.quote(str(folder.path))} --out pictures"
