"""The JSON requests of the web page as dataclasses, which are checked before they wait in the job queue."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from patch_diffusion.errors import InputError
from patch_diffusion.records import Strict
from patch_diffusion.sampling.editing.options import Restoration, Task
from patch_diffusion.sampling.guidance.posterior import Covariance
from patch_diffusion.sampling.options import Sampling, pair
from patch_diffusion.sampling.solvers import SCHEDULES
from patch_diffusion.sampling.stochastic import SOLVERS

MOST_PICTURES = 64
MOST_SEED = 2**53 - MOST_PICTURES
"""The largest first seed: all seeds of a request are numbers that JavaScript holds exactly."""

MOST_MODELS = 4
MOST_STEPS = 256
_MOST_ENTRIES = 100  # of an object or a list in a request

_OPTIONS = [option.name for option in fields(Sampling)]

T = TypeVar("T", bound="Request")


@dataclass(frozen=True)
class ModelChoice(Strict):
    """A model that the page asks for: a run's newest weights or a checkpoint, averaged as usual or otherwise."""

    run: str
    checkpoint: int | None = None
    ema_length: float | None = None


@dataclass(frozen=True, kw_only=True)
class Request(Strict):
    """A request for pictures, new or edited: their seeds and class, and the options of sampling.

    In JSON the options of sampling stand beside the other fields, see `read_request`.
    """

    sampling: Sampling = field(default_factory=Sampling)
    """The guide can be any but another run, see `guide_of`; the page may lower the batch to fit its memory."""
    seed: int = 0
    """The first seed."""
    pictures: int = 4
    """The number of pictures; their seeds count up from the first."""
    label: int | None = None
    """Class. None: seed k of new pictures gets class k mod classes, and an edited image none."""
    conditions: dict[str, str] = field(default_factory=dict)
    """Values of the model's conditions by name, for all pictures."""

    def __post_init__(self) -> None:
        _within("seed", self.seed, 0, MOST_SEED)
        _within("pictures", self.pictures, 1, MOST_PICTURES)
        if self.sampling.steps is not None:
            _within("steps", self.sampling.steps, 1, MOST_STEPS)
        for size, names in (("tile", ("tile", "tile")), ("resolution", ("height", "width"))):
            for name, side in zip(names, pair(getattr(self.sampling, size)) or (), strict=False):
                _within(name, side, 1, 2**15)

    @property
    def seeds(self) -> range:
        """The seeds of the requested pictures, one per picture."""
        return range(self.seed, self.seed + self.pictures)


@dataclass(frozen=True, kw_only=True)
class SampleRequest(Request):
    """A request for new pictures of several models, from the same seeds."""

    models: list[ModelChoice]
    pictures: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        _within("models", len(self.models), 1, MOST_MODELS)


@dataclass(frozen=True, kw_only=True)
class EditRequest(Request):
    """A request to fill an image in where a mask is white, to extend it, or to restore it: see `Task`."""

    model: ModelChoice
    image: str
    """The image: a PNG with the model's channels, in base64."""
    mask: str | None = None
    """The mask: a PNG of the same size, white where the image is to be filled, in base64."""
    extend: dict[str, int] | None = None
    """Pixels to add to the image at the left, right, top and bottom."""
    restore: Restoration | None = None
    factor: int | None = None
    blur: float | None = None
    noise: float | None = None
    covariance: Covariance | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor is not None:
            _within("factor", self.factor, 1, 2**20)
        self.task.check()
        for side, pixels in (self.extend or {}).items():
            if pixels > 2**15:  # before the larger image is made
                raise InputError(f"an image can be extended by some pixels at a side, not by {pixels:,} at the {side}")

    @property
    def task(self) -> Task:
        """The requested edit or restoration as a `Task`."""
        return Task(self.mask is not None, self.extend, self.restore, self.factor, self.blur, self.noise)


# Made at import, by one thread: two that read the docstrings of `Sampling` at once make Python 3.11's parser fail.
_ADAPTERS: dict[type, TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in (SampleRequest, EditRequest, Sampling)}


def read_request(kind: type[T], body: bytes) -> T:
    """Parse and check JSON from the page, in which the options of sampling stand beside the other fields.

    Raises:
        InputError: the JSON is no valid request of the class ``kind``.
    """
    try:
        found = from_json(body)
    except ValueError as error:
        raise InputError(f"the request: invalid json: {error}") from None
    _check_small(found)
    if isinstance(found, dict) and "sampling" not in found:
        found["sampling"] = {name: found.pop(name) for name in _OPTIONS if name in found}
    try:
        return _ADAPTERS[kind].validate_python(found)
    except ValidationError as error:
        # A size can be an int or a pair; the error that is deepest inside is the one of the type that was meant.
        worst: Any = max(error.errors(include_url=False), key=lambda each: len(each["loc"]))
        if isinstance(reason := worst.get("ctx", {}).get("error"), InputError):
            raise reason from None
        path = [str(part) for part in worst["loc"] if part not in ("sampling", "int", "float") and "[" not in str(part)]
        raise InputError(
            f"{'.'.join(path) or 'the request'}: {worst['msg'].lower()}", option=".".join(path) or None
        ) from None


def _check_small(found: Any) -> None:
    """Raise an `InputError` for lists and objects of many entries, of each of which the checks make an error."""
    inner = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    if len(inner) > _MOST_ENTRIES:
        raise InputError(f"the request: one part has {len(inner):,} entries, and at most {_MOST_ENTRIES} are taken")
    for value in inner:
        _check_small(value)


def options_schema() -> dict[str, Any]:
    """Return the JSON schema of the sampling options, from which the page makes input fields for the rarer ones."""
    schema = _ADAPTERS[Sampling].json_schema()
    schema["properties"]["solver"]["enum"] = list(SOLVERS)
    schema["properties"]["schedule"]["enum"] = list(SCHEDULES)
    return schema


def _within(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InputError(f"{name} can be {least} to {most:,} here, not {value:,}")
