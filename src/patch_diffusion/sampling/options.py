"""The options of sampling, each written once: for Python, the command line, the web page and ``samples.json``.

This module imports no heavy library at its top, so that ``--help`` is quick.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Annotated as Float, Annotated as Float64, Any, ClassVar, Literal, get_args

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from patch_diffusion.errors import (
    Checked,
    InputError,
    Note,
    about,
    check_name,
    did_you_mean,
    finite_number,
    option_error,
    whole_number,
)
from patch_diffusion.patches.shapes import Shape, no_multiples
from patch_diffusion.records import Strict

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from patch_diffusion.denoise.conditions import Conditions
    from patch_diffusion.denoise.denoiser import Denoiser
    from patch_diffusion.sampling.step import ConditionalDenoise, Denoise

    Guide = str | Denoiser
    Size = int | tuple[int, ...]
else:  # as the command line and the page read them
    Guide, Size = str, int | tuple[int, int]

_MOST_AT_ONCE = 2**31
_NO_NUMBERS = ("solver", "schedule", "guide", "coords", "precision", "compile")
_WHOLE = ("steps", "resolution", "tile", "overlap", "batch")
_PAIRS = ("resolution", "tile", "guidance_interval")

SOLVER_NAMES = (
    *("euler", "heun", "dpm_solver_2m", "dpm_solver_3m", "unipc"),
    *("euler_maruyama", "stochastic_heun", "ancestral", "consistency"),
)
SCHEDULE_NAMES = ("karras", "vp", "ve", "exponential", "few", "flow")
"""The names of all solvers and schedules, known without their functions."""


def check_solver(name: str) -> None:
    """Raise an `InputError` if there is no solver of this name."""
    check_name("solver", name, SOLVER_NAMES)


def check_schedule(name: str) -> None:
    """Raise an `InputError` if there is no schedule of this name."""
    check_name("schedule", name, SCHEDULE_NAMES)


def _parse_scales(words: list[str]) -> float | dict[str, float]:
    if len(words) == 1 and "=" not in words[0]:
        return float(words[0])
    pairs = [word.partition("=") for word in words]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError(f"give one scale, or one for each condition, as in class=2 age=1.5, not {' '.join(words)}")
    return {name: float(scale) for name, _, scale in pairs}


# On the command line: --guidance 2, or --guidance class=2 age=1.5
_SCALES = PrimitiveConstructorSpec(
    nargs="*",
    metavar="SCALE",
    instance_from_str=_parse_scales,
    is_instance=lambda instance: isinstance(instance, int | float | dict),
    str_from_instance=lambda scales: (
        [f"{name}={scale:g}" for name, scale in scales.items()] if isinstance(scales, dict) else [f"{scales:g}"]
    ),
)
_SOLVER = "heun"  # of ordinary models

Coords = Literal["stretch", "extend", "repeat"]
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Sampling(Strict):
    """The options of sampling: the solver, its noise levels, guidance, and how a model is shown the images.

    None stands for a default that depends on the model, the solver or the schedule. `generate` takes all options;
    `edit` has a solver and a schedule of its own.

    Raises:
        InputError: a number is not finite, or not whole where it must be.

    >>> Sampling(steps=8, solver="dpm_solver_2m", guidance=2.0).steps
    8
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {**Strict.__pydantic_config__, "use_attribute_docstrings": True}

    steps: int | None = None
    """Number of solver steps. Default: 18, or 32 for editing; a tuned run has its own."""
    solver: Annotated[str | None, Checked(check_solver), arg(metavar="NAME")] = None
    """Solver: euler, heun, dpm_solver_2m, dpm_solver_3m or unipc; or one that adds noise at each step and needs more
    steps: stochastic_heun, ancestral or euler_maruyama. heun and stochastic_heun evaluate the network twice in each
    step, the others once. consistency is for tuned runs. Default: heun, or consistency for tuned runs."""
    schedule: Annotated[str | None, Checked(check_schedule), arg(metavar="NAME")] = None
    """Spacing of the noise levels: karras, vp, ve, exponential, few or flow. Default: karras, few for tuned runs, or
    flow for models of noise.process flow."""
    sigma_min: float | None = None
    """Lowest noise level. Default: the model's own."""
    sigma_max: float | None = None
    """Highest noise level. Default: the model's own."""
    rho: float | None = None
    """Curvature of the schedule; higher values put more steps at low noise levels. Default: 7 for karras, 1 for
    exponential; other schedules have none."""
    shift: float | None = None
    """Shift of the schedule flow; above 1 it puts more steps at high noise levels. Default: 1."""
    churn: float | None = None
    """Amount of noise that stochastic_heun adds. Default: 40."""
    churn_min: float | None = None
    """Lowest noise level at which stochastic_heun adds noise. Default: 0.05."""
    churn_max: float | None = None
    """Highest noise level at which stochastic_heun adds noise. Default: 50."""
    churn_noise: float | None = None
    """Standard deviation of the noise that stochastic_heun adds. Default: 1.003."""
    eta: float | None = None
    """Share of fresh noise in each step of ancestral, from 0 to 1. Default: 1."""
    guidance: Annotated[float | dict[str, float], _SCALES] = 1.0
    """Scale of guidance; 1 is no guidance. Or a scale for each of some conditions, as in class=2 age=1.5."""
    guide: Annotated[Guide, arg(metavar="NAME")] = "class"
    """Weaker model that guidance steers away from. class: the model without class and conditions. crops: the model on
    crops of half the sides, or of others as in crops:1/4. step:400: an earlier checkpoint. ema:0.02: another weight
    average. Or the folder of another run; in Python also a denoiser."""
    guidance_interval: Annotated[tuple[float, float] | None, arg(metavar="LOW HIGH")] = None
    """Noise levels with guidance: those above LOW and up to HIGH. Default: all levels."""
    resolution: Size | None = None
    """Size of the images, in pixels: one number for squares, or height and width. Default: that of the training
    images."""
    coords: Annotated[Coords | None, arg(metavar="NAME")] = None
    """Pixel coordinates for images of another size than in training. stretch: those of the training images, stretched
    over the image. extend: continued beyond them. repeat: each tile has those of a training image. Default: stretch, or
    repeat for tiles of larger images."""
    tile: Size | None = None
    """Size of overlapping tiles, for images that are too large for the memory: one number for squares, or height and
    width. Default: no tiles."""
    overlap: int | None = None
    """Overlap of neighbouring tiles, in pixels. Default: a quarter of their side."""
    batch: int = 64
    """Number of images to sample at a time."""
    precision: Annotated[Precision, arg(metavar="NAME")] = "fp32"
    """Number format of the network's computations: fp32, bf16 or, on CUDA GPUs, fp16. The solver computes in more."""
    compile: bool = False
    """Compile the network with torch.compile, once for each image size; this takes minutes at the start."""

    def __post_init__(self) -> None:
        if isinstance(self.guidance, dict):
            scales = {name: finite_number(f"guidance {name}", scale) for name, scale in self.guidance.items()}
            object.__setattr__(self, "guidance", scales if any(scale != 1 for scale in scales.values()) else 1.0)
        for name, value in list(vars(self).items()):
            if isinstance(value, dict):
                continue
            if name not in _NO_NUMBERS and value is not None:
                check, several = whole_number if name in _WHOLE else finite_number, isinstance(value, tuple | list)
                if several and (name not in _PAIRS or len(value) != 2):
                    raise option_error(name, f"is {'two numbers' if name in _PAIRS else 'one number'}, not {value}")
                found = tuple(check(name, each) for each in value) if several else check(name, value)
                object.__setattr__(self, name, found)

    def settled(self, model: Denoiser, steps: int | None = None, *, usual: int = 18) -> Sampling:
        """Return the options with steps, solver and schedule: their own, else the given, the model's or usual ones."""
        if steps is not None and self.steps is not None and steps != self.steps:
            raise InputError(
                f"sampling has {self.steps} steps, and steps={steps} is given beside it: leave one out", option="steps"
            )
        few = model.few_steps
        return replace(
            self,
            steps=next(each for each in (self.steps, steps, few, usual) if each is not None),
            solver=self.solver or (_SOLVER if few is None else "consistency"),
            schedule=self._schedule(model),
        )

    def refuse(self, names: Collection[str], reason: str) -> None:
        """Raise an `InputError` with the reason if one of the named options is not at its default."""
        for field in fields(self):
            if field.name in names and getattr(self, field.name) != field.default:
                raise option_error(field.name, f"has no effect: {reason}")

    def sigmas(self, model: Denoiser) -> Float64[Tensor, "{self.steps}+1"]:
        """Return the noise levels of a model's solver steps, from high to low and then 0."""
        from patch_diffusion.sampling.solvers import SCHEDULES

        schedule = self._schedule(model)
        options = self._schedule_options(schedule)
        if schedule == "few":
            options["sigma_data"] = model.sigma_data
        low = model.sigma_min if self.sigma_min is None else self.sigma_min
        high = model.sigma_max if self.sigma_max is None else self.sigma_max
        # As floats, since torch takes no whole numbers of more than 64 bits.
        return SCHEDULES[schedule](self.steps, float(low), float(high), **options)

    def solver_for(self, model: Denoiser, sigmas: Float[Tensor, "levels"]) -> Callable[..., Tensor]:
        """Return the solver with its options, or raise an `InputError` if one is unknown or out of range."""
        from patch_diffusion.sampling.solvers import ONLY_NOISE, TOO_FEW, TUNED, UNTUNED
        from patch_diffusion.sampling.stochastic import OF_EACH

        options, solver = self._solver_options(), self.solver or _SOLVER
        if (solver == "consistency") != (model.few_steps is not None):
            warnings.warn(UNTUNED if model.few_steps is None else TUNED.format(solver), Note, stacklevel=4)
        elif "heun" in solver and 1 < (self.steps or 1) < TOO_FEW:
            warnings.warn(ONLY_NOISE.format(solver, self.steps), Note, stacklevel=4)
        if solver == "euler_maruyama":
            options["process"] = model.process
        solve = partial(OF_EACH[model.process.name][solver], **options)
        # A single level is no step, so this call only lets the solver check its options.
        solve(lambda noisy, sigma: noisy, sigmas[:1], sigmas[:1], noise=lambda index: sigmas[:1])
        return solve

    def is_guided(self) -> bool:
        """Return True if there is guidance, and raise an `InputError` if only its options are given."""
        if self.guidance == 1 and (self.guidance_interval is not None or self.guide != "class"):
            raise option_error("guide", "and guidance_interval are for a guidance other than 1, which is none")
        return self.guidance != 1

    def view(self, model: Denoiser, inside: tuple[int, int, int, int] | None = None) -> View:
        """Return the `View` of images, whole or in tiles, for a model; raise an `InputError` if it cannot take them.

        For an image that was extended, ``inside`` is where the original lies (top, left, height, width), whose
        coordinates "extend" then continues.
        """
        from patch_diffusion.patches.coords import coordinate_grid

        if self.batch < 1:
            raise InputError(f"a batch has at least 1 image, not {self.batch}", option="batch")
        if self.precision != "fp32":
            self._check_precision(model)
        shape, tile = pair(self.resolution) or model.resolution, pair(self.tile)
        if shape is None:
            raise option_error("resolution", "is not known to this model: give (height, width)")
        _check_stride(model, shape, tile)
        overlap = 0
        if tile or self.overlap is not None:
            from patch_diffusion.sampling.tiles import checked_overlap

            overlap = checked_overlap(shape, tile, self.overlap)
        kind = self._coords(model, shape, tile) if tile or self.coords else "stretch"
        grid = coordinate_grid(*shape, device=model.device)
        if kind != "stretch":
            grid = _grid(kind, model.resolution or shape, shape, tile, inside, model.device)
        usual = not model.coords or (kind == "stretch" and shape == model.resolution)
        view = View(shape, grid, kind, tile, overlap, min(self.batch, _MOST_AT_ONCE), usual)
        return view if model.context is None or min(shape) <= model.context else _with_small(view, model)

    def called(self, model: ConditionalDenoise) -> ConditionalDenoise:
        """Return a model whose network computes in the number format of the options."""
        return model if self.precision == "fp32" else _in_half(model, self.precision)

    def compiled(self, model: Denoiser) -> tuple[Denoiser, Sampling]:
        """Return a model and the options, with compiled networks: that of the model, and of a guide that is another."""
        from patch_diffusion.denoise.compiling import compiled

        if self.compile is not True:
            raise option_error("compile", f"is True or False, not {self.compile!r}")
        guide = self.guide if isinstance(self.guide, str) else compiled(self.guide)
        return compiled(model), replace(self, guide=guide)

    def settings(self, model: Denoiser, view: View, sigmas: Float[Tensor, "levels"]) -> dict[str, Any]:
        """Return the options, with defaults filled in, as a dict that JSON can store; ``samples.json`` holds it."""
        schedule = self._schedule(model)
        return {
            "steps": self.steps,
            "solver": self.solver or _SOLVER,
            **self._solver_options(),
            "schedule": schedule,
            **self._schedule_options(schedule),
            "guidance": self.guidance,
            **({} if self.guidance == 1 else self._guide_settings()),
            **view.settings,
            **({} if self.precision == "fp32" else {"precision": self.precision}),
            **({"compile": True} if self.compile else {}),
            "sigma_min": float(sigmas[-2]),
            "sigma_max": float(sigmas[0]),
        }

    def _schedule(self, model: Denoiser) -> str:
        """Return the schedule: that of the options, else what suits a tuned model, or the model's process."""
        return self.schedule or (model.process.schedule if model.few_steps is None else "few")

    def _schedule_options(self, schedule: str) -> dict[str, Any]:
        from patch_diffusion.sampling.solvers import SCHEDULES, options_of

        return options_of("schedule", schedule, SCHEDULES, {"rho": self.rho, "shift": self.shift})

    def _solver_options(self) -> dict[str, Any]:
        from patch_diffusion.sampling.solvers import options_of
        from patch_diffusion.sampling.stochastic import SOLVERS

        names = ("churn", "churn_min", "churn_max", "churn_noise", "eta")
        return options_of("solver", self.solver or _SOLVER, SOLVERS, {name: getattr(self, name) for name in names})

    def _guide_settings(self) -> dict[str, Any]:
        guide = self.guide if isinstance(self.guide, str) else "model"
        interval = {} if self.guidance_interval is None else {"guidance_interval": list(self.guidance_interval)}
        return {"guide": guide, **interval}

    @about("precision")
    def _check_precision(self, model: Denoiser) -> None:
        from patch_diffusion.devices import check_format

        if self.precision not in get_args(Precision):
            raise InputError(
                f"precision cannot be '{self.precision}'{did_you_mean(self.precision, get_args(Precision))}"
            )
        check_format(self.precision, model.device)

    @about("coords")
    def _coords(self, model: Denoiser, shape: Shape, tile: Shape | None) -> Coords:
        """Return the checked kind of coordinates; by default, tiles of larger images repeat those of training."""
        if self.coords is None:
            is_larger = any(side > own for side, own in zip(shape, model.resolution or shape, strict=True))
            return "repeat" if is_larger and model.context is None else "stretch"
        if model.context is not None and self.coords != "stretch":
            raise InputError(f"coords '{self.coords}' go beyond the small copy of the image that this model uses")
        if self.coords not in get_args(Coords):
            raise InputError(f"coords cannot be '{self.coords}'{did_you_mean(self.coords, get_args(Coords))}")
        if not model.coords:
            raise InputError("this model was trained without coordinates: leave coords out")
        if self.coords == "repeat" and tile is None:
            raise InputError("coords 'repeat' is for tiles: give tile, too")
        if self.coords == "extend" and model.resolution is None:
            raise InputError("this model does not know the resolution of its images, which coords 'extend' needs")
        return self.coords


@dataclass(frozen=True)
class View:
    """A view of images: a model sees the whole image at once, or a tile at a time, with these coordinates.

    Args:
        resolution: height and width of the images.
        grid: coordinates of the whole image, or those of a tile that every tile is given.
        kind: how the coordinates were made.
        tile: height and width of the tiles; None: the whole image at once.
        overlap: pixels by which tiles overlap at least.
        batch: the number of whole images, or of tiles, that the model is given together.
        is_usual: True if the coordinates are those of the training images.
        small: the view of the small copies that a model with a context makes first; None: it makes none.
    """

    resolution: Shape
    grid: Float[Tensor, "axes *shape"]
    kind: Coords
    tile: Shape | None
    overlap: int
    batch: int
    is_usual: bool
    small: View | None = None

    def bind(self, model: ConditionalDenoise, conditions: Conditions) -> Denoise:
        """Return a function ``denoise(noisy, sigma)`` by a model, with these conditions and the view's coordinates."""
        conditions = replace(conditions, coords=self.grid)
        if self.tile is None:
            return bind(model, conditions)
        from patch_diffusion.sampling.tiles import covering, in_tiles, smooth_window

        places = covering(self.resolution, self.tile, self.overlap)
        return in_tiles(model, conditions, places, smooth_window(self.tile, self.overlap), self.batch)

    @property
    def images_at_once(self) -> int:
        """The number of images to solve together: fewer large ones in tiles, so that they fit the memory of a batch."""
        if self.tile is None:
            return self.batch
        return max(1, self.batch * self.tile[0] * self.tile[1] // (self.resolution[0] * self.resolution[1]))

    @property
    def settings(self) -> dict[str, Any]:
        """The resolution, tiles and coordinates as a dict that JSON can store."""
        found: dict[str, Any] = {"resolution": list(self.resolution)}
        if not self.is_usual:
            found["coords"] = self.kind
        if self.tile is not None:
            found |= {"tile": list(self.tile), "overlap": self.overlap}
        if self.small is not None:
            found["context"] = list(self.small.resolution)
        return found


def bind(model: ConditionalDenoise, conditions: Conditions) -> Denoise:
    """Return a function ``denoise(noisy, sigma)`` by a model under conditions; the solver keeps its wider dtype."""

    def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
        return model(noisy.float(), sigma.float(), conditions).to(noisy)

    return denoise


def _in_half(model: ConditionalDenoise, precision: Precision) -> ConditionalDenoise:
    import torch

    type = torch.bfloat16 if precision == "bf16" else torch.float16

    def denoise(noisy: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        with torch.autocast(noisy.device.type, type):
            return model(noisy, sigma, conditions)

    return denoise


def pair(size: Size | None) -> Shape | None:
    """Return the height and width of a size that may be given as one side."""
    return (size, size) if isinstance(size, int) else size


def _check_stride(model: Denoiser, shape: Shape, tile: Shape | None) -> None:
    """Raise InputError if the network cannot take images of this shape, or of an image in tiles, the tiles."""
    height, width = tile or shape
    if min(height, width, *shape) < 1 or height % model.stride or width % model.stride:
        if tile and min(shape) > 0:
            raise InputError(no_multiples(tile, model.stride, what="height and width of a tile"), option="tile")
        told = f"{no_multiples(shape, model.stride)}, or give tile, which makes images of any size"
        raise InputError(told, option="resolution")


def _grid(
    kind: Coords,
    whole: Shape,
    shape: Shape,
    tile: Shape | None,
    inside: tuple[int, int, int, int] | None,
    device: torch.device,
) -> Tensor:
    """Return coordinates that extend those of images of ``whole`` shape, or those that all tiles repeat."""
    from patch_diffusion.patches.coords import coordinate_grid, extended_grid

    if kind == "repeat":
        return coordinate_grid(*(tile or shape), device=device)
    if inside is None:
        return extended_grid(shape, whole, ((whole[0] - shape[0]) / 2, (whole[1] - shape[1]) / 2), device=device)
    top, left, height, width = inside
    return extended_grid(shape, (height, width), (-top, -left), device=device)


def _with_small(view: View, model: Denoiser) -> View:
    """Return a view of images with the view of their small copies added, for a model with a context."""
    from patch_diffusion.data.small import small_shape
    from patch_diffusion.patches.coords import coordinate_grid

    assert model.context is not None
    shape = small_shape(model.context, view.resolution, model.stride)
    small = replace(view, resolution=shape, grid=coordinate_grid(*shape, device=model.device), tile=None)
    return replace(view, small=small)
