"""What a run may cost."""

from __future__ import annotations

from dataclasses import dataclass

from patch_diffusion.errors import InputError
from patch_diffusion.training.cost import Seen


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
