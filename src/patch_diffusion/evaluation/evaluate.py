"""Evaluation of a trained model or a folder of pictures: every metric with its confidence interval and settings."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patch_diffusion.data.images import Images
from patch_diffusion.data.inspection.sheet import check_sheet
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.deprecation import takes_old_keywords
from patch_diffusion.devices import choose_device
from patch_diffusion.errors import InputError
from patch_diffusion.evaluation.denoising import bits_measure, denoising_measures
from patch_diffusion.evaluation.distances import Gaussian
from patch_diffusion.evaluation.extractors.choose import open_extractor
from patch_diffusion.evaluation.extractors.extractor import Extractor
from patch_diffusion.evaluation.intervals import Measure
from patch_diffusion.evaluation.metrics import OF_MODELS, possible_metrics
from patch_diffusion.evaluation.options import EvaluationOptions, known_metrics
from patch_diffusion.evaluation.paired import paired_measures
from patch_diffusion.evaluation.reference import is_statistics, read_statistics
from patch_diffusion.evaluation.samples import SamplesOptions, of_samples
from patch_diffusion.evaluation.subject import Source, open_subject, opened
from patch_diffusion.files import user_path
from patch_diffusion.sampling.options import Sampling
from patch_diffusion.version import __version__

SAMPLES = 1000
"""The default number of samples to generate. Published distances take 50,000."""


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation: ``measures`` by metric name, their common ``settings``, ``notes`` for the reader.

    >>> isinstance(evaluate("runs/photos"), Evaluation)  # doctest: +SKIP
    True
    """

    source: str
    measures: dict[str, Measure]
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the results of the evaluation as a dict that JSON can store."""
        metrics = {name: measure.as_dict() for name, measure in self.measures.items()}
        return {"source": self.source, "metrics": metrics, "settings": self.settings, "notes": list(self.notes)}


@takes_old_keywords(sampling=Sampling, options=EvaluationOptions)
def evaluate(
    source: Source | Denoiser | Images,
    data: Source | Images | None = None,
    *,
    held_out: Source | Images | None = None,
    reference: Source | Images | None = None,
    extractor: str | Path | Extractor | Callable[[Tensor], Tensor] = "random",
    sampling: Sampling | None = None,
    options: EvaluationOptions | None = None,
    show: bool = False,
) -> Evaluation:
    """Measure the quality of a model's samples and its denoising loss, with 95 % confidence intervals.

    Samples go from the solver into the metrics and are not kept. Their seeds are ``seed * samples`` and the following,
    so that another ``seed`` gives an independent set of samples; their classes are as frequent as in the data.

    Args:
        source: a run folder, a checkpoint, or pictures; in Python also a `Denoiser` or images.
        data: the training images; None: the data that the config in the run folder names.
        held_out: images that the model was not trained on; None: the share that its training held out.
        reference: images to compare the samples with, or an ``.npz`` with ``mu`` and ``sigma`` for the Frechet
            distance; None: ``data``.
        extractor: the feature extractor, see `open_extractor`.
        sampling: how samples are made, see `Sampling`; its ``batch`` is also that of all other passes.
        options: see `EvaluationOptions`; None: their defaults.
        show: progress bars on stderr, on a terminal.

    Raises:
        InputError: a metric lacks an input that it needs, or an argument cannot be used.

    >>> found = evaluate("runs/photos", options=EvaluationOptions(samples=1000))  # doctest: +SKIP
    """
    sampling, options = sampling or Sampling(), options or EvaluationOptions()
    wanted, seed = known_metrics(options.metrics), options.seed
    if options.samples is not None and options.samples < 2:
        raise InputError(f"at least two samples are needed, not {options.samples}")
    if sampling.batch < 1:
        raise InputError(f"a batch has at least 1 image, not {sampling.batch}")
    if options.bits_images < 1:
        raise InputError(f"bits are counted of at least 1 image, not {options.bits_images}")
    if options.members < 2 or options.paired_images < 1:
        raise InputError("the metric paired takes at least 1 image, and 2 members of each")
    if options.pairs is not None:
        check_sheet(Path(options.pairs))
        if "memorization" not in wanted:
            raise InputError("a picture of the closest pairs comes of the metric memorization: ask for that too")
    device = choose_device(options.device)
    made_by = open_extractor(extractor, device=device) if wanted - OF_MODELS else None
    statistics = _statistics(reference)
    weights: dict[str, Any] = {name: getattr(options, name) for name in ("device", "ema_length", "vae")}
    subject = open_subject(source, data, held_out, **weights, show=show)
    real = subject.training if reference is None else None
    if reference is not None and statistics is None:
        real = opened(reference, subject.reading, show)
    if options.metrics is None and not (subject.model and subject.model.inputs):
        wanted -= {"paired"}
    num = options.samples or (SAMPLES if subject.pictures is None else len(subject.pictures))
    wanted, notes = possible_metrics(wanted, subject, num, real, statistics, asked=options.metrics is not None)
    measures: dict[str, Measure] = {}
    settings: dict[str, Any] = {}
    notes = [*subject.notes, *notes]
    if wanted - OF_MODELS:
        assert made_by is not None
        how = SamplesOptions(num, made_by, sampling, options, show)
        measures, settings, more = of_samples(wanted, subject, real, statistics, how)
        notes += more
    if subject.model is not None and subject.held_out is not None:
        if "denoising" in wanted:
            measures |= denoising_measures(subject.model, subject.held_out, seed=seed, batch=sampling.batch)
        if "paired" in wanted:
            measures |= paired_measures(
                subject.model,
                subject.held_out,
                images=options.paired_images,
                members=options.members,
                sampling=sampling,
                seed=seed,
                show=show,
            )
        if "bits" in wanted:
            measures["bits"] = bits_measure(subject.model, subject.held_out, options.bits_images, seed=seed, show=show)
    made_with = {"device": str(device), "version": __version__, "torch": torch.__version__}
    return Evaluation(subject.name, measures, {"seed": seed, **settings, **made_with}, tuple(dict.fromkeys(notes)))


def _statistics(reference: Source | Images | None) -> Gaussian | None:
    if isinstance(reference, str | os.PathLike) and is_statistics(user_path(reference)):
        return read_statistics(user_path(reference))
    return None
