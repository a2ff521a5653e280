"""The options of evaluation, for Python and the command line. No heavy library is imported here, so --help is quick."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from patch_diffusion.errors import InputError, did_you_mean

METRICS = ("frechet", "kernel", "precision", "density", "memorization", "denoising", "paired", "bits")
"""The names of all metrics; "precision" includes recall, "density" coverage, and "paired" all that pairs are measured
by."""

DEFAULT_METRICS = METRICS[:-1]
"""The metrics that are measured by default, if their inputs are given: all but "bits", which takes long."""


@dataclass(frozen=True)
class EvaluationOptions:
    """The options of `evaluate` besides those of sampling: metrics, samples, weights and pictures of copies.

    >>> EvaluationOptions(metrics=("frechet",), samples=1000).seed
    0
    """

    metrics: Annotated[tuple[str, ...] | None, arg(metavar="NAME ...")] = None
    """Metrics to compute: frechet, kernel, precision (and recall), density (and coverage), memorization, denoising,
    paired (images made from held-out inputs, against the true ones), bits. Default: all that the given images allow,
    but not bits, which take long."""
    samples: Annotated[int | None, arg(metavar="N")] = None
    """Number of samples. Published Frechet distances use 50,000. Default: 1,000, or all images of a folder."""
    seed: int = 0
    """Seed of samples, noise and intervals. Sample k has the seed seed * samples + k."""
    ema_length: Annotated[float | None, arg(metavar="0.1")] = None
    """Length of the weight average to use, as a share of the training, such as 0.1. It needs a run that was trained
    with --ema.lengths. Default: the average that every run has."""
    vae: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Autoencoder to decode latents with, as a folder. Default: the one that made them."""
    bits_images: int = 16
    """Number of held-out images whose bits per dimension are measured."""
    paired_images: int = 32
    """Number of held-out images that are made from their inputs, for the metric paired."""
    members: int = 16
    """Number of images that are made from each input, for the metric paired."""
    pairs: Annotated[Path | None, arg(metavar="FILE.png")] = None
    """File for a picture of the samples most like copies, each beside its nearest training image."""
    device: str = "auto"
    """Device to use: auto, cpu, cuda, cuda:1 or mps. auto: a GPU if there is one."""


def known_metrics(metrics: Collection[str] | None) -> set[str]:
    """Return the names of the requested metrics as a set; the default metrics if None.

    Raises:
        InputError: a metric is unknown, or none is requested.
    """
    if metrics is None:
        return set(DEFAULT_METRICS)
    for name in metrics:
        if name not in METRICS:
            raise InputError(f"there is no metric '{name}'{did_you_mean(name, METRICS)}")
    if not metrics:
        raise InputError(f"no metric was asked for: choose from {', '.join(METRICS)}")
    return set(metrics)
