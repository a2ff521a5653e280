"""When another process of a run is gone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from patch_diffusion.errors import InputError

# One that ended is noticed at once, since its connections close. A machine that lost its power or its network closes
# none: it is given up after this time, which is also how much later than the first one the last may start.
GIVEN_UP_AFTER = timedelta(minutes=10)


@contextmanager
def others_answer() -> Iterator[None]:
    """Around what needs the other processes; also a decorator.

    Raises:
        InputError: another process is gone or does not answer. Other errors are left as they are.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise InputError(
            f"another process of this run is gone or does not answer ({_reason(error)}): see what it said last; the "
            "same command continues from the last checkpoint, with as many processes as there are"
        ) from None


def _reason(error: RuntimeError) -> str:
    """Its first sentence, without the place in the library's source."""
    text = re.sub(r"^\[[^\]]*\.(cc|cpp|h):\d+\]\s*", "", str(error).strip())
    return re.split(r"\.\s|\n", text, maxsplit=1)[0].rstrip(".")
