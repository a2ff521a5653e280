"""Readers of a run's ``log.jsonl``, which work also while the file is written."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Line = dict[str, Any]
"""A line of the log as a dict. Lines with training measurements have "loss", lines about held-out images "held_out",
lines about samples "samples", and the rest "note"; all have "step"."""

_SPAN = 1 << 21  # bytes read at a time
_REMEMBERED = 256  # bytes before the read position that are kept, to detect a log that was rewritten


def parse_line(text: bytes) -> Line | None:
    """Parse one line of a run's log into a dict; return None if the line is damaged.

    A line that is returned has everything that readers compute with, so that none of them has to look again. Bytes that
    are not UTF-8 become U+FFFD; NaN and infinity, which earlier versions wrote, become None, and so does 1e999.
    """
    try:
        line = json.loads(text.decode("utf-8", errors="replace"), parse_constant=_finite, parse_float=_finite)
        _check_numbers(line)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    return line if isinstance(line["step"], int) else None


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _check_numbers(line: Line) -> None:
    """Raise an error if something in a line that readers compute with is missing, or is not a number."""
    needed = [line["step"], *(line.get(name, 0) for name in ("images", "seconds", "spent"))]
    may_be_none = []
    if "loss" in line:
        needed += [line[name] for name in ("images", "seconds", "learning_rate")]
        may_be_none += [*line["loss"].values(), *line.get("loss_by_noise", {}).values()]
    if "held_out" in line:
        needed.append(line["held_out"]["loss"])
        for losses in ("by_noise", "by_size"):
            may_be_none += line["held_out"].get(losses, {}).values()
    if "samples" in line:
        may_be_none += line["samples"].values()
    for value in (*needed, *(value for value in may_be_none if value is not None)):
        if not math.isfinite(value):  # TypeError or OverflowError for what is no number; 1e999 is read as infinite
            raise ValueError(value)


def read_log(path: Path) -> Iterator[Line | None]:
    """Yield the lines of a run's log as dicts, and None for each damaged line.

    A missing log has no lines. A last line without a newline is still being written, and is left out.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for text in file:
            if text.endswith(b"\n") and text.strip():
                yield parse_line(text)


def text_up_to(path: Path, step: int) -> str:
    """Return the lines of a log up to a step as text, without damaged ones."""
    with path.open("rb") as file:
        kept = [text for text in file if (line := parse_line(text)) is not None and line["step"] <= step]
    return "".join(text.decode("utf-8", errors="replace").rstrip("\n") + "\n" for text in kept)


def last_measured(path: Path) -> Line:
    """Return the newest log line with a training loss, an empty dict if none; of a long log, read the end only."""
    if not path.exists():
        return {}
    with path.open("rb") as file:
        length, span = file.seek(0, 2), _SPAN
        while True:
            file.seek(max(length - span, 0))
            texts = file.read(span).split(b"\n")[0 if span >= length else 1 : -1]
            for text in reversed(texts):
                line = parse_line(text)
                if line is not None and "loss" in line:
                    return line
            if span >= length:
                return {}
            span *= 4


@dataclass(frozen=True)
class News:
    """The new lines of a log, as returned by `LogTail.read`.

    Args:
        lines: the lines to add to those that were read before.
        restarted: True if the log was rewritten, so that the lines read before are to be discarded first.
        known: how many of these lines, from the first on, equal lines that were read before the log was rewritten.
        more: True if another call returns more lines without waiting.
    """

    lines: list[Line | None] = field(default_factory=list)
    restarted: bool = False
    known: int = 0
    more: bool = False


class LogTail:
    """An incremental reader of a run's log, which returns the lines added since the last call.

    It notices a rewritten log: a run that continues rewrites its log without the steps after its checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = 0
        self._end = b""  # the bytes before the read position
        self._num = 0  # lines before the read position
        self._known = array("q")  # hashes of all lines that were ever read, up to the first that differs now

    def read(self) -> News:
        """Return the log lines added since the last call, or the next part of very many; never wait for new lines."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            restarted = self._place > 0
            self._place, self._end, self._num = 0, b"", 0
            return News(restarted=restarted)
        with file:
            file.seek(self._place - len(self._end))
            restarted = file.read(len(self._end)) != self._end
            if restarted:
                self._place, self._end, self._num = 0, b"", 0
                file.seek(0)
            content = file.read(_SPAN)
            while b"\n" not in content and (rest := file.read(_SPAN)):
                content += rest
        complete = content[: content.rfind(b"\n") + 1]
        self._place += len(complete)
        self._end = (self._end + complete)[-_REMEMBERED:]
        texts = [text for text in complete.split(b"\n") if text.strip()]
        known = sum(map(self._was_known, texts))
        return News([parse_line(text) for text in texts], restarted, known, more=len(content) >= _SPAN)

    def _was_known(self, text: bytes) -> bool:
        number, place = hash(text), self._num
        self._num += 1
        if place < len(self._known):
            if self._known[place] == number:
                return True
            del self._known[place:]
        self._known.append(number)
        return False
