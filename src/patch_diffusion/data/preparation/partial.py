"""The saved state of an interrupted preparation of a data set as a zip, from which it can be resumed."""

from __future__ import annotations

import contextlib
import json
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from patch_diffusion.errors import InputError
from patch_diffusion.files import to_json

_FLUSHED = 64  # the number of files between two flushes, after which finished work survives an interruption


class PartialZip:
    """The finished images of an incomplete zip: one file of their concatenated bytes, and a JSON line per file read.

    A line is ``{"file", "length", "checksum", "content"}``, or ``{"file", "dropped"}`` with the reason. The first line
    has a digest of the sources; images of other sources, and truncated ones, are discarded. Use it as a context
    manager.

    Args:
        folder: the folder of both files.
        made_of: a digest of the sources and options; None if it is unknown, and then nothing can be resumed.
    """

    def __init__(self, folder: Path, made_of: str | None) -> None:
        self.folder = folder
        self.lines: list[dict[str, Any]] = []
        self._made_of = made_of
        self._files: list[IO[bytes]] = []
        self._lock = FileLock(folder / "lock", timeout=0)

    def __enter__(self) -> PartialZip:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise InputError(f"{self.folder} is being written by another process: wait for it, or stop it") from None
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
            # Data that a full disk did not take is discarded when the preparation is resumed.
            with contextlib.suppress(OSError):
                file.close()
        self._lock.release()

    def add(self, name: str, picture: bytes, content: bytes) -> None:
        """Append a finished image: the name of its file, its encoded bytes and the hash of its pixels (``content``)."""
        self._files[0].write(picture)
        self._line({"file": name, "length": len(picture), "checksum": zlib.crc32(picture), "content": content.hex()})

    def drop(self, name: str, why: str) -> None:
        """Record that a file of the data set is left out of the zip, and why."""
        self._line({"file": name, "dropped": why})

    def pictures(self) -> Iterator[tuple[int, bytes]]:
        """Yield all finished images, encoded, with the index of their file in the data set."""
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
        """The size of all finished images in bytes."""
        return sum(line.get("length", 0) for line in self.lines)

    def remove(self) -> None:
        """Delete the folder, after the zip is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _line(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        self._write_line(line)
        if len(self.lines) % _FLUSHED == 0:
            for file in self._files:  # the images are flushed first, so that no line exists without its image
                file.flush()

    def _write_line(self, line: dict[str, Any]) -> None:
        self._files[1].write(to_json(line, lines=False).encode() + b"\n")

    def _complete(self, pictures: Path, lines: Path) -> tuple[list[dict[str, Any]], tuple[int, int]]:
        """Return the lines whose images are complete, and the lengths in bytes of both files up to the last one."""
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
