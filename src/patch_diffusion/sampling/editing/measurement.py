"""What is known of an image: linear measurements of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from patch_diffusion.errors import InputError

Operator = Callable[[Tensor], Tensor]
"""Images (n, c, h, w) to what is measured of each (n, ...), float32; linear, and of every image on its own."""

_NOT_LINEAR = 1e-3  # relative; float32 sums of a million numbers differ by less


@dataclass(frozen=True)
class Measurement:
    """``values`` = operator(image) + noise, of an image that is to be found.

    Args:
        values: what was measured, of any shape, real or complex, as the operator gives it for one image.
        operator: linear, of images in the values of the data: 0 to 255 for pictures of 8 bits. Any Python function of
            tensors that torch can differentiate; others need their ``adjoint``.
        shape: of the image, (channels, height, width).
        noise: standard deviation of what was added, in the units of ``values``.
        adjoint: the transposed operator, (n, ...) to (n, c, h, w); found by differentiation where None.
        kept: pixels (c, h, w) in the type of the data, and where they are known (h, w): they are kept exactly.
        inside: of an image that was extended, where the original lies: top, left, height and width.
        settings: what to say of it beside the samples.

    Raises:
        InputError: for shapes that do not belong together, and an operator that is not linear.

    >>> rows = Measurement(torch.zeros(1, 4), lambda images: images.sum(dim=-1), (1, 4, 6))
    >>> rows.transposed(torch.ones(2, 1, 4)).shape
    torch.Size([2, 1, 4, 6])
    """

    values: Tensor
    operator: Operator
    shape: tuple[int, int, int]
    noise: float = 0.0
    adjoint: Operator | None = None
    kept: tuple[Tensor, Tensor] | None = None
    inside: tuple[int, int, int, int] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.noise >= 0:
            raise InputError(f"noise is a standard deviation of at least 0, not {self.noise}")
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(3, *self.shape, generator=generator).to(self.values.device)
        images[2] = images[0] - 2 * images[1]
        found = self.operator(images)
        if found.shape != (3, *self.values.shape):
            raise InputError(
                f"the operator makes {tuple(found.shape)} of 3 images {self.shape}, which does not fit what was "
                f"measured: {tuple(self.values.shape)}; it takes (n, c, h, w) and gives (n, ...)"
            )
        difference = (found[2] - found[0] + 2 * found[1]).abs().max()
        if not difference <= _NOT_LINEAR * found.abs().max():
            raise InputError("the operator is not linear: for images a and b it must make A(a) - 2 A(b) of a - 2 b")

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.shape[1], self.shape[2]

    @property
    def transposed(self) -> Operator:
        """The adjoint, given or found."""
        return self.adjoint or self._differentiated

    @cached_property
    def _differentiated(self) -> Operator:
        """By reverse-mode differentiation: of a linear function it is the same everywhere."""

        def transposed(values: Tensor) -> Tensor:
            with torch.enable_grad():
                images = torch.zeros(len(values), *self.shape, device=values.device, requires_grad=True)
                found = self.operator(images)
            if not found.requires_grad:
                raise InputError("torch cannot differentiate the operator: give its adjoint, too")
            return torch.autograd.grad(found, images, values)[0]

        return transposed
