"""How a race ended, in 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from patch_diffusion.evaluation.summary import opponent, rows, sentences

_WIDTH = 80
_NAME = 14  # columns of an arm


def race_table(content: Mapping[str, Any]) -> str:
    """A line for each arm, and who is how much faster than the opponent; of what is in ``race.json``."""
    lines = []
    if content["standings"]["seeds"]:
        other = opponent(content)
        head = ["", "held-out loss", "steps", "images/s", f"{_short(other)}'s in", "faster", "its own"]
        cells = [
            [_short(row.name), row.loss, row.steps, row.rate, row.time, row.ratio, row.theirs] for row in rows(content)
        ]
        lines = [*_columns([head, *cells]), ""]
        lines.append(
            _filled(f"'{other}'s in': when an arm has {other}'s final loss; 'its own': when {other} has the arm's.")
        )
    return "\n".join([*lines, *map(_filled, sentences(content))])


def _short(name: str) -> str:
    return name if len(name) <= _NAME else name[: _NAME - 1] + "…"


def _columns(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[place]) for row in cells) for place in range(len(cells[0]))]
    return [
        "  ".join(
            f"{cell:<{width}}" if place == 0 else f"{cell:>{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]


def _filled(text: str) -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent="  ")
