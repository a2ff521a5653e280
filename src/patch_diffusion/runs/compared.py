"""The runs that are compared on a page: which they are, what they are called, what is read of them."""

from __future__ import annotations

import os
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from patch_diffusion.config import Config
from patch_diffusion.errors import InputError
from patch_diffusion.files import user_path
from patch_diffusion.runs.folder import ModelFacts, RunFolder
from patch_diffusion.runs.history import History
from patch_diffusion.runs.log import read_log

MOST_RUNS = 12  # that lines and letters can tell apart
OVER = ("images", "minutes")
"""What losses are shown over."""


@dataclass(frozen=True)
class Run:
    """One of those that are compared, by its ``letter``."""

    letter: str
    name: str
    folder: RunFolder
    config: Config
    facts: ModelFacts

    @cached_property
    def histories(self) -> dict[str, History]:
        """Of its log, over each of what curves can be over."""
        return {over: History.read(self.folder.log_file, over) for over in OVER}

    @property
    def history(self) -> History:
        """Where it does not matter over what."""
        return self.histories[OVER[0]]

    @cached_property
    def samples(self) -> list[tuple[float, Path]]:
        """Pictures of samples, each with the fraction of the budget that was spent when it was made."""
        lines = [line for line in read_log(self.folder.log_file) if line is not None and "spent" in line]
        steps, spent = (np.array([0, *(line[key] for line in lines)], float) for key in ("step", "spent"))
        paths = [path for path in sorted(self.folder.path.glob("samples/step-*.png")) if path.stem[5:].isdecimal()]
        return [(float(np.interp(int(path.stem[5:]), steps, spent)), path) for path in paths] if lines else []


def runs_in(place: str | os.PathLike[str]) -> list[Path]:
    """The run that a folder is, or those that lie directly in it, as in that of a race.

    Raises:
        InputError: there is none.
    """
    path = user_path(place)
    if not RunFolder(path).is_run() and path.is_dir():
        found = [entry for entry in sorted(path.iterdir()) if RunFolder(entry).is_run()]
        if not found:
            raise InputError(f"{path} is no run and holds none: give run folders, or the folder of a race")
        return found
    return [path]


def open_runs(runs: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """Runs with a letter and a name each.

    Raises:
        InputError: too few or too many, one that is given twice, is none or is damaged.
    """
    folders = [user_path(run) for run in runs]
    if not 2 <= len(folders) <= MOST_RUNS:
        raise InputError(f"2 to {MOST_RUNS} runs are compared on a page, not {len(folders)}")
    return [
        Run(letter, name, RunFolder(folder), *RunFolder(folder).read_config())
        for letter, name, folder in zip(string.ascii_uppercase, _names(folders), folders, strict=False)
    ]


def _names(folders: Sequence[Path]) -> list[str]:
    """Of each folder as many of its last parts as tell it from the others."""
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f"{folder} is given twice: give different runs")
    for num in range(1, max(len(place.parts) for place in places) + 1):
        names = ["/".join(place.parts[-num:]) for place in places]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different places have different parts")
