"""Sampling of whole images: each evaluation of the denoiser sees the whole image, with the whole coordinate grid.

A model with a context samples twice: first the small copy of an image, and then the image itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import compress, islice, repeat
from pathlib import Path
from typing import Annotated as Float, Annotated as Shaped, Annotated as UInt8, Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from patch_diffusion.data.attributes import vectors_of, wanted_of
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.denoiser import Denoiser, evaluating
from patch_diffusion.denoise.threads import Shared, sharing
from patch_diffusion.deprecation import takes_old_keywords
from patch_diffusion.errors import InputError, Note, NotFiniteError, checked_seeds, whole_number
from patch_diffusion.sampling.classes import CLASS, class_place, no_place
from patch_diffusion.sampling.guidance.guide import check_guidance, guided
from patch_diffusion.sampling.inputs import Inputs, inputs_of, shown
from patch_diffusion.sampling.options import Sampling, View
from patch_diffusion.sampling.pictures import to_image, visible, write_pixels
from patch_diffusion.sampling.solvers import wide
from patch_diffusion.sampling.step import Callback, ConditionalDenoise
from patch_diffusion.streams import TORCH_SEEDS, generator
from patch_diffusion.transfer import to_device


class Job(NamedTuple):
    """An image that is asked for: its seed, its class or None, its conditions by name, and its paired inputs."""

    seed: int
    label: int | None
    conditions: Mapping[str, Any] = {}
    paired: Inputs | None = None


@dataclass(frozen=True)
class Sample:
    """A generated image: ``pixels``, the ``seed`` it comes from, its class, and the settings.

    The pixels have the dtype of the training images, uint8 for ordinary pictures; they are latents if there is no
    autoencoder to decode them. ``range`` are the values to display as black and white, ``conditions`` what the image
    was asked to be, by name. ``name`` is that of its file without the ending, if it was made from an input picture.

    >>> sample = Sample(torch.zeros(3, 24, 32, dtype=torch.uint8), seed=7, label=None, settings={})
    >>> sample.image.size, sample.save("pictures").name
    ((32, 24), '000007.png')
    """

    pixels: Shaped[Tensor, "c h w"]
    seed: int
    label: int | None
    settings: dict[str, Any]
    range: tuple[float, float] = (0, 255)
    conditions: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    @property
    def told(self) -> dict[str, Any]:
        """The conditions as a part of a record of the sample, if there are any."""
        return {"conditions": dict(self.conditions)} if self.conditions else {}

    @property
    def visible(self) -> UInt8[Tensor, "c h w"]:
        """The pixels for display, see `visible`."""
        return visible(self.pixels, *self.range)

    @property
    def image(self) -> Image.Image:
        """The image for display, as a Pillow image."""
        return to_image(self.visible)

    def save(self, folder: str | Path, told: Mapping[str, Any] | None = None) -> Path:
        """Write ``folder/000000.png``, by its name or the seed, or ``.npy`` if a PNG cannot hold it; return the path.

        A PNG carries ``told`` as its metadata; None: seed, class and settings.
        """
        usual = {"seed": self.seed, "class": self.label, **self.told, "settings": self.settings}
        return write_pixels(
            self.pixels, Path(folder) / (self.name or f"{self.seed:06d}"), usual if told is None else told
        )


@takes_old_keywords(sampling=Sampling)
def generate(
    model: Denoiser,
    seeds: Iterable[int],
    sampling: Sampling | None = None,
    *,
    steps: int | None = None,
    labels: int | Iterable[int] | None = None,
    conditions: Mapping[str, Any] | None = None,
    paired: Any = None,
    callback: Callback | None = None,
) -> Iterator[Sample]:
    """Sample whole images, one per seed, batch by batch as they are asked for.

    A seed's noise, at every step, is drawn on the CPU by its own generator: it gives the same picture in any batch.

    Args:
        model: from `load`, or any `Denoiser`.
        seeds: integers from 0 to 2^63 - 1.
        sampling: the options, see `Sampling`; None: their defaults.
        steps: solver steps, in short for an option of ``sampling``; 18 if neither gives them, or what
            the model is tuned for.
        labels: a class for all, or one per seed: places in the model's ``class_names``, which are counted from 0. None:
            seed k gets class k mod classes if the model has classes.
        conditions: values by the names of the model's conditions, each for all images or a list of one per seed:
            numbers, names of categories, vectors; ``class`` is a class by its name or place. Others are not given.
        paired: an input picture for all images of a model of pairs, or a list of one per seed, see `inputs_of`. None:
            images are made without.
        callback: called with every `Step` of every batch, for a look at the picture as it forms; it is not called with
            the steps that make the small copy.

    Raises:
        InputError: at once, if options do not suit the model or each other.
        NotFiniteError: after the other samples of a batch, if some of its images hold NaN or infinity.

    >>> samples = generate(load("runs/digits"), seeds=range(2), steps=2, labels=7)
    >>> [tuple(sample.pixels.shape) for sample in samples]
    [(1, 16, 16), (1, 16, 16)]
    """
    sampling = (sampling or Sampling()).settled(model, steps)
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
    seeds = seeds if paired is None else list(seeds)
    jobs = jobs_of(model, seeds, labels, conditions)
    if paired is not None:
        given = inputs_of(model, paired, list(seeds), view.resolution)
        jobs = (job._replace(paired=each) for job, each in zip(jobs, given, strict=True))
    if is_guided and sampling.guide == "class" and not (model.num_classes or conditions or paired is not None):
        raise InputError("guidance by conditions needs some: give them, or choose another guide", option="guidance")
    device, centre, columns = model.device, model.centre, model.columns
    levels = sigmas.to(wide(device))  # on the CPU: a solver that looks at one need not wait for the device

    def solved(
        model: ConditionalDenoise, view: View, name: str, seeds: Sequence[int], conditions: Conditions, callback: Any
    ) -> Tensor:
        noise = partial(noise_of, seeds, (channels, *view.resolution), device, name=name)
        denoise = view.bind(model, conditions)
        if is_guided:
            denoise = guided(sampling, model, view, conditions, seeds, levels, columns)
        start = noise(None) * levels[0]
        return solve(denoise, start + centre(start), levels, noise=noise, callback=callback)

    def run() -> Iterator[Sample]:
        waiting = iter(jobs)
        while now := list(islice(waiting, view.images_at_once)):
            chosen = [job.seed for job in now]
            conditions = conditions_of(model, now)
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
            for job, picture in zip(made, pixels.cpu(), strict=True):
                name = "" if job.paired is None else job.paired.name
                yield Sample(picture, job.seed, job.label, settings, shown, job.conditions, name)
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
        finite, broken = error.finite, NotFiniteError.of(error.finite, [f"seed {job.seed}" for job in jobs])
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


def conditions_of(model: Denoiser, jobs: Sequence[Job]) -> Conditions:
    """Return the conditions of the images of some jobs, on the model's device."""
    labels, wanted = [job.label for job in jobs], [job.conditions for job in jobs]
    queued = model.device.type == "cuda"
    found = Conditions(labels=None if None in labels else torch.tensor(labels).to(model.device, non_blocking=queued))
    if any(wanted):
        found = replace(found, attributes=to_device(vectors_of(model.columns, wanted), model.device))
    if paired := [job.paired for job in jobs if job.paired is not None]:
        inputs, around = shown(model.inputs, paired, model.device)
        found = replace(found, inputs=inputs, around=around)
    return found


def jobs_of(
    model: Denoiser,
    seeds: Iterable[int],
    labels: int | Iterable[int] | None = None,
    conditions: Mapping[str, Any] | None = None,
) -> Iterable[Job]:
    """Return jobs, one per image and without writing out a range of seeds, or raise an InputError at once."""
    chosen = checked_seeds(seeds)
    if not conditions:
        return map(Job, chosen, _labels(model, chosen, labels))
    conditions = dict(conditions)
    if CLASS in conditions and CLASS not in [column.name for column in model.columns]:
        if labels is not None:
            raise InputError("a class is given twice, as a condition and by itself: leave one out")
        labels = _places_of(conditions.pop(CLASS), model)
    wanted, notes = wanted_of(model.columns, conditions, len(chosen))
    for note in notes:
        warnings.warn(note, Note, stacklevel=3)
    return map(Job, chosen, _labels(model, chosen, labels), wanted)


def _places_of(wanted: Any, model: Denoiser) -> int | list[int]:
    """Return the place of a class, or of one per image, given by its name or place."""
    if isinstance(wanted, list | tuple):
        return [class_place(each, model.class_names, model.num_classes)[0] for each in wanted]
    return class_place(wanted, model.class_names, model.num_classes)[0]


def _labels(model: Denoiser, chosen: Sequence[int], labels: int | Iterable[int] | None) -> Iterable[int | None]:
    """Return the class of each image, or None, or raise an InputError."""
    classes = model.num_classes
    if labels is None:
        return (seed % classes for seed in chosen) if classes else repeat(None)
    if not classes:
        raise InputError("this model was trained without classes, so its images have none")
    given = [whole_number("a class", label) for label in (labels if isinstance(labels, Iterable) else [labels])]
    for label in given:
        if not 0 <= label < classes:
            raise InputError(no_place(label, model.class_names, classes))
    if not isinstance(labels, Iterable):
        return repeat(given[0])
    if len(given) != len(chosen):
        raise InputError(f"{len(chosen)} images need as many labels, not {len(given)}")
    return given
