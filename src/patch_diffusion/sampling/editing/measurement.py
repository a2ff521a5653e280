"""Linear measurements of an image, which state what is known about the image that is to be made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from patch_diffusion.errors import InputError, finite_number

Operator = Callable[[Tensor], Tensor]
"""A linear function from images (n, c, h, w) to the measurement of each one by itself (n, ...), float32."""

_MOST_NOISE = 1e15  # its square has room in float32
_NOT_LINEAR = 1e-3  # relative; float32 sums of a million numbers differ by less


@dataclass(frozen=True)
class Measurement:
    """A measurement ``values`` = operator(image) + noise of an image that is to be found.

    Args:
        values: the measured values, of any shape, real or complex, as the operator returns them for one image.
        operator: a linear function of images in the values of the data, 0 to 255 for pictures of 8 bits. It can be any
            Python function of tensors that torch can differentiate; others need their ``adjoint``.
        shape: shape of the image, (channels, height, width).
        noise: standard deviation of the noise, in the units of ``values``.
        adjoint: the transposed operator, (n, ...) to (n, c, h, w); None: it is found by differentiation.
        kept: pixels (c, h, w) in the dtype of the data, and a mask (h, w) of those that are kept exactly.
        inside: for an image that was extended, where the original lies: top, left, height and width.
        settings: a description of the measurement, for the settings of the samples.

    Raises:
        InputError: the shapes do not belong together, or the operator is not linear.

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
        if not 0 <= finite_number("noise", self.noise) <= _MOST_NOISE:
            raise InputError(f"noise is a standard deviation, at most {_MOST_NOISE:g} and at least 0, not {self.noise}")
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
        """The height and width of the image."""
        return self.shape[1], self.shape[2]

    @property
    def transposed(self) -> Operator:
        """The adjoint of the operator, as given or found by differentiation."""
        return self.adjoint or self._differentiated

    @cached_property
    def _differentiated(self) -> Operator:
        """The adjoint by reverse-mode differentiation, which for a linear function is the same everywhere."""

        def transposed(values: Tensor) -> Tensor:
            with torch.enable_grad():
                images = torch.zeros(len(values), *self.shape, device=values.device, requires_grad=True)
                found = self.operator(images)
            if not found.requires_grad:
                raise InputError("torch cannot differentiate the operator: give its adjoint, too")
            return torch.autograd.grad(found, images, values)[0]

        return transposed
