"""What a stopped preparation has done already, to go on from there."""

from __future__ import annotations

import contextlib
import json
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from patch_diffusion.errors import InputError

_FLUSHED = 64  # files after which what is done is sure to be found again


class PartialZip:
    """The pictures of a zip that is not complete: their bytes, one after the other, and a line for each file read.

    A line is ``{"file", "length", "checksum", "content"}``, or ``{"file", "dropped"}`` with the reason. The first one
    says what the pictures are made of; those of something else, and what was cut short, do not count. Use as a context
    manager.

    Args:
        folder: where they are kept.
        made_of: what they follow from, as a digest; None where that cannot be told, and so nothing can be found again.
    """

    def __init__(self, folder: Path, made_of: str | None) -> None:
        self.folder = folder
        self.lines: list[dict[str, Any]] = []
        self._made_of = made_of
        self._files: list[IO[bytes]] = []

    def __enter__(self) -> PartialZip:
        self.folder.mkdir(parents=True, exist_ok=True)
        names = [self.folder / "pictures", self.folder / "files.jsonl"]
        self.lines, lengths = self._complete(*names)
        self._files = [path.open("r+b" if path.exists() else "w+b") for path in names]
        for file, length in zip(self._files, lengths, strict=True):
            file.truncate(length)
            file.seek(length)
        if not lengths[1]:
            self._write_line({"made_of": self._made_of})
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files:
            # What a full disk did not take is not there the next time.
            with contextlib.suppress(OSError):
                file.close()

    def add(self, name: str, picture: bytes, content: bytes) -> None:
        """A finished picture."""
        self._files[0].write(picture)
        self._line({"file": name, "length": len(picture), "checksum": zlib.crc32(picture), "content": content.hex()})

    def drop(self, name: str, why: str) -> None:
        """A file that is left out."""
        self._line({"file": name, "dropped": why})

    def pictures(self) -> Iterator[tuple[int, bytes]]:
        """All that were added, with the number of their file in the data set."""
        stream = self._files[0]
        stream.flush()
        stream.seek(0)
        for index, line in enumerate(self.lines):
            if "length" in line:
                picture = stream.read(line["length"])
                if zlib.crc32(picture) != line["checksum"]:
                    raise InputError(f"{self.folder} is damaged: remove it and call prepare again")
                yield index, picture

    @property
    def num_bytes(self) -> int:
        """Of all pictures."""
        return sum(line.get("length", 0) for line in self.lines)

    def remove(self) -> None:
        """Take all of it away, when the zip is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _line(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        self._write_line(line)
        if len(self.lines) % _FLUSHED == 0:
            for file in self._files:  # the pictures first, so that no line is there without its picture
                file.flush()

    def _write_line(self, line: dict[str, Any]) -> None:
        self._files[1].write(json.dumps(line).encode() + b"\n")

    def _complete(self, pictures: Path, lines: Path) -> tuple[list[dict[str, Any]], tuple[int, int]]:
        """The lines whose pictures are there, and how long both files are up to them."""
        if not (pictures.exists() and lines.exists()):
            return [], (0, 0)
        kept: list[dict[str, Any]] = []
        num_pictures, num_lines, room = 0, 0, pictures.stat().st_size
        for number, text in enumerate(lines.read_bytes().splitlines(keepends=True)):
            try:
                line = json.loads(text)
            except ValueError:
                break
            if number == 0 and (self._made_of is None or line.get("made_of") != self._made_of):
                return [], (0, 0)
            if not text.endswith(b"\n") or num_pictures + line.get("length", 0) > room:
                break
            num_pictures += line.get("length", 0)
            num_lines += len(text)
            kept += [line] if number else []
        return kept, (num_pictures, num_lines)
