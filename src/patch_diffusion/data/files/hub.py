"""Images in a data set of the Hugging Face ``datasets`` library, on disk or in its cache; nothing is downloaded."""

from __future__ import annotations

import io
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Lock
from typing import IO, Any

from patch_diffusion.config import Data
from patch_diffusion.data.classes import Labels
from patch_diffusion.data.files.collection import Collection, Files
from patch_diffusion.data.files.decode import ImageFile
from patch_diffusion.data.files.folders import image_endings
from patch_diffusion.data.reading.attributes import attributes_of_columns, check_columns
from patch_diffusion.data.reading.cache import digest, state_of
from patch_diffusion.data.reading.damage import damage_named
from patch_diffusion.data.reading.groups import groups_of_values
from patch_diffusion.data.reading.labels import labels_of_values
from patch_diffusion.errors import InputError, about, did_you_mean, need
from patch_diffusion.files import user_path

_IMAGE_NAMES = ("image", "img", "images", "picture")
_LABEL_NAMES = ("label", "labels", "class")
_TABLE_ENDINGS = (".parquet", ".arrow", ".tar", ".zip", ".csv", ".json", ".jsonl")
_MOST_LOOKED_AT = 20_000


def find_in_hub(name: str, options: Data) -> Collection:
    """Collect all images of a Hugging Face data set, ``NAME_OR_PATH`` or ``NAME_OR_PATH:SPLIT``.

    A path is a folder that ``save_to_disk`` wrote, or a folder of parquet files; a name must be in the library's cache,
    unless the environment has HF_HUB_OFFLINE=0. If there are several splits, "train" is used. The error for a split or
    column that does not exist lists the existing names.
    """
    library = need("datasets", "data", f"reading {options.source}")
    place, split = _place_and_split(name)
    found = _load(library, place, options.source)
    own = [user_path(place), Path(library.config.HF_DATASETS_CACHE), Path(library.config.HF_CACHE_HOME)]
    if hasattr(found, "keys"):
        found = _choose_split(found, split, options.source)
    elif split is not None:
        raise InputError(f"{options.source} has no splits: leave ':{split}' out")
    with damage_named(options.source):
        return collection_of(found, options, own)


def collection_of(table: Any, options: Data, folders: Sequence[Path] | None = None) -> Collection:
    """Collect all images of a ``datasets.Dataset``; the options ``key``, ``labels`` and ``group`` name its columns.

    Where the table has the path of an image and not its bytes, it must be in one of ``folders``, since who made the
    table does not know this machine; None: anywhere.
    """
    library = need("datasets", "data", f"reading {options.source or 'the data set'}")
    if isinstance(table, library.IterableDataset):
        raise InputError("a streamed data set cannot be read again in the same order: load it without streaming")
    source = options.source or "the data set"
    column = _image_column(library, table, options.key, source)
    labels = _labels(library, table, options, source)
    encoded = table.select_columns([column]).cast_column(column, library.Image(decode=False))
    lock = Lock()
    if not len(table):
        raise InputError(f"{source} is empty")

    def opened(index: int) -> IO[bytes]:
        with lock:
            item = encoded[index][column]
        if item is None:
            raise InputError("no image")
        if item["bytes"] is not None:
            return io.BytesIO(item["bytes"])
        path = Path(item["path"]).resolve()
        if folders is not None and not any(path.is_relative_to(folder.resolve()) for folder in folders):
            raise InputError(f"is a path out of the data set, {path}, which is not read")
        return path.open("rb")

    files = Files(len(table), lambda index: ImageFile(f"image {index:,} of {source}", partial(opened, index)))
    stored = [state_of(Path(file["filename"])) for file in table.cache_files]
    # Tables in memory have no files; their fingerprint depends on how they were made, which may not determine the data.
    identity = digest(column, len(table), table._fingerprint, *stored) if stored else None
    groups, attributes, notes = None, None, list[str]()
    if options.conditions:
        check_columns(options.conditions, list(table.features), source)
        columns = {name: _values_of(table, name) for name in options.conditions}
        attributes, notes = attributes_of_columns(columns, source)
    if options.group is not None:
        if options.group not in table.features:
            raise InputError(
                f"images in a table are grouped by a column, and {source} has no column "
                f"'{options.group}'{did_you_mean(options.group, table.features)}",
                option="data.group",
            )
        groups = groups_of_values(table.with_format(None)[options.group][:], len(table), source)
    return Collection(source, files, labels, notes, identity, slow=True, groups=groups, attributes=attributes)


def _values_of(table: Any, column: str) -> list[Any]:
    """Return the values of a column, with names of classes in place of their numbers."""
    values = table.with_format(None)[column][:]
    names = getattr(table.features[column], "names", None)
    return [None if value is None else names[value] for value in values] if names else values


def _place_and_split(name: str) -> tuple[str, str | None]:
    """Split ``PLACE:SPLIT`` into its two parts; the place may be a Windows path with a drive letter."""
    found = re.fullmatch(r"((?:[A-Za-z]:[\\/])?[^:]+)(?::(.+))?", name)
    if found is None:
        raise InputError(f"a data set is hf:NAME_OR_PATH or hf:NAME_OR_PATH:SPLIT, not hf:{name}")
    return found[1], found[2]


def _load(library: Any, place: str, source: str) -> Any:
    path = user_path(place)
    saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
    if path.is_dir() and not saved and not _may_hold_images(path):
        raise InputError(
            f"{source} is a folder without a data set: save_to_disk writes one, or there are .parquet, .arrow, .tar, "
            "or images in it"
        )
    try:
        with _offline(library):
            if saved:
                return library.load_from_disk(str(path))
            return library.load_dataset(str(path) if path.exists() else place)
    except MemoryError:
        raise
    except Exception as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"cannot open {source}: there is no such data set on this machine, or it is damaged ({words[:200]})"
        ) from None


def _may_hold_images(path: Path) -> bool:
    """True if a tenth of the files are of a kind with images; elsewhere the library would look for minutes."""

    def names() -> Iterator[str]:
        for _, folders, files in os.walk(path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            yield from files

    endings = {*image_endings(), *_TABLE_ENDINGS}
    known = [Path(name).suffix.lower() in endings for name in itertools.islice(names(), _MOST_LOOKED_AT)]
    return any(known) and 10 * sum(known) >= len(known)


@contextmanager
def _offline(library: Any) -> Iterator[None]:
    """Keep the library offline inside the with block, so that it only reads its cache, and hide its progress bars."""
    config, bars = library.config, library.are_progress_bars_disabled()
    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = os.environ.get("HF_HUB_OFFLINE", "1").lower() not in ("0", "false", "no", "off")
    library.disable_progress_bars()
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before
        if not bars:
            library.enable_progress_bars()


def _choose_split(found: Any, split: str | None, source: str) -> Any:
    names = list(found.keys())
    if split is not None:
        if split not in names:
            raise InputError(f"{source} has no split '{split}'{did_you_mean(split, names)}")
        return found[split]
    if len(names) == 1 or "train" in names:
        return found["train" if "train" in names else names[0]]
    raise InputError(f"{source} has the splits {', '.join(names)}: choose one, as in {source}:{names[0]}")


@about("data.key")
def _image_column(library: Any, table: Any, key: str | None, source: str) -> str:
    columns = [name for name, feature in table.features.items() if isinstance(feature, library.Image)]
    if key is not None:
        if key not in columns:
            raise InputError(f"{source} has no column of images '{key}'{did_you_mean(key, columns or table.features)}")
        return key
    if not columns:
        raise InputError(f"{source} has no column of images, only {', '.join(table.features)}", option="data.source")
    return _usual(columns, _IMAGE_NAMES, f"{source} has several columns of images", "choose one with --data.key")


def _usual(columns: Sequence[str], names: Sequence[str], several: str, advice: str) -> str:
    """Return the only one of some columns, or the first of the usual names among them."""
    found = columns if len(columns) == 1 else [name for name in names if name in columns]
    if not found:
        raise InputError(f"{several} ({', '.join(columns)}): {advice}")
    return found[0]


@about("data.labels")
def _labels(library: Any, table: Any, options: Data, source: str) -> Labels | None:
    if options.classes is False:
        return None
    features = table.features
    if options.labels is not None:
        if options.labels not in features:
            raise InputError(f"{source} has no column '{options.labels}'{did_you_mean(options.labels, features)}")
        column = options.labels
    else:
        columns = [name for name, feature in features.items() if isinstance(feature, library.ClassLabel)]
        if not columns and options.classes:
            columns = [name for name in _LABEL_NAMES if name in features]
        if not columns:
            if options.classes:
                raise InputError(f"{source} has no column of classes: name it with --data.labels")
            return None
        column = _usual(columns, _LABEL_NAMES, f"{source} has several columns of classes", "choose with --data.labels")
    values = table.with_format(None)[column][:]
    if None in values:
        raise InputError(f"{source} has no label for image {values.index(None):,}: set data.classes to False")
    labels, class_names = labels_of_values(values)
    names = getattr(features[column], "names", None)
    return labels, tuple(names) if names else class_names
