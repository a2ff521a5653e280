"""Tables of 80 columns for the terminal: results of a race, metrics of an evaluation, and named texts."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from patch_diffusion.cli.say import say
from patch_diffusion.errors import shown
from patch_diffusion.evaluation.evaluate import Evaluation
from patch_diffusion.evaluation.intervals import Measure
from patch_diffusion.races.summary import opponent, rows, sentences

_WIDTH, _INDENT = 80, 13
_NAME = 14  # width of the column of arm names


def race_table(content: Mapping[str, Any]) -> str:
    """Format the results of a race (``race.json``): a line per arm (configuration), with its speed-up over another."""
    lines = []
    if content["standings"]["seeds"]:
        other = opponent(content)
        head = ["", "held-out loss", "steps", "images/s", f"{_short(other)}'s in", "faster", "its own"]
        cells = [[_short(name), *others] for name, *others in rows(content)]
        lines = [*_columns([head, *cells]), ""]
        lines.append(
            _filled(
                f"'{other}'s in': training until an arm reaches {other}'s final loss; 'its own': training until "
                f"{other} reaches the arm's."
            )
        )
    return "\n".join([*lines, *map(_filled, sentences(content))])


def _short(name: str) -> str:
    return name if len(name) <= _NAME else name[: _NAME - 1] + "…"


def _columns(cells: Sequence[Sequence[str]]) -> list[str]:
    first, *others = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([f"{name:<{first}}", *(f"{cell:>{width}}" for cell, width in zip(row, others, strict=True))])
        for name, *row in cells
    ]


def _filled(text: str) -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent="  ")


_SHARES = {"precision", "recall", "coverage", "near_copies", "near_copies_held_out"}  # metrics printed as percentages
_NAMES = {
    "frechet": "Frechet distance",
    "kernel": "kernel distance",
    "near_copies": "near copies",
    "near_copies_held_out": "  of held-out images",
    "nearest_ratio": "nearest / second",
    "nearest_ratio_held_out": "  of held-out images",
    "denoising": "denoising loss",
    "psnr": "PSNR of single images",
    "psnr_of_mean": "  of their mean",
    "ssim": "SSIM of single images",
    "ssim_of_mean": "  of their mean",
    "crps": "CRPS",
    "spread_skill": "spread / skill",
    "bits": "bits per dimension",
}


def print_measures(found: Evaluation) -> None:
    """Print the metrics, settings and notes of an evaluation on stdout, in 80 columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, width=_WIDTH, pad_edge=False)
    table.add_column(shown(found.source.rstrip("/").rpartition("/")[2]), no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="center", no_wrap=True)
    table.add_column("images", ratio=1)
    for name, measure in found.measures.items():
        table.add_row(_name(name), _number(name, measure.value), _interval(name, measure), _of(measure.settings))
    console = Console(width=_WIDTH, highlight=False, markup=False)
    console.print(table)
    for line in _settings(found.settings):
        say(line)
    for note in found.notes:
        say(textwrap.fill("- " + note, _WIDTH, subsequent_indent="  ", break_long_words=False))


def _name(name: str) -> str:
    metric, at, part = name.partition("@")
    if at and metric in _SHARES:
        return f"  of held-out {part}" if metric.endswith("held_out") else f"  of patches {part}"
    return f"  sigma {part}" if at else _NAMES.get(metric, metric)


def _number(name: str, value: float) -> str:
    return f"{value:.1%}" if name.partition("@")[0] in _SHARES else f"{value:.4g}"


def _interval(name: str, measure: Measure) -> str:
    if measure.low is None or measure.high is None:
        return "none"
    return f"{_number(name, measure.low)} to {_number(name, measure.high)}"


def _of(settings: dict[str, Any]) -> str:
    """Return the numbers of images that a metric was computed from, as text."""
    if "held_out_images" in settings:
        return f"{settings['held_out_images']:,} held out"
    against = f" against {settings['reference_images']:,}" if settings.get("reference_images") else ""
    return f"{settings['images']:,}{against}"


def _settings(settings: dict[str, Any]) -> Iterator[str]:
    """Yield the settings that all metrics of an evaluation share, as wrapped lines."""
    words = [
        f"{name} {value['name'] if name == 'extractor' else _plain(value)}"
        for name, value in settings.items()
        if value is not None
    ]
    yield from textwrap.wrap(", ".join(words), _WIDTH, break_long_words=False)


def _plain(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)


def points(named: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield texts, each after its name, as lines of 80 columns; words are not broken."""
    for name, text in named:
        # A name longer than the indent gets a line of its own.
        first = f"{name:<{_INDENT}}"
        if len(name) >= _INDENT:
            yield name
            first = " " * _INDENT
        yield from wrapped(first + text, indent=_INDENT)


def wrapped(text: str, indent: int = 0) -> list[str]:
    """Wrap a text into lines of 80 columns, all but the first indented; words are not broken."""
    return textwrap.wrap(text, _WIDTH, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
