"""Random numbers as pure functions of (seed, name, index).

Training uses no generator with state across steps: every random number is computed from the seed, a name for its
use and the step (and sample slot) it belongs to. To continue a training, no generator state has to be saved, and the
numbers do not depend on how many processes share a batch.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TORCH_SEEDS = 2**32
"""The number of seeds that torch's generator of CPUs tells apart. Images of larger seeds begin with hashed noise."""

# Noise is drawn for this many consecutive slots at once, so that calls are few and little is wasted at a range's ends.
SLOTS_PER_DRAW = 8


def stream_key(seed: int, name: str, *index: int) -> int:
    """Return a 63-bit key, the same on every machine, for the random numbers called ``name`` at ``index``."""
    numbers = (int(seed), name, *map(int, index))  # NumPy's integers have another text
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def uniform(seed: int, name: str, *index: int) -> float:
    """Return one random number, uniform in [0, 1), that is a function of the arguments alone."""
    return (stream_key(seed, name, *index) >> 10) / 2**53


def generator(seed: int, name: str, *index: int) -> torch.Generator:
    """Return a new generator of the CPU, seeded for the random numbers called ``name`` at ``index``.

    It takes the low 32 bits of a key: of 5 million streams some 2,900 pairs are the same.
    """
    import torch

    return torch.Generator().manual_seed(stream_key(seed, name, *index))


def slot_normal(
    seed: int, name: str, step: int, slots: range, shape: tuple[int, ...], *, pinned: bool = False
) -> torch.Tensor:
    """Draw standard normal numbers (len(slots), *shape) for batch slots; a slot's do not depend on the other slots.

    They are drawn on the host, so that they are the same for every device; ``pinned`` draws them into page-locked
    memory, from which a GPU copies without a wait.
    """
    import torch

    first, last = slots.start // SLOTS_PER_DRAW, (slots.stop - 1) // SLOTS_PER_DRAW
    drawn = torch.empty(last + 1 - first, SLOTS_PER_DRAW, *shape, pin_memory=pinned)
    for group, part in enumerate(drawn, first):
        torch.randn(part.shape, generator=generator(seed, name, step, group), out=part)
    return drawn.flatten(0, 1)[slots.start - first * SLOTS_PER_DRAW :][: len(slots)]
