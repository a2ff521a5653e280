"""A guess, from names and near copies, at which images belong together: slices of a patient, tones of an emoji."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from patch_diffusion.data.reading.groups import groups_of_names
from patch_diffusion.errors import InputError

_UP_TO_A_NUMBER, _FIRST_WORD = r"(.+)[-_]\d+", r"([^-_./]+)[^/]*$"

_LEAST_PAIRS, _LEAST_SHARE, _MOST_BY_CHANCE = 3, 0.2, 0.05
"""The fewest pairs of near copies that say anything, the least share of them within groups, and the largest share that
pairs of any images may have there."""

_LEAST_GROUPS, _LEAST_TOGETHER, _MOST_IN_ONE = 10, 0.8, 0.2
"""Without near copies: the fewest groups, the least share of images with others, the largest share of the largest."""


def suggest_group(names: Sequence[str], pairs: Sequence[tuple[str, str, float]]) -> tuple[str, int] | None:
    """Suggest a pattern for ``data.group`` by which alike images are in one group, and the number of groups; or None.

    ``names`` are those of all images; ``pairs`` are near copies, as names and their likeness.

    >>> suggest_group([f"scan{scan}_{number}.png" for scan in "abcdefghijkl" for number in (1, 2, 3)], [])
    ('(.+)[-_]\\\\d+', 12)
    """
    for pattern in (_UP_TO_A_NUMBER, _FIRST_WORD):
        try:
            groups = groups_of_names(names, pattern, "")
        except InputError:
            continue
        sizes = Counter(groups)
        of_name = dict(zip(names, groups, strict=True))
        together = sum(of_name[one] == of_name[other] for one, other, _ in pairs)
        by_chance = sum((size / len(names)) ** 2 for size in sizes.values())
        alike = together >= max(_LEAST_PAIRS, _LEAST_SHARE * len(pairs)) and by_chance <= _MOST_BY_CHANCE
        with_others = sum(size for size in sizes.values() if size > 1)
        by_name = pattern == _UP_TO_A_NUMBER and len(sizes) >= _LEAST_GROUPS
        by_name = by_name and with_others >= _LEAST_TOGETHER * len(names)
        if alike or (by_name and max(sizes.values()) <= _MOST_IN_ONE * len(names)):
            return pattern, len(sizes)
    return None
