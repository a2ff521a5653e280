"""Seeds of images, as all that samples takes them; exported pipelines carry this module."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from patch_diffusion.errors import InputError, whole_number

MOST = 2**63 - 1
"""The largest seed."""


def checked_seeds(seeds: Iterable[int]) -> Sequence[int]:
    """Return seeds as Python's integers, a range, however long, as it is; raise InputError if one is none.

    >>> checked_seeds(range(10**12))
    range(0, 1000000000000)
    """
    found = seeds if isinstance(seeds, range) else [whole_number("a seed", seed) for seed in seeds]
    for seed in (*found[:1], *found[-1:]) if isinstance(found, range) else found:
        if not 0 <= seed <= MOST:
            raise InputError(f"seeds are integers from 0 to 2^63 - 1, not {seed}")
    return found
