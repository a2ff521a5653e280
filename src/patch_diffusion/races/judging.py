"""Measurements of the arms at each moment of a race, which are stored in the logs of their runs."""

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
"""The most held-out images that every arm is judged by."""

Measurements = list[dict[str, Any]]
"""Measurements of an arm by rising time, each with step, images, seconds, spent, loss, by_noise and, if samples are
measured, their distances."""


def judgement(trainer: Trainer, judges: Images) -> dict[float, float]:
    """Compute the loss of a trainer's averaged model on whole held-out images, by noise level."""
    return whole_image_loss(trainer.state.average.denoiser, judges, most=JUDGES)


def mean(losses: Mapping[float, float]) -> float:
    """Return the mean loss over the noise levels, by which arms are compared."""
    return math.fsum(losses.values()) / len(losses)


def read_measurements(log_file: Path) -> Measurements:
    """Read all measurements of an arm so far from the log of its run."""
    found: Measurements = []
    of_samples: dict[int, dict[str, float]] = {}
    for line in read_log(log_file):
        if line is not None and "samples" in line:
            of_samples[line["step"]] = line["samples"]
        elif line is not None and "held_out" in line:
            counts = {key: line[key] for key in ("step", "images", "seconds", "spent")}
            found.append(counts | line["held_out"] | of_samples.get(line["step"], {}))
    return found
