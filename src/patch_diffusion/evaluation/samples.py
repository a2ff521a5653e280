"""Metrics of samples: one pass over the samples, then the comparison with real images."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.data.images import Images, numbered_as
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError
from patch_diffusion.evaluation.collect import Collected, collect
from patch_diffusion.evaluation.comparing import compare
from patch_diffusion.evaluation.distances import Gaussian
from patch_diffusion.evaluation.extractors.extractor import Extractor, conversion
from patch_diffusion.evaluation.intervals import Measure
from patch_diffusion.evaluation.memorization import CopyCheck, find_copies, rates, write_pairs
from patch_diffusion.evaluation.metrics import OF_FEATURES
from patch_diffusion.evaluation.options import EvaluationOptions
from patch_diffusion.evaluation.processes import first_alone
from patch_diffusion.evaluation.reference import Reference, reference_of
from patch_diffusion.evaluation.stream import Stream, stream_of_images, stream_of_model
from patch_diffusion.evaluation.subject import Subject
from patch_diffusion.sampling.options import Sampling
from patch_diffusion.streams import generator


@dataclass(frozen=True)
class SamplesOptions:
    """The options of all metrics that need samples: number of samples, feature extractor, and more, see `evaluate`."""

    num: int
    extractor: Extractor
    sampling: Sampling
    options: EvaluationOptions
    show: bool


def of_samples(
    wanted: Collection[str], subject: Subject, real: Images | None, statistics: Gaussian | None, how: SamplesOptions
) -> tuple[dict[str, Measure], dict[str, Any], list[str]]:
    """Sample from a model, or read pictures; return measures by metric name, settings of the samples, and notes.

    Metrics that need no samples are ignored. The samples are compared with ``real`` images, or for the Frechet distance
    with ``statistics``, a published mean and covariance of features.
    """
    extractor = how.extractor
    images = _stream(subject, how)
    doing = "sampling" if subject.model is not None else "reading"
    collected = collect(images, extractor, what=doing, moments="frechet" in wanted, show=how.show)
    notes = [extractor.note] if extractor.note else []
    if text := conversion(collected.channels, extractor.channels):
        notes.append(f"{text} for the extractor {extractor.name}")
    references: dict[int, Reference] = {}

    def reference(of: Images) -> Reference:
        if id(of) not in references:
            images = pixels_of(of, how.sampling.batch)
            references[id(of)] = first_alone(lambda: reference_of(images, extractor, show=how.show))
        return references[id(of)]

    compared = real is not None and {"frechet", *OF_FEATURES} & set(wanted)
    beside = reference(real) if real is not None and compared else None
    measures, more = compare(wanted, collected, beside, statistics, extractor.name, how.options.seed)
    notes += more
    if "memorization" in wanted and subject.training is not None:
        found, said = _memorization(images, collected, subject, reference(subject.training), how)
        measures |= found
        notes += said
    identity = {"name": extractor.name, **(extractor.settings or {})}
    settings = {**images.settings, "resolution": list(collected.resolution), "extractor": identity}
    return measures, settings, notes


def _memorization(
    images: Stream, collected: Collected, subject: Subject, of_training: Reference, how: SamplesOptions
) -> tuple[dict[str, Measure], Sequence[str]]:
    assert subject.training is not None
    training = pixels_of(subject.training, how.sampling.batch)
    near = find_copies(collected.small, collected.features, training, of_training.features)
    sections: list[tuple[str, Stream, CopyCheck]] = [("the images nearest to a training image", images, near)]
    if subject.held_out is not None:
        num = min(len(subject.held_out), len(collected.small))
        outside = stream_of_images(subject.held_out, num, seed=how.options.seed, batch=how.sampling.batch)
        seen = collect(outside, how.extractor, what="held-out images", moments=False, show=how.show)
        near_outside = find_copies(seen.small, seen.features, training, of_training.features)
        sections.append(("held-out images nearest to a training image", outside, near_outside))
    if how.options.pairs is not None:
        write_pairs(how.options.pairs, training, of_training.places, sections)
    return rates(near, sections[1][2] if len(sections) > 1 else None, how.extractor.name, how.options.seed)


def _stream(subject: Subject, how: SamplesOptions) -> Stream:
    model, num, seed = subject.model, how.num, how.options.seed
    if model is None:
        assert subject.pictures is not None
        if num < 2:
            raise InputError(f"at least two images are needed, and {subject.name} has {num}")
        return stream_of_images(subject.pictures, num, seed=seed, batch=how.sampling.batch)
    labels = classes_like(subject.training, model, num, seed)
    seeds = range(seed * num, (seed + 1) * num)
    conditions = conditions_like(subject.training, model, num, seed)
    told: dict[str, Any] = {"labels": labels, "conditions": conditions, "sampling": how.sampling}
    stream = stream_of_model(model, seeds, paired=inputs_like(subject.training, model, num, seed), **told)
    settings = {**stream.settings}
    if model.num_classes:
        settings["classes"] = "seed mod classes" if labels is None else "as frequent as in the data"
    if model.columns:
        settings["conditions"] = "not given" if conditions is None else "as frequent as in the data"
    return replace(stream, settings=settings)


def classes_like(training: Images | None, model: Denoiser, num: int, seed: int) -> list[int] | None:
    """Return ``num`` labels drawn at random from the training images; None unless the model knows their classes."""
    known = None if training is None else numbered_as(training, model.class_names, model.num_classes)
    if known is None or not known.num_classes:
        return None
    labels = [bucket.labels_of(torch.arange(len(bucket)).numpy()) for bucket in known.buckets]
    every = torch.cat([each for each in labels if each is not None])
    chosen = torch.randint(len(every), (num,), generator=generator(seed, "classes of samples"))
    return every[chosen].tolist()


def conditions_like(training: Images | None, model: Denoiser, num: int, seed: int) -> list[dict[str, Any]] | None:
    """Return the conditions of ``num`` training images, those of `classes_like`; None unless the model is told any."""
    told = [] if training is None else [bucket.attributes for bucket in training.buckets]
    known = [each.known_as(model.columns) for each in told if each is not None]
    if not known or not model.columns:
        return None
    assert training is not None
    pairs = _like(training, num, seed)
    return [known[place].named(int(training.buckets[place].rows(index)[0])) for place, index in pairs]


def inputs_like(
    training: Images | None, model: Denoiser, num: int, seed: int
) -> list[tuple[torch.Tensor | None, ...]] | None:
    """Return the paired inputs of ``num`` training images, those of `classes_like`; None if the model takes none."""
    if training is None or not model.inputs or len(training.inputs) != len(model.inputs):
        return None
    found: list[tuple[torch.Tensor | None, ...]] = []
    for place, index in _like(training, num, seed):
        bucket = training.buckets[place]
        given = bucket.inputs_given(index)[0].tolist()
        pixels = [bucket.input_images(number).batch(index)[0][0] for number in range(len(bucket.paired))]
        found.append(tuple(each if there else None for each, there in zip(pixels, given, strict=True)))
    return found


def _like(training: Images, num: int, seed: int) -> list[tuple[int, NDArray[np.int64]]]:
    """Return the bucket of each of the images that `classes_like` draws, and its index there, as an array of one."""
    ends = np.cumsum([len(bucket) for bucket in training.buckets])
    chosen = torch.randint(int(ends[-1]), (num,), generator=generator(seed, "classes of samples")).numpy()
    which = np.searchsorted(ends, chosen, side="right").tolist()
    begins = (ends - [len(bucket) for bucket in training.buckets]).tolist()
    return [(place, np.array([row - begins[place]])) for place, row in zip(which, chosen.tolist(), strict=True)]


def pixels_of(images: Images, batch: int) -> Stream:
    """Return all images of a data set as a `Stream`; raise InputError if they are latents."""
    if not isinstance(images.codec, PixelCodec):
        raise InputError("samples are compared with images, and these are latents: give the images as --data DATA")
    return stream_of_images(images, batch=batch)
