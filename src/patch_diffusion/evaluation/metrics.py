"""The metrics of an evaluation, and the inputs that each of them needs."""

from __future__ import annotations

from collections.abc import Collection

from patch_diffusion.data.images import Images
from patch_diffusion.errors import InputError
from patch_diffusion.evaluation.comparing import DENSITY_NEIGHBOURS, PRECISION_NEIGHBOURS
from patch_diffusion.evaluation.distances import Gaussian
from patch_diffusion.evaluation.options import METRICS
from patch_diffusion.evaluation.subject import Subject

OF_MODELS = frozenset({"denoising", "bits", "paired"})
"""The metrics that need a model and held-out images, and no other samples."""

OF_FEATURES = frozenset({"kernel", "precision", "density"})
"""The metrics that need the features of real images, not only their mean and covariance."""

_NEIGHBOURS = {"precision": PRECISION_NEIGHBOURS, "density": DENSITY_NEIGHBOURS}


def possible_metrics(
    wanted: Collection[str],
    subject: Subject,
    num: int,
    real: Images | None,
    statistics: Gaussian | None,
    *,
    asked: bool,
) -> tuple[set[str], list[str]]:
    """Return the set of metrics that the inputs allow, and notes on why the others cannot be measured.

    ``num`` samples or pictures are compared with ``real`` images or with ``statistics``, a published mean and
    covariance. If the user ``asked`` for these metrics, one without its inputs is an error.

    Raises:
        InputError: a metric that the user asked for lacks an input, or all metrics do.
    """
    lacking = {
        name: why for name in METRICS if name in wanted and (why := _lacks(name, subject, num, real, statistics))
    }
    for name, why in lacking.items():
        if asked:
            raise InputError(f"the metric {name} {why}")
    possible = set(wanted) - lacking.keys()
    if not possible:
        raise InputError("there is nothing to compare with: give the training images, --data DATA")
    return possible, [f"not measured: {name}, which {why}" for name, why in lacking.items()]


def _lacks(name: str, subject: Subject, num: int, real: Images | None, statistics: Gaussian | None) -> str:
    if name in OF_MODELS:
        if subject.model is None:
            return "needs a run, not pictures"
        if name == "paired":
            if not subject.model.inputs:
                return "needs a model that was trained with data.paired"
            has_inputs = subject.held_out is not None and bool(subject.held_out.inputs)
            return "" if has_inputs else "needs held-out images with their inputs: train with --held-out 0.05"
        if subject.model.few_steps is not None:
            return "needs a denoiser, and this run was tuned for a few steps of sampling"
        if name == "bits" and subject.model.context is not None:
            return "needs a model without patches.context"
        return "" if subject.held_out is not None else "needs images the model was not trained on: give --held-out DATA"
    if name == "memorization":
        return "" if subject.training is not None else "needs the training images: give --data DATA"
    if name in OF_FEATURES and statistics is not None:
        return "needs images to compare with, not statistics: leave out --reference"
    if real is None and statistics is None:
        return "needs images to compare with: give --data DATA"
    neighbours = _NEIGHBOURS.get(name, 0)
    if real is not None and min(num, len(real)) <= neighbours:
        return f"needs more than {neighbours} images on both sides"
    return ""
