"""The linear floor of a run: the loss of the best linear denoiser on its held-out images, as stored beside its log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from patch_diffusion.errors import InputError
from patch_diffusion.files import read_json, write_json
from patch_diffusion.records import Strict, record_of

FLOOR = "linear floor"
"""The name of the floor in tables and charts."""


@dataclass(frozen=True)
class LinearFloor(Strict):
    """The loss of the best linear denoiser of whole images: a model above it at high noise has not learned the layout.

    ``loss`` is the mean over noise levels, and ``by_noise`` has the loss at each, by the level as the log writes it;
    ``interval`` and ``intervals`` are their 95 % confidence intervals, over the images that judge. ``images`` is the
    number of training images that the denoiser was fitted to, ``held_out`` that of the images that judge. If
    ``crossed``, none were held out, and either half of the training images judges a denoiser of the other half.
    """

    loss: float
    interval: tuple[float, float]
    by_noise: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    images: int
    held_out: int
    crossed: bool = False

    def __post_init__(self) -> None:
        if self.by_noise.keys() != self.intervals.keys() or not all(float(level) > 0 for level in self.by_noise):
            raise ValueError("by_noise and intervals have the same noise levels")

    def above(self, by_noise: Mapping[str, float]) -> str:
        """Return the highest noise level if a model's loss is above the interval of the floor there; else nothing."""
        highest = max(self.intervals, key=float, default="")
        return highest if by_noise.get(highest, 0.0) > self.intervals.get(highest, (0.0, 0.0))[1] else ""

    def write(self, file: Path) -> None:
        """Write the floor as JSON."""
        write_json(file, asdict(self))


def read_floor(file: Path) -> LinearFloor | None:
    """Return the floor that a file holds; None if it is missing, as in runs of earlier versions, or damaged."""
    if not file.exists():
        return None
    try:
        return record_of(LinearFloor, read_json(file), str(file))
    except InputError:
        return None
