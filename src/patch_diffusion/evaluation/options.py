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
    """frechet, kernel, precision (and recall), density (and coverage), memorization, denoising, bits. None: all
    whose inputs are given, except bits, which take long."""
    samples: Annotated[int | None, arg(metavar="N")] = None
    """Number of samples. None: 1,000, or all pictures. Published Frechet distances take 50,000."""
    seed: int = 0
    """Seed of samples, noise and intervals. Sample k has the seed seed * samples + k."""
    ema_length: Annotated[float | None, arg(metavar="0.1")] = None
    """Average the weights over this share of the training, where --ema.lengths kept what it takes."""
    vae: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """For a model of latents: an autoencoder to decode with, in place of the one that made them."""
    bits_images: int = 16
    """Number of held-out images whose bits per dimension are measured."""
    pairs: Annotated[Path | None, arg(metavar="FILE.png")] = None
    """Write a picture of the samples most like copies, each beside its nearest training image."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
