"""Guidance away from a weaker denoise, whatever makes it the weaker one.

That is the same network without the class for classifier-free guidance (Ho and Salimans, arXiv 2207.12598), an earlier
or smaller network for autoguidance (Karras et al., arXiv 2406.02507), and the network on `crops` for crop guidance.
"""

from __future__ import annotations

from torch import Tensor

from patch_diffusion.sampling.step import Denoise


def extrapolate(denoise: Denoise, weaker: Denoise, scale: float) -> Denoise:
    """D_w + scale (D - D_w). A scale of 1 is no guidance, 0 the weaker denoise alone.

    >>> guided = extrapolate(lambda noisy, sigma: noisy, lambda noisy, sigma: noisy - 1, 3.0)
    >>> guided(torch.zeros(1), torch.ones(()))
    tensor([2.])
    """

    def guided(noisy: Tensor, sigma: Tensor) -> Tensor:
        without = weaker(noisy, sigma)
        return without + scale * (denoise(noisy, sigma) - without)

    return guided
