"""Class labels of images: from dataset.json, sub-folders, a CSV, or values that came with the images."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from reprlib import repr
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patch_diffusion.data.classes import Labels, ordered, too_many
from patch_diffusion.data.reading.damage import damage_named
from patch_diffusion.data.reading.names import by_names, plain
from patch_diffusion.data.reading.tables import columns_of_csv
from patch_diffusion.errors import InputError

LABELS_FILE = "dataset.json"

ONE_IMAGE = "one image only"
"""The words of a note on classes of a single image."""

_MOST_NAMED = 5
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev"}


def labels_of_json(content: bytes, names: Sequence[str], source: str) -> tuple[Labels | None, list[str]]:
    """Parse the labels in a ``dataset.json``, ``{"labels": [["00000/img00000000.png", 6], ...]}``; None if null.

    `prepare_images` writes ``class_names`` beside them, which the labels then count. An `InputError` names the image
    whose label is missing, or is no class number. Also return notes for the user.
    """
    with damage_named(source, 'is not of the form {"labels": [["a.png", 0], ...]}'):
        stored = json.loads(content)
        found = {plain(str(name)): label for name, label in stored.get("labels") or []}
        class_names = tuple(map(str, stored.get("class_names") or ()))
    if not found:
        return None, []
    wrong = [name for name, label in found.items() if type(label) is not int or label < 0]
    if wrong:
        raise InputError(f"{source}: the label of {wrong[0]} is {repr(found[wrong[0]])}, not a class number")
    if class_names and max(found.values()) >= len(class_names):
        raise InputError(f"{source} has labels beyond its {len(class_names):,} class_names")
    own, _, notes = by_names(found, names, source)
    _refuse_missing(own, names, source)
    numbers, of_numbers = labels_of_values([own[name] for name in names])
    return (numbers, class_names or of_numbers), notes


def labels_of_folders(names: Sequence[str], source: str) -> Labels:
    """Return class labels of images: the class of an image is its sub-folder, see `folders_of`; each must be in one."""
    folders = folders_of(names)
    if "" in folders:
        raise InputError(
            f"classes are the names of the sub-folders, but {names[folders.index('')]} in {source} is in none"
        )
    return labels_of_values(folders)


def folders_of(names: Sequence[str]) -> list[str]:
    """Return the sub-folder of each image, below a folder that is around all of them; "" if it is in none.

    The folders in train and val are taken where all images are in such.

    >>> folders_of(["photos/cats/0.png", "photos/dogs/0.png"])
    ['cats', 'dogs']
    >>> folders_of(["train/cats/0.png", "val/dogs/0.png"])
    ['cats', 'dogs']
    """
    inner = _below_around(names)
    if parts_of(names):
        in_parts = [name.partition("/")[2] for name in inner]
        inner = in_parts if all("/" in name for name in in_parts) else inner
    return [name.partition("/")[0] if "/" in name else "" for name in inner]


def parts_of(names: Sequence[str]) -> list[str]:
    """Return the sub-folders of images if these are the parts of a data set, such as train and val; else none."""
    folders = {name.partition("/")[0] if "/" in name else "" for name in _below_around(names)}
    return sorted(folders) if len(folders) > 1 and {folder.lower() for folder in folders} <= _SPLITS else []


def folders_around(names: Sequence[str]) -> list[str]:
    """Return the folders that hold all images, such as "photos/", from the outermost, "", to the innermost."""
    first, last = min(names, default=""), max(names, default="")
    shared = "".join(letter for letter, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    return ["", *(shared[: place + 1] for place, letter in enumerate(shared) if letter == "/")]


def _around(names: Sequence[str]) -> str:
    """Return the innermost folder around all images, or the one around it if some image lies in it itself."""
    around = folders_around(names)
    if len(around) > 1 and any("/" not in name[len(around[-1]) :] for name in names):
        around.pop()
    return around[-1]


def _below_around(names: Sequence[str]) -> list[str]:
    around = len(_around(names))
    return [name[around:] for name in names]


def could_be_classes(names: Sequence[str]) -> tuple[str, ...]:
    """Return the sub-folders of images if they may be classes, at least two that hold all images; else ().

    Folders of a thousand by number, as EDM's tools and `prepare_images` make them, are none, nor are train and val, nor
    so many that most images have one to themselves.
    """
    folders = folders_of(names)
    found = set(folders)
    if len(found) < 2 or "" in found or found == set(parts_of(names)) or too_many(len(found), len(names)):
        return ()
    return () if all(map(_in_thousands, names, folders)) else tuple(ordered(found))


def notes_of_folders(names: Sequence[str]) -> list[str]:
    """Return a list of one note for the user on the sub-folders that were taken for classes, or none if it is clear."""
    around, parts, folders = _around(names), parts_of(names), ordered(folders_of(names))
    if parts and folders == parts:
        return [f"the classes are {' and '.join(parts)}, which look like splits of a data set, not like classes"]
    if not around and not parts:
        return []
    outer = " and ".join(around + part for part in parts) or around[:-1]
    more = ", ..." if len(folders) > _MOST_NAMED else ""
    return [f"the classes are the folders in {outer}: {', '.join(folders[:_MOST_NAMED])}{more}"]


def _in_thousands(name: str, folder: str) -> bool:
    """True if a folder is the number of a file in thousands, such as 00012/img00012345.png or 12000/12345.png."""
    number = re.fullmatch(r"\D*(\d+)\.\w+", name.rpartition("/")[2])
    if number is None or not folder.isdecimal():
        return False
    thousands = int(number[1]) // 1000
    return int(folder) in (thousands, 1000 * thousands)


def labels_of_csv(content: bytes, names: Sequence[str], source: str) -> tuple[Labels, list[str]]:
    """Parse the labels in a CSV whose header has the columns ``file`` and ``label``; also return notes for the user.

    If all labels are integers, they are class numbers; otherwise they are class names.
    """
    values, notes = column_of_csv(content, "label", names, source)
    if all(re.fullmatch(r"[+-]?\d{1,4000}", value) for value in values):
        return labels_of_values([int(value) for value in values], names.__getitem__), notes
    return labels_of_values(values), notes


def column_of_csv(content: bytes, column: str, names: Sequence[str], source: str) -> tuple[list[str], list[str]]:
    """Return the values of images in a column of a CSV, and notes; each image must have one, see `columns_of_csv`."""
    advice = ", or set data.classes to False" if column == "label" else ""
    columns, notes = columns_of_csv(content, [column], names, source, may_lack=False, advice=advice)
    return columns[column], notes


def labels_of_values(values: Sequence[Any] | NDArray[Any], name: Callable[[int], str] = "image {:,}".format) -> Labels:
    """Return class numbers and names, given label values: integers are numbers, strings are names, see `ordered`.

    Values of other types, and numbers below 0, are errors; these take the name of an image by its index from ``name``.
    """
    try:
        array: NDArray[Any] = np.asarray(values)
    except ValueError:  # lists of several lengths
        raise InputError(
            "labels are one class number or name per image, not lists of several lengths: set data.classes to False"
        ) from None
    if array.dtype.kind in "uOf" and any(isinstance(value, int) and value >= 2**63 for value in values):
        array = np.array(list(map(str, values)))  # numbers that no integer type holds are names as well
    if array.dtype.kind == "O":
        array = np.array([_words(value) if isinstance(value, bytes) else value for value in array.tolist()])
    if array.dtype.kind == "S":
        array = np.array([_words(value) for value in array.ravel().tolist()]).reshape(array.shape)

    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "biuUT":
        raise InputError(f"labels are one class number or name per image, not {array.dtype} of the shape {array.shape}")
    if array.dtype.kind in "UT":
        found, numbers = np.unique(array, return_inverse=True)
        class_names = ordered(map(str, found))
        places = {name: place for place, name in enumerate(class_names)}
        return np.array([places[str(name)] for name in found], np.int64)[numbers], tuple(class_names)
    if len(array) and array.min() < 0:
        first = int(np.argmin(array >= 0))
        raise InputError(
            f"the label of {name(first)} is {array[first]}, and class numbers are 0 or more: mend it, or set "
            "data.classes to False"
        )
    return array.astype(np.int64), ()


def notes_of_labels(labels: NDArray[np.int64], class_names: Sequence[str]) -> list[str]:
    """Return a list of one note for the user about classes with a single image, which cannot be learned, or none."""
    numbers, counts = np.unique(labels, return_counts=True)
    single = numbers[counts == 1]
    if not len(single):
        return []
    first = class_names[single[0]] if len(class_names) else single[0]
    which = "1 class has" if len(single) == 1 else f"{len(single):,} classes have"
    return [f"{which} {ONE_IMAGE} (first: {first})"]


def _words(name: bytes) -> str:
    """Decode bytes as UTF-8, with escapes for invalid bytes, so that different names stay different."""
    return name.decode("utf-8", "backslashreplace")


def _refuse_missing(found: Mapping[str, Any], names: Sequence[str], source: str, column: str = "label") -> None:
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(
            f"{source} has no {column} for {len(missing):,} of {len(names):,} images (first: {missing[0]}): "
            f"add them{', or set data.classes to False' * (column == 'label')}"
        )
