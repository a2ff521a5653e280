"""Classifier-free guidance (Ho and Salimans, arXiv 2207.12598)."""

from __future__ import annotations

from torch import Tensor

from patch_diffusion.sampling.solvers import Denoise


def classifier_free(conditional: Denoise, unconditional: Denoise, scale: float) -> Denoise:
    """D_u + scale (D_c - D_u): away from the model without a class. A scale of 1 is no guidance, 0 no class."""

    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        without = unconditional(noisy, sigma)
        return without + scale * (conditional(noisy, sigma) - without)

    return denoise
