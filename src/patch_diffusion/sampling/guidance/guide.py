"""What guidance leads away from, at which noise levels and how far, as the options of sampling say it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.denoiser import Denoiser, evaluating
from patch_diffusion.errors import InputError, did_you_mean
from patch_diffusion.patches.schedule import patch_shape
from patch_diffusion.sampling.guidance.crops import in_crops
from patch_diffusion.sampling.guidance.extrapolation import extrapolate, within
from patch_diffusion.sampling.step import Denoise
from patch_diffusion.sampling.view import View

GUIDES = ("class", "crops")
"""Guides by name; another denoiser is the third."""


@dataclass(frozen=True)
class Guidance:
    """Guidance by ``scale``, of which 1 is none, away from what the ``guide`` makes of the image.

    Args:
        scale: see `extrapolate`.
        guide: "class", the same model without the class, which is classifier-free guidance; "crops", the same model on
            crops of half the height and width, or of another size as in "crops:1/4" and "crops:16" (see
            `patch_shape`); or a weaker denoiser of the same images, which is autoguidance.
        interval: noise levels (low, high] at which it is done; all where None.
    """

    scale: float = 1.0
    guide: str | Denoiser = "class"
    interval: tuple[float, float] | None = None

    def check(self, model: Denoiser, view: View, sigmas: Tensor) -> None:
        """Refuse what does not suit the model, the images, or the noise levels of the solver.

        Raises:
            InputError: as it says.
        """
        if self.scale == 1:
            if self.interval is not None or self.guide != "class":
                raise InputError("guide and guidance_interval are for a guidance other than 1, which is none")
            return
        if self.interval is not None:
            low, high = self.interval
            if not 0 <= low < high:
                raise InputError(f"guidance_interval goes from a lower to a higher noise level, not {low} to {high}")
            if not ((sigmas > low) & (sigmas <= high)).any():
                raise InputError(
                    f"none of the noise levels, {float(sigmas[0]):g} to {float(sigmas[-2]):g} in {len(sigmas) - 1} "
                    f"steps, lies in the guidance_interval {low:g} to {high:g}"
                )
        if isinstance(self.guide, Denoiser):
            _check_weaker(model, self.guide, view)
        elif self.guide == "class":
            _check_dropped(model)
        elif self.guide.partition(":")[0] != "crops":
            raise InputError(f"there is no guide '{self.guide}'{did_you_mean(self.guide, GUIDES)}")
        elif model.context is not None:
            raise InputError("crops are no guide for a model with patches.context, which shows them the whole image")
        else:
            self._crop(model, view)

    def around(
        self, model: Denoiser, view: View, conditions: Conditions, seeds: Sequence[int], sigmas: Tensor
    ) -> Denoise:
        """Return the model as a guided denoise, for images under these conditions, of these seeds, at these levels."""
        denoise = view.bind(model, conditions)
        if self.scale == 1:
            return denoise
        if isinstance(self.guide, Denoiser):
            weaker = view.bind(self.guide, conditions)
        elif self.guide == "class":
            weaker = view.bind(model, conditions.without("labels"))
        else:
            size = self._crop(model, view)
            at_once = max(1, view.batch * view.resolution[0] * view.resolution[1] // (size[0] * size[1]))
            conditions = replace(conditions, coords=view.grid)
            weaker = in_crops(model, conditions, size=size, seeds=seeds, sigmas=sigmas, at_once=at_once)
        guided = extrapolate(denoise, weaker, self.scale)
        return guided if self.interval is None else within(guided, denoise, *self.interval)

    def evaluating(self) -> AbstractContextManager[None]:
        """Inside, a weaker model has no dropout either."""
        return evaluating(self.guide) if isinstance(self.guide, Denoiser) else nullcontext()

    @property
    def settings(self) -> dict[str, Any]:
        """As JSON has it."""
        if self.scale == 1:
            return {"guidance": self.scale}
        guide = self.guide if isinstance(self.guide, str) else "model"
        interval = {} if self.interval is None else {"guidance_interval": list(self.interval)}
        return {"guidance": self.scale, "guide": guide, **interval}

    def _crop(self, model: Denoiser, view: View) -> tuple[int, ...]:
        """Height and width of a crop."""
        assert isinstance(self.guide, str)
        if view.tile is not None:
            raise InputError("the guide 'crops' is for whole images, not for tiles, which are crops already")
        size = patch_shape(self.guide.partition(":")[2] or "1/2", view.resolution)
        if size[0] % model.stride or size[1] % model.stride:
            raise InputError(
                f"crops of {size[0]}x{size[1]} cannot pass this network, which needs multiples of {model.stride}: give "
                "others, as in crops:1/2 or crops:16"
            )
        if size == view.resolution:
            raise InputError("crops as large as the image are no guide: give smaller ones, as in crops:1/2")
        return size


def _check_dropped(model: Denoiser) -> None:
    if not model.num_classes:
        raise InputError(
            "guidance needs a class-conditional model, and this one has no classes: another guide, such as crops, does "
            "without"
        )
    if not model.label_dropout:
        raise InputError(
            "guidance needs a model that has also learned images without their class, and this one was trained with "
            "network.label_dropout 0: another guide, such as crops, does without"
        )


def _check_weaker(model: Denoiser, weaker: Denoiser, view: View) -> None:
    for name in ("image_channels", "num_classes", "context"):
        own, other = getattr(model, name), getattr(weaker, name)
        if own != other:
            raise InputError(f"the guide must be a model of the same images, but its {name} is {other}, not {own}")
    if _values(model) != _values(weaker):
        raise InputError("the guide must be a model of the same images, but theirs have other values")
    seen = view.tile or view.resolution
    if seen[0] % weaker.stride or seen[1] % weaker.stride:
        raise InputError(f"the guide needs heights and widths that are multiples of {weaker.stride}, not {seen}")


def _values(model: Denoiser) -> dict[str, Any]:
    """What the values of its images mean: of latents wherever the autoencoder is, and whichever decoder it has."""
    return {name: value for name, value in model.codec.as_dict().items() if name not in ("vae", "digest")}
