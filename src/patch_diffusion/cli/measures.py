"""What ``evaluate`` measured, as a table to read."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from patch_diffusion.evaluation.evaluate import Evaluation
from patch_diffusion.evaluation.intervals import Measure

_WIDTH = 80
_SHARES = {"precision", "recall", "coverage", "near_copies", "near_copies_held_out"}  # and patches of these
_NAMES = {
    "frechet": "Frechet distance",
    "kernel": "kernel distance",
    "near_copies": "near copies",
    "near_copies_held_out": "  of held-out images",
    "nearest_ratio": "nearest / second",
    "nearest_ratio_held_out": "  of held-out images",
    "denoising": "denoising loss",
    "bits": "bits per dimension",
}


def print_measures(found: Evaluation) -> None:
    """On stdout, in 80 columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, width=_WIDTH, pad_edge=False)
    table.add_column(found.source.rstrip("/").rpartition("/")[2], no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="center", no_wrap=True)
    table.add_column("of", ratio=1)
    for name, measure in found.measures.items():
        table.add_row(_name(name), _number(name, measure.value), _interval(name, measure), _of(measure.settings))
    console = Console(width=_WIDTH, highlight=False, markup=False)
    console.print(table)
    for line in _settings(found.settings):
        print(line)
    for note in found.notes:
        print(textwrap.fill("- " + note, _WIDTH, subsequent_indent="  ", break_long_words=False))


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
    """The numbers of images behind a number."""
    if "held_out_images" in settings:
        return f"{settings['held_out_images']:,} held out"
    against = f" against {settings['reference_images']:,}" if settings.get("reference_images") else ""
    return f"{settings['images']:,}{against}"


def _settings(settings: dict[str, Any]) -> Iterator[str]:
    """What made all of them, in lines."""
    words = [
        f"{name} {value['name'] if name == 'extractor' else _plain(value)}"
        for name, value in settings.items()
        if value is not None
    ]
    yield from textwrap.wrap(", ".join(words), _WIDTH, break_long_words=False)


def _plain(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)
