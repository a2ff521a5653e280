"""Names of the files in a data set: one form of them for all sources, and which names mean the same file."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

HIDDEN = re.compile(r"(^|/)(\.(?!\.?/)|__MACOSX)")
"""A pattern of the names of hidden files, and of macOS's own in archives, which are left out of a data set."""

T = TypeVar("T")


def plain(name: str) -> str:
    """Return a name with forward slashes, and without parts that say nothing.

    >>> plain("./cats\\\\0.png")
    'cats/0.png'
    """
    if "\\" not in name and "./" not in name and "//" not in name:
        return name
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def plain_names(stored: Iterable[str]) -> dict[str, str]:
    """Return the plain names of files with those that they are opened by, in the order of these.

    A name that another file has already stays as it is stored.
    """
    taken, found = set(stored), {}
    for each in sorted(taken):
        name = plain(each)
        if name != each and name in taken:
            name = each
        taken.add(name)
        found[name] = each
    return found


def by_names(found: Mapping[str, T], names: Sequence[str], source: str) -> tuple[dict[str, T], list[str], list[str]]:
    """Find what a file of labels has for images, by their plain names.

    An image whose very name it lacks is meant by a name in another Unicode form or case, if no other image or name is.

    Returns:
        The values by the names of the images that have one, the names of other files, and notes for the user.
    """
    own = {name: found[name] for name in names if name in found}
    others = found.keys() - own.keys() if len(own) < len(found) else set[str]()
    notes = []
    for form in (_composed, lambda name: _composed(name).casefold()):
        if len(own) == len(names) or not others:
            break
        theirs = _alone(others, form)
        ours = _alone((name for name in names if name not in own), form)
        pairs = {name: theirs[each] for each, name in ours.items() if each in theirs}
        own |= {name: found[other] for name, other in pairs.items()}
        others -= set(pairs.values())
        if pairs and form is not _composed:
            name, other = min(pairs.items())
            notes.append(
                f"{source} names {len(pairs):,} of {len(names):,} images in other upper or lower case (first: {other} "
                f"for {name})"
            )
    return own, sorted(others), notes


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _alone(names: Iterable[str], form: Callable[[str], str]) -> dict[str, str]:
    """Return names by a form that no other of them has."""
    forms = {name: form(name) for name in names}
    counts = Counter(forms.values())
    return {each: name for name, each in forms.items() if counts[each] == 1}
