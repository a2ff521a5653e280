"""Where every pixel lies in its image."""

from __future__ import annotations

import torch
from torch import Tensor


def coordinate_grid(height: int, width: int, *, device: torch.device | str | None = None) -> Tensor:
    """The coordinates of every pixel of a whole image, ``(2, height, width)`` float32: x, then y.

    Both run over [-1, 1]; -1 and 1 are the centres of the first and the last pixel, whatever the shape of the image
    (Patch Diffusion, arXiv 2304.12526, section 3.1). An axis of a single pixel is at 0. Training cuts this grid with
    the pixels, sampling uses it whole.

    >>> coordinate_grid(2, 3)[0]
    tensor([[-1.,  0.,  1.],
            [-1.,  0.,  1.]])
    """
    if height < 1 or width < 1:
        raise ValueError(f"an image has at least one pixel, not {height} x {width}")
    y, x = (
        torch.linspace(-1, 1, n, device=device) if n > 1 else torch.zeros(1, device=device) for n in (height, width)
    )
    return _grid(y, x)


def extended_grid(
    height: int,
    width: int,
    whole: tuple[int, int],
    top: float,
    left: float,
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """The grid of an image of ``whole`` height and width, cut or continued beyond [-1, 1]: (2, height, width) float32.

    ``top`` and ``left`` are the row and column of that image where this one begins, below 0 for one that begins before
    it.

    >>> extended_grid(1, 5, (1, 3), 0, -1)[0]
    tensor([[-2., -1.,  0.,  1.,  2.]])
    """
    y, x = (
        (torch.arange(n, device=device) + start) * (2 / max(length - 1, 1)) - (1 if length > 1 else 0)
        for n, length, start in ((height, whole[0], top), (width, whole[1], left))
    )
    return _grid(y, x)


def _grid(y: Tensor, x: Tensor) -> Tensor:
    return torch.stack([x.expand(len(y), len(x)), y[:, None].expand(len(y), len(x))]).float()
