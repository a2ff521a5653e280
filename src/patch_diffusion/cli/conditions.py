"""Conditions of images given on the command line: ``--condition age=40`` for all, or a table with a line for each."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from patch_diffusion.cli.parsing import parse_seeds
from patch_diffusion.errors import InputError

SEED = "seed"
_MOST_BYTES = 2**26


def parse_conditions(words: Sequence[str]) -> dict[str, str]:
    """Return the values of ``NAME=VALUE`` by their names; an `InputError` names a word of another form."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (equals and name and value):
            raise InputError(f"a condition is given as NAME=VALUE, such as age=40, not '{word}'", option="condition")
        if name in found:
            raise InputError(f"the condition {name} is given twice: leave one out", option="condition")
        found[name] = value
    return found


def conditions_and_seeds(
    words: Sequence[str], table: Path | None, seeds: str, usual: str
) -> tuple[Sequence[int], dict[str, Any]]:
    """Return the seeds of the images, and their conditions: a text for all, or a list of one for each.

    Args:
        words: conditions of all images, as ``NAME=VALUE``.
        table: a CSV with a line for each image, which may have a column of seeds; None: there is none.
        seeds: the option ``--seeds``.
        usual: its default, in place of which a table has the seeds from 0 on.
    """
    conditions: dict[str, Any] = dict(parse_conditions(words))
    if table is None:
        return parse_seeds(seeds), conditions
    columns = _columns(table)
    if twice := next((name for name in columns if name in conditions), None):
        raise InputError(f"the condition {twice} is given by --condition and in {table}: leave one out")
    num = len(next(iter(columns.values())))
    own = columns.pop(SEED, None)
    if own is not None and seeds != usual:
        raise InputError(f"{table} has a column of seeds, and --seeds gives others: leave one out", option="seeds")
    if own is not None:
        seeds = ",".join(own)
    elif seeds == usual:
        seeds = f"0-{num - 1}"
    chosen = parse_seeds(seeds)
    if len(chosen) != num:
        raise InputError(f"{table} has {num:,} lines, and there are {len(chosen):,} seeds", option="seeds")
    return chosen, conditions | columns


def inputs_and_seeds(paths: Sequence[Path], seeds: Sequence[int]) -> tuple[list[tuple[str | None, ...]], list[int]]:
    """Return the input files of each picture, and its seed: every input with every seed.

    Args:
        paths: a file, or a folder of files, for each input of the model. Files of one picture have the same name, but
            for the ending.
        seeds: the seeds of the pictures of each input.
    """
    found: list[dict[str, str]] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"there is no input at {path}", option="paired")
        files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
        found.append({each.stem: str(each) for each in files})
    if len(paths) > 1 and all(len(each) == 1 for each in found):  # single files, which may have any name
        found = [{next(iter(found[0])): next(iter(each.values()))} for each in found]
    names = sorted({name for each in found for name in each})
    if not names:
        raise InputError(f"{paths[0]} holds no files", option="paired")
    inputs = [tuple(each.get(name) for each in found) for name in names]
    return [each for each in inputs for _ in seeds], [seed for _ in inputs for seed in seeds]


def of_seeds(conditions: dict[str, Any], seeds: Sequence[int], chosen: Sequence[int]) -> dict[str, Any]:
    """Return the conditions of some of the seeds."""
    places = {seed: place for place, seed in enumerate(seeds)}
    return {
        name: value if isinstance(value, str) else [value[places[seed]] for seed in chosen]
        for name, value in conditions.items()
    }


def _columns(table: Path) -> dict[str, list[str]]:
    """Read the columns of a CSV by the names in its first line."""
    if table.stat().st_size > _MOST_BYTES:
        raise InputError(f"{table} has more than {_MOST_BYTES / 1e6:,.0f} MB", option="conditions")
    try:
        text = table.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        separator = next((mark for mark in ",;\t" if mark in first), ",")
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {table} as a CSV in UTF-8: {error}", option="conditions") from None
    rows = [[cell.strip() for cell in row] for row in rows if any(map(str.strip, row))]
    if len(rows) < 2:
        raise InputError(f"{table} needs names of conditions in its first line, and a line for each image")
    names = rows[0]
    for place, row in enumerate(rows[1:], start=2):
        if len(row) != len(names):
            raise InputError(f"line {place} of {table} has {len(row)} values, and its first line {len(names)} names")
    return {name: [row[place] for row in rows[1:]] for place, name in enumerate(names)}
