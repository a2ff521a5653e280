"""Conditional sampling: images that agree with a measurement, for inpainting, outpainting and restoration alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch

from patch_diffusion.denoise.denoiser import Denoiser, evaluating
from patch_diffusion.deprecation import takes_old_keywords
from patch_diffusion.errors import InputError, whole_number
from patch_diffusion.sampling.bind import check_denoiser, check_one_stage
from patch_diffusion.sampling.classes import CLASS
from patch_diffusion.sampling.editing.image import pixel_codec
from patch_diffusion.sampling.editing.measurement import Measurement
from patch_diffusion.sampling.generate import Sample, conditions_of, decoded, jobs_of, noise_of
from patch_diffusion.sampling.guidance.guide import check_guidance, guided
from patch_diffusion.sampling.guidance.posterior import Covariance, posterior
from patch_diffusion.sampling.options import Sampling
from patch_diffusion.sampling.resampling import resampling
from patch_diffusion.sampling.solvers import wide
from patch_diffusion.sampling.step import Callback, Denoise
from patch_diffusion.transfer import to_device

ITERATIONS = {"isotropic": 50, "network": 3}
"""The most iterations of conjugate gradients; with the network's covariance each is a backward pass."""

REPEATS = {"isotropic": 4, "network": 1}
"""How often each step is taken by default, as measured in LOG.md."""

OWN_SOLVER = ("solver", "schedule", "shift", "churn", "churn_min", "churn_max", "churn_noise", "eta")
"""The options of sampling that `edit` refuses, as it has a solver and a schedule of its own."""


@takes_old_keywords(sampling=Sampling)
def edit(
    model: Denoiser,
    known: Measurement,
    seeds: Iterable[int] = (0,),
    sampling: Sampling | None = None,
    *,
    label: int | None = None,
    conditions: Mapping[str, Any] | None = None,
    repeats: int | None = None,
    covariance: Covariance | None = None,
    callback: Callback | None = None,
) -> Iterator[Sample]:
    """Sample images that agree with a measurement, one per seed, batch by batch as they are asked for.

    Pixels outside of a mask are kept exactly. A seed gives the same picture in any batch.

    Args:
        model: from `load`, or any `Denoiser` of pixels.
        known: what is known of the image, from `inpainting`, `outpainting`, `super_resolution`, `deblurring`,
            `denoising`, or a `Measurement` by an operator of your own.
        seeds: integers from 0 to 2^63 - 1; each finds another image that agrees.
        sampling: the options, see `Sampling`: 32 steps if they give no number; solver, schedule and resolution are
            fixed here. For an extended image the coordinates "extend" continue those of the image.
        label: class; None is no class, which a model that was always given one refuses.
        conditions: values by the names of the model's conditions, as for `generate`.
        repeats: how often each step is taken, so that the filled pixels and the known ones come together. None: 1 for
            "network", 4 for "isotropic".
        covariance: "isotropic" or "network", see `posterior`. None: "network" if pixels are known exactly and there are
            no tiles, which it computes again in every backward pass to keep few in memory; else "isotropic".
        callback: called with every `Step` of every batch.

    Raises:
        InputError: at once, if options do not suit the model or each other.
        NotFiniteError: after the other samples of a batch, if some of its images hold NaN or infinity.

    >>> for sample in edit(model, inpainting(image, mask), seeds=range(4)):  # doctest: +SKIP
    ...     sample.save("pictures")
    """
    check_denoiser(model)
    sampling = sampling or Sampling()
    sampling.refuse(OWN_SOLVER, "edit has a solver and a schedule of its own")
    sampling.refuse(["resolution"], "an edited image has the resolution that follows from the image")
    sampling = sampling.settled(model, usual=32)
    if sampling.compile:
        model, sampling = sampling.compiled(model)
    pixel_codec(model)
    check_one_stage(model)
    if known.shape[0] != (model.image_channels or known.shape[0]):
        raise InputError(f"this model has images of {model.image_channels} channels, not {known.shape[0]}")
    covariance = covariance or usual_covariance(exactly=known.kept is not None, tiled=sampling.tile is not None)
    if covariance not in ITERATIONS:
        raise InputError(f"covariance is isotropic or network, not '{covariance}'")
    repeats = REPEATS[covariance] if repeats is None else repeats
    if whole_number("repeats", repeats) < 1:
        raise InputError(f"every step is taken at least once, not {repeats} times")
    view = replace(sampling, resolution=known.resolution).view(model, known.inside)
    sigmas = sampling.sigmas(model)
    if is_guided := sampling.is_guided():
        check_guidance(sampling, model, view, sigmas)
    jobs = iter(jobs_of(model, seeds, label, conditions))
    has_class = label is not None or CLASS in (conditions or {})
    if not has_class:
        jobs = (job._replace(label=None) for job in jobs)
    if not has_class and model.num_classes and not model.label_dropout:
        raise InputError("this model has learned images of a class only: say which this image is of")
    if label is None and not conditions and is_guided and sampling.guide == "class":
        raise InputError("guidance by the class needs one: say which this image is of, or choose another guide")
    weaker = model if isinstance(sampling.guide, str) else sampling.guide
    told = sampling.settings(model, view, sigmas)
    own = {"steps": told.pop("steps"), "repeats": repeats, "covariance": covariance}
    settings = {**known.settings, **own, **{name: told[name] for name in told if name not in OWN_SOLVER}}

    def run() -> Iterator[Sample]:
        levels = sigmas.to(wide(model.device))
        while now := list(islice(jobs, view.images_at_once)):
            chosen = [job.seed for job in now]
            noise = partial(noise_of, chosen, known.shape, model.device)
            conditions = conditions_of(model, now)
            called = sampling.called(model)
            denoise = view.bind(called, conditions)
            if is_guided:
                denoise = guided(sampling, called, view, conditions, chosen, levels, model.columns)
            with evaluating(model), evaluating(weaker), torch.no_grad():
                towards = _towards(denoise, model, known, covariance)
                start = noise(None) * levels[0]
                start = start + model.centre(start)
                images = resampling(towards, start, levels, noise=noise, callback=callback, repeats=repeats)
                made, pixels, shown, broken = decoded(model, images, now)
            for job, picture in zip(made, pixels.cpu(), strict=True):
                if known.kept is not None:
                    original, where = known.kept
                    picture = torch.where(where.cpu(), original.cpu(), picture)
                yield Sample(picture, job.seed, job.label, settings, shown, job.conditions)
            if broken is not None:
                raise broken

    return run()


def usual_covariance(*, exactly: bool, tiled: bool) -> Covariance:
    """Return the default covariance of edits: "network" if pixels are known exactly without tiles, else "isotropic"."""
    return "network" if exactly and not tiled else "isotropic"


def _towards(denoise: Denoise, model: Denoiser, known: Measurement, covariance: Covariance) -> Denoise:
    """Return a denoise function that leads to the measurement; its operator A takes data values, half x + middle."""
    low, high = pixel_codec(model).range
    half, middle = (high - low) / 2, (high + low) / 2
    values = to_device(known.values, model.device)
    return posterior(
        denoise,
        lambda images: values - known.operator(images * half + middle),
        lambda images: known.operator(images * half),
        lambda found: known.transposed(found) * half,
        noise=known.noise,
        sigma_data=model.sigma_data,
        covariance=covariance,
        iterations=ITERATIONS[covariance],
    )
