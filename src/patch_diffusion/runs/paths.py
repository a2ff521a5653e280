"""The paths in a run folder, and the refusal of a folder that is none. No heavy library is imported here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from patch_diffusion.errors import InputError
from patch_diffusion.files import user_path


@dataclass(frozen=True)
class RunPaths:
    """The paths of the files in a run folder."""

    path: Path

    @property
    def config_file(self) -> Path:
        """The path of the JSON file with the run's options and the facts about its data and network."""
        return self.path / "config.json"

    @property
    def model_file(self) -> Path:
        """The path of the file with the averaged weights, from which samples are made."""
        return self.path / "model.safetensors"

    @property
    def log_file(self) -> Path:
        """The path of the log, a file with one JSON object per line."""
        return self.path / "log.jsonl"

    @property
    def floor_file(self) -> Path:
        """The path of the JSON file with the linear floor, which the loss of held-out images has to get below."""
        return self.path / "linear_floor.json"

    def sample_file(self, step: int) -> Path:
        """Return the path of the PNG with the samples made after ``step`` steps."""
        return self.path / "samples" / f"step-{step:08d}.png"

    def checkpoint(self, step: int) -> Path:
        """Return the path of the checkpoint folder written after ``step`` steps."""
        return self.path / "checkpoints" / f"step-{step:08d}"

    def checkpoints(self) -> list[Path]:
        """Return the folders of all complete checkpoints, oldest first."""
        return sorted(path for path in self.path.glob("checkpoints/step-*") if re.fullmatch("step-[0-9]+", path.name))

    def is_run(self) -> bool:
        """Return True if this is the folder of a training run, that is, if it holds a ``config.json``."""
        return self.config_file.exists()

    def check_is_run(self) -> None:
        """Raise an `InputError` if this is not the folder of a run; it names the runs in the folder, if it has some."""
        if not self.is_run():
            missing, inside = "is a file" if self.path.is_file() else "does not exist", []
            if self.path.is_dir():
                missing = "holds no run (no config.json)"
                inside = [entry.name for entry in sorted(self.path.iterdir()) if RunPaths(entry).is_run()]
            named = f", but those in {', '.join(inside[:5])}{', ...' * (len(inside) > 5)}: give one of them"
            advice = named if inside else ": give the --out folder of a training run"
            raise InputError(f"{self.path} {missing}{self.lost_config() or advice}")

    def lost_config(self) -> str:
        """Return the end of an error sentence that says which copy of ``config.json`` to take; empty if there is none.

        Each checkpoint has a copy; those of earlier versions have none.
        """
        copies = [path / self.config_file.name for path in reversed(self.checkpoints())]
        kept = next((path for path in copies if path.exists()), None)
        return f": copy {kept} to {self.config_file}, and the run is whole again" if kept else ""


def check_run(path: Path) -> None:
    """Raise an `InputError` if there is nothing at the path of a run."""
    if not user_path(path).exists():
        raise InputError(f"{path} does not exist: give the --out folder of a training run")


def check_model(path: Path) -> None:
    """Raise an `InputError` if a path is neither a run folder nor one of the checkpoints in it."""
    check_run(path)
    folder = user_path(path)
    RunPaths(folder.parent.parent if folder.parent.name == "checkpoints" else folder).check_is_run()
