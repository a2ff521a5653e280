"""Images that agree with what is known of them: inpainting, outpainting and restoration are one thing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice

import torch

from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.denoiser import Denoiser, evaluating
from patch_diffusion.errors import InputError
from patch_diffusion.sampling.bind import check_one_stage, noise_range, wide
from patch_diffusion.sampling.editing.image import pixel_codec
from patch_diffusion.sampling.editing.measurement import Measurement
from patch_diffusion.sampling.generate import Sample, jobs_of, noise_of
from patch_diffusion.sampling.guidance.guide import Guidance
from patch_diffusion.sampling.guidance.posterior import Covariance, posterior
from patch_diffusion.sampling.resampling import resampling
from patch_diffusion.sampling.schedules import karras_sigmas
from patch_diffusion.sampling.step import Callback, Denoise
from patch_diffusion.sampling.view import Coords, view_of

ITERATIONS = {"isotropic": 50, "network": 3}
"""Of conjugate gradients at most: for a covariance of the network each is a backward pass."""

REPEATS = {"isotropic": 4, "network": 1}
"""How often a step is taken, as measured: see LOG.md."""


def edit(
    model: Denoiser,
    known: Measurement,
    seeds: Iterable[int] = (0,),
    *,
    label: int | None = None,
    steps: int = 32,
    repeats: int | None = None,
    covariance: Covariance | None = None,
    guidance: float = 1.0,
    guide: str | Denoiser = "class",
    guidance_interval: tuple[float, float] | None = None,
    coords: Coords | None = None,
    tile: int | tuple[int, int] | None = None,
    overlap: int | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
    batch: int = 64,
    callback: Callback | None = None,
) -> Iterator[Sample]:
    """Sample images that agree with what is known, one per seed, batch by batch as they are asked for.

    What a mask leaves is kept exactly, pixel by pixel. A seed gives the same picture in any batch.

    Args:
        model: from `load`, or any `Denoiser` of pixels.
        known: what is known of the image, from `inpainting`, `outpainting`, `super_resolution`, `deblurring`,
            `denoising`, or a `Measurement` by an operator of your own.
        seeds: integers of at least 0; each finds another image that agrees.
        label: class; None is no class, which models that have always seen one do not take.
        steps: noise levels; see `resampling`.
        repeats: how often each step is taken, so that what is filled in and what is known come together. None: 1 for
            "network", 4 for "isotropic".
        covariance: "isotropic" or "network", see `posterior`. None: "network" where pixels are known exactly, unless
            there are tiles, all of which it would keep in memory; "isotropic" elsewhere.
        guidance, guide, guidance_interval: as in `generate`.
        coords, tile, overlap: as in `generate`; of an extended image "extend" goes on with its own coordinates.
        sigma_min, sigma_max, rho: noise levels, see `karras_sigmas`; the model's own range where None.
        batch: images at a time.
        callback: called with every `Step` of every batch.

    Raises:
        InputError: at once, when settings do not suit the model or each other.

    >>> for sample in edit(model, inpainting(image, mask), seeds=range(4)):  # doctest: +SKIP
    ...     sample.save("pictures")
    """
    pixel_codec(model)
    check_one_stage(model)
    if known.shape[0] != (model.image_channels or known.shape[0]):
        raise InputError(f"this model has images of {model.image_channels} channels, not {known.shape[0]}")
    covariance = covariance or usual_covariance(exactly=known.kept is not None, tiled=tile is not None)
    if covariance not in ITERATIONS:
        raise InputError(f"covariance is isotropic or network, not '{covariance}'")
    repeats = REPEATS[covariance] if repeats is None else repeats
    if repeats < 1:
        raise InputError(f"every step is taken at least once, not {repeats} times")
    view = view_of(model, known.resolution, coords=coords, tile=tile, overlap=overlap, batch=batch, inside=known.inside)
    sigmas = karras_sigmas(steps, *noise_range(model, sigma_min, sigma_max), rho)
    guiding = Guidance(guidance, guide, guidance_interval)
    guiding.check(model, view, sigmas)
    chosen = [seed for seed, _ in jobs_of(model, seeds, label)]
    if label is None and model.num_classes and not model.label_dropout:
        raise InputError("this model has learned images of a class only: say which this image is of")
    if label is None and guidance != 1 and guide == "class":
        raise InputError("guidance by the class needs one: say which this image is of, or choose another guide")
    settings = {
        **known.settings,
        "steps": steps,
        "repeats": repeats,
        "covariance": covariance,
        "rho": rho,
        **guiding.settings,
        **view.settings,
        "sigma_min": float(sigmas[-2]),
        "sigma_max": float(sigmas[0]),
    }

    def run() -> Iterator[Sample]:
        levels = sigmas.to(wide(model.device))
        waiting = iter(chosen)
        while now := list(islice(waiting, view.images_at_once)):
            noise = partial(noise_of, now, known.shape, model.device)
            labels = None if label is None else torch.full((len(now),), label, device=model.device)
            denoise = guiding.around(model, view, Conditions(labels=labels), now, levels)
            with evaluating(model), guiding.evaluating(), torch.no_grad():
                towards = _towards(denoise, model, known, covariance)
                images = resampling(
                    towards, noise(None) * levels[0], levels, noise=noise, callback=callback, repeats=repeats
                )
                pixels, shown = model.codec.decode_with_range(images)
            for seed, picture in zip(now, pixels.cpu(), strict=True):
                if known.kept is not None:
                    original, where = known.kept
                    picture = torch.where(where.cpu(), original.cpu(), picture)
                yield Sample(picture, seed, label, settings, shown)

    return run()


def usual_covariance(*, exactly: bool, tiled: bool) -> Covariance:
    """What is taken where none is asked for, of images whose known pixels are known exactly, and of tiles."""
    return "network" if exactly and not tiled else "isotropic"


def _towards(denoise: Denoise, model: Denoiser, known: Measurement, covariance: Covariance) -> Denoise:
    """In the values of the data, whose operator it is: A (half x + middle), of which A half is linear in x."""
    low, high = pixel_codec(model).range
    half, middle = (high - low) / 2, (high + low) / 2
    values = known.values.to(model.device)
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
