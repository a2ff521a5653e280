"""An HTML page that compares several training runs: settings that differ, loss curves, counts, samples and metrics."""

from __future__ import annotations

import os
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from patch_diffusion.config import Config
from patch_diffusion.config_dict import differences
from patch_diffusion.errors import InputError
from patch_diffusion.files import user_path, write_text
from patch_diffusion.runs.chart import chart, colours, number
from patch_diffusion.runs.folder import ModelFacts, RunFolder
from patch_diffusion.runs.history import Curve, History
from patch_diffusion.runs.log import read_log
from patch_diffusion.runs.measured import evaluation_results, measured_tables
from patch_diffusion.runs.page import option_text, page, wide_table
from patch_diffusion.runs.pictures import as_data, evenly_spaced
from patch_diffusion.runs.report import html_file, step_label
from patch_diffusion.runs.time_spent import clock

MOST_RUNS = 12  # more could not be told apart by their lines and letters
OVER = ("images", "minutes")
"""The choices for the horizontal axis of loss curves on a comparison page: images seen, or minutes of training."""

_MOMENTS = 3  # number of moments in training at which samples are shown, in addition to the newest
_NEAR = 0.1  # fraction of the budget: samples from moments further apart are not shown side by side
_PICTURE_BYTES = 200_000
# Losses are comparable only if these agree.
_COMPARABLE = ("data.source", "noise.process", "noise.sigma_data", "noise.levels")
_FACTS = ("resolution", "image_channels", "codec")


@dataclass(frozen=True)
class Run:
    """A run folder on a comparison page: its config and data, its name, and the ``letter`` that marks its curves."""

    letter: str
    name: str
    folder: RunFolder
    config: Config
    facts: ModelFacts

    @cached_property
    def histories(self) -> dict[str, History]:
        """The curves of the run's log by horizontal axis: a history over images and one over minutes."""
        return {over: History.read(self.folder.log_file, over) for over in OVER}

    @property
    def history(self) -> History:
        """The curves and newest lines of the run's log, for uses in which the horizontal axis does not matter."""
        return self.histories[OVER[0]]

    @cached_property
    def samples(self) -> list[tuple[float, Path]]:
        """The run's sample pictures, oldest first: pairs of the fraction of the budget spent by then, and the path."""
        lines = [line for line in read_log(self.folder.log_file) if line is not None and "spent" in line]
        steps, spent = (np.array([0, *(line[key] for line in lines)], float) for key in ("step", "spent"))
        paths = [path for path in sorted(self.folder.path.glob("samples/step-*.png")) if path.stem[5:].isdecimal()]
        return [(float(np.interp(int(path.stem[5:]), steps, spent)), path) for path in paths] if lines else []


def runs_in(place: str | os.PathLike[str]) -> list[Path]:
    """Return a list of run folders: the given folder if it is one, else those directly in it, such as a race's runs.

    Raises:
        InputError: the folder neither is a run folder nor contains any.
    """
    path = user_path(place)
    if not RunFolder(path).is_run() and path.is_dir():
        found = [entry for entry in sorted(path.iterdir()) if RunFolder(entry).is_run()]
        if not found:
            raise InputError(f"{path} is not a run and holds none: give run folders, or the folder of a race")
        return found
    return [path]


def open_runs(runs: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """Read the configs of the run folders to compare; return a `Run` for each, with a letter and a distinct name.

    Raises:
        InputError: there are too few or too many runs, or one of them is given twice, missing or damaged.
    """
    folders = [user_path(run) for run in runs]
    if not 2 <= len(folders) <= MOST_RUNS:
        raise InputError(f"2 to {MOST_RUNS} runs are compared on a page, not {len(folders)}")
    return [
        Run(letter, name, RunFolder(folder), *RunFolder(folder).read_config())
        for letter, name, folder in zip(string.ascii_uppercase, _names(folders), folders, strict=False)
    ]


def write_comparison(runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Path:
    """Write an HTML page that compares several runs side by side.

    The page needs no other files, and can be written at any time, also while the runs are trained. Text from the runs
    is escaped.

    Args:
        runs: two to twelve run folders.
        out: an .html file.

    Returns:
        The path of the page.

    Raises:
        InputError: there are too few or too many runs, one is given twice, is not a run or is damaged, or ``out`` is
            not named .html.
    """
    path = html_file(out)
    found = open_runs(runs)
    title = f"{', '.join(run.name for run in found[:3])}{', ...' if len(found) > 3 else ''}"
    body = "".join(_parts(found))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page(title, body))
    return path


def _names(folders: Sequence[Path]) -> list[str]:
    """Return a distinct name per folder, the last parts of its path; raise InputError if a folder is given twice."""
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f"{folder} is given twice: give different runs")
    for num in range(1, max(len(place.parts) for place in places) + 1):
        names = ["/".join(place.parts[-num:]) for place in places]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different places have different parts")


def _parts(runs: Sequence[Run]) -> Iterator[str]:
    yield f"<h1>{len(runs)} runs side by side</h1>"
    yield f'<div class="box">{_head(runs)}</div>{"".join(_warnings(runs))}'
    yield f'<h2>Settings that differ</h2><div class="box">{_settings(runs)}</div>'
    if drawn := _curves(runs):
        yield f"<h2>Loss <small>over what was trained</small></h2>{drawn}"
    yield f'<h2>So far <small>or at the end</small></h2><div class="box">{_counts(runs)}</div>'
    for title, about, curves in (
        ("Held-out loss by noise level", "the newest, of whole images", lambda run: run.history.held_out_by_noise),
        ("Training loss by noise level", "the newest, of all sizes of patches", lambda run: run.history.by_noise),
    ):
        if table := _by_noise(runs, [curves(run) for run in runs]):
            yield f'<h2>{title} <small>{about}</small></h2><div class="box">{table}</div>'
    if samples := _samples(runs):
        yield f"<h2>Samples <small>of the averaged weights, from the same seeds</small></h2>{samples}"
    yield measured_tables([_lettered(run) for run in runs], [evaluation_results(run.folder) for run in runs])


def _lettered(run: Run) -> str:
    return f"{run.letter} {run.name}"


def _columns(runs: Sequence[Run], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    return wide_table(["", *map(_lettered, runs)], [[name, *cells] for name, cells in rows if any(cells)])


def _head(runs: Sequence[Run]) -> str:
    def state(run: Run) -> str:
        if not run.history.last:
            return "no step is logged" if run.facts.num_images else "imported"
        return "complete" if run.history.complete else f"{run.history.spent:.1%} of its budget"

    lines = "".join(
        f'<span class="{colour}"><em>{run.letter}</em> {escape(run.name)} <small>{state(run)}</small></span>'
        for colour, run in zip(colours(len(runs)), runs, strict=True)
    )
    return f'<div class="key">{lines}</div>'


def _warnings(runs: Sequence[Run]) -> Iterator[str]:
    options = differences({run.letter: run.config for run in runs}).keys() & set(_COMPARABLE)
    facts = [name for name in _FACTS if len({str(getattr(run.facts, name)) for run in runs}) > 1]
    for name in [*sorted(options), *facts]:
        yield _warning(f"{name} differs: these losses are of different things, and cannot be compared")
    for run in runs:
        if num := run.history.num_damaged:
            of = f"{num:,} of {run.history.num_lines:,} lines of its log are damaged and left out"
            yield _warning(f"{_lettered(run)}: {of}")


def _warning(text: str) -> str:
    return f'<p class="box warning">{escape(text)}</p>'


def _settings(runs: Sequence[Run]) -> str:
    found = differences({run.letter: run.config for run in runs})
    rows = [(name, [option_text(value) for value in values.values()]) for name, values in found.items()]
    return _columns(runs, rows) if rows else "none"


def _curves(runs: Sequence[Run]) -> str:
    """Return HTML of the loss charts, by patch size and of held-out images, with menus that choose which are shown."""
    sizes = {over: _by_size({run.name: run.histories[over].loss for run in runs}) for over in OVER}
    charts = ""
    letters = {run.name: run.letter for run in runs}
    for over in OVER:
        unit = {"images": "image", "minutes": "minute"}[over]
        about = f"over {'true images seen' if over == 'images' else 'minutes of training'}"
        for size, curves in sizes[over].items():
            drawn = chart(f"Training loss, {size}", curves, about=about, over=unit, labels=letters)
            charts += f'<div data-shown="{over}|{escape(size)}">{drawn}</div>'
        held_out = {run.name: run.histories[over].held_out for run in runs if run.histories[over].held_out}
        if drawn := chart("Loss of held-out images", held_out, about=about, over=unit, labels=letters):
            charts += f'<div data-shown="{over}" data-any="loss">{drawn}</div>'
    if not charts:
        return ""
    options = "".join(f"<option>{escape(size)}</option>" for size in sizes[OVER[0]])
    return (
        '<div data-choose><div class="choices"><label>over <select name="over"><option value="images">images seen'
        '</option><option value="minutes">training time</option></select></label><label>training loss of '
        f'<select name="loss">{options}</select></label></div><div class="charts">{charts}</div></div>'
    )


def _by_size(losses: Mapping[str, Mapping[str, Curve]]) -> dict[str, dict[str, Curve]]:
    """Regroup loss curves by patch size, then by run; the sizes that more runs have come first, then larger ones."""
    sizes = dict.fromkeys(size for found in losses.values() for size in found)
    curves = {size: {name: found[size] for name, found in losses.items() if size in found} for size in sizes}
    return dict(sorted(curves.items(), key=lambda item: -len(item[1])))


def _counts(runs: Sequence[Run]) -> str:
    def of_line(key: str) -> list[str]:
        return [f"{run.history.last[key]:,}" if key in run.history.last else "" for run in runs]

    def per_second(key: str) -> list[str]:
        lines = [run.history.last for run in runs]
        return [number(line[key] / line["seconds"]) if key in line and line["seconds"] > 0 else "" for line in lines]

    def newest(line: Mapping[str, Any], size: str) -> str:
        loss = line.get("loss", {}).get(size)
        return "" if loss is None else f"{loss:.4f}"

    sizes = _by_size({run.name: run.history.loss for run in runs})
    held_out = [run.history.last_held_out.get("held_out", {}).get("loss") for run in runs]
    return _columns(
        runs,
        [
            ("held-out loss", ["" if loss is None else f"{loss:.4f}" for loss in held_out]),
            *((f"training loss, {size}", [newest(run.history.last, size) for run in runs]) for size in sizes),
            ("parameters", [f"{run.facts.parameters:,}" for run in runs]),
            ("steps", of_line("step")),
            ("true images seen", of_line("images")),
            ("of them as patches", of_line("patches")),
            ("pixels seen", of_line("pixels")),
            ("FLOPs", [number(line["flops"]) if "flops" in (line := run.history.last) else "" for run in runs]),
            ("trained for", [clock(line["seconds"]) if (line := run.history.last) else "" for run in runs]),
            ("images a second", per_second("images")),
            ("pixels a second", per_second("pixels")),
        ],
    )


def _by_noise(runs: Sequence[Run], curves: Sequence[Mapping[str, Curve]]) -> str:
    levels = sorted({level for found in curves for level in found}, key=float)
    rows = []
    for level in levels:
        lasts = [found[level].points()[-1:] if level in found else [] for found in curves]
        rows.append((f"sigma {level}", [number(last[0].value) if last else "" for last in lasts]))
    return _columns(runs, rows) if rows else ""


def _samples(runs: Sequence[Run]) -> str:
    """Return HTML rows of sample pictures: each run's newest, then those of all runs at like shares of the budget."""
    newest = [run.samples[-1][1] if run.samples else None for run in runs]
    if not any(newest):
        return ""
    html = _row("The newest of each", runs, newest)
    fewest = min((run.samples for run in runs), key=len)
    beside = {spent: [_nearest(run, spent) for run in runs] for spent, _ in fewest}
    common = [spent for spent, paths in beside.items() if all(paths) and paths != newest]
    for spent in reversed(evenly_spaced(common, _MOMENTS)):
        html += _row(f"{min(spent, 1):.0%} of the budget", runs, beside[spent])
    return html


def _nearest(run: Run, spent: float) -> Path | None:
    """Return the sample picture made nearest to a fraction ``spent`` of the budget; None if none is within a tenth."""
    away, path = min(((abs(at - spent), path) for at, path in run.samples), default=(1.0, None))
    return path if away <= _NEAR else None


def _row(title: str, runs: Sequence[Run], paths: Sequence[Path | None]) -> str:
    figures = ""
    for run, path in zip(runs, paths, strict=True):
        data = None if path is None else as_data(path, _PICTURE_BYTES)
        told = "none yet" if path is None or data is None else f"step {step_label(path)}"
        shown = f'<img alt="samples of {escape(run.name)}" src="{data}">' if data else ""
        figures += f"<figure>{shown}<figcaption>{escape(_lettered(run))} <small>{told}</small></figcaption></figure>"
    return f'<h3>{title}</h3><div class="beside">{figures}</div>'
