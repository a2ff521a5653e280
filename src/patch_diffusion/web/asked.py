"""What the page may ask for, checked before it waits in the queue."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from patch_diffusion.errors import InputError

MOST_PICTURES = 64
MOST_MODELS = 4
MOST_STEPS = 256
MOST_NEW_PIXELS = 2**20  # of an extended image

_STRICT = {"extra": "forbid"}

T = TypeVar("T")


@dataclass(frozen=True)
class Chosen:
    """A model: of a run as it is now, or of one of its checkpoints."""

    __pydantic_config__ = _STRICT

    run: str
    checkpoint: int | None = None


@dataclass(frozen=True)
class Pictures:
    """New pictures of several models, from the same seeds."""

    __pydantic_config__ = _STRICT

    models: list[Chosen]
    seed: int = 0
    """The first."""
    pictures: int = 16
    """Seeds, from the first on."""
    label: int | None = None
    """Class; seed k gets class k mod classes where None."""
    steps: int = 18
    solver: str = "heun"
    guidance: float = 1.0
    guide: str = "class"

    def __post_init__(self) -> None:
        _within("models", len(self.models), 1, MOST_MODELS)
        _check(self.seed, self.pictures, self.steps)


@dataclass(frozen=True)
class Filling:
    """An image that is filled where a mask says so, and extended."""

    __pydantic_config__ = _STRICT

    model: Chosen
    image: str
    """A PNG of the model's channels, in base64."""
    mask: str | None = None
    """A PNG of the same size, white where the image is to be filled, in base64."""
    extend: dict[str, int] = field(default_factory=dict)
    """Pixels at the left, right, top and bottom."""
    seed: int = 0
    pictures: int = 4
    label: int | None = None
    steps: int = 32
    covariance: Literal["isotropic", "network"] = "network"
    guidance: float = 1.0
    guide: str = "class"
    coords: Literal["stretch", "extend"] | None = None

    def __post_init__(self) -> None:
        _check(self.seed, self.pictures, self.steps)


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


def _check(seed: int, pictures: int, steps: int) -> None:
    _within("seed", seed, 0, 2**53)
    _within("pictures", pictures, 1, MOST_PICTURES)
    _within("steps", steps, 1, MOST_STEPS)


def _within(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InputError(f"{name} can be {least} to {most:,} here, not {value:,}")
