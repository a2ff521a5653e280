"""Reading ``log.jsonl`` while it is written."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Line = dict[str, Any]
"""A line of the log. Those that measured the training have "loss", those of held-out images "held_out", those of
samples "samples", and the rest "note"; all have "step"."""

_SPAN = 1 << 21  # bytes that are read at a time
_REMEMBERED = 256  # bytes before the place that was read to, to see whether they are still the same


def parse_line(text: bytes) -> Line | None:
    """A line of the log, or None for a damaged one."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None


def read_log(path: Path) -> Iterator[Line | None]:
    """The lines of a log, one after the other, and None for each damaged one.

    A log that is not there has none, and a last line without its end is still being written.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for text in file:
            if text.endswith(b"\n") and text.strip():
                yield parse_line(text)


def last_measured(path: Path) -> Line:
    """The newest line that measured the training, empty where there is none; a long log is read from its end only."""
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
    """What `LogTail.read` found.

    Args:
        lines: what is to be added to what was read before.
        restarted: the log was written anew, so what was read before is to be forgotten first.
        known: how many of the lines, from the first, had been read before.
        more: there is more to read at once.
    """

    lines: list[Line | None] = field(default_factory=list)
    restarted: bool = False
    known: int = 0
    more: bool = False


class LogTail:
    """Reads what has come to a log since the last time.

    A run that continues writes its log anew, without the steps that its checkpoint does not hold.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = 0
        self._end = b""  # the bytes before the place
        self._num = 0  # lines before the place
        self._known = array("q")  # a number for each line that was ever read, until the first that is another now

    def read(self) -> News:
        """The lines that came since the last call, or the next of very many, without waiting for any."""
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
