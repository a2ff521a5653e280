"""All that a network is told about noisy images besides the noise level, as one object that is handed on unopened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditions:
    """The conditions of a batch of n images. Each is None where there is none.

    Only `Denoiser` and the place that makes them look inside. A new condition is a field here: a tensor with a row for
    each image, which `select`, `to` and `without` treat like the others.

    Args:
        coords: coordinates of the pixels (n, axes, *shape), or (axes, *shape) of all images.
        labels: integer classes (n,), -1 for "no class".
        augment: how the images were augmented (n, augment_channels), for a network that is told.
        thumbnail: small copies of the whole images (n, c, *small shape), for a denoiser with a context.

    >>> two = Conditions(torch.zeros(2, 2, 8, 8), labels=torch.tensor([3, 5]))
    >>> two.select([1]).labels, two.without("labels").labels
    (tensor([5]), None)
    """

    coords: Tensor | None = None
    labels: Tensor | None = None
    augment: Tensor | None = None
    thumbnail: Tensor | None = None

    def spread(self, images: Tensor) -> Conditions:
        """Return the conditions with a row of coordinates for each of the images (n, c, *shape)."""
        if self.coords is None:
            return self
        return replace(self, coords=self.coords.expand(len(images), *[-1] * (images.ndim - 1)))

    def select(self, rows: slice | Sequence[int]) -> Conditions:
        """Return the conditions of some of the images; coordinates must have a row for each, see `spread`."""
        return self._map(lambda tensor: tensor[rows])

    def to(self, device: torch.device) -> Conditions:
        """Move the conditions to a device, without waiting for it."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def without(self, name: str) -> Conditions:
        """Return the conditions without the one of this name."""
        return replace(self, **{name: None})

    def _map(self, function: Callable[[Tensor], Tensor]) -> Conditions:
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return Conditions(**{name: None if tensor is None else function(tensor) for name, tensor in found.items()})
