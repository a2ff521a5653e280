"""Columns of CSV files and of tables: a value for each image, found by the name of its file."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from patch_diffusion.data.attributes import OPTION, Attributes, attribute_of
from patch_diffusion.data.reading.damage import damage_named
from patch_diffusion.data.reading.names import by_names, plain
from patch_diffusion.errors import InputError, counted, did_you_mean, option_error

FILE = "file"

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as spreadsheets write it


def columns_of_csv(
    content: bytes,
    wanted: Sequence[str],
    names: Sequence[str],
    source: str,
    *,
    may_lack: bool = True,
    advice: str = "",
) -> tuple[dict[str, list[str]], list[str]]:
    """Return the text of each image in some columns of a CSV, which has their names in the column ``file``; and notes.

    Args:
        content: the file.
        wanted: names of the columns; empty: all but ``file``.
        names: the plain names of the images.
        source: the name of the file.
        may_lack: True if a cell may be empty.
        advice: the end of the error for images without a line.

    Raises:
        InputError: a column is missing, a file has two values, or an image has no line.
    """
    found: dict[str, tuple[str, ...]] = {}
    told = ",".join((FILE, *wanted))
    try:
        text = content.decode("utf-16" if content.startswith(_UTF_16) else "utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{source} is not a CSV of {told} in UTF-8: save it as that") from None
    with damage_named(source, f"is not a CSV of {told}"):
        separator = next((mark for mark in ",;\t" if mark in text.partition("\n")[0]), ",")
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
        columns = rows.fieldnames or ()
        for each in (FILE, *wanted):  # a name in another case counts if it is the only one
            alike = [name for name in columns if name.strip().casefold() == each.casefold()]
            if each not in columns and len(alike) == 1:
                columns = rows.fieldnames = [each if name in alike else name for name in columns]
        if not {FILE, *wanted} <= set(columns):
            raise InputError(
                f"the first line of {source} must name the columns {' and '.join((FILE, *wanted))}, not "
                f"{', '.join(columns)[:200] or 'none'}: commas are between columns"
            )
        wanted = wanted or [name for name in columns if name != FILE]
        for row in rows:
            name = plain((row[FILE] or "").strip())
            values = tuple((row[each] or "").strip() for each in wanted)
            lacks = [each for each, value in zip(wanted, values, strict=True) if value.casefold() in ("", "nan")]
            if not name or (lacks and not may_lack):
                raise InputError(f"line {rows.line_num} of {source} has no {lacks[0] if name else FILE}")
            if (before := found.setdefault(name, values)) != values:
                one, two, each = next(pair for pair in zip(before, values, wanted, strict=True) if pair[0] != pair[1])
                raise InputError(f"{source} gives {name} two {each}s, {one} and {two}")
    own, others, notes = by_names(found, names, source)
    missing = [name for name in names if name not in own]
    what = wanted[0] if len(wanted) == 1 else "line"
    if missing:
        raise InputError(
            f"{source} has no {what} for {len(missing):,} of {len(names):,} images (first: {missing[0]}): add "
            f"them{advice}"
        )
    if others:
        notes.append(
            f"{source} has {what}s for {counted(len(others), 'file')} that the data does not have (first: {others[0]})"
        )
    return {each: [own[name][place] for name in names] for place, each in enumerate(wanted)}, notes


def attributes_of_csv(
    content: bytes, wanted: Sequence[str], names: Sequence[str], source: str
) -> tuple[Attributes, list[str]]:
    """Return the attributes of images in the columns of a CSV, and notes for the user, see `columns_of_csv`."""
    columns, notes = columns_of_csv(content, wanted, names, source)
    if not columns:
        raise InputError(f"{source} has no column beside {FILE}: add one for each condition", option=OPTION)
    attributes, more = attributes_of_columns(columns, source)
    return attributes, [*notes, *more]


def attributes_of_rows(columns: Mapping[str, Any], num: int, source: str) -> tuple[Attributes | None, list[str]]:
    """Return the attributes of ``num`` images whose values, by name, are in their order, None of none; and notes."""
    for name, values in columns.items():
        if len(values) != num:
            raise option_error(OPTION, f"{name} has {len(values):,} values, and {source} has {num:,} images")
    return attributes_of_columns(columns, source) if columns else (None, [])


def attributes_of_columns(columns: Mapping[str, Any], source: str) -> tuple[Attributes, list[str]]:
    """Return the attributes of images, given the values of all of them by the name of each column; and notes."""
    found = [attribute_of(name, values, source) for name, values in columns.items()]
    described = tuple(column for column, _, _ in found)
    notes = [note for _, _, more in found for note in more]
    return Attributes(described, tuple(values for _, values, _ in found)), notes


def check_columns(wanted: Sequence[str], known: Sequence[str], source: str) -> None:
    """Raise InputError if one of the wanted columns is not a known one of a table."""
    for name in wanted:
        if name not in known:
            raise InputError(f"{source} has no column '{name}'{did_you_mean(name, known)}", option=OPTION)
