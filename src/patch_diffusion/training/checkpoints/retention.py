"""Which checkpoints stay."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from patch_diffusion.errors import InputError
from patch_diffusion.files import read_json
from patch_diffusion.training.checkpoints.checkpoint import STATE_FILE, remove_checkpoint


def sweep(checkpoints: list[Path], *, last: int, best: bool, good: int) -> None:
    """Remove checkpoints that need not stay.

    Those that are to be kept stay, the newest ``last``, the newest that is known to be good, and the best. One that
    cannot be read is left where it is.

    Args:
        checkpoints: complete ones, oldest first.
        last: how many of the newest stay in any case.
        best: whether the one with the lowest loss of held-out images stays in any case.
        good: the last step up to which all was well.
    """
    known_good = [path for path in checkpoints if step_of(path) <= good]
    stay = {*checkpoints[-last:], *known_good[-1:], best_of(checkpoints) if best else None}
    for path in checkpoints:
        if path not in stay and not _state(path).get("keep", True):
            remove_checkpoint(path)


def best_of(checkpoints: list[Path]) -> Path | None:
    """The checkpoint that denoises held-out images best; None where no loss of such was measured."""
    losses = {path: _state(path).get("held_out") for path in checkpoints}
    measured = {path: loss for path, loss in losses.items() if loss is not None and math.isfinite(loss)}
    return min(measured, key=measured.__getitem__, default=None)


def step_of(checkpoint: Path) -> int:
    """The number of steps after which a checkpoint was written."""
    return int(checkpoint.name[5:])


def _state(path: Path) -> dict[str, Any]:
    try:
        return read_json(path / STATE_FILE)
    except InputError:
        return {}
