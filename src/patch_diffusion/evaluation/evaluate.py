"""Evaluation of a run or a folder of pictures: every metric with its interval and the settings that made it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patch_diffusion.data.images import Images
from patch_diffusion.data.inspection.sheet import check_sheet
from patch_diffusion.data.sources import open_images
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.devices import choose_device
from patch_diffusion.errors import InputError
from patch_diffusion.evaluation.denoising import bits_measure, denoising_measures
from patch_diffusion.evaluation.distances import Gaussian
from patch_diffusion.evaluation.extractors.choose import open_extractor
from patch_diffusion.evaluation.extractors.extractor import Extractor
from patch_diffusion.evaluation.intervals import Measure
from patch_diffusion.evaluation.metrics import OF_MODELS, known_metrics, possible_metrics
from patch_diffusion.evaluation.reference import is_statistics, read_statistics
from patch_diffusion.evaluation.samples import SamplesOptions, of_samples
from patch_diffusion.evaluation.subject import Source, Subject, open_subject
from patch_diffusion.files import user_path
from patch_diffusion.sampling.guidance.guide import Guidance

SAMPLES = 1000
"""The default number of samples to generate. Published distances take 50,000."""


@dataclass(frozen=True)
class Evaluation:
    """Results of an evaluation: ``measures`` by name, the ``settings`` of all of them, ``notes`` to read them with.

    >>> isinstance(evaluate("runs/photos"), Evaluation)  # doctest: +SKIP
    True
    """

    source: str
    measures: dict[str, Measure]
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the results as a dict that JSON can store."""
        metrics = {name: measure.as_dict() for name, measure in self.measures.items()}
        return {"source": self.source, "metrics": metrics, "settings": self.settings, "notes": list(self.notes)}


def evaluate(
    source: Source | Denoiser | Images,
    data: Source | Images | None = None,
    *,
    held_out: Source | Images | None = None,
    reference: Source | Images | None = None,
    metrics: Collection[str] | None = None,
    samples: int | None = None,
    seed: int = 0,
    extractor: str | Path | Extractor | Callable[[Tensor], Tensor] = "random",
    steps: int = 18,
    solver: str = "heun",
    guidance: float = 1.0,
    guide: str | Denoiser = "class",
    guidance_interval: tuple[float, float] | None = None,
    ema_length: float | None = None,
    vae: Source | None = None,
    bits_images: int = 16,
    pairs: str | Path | None = None,
    batch: int = 64,
    device: str = "auto",
    show: bool = False,
) -> Evaluation:
    """Measure how good the samples of a run are, and how good it is at denoising, with intervals of 95 %.

    Samples go from the solver into the metrics and are not kept. Their seeds are ``seed * samples`` and the following,
    so that another ``seed`` is another, independent set; their classes are as frequent as those of the data.

    Args:
        source: a run folder, a checkpoint, or pictures; in Python also a `Denoiser` or images.
        data: the images it was trained on; a run's own where None.
        held_out: images it was not trained on; where None, those that the run itself held out.
        reference: what samples are compared with; ``data`` where None. Images, or an ``.npz`` with ``mu`` and ``sigma``
            for the Frechet distance.
        metrics: of `METRICS`; those of `DEFAULT_METRICS` that what is given allows where None.
        samples: how many are generated, 1,000 where None; of pictures how many are taken, all where None.
        seed: of the samples, of which pictures are taken, of noise, and of the intervals.
        extractor: see `open_extractor`.
        steps, solver, guidance, guide, guidance_interval: see `generate`.
        ema_length, vae: see `load`.
        bits_images: whose bits are counted, see `bits_per_dimension`.
        pairs: a picture to write, of the images that are nearest to training images beside these.
        batch: images at a time.
        device: see `choose_device`.
        show: progress bars on stderr, on a terminal.

    Raises:
        InputError: a metric lacks what it needs, or something given cannot be used.

    >>> found = evaluate("runs/photos", samples=1000)  # doctest: +SKIP
    """
    wanted = known_metrics(metrics)
    if samples is not None and samples < 2:
        raise InputError(f"at least two samples are needed, not {samples}")
    if batch < 1:
        raise InputError(f"a batch has at least 1 image, not {batch}")
    if bits_images < 1:
        raise InputError(f"bits are counted of at least 1 image, not {bits_images}")
    if pairs is not None:
        check_sheet(Path(pairs))
        if "memorization" not in wanted:
            raise InputError("a picture of the closest pairs comes of the metric memorization: ask for that too")
    made_by = open_extractor(extractor, device=choose_device(device)) if wanted - OF_MODELS else None
    statistics = _statistics(reference)
    subject = open_subject(source, data, held_out, device=device, ema_length=ema_length, vae=vae, show=show)
    real = None if statistics is not None else _real(subject, reference, show)
    num = samples or (SAMPLES if subject.pictures is None else len(subject.pictures))
    wanted, notes = possible_metrics(wanted, subject, num, real, statistics, asked=metrics is not None)
    measures: dict[str, Measure] = {}
    settings: dict[str, Any] = {}
    notes = [*subject.notes, *notes]
    if wanted - OF_MODELS:
        assert made_by is not None
        sampling = {"steps": steps, "solver": solver, "guidance": Guidance(guidance, guide, guidance_interval)}
        how = SamplesOptions(num, made_by, sampling, seed, batch, pairs, show)
        measures, settings, more = of_samples(wanted, subject, real, statistics, how)
        notes += more
    if subject.model is not None and subject.held_out is not None:
        if "denoising" in wanted:
            measures |= denoising_measures(subject.model, subject.held_out, seed=seed, batch=batch)
        if "bits" in wanted:
            measures["bits"] = bits_measure(subject.model, subject.held_out, bits_images, seed=seed, show=show)
    made_with = {
        "device": str(choose_device(device)),
        "version": version("patch_diffusion"),
        "torch": torch.__version__,
    }
    return Evaluation(subject.name, measures, {"seed": seed, **settings, **made_with}, tuple(dict.fromkeys(notes)))


def _statistics(reference: Source | Images | None) -> Gaussian | None:
    if isinstance(reference, str | os.PathLike) and is_statistics(user_path(reference)):
        return read_statistics(user_path(reference))
    return None


def _real(subject: Subject, reference: Source | Images | None, show: bool) -> Images | None:
    if reference is None:
        return subject.training
    return (
        open_images(reference, **subject.reading, show=show) if isinstance(reference, str | os.PathLike) else reference
    )
