"""What a run may cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from patch_diffusion.denoise.denoiser import Denoiser, evaluating
from patch_diffusion.errors import InputError
from patch_diffusion.patches.coords import coordinate_grid
from patch_diffusion.patches.schedule import PatchSize


@dataclass(frozen=True)
class Budget:
    """Exactly one of optimizer steps, images drawn from the data, or minutes of training over all continuations.

    Learning rate and progressive sizes follow the fraction that is spent, so they do not care which it is.
    """

    steps: int | None = None
    images: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            found = f"not {' and '.join(given)} together" if given else "which says when training ends"
            raise InputError(f"give one of steps, images or minutes, {found}")
        name, value = given.popitem()
        if not value > 0:
            raise InputError(f"a budget of {name} is above 0, not {value}")

    def spent(self, seen: Seen) -> float:
        """The fraction that is spent; 1 or more at the end."""
        if self.steps is not None:
            return seen.step / self.steps
        if self.images is not None:
            return seen.images / self.images
        assert self.minutes is not None
        return seen.seconds / (60 * self.minutes)


@dataclass
class Seen:
    """What training has seen and spent, counted exactly.

    ``step`` optimizer steps; ``images`` drawn from the data, each shown whole or as one patch; ``patches``, how many of
    them were not whole; ``pixels`` that went through the network; ``flops`` of the matrix products and convolutions;
    ``seconds`` of the clock; ``by_resolution``, the images of each size of the data ("64x48").
    """

    step: int = 0
    images: int = 0
    patches: int = 0
    pixels: int = 0
    flops: int = 0
    seconds: float = 0.0
    by_resolution: dict[str, int] = field(default_factory=dict)

    def add(self, size: PatchSize, num_images: int, resolution: tuple[int, int], flops_per_image: int) -> None:
        """Count one step."""
        self.step += 1
        self.images += num_images
        self.by_resolution["{}x{}".format(*resolution)] = self.drawn(resolution) + num_images
        self.patches += num_images * (size.shape != resolution and not size.small)
        self.pixels += num_images * size.height * size.width
        self.flops += num_images * flops_per_image

    def drawn(self, resolution: tuple[int, int]) -> int:
        """Images of this size drawn so far."""
        return self.by_resolution.get("{}x{}".format(*resolution), 0)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def training_flops(denoiser: Denoiser, channels: int, shape: tuple[int, int]) -> int:
    """Floating-point operations of a training step on one image of this shape: three times the forward pass."""
    device = denoiser.device
    noisy = torch.zeros(1, channels, *shape, device=device)
    labels = torch.zeros(1, dtype=torch.long, device=device) if denoiser.num_classes else None
    with evaluating(denoiser), torch.no_grad(), FlopCounterMode(display=False) as counter:
        denoiser(noisy, 1.0, coordinate_grid(*shape, device=device), labels)
    return 3 * counter.get_total_flops()
