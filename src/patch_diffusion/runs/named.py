"""Names of models to train on from: a path, and the words after it for a checkpoint or an average of a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple

from patch_diffusion.errors import InputError, about
from patch_diffusion.files import user_path
from patch_diffusion.runs.paths import RunPaths

_WORDS = re.compile(r"(?P<path>.+):(?:(?P<best>best)|step:(?P<step>[0-9]{1,18})|ema:(?P<length>[0-9.]+))", re.DOTALL)


class ModelName(NamedTuple):
    """A model to train on from: its path, and which checkpoint or average of a run, as `load` takes them."""

    path: Path
    checkpoint: int | Literal["best"] | None = None
    ema_length: float | None = None

    @property
    def run(self) -> RunPaths:
        """The paths of the run that it would be a model of."""
        return RunPaths(self.path.parent.parent if self.path.parent.name == "checkpoints" else self.path)


@about("start")
def model_name(text: str) -> ModelName:
    """Parse the name of a model to train on from, such as "runs/photos", "runs/photos:best" or "edm-cifar10.pkl".

    Raises:
        InputError: there is nothing at the path, or words for a checkpoint follow what is no run.

    >>> model_name("runs/digits:ema:0.05").ema_length
    0.05
    """
    found = None if user_path(text).exists() else _WORDS.fullmatch(text)
    if found is None:
        name = ModelName(user_path(text))
    else:
        step, length = found["step"], found["length"]
        try:
            name = ModelName(
                user_path(found["path"]),
                "best" if found["best"] else None if step is None else int(step),
                None if length is None else float(length),
            )
        except ValueError:
            raise InputError(f"the length of an average is a number, as in RUN:ema:0.05, not '{length}'") from None
    if not name.path.exists():
        raise InputError(
            f"there is no model to train on from at {name.path}: give a run, RUN:best, RUN:step:400 or RUN:ema:0.05, a "
            "published EDM or Patch-Diffusion file, or the folder of a diffusers pipeline"
        )
    if found is not None and not name.run.is_run():
        raise InputError(f"{name.path} is no run, so it has no checkpoints to choose from: leave out what follows it")
    return name
