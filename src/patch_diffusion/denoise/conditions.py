"""The conditions of a network besides the noise level (coordinates, labels and so on), passed around as one object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated as Float, Annotated as Int, Annotated as Shaped

import torch
from torch import Tensor

from patch_diffusion.transfer import to_device


@dataclass(frozen=True)
class Conditions:
    """The inputs that condition a network on n noisy images, besides the noise level. Each is None if it is not used.

    Only `Denoiser` and the code that makes conditions use the fields. To add a condition, add a field: a tensor with a
    row for each image, which `select`, `to` and `without` then handle, too.

    Args:
        coords: coordinates of the pixels (n, axes, *shape), or (axes, *shape) if all images have the same.
        labels: classes, -1 for "no class".
        augment: numbers that say how each image was augmented, see `Augment`.
        thumbnail: small copies of the whole images, if the denoiser has a ``context``.
        attributes: the vectors that tell the attributes of the images, see `Attribute`.
        inputs: paired inputs as `shown_as` makes them, for the pixels of the images (n, channels, *shape).
        around: small copies of the whole paired inputs, see `around_of`.

    >>> two = Conditions(torch.zeros(2, 2, 8, 8), labels=torch.tensor([3, 5]))
    >>> two.select([1]).labels, two.without("labels").labels
    (tensor([5]), None)
    """

    coords: Float[Tensor, "..."] | None = None
    labels: Int[Tensor, "n"] | None = None
    augment: Float[Tensor, "n augment_channels"] | None = None
    thumbnail: Float[Tensor, "n c *small_shape"] | None = None
    attributes: Float[Tensor, "n attribute_channels"] | None = None
    inputs: Float[Tensor, "n input_channels *shape"] | None = None
    around: Float[Tensor, "n around_channels *around_shape"] | None = None

    def spread(self, images: Shaped[Tensor, "n c *shape"]) -> Conditions:
        """Return the conditions with the coordinates repeated for each of the images, without a copy."""
        if self.coords is None:
            return self
        return replace(self, coords=self.coords.expand(len(images), *[-1] * (images.ndim - 1)))

    def select(self, rows: slice | Sequence[int]) -> Conditions:
        """Return the conditions of some of the images; coordinates must have a row for each image, see `spread`."""
        if isinstance(rows, slice):
            return self._map(lambda tensor: tensor[rows])
        # A list as an index would be copied to the device, and waited for.
        return self._map(lambda tensor: torch.stack([tensor[row] for row in rows]))

    def to(self, device: torch.device) -> Conditions:
        """Return the conditions on a device, without waiting for the copy."""
        return self._map(lambda tensor: to_device(tensor, device))

    def without(self, name: str) -> Conditions:
        """Return the conditions with the one of this name set to None."""
        return replace(self, **{name: None})

    def alone(self) -> Conditions:
        """Return the conditions without what a user asks for: the class, the attributes and the paired inputs."""
        return replace(self, labels=None, attributes=None, inputs=None, around=None)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Conditions:
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return Conditions(**{name: None if tensor is None else function(tensor) for name, tensor in found.items()})
