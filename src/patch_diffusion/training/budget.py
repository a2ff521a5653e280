"""The budget of a training run, and the cost of a step."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import torch
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from patch_diffusion.config import BUDGETS, Config
from patch_diffusion.denoise.denoiser import Denoiser, evaluating
from patch_diffusion.errors import InputError, finite_number
from patch_diffusion.limits import LARGEST, LIMITS
from patch_diffusion.patches.coords import coordinate_grid
from patch_diffusion.patches.schedule import Shape
from patch_diffusion.records import check_limits
from patch_diffusion.training.hardware.sharding import is_sharded
from patch_diffusion.training.state import Counters


class BudgetOptions(TypedDict, total=False):
    """The options of a config of which one is the budget, see `Budget`."""

    steps: int | None
    images: int | None
    minutes: float | None
    wall_minutes: float | None


@dataclass(frozen=True)
class Budget:
    """A training budget: exactly one of optimizer steps, images drawn from the data, or minutes over all continuations.

    ``minutes`` are minutes of training, ``wall_minutes`` count everything. Learning rate and progressive patch sizes
    follow the spent fraction of the budget, whichever unit it has.
    """

    steps: int | None = None
    images: int | None = None
    minutes: float | None = None
    wall_minutes: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            found = f"not {' and '.join(given)} together" if given else "which says when training ends"
            raise InputError(f"give one of steps, images, minutes or wall_minutes, {found}")
        name, value = given.popitem()
        if not finite_number(name, value) > 0:
            raise InputError(f"a budget of {name} is above 0, not {value}", option=name)
        check_limits({name: value}, {name: LIMITS.get(name, (0, LARGEST))})

    @classmethod
    def of(cls, config: Config) -> Budget:
        """Return the budget that a config has."""
        return cls(**{name: getattr(config, name) for name in BUDGETS})

    @property
    def time(self) -> float | None:
        """The minutes of the budget, by either clock; None if it is one of steps or images."""
        return self.minutes if self.wall_minutes is None else self.wall_minutes

    def how_to_go_on(self, spent: float) -> str:
        """Return the end of a sentence about a run that has spent this fraction of the budget: how to give it more."""
        name, value = next((name, value) for name, value in vars(self).items() if value is not None)
        more = f"{2 * max(1, int(spent)) * value:.15g}"
        given = f"{value:,.15g} {name.replace('_', ' ')}"
        return f"its budget of {given} is spent; to train longer, give more: --{name.replace('_', '-')} {more}"

    @property
    def unit(self) -> Literal["steps", "images", "minutes"]:
        """The unit of the budget, by the name of the argument."""
        return "steps" if self.steps is not None else "images" if self.images is not None else "minutes"

    def is_one_step(self, batch: int) -> bool:
        """Return True if the first step spends all of it, for a batch of so many images; of minutes nobody knows."""
        return self.steps == 1 or (self.images is not None and self.images <= batch)

    def spent(self, seen: Counters, wall: float | None = None) -> float:
        """Return the spent fraction of the training budget, 1 or more at its end.

        Args:
            seen: the counts so far.
            wall: seconds by the wall clock, with those that it takes to end; None: those of training.
        """
        if self.steps is not None:
            return seen.step / self.steps
        if self.images is not None:
            return seen.images / self.images
        assert self.time is not None
        by_wall = self.wall_minutes is not None and wall is not None
        return (wall if by_wall and wall is not None else seen.seconds) / (60 * self.time)


def training_flops(denoiser: Denoiser, channels: int, shape: Shape, *, attention: bool = True, passes: int = 3) -> int:
    """Count the floating-point operations of a training step on one image: those of some forward passes.

    Args:
        denoiser: the model.
        channels, shape: those of the image.
        attention: false for a run that began when the attention of CPUs was not counted.
        passes: the forward passes that the step is worth, see `Objective`.
    """
    tensors = {**dict(denoiser.named_parameters()), **dict(denoiser.named_buffers())}

    def forward(device: torch.device) -> int:
        noisy = torch.zeros(1, channels, *shape, device=device)
        labels = torch.zeros(1, dtype=torch.long, device=device) if denoiser.num_classes else None
        given = (noisy, 1.0, coordinate_grid(*shape, device=device), labels)
        counter = FlopCounterMode(display=False, custom_mapping=_attention_kernels() if attention else {})
        with evaluating(denoiser), torch.no_grad(), counter:
            if device.type == "meta":
                functional_call(denoiser, {name: tensor.to(device) for name, tensor in tensors.items()}, given)
            else:
                denoiser(*given)
        return counter.get_total_flops()

    if attention and not any(map(is_sharded, tensors.values())):
        # Tensors without values pass in a fraction of the time, but not a network that looks at values.
        with suppress(Exception):
            return passes * forward(torch.device("meta"))
    return passes * forward(denoiser.device)


def _attention_kernels() -> dict[Any, Any]:
    """Return the attention kernels that torch counts as nothing, those of CPUs and of MPS, with their cost."""

    def cost(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
        pairs = query[:-1].numel() * key[-2]
        return 2 * pairs * (query[-1] + value[-1])

    names = ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math_for_mps")
    return {getattr(torch.ops.aten, name): cost for name in names if hasattr(torch.ops.aten, name)}


@dataclass(frozen=True)
class Cadence:
    """A schedule of ``parts`` evenly spaced moments of the budget, the last at its end, such as for checkpoints.

    With a ``stride`` of k it has every k-th of these moments, counted back from the last.
    """

    parts: int
    stride: int = 1

    @property
    def times(self) -> int:
        """The number of moments."""
        return self._passed(1.0)

    def is_due(self, before: float, spent: float) -> bool:
        """Return True if one of the moments lies in (before, spent], fractions of the budget."""
        return self._passed(spent) > self._passed(before)

    def _passed(self, spent: float) -> int:
        return (int(min(spent, 1.0) * self.parts + 1e-9) + -self.parts % self.stride) // self.stride
