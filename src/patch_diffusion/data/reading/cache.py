"""A disk cache of decoded data: each entry is a folder of arrays and facts, found by a key that says their source.

An entry is written under a temporary name and renamed when it is complete, so no reader sees an incomplete one. Its
files are memory-mapped, not loaded: all processes that train on the same images share one copy in the page cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from patch_diffusion.errors import InputError
from patch_diffusion.files import check_room, read_json, sync, user_path, write_json

FOLDER_VARIABLE = "PATCH_DIFFUSION_CACHE"
"""The environment variable that sets the cache folder."""

_FACTS_FILE = "facts.json"
_FORMAT = 1
_PARTIAL = ".partial"
_ABANDONED_SECONDS = 7 * 24 * 3600

Write = Callable[[Path], dict[str, Any]]
"""A function that writes the .npy files of a cache entry into a folder and returns its facts as JSON data."""

Found = tuple[dict[str, Any], dict[str, NDArray[Any]]]
"""Facts as JSON data, and arrays by name."""


@dataclass(frozen=True)
class Entry:
    """A complete cache entry: a folder of .npy arrays, which `tensor` opens by file name, and a dict of facts."""

    folder: Path
    facts: dict[str, Any]

    def tensor(self, name: str) -> Tensor:
        """Return one array of the entry as a memory-mapped tensor."""
        return map_array(self.folder / name)


def cache_folder() -> Path:
    """Return the cache folder: $PATCH_DIFFUSION_CACHE, or else one in the platform's usual place for caches."""
    if given := os.environ.get(FOLDER_VARIABLE):
        return user_path(given)
    home = user_path("~")
    if not home.is_absolute():  # the user has no home folder
        home = Path(tempfile.gettempdir())
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or home / ".cache"
    return Path(base) / "patch_diffusion"


def find(key: Mapping[str, Any]) -> Entry | None:
    """Return the cache entry of a key; None if it is missing or damaged."""
    folder = _folder_of(key)
    try:
        content = read_json(folder / _FACTS_FILE)
        if content["key"] != _plain(key):
            return None
        for name, size in content["files"].items():
            if (folder / name).stat().st_size != size:
                return None
            np.load(folder / name, mmap_mode="r")
        return Entry(folder, content["facts"])
    except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def make(key: Mapping[str, Any], write: Write, *, num_bytes: int = 0) -> Entry:
    """Write the cache entry of a key, unless another process has done so in the meantime, and return it.

    The key is everything that determines the content, as JSON data. If there is no room on the disk for ``num_bytes``,
    it is an `InputError`. Errors of ``write`` are passed on, too; then nothing is left behind.
    """
    final = _folder_of(key)
    final.parent.mkdir(parents=True, exist_ok=True)
    with _lock(final.with_suffix(".lock")) as alone:
        if found := find(key):
            return found
        _sweep(final.parent, f"{final.name}-*" if alone else "")
        shutil.rmtree(final, ignore_errors=True)
        _check_room(num_bytes)
        partial = final.with_name(f"{final.name}-{secrets.token_hex(4)}{_PARTIAL}")
        partial.mkdir()  # as the umask has it, since others may share the cache
        try:
            facts = write(partial)
            arrays = sorted(partial.glob("*.npy"))
            for path in arrays:
                sync(path)
            files = {path.name: path.stat().st_size for path in arrays}
            write_json(partial / _FACTS_FILE, {"key": _plain(key), "facts": facts, "files": files})
            sync(partial)
            # Where locks do not work, another process may have written the same entry first; that one is kept.
            with contextlib.suppress(OSError):
                partial.replace(final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    found = find(key)
    if found is None:
        raise InputError(f"what was written to {final} cannot be read back: is the disk sound?")
    return found


def remember(key: Mapping[str, Any], find_out: Callable[[], Found]) -> Found:
    """Return what is cached for a key, or find it out and cache it; a cache that cannot be written to is no error."""
    found: list[Found] = []

    def write(folder: Path) -> dict[str, Any]:
        found.append(find_out())
        facts, arrays = found[0]
        for name, values in arrays.items():
            np.save(folder / f"{name}.npy", values)
        return facts

    try:
        entry = find(key) or make(key, write)
    except (OSError, InputError) as error:
        if isinstance(error, InputError) and not found:  # it is about what was to be found out
            raise
        return found[0] if found else find_out()
    return entry.facts, {path.stem: np.load(path) for path in entry.folder.glob("*.npy")}


def make_nameless(write: Write, *, num_bytes: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Write data to the cache folder without a key; return its facts and mapped arrays, which end with the process."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    _sweep(cache_folder())
    _check_room(num_bytes)
    folder = Path(tempfile.mkdtemp(prefix="nameless-", suffix=_PARTIAL, dir=cache_folder()))
    try:
        facts = write(folder)
        arrays = {path.name: map_array(path) for path in sorted(folder.glob("*.npy"))}
    finally:
        # Mapped files stay readable until they are unmapped. On Windows they stay on the disk, until they are swept.
        shutil.rmtree(folder, ignore_errors=True)
    return facts, arrays


def write_blocks(path: Path, blocks: Iterable[NDArray[Any]], shape: tuple[int, ...], dtype: str) -> None:
    """Write arrays (k, *shape), whose number need not be known, one after another into one .npy file.

    The file is written and not memory-mapped, so that a full disk raises an error and does not kill the process.
    """
    with path.open("wb") as file:
        _write_header(file, (0, *shape), dtype)
        length, count = file.tell(), 0
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype).data)
            count += len(block)
        file.seek(0)
        _write_header(file, (count, *shape), dtype)
        assert file.tell() == length, "the header of an .npy leaves room for its first dimension to grow"


def map_array(path: Path) -> Tensor:
    """Memory-map an .npy file as a tensor: only the accessed parts are read. The tensor must not be written to."""
    return as_tensor(np.load(path, mmap_mode="r"))


def as_tensor(array: NDArray[Any]) -> Tensor:
    """Return a tensor that shares the memory of a read-only array, without torch's warning about writing to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


def digest(*parts: object) -> str:
    """Return a SHA-256 digest, 32 hexadecimal digits, of the string forms of the arguments."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]


def state_of(path: Path) -> list[Any]:
    """Return the path, size and modification time of a file, which differ if the file has changed."""
    found = path.stat()
    return [str(path.resolve()), found.st_size, found.st_mtime_ns]


def _write_header(file: Any, shape: tuple[int, ...], dtype: str) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _folder_of(key: Mapping[str, Any]) -> Path:
    return cache_folder() / digest(_FORMAT, json.dumps(_plain(key), sort_keys=True))


def _plain(key: Mapping[str, Any]) -> Any:
    """Return a key in the form it has after a round trip through JSON."""
    return json.loads(json.dumps(key))


def _check_room(num_bytes: int) -> None:
    try:
        check_room(cache_folder(), num_bytes)
    except InputError as error:
        raise error.reworded(f"{error} ({FOLDER_VARIABLE} names it; --data.cache memory needs none)") from None


def _sweep(folder: Path, abandoned: str = "") -> None:
    """Remove partial entries that killed processes left: older than a week, or with names that match ``abandoned``."""
    for path in folder.glob(f"*{_PARTIAL}"):
        with contextlib.suppress(OSError):
            is_old = time.time() - path.stat().st_mtime > _ABANDONED_SECONDS
            if is_old or (abandoned and path.match(abandoned)):
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Hold a file lock across processes in the with block; yield True, or False if there is none to be had.

    So it is where the disk has no locks, or the lock is of another user, who shares the cache.
    """
    lock = FileLock(path)
    with contextlib.suppress(OSError, NotImplementedError):
        lock.acquire()
    try:
        yield lock.is_locked
    finally:
        lock.release()
