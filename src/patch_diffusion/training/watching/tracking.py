"""Adapters to experiment trackers (TensorBoard, Weights & Biases, trackio), each used by a single thread."""

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

from patch_diffusion.config_dict import flat
from patch_diffusion.files import encoded, read_json, write_json

_PROJECT = "patch_diffusion"
_IDENTITY, _STDOUT = threading.Lock(), threading.Lock()


class Tracker(Protocol):
    """The interface of an experiment tracker that a run reports to, opened for the steps after a given one."""

    def write(self, step: int, values: Mapping[str, float], note: str) -> None:
        """Record the scalars of a step by name, and a note, which may be empty."""
        ...

    def picture(self, step: int, path: Path) -> None:
        """Record a picture of samples, a file, at a step."""
        ...

    def finish(self) -> None:
        """Flush and close the tracker."""
        ...


class TensorBoard:
    """A tracker that writes event files to ``RUN/tensorboard``; to see them: ``tensorboard --logdir RUN``."""

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run / "tensorboard"
        continued = any(folder.glob("events.*"))
        # With purge_step, readers discard later steps of earlier files, since those steps are trained anew.
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if continued else None)
        if not continued:
            rows = [f"| {name} | {value} |" for name, value in _settings(run).items()]
            text = encoded("\n".join(["| option | value |", "|---|---|", *rows])).decode()
            self._writer.add_text("settings", text, 0)

    def write(self, step: int, values: Mapping[str, float], note: str) -> None:
        """Write the scalars of a step, and a note, which may be empty, to the event file."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        if note:
            self._writer.add_text("notes", note, step)
        self._writer.flush()  # so that a killed process leaves no gap behind

    def picture(self, step: int, path: Path) -> None:
        """Write a picture of samples to the event file."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as picture:
            pixels = np.asarray(picture)
        self._writer.add_image("samples", pixels, step, dataformats="HW" if pixels.ndim == 2 else "HWC")
        self._writer.flush()

    def finish(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WeightsAndBiases:
    """A Weights & Biases tracker; project "patch_diffusion" or `WANDB_PROJECT`; `WANDB_MODE=offline` needs no login."""

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
        # Steps that were recorded before a kill are trained anew with the same result, and are not recorded twice.
        self._next = self._run.step

    def write(self, step: int, values: Mapping[str, float], note: str) -> None:
        """Record the scalars of a step; notes stay in the log only."""
        if values and step >= self._next:
            self._run.log(dict(values), step=step)

    def picture(self, step: int, path: Path) -> None:
        """Record a picture of samples as an image of the tracked run."""
        if step >= self._next:
            self._run.log({"samples": self._image(str(path))}, step=step)

    def finish(self) -> None:
        """Finish the Weights & Biases run."""
        self._run.finish()


class Trackio(WeightsAndBiases):
    """A trackio tracker, used like one of Weights & Biases; its project is "patch_diffusion", on this machine."""

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
        # Steps that were recorded before a kill are trained anew with the same result, and are not recorded twice.
        self._next = getattr(self._run, "_next_step", 0)

    def finish(self) -> None:
        """Finish the trackio run."""
        with _stdout_to_stderr():
            self._run.finish()


TRACKERS: dict[str, Callable[[Path, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}


def _identity(run: Path) -> str:
    """Return the identifier of a run at the trackers, unique among runs of its name and kept over all continuations."""
    file = run / "tracking.json"
    with _IDENTITY:
        if not file.exists():
            write_json(file, {"id": secrets.token_hex(4)})
        return str(read_json(file)["id"])


def _settings(run: Path) -> dict[str, Any]:
    """Return the options of a run and the facts of its model, as a flat dict."""
    return flat(read_json(run / "config.json"))


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Redirect stdout to stderr in the with block, so that a library's prints do not mix with results on stdout."""
    with _STDOUT, contextlib.redirect_stdout(sys.stderr):
        yield
