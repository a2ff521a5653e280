"""The judging of a race: how often, by how many held-out images and by how many samples, decided once for all arms."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from patch_diffusion.data.images import Images
from patch_diffusion.denoise.whole_image import whole_image_loss
from patch_diffusion.training.budget import Cadence
from patch_diffusion.training.trainer import Trainer
from patch_diffusion.training.watching.evaluation import seconds_per_picture
from patch_diffusion.training.watching.thinning import Evaluation, Evaluations

JUDGES = 256
"""The maximum number of held-out images by whose loss the arms of a race are judged."""

FEWEST_JUDGES = 16
"""The fewest held-out images that arms are judged by where the time is short."""

_TIMED, _FEWEST_SAMPLES = 4, 64
_PLANNED = 0.8  # the part of the time of training that distances are planned for, since times vary


@dataclass(frozen=True)
class Judging:
    """The plan of a race's judging, which is the same for all arms and laps.

    Attributes:
        loss: when the loss of held-out images is measured, and of how many.
        distances: at which of these moments distances of samples are measured, and of how many; None: never.
    """

    loss: Evaluation
    distances: Evaluation | None = None

    def as_dict(self) -> dict[str, int]:
        """Return the plan as a dict that JSON can store."""
        found = {"images": self.loss.images, "stride": self.loss.moments.stride}
        if self.distances is None:
            return found
        return {**found, "samples": self.distances.images, "samples_stride": self.distances.moments.stride}

    def as_before(self, stored: Mapping[str, Any]) -> Judging:
        """Return the plan that a race began with, see `as_dict`; races of earlier versions left out no samples."""
        parts = self.loss.moments.parts
        loss = replace(self.loss, images=stored["images"], moments=Cadence(parts, stored.get("stride", 1)))
        if self.distances is None:
            return Judging(loss)
        often = Cadence(loss.moments.times, stored.get("samples_stride", 1))
        return Judging(
            loss, replace(self.distances, images=stored.get("samples", self.distances.images), moments=often)
        )

    def measures_samples(self, moment: int) -> bool:
        """Return True if distances of samples are measured at a moment of judging, by its number from 1."""
        times = self.loss.moments.times
        return self.distances is not None and self.distances.moments.is_due((moment - 1) / times, moment / times)


def judgement(trainer: Trainer, judges: Images, most: int = JUDGES) -> dict[float, float]:
    """Return the loss of a trainer's averaged model on whole held-out images, as a dict from noise level to loss."""
    return whole_image_loss(trainer.state.average.denoiser, judges, most=most)


def seconds_per_judge(trainer: Trainer, judges: Images) -> float:
    """Time the judgement of a trainer's model by a few images, and return the seconds that each takes."""
    judgement(trainer, judges, 1)
    began = time.monotonic()
    judgement(trainer, judges, _TIMED)
    return (time.monotonic() - began) / _TIMED


def seconds_per_sample(trainer: Trainer) -> float:
    """Time the network on a few samples, and return the seconds that each takes with the default sampling."""
    return seconds_per_picture(trainer.state.average.denoiser)


def judging(asked: int, images: int, minutes: float | None, seconds: float) -> tuple[Evaluation, str]:
    """Plan how often arms are judged, and by how many images, so that it adds at most 5 % to their training.

    Args:
        asked: the number of moments.
        images: the number of held-out images.
        minutes: the training time of an arm; None: in a race by steps or images nothing is left out.
        seconds: how long it takes for one image.

    Returns:
        The plan, and a sentence on what is left out; an empty text if nothing is.
    """
    whole = Evaluation("losses of {} held-out images", Cadence(asked), min(images, JUDGES), FEWEST_JUDGES)
    if minutes is None:
        return whole, ""
    plan = Evaluations({"loss": whole}, 60 * minutes)
    said = plan.plan({}, {"loss": seconds})
    found = plan["loss"]
    if not found.moments.times:  # a race without a judgement would tell nothing
        found = replace(found, moments=_end_of(asked), images=min(images, FEWEST_JUDGES))
        said = f"evaluation takes more than 5% of the training time: {found.difference(whole)}"
    return found, said


def measuring(times: int, samples: int, minutes: float | None, seconds: float) -> tuple[Evaluation, str]:
    """Plan how often distances are measured, and of how many samples, so that it takes no longer than the training.

    Args:
        times: the number of moments at which arms are judged.
        samples: the number of samples that was asked for.
        minutes: the training time of an arm; None: in a race by steps or images nothing is left out.
        seconds: how long it takes for one sample.

    Returns:
        The plan, which has the last moment in any case, and a sentence on what is left out.
    """
    whole = Evaluation("distances of {} samples", Cadence(times), samples, _FEWEST_SAMPLES, seconds)
    if minutes is None:
        return whole, ""
    found = whole.thinned(_PLANNED * 60 * minutes)
    if not found.moments.times:
        found = replace(found, moments=_end_of(times), images=min(samples, _FEWEST_SAMPLES))
    said = found.difference(whole)
    return found, f"measuring samples may take as long as the training: {said}" if said else ""


def _end_of(moments: int) -> Cadence:
    """Return the last of so many moments."""
    return Cadence(moments, stride=moments)
