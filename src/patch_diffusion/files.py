"""Atomic writing of JSON, text and safetensors files, and reading them with errors that name the file."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from patch_diffusion.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_AT_ONCE = 2**18  # bytes


def user_path(path: str | os.PathLike[str]) -> Path:
    """Expand ``~`` in a path to the user's home; leave it unchanged if the user or home does not exist."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  (Path.expanduser raises there)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file atomically: yield a temporary path to write to, which is synced and renamed after the with block.

    The temporary name is no other writer's, so that of several who write one file each writes all of it.
    If the with block raises an error, the temporary file is deleted, and a file that was at ``path`` stays as it was.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with naming(path):
            partial.touch()
            mode = partial.stat().st_mode  # as the umask has it: some libraries make files that only their owner reads
            yield partial
            partial.chmod(mode)
            sync(partial)
            partial.replace(path)
    finally:
        with suppress(OSError):  # the folder may be gone, which the error above says
            partial.unlink(missing_ok=True)


def append_text(path: Path, text: str) -> None:
    """Append text to a file whose folder exists: all of it, or nothing if it cannot be written."""
    length = path.stat().st_size if path.exists() else 0
    try:
        with naming(path), path.open("ab") as file:
            file.write(encoded(text))
    except OSError:
        with suppress(OSError):
            os.truncate(path, length)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the name of a file to an error of the operating system in the with block that names none."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def encoded(text: str) -> bytes:
    """Encode text as UTF-8; what Python keeps of names that are not UTF-8, lone surrogates, becomes ``\\udce9``."""
    return text.encode("utf-8", errors="backslashreplace")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name to a safetensors file, atomically, see `replacing`."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with replacing(path) as partial:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name, or raise an `InputError` as `reading` does."""
    from safetensors import SafetensorError
    from safetensors.torch import load, load_file

    with reading(path):
        try:
            # safetensors opens no file by a name that is not UTF-8.
            return load_file(path) if encoded(str(path)) == os.fsencode(path) else load(path.read_bytes())
        except SafetensorError as error:
            raise ValueError(error) from None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically, see `replacing` and `to_json`."""
    write_text(path, to_json(content) + "\n")


def read_at_most(stream: IO[bytes], most: int) -> bytes:
    """Read a stream to its end, or one byte more than ``most``; in parts, as ``read(most)`` would take all that memory.

    >>> import io
    >>> read_at_most(io.BytesIO(b"abcdef"), 3)
    b'abcd'
    """
    parts: list[bytes] = []
    left = most + 1
    while left and (part := stream.read(min(left, _AT_ONCE))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def to_json(content: Any, *, lines: bool = True) -> str:
    """Return a value as JSON, over several lines or on one.

    Raises:
        ValueError: a number is not finite, which JSON cannot express; who has such numbers decides what they become.
    """
    return json.dumps(content, indent=1 if lines else None, allow_nan=False)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, see `replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(encoded(text))


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file as a dict, or raise an `InputError` as `reading` does."""
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not an object")
        return content


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Explain what is wrong with a file that is read in the with block.

    Raises:
        InputError: the file is missing, may not be read, or is damaged (a ValueError in the block).
    """
    try:
        path.open("rb").close()  # since safetensors says of a file that may not be read that there is none
        yield
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except PermissionError:
        raise InputError(f"{path} may not be read by this user: ask its owner for the permission") from None
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from None


def check_apart(outputs: Iterable[Path], inputs: Iterable[str | os.PathLike[str] | None]) -> None:
    """Raise an `InputError` if writing an output would replace an input, or a file in a folder that is an input."""
    given = {user_path(path).resolve() for path in inputs if path is not None}
    for output in outputs:
        place = output.resolve()
        if place in given or (place.exists() and not given.isdisjoint(place.parents)):
            raise InputError(f"{output} is read by this command, and would be overwritten: choose another place")


def check_writable(path: Path) -> None:
    """Raise an `InputError` if no file can be written at a path, or in it if it is a folder, before the work for it."""
    folder = path if path.is_dir() else path.parent
    try:
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{path} cannot be written ({folder}: {error.strerror}): choose another place") from None


def check_room(folder: Path, num_bytes: int) -> None:
    """Raise an `InputError` if the disk of a folder has less than ``num_bytes`` of free space."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise InputError(
            f"the disk of {folder} has {free / 1e6:,.1f} MB of room, and {num_bytes / 1e6:,.1f} MB are needed: "
            "make room or choose another place"
        )


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk (fsync)."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
