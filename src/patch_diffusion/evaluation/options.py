"""The options of evaluation, for Python and the command line. No heavy library is imported here, so --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg


@dataclass(frozen=True)
class EvaluationOptions:
    """The options of `evaluate` besides those of sampling: metrics, samples, weights and pictures of copies.

    >>> EvaluationOptions(metrics=("frechet",), samples=1000).seed
    0
    """

    metrics: Annotated[tuple[str, ...] | None, arg(metavar="NAME ...")] = None
    """Metrics to compute: frechet, kernel, precision (and recall), density (and coverage), memorization, denoising,
    bits. Default: all that the given images allow, but not bits, which take long."""
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
    pairs: Annotated[Path | None, arg(metavar="FILE.png")] = None
    """File for a picture of the samples most like copies, each beside its nearest training image."""
    device: str = "auto"
    """Device to use: auto, cpu, cuda, cuda:1 or mps. auto: a GPU if there is one."""
