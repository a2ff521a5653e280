"""Sampling of whole images: each evaluation of the denoiser sees the whole image, with the whole coordinate grid.

A model with a context samples twice: first the small copy of an image, and then the image itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress, islice
from pathlib import Path
from typing import Annotated as Float, Annotated as Shaped, Annotated as UInt8, Any

import torch
from PIL import Image
from torch import Tensor

from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.denoiser import Denoiser, evaluating
from patch_diffusion.denoise.threads import Shared, sharing
from patch_diffusion.deprecation import takes_old_keywords
from patch_diffusion.errors import InputError, NotFiniteError, checked_seeds, whole_number
from patch_diffusion.sampling.classes import no_place
from patch_diffusion.sampling.guidance.guide import check_guidance, guided
from patch_diffusion.sampling.options import Sampling, View
from patch_diffusion.sampling.pictures import to_image, visible, write_pixels
from patch_diffusion.sampling.solvers import wide
from patch_diffusion.sampling.step import Callback, ConditionalDenoise
from patch_diffusion.streams import TORCH_SEEDS, generator

Job = tuple[int, int | None]
"""The seed of an image, and its class or None."""


@dataclass(frozen=True)
class Sample:
    """A generated image: ``pixels``, the ``seed`` it comes from, its class, and the settings.

    The pixels have the dtype of the training images, uint8 for ordinary pictures; they are latents if there is no
    autoencoder to decode them. ``range`` are the values to display as black and white.

    >>> sample = Sample(torch.zeros(3, 24, 32, dtype=torch.uint8), seed=7, label=None, settings={})
    >>> sample.image.size, sample.save("pictures").name
    ((32, 24), '000007.png')
    """

    pixels: Shaped[Tensor, "c h w"]
    seed: int
    label: int | None
    settings: dict[str, Any]
    range: tuple[float, float] = (0, 255)

    @property
    def visible(self) -> UInt8[Tensor, "c h w"]:
        """The pixels for display, see `visible`."""
        return visible(self.pixels, *self.range)

    @property
    def image(self) -> Image.Image:
        """The image for display, as a Pillow image."""
        return to_image(self.visible)

    def save(self, folder: str | Path, told: Mapping[str, Any] | None = None) -> Path:
        """Write ``folder/000000.png``, named by the seed, or ``.npy`` if a PNG cannot hold it; return the path.

        A PNG carries ``told`` as its metadata; None: seed, class and settings.
        """
        usual = {"seed": self.seed, "class": self.label, "settings": self.settings}
        return write_pixels(self.pixels, Path(folder) / f"{self.seed:06d}", usual if told is None else told)


@takes_old_keywords(sampling=Sampling)
def generate(
    model: Denoiser,
    seeds: Iterable[int],
    sampling: Sampling | None = None,
    *,
    steps: int | None = None,
    labels: int | Iterable[int] | None = None,
    callback: Callback | None = None,
) -> Iterator[Sample]:
    """Sample whole images, one per seed, batch by batch as they are asked for.

    A seed's noise, at every step, is drawn on the CPU by its own generator: it gives the same picture in any batch.

    Args:
        model: from `load`, or any `Denoiser`.
        seeds: integers from 0 to 2^63 - 1.
        sampling: the options, see `Sampling`; None: their defaults.
        steps: solver steps, in short for an option of ``sampling``; 18 if neither gives them.
        labels: a class for all, or one per seed: places in the model's ``class_names``, which are counted from 0. None:
            seed k gets class k mod classes if the model has classes.
        callback: called with every `Step` of every batch, for a look at the picture as it forms; it is not called with
            the steps that make the small copy.

    Raises:
        InputError: at once, if options do not suit the model or each other.
        NotFiniteError: after the other samples of a batch, if some of its images hold NaN or infinity.

    >>> samples = generate(load("runs/digits"), seeds=range(2), steps=2, labels=7)
    >>> [tuple(sample.pixels.shape) for sample in samples]
    [(1, 16, 16), (1, 16, 16)]
    """
    sampling = (sampling or Sampling()).with_steps(steps, usual=18)
    if sampling.compile:
        model, sampling = sampling.compiled(model)
    view, sigmas = sampling.view(model), sampling.sigmas(model)
    solve = sampling.solver_for(model, sigmas)
    channels = model.image_channels
    if channels is None:
        raise InputError("the network does not say how many channels its images have: set its attribute image_channels")
    if is_guided := sampling.is_guided():
        check_guidance(sampling, model, view, sigmas)
    weaker = model if isinstance(sampling.guide, str) else sampling.guide
    settings = sampling.settings(model, view, sigmas)
    jobs = jobs_of(model, seeds, labels)
    device, centre, queued = model.device, model.centre, model.device.type == "cuda"
    levels = sigmas.to(wide(device))  # on the CPU: a solver that looks at one need not wait for the device

    def solved(
        model: ConditionalDenoise, view: View, name: str, seeds: Sequence[int], conditions: Conditions, callback: Any
    ) -> Tensor:
        noise = partial(noise_of, seeds, (channels, *view.resolution), device, name=name)
        denoise = view.bind(model, conditions)
        if is_guided:
            denoise = guided(sampling, model, view, conditions, seeds, levels)
        start = noise(None) * levels[0]
        return solve(denoise, start + centre(start), levels, noise=noise, callback=callback)

    def run() -> Iterator[Sample]:
        waiting = iter(jobs)
        while now := list(islice(waiting, view.images_at_once)):
            chosen, classes = zip(*now, strict=True)
            numbers = None if classes[0] is None else torch.tensor(classes).to(device, non_blocking=queued)
            conditions = Conditions(labels=numbers)
            # torch divides the work on a single image among all threads by itself.
            alone = len(now) == 1 and view.tile is None and not is_guided
            threads = nullcontext() if alone else sharing(model)
            called = sampling.called(model if alone else Shared(model))
            with evaluating(model), evaluating(weaker), threads, torch.inference_mode():
                # Small copies by themselves have the noise of those that larger images of the same seeds begin with.
                name = "sampling" if model.context is None or view.small else "small images"
                if view.small:
                    thumbnail = solved(called, view.small, "small images", chosen, conditions, None).float()
                    conditions = replace(conditions, thumbnail=thumbnail)
                images = solved(called, view, name, chosen, conditions, callback)
                made, pixels, shown, broken = decoded(model, images, now)
            for (seed, label), picture in zip(made, pixels.cpu(), strict=True):
                yield Sample(picture, seed, label, settings, shown)
            if broken is not None:
                raise broken

    return run()


def decoded(
    model: Denoiser, images: Tensor, jobs: Sequence[Job]
) -> tuple[Sequence[Job], Tensor, tuple[float, float], NotFiniteError | None]:
    """Decode images; return those jobs whose images are finite, their pixels and range, and an error for the others."""
    try:
        return jobs, *model.codec.decode_with_range(images), None
    except NotFiniteError as error:
        finite, broken = error.finite, NotFiniteError.of(error.finite, [f"seed {seed}" for seed, _ in jobs])
    if not any(finite):
        raise broken
    return list(compress(jobs, finite)), *model.codec.decode_with_range(images[torch.tensor(finite)]), broken


def noise_of(
    seeds: Sequence[int], shape: tuple[int, ...], device: torch.device, index: int | None, *, name: str = "sampling"
) -> Float[Tensor, "{len(seeds)} *shape"]:
    """Draw standard normal numbers for a step, or for the start if None, each image's from its own seed."""

    def draws(seed: int) -> torch.Generator:
        if index is None and name == "sampling" and seed < TORCH_SEEDS:
            return torch.Generator().manual_seed(seed)
        return generator(seed, name, *([] if index is None else [index]))

    drawn = torch.empty(len(seeds), *shape, dtype=torch.float64, pin_memory=device.type == "cuda")
    for seed, numbers in zip(seeds, drawn, strict=True):
        torch.randn(shape, generator=draws(seed), dtype=torch.float64, out=numbers)
    return drawn.to(device, wide(device), non_blocking=device.type == "cuda")


def jobs_of(model: Denoiser, seeds: Iterable[int], labels: int | Iterable[int] | None) -> Iterable[Job]:
    """Return jobs, one per image and without writing out a range of seeds, or raise an InputError at once."""
    chosen = checked_seeds(seeds)
    classes = model.num_classes
    if labels is None:
        return ((seed, seed % classes if classes else None) for seed in chosen)
    if not classes:
        raise InputError("this model was trained without classes, so its images have none")
    given = [whole_number("a class", label) for label in (labels if isinstance(labels, Iterable) else [labels])]
    for label in given:
        if not 0 <= label < classes:
            raise InputError(no_place(label, model.class_names, classes))
    if not isinstance(labels, Iterable):
        return ((seed, given[0]) for seed in chosen)
    if len(given) != len(chosen):
        raise InputError(f"{len(chosen)} images need as many labels, not {len(given)}")
    return zip(chosen, given, strict=True)
