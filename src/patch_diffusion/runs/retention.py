"""Which checkpoints stay."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from patch_diffusion.errors import InputError
from patch_diffusion.files import read_json

STATE_FILE = "state.json"


def sweep(checkpoints: list[Path], *, last: int, best: str | None, good: int) -> None:
    """Remove checkpoints that need not stay.

    Those that are to be kept stay, the newest ``last``, the newest that is known to be good, and the best. One that
    cannot be read is left where it is.

    Args:
        checkpoints: complete ones, oldest first.
        last: how many of the newest stay in any case.
        best: what the one is lowest in that stays in any case, see `best_of`; None: there is none such.
        good: the last step up to which all was well.
    """
    known_good = [path for path in checkpoints if step_of(path) <= good]
    stay = {*checkpoints[-last:], *known_good[-1:], best_of(checkpoints, best) if best else None}
    for path in checkpoints:
        if path not in stay and not _state(path).get("keep", True):
            remove_checkpoint(path)


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint; under another name first, so that a part of one is never taken for a whole."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(folder.rename(old))


def best_of(checkpoints: list[Path], by: str = "loss") -> Path | None:
    """The best checkpoint; None where what tells that was not measured at any.

    Args:
        checkpoints: oldest first.
        by: "loss": the lowest of held-out images; or what was measured of samples and is best where it is lowest.
    """
    found = {path: _state(path) for path in checkpoints}
    values = {
        path: state.get("held_out") if by == "loss" else (state.get("samples") or {}).get(by)
        for path, state in found.items()
    }
    measured = {path: value for path, value in values.items() if value is not None and math.isfinite(value)}
    return min(measured, key=measured.__getitem__, default=None)


def step_of(checkpoint: Path) -> int:
    """The number of steps after which a checkpoint was written."""
    return int(checkpoint.name[5:])


def _state(path: Path) -> dict[str, Any]:
    try:
        return read_json(path / STATE_FILE)
    except InputError:
        return {}
