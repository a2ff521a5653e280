"""The training runs in the served folder, found by names that cannot lead out of it, and their data for the page."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patch_diffusion.config import Config
from patch_diffusion.errors import InputError, reason_of
from patch_diffusion.files import to_json
from patch_diffusion.runs.floor import read_floor
from patch_diffusion.runs.folder import ModelFacts, RunFolder
from patch_diffusion.runs.history import History, shows_few
from patch_diffusion.runs.lock import HOLDER_FILE, LOCK_FILE, holder
from patch_diffusion.runs.log import LogTail, last_measured
from patch_diffusion.runs.report import about, charts, standing
from patch_diffusion.runs.retention import STATE_FILE, step_of
from patch_diffusion.training.choices.shapes import stride

MOST_RUNS = 500  # most runs that are listed
_DEEPEST = 3  # levels of sub-folders that are searched
_WATCHED = 16  # most runs whose curves are kept in memory


class GoneError(InputError):
    """An error for a run, picture, file or job that does not exist, or no longer exists."""


@dataclass
class _Watched:
    """The log of a run that is read incrementally, with its curves and a version number that changes with them."""

    tail: LogTail
    history: History = field(default_factory=History)
    version: int = 0
    first: int = field(default_factory=time.time_ns)  # keeps versions unique if a run is dropped and watched again

    def look(self) -> None:
        """Read the new lines of the log into the curves, and raise the version if there are any."""
        while True:
            news = self.tail.read()
            if news.restarted:
                self.history = History()
            for line in news.lines:
                self.history.add(line)
            self.version += bool(news.lines or news.restarted)
            if not news.more:
                return


class Runs:
    """The runs in a folder and its sub-folders; if the folder is itself a run, only that one, under the name ".".

    The folder is searched again for every request, so that new runs appear and deleted ones vanish. Links that lead
    out of the folder are not followed.

    Args:
        folder: the folder that is served; it may not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._watched: OrderedDict[Path, _Watched] = OrderedDict()
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Return the names of all runs in alphabetical order, at most `MOST_RUNS`."""
        return sorted(self._names(self.folder, ""))[:MOST_RUNS]

    def find(self, name: str) -> RunFolder:
        """Return the run folder of this name.

        Raises:
            GoneError: the folder has no such run, or the name leads out of the folder.
        """
        if name == ".":
            run = RunFolder(self.folder)
        else:
            parts = name.split("/")
            if any(part.startswith(".") or not part or "\\" in part or "\0" in part for part in parts):
                raise GoneError(f"there is no run '{name}' here")
            run = RunFolder(self.folder.joinpath(*parts))
        if not self._holds(run.config_file):
            raise GoneError(f"there is no run '{name}' here: it is gone, or was never in {self.folder}")
        return run

    def overview(self) -> list[dict[str, Any]]:
        """Return a dict per run (name, state, step, loss, ...) for the page's list, the most recently changed first."""
        found = []
        for name in self.names():
            try:
                found.append(self._summary(name))
            except (GoneError, FileNotFoundError):  # the run was deleted meanwhile
                continue
            except (InputError, OSError) as error:  # the run is damaged
                found.append({"name": name, "damaged": str(error), "changed": 0.0})
        return sorted(found, key=lambda run: -run["changed"])

    def detail(self, name: str, known: str = "") -> dict[str, Any]:
        """Return a dict of all data about a run, without its HTML parts if the page has their version (``known``)."""
        summary = self._summary(name)
        with self._lock, described(name):
            folder = self.find(name)
            config, facts = folder.read_config()
            watched = self._watched.setdefault(folder.path, _Watched(LogTail(folder.log_file)))
            self._watched.move_to_end(folder.path)
            while len(self._watched) > _WATCHED:
                self._watched.popitem(last=False)
            watched.look()
            # A run may have been deleted and begun anew under the same name.
            begun = folder.config_file.stat().st_mtime_ns
            version = f"{watched.first}-{watched.version}-{begun}-{len(summary['checkpoints'])}"
            if version != known:
                summary |= {
                    "standing": standing(config, facts, watched.history),
                    "charts": charts(watched.history, read_floor(folder.floor_file)),
                    "about": about(folder, config, facts, watched.history),
                }
        where = {"folder": str(folder.path), "version": version}
        return summary | where | {"samples": [path.name for path in self._samples(folder)]}

    def picture(self, name: str, file: str) -> Path:
        """Return the path of a sample picture of a run by its file name; raise GoneError if there is none."""
        folder = self.find(name)
        for path in self._samples(folder):
            if path.name == file:
                return path
        raise GoneError(f"the run '{name}' has no picture '{file}'")

    def _summary(self, name: str) -> dict[str, Any]:
        """Return a dict of a run's newest numbers and its model, which JSON can express."""
        folder = self.find(name)
        with described(name):
            found = self._numbers(name, folder)
            to_json(found)  # raises an error for what is not finite, so that one run never spoils the list of all
        return found

    def _numbers(self, name: str, folder: RunFolder) -> dict[str, Any]:
        checkpoints, samples = folder.checkpoints(), self._samples(folder)
        read = [folder.log_file, *(folder.path / file for file in (LOCK_FILE, HOLDER_FILE))]
        for path in (*read, *(path / STATE_FILE for path in checkpoints)):
            if os.path.lexists(path) and not self._holds(path):
                raise InputError(f"{path} is not a file in the folder that is served")
        config, facts = folder.read_config()
        progress, trainer = last_measured(folder.log_file), holder(folder.path)
        best = folder.best()
        spent = min(float(progress.get("spent", 0.0)), 1.0)
        written = [path.stat().st_mtime for path in (folder.config_file, folder.log_file) if path.exists()]
        return {
            "name": name,
            "state": _state(facts, spent, trainer),
            "trainer": trainer,
            "spent": spent,
            "step": progress.get("step", 0),
            "few": shows_few(progress.get("images", 0)),
            "loss": _mean(progress.get("loss", {})),
            "changed": max(written, default=0.0),  # in seconds since the epoch
            "picture": samples[-1].name if samples else None,
            "has_model": folder.model_file.exists(),
            "checkpoints": [step_of(path) for path in checkpoints],
            "best": None if best is None else step_of(best),
            "model": _model(config, facts),
        }

    def _samples(self, folder: RunFolder) -> list[Path]:
        return sorted(path for path in folder.path.glob("samples/step-*.png") if self._holds(path))

    def _names(self, folder: Path, name: str, depth: int = 0) -> Iterator[str]:
        """Yield the names of the runs in a folder and its sub-folders; do not search inside a run folder."""
        try:
            if RunFolder(folder).is_run():
                if self._holds(folder / "config.json"):
                    yield name or "."
                return
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name) if depth <= _DEEPEST else []
        except OSError:  # deleted meanwhile, unreadable, or a link that leads to itself
            return
        for entry in entries:
            if _is_folder(entry) and not entry.name.startswith(".") and "\\" not in entry.name:
                yield from self._names(folder / entry.name, f"{name}/{entry.name}" if name else entry.name, depth + 1)

    def _holds(self, path: Path) -> bool:
        """Return True for a file, not a pipe or a device, that is in the served folder after links are resolved."""
        try:
            return path.is_file() and path.resolve().is_relative_to(self.folder.resolve())
        except (OSError, RuntimeError):  # deleted meanwhile, or a link that leads to itself
            return False


@contextmanager
def described(name: str) -> Iterator[None]:
    """Make one sentence, an `InputError`, of whatever the files of a damaged run let the with block raise."""
    try:
        yield
    except (InputError, OSError):
        raise
    except Exception as error:
        raise InputError(f"the run '{name}' is damaged: {reason_of(error)}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _state(facts: ModelFacts, spent: float, trainer: str | None) -> str:
    if trainer:
        return "training"
    if not facts.num_images:
        return "imported"
    return "complete" if spent >= 1 else "stopped"


def _model(config: Config, facts: ModelFacts) -> dict[str, Any]:
    """Return a dict of the model's properties that the page's forms need, such as resolution; do not load the model."""
    codec = facts.codec
    dropped, context = config.network.label_dropout, config.patches.context
    return {
        "resolution": list(facts.resolution),
        "channels": facts.image_channels,
        "classes": facts.num_classes,
        "class_names": list(facts.class_names),
        "conditions": {column.name: column.describe() for column in facts.attributes},
        "parameters": facts.parameters,
        "stride": stride(config.network),
        "coords": config.patches.coords,
        "ema_lengths": list(config.ema.lengths or ()),
        # Networks drop labels in training unless label_dropout is 0.
        "classless": not facts.num_classes or dropped is None or dropped > 0,
        "editable": codec.get("dtype") == "uint8"
        and facts.image_channels in (1, 3, 4)
        and context is None
        and config.few_steps is None,
        "few_steps": config.few_steps,
    }


def _mean(losses: dict[str, Any]) -> float | None:
    values = [float(loss) for loss in losses.values() if loss is not None and math.isfinite(loss)]
    return sum(values) / len(values) if values else None
