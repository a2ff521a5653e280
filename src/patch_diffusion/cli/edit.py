"""The command ``patch-diffusion edit``: fill in, extend or restore an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, Suppress, arg

import patch_diffusion
from patch_diffusion.cli.choosing import (
    check_guide,
    check_places,
    class_number,
    open_guide,
    pictures_in,
    read_from,
    write_shown,
)
from patch_diffusion.cli.conditions import parse_conditions
from patch_diffusion.cli.making import Making
from patch_diffusion.cli.parsing import parse_seeds, value_of
from patch_diffusion.cli.say import say
from patch_diffusion.cli.verb import FilePath, Json, ModelPath, Seeds, Verb
from patch_diffusion.errors import InputError, decimal, option_error
from patch_diffusion.files import user_path
from patch_diffusion.sampling.editing.options import Task
from patch_diffusion.sampling.guides import named
from patch_diffusion.sampling.options import Sampling

_LARGE = 4  # times as many pixels as in training, above which there is a note


@dataclass(frozen=True)
class _Sampling(Sampling):
    """The options of sampling, without help on those that `edit` refuses."""

    solver: Suppress[str | None] = None
    schedule: Suppress[str | None] = None
    shift: Suppress[float | None] = None
    churn: Suppress[float | None] = None
    churn_min: Suppress[float | None] = None
    churn_max: Suppress[float | None] = None
    churn_noise: Suppress[float | None] = None
    eta: Suppress[float | None] = None
    resolution: Suppress[int | tuple[int, int] | None] = None


@dataclass(frozen=True)
class Edit(Verb):
    """Fill in, extend or restore an image with the model of a run.

    patch-diffusion edit runs/cats cat.png --mask mask.png --seeds 0-7 --out new

    patch-diffusion edit runs/cats cat.png --extend left=32 --out new

    patch-diffusion edit runs/cats cat.png --restore super-resolution --out new
    """

    source: Annotated[Positional[ModelPath], arg(metavar="RUN")]
    """The run folder, or one of its checkpoints."""
    image: Annotated[Positional[FilePath], arg(metavar="IMAGE")]
    """The image: a picture or an .npy array, with the channels and value range of the training images."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder for the results (000000.png, ...) and samples.json."""
    mask: Annotated[FilePath | None, arg(metavar="FILE")] = None
    """Mask of the part to fill in: white in a picture, or not 0 in an .npy array. All other pixels are kept exactly."""
    extend: Annotated[tuple[str, ...] | None, arg(metavar="SIDE=PIXELS")] = None
    """Pixels to add at the sides of the image, as in left=32,top=8."""
    restore: Literal["super-resolution", "deblur", "denoise"] | None = None
    """Damage to undo."""
    factor: int | None = None
    """Enlargement by super-resolution, in each direction. Default: 2."""
    blur: float | None = None
    """Standard deviation of the blur to undo by deblur, in pixels."""
    noise: float | None = None
    """Standard deviation of the noise in the image to restore, on the scale of its values (0 to 255 for pictures);
    denoise needs it. Default: that of rounding."""
    seeds: Annotated[Seeds, arg(metavar="0-63")] = "0"
    """Seeds, one for each result, as in 0-7 or 3,5. Each gives another image that agrees with the known pixels."""
    label: Annotated[str | None, arg(name="class", metavar="K")] = None
    """Class of the images, by name or number (from 0). Default: no class."""
    condition: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE")] = ()
    """Conditions of the images by name, for a run that was trained with --data.conditions, as in age=40 colour=red."""
    sampling: Annotated[_Sampling, arg(name="")] = field(default_factory=_Sampling)
    repeats: int | None = None
    """Number of times that each step is taken; more make new and known parts agree better. Default: 1 for the
    covariance network, 4 for isotropic."""
    covariance: Literal["isotropic", "network"] | None = None
    """Estimate of how known pixels determine others. isotropic: not at all, which is quick. network: by the model, at
    about five times the work in each step. Default: network for --mask and --extend without --tile, else isotropic."""
    ema_length: Annotated[float | None, arg(metavar="0.1")] = None
    """Length of the weight average to use, as a share of the training, such as 0.1. It needs a run that was trained
    with --ema.lengths. Default: the average that every run has."""
    grid: Annotated[Path | None, arg(metavar="FILE.png")] = None
    """File for one picture of the first 100 results."""
    mean: bool = False
    """Also write mean.png, the mean of all results: closer to the truth than each of them, but less sharp."""
    device: str = "auto"
    """Device to use: auto, cpu, cuda, cuda:1 or mps. auto: a GPU if there is one."""
    json: Json = None
    """Print the result as JSON on stdout, or write it to a file."""

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Edit:
        """Parse the arguments of ``edit``, and refuse the options of sampling that have no effect here."""
        for name in _Sampling.__annotations__:
            if value_of(f"--{name.replace('_', '-')}", arguments) is not None:
                raise option_error(
                    name, "has no effect: edit has a solver and a schedule of its own, and the image's size"
                )
        return cls.parsed(arguments)

    def check_given(self) -> None:
        """Raise an `InputError` if an option cannot be right."""
        super().check_given()
        check_guide(str(self.sampling.guide))
        self._task().check()
        parse_conditions(self.condition)

    def run(self) -> dict[str, Any]:
        """Edit the image, write the results as pictures, and return their number and paths."""
        from patch_diffusion.runs.folder import step_in

        task, seeds = self._task(), parse_seeds(self.seeds)
        inputs = [self.image, self.mask, *read_from(self.source)]
        check_places(self.out, seeds, inputs, grid=self.grid, mean=self.mean)
        step = step_in(user_path(self.source))
        model = patch_diffusion.load(self.source, ema_length=self.ema_length, device=self.device)
        guide = open_guide(str(self.sampling.guide), self.source, device=self.device)
        image = patch_diffusion.read_image(self.image, model)
        mask = None if self.mask is None else patch_diffusion.read_mask(self.mask)
        if self.sampling.tile is None and (note := note_on_size(image.shape[1:], model.resolution)):
            say(note, aside=True)
        making = Making(len(seeds), self.sampling.steps or 32)
        samples = patch_diffusion.edit(
            model,
            task.known(model, image, mask),
            seeds,
            replace(self.sampling, guide=guide),
            label=class_number(self.label, model),
            conditions=parse_conditions(self.condition),
            repeats=self.repeats,
            covariance=self.covariance,
            callback=making.step,
        )
        told = {"image": str(self.image), "mask": None if self.mask is None else str(self.mask)}
        told = {name: value for name, value in told.items() if value is not None}
        samples = (replace(each, settings=told | each.settings) for each in named(samples, guide, self.sampling.guide))
        given = {"class_names": model.class_names, "source": str(self.source), "step": step}
        given |= {"ema_length": self.ema_length, "grid": self.grid, "mean": self.mean}
        return write_shown(samples, self.out, making, **given)

    def _task(self) -> Task:
        extend = None if self.extend is None else _sides(self.extend)
        if self.mask is None and not extend and self.restore is None:
            raise InputError(
                "say what to do with the image: --mask FILE fills in what is white there, --extend left=8 adds pixels "
                "at a side, --restore takes super-resolution, deblur or denoise"
            )
        return Task(self.mask is not None, extend, self.restore, self.factor, self.blur, self.noise)

    def message(self, result: dict[str, Any]) -> str:
        """Return the message at the end: the number of pictures and where they are."""
        mean = ", and their mean" if self.mean else ""
        return pictures_in(result["samples"], self.out) + mean + (f", and a grid in {self.grid}" if self.grid else "")

    def after_interrupt(self) -> str:
        """Return the text that follows "interrupted" in the message after Ctrl-C."""
        return f"; what was edited is in {self.out}" if self.out.exists() else ""


def note_on_size(shape: Sequence[int], trained: Sequence[int] | None) -> str:
    """Return a note on an image of far more pixels than those of training; an empty text for another.

    >>> note_on_size((32, 32), (16, 16))
    ''
    """
    if not trained or math.prod(shape) <= _LARGE * math.prod(trained):
        return ""
    given, learned = ("x".join(map(str, sides)) for sides in (shape, trained))
    return (
        f"the image is {given} and is edited at that size, but the model learned images of {learned}: the result is "
        f"often worse; scale the image down, or edit it in tiles (--tile {min(trained)})"
    )


def _sides(words: Sequence[str]) -> dict[str, int]:
    """Parse the words of --extend, such as ``left=32,top=8``, into pixels by side."""
    found: dict[str, int] = {}
    for part in ",".join(words).split(","):
        side, _, pixels = part.strip().partition("=")
        number = decimal(pixels)
        if number is None:
            raise InputError(f"--extend takes sides and pixels, as in left=32,top=8, not '{part}'")
        found[side] = found.get(side, 0) + number
    return found
