"""Fast readers of files in a zip or a tar: they find a file's offset and read it without the standard library's cost.

They take only simple archives: stored entries of a zip, and tars of files with short names. All others are left to
`zipfile` and `tarfile`, which read or refuse them.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from zipfile import ZIP_STORED, ZipInfo

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # local file header in a zip: signature, length of the name, of extra fields
_BLOCK = 512
_FILE, _FOLDER, _ATTRIBUTES = (b"0", b"\0"), b"5", b"x"
_TIMES = {b"mtime", b"atime", b"ctime"}


def read_at(path: str, offset: int, size: int) -> bytes:
    """Read ``size`` bytes at an offset of a file, or fewer at its end."""
    file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        os.lseek(file, offset, os.SEEK_SET)
        return os.read(file, size)
    finally:
        os.close(file)


def stored_content(path: str, entry: ZipInfo) -> bytes | None:
    """Return the content of an entry of a zip; None if it is compressed or damaged."""
    if entry.compress_type != ZIP_STORED or entry.file_size != entry.compress_size:
        return None
    name = len(entry.filename.encode())
    found = read_at(path, entry.header_offset, _LOCAL_HEADER.size + name + len(entry.extra) + entry.file_size)
    if len(found) < _LOCAL_HEADER.size:
        return None
    start, name, more = _LOCAL_HEADER.unpack_from(found)
    begin = _LOCAL_HEADER.size + name + more
    content = found[begin : begin + entry.file_size]
    return content if start == b"PK\x03\x04" and zlib.crc32(content) == entry.CRC else None


def plain_members(path: Path) -> list[tuple[str, int, int]] | None:
    """List the name, offset and size of each file in a tar; None if it is damaged or not simple, as with long names."""
    found: list[tuple[str, int, int]] = []
    place, end = 0, path.stat().st_size
    with path.open("rb") as stream:
        while True:
            stream.seek(place)
            header = stream.read(_BLOCK)
            if len(header) == _BLOCK and not header.strip(b"\0"):
                return found
            if len(header) < _BLOCK or not _is_sound(header):
                return None
            kind, size = header[156:157], _octal(header[124:136])
            if size is None or place + _BLOCK + size > end:
                return None
            if kind in _FILE:
                name = _name(header)
                if name is None:
                    return None
                found.append((name, place + _BLOCK, size))
            elif kind == _ATTRIBUTES:
                if not _are_times(stream.read(size)):
                    return None
            elif kind != _FOLDER:
                return None
            place += _BLOCK + -(-size // _BLOCK) * _BLOCK


def _is_sound(header: bytes) -> bool:
    """True if the checksum in a tar header is right: the sum of its bytes, with blanks in the checksum field."""
    return _octal(header[148:156]) == sum(header) - sum(header[148:156]) + 8 * ord(" ")


def _octal(field: bytes) -> int | None:
    digits = field.strip(b" \0")
    try:
        return int(digits, 8) if digits.isdigit() else None
    except ValueError:
        return None


def _name(header: bytes) -> str | None:
    """Return the file name in a tar header; None if it may be incomplete or is no UTF-8 file name."""
    field = header[:100]
    if not field.endswith(b"\0") or header[345:346] != b"\0":
        return None
    try:
        name = field.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        return None
    return None if name.endswith("/") or "\0" in name else name


def _are_times(attributes: bytes) -> bool:
    """True if the extended attributes are only times, such as "20 mtime=1700000000.5", and no other name or size."""
    lines = attributes.rstrip(b"\0\n").split(b"\n")
    return all(line.partition(b" ")[2].partition(b"=")[0] in _TIMES for line in lines)
