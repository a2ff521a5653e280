"""Models as velocity fields, and velocity fields as models.

A denoiser D(y; sigma) belongs to no path: with x = s(t) y on the path of any noise process, dx/dt follows from x and D.
So a model of one process is a velocity field on the path of another, and a field on one path is a field on the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated as Float, Annotated as Int

import torch
from torch import Tensor

from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.process import Flow, Process
from patch_diffusion.patches.coords import coordinate_grid

Times = Float[Tensor, "n"] | Float[Tensor, ""] | float
"""A time for each image, or one for all."""


def as_flow(
    model: Callable[[Tensor, Tensor, Conditions], Tensor], process: Process | None = None
) -> Callable[..., Tensor]:
    """Return a model as the velocity field v(x, t) = dx/dt of a path, by default the straight one of flow matching.

    There x_t = (1 - t) image + t noise, with images at t = 0 and noise at t = 1. A field is called as ``velocity(x, t,
    coords=None, labels=None)``, where ``x`` (n, c, h, w) is in model space and in the dtype of the model, ``t`` is a
    number, or a tensor () or (n,), and the rest is as for a `Denoiser`; without coordinates the images are whole ones.
    It can be differentiated. Times beyond the noise levels of a `Denoiser` are served by its lowest and highest level.

    Args:
        model: from `load`, or any `Denoiser`, of any noise process; or a function ``denoise(noisy, sigma, conditions)``
            for levels (n,), such as `from_flow` returns.
        process: the noise process whose path it is; None: `Flow`.

    >>> velocity = as_flow(load("runs/digits"))
    >>> velocity(torch.randn(2, 1, 16, 16), 1.0).shape
    torch.Size([2, 1, 16, 16])
    """
    path = process or Flow()

    def velocity(
        x: Float[Tensor, "n c *shape"],
        t: Times,
        coords: Tensor | Conditions | None = None,
        labels: Int[Tensor, "n"] | None = None,
    ) -> Float[Tensor, "n c *shape"]:
        conditions = _conditions(x, coords, labels)
        sigma = path.sigma(torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x)))
        centre, levels = torch.zeros_like(sigma[0]), sigma
        if isinstance(model, Denoiser):
            centre, sigma = model.centre(x), sigma.clamp(min=model.sigma_min)
            levels = sigma.clamp(max=model.sigma_max)
        times = _each(path.time(sigma), x)
        noisy = x / path.scale(times)
        denoised = model(centre + (noisy - centre) * _each(levels / sigma, x), levels, conditions)
        return path.velocity(noisy, denoised, times)

    return velocity


def from_flow(
    velocity: Callable[..., Tensor], process: Process | None = None
) -> Callable[[Tensor, Tensor, Conditions], Tensor]:
    """Return the function ``denoise(noisy, sigma, conditions)`` of a velocity field; the inverse of `as_flow`.

    Solvers, edits and measures take it as they take a model, and `as_flow` turns it into the field of another path.

    Args:
        velocity: a field as `as_flow` returns it, or of your own, called as ``velocity(x, t, conditions)``.
        process: the noise process on whose path it is; None: `Flow`.

    >>> denoise = from_flow(lambda x, t, conditions: x)  # where all data is 0, at t = 1
    >>> denoise(torch.ones(1, 3, 2, 2), torch.tensor([2.0**26]), Conditions()).abs().max() < 1e-6
    tensor(True)
    """
    path = process or Flow()

    def denoise(noisy: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        times = path.time(sigma.expand(len(noisy)))
        found = velocity(path.scale(_each(times, noisy)) * noisy, times, conditions)
        return path.denoised(noisy, found, _each(times, noisy))

    return denoise


def _conditions(x: Tensor, coords: Tensor | Conditions | None, labels: Tensor | None) -> Conditions:
    if isinstance(coords, Conditions):
        return coords
    return Conditions(coordinate_grid(*x.shape[2:], device=x.device) if coords is None else coords, labels)


def _each(numbers: Float[Tensor, "n"], like: Float[Tensor, "n *shape"]) -> Float[Tensor, "n ..."]:
    return numbers.view(-1, *[1] * (like.ndim - 1))
