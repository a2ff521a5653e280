"""How good is a run, or a folder of pictures: every number with its interval and the settings that made it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.data.images import Images
from patch_diffusion.data.inspection.sheet import check_sheet
from patch_diffusion.data.sources import open_images
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError, did_you_mean
from patch_diffusion.evaluation.collect import Collected, collect
from patch_diffusion.evaluation.comparing import compare
from patch_diffusion.evaluation.denoising import bits_measure, denoising_measures
from patch_diffusion.evaluation.distances import Gaussian
from patch_diffusion.evaluation.extractors.choose import open_extractor
from patch_diffusion.evaluation.extractors.extractor import Extractor, conversion
from patch_diffusion.evaluation.intervals import Measure
from patch_diffusion.evaluation.memorization import Likeness, likeness, rates, write_pairs
from patch_diffusion.evaluation.reference import Reference, is_statistics, read_statistics, reference_of
from patch_diffusion.evaluation.stream import Stream, stream_of_images, stream_of_model
from patch_diffusion.evaluation.subject import Source, Subject, open_subject
from patch_diffusion.streams import generator
from patch_diffusion.training.hardware.engine import choose_device

METRICS = ("frechet", "kernel", "precision", "density", "memorization", "denoising", "bits")
"""All that can be asked for; "precision" has recall with it, and "density" coverage."""

DEFAULT_METRICS = METRICS[:-1]
"""What is measured where nothing is asked for, as far as what is given allows. Bits take long."""

SAMPLES = 1000
"""That are generated where no number is asked for. Published distances take 50,000."""

_OF_MODELS = {"denoising", "bits"}
_OF_MOMENTS = {"frechet"}
_OF_FEATURES = {"kernel", "precision", "density"}


@dataclass(frozen=True)
class Evaluation:
    """What was measured: ``measures`` by name, ``settings`` of all of them, ``notes`` to read them with."""

    source: str
    measures: dict[str, Measure]
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
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
        steps, solver, guidance: see `generate`.
        ema_length, vae: see `load`.
        bits_images: whose bits are counted, see `bits_per_dimension`.
        pairs: a picture to write, of the images that are nearest to training images beside these.
        batch: images at a time.
        device: see `choose_device`.
        show: progress bars on stderr, on a terminal.

    Raises:
        InputError: a metric lacks what it needs, or something given cannot be used.
    """
    wanted = _known(metrics)
    if samples is not None and samples < 2:
        raise InputError(f"at least two samples are needed, not {samples}")
    if bits_images < 1:
        raise InputError(f"bits are counted of at least 1 image, not {bits_images}")
    if pairs is not None:
        check_sheet(Path(pairs))
        if "memorization" not in wanted:
            raise InputError("a picture of the closest pairs comes of the metric memorization: ask for that too")
    if "frechet" in wanted or "memorization" in wanted or wanted & _OF_FEATURES:
        made_by = open_extractor(extractor, device=choose_device(device))
    else:
        made_by = None
    statistics = _statistics(reference)
    subject = open_subject(source, data, held_out, device=device, ema_length=ema_length, vae=vae, show=show)
    real = None if statistics is not None else _real(subject, reference, show)
    wanted, notes = _possible(wanted, subject, real, statistics, asked=metrics is not None)
    notes = [*subject.notes, *notes]
    measures: dict[str, Measure] = {}
    settings: dict[str, Any] = {"seed": seed}
    if wanted - _OF_MODELS:
        assert made_by is not None
        images = _stream(subject, samples, seed, batch, {"steps": steps, "solver": solver, "guidance": guidance})
        settings |= images.settings | {"extractor": {"name": made_by.name, **(made_by.settings or {})}}
        notes += [made_by.note] if made_by.note else []
        collected = collect(
            images, made_by, what="sampling" if subject.model else "reading", moments="frechet" in wanted, show=show
        )
        settings["resolution"] = list(collected.resolution)
        if text := conversion(collected.channels, made_by.channels):
            notes.append(f"{text} for the extractor")
        training = None if subject.training is None else _pixels_of(subject.training, batch)
        of_real = (
            None
            if real is None or not wanted & (_OF_MOMENTS | _OF_FEATURES)
            else reference_of(
                training if training is not None and real is subject.training else _pixels_of(real, batch),
                made_by,
                show=show,
            )
        )
        found, more = compare(wanted, collected, of_real, statistics, made_by.name, seed)
        measures |= found
        notes += more
        if "memorization" in wanted:
            assert training is not None
            same = of_real if real is subject.training else None
            of_training = same or reference_of(training, made_by, show=show)
            found, more = _memorization(
                images, collected, training, of_training, subject, made_by, samples, seed, batch, pairs, show
            )
            measures |= found
            notes += more
    if "denoising" in wanted:
        assert subject.model is not None and subject.held_out is not None
        measures |= denoising_measures(subject.model, subject.held_out, seed=seed, batch=batch)
    if "bits" in wanted:
        assert subject.model is not None and subject.held_out is not None
        measures["bits"] = bits_measure(subject.model, subject.held_out, bits_images, seed=seed, show=show)
    return Evaluation(subject.name, measures, settings, tuple(dict.fromkeys(notes)))


def _known(metrics: Collection[str] | None) -> set[str]:
    if metrics is None:
        return set(DEFAULT_METRICS)
    for name in metrics:
        if name not in METRICS:
            raise InputError(f"there is no metric '{name}'{did_you_mean(name, METRICS)}")
    if not metrics:
        raise InputError(f"no metric was asked for: choose from {', '.join(METRICS)}")
    return set(metrics)


def _statistics(reference: Source | Images | None) -> Gaussian | None:
    if isinstance(reference, str | os.PathLike) and is_statistics(Path(reference).expanduser()):
        return read_statistics(Path(reference).expanduser())
    return None


def _real(subject: Subject, reference: Source | Images | None, show: bool) -> Images | None:
    if reference is None or not isinstance(reference, str | os.PathLike):
        return subject.training if reference is None else reference
    like = subject.training or subject.pictures
    shape = like.resolution if like is not None else subject.model.resolution if subject.model else None
    return open_images(reference, resolution=shape, show=show)


def _possible(
    wanted: set[str], subject: Subject, real: Images | None, statistics: Gaussian | None, *, asked: bool
) -> tuple[set[str], list[str]]:
    """The metrics that what is given allows; a metric that was asked for and cannot be is an error."""
    lacking: dict[str, str] = {}
    for name in wanted:
        if name in _OF_MODELS and subject.model is None:
            lacking[name] = "needs a run, not pictures"
        elif name in _OF_MODELS and subject.held_out is None:
            lacking[name] = "needs images that the model was not trained on: give --held-out DATA"
        elif name == "memorization" and subject.training is None:
            lacking[name] = "needs the images of the training: give --data DATA"
        elif name == "frechet" and statistics is None and real is None:
            lacking[name] = "needs images to compare with: give --data DATA"
        elif name in _OF_FEATURES and real is None:
            lacking[name] = "needs images to compare with, not statistics: give --data DATA and no --reference"
    if asked and lacking:
        name, why = next(iter(sorted(lacking.items(), key=lambda each: METRICS.index(each[0]))))
        raise InputError(f"the metric {name} {why}")
    possible = wanted - lacking.keys()
    if not possible:
        raise InputError("there is nothing to compare with: give --data DATA, the images of the training")
    return possible, [f"not measured: {name}, which {lacking[name]}" for name in METRICS if name in lacking]


def _stream(subject: Subject, samples: int | None, seed: int, batch: int, options: dict[str, Any]) -> Stream:
    model = subject.model
    if model is None:
        assert subject.pictures is not None
        if samples is None and len(subject.pictures) < 2:
            raise InputError(f"at least two images are needed, and {subject.name} has {len(subject.pictures)}")
        return stream_of_images(subject.pictures, samples, seed=seed, batch=batch)
    num = SAMPLES if samples is None else samples
    labels = _classes_like(subject.training, model, num, seed)
    stream = stream_of_model(model, range(seed * num, (seed + 1) * num), labels=labels, batch=batch, **options)
    if not model.num_classes:
        return stream
    classes = "seed mod classes" if labels is None else "as frequent as in the data"
    return replace(stream, settings={**stream.settings, "classes": classes})


def _classes_like(training: Images | None, model: Denoiser, num: int, seed: int) -> list[int] | None:
    """Classes of images of the training, drawn at random, where it has the model's classes."""
    if training is None or not model.num_classes or training.num_classes != model.num_classes:
        return None
    labels = [bucket.labels_of(torch.arange(len(bucket)).numpy()) for bucket in training.buckets]
    every = torch.cat([each for each in labels if each is not None])
    chosen = torch.randint(len(every), (num,), generator=generator(seed, "classes of samples"))
    return every[chosen].tolist()


def _pixels_of(images: Images, batch: int) -> Stream:
    if not isinstance(images.codec, PixelCodec):
        raise InputError("samples are compared with images, and these are latents: give the images as --data DATA")
    return stream_of_images(images, batch=batch)


def _memorization(
    images: Stream,
    collected: Collected,
    training: Stream,
    of_training: Reference,
    subject: Subject,
    extractor: Extractor,
    samples: int | None,
    seed: int,
    batch: int,
    pairs: str | Path | None,
    show: bool,
) -> tuple[dict[str, Measure], Sequence[str]]:
    near = likeness(collected.small, collected.features, training, of_training.features)
    sections: list[tuple[str, Stream, Likeness]] = [("the images nearest to a training image", images, near)]
    if subject.held_out is not None:
        num = min(len(subject.held_out), len(collected.small))
        outside = stream_of_images(subject.held_out, num, seed=seed, batch=batch)
        seen = collect(outside, extractor, what="held-out images", moments=False, show=show)
        near_outside = likeness(seen.small, seen.features, training, of_training.features)
        sections.append(("held-out images nearest to a training image", outside, near_outside))
    if pairs is not None:
        write_pairs(pairs, training, of_training.places, sections)
    return rates(near, sections[1][2] if len(sections) > 1 else None, extractor.name)
