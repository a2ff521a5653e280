"""Groups of images that are held out together: slices of one patient, frames of one video, tiles of one photograph."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patch_diffusion.data.reading.damage import damage_named
from patch_diffusion.data.reading.names import by_names, plain
from patch_diffusion.errors import InputError, counted, option_error

FOLDER = "folder"


def check_group(group: str) -> None:
    """Raise InputError if the option data.group is a pattern that cannot be used."""
    if is_column(group):
        return
    try:
        num = group == FOLDER or re.compile(group).groups
    except re.error as error:
        raise option_error("data.group", f"'{group}' is no regular expression: {error}") from None
    if num != 1:
        raise option_error(
            "data.group",
            "is a pattern with one pair of parentheses around what names the group, as in "
            f"'patient-([0-9]+)', not '{group}'",
        )


def is_column(group: str) -> bool:
    """True if the option data.group names a column: it is not the word folder, and has no parenthesis."""
    return group != FOLDER and "(" not in group


def groups_of_names(names: Sequence[str], group: str, source: str) -> list[str]:
    """Return the group of each image by its name, its folder or what a pattern captures; an error names one without."""
    found: list[str | None]
    if group == FOLDER:
        found = [name.rpartition("/")[0] or None for name in names]
    else:
        matches = map(re.compile(group).search, names)
        found = [match and match[1] for match in matches]
    missing = next((place for place, each in enumerate(found) if each is None), None)
    if missing is not None:
        what = "is in no sub-folder" if group == FOLDER else f"does not match '{group}'"
        raise option_error("data.group", f"{group}: {names[missing]} in {source} {what}, and every image needs a group")
    return [each for each in found if each is not None]


def groups_of_json(content: bytes, names: Sequence[str], source: str) -> list[str] | None:
    """Return the groups in a ``dataset.json``, ``{"groups": [["a.png", "patient-7"], ...]}``; None if it has none.

    A wrong form is an `InputError`, and so is an image without a group, which it names.
    """
    if b'"groups"' not in content:
        return None
    with damage_named(source, 'has groups that are not of the form {"groups": [["a.png", "name"], ...]}'):
        found = {plain(str(name)): str(group) for name, group in json.loads(content).get("groups") or []}
    if not found:
        return None
    own, _, _ = by_names(found, names, source)
    missing = next((name for name in names if name not in own), None)
    if missing is not None:
        raise InputError(f"{source} has groups of images, but none for {missing}: add it")
    return [own[name] for name in names]


def groups_of_values(values: Sequence[Any] | NDArray[Any], num: int, source: str) -> list[str]:
    """Return the group of each of ``num`` images, given a column that has a number or a name for each."""
    plain = values.tolist() if isinstance(values, np.ndarray) else list(values)
    if len(plain) != num or any(isinstance(each, list | float) for each in plain):
        raise InputError(f"data.group: {source} has {num:,} images, and not one name or whole number for each")
    if None in plain:
        raise InputError(f"data.group: image {plain.index(None):,} of {source} has no group, and every image needs one")
    return [each.decode(errors="backslashreplace") if isinstance(each, bytes) else str(each) for each in plain]


def notes_of_groups(groups: NDArray[np.uint64], keys: NDArray[np.uint64] | None) -> list[str]:
    """Return notes for the user: the number of groups, and how many images are also in another group."""
    notes = [f"{len(groups):,} images in {len(np.unique(groups)):,} groups; a group is held out as a whole"]
    if keys is None:
        return notes
    order = np.lexsort((groups, keys))
    keys, groups = keys[order], groups[order]
    twice = int(((keys[1:] == keys[:-1]) & (groups[1:] != groups[:-1])).sum())
    if twice:
        notes.append(
            f"{counted(twice, 'image')} identical to one in another group: both training and held-out images may have "
            "them"
        )
    return notes
