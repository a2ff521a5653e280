"""What a run may cost, and what it has cost so far."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from patch_diffusion.errors import InputError
from patch_diffusion.patches.schedule import PatchSize


@dataclass
class Seen:
    """What training has seen and spent, counted exactly.

    ``step`` optimizer steps; ``images`` drawn from the data, each shown whole or as one patch; ``patches``, how many of
    them were not whole; ``pixels`` per channel that went through the network; ``flops`` of the matrix products and
    convolutions, a training step counted as three times its forward pass; ``seconds`` of the clock.
    """

    step: int = 0
    images: int = 0
    patches: int = 0
    pixels: int = 0
    flops: int = 0
    seconds: float = 0.0

    def add(self, size: PatchSize, num_images: int, resolution: tuple[int, int], flops_per_image: int) -> None:
        """Count one step."""
        self.step += 1
        self.images += num_images
        self.patches += num_images * ((size.height, size.width) != resolution)
        self.pixels += num_images * size.height * size.width
        self.flops += num_images * flops_per_image

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


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
