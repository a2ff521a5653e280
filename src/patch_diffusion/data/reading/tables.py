"""Columns of CSV files and of tables: a value for each image, found by the name of its file."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Sequence

from patch_diffusion.data.reading.damage import damage_named
from patch_diffusion.data.reading.names import by_names, plain
from patch_diffusion.errors import InputError, counted

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
