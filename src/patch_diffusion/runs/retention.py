"""Checkpoint retention: which checkpoints of a run are kept, and which are removed."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from patch_diffusion.errors import InputError
from patch_diffusion.files import read_json

STATE_FILE = "state.json"


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
        if path not in stay and not state_of(path).get("keep", True):
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
    values = {
        path: state.get("held_out") if by == "loss" else (state.get("samples") or {}).get(by)
        for path, state in found.items()
    }
    measured = {path: value for path, value in values.items() if value is not None and math.isfinite(value)}
    return min(measured, key=measured.__getitem__, default=None)


def step_of(checkpoint: Path) -> int:
    """Return the number of steps after which a checkpoint was written."""
    return int(checkpoint.name[5:])


def state_of(path: Path) -> dict[str, Any]:
    """Return the numbers in a checkpoint's ``state.json``; an empty dict if it cannot be read."""
    try:
        return read_json(path / STATE_FILE)
    except InputError:
        return {}
