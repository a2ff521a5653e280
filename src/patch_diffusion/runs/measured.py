"""Tables of the evaluation results of runs, from the JSON files that `evaluate` wrote into their folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from patch_diffusion.errors import InputError
from patch_diffusion.files import read_json
from patch_diffusion.runs.chart import number
from patch_diffusion.runs.folder import RunFolder
from patch_diffusion.runs.page import option_text, wide_table

Results = Mapping[str, tuple[str, Mapping[str, Any]]]
"""The evaluation results of a run: by metric, its newest value with interval, as text, and the settings behind it."""


def evaluation_results(folder: RunFolder) -> Results:
    """Read the evaluation results of a run from all .json files in its folder; skip files that hold none."""
    results: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for path in sorted(folder.path.glob("*.json"), key=lambda path: path.stat().st_mtime):
        try:
            found = read_json(path)
            shared, metrics = found["settings"], found["metrics"]
            results |= {name: (_text(each), {**shared, **each["settings"]}) for name, each in metrics.items()}
        except (InputError, OSError, KeyError, TypeError, ValueError, AttributeError):
            continue  # other JSON files are in the folder, too
    return results


def measured_tables(names: Sequence[str], runs: Sequence[Results]) -> str:
    """Return an HTML table of evaluation results with a column per run; an empty string if no run was evaluated."""
    metrics = list(dict.fromkeys(name for run in runs for name in run))
    if not metrics:
        return ""
    rows = [[metric, *(run[metric][0] if metric in run else "" for run in runs)] for metric in metrics]
    html = f'<h2>Evaluated <small>with intervals of 95 %</small></h2><div class="box">{wide_table(["", *names], rows)}'
    if differing := _differing(metrics, runs):
        html += (
            '<p class="warning">Numbers may be compared where their settings agree. These differ:</p>'
            f"{wide_table(['', *names], differing)}"
        )
    return f"{html}</div>"


def _differing(metrics: Sequence[str], runs: Sequence[Results]) -> list[list[str]]:
    """Return rows (setting, value in each run) of the evaluation settings in which runs differ for the same metric."""
    rows: dict[tuple[str, ...], str] = {}
    for metric in metrics:
        found = [run[metric][1] if metric in run else None for run in runs]
        there = [each for each in found if each is not None]
        for name in dict.fromkeys(name for each in there for name in each):
            if any(each.get(name) != there[0].get(name) for each in there):
                cells = ["" if each is None else option_text(each.get(name)) for each in found]
                rows.setdefault((name, *cells), metric)
    return [list(row) for row in rows]


def _text(measure: Mapping[str, Any]) -> str:
    interval = measure["interval"]
    value = number(float(measure["value"]))
    return value if interval is None else f"{value} ({number(float(interval[0]))} to {number(float(interval[1]))})"
