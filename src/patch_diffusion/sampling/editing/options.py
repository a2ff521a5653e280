"""An edit of an image as options describe it. No heavy library is imported at the top, so mistakes are told at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from patch_diffusion.errors import InputError

if TYPE_CHECKING:
    from patch_diffusion.denoise.denoiser import Denoiser
    from patch_diffusion.sampling.editing.measurement import Measurement
    from patch_diffusion.sampling.editing.tasks import Mask, Picture

Restoration = Literal["super-resolution", "deblur", "denoise"]
PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "super-resolution": ("factor", "noise"),
    "deblur": ("blur", "noise"),
    "denoise": ("noise",),
}
"""The names of the parameters of each restoration, by its name."""


@dataclass(frozen=True)
class Task:
    """An edit of an image as options describe it: fill it in where a mask is, extend it, or restore it.

    Args:
        has_mask: True if there is a mask.
        extend: see `outpainting`.
        restore, factor, blur, noise: one of `PARAMETERS`, and its parameters.
    """

    has_mask: bool = False
    extend: Mapping[str, int] | None = None
    restore: Restoration | None = None
    factor: int | None = None
    blur: float | None = None
    noise: float | None = None

    def check(self) -> None:
        """Raise InputError if the options of the edit do not go together, before any file is read."""
        if not (self.has_mask or self.extend or self.restore):
            raise InputError("say what to do with the image: mask what is to be filled, extend it, or restore it")
        if self.restore and (self.has_mask or self.extend):
            raise InputError("restore is for a whole image: do it first, and mask or extend it afterwards")
        for name in ("factor", "blur", "noise"):
            if getattr(self, name) is not None and name not in PARAMETERS.get(self.restore or "", ()):
                users = ", ".join(f"restore {task}" for task, names in PARAMETERS.items() if name in names)
                raise InputError(f"{name} is for {users}")
        if self.restore == "deblur" and self.blur is None:
            raise InputError("restore deblur needs blur, the standard deviation of the blur in pixels, as in 1.5")
        if self.restore == "denoise" and self.noise is None:
            raise InputError("restore denoise needs noise, its standard deviation in the values of the pixels")

    def resolution(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that an image of the given height and width has after the edit."""
        extend, factor = self.extend or {}, self._factor if self.restore == "super-resolution" else 1
        return (
            (height + extend.get("top", 0) + extend.get("bottom", 0)) * factor,
            (width + extend.get("left", 0) + extend.get("right", 0)) * factor,
        )

    def known(self, model: Denoiser, image: Picture, mask: Mask | None = None) -> Measurement:
        """Return the `Measurement` of the edited image by a model: what is known of it before sampling."""
        from patch_diffusion.sampling.editing import tasks

        if self.restore == "super-resolution":
            return tasks.super_resolution(model, image, factor=self._factor, noise=self.noise)
        if self.restore == "deblur":
            assert self.blur is not None  # `check` refuses it
            return tasks.deblurring(model, image, blur=self.blur, noise=self.noise)
        if self.restore == "denoise":
            assert self.noise is not None
            return tasks.denoising(image, noise=self.noise)
        if self.extend:
            return tasks.outpainting(image, self.extend, mask)
        assert mask is not None
        return tasks.inpainting(image, mask)

    @property
    def _factor(self) -> int:
        return 2 if self.factor is None else self.factor
