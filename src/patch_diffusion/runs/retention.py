"""Checkpoint retention: which checkpoints of a run are kept, which are removed, and what their ``state.json`` says."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patch_diffusion.errors import InputError
from patch_diffusion.files import read_json
from patch_diffusion.records import check_limits, record_of

STATE_FILE = "state.json"


@dataclass(frozen=True)
class Seen:
    """The counts of a checkpoint that are read without training on: steps, images drawn, seconds of training."""

    step: int = 0
    images: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class State:
    """A record of what all readers of a run take from a checkpoint's ``state.json``; the rest is of the training state.

    Args:
        seen: None in a file that does not say.
        time: seconds by what they went into, see `time_spent`.
        held_out, samples: the loss of held-out images and the metrics of samples, as far as they were measured.
        keep: False for a checkpoint that is removed when later ones are written.
        checksums: by the name of each other file of the checkpoint.
    """

    seen: Seen | None = None
    time: dict[str, float] | None = None
    held_out: float | None = None
    samples: dict[str, float | None] | None = None
    keep: bool = True
    checksums: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, content: Mapping[str, Any], where: str) -> State:
        """Make the record from the content of a file; raise an `InputError` if it is not as a trainer writes it."""
        found, most = record_of(cls, content, where), 1e15
        for numbers in (vars(found.seen or Seen()), found.time or {}):
            check_limits(numbers, dict.fromkeys(numbers, (0, most)), where)
        return found


def sweep(checkpoints: list[Path], *, last: int, best: str | None, good: int) -> None:
    """Remove the checkpoints of a run that are no longer needed.

    Checkpoints marked to be kept stay, and so do the newest ``last``, the newest that is known to be good, and the
    best. A checkpoint that cannot be read is left where it is.

    Args:
        checkpoints: complete checkpoints, oldest first.
        last: how many of the newest stay in any case.
        best: the metric whose lowest checkpoint stays in any case, see `best_of`; None keeps no best checkpoint.
        good: the last step up to which training is known to have gone well.
    """
    known_good = [path for path in checkpoints if step_of(path) <= good]
    stay = {*checkpoints[-last:], *known_good[-1:], best_of(checkpoints, best) if best else None}
    for path in checkpoints:
        if path not in stay and not state_of(path).keep:
            remove_checkpoint(path)


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint; rename it first, so that a partly removed one is never taken for a complete one."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(folder.rename(old))


def best_of(checkpoints: list[Path], by: str = "loss") -> Path | None:
    """Return the best checkpoint, the one with the lowest metric; None if the metric was not measured at any.

    Args:
        checkpoints: oldest first.
        by: "loss" for the loss on held-out images, or the name of a metric of samples that is best where it is lowest.
    """
    found = {path: state_of(path) for path in checkpoints}
    values = {path: state.held_out if by == "loss" else (state.samples or {}).get(by) for path, state in found.items()}
    measured = {path: value for path, value in values.items() if value is not None and math.isfinite(value)}
    return min(measured, key=measured.__getitem__, default=None)


def step_of(checkpoint: Path) -> int:
    """Return the number of steps after which a checkpoint was written."""
    return int(checkpoint.name[5:])


def read_state(path: Path) -> State:
    """Return the record in a checkpoint's ``state.json``; raise an `InputError` if it cannot be read."""
    return State.of(read_json(path / STATE_FILE), str(path / STATE_FILE))


def state_of(path: Path) -> State:
    """Return the record in a checkpoint's ``state.json``; one that says nothing if it cannot be read."""
    try:
        return read_state(path)
    except InputError:
        return State()
