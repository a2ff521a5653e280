"""What is measured of an arm at each moment of a race, and where it is kept: in the log of its run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from patch_diffusion.data.images import Images
from patch_diffusion.denoise.whole_image import whole_image_loss
from patch_diffusion.runs.log import read_log
from patch_diffusion.training.trainer import Trainer

JUDGES = 256
"""Held-out images that every arm is looked at with, at most."""

Measured = list[dict[str, Any]]
"""By rising time, each with step, images, seconds, spent, and what was found then: loss, by_noise, and where samples
are measured their distances."""


def look(trainer: Trainer, judges: Images) -> dict[float, float]:
    """The loss of its averaged model on whole held-out images, by noise level."""
    return whole_image_loss(trainer.state.average.denoiser, judges, most=JUDGES)


def mean(losses: Mapping[float, float]) -> float:
    """What arms are compared by."""
    return math.fsum(losses.values()) / len(losses)


def measured(log_file: Path) -> Measured:
    """All that was measured of a run so far."""
    found: Measured = []
    of_samples: dict[int, dict[str, float]] = {}
    for line in read_log(log_file):
        if line is not None and "samples" in line:
            of_samples[line["step"]] = line["samples"]
        elif line is not None and "held_out" in line:
            counts = {key: line[key] for key in ("step", "images", "seconds", "spent")}
            found.append(counts | line["held_out"] | of_samples.get(line["step"], {}))
    return found
