"""What is told to each of the tools that show runs. A tracker is used by one thread, its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from patch_diffusion.config import flat
from patch_diffusion.files import read_json, write_json

_PROJECT = "patch_diffusion"
_IDENTITY, _STDOUT = threading.Lock(), threading.Lock()


class Tracker(Protocol):
    """One run at one tool, opened for what comes after a step."""

    def write(self, step: int, values: Mapping[str, float], note: str) -> None:
        """Take the numbers of a step, and a note that may be empty."""
        ...

    def picture(self, step: int, path: Path) -> None:
        """Take a picture of samples."""
        ...

    def finish(self) -> None:
        """Nothing more comes."""
        ...


class TensorBoard:
    """Event files in ``RUN/tensorboard``; to look at them: ``tensorboard --logdir RUN``."""

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run / "tensorboard"
        continued = any(folder.glob("events.*"))
        # Readers then forget what earlier files say of later steps, which are trained anew.
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if continued else None)
        if not continued:
            rows = [f"| {name} | {value} |" for name, value in _settings(run).items()]
            self._writer.add_text("settings", "\n".join(["| option | value |", "|---|---|", *rows]), 0)

    def write(self, step: int, values: Mapping[str, float], note: str) -> None:
        """Take the numbers of a step, and a note that may be empty."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        if note:
            self._writer.add_text("notes", note, step)
        self._writer.flush()  # a killed process leaves no gap behind

    def picture(self, step: int, path: Path) -> None:
        """Take a picture of samples."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as picture:
            pixels = np.asarray(picture)
        self._writer.add_image("samples", pixels, step, dataformats="HW" if pixels.ndim == 2 else "HWC")
        self._writer.flush()

    def finish(self) -> None:
        """Nothing more comes."""
        self._writer.close()


class WeightsAndBiases:
    """A run of the project "patch_diffusion", or of ``WANDB_PROJECT``; ``WANDB_MODE=offline`` needs no account."""

    def __init__(self, run: Path, step: int) -> None:
        wandb: Any = import_module("wandb")
        if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.login(prompt=False):
            raise RuntimeError("there is no account: wandb login, or WANDB_MODE=offline")
        self._image = wandb.Image
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            dir=str(run),
            id=_identity(run),
            name=run.resolve().name,
            resume="allow",
            config=_settings(run),
            settings=wandb.Settings(silent=True, console="off"),
        )
        # Steps that were told before a kill are trained anew with the same result, and are not taken twice.
        self._next = self._run.step

    def write(self, step: int, values: Mapping[str, float], note: str) -> None:
        """Take the numbers of a step; notes stay in the log."""
        if values and step >= self._next:
            self._run.log(dict(values), step=step)

    def picture(self, step: int, path: Path) -> None:
        """Take a picture of samples."""
        if step >= self._next:
            self._run.log({"samples": self._image(str(path))}, step=step)

    def finish(self) -> None:
        """Nothing more comes."""
        self._run.finish()


class Trackio:
    """A run of the project "patch_diffusion" on this machine, or where trackio's own environment variables say."""

    def __init__(self, run: Path, step: int) -> None:
        trackio: Any = import_module("trackio")
        self._image = trackio.Image
        with _stdout_to_stderr():
            self._run: Any = trackio.init(
                project=_PROJECT,
                name=f"{run.resolve().name}-{_identity(run)}",
                resume="allow",
                config=_settings(run),
                embed=False,
            )
        # Steps that were told before a kill are trained anew with the same result, and are not taken twice.
        self._next = getattr(self._run, "_next_step", 0)

    def write(self, step: int, values: Mapping[str, float], note: str) -> None:
        """Take the numbers of a step; notes stay in the log."""
        if values and step >= self._next:
            self._run.log(dict(values), step=step)

    def picture(self, step: int, path: Path) -> None:
        """Take a picture of samples."""
        if step >= self._next:
            self._run.log({"samples": self._image(str(path))}, step=step)

    def finish(self) -> None:
        """Nothing more comes."""
        with _stdout_to_stderr():
            self._run.finish()


TRACKERS: dict[str, Callable[[Path, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}


def _identity(run: Path) -> str:
    """What tells this run from others of its name, over all continuations."""
    file = run / "tracking.json"
    with _IDENTITY:
        if not file.exists():
            write_json(file, {"id": secrets.token_hex(4)})
        return str(read_json(file)["id"])


def _settings(run: Path) -> dict[str, Any]:
    """The options of the run, and what its data turned out to be."""
    return flat(read_json(run / "config.json"))


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Inside, what a library prints does not mix with results, which are on stdout."""
    with _STDOUT, contextlib.redirect_stdout(sys.stderr):
        yield
