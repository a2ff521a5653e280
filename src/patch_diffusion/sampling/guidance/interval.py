"""Guidance at some noise levels only (Kynkaanniemi et al. 2024, arXiv 2404.07724)."""

from __future__ import annotations

from torch import Tensor

from patch_diffusion.sampling.step import Denoise


def within(guided: Denoise, denoise: Denoise, low: float, high: float) -> Denoise:
    """``guided`` at noise levels in (low, high], plain ``denoise`` at others, where the weaker one is not evaluated.

    At high levels guidance takes variety away, at low ones it changes next to nothing.

    >>> limited = within(lambda noisy, sigma: noisy + 1, lambda noisy, sigma: noisy, 0.5, 5.0)
    >>> [limited(torch.zeros(1), torch.tensor(sigma)).item() for sigma in (80.0, 5.0, 0.5)]
    [0.0, 1.0, 0.0]
    """

    def limited(noisy: Tensor, sigma: Tensor) -> Tensor:
        return (guided if low < sigma <= high else denoise)(noisy, sigma)

    return limited
