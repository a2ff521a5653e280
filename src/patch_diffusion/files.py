"""Atomic writing of JSON, text and safetensors files, and reading them with errors that name the file."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patch_diffusion.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


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
        yield partial
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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
    """Return the tensors of a safetensors file by name, or raise an `InputError` if it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged: {error}") from None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically, see `replacing` and `to_json`."""
    write_text(path, to_json(content) + "\n")


def to_json(content: Any, *, lines: bool = True) -> str:
    """Return a value as JSON, over several lines or on one.

    Raises:
        ValueError: a number is not finite, which JSON cannot express; who has such numbers decides what they become.
    """
    return json.dumps(content, indent=1 if lines else None, allow_nan=False)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, see `replacing`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file as a dict, or raise an `InputError` if the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it holds a {type(content).__name__}, not an object")
    return content


def check_apart(outputs: Iterable[Path], inputs: Iterable[str | os.PathLike[str] | None]) -> None:
    """Raise an `InputError` if writing an output would replace an input, or a file in a folder that is an input."""
    given = {user_path(path).resolve() for path in inputs if path is not None}
    for output in outputs:
        place = output.resolve()
        if place in given or (place.exists() and not given.isdisjoint(place.parents)):
            raise InputError(f"{output} is read by this command, and would be overwritten: choose another place")


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
