"""Which metrics there are, and what each of them needs."""

from __future__ import annotations

from collections.abc import Collection

from patch_diffusion.data.images import Images
from patch_diffusion.errors import InputError, did_you_mean
from patch_diffusion.evaluation.comparing import DENSITY_NEIGHBOURS, PRECISION_NEIGHBOURS
from patch_diffusion.evaluation.distances import Gaussian
from patch_diffusion.evaluation.subject import Subject

METRICS = ("frechet", "kernel", "precision", "density", "memorization", "denoising", "bits")
"""All that can be asked for; "precision" has recall with it, and "density" coverage."""

DEFAULT_METRICS = METRICS[:-1]
"""What is measured where nothing is asked for, as far as what is given allows. Bits take long."""

OF_MODELS = frozenset({"denoising", "bits"})
"""Those that need no samples."""

OF_FEATURES = frozenset({"kernel", "precision", "density"})
"""Those that need the features of real images, not only their moments."""

_NEIGHBOURS = {"precision": PRECISION_NEIGHBOURS, "density": DENSITY_NEIGHBOURS}


def known_metrics(metrics: Collection[str] | None) -> set[str]:
    """Those that were asked for, or the default ones.

    Raises:
        InputError: for one that there is not, and for none.
    """
    if metrics is None:
        return set(DEFAULT_METRICS)
    for name in metrics:
        if name not in METRICS:
            raise InputError(f"there is no metric '{name}'{did_you_mean(name, METRICS)}")
    if not metrics:
        raise InputError(f"no metric was asked for: choose from {', '.join(METRICS)}")
    return set(metrics)


def possible_metrics(
    wanted: Collection[str],
    subject: Subject,
    num: int,
    real: Images | None,
    statistics: Gaussian | None,
    *,
    asked: bool,
) -> tuple[set[str], list[str]]:
    """The metrics that what is given allows, and what is to be said of the others.

    Args:
        wanted: of `METRICS`.
        subject: what is evaluated.
        num: samples, or pictures.
        real: images to compare with.
        statistics: published ones in place of them.
        asked: whether the user asked for these; then one that cannot be is an error.

    Raises:
        InputError: a metric that was asked for lacks something, or all lack something.
    """
    lacking = {
        name: why for name in METRICS if name in wanted and (why := _lacks(name, subject, num, real, statistics))
    }
    for name, why in lacking.items():
        if asked:
            raise InputError(f"the metric {name} {why}")
    possible = set(wanted) - lacking.keys()
    if not possible:
        raise InputError("there is nothing to compare with: give --data DATA, the images of the training")
    return possible, [f"not measured: {name}, which {why}" for name, why in lacking.items()]


def _lacks(name: str, subject: Subject, num: int, real: Images | None, statistics: Gaussian | None) -> str:
    if name in OF_MODELS:
        if subject.model is None:
            return "needs a run, not pictures"
        if name == "bits" and subject.model.context is not None:
            return "needs a model that makes images in one stage, and this one has a context"
        return "" if subject.held_out is not None else "needs images the model was not trained on: give --held-out DATA"
    if name == "memorization":
        return "" if subject.training is not None else "needs the images of the training: give --data DATA"
    if name in OF_FEATURES and statistics is not None:
        return "needs images to compare with, not statistics: leave out --reference"
    if real is None and statistics is None:
        return "needs images to compare with: give --data DATA"
    neighbours = _NEIGHBOURS.get(name, 0)
    if real is not None and min(num, len(real)) <= neighbours:
        return f"needs more than {neighbours} images on either side"
    return ""
