"""Posterior denoising: a denoise towards linear measurements of the image.

Given the noisy image x, the clean one is taken for a Gaussian around D(x; sigma), with a covariance V. Its mean when
y = A x0 + n was measured, n ~ N(0, s^2), is

    D + V A^T (s^2 + A V A^T)^-1 (y - A D).

There are two choices of V. *isotropic*: one number v for all pixels. Without noise v cancels, and the measurement
replaces the denoised values in the range of A (the null-space method DDNM, Wang et al., arXiv 2212.00490; for a mask
that is the replacement of known pixels, as in RePaint); with noise the change is the proximal step of DiffPIR (Zhu et
al., arXiv 2305.08995). *network*: sigma^2 times the Jacobian of D, which is the covariance itself if D is the mean
(moment matching, Rozet et al., arXiv 2405.13712); it says how a measured pixel changes others, and takes a backward
pass of the network for each of the ``iterations`` that solve the system.

For the isotropic V, (s^2 / v + A^T A) d = A^T (y - A D) is solved, which gives the same change d of D, and has a
solution also where no image explains y.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated as Float, Annotated as Inexact, Literal

import torch
from torch import Tensor

from patch_diffusion.sampling.step import Denoise

_LEAST_CURVATURE = 0.03
"""The least usable variance of the network's covariance along a direction, as a share of the largest variance: below it
lie the parts of a network's Jacobian that are not symmetric, and dividing by them has made pictures explode."""

Covariance = Literal["isotropic", "network"]
Linear = Callable[[Tensor], Tensor]


def posterior(
    denoise: Denoise,
    residual: Linear,
    apply: Linear,
    transpose: Linear,
    *,
    noise: float,
    sigma_data: float,
    covariance: Covariance,
    iterations: int,
) -> Denoise:
    """Return a function ``denoise(noisy, sigma)`` that leads images towards agreement with the measurement.

    Args:
        denoise: the denoise function of a model of the images.
        residual: function from denoised images (n, c, h, w) to y - A D (n, ...).
        apply, transpose: A and A^T, without constant terms.
        noise: s, in the units of y.
        sigma_data: standard deviation of the images, which limits an isotropic V at large sigma.
        covariance: V, "isotropic" or "network".
        iterations: the most iterations of conjugate gradients.
    """

    def nearest(left: Tensor, ridge: float) -> Tensor:
        """Return the change d of the image with the least |left - A d|^2 + ridge |d|^2, which always exists."""
        return conjugate_gradients(lambda d: ridge * d + transpose(apply(d)), transpose(left), iterations)

    def isotropic(noisy: Tensor, sigma: Tensor) -> Tensor:
        denoised = denoise(noisy, sigma)
        variance = float(sigma**2 * sigma_data**2 / (sigma**2 + sigma_data**2))
        return denoised + nearest(residual(denoised.float()), noise**2 / variance).to(denoised)

    def network(noisy: Tensor, sigma: Tensor) -> Tensor:
        with torch.enable_grad():
            start = noisy.detach().requires_grad_()
            denoised = denoise(start, sigma)

        def spread(u: Tensor) -> Tensor:
            """Return V A^T u."""
            through = torch.autograd.grad(denoised, start, transpose(u).to(denoised), retain_graph=True)[0]
            return sigma**2 * through

        def system(u: Tensor) -> Tensor:
            return noise**2 * u + apply(spread(u).float())

        left = residual(denoised.detach().float())
        if noise == 0:  # the part of y that no image can explain has no solution
            left = apply(nearest(left, 0.0))
        solved = conjugate_gradients(system, left, iterations, least_curvature=_LEAST_CURVATURE)
        return denoised.detach() + spread(solved)

    return {"isotropic": isotropic, "network": network}[covariance]


def conjugate_gradients(
    system: Linear,
    right: Inexact[Tensor, "n *shape"],
    iterations: int,
    *,
    tolerance: float = 1e-5,
    least_curvature: float = 0.0,
) -> Inexact[Tensor, "n *shape"]:
    """Solve ``system(u) = right`` for a symmetric, positive ``system``, each of the n rows by itself.

    Args:
        system: a linear function.
        right: the right side, real or complex.
        iterations: the most iterations.
        tolerance: a row is solved when its residual has fallen to this share of its first value.
        least_curvature: a row also stops before a direction along which the system is smaller than this share of the
            largest value so far, or not positive.
    """
    solution = torch.zeros_like(right)
    left, direction = right, right
    squared = first = _dot(left, left)
    going = squared > 0
    largest = torch.zeros_like(squared)
    for _ in range(iterations):
        raised = system(direction)
        curvature = _dot(direction, raised)
        along = curvature / _dot(direction, direction)
        largest = torch.where(going, torch.maximum(largest, along), largest)
        going = going & (squared > tolerance**2 * first) & (curvature > 0) & (along >= least_curvature * largest)
        if not going.any():
            break
        length = torch.where(going, squared / curvature, 0)
        solution = solution + _each(length, right) * direction
        left = left - _each(length, right) * raised
        before, squared = squared, _dot(left, left)
        direction = left + _each(torch.where(going, squared / before, 0), right) * direction
    return solution


def _dot(first: Inexact[Tensor, "n *shape"], second: Inexact[Tensor, "n *shape"]) -> Float[Tensor, "n"]:
    """Return the inner product of each row, real also for complex numbers."""
    return (first.conj() * second).flatten(1).sum(1).real


def _each(factors: Float[Tensor, "n"], like: Inexact[Tensor, "n *shape"]) -> Float[Tensor, "n ..."]:
    return factors.view(-1, *[1] * (like.ndim - 1))
