"""Sample quality during a training: metrics of `evaluate`, measured at intervals and written to the training log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from patch_diffusion.config import Watch
from patch_diffusion.data.images import Images
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError, did_you_mean, option_error
from patch_diffusion.evaluation.collect import Collected, collect
from patch_diffusion.evaluation.comparing import spaced_subset
from patch_diffusion.evaluation.distances import FrechetTo, KernelDistance, merged
from patch_diffusion.evaluation.extractors.choose import open_extractor
from patch_diffusion.evaluation.extractors.extractor import Extractor
from patch_diffusion.evaluation.memorization import CopyCheck, find_copies, rates
from patch_diffusion.evaluation.reference import Reference, reference_of
from patch_diffusion.evaluation.samples import classes_like, conditions_like, inputs_like, pixels_of
from patch_diffusion.evaluation.stream import Stream, stream_of_images, stream_of_model
from patch_diffusion.sampling.options import Sampling

Metric = Literal["frechet", "kernel", "memorization"]


@dataclass(frozen=True)
class MeterReading:
    """Metrics of samples at one step of a training: ``numbers`` by name, and a ``warning`` if samples are copies."""

    numbers: Mapping[str, float]
    warning: str = ""


class SampleMeter:
    """A callable that samples from a model while it is trained and compares the samples with the training images.

    Pass it to a `Trainer` as ``meter``; `train` makes one from the options ``watch``. The log then has, at even
    fractions of the budget, Frechet and kernel distance of the features, the shares of near copies of training images
    among samples and among held-out images, and a warning if samples become copies. All follow from the seed, so that
    a training that was stopped and continued logs the same numbers as one that was not.

    Args:
        metrics: the options ``watch`` of a config; or only names of metrics: "frechet", "kernel", "memorization".
        times, samples: how often to measure, and the number of samples; None: as in ``metrics``.
        extractor: the feature extractor, see `open_extractor`, or any callable; None: as in ``metrics``.
        seed: the seed that chooses the classes of samples and the held-out images.
        batch: the number of images processed at a time.

    Raises:
        InputError: a metric or the extractor is unknown, or ``times`` or ``samples`` is too small.

    >>> meter = SampleMeter(("frechet", "memorization"), samples=200)
    >>> meter.options.times
    5
    """

    def __init__(
        self,
        metrics: Watch | Sequence[Metric],
        *,
        times: int | None = None,
        samples: int | None = None,
        extractor: str | Path | Extractor | Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
        batch: int = 64,
    ) -> None:
        options = metrics if isinstance(metrics, Watch) else Watch(tuple(metrics))
        options = replace(options, metrics=tuple(dict.fromkeys(options.metrics)))
        given = {name: value for name, value in (("times", times), ("samples", samples)) if value is not None}
        extractor = options.extractor if extractor is None else extractor
        name = str(extractor) if isinstance(extractor, str | Path) else open_extractor(extractor).name
        self.options: Watch = replace(options, extractor=name, **given)
        for metric in self.options.metrics:
            if metric not in get_args(Metric):
                raise option_error("watch.metrics", f"has no '{metric}'{did_you_mean(metric, get_args(Metric))}")
        if not self.options.metrics:
            raise InputError(
                f"no metric was asked for: choose from {', '.join(get_args(Metric))}", option="watch.metrics"
            )
        if self.options.times < 1:
            raise option_error("watch.times", f"is at least 1, not {self.options.times}")
        if self.options.samples < 2:
            raise option_error("watch.samples", f"is at least 2, not {self.options.samples}")
        self._extractor, self._seed, self._batch = extractor, seed, batch
        if isinstance(extractor, str | Path):
            open_extractor(extractor)  # raises an error for a missing extractor now, not in the middle of a training
        self._beside: _Beside | None = None

    def begin(self, images: Images, held_out: Images | None, device: torch.device) -> None:
        """Compute features of training images, or read them from the cache, and find near copies in ``held_out``."""
        extractor = open_extractor(self._extractor, device=device)
        self._beside = _Beside.of(images, held_out, extractor, self.options, self._seed, self._batch)

    def __call__(self, model: Denoiser) -> MeterReading:
        """Sample images from a model and return their metrics as a `MeterReading`."""
        beside, options = self._beside, self.options
        if beside is None:
            raise InputError("a meter compares with images: call begin first, as a trainer does")
        num = options.samples
        labels = classes_like(beside.images, model, num, self._seed)
        told: dict[str, Any] = {"labels": labels, "conditions": conditions_like(beside.images, model, num, self._seed)}
        told["paired"] = inputs_like(beside.images, model, num, self._seed)
        stream = stream_of_model(model, range(num), **told, sampling=Sampling(batch=self._batch))
        found = collect(stream, beside.extractor, what="samples", moments=beside.frechet is not None)
        numbers: dict[str, float] = {}
        if beside.frechet is not None:
            numbers["frechet"] = beside.frechet(merged(found.moments))
        if "kernel" in options.metrics:
            numbers["kernel"] = KernelDistance([found.features], spaced_subset(beside.reference.features))()
        if "memorization" not in options.metrics:
            return MeterReading(numbers)
        measures, said = rates(beside.near(found), beside.held_out, beside.extractor.name, self._seed)
        shares = {name: found.value for name, found in measures.items() if name.startswith("near_copies")}
        return MeterReading(numbers | shares, "; ".join(said))


@dataclass(frozen=True)
class _Beside:
    """The training images that samples are compared with, and their features, computed once for a whole training."""

    images: Images
    extractor: Extractor
    stream: Stream
    reference: Reference
    frechet: FrechetTo | None
    held_out: CopyCheck | None

    @classmethod
    def of(
        cls, images: Images, held_out: Images | None, extractor: Extractor, options: Watch, seed: int, batch: int
    ) -> _Beside:
        stream = pixels_of(images, batch)
        reference = reference_of(stream, extractor)
        frechet = FrechetTo(reference.gaussian) if "frechet" in options.metrics else None
        found = cls(images, extractor, stream, reference, frechet, None)
        if held_out is None or "memorization" not in options.metrics:
            return found
        others = stream_of_images(held_out, min(len(held_out), options.samples), seed=seed, batch=batch)
        return replace(found, held_out=found.near(collect(others, extractor, what="held-out images", moments=False)))

    def near(self, found: Collected) -> CopyCheck:
        """Return the two nearest training images of each collected image."""
        return find_copies(found.small, found.features, self.stream, self.reference.features)
