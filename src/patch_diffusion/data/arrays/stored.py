"""Arrays in .npy, .npz, HDF5 and Zarr files: finding the one that holds the images, and reading it block by block."""

from __future__ import annotations

import itertools
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from patch_diffusion.config import Data
from patch_diffusion.data.reading.cache import digest, state_of
from patch_diffusion.data.reading.damage import damage_named
from patch_diffusion.errors import InputError, did_you_mean, need
from patch_diffusion.files import user_path

ENDINGS = (".npy", ".npz", ".h5", ".hdf5", ".zarr")

_IMAGE_NAMES = ("images", "x", "data")
_LABEL_NAMES = ("labels", "y", "label")
_BLOCK_BYTES = 32 * 2**20
_MOST_BLOCK_BYTES = 512 * 2**20
_LARGE, _MOST_PACKED = 2**30, 10_000  # bytes of an array, and how many times those of its file they may be


@dataclass(frozen=True)
class StoredArray:
    """An array of images (n, ...), in a file or in memory.

    Calling ``blocks`` yields it, block by block along the first axis. ``labels`` are the labels stored with it, if any,
    and ``groups`` and ``conditions`` those that were asked for.
    ``identity`` changes when the file does, and is None for an array in Python. ``mapped`` is the array itself, if it
    is in memory or memory-mapped.
    """

    source: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    blocks: Callable[[], Iterator[NDArray[Any]]]
    labels: NDArray[Any] | None = None
    identity: Any = None
    mapped: NDArray[Any] | None = None
    groups: NDArray[Any] | None = None
    conditions: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def is_array(path: Path) -> bool:
    """True if a path is that of an array file (.npy, .npz, HDF5) or of a Zarr folder."""
    if path.is_dir():
        return path.suffix.lower() == ".zarr" or any((path / name).is_file() for name in _ZARR_FILES)
    return path.suffix.lower() in ENDINGS


@contextmanager
def open_array(path: Path, options: Data) -> Iterator[StoredArray]:
    """Open the array of images in a file, and yield it; the file stays open in the with block. Nothing is unpickled.

    Without ``key`` it is the only one that can be images, or ``images``, ``x`` or ``data``; without ``labels`` these
    are ``labels``, ``y`` or ``label``, if there is one. For an .npy, ``labels``, ``group`` and ``conditions`` are paths
    of others.

    Raises:
        InputError: the file is damaged, or lacks an array of this name; the error message lists the existing names.
    """
    if not path.is_file() and not path.is_dir():
        raise InputError(f"{options.source} is no file that can be read twice: give an array in a file")
    opener = {".npy": _open_npy, ".npz": _open_npz, ".h5": _open_hdf5, ".hdf5": _open_hdf5}
    with opener.get(path.suffix.lower(), _open_zarr)(path, options) as found:
        yield found


def in_memory(array: NDArray[Any], source: str) -> StoredArray:
    """Wrap an array in memory as a stored array, without a copy."""
    return StoredArray(source, array.shape, array.dtype, lambda: _slices(array, source), mapped=array)


@contextmanager
def _open_npy(path: Path, options: Data) -> Iterator[StoredArray]:
    source = options.source
    if options.key is not None:
        raise InputError(f"{source} is one array and has no names: leave data.key out", option="data.key")
    array = _map_npy(path, source)
    found, groups = (
        None if name is None else _map_npy(user_path(name), name) for name in (options.labels, options.group)
    )
    conditions = {Path(name).stem: _map_npy(user_path(name), name) for name in options.conditions or ()}
    own = (found, state_of(path), array, groups, conditions)
    yield StoredArray(source, array.shape, array.dtype, lambda: _slices(array, source), *own)


def _map_npy(path: Path, source: str) -> NDArray[Any]:
    if path.suffix.lower() != ".npy" or not path.is_file():
        raise InputError(f"there is no .npy file at {source}")
    with damage_named(source):
        return np.load(path, mmap_mode="r")


@contextmanager
def _open_npz(path: Path, options: Data) -> Iterator[StoredArray]:
    source = options.source
    with damage_named(source):
        archive = zipfile.ZipFile(path)
    with archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
        headers = {name.removesuffix(".npy"): _npz_header(archive, name, source) for name in members}
        shapes = {name: shape for name, (shape, _, _) in headers.items()}
        chosen, label_name = _choose(shapes, options)
        shape, fortran, dtype = headers[chosen]

        def blocks() -> Iterator[NDArray[Any]]:
            with archive.open(chosen + ".npy") as stream:
                if fortran:
                    yield from _slices(np.lib.format.read_array(stream, allow_pickle=False), source)
                    return
                _read_npy_header(stream)
                rows = _rows_at_once(shape, dtype)
                for start in range(0, shape[0], rows):
                    count = min(rows, shape[0] - start)
                    content = stream.read(count * math.prod(shape[1:]) * dtype.itemsize)
                    yield np.frombuffer(content, dtype).reshape(count, *shape[1:])

        def column(name: str | None) -> NDArray[Any] | None:
            if name is None:
                return None
            with archive.open(name + ".npy") as stream, damage_named(source):
                return np.lib.format.read_array(stream, allow_pickle=False)

        own = (column(label_name), state_of(path), None, column(options.group))
        conditions = {name: found for name in options.conditions or () if (found := column(name)) is not None}
        yield StoredArray(source, shape, dtype, lambda: _guarded(blocks(), source), *own, conditions)


def _npz_header(archive: zipfile.ZipFile, name: str, source: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    with damage_named(source), archive.open(name) as stream:
        shape, fortran, dtype = _read_npy_header(stream)
        size = 0 if dtype.hasobject else math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size > archive.getinfo(name).file_size:
            raise ValueError(f"{name} is shorter than its shape says, {shape}")
        return shape, fortran, dtype


def _read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)


@contextmanager
def _open_hdf5(path: Path, options: Data) -> Iterator[StoredArray]:
    source = options.source
    h5py = need("h5py", "data", f"reading {source}")
    with damage_named(source):
        file = h5py.File(path, "r")
    with file:
        found: dict[str, Any] = {}
        with damage_named(source):
            file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        arrays = {name: item for name, item in found.items() if item.shape is not None}
        yield _chosen(arrays, options, state_of(path), lambda array: _files_of_hdf5(h5py, array, path, source))


def _files_of_hdf5(library: Any, array: Any, path: Path, source: str) -> set[Path]:
    """Return the files that an HDF5 data set takes its values from, all of which must lie beside it, or below.

    The file of a stranger could take in any other of this machine, which would then be trained on, and shown.
    """
    folder, seen = path.resolve().parent, set[tuple[Path, str]]()

    def look(array: Any, within: frozenset[tuple[Path, str]] = frozenset()) -> None:
        place = Path(array.file.filename).resolve()  # another's, where a name is a link into it
        if array.external or not place.is_relative_to(folder):
            raise InputError(
                f"{source} takes values from other files, and only from HDF5 files that lie beside it are they read: "
                "copy them into one file"
            )
        own = (place, array.name)
        if own in within:  # HDF5 would go round until the process dies
            raise InputError(f"{source} is damaged: {array.name} takes values from itself")
        if own in seen:
            return
        seen.add(own)
        for part in array.virtual_sources() if array.is_virtual else ():
            if "%" in part.file_name:
                raise InputError(f"{source} takes values from files named by a pattern: copy them into one file")
            other = place if part.file_name == "." else place.parent / part.file_name
            if not other.resolve().is_relative_to(folder) or other.is_file():  # HDF5 makes up what is not there
                with library.File(other, "r") as file:
                    look(file[part.dset_name], within | {own})

    with damage_named(source):
        look(array)
    return {place for place, _ in seen}


_ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")


@contextmanager
def _open_zarr(path: Path, options: Data) -> Iterator[StoredArray]:
    source = options.source
    zarr = need("zarr", "data", f"reading {source}")
    if not path.is_dir():
        raise InputError(f"{source} is no folder of Zarr")
    walked = list(os.walk(path))
    beside = path.resolve().parent
    for link in (Path(folder, name) for folder, *names in walked for name in itertools.chain(*names)):
        if link.is_symlink() and not link.resolve().is_relative_to(beside):
            raise InputError(f"{source} takes {link.name} from elsewhere by a link: copy the file itself into it")
    files = sorted(Path(folder, name) for folder, _, names in walked for name in names)
    with damage_named(source):
        opened = zarr.open(str(path), mode="r")
        arrays = dict(_zarr_arrays(opened)) if hasattr(opened, "groups") else {"": opened}
        identity = [str(path.resolve()), digest(*map(state_of, files))]
    yield _chosen(arrays, options, identity, lambda array: _files_of_zarr(array, files))


def _files_of_zarr(array: Any, files: list[Path]) -> list[Path]:
    """Return the files of a Zarr array; one that versions of numcodecs unpickle, which runs code, is no array."""
    if "pickle" in repr([array.filters, getattr(array, "compressors", None) or array.compressor]).lower():
        raise ValueError("an array is a pickle")
    return files


def _zarr_arrays(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, array in group.arrays():
        yield prefix + name, array
    for name, inner in group.groups():
        yield from _zarr_arrays(inner, f"{prefix}{name}/")


def _chosen(
    arrays: Mapping[str, Any], options: Data, identity: Any, files_of: Callable[[Any], Iterable[Path]]
) -> StoredArray:
    """Return the array of images of a file with several arrays, with the labels and groups stored in the same file.

    ``files_of`` returns the files with the values of an array, or raises an error if it may not be read.
    """
    chosen, labels = _choose({name: array.shape for name, array in arrays.items()}, options)
    source, array = options.source, arrays[chosen]
    told = options.conditions or ()
    with damage_named(source):
        for name in {chosen, labels or chosen, options.group or chosen, *told}:
            _refuse_hollow(arrays[name], sum(path.stat().st_size for path in files_of(arrays[name])))
        values, groups = (None if name is None else np.asarray(arrays[name][:]) for name in (labels, options.group))
        own = (values, identity, None, groups, {name: np.asarray(arrays[name][:]) for name in told})
    return StoredArray(source, array.shape, array.dtype, lambda: _slices(array, source), *own)


def _refuse_hollow(array: Any, num_bytes: int) -> None:
    """Raise ValueError if an array is said to be so large that its file can hold next to nothing of it."""
    size = math.prod(array.shape) * array.dtype.itemsize
    if size > _LARGE and size > _MOST_PACKED * num_bytes:
        raise ValueError(f"it says that an array has {size:,} bytes, and its files have {num_bytes:,}")


def _choose(shapes: Mapping[str, tuple[int, ...]], options: Data) -> tuple[str, str | None]:
    """Return the name of the array of images, and that of the array of labels (None if there are no labels)."""
    source, key, labels = options.source, options.key, options.labels
    listed = ", ".join(f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in sorted(shapes.items()))
    if not shapes:
        raise InputError(f"{source} holds no arrays")
    told = [("conditions", name) for name in options.conditions or ()]
    for option, name in (("key", key), ("labels", labels), ("group", options.group), *told):
        if name is not None and name not in shapes:
            raise InputError(
                f"{source} has no array '{name}' for data.{option}{did_you_mean(name, shapes)} ({listed})",
                option=f"data.{option}",
            )
    if key is None:
        images = [name for name, shape in shapes.items() if len(shape) >= 3]
        named = [name for expected in _IMAGE_NAMES for name in images if _last(name) == expected]
        if not images:
            raise InputError(f"{source} holds no array of images, which have three or four dimensions: {listed}")
        # An array name in several groups, such as train and test, is ambiguous unless one is at the top level.
        several = [name for name in named if _last(name) == _last(named[0])]
        if len(images) > 1 and (not named or (len(several) > 1 and _last(named[0]) not in several)):
            raise InputError(
                f"{source} holds several arrays: name the images with --data.key ({listed})", option="data.key"
            )
        key = images[0] if len(images) == 1 else min(several, key=lambda name: name.count("/"))
    if labels is None:
        fitting = [name for name, shape in shapes.items() if shape[:1] == shapes[key][:1] and name != key]
        named = [name for expected in _LABEL_NAMES for name in fitting if _last(name) == expected]
        beside = [name for name in named if name.rpartition("/")[0] == key.rpartition("/")[0]]
        labels = next(iter(beside + named), None)
    return key, labels


def _last(name: str) -> str:
    """Return the name of an array in lower case, without the groups it is in."""
    return name.rpartition("/")[2].lower()


def _slices(array: Any, source: str) -> Iterator[NDArray[Any]]:
    """Yield consecutive blocks of a sliceable array as NumPy arrays: whole chunks, if it is stored in chunks."""
    rows = _rows_at_once(array.shape, array.dtype)
    chunk = max(1, (getattr(array, "chunks", None) or (1,))[0])  # of a damaged file it may be 0
    one_chunk = chunk * math.prod(array.shape[1:]) * array.dtype.itemsize
    if one_chunk <= _MOST_BLOCK_BYTES:
        rows = -(-rows // chunk) * chunk
    return _guarded((np.asarray(array[start : start + rows]) for start in range(0, array.shape[0], rows)), source)


def _rows_at_once(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return max(1, _BLOCK_BYTES // max(1, math.prod(shape[1:]) * dtype.itemsize))


def _guarded(blocks: Iterator[NDArray[Any]], source: str) -> Iterator[NDArray[Any]]:
    while True:
        with damage_named(source):
            block = next(blocks, None)
        if block is None:
            return
        yield block
