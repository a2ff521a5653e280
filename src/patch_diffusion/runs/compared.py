"""The runs of a comparison page: how they are found and named, and the data that is read from them."""

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

MOST_RUNS = 12  # more could not be told apart by their lines and letters
OVER = ("images", "minutes")
"""The units of the horizontal axis that the loss curves of a comparison can have."""


@dataclass(frozen=True)
class Run:
    """A run on a comparison page, with the ``letter`` that marks it there."""

    letter: str
    name: str
    folder: RunFolder
    config: Config
    facts: ModelFacts

    @cached_property
    def histories(self) -> dict[str, History]:
        """The curves of the run's log, once for each unit of the horizontal axis."""
        return {over: History.read(self.folder.log_file, over) for over in OVER}

    @property
    def history(self) -> History:
        """The curves of the run's log, for uses in which the unit of the horizontal axis does not matter."""
        return self.histories[OVER[0]]

    @cached_property
    def samples(self) -> list[tuple[float, Path]]:
        """The pictures of samples, each after the fraction of the budget that was spent when it was made."""
        lines = [line for line in read_log(self.folder.log_file) if line is not None and "spent" in line]
        steps, spent = (np.array([0, *(line[key] for line in lines)], float) for key in ("step", "spent"))
        paths = [path for path in sorted(self.folder.path.glob("samples/step-*.png")) if path.stem[5:].isdecimal()]
        return [(float(np.interp(int(path.stem[5:]), steps, spent)), path) for path in paths] if lines else []


def runs_in(place: str | os.PathLike[str]) -> list[Path]:
    """Return the folder itself if it is a run folder, else the run folders directly in it, as a race has them.

    Raises:
        InputError: the folder neither is a run nor holds any.
    """
    path = user_path(place)
    if not RunFolder(path).is_run() and path.is_dir():
        found = [entry for entry in sorted(path.iterdir()) if RunFolder(entry).is_run()]
        if not found:
            raise InputError(f"{path} is not a run and holds none: give run folders, or the folder of a race")
        return found
    return [path]


def open_runs(runs: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """Open the run folders of a comparison, and give each run a letter and a name.

    Raises:
        InputError: there are too few or too many runs, or one is given twice, is not a run or is damaged.
    """
    folders = [user_path(run) for run in runs]
    if not 2 <= len(folders) <= MOST_RUNS:
        raise InputError(f"2 to {MOST_RUNS} runs are compared on a page, not {len(folders)}")
    return [
        Run(letter, name, RunFolder(folder), *RunFolder(folder).read_config())
        for letter, name, folder in zip(string.ascii_uppercase, _names(folders), folders, strict=False)
    ]


def _names(folders: Sequence[Path]) -> list[str]:
    """Return a name for each folder: the last parts of its path, as many as make all names different."""
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f"{folder} is given twice: give different runs")
    for num in range(1, max(len(place.parts) for place in places) + 1):
        names = ["/".join(place.parts[-num:]) for place in places]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different places have different parts")
