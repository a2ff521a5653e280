"""What the page may ask for, checked before it waits in the queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from patch_diffusion.errors import InputError
from patch_diffusion.sampling.editing.tasks import Restoration, Task
from patch_diffusion.sampling.guidance.posterior import Covariance

MOST_PICTURES = 64
MOST_MODELS = 4
MOST_STEPS = 256

_STRICT = {"extra": "forbid", "allow_inf_nan": False}

T = TypeVar("T")


@dataclass(frozen=True)
class Chosen:
    """A model: of a run as it is now, or of one of its checkpoints; with averages of the usual or another length."""

    __pydantic_config__ = _STRICT

    run: str
    checkpoint: int | None = None
    ema_length: float | None = None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What new pictures and edited ones have in common; what is not said here is as in `generate` and `edit`."""

    __pydantic_config__ = _STRICT

    seed: int = 0
    """The first."""
    pictures: int = 4
    """Seeds, from the first on."""
    label: int | None = None
    steps: int = 18
    guidance: float = 1.0
    guide: str = "class"
    """See `guide_of`; of the same run."""
    guidance_interval: tuple[float, float] | None = None
    coords: Literal["stretch", "extend", "repeat"] | None = None
    tile: int | None = None
    overlap: int | None = None

    def __post_init__(self) -> None:
        _within("seed", self.seed, 0, 2**53)
        _within("pictures", self.pictures, 1, MOST_PICTURES)
        _within("steps", self.steps, 1, MOST_STEPS)
        if self.tile is not None:
            _within("tile", self.tile, 1, 2**15)


@dataclass(frozen=True, kw_only=True)
class Pictures(Asked):
    """New pictures of several models, from the same seeds."""

    __pydantic_config__ = _STRICT

    models: list[Chosen]
    pictures: int = 16
    label: int | None = None
    """Class; seed k gets class k mod classes where None."""
    solver: str = "heun"
    resolution: tuple[int, int] | None = None
    """Height and width; those of the model where None."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _within("models", len(self.models), 1, MOST_MODELS)
        for name, side in zip(("height", "width"), self.resolution or (), strict=False):
            _within(name, side, 1, 2**15)


@dataclass(frozen=True, kw_only=True)
class Edited(Asked):
    """An image that is filled where a mask says so and extended, or restored: see `Task`."""

    __pydantic_config__ = _STRICT

    model: Chosen
    image: str
    """A PNG of the model's channels, in base64."""
    mask: str | None = None
    """A PNG of the same size, white where the image is to be filled, in base64."""
    extend: dict[str, int] | None = None
    """Pixels at the left, right, top and bottom."""
    restore: Restoration | None = None
    factor: int | None = None
    blur: float | None = None
    noise: float | None = None
    steps: int = 32
    covariance: Covariance | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.task.check()
        for side, pixels in (self.extend or {}).items():
            if pixels > 2**15:  # before it is made
                raise InputError(f"an image can be extended by some pixels at a side, not by {pixels:,} at the {side}")

    @property
    def task(self) -> Task:
        """What is to be done."""
        return Task(self.mask is not None, self.extend, self.restore, self.factor, self.blur, self.noise)


def asked(kind: type[T], body: bytes) -> T:
    """JSON from the page as what it asks for.

    Raises:
        InputError: it is not that.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(body)
    except ValidationError as error:
        first: Any = error.errors(include_url=False)[0]
        if isinstance(found := first.get("ctx", {}).get("error"), InputError):
            raise InputError(str(found)) from None
        where = ".".join(str(part) for part in first["loc"]) or "the request"
        raise InputError(f"{where}: {first['msg'].lower()}") from None


def _within(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InputError(f"{name} can be {least} to {most:,} here, not {value:,}")
