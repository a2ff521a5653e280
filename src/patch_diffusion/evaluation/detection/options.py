"""The options of detection, for Python and the command line. No heavy library is imported here, so --help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from patch_diffusion.errors import InputError, finite_number, option_error, whole_number
from patch_diffusion.limits import LARGEST

FALSE_ALARMS = 0.01
"""The share of ordinary images with an alarm by default, if there are enough ordinary images to know it."""

_MOST_LEVELS, _MOST_NOISES = 16, 256


@dataclass(frozen=True)
class DetectionOptions:
    """The options of `detect`: the rate of false alarms, noise levels, noises, smoothing, tiles and device.

    >>> DetectionOptions(false_alarms=0.05).noises
    4
    """

    false_alarms: Annotated[float | None, arg(metavar="0.01")] = None
    """Share of ordinary images for which an alarm is accepted, above 0 and below 1. A rate of 0.01 needs 99 ordinary
    images. Default: 0.01, or the lowest rate that the number of ordinary images allows."""
    levels: Annotated[tuple[float, ...] | None, arg(metavar="SIGMA ...")] = None
    """Noise levels at which the images are denoised. Default: 0.2, 0.5, 1.2 and 3 times the standard deviation of the
    training images."""
    noises: int = 4
    """Number of noises at each level: an even number, as each noise is used with both signs."""
    smoothing: Annotated[tuple[float, ...], arg(metavar="PIXELS ...")] = (1.0, 4.0)
    """Standard deviations of the Gaussians that smooth the errors, in pixels; the map is the mean over them."""
    tiles: bool = False
    """Look at each image at its own size, in overlapping tiles of the size of the training images. Each tile has the
    coordinates of a whole image. Without it, images are cropped and resized as in training."""
    seed: int = 0
    """Seed of the noise, which is the same for every image."""
    batch: int = 32
    """Number of images, or of tiles, to denoise at a time."""
    ema_length: Annotated[float | None, arg(metavar="0.1")] = None
    """Length of the weight average to use, as a share of the training, such as 0.1. It needs a run that was trained
    with --ema.lengths. Default: the average that every run has."""
    device: str = "auto"
    """Device to use: auto, cpu, cuda, cuda:1 or mps. auto: a GPU if there is one."""

    def check(self) -> None:
        """Raise an `InputError` if an option cannot be right."""
        rate = self.false_alarms
        if rate is not None and not 0 < finite_number("false_alarms", rate) < 1:
            raise option_error("false_alarms", f"is a share of the ordinary images above 0 and below 1, not {rate}")
        for name, values, most in (("levels", self.levels, 1e6), ("smoothing", self.smoothing, 1e4)):
            if values is None:
                continue
            if not 0 < len(values) <= _MOST_LEVELS:
                raise option_error(name, f"are 1 to {_MOST_LEVELS} numbers, not {len(values)}")
            if not all(0 < finite_number(name, value) <= most for value in values):
                raise option_error(name, f"are numbers above 0 and up to {most:g}, not {list(values)}")
        noises = whole_number("noises", self.noises)
        if noises % 2 or not 0 < noises <= _MOST_NOISES:
            raise option_error("noises", f"is an even number from 2 to {_MOST_NOISES}, not {noises}")
        if not 0 <= whole_number("seed", self.seed) < LARGEST:
            raise InputError(f"seed is a whole number from 0 on, not {self.seed}", option="seed")
        if whole_number("batch", self.batch) < 1:
            raise InputError(f"a batch has at least 1 image, not {self.batch}", option="batch")
