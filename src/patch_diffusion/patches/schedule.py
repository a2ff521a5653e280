"""The schedule of patch sizes: each training step's size, number of images and loss weight, for any number of axes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Literal, get_args

from patch_diffusion.config import Patches
from patch_diffusion.data.small import small_shape
from patch_diffusion.errors import InputError, about, did_you_mean, option_error
from patch_diffusion.patches.shapes import Shape, as_text, parse_size, patch_shape
from patch_diffusion.streams import uniform

Kind = Literal["stochastic", "progressive"]
Growth = Literal["linear", "area", "none"]
Weight = Literal["patch", "area"]

SMALL_SHARE = 1 / 4
"""Share of the steps that train on downscaled whole images, if the network gets such an image with every patch."""


@dataclass(frozen=True)
class PatchSize:
    """One image or patch size that training steps take, in pixels, for images of one shape.

    ``shape`` is (height, width), or (depth, height, width); ``probability`` is the share of the steps that take this
    size, or if the schedule is progressive, of the budget, be it steps, images or minutes (but of the steps if
    ``small``); ``growth`` is the factor on their batch size, and ``weight`` the factor on their loss. If ``small``, the
    size is not that of a patch but of a downscaled whole image, see `make_small`.
    """

    shape: Shape
    probability: float
    growth: float
    weight: float
    small: bool = False

    def num_images(self, batch: int) -> int:
        """Return the number of images in a step of this size, if a step on whole images has ``batch``."""
        return max(1, round(batch * self.growth))

    def __str__(self) -> str:
        return as_text(self.shape) + " small" * self.small


@dataclass(frozen=True)
class PatchSchedule(Patches):
    """The schedule of image and patch sizes of training steps (Patch Diffusion, arXiv 2304.12526, section 3.2).

    It holds the options ``patches`` of a config and applies them. A size is a fraction of the image ("1/2", rounded
    down along each axis) or the pixels of the shorter side ("32", which keeps the aspect ratio). For patches of side s
    of images of side R, the batch grows by R/s ("linear"), by the ratio of the numbers of pixels ("area"), or not; if
    the aspect ratios differ, R/s is the root of the ratio of the numbers of pixels.

    Args:
        whole, sizes, kind, growth, weight, coords, context: see `patch_diffusion.config.Patches`.
        seed: the seed of the training; a step's size is a function of the seed and the step alone. It is an option of
            the whole config and not stored with ``patches``. None: the seed of the config, or 0.

    Raises:
        InputError: at construction, if the options are invalid; in `sizes_for`, if a size does not fit the images or
            the network.

    >>> schedule = PatchSchedule(whole=0.5, seed=1)
    >>> [str(size) for size in schedule.sizes_for((64, 64))]
    ['16x16', '32x32', '64x64']
    """

    seed: int | None = None

    @about("patches.sizes")
    def __post_init__(self) -> None:
        if self.kind == "fixed":
            warnings.warn("patches.kind 'fixed' is 'stochastic' with one size now", DeprecationWarning, stacklevel=3)
            object.__setattr__(self, "kind", "stochastic")
        for name, choices in (("kind", Kind), ("growth", Growth), ("weight", Weight)):
            value = str(getattr(self, name))
            if value not in get_args(choices):
                raise option_error(f"patches.{name}", f"cannot be '{value}'{did_you_mean(value, get_args(choices))}")
        if not 0 <= self.whole <= 1:
            raise option_error("patches.whole", f"is a probability between 0 and 1, not {self.whole}")
        for size, share in self.sizes.items():
            parse_size(size)
            if not 0 <= share <= 1:
                raise InputError(f"the share of patch size {size} lies between 0 and 1, not {share}")
        total = math.fsum(self.sizes.values())
        if self.whole < 1 and abs(total - 1) > 1e-6:
            raise InputError(
                f"the shares in patches.sizes add up to {total:g}, but they share out the steps that are not on whole "
                f"images and must add up to 1; for example {_rescaled(self.sizes, total)}"
            )

    @classmethod
    def of(cls, options: Patches, *, seed: int = 0) -> PatchSchedule:
        """Make the schedule from a config's options and seed; options that are a schedule already keep their class."""
        if isinstance(options, PatchSchedule):
            return replace(options, seed=seed)
        return cls(**{field.name: getattr(options, field.name) for field in fields(Patches)}, seed=seed)

    def sizes_for(self, resolution: Shape, stride: int = 1) -> tuple[PatchSize, ...]:
        """Return the image and patch sizes in pixels that training steps take, from small to large.

        Args:
            resolution: shape of the whole images.
            stride: the number that the network needs every side to be a multiple of.
        """
        shares = tuple((str(size), share) for size, share in self.sizes.items())
        return _sizes(self.whole, shares, self.growth, self.weight, self.context, tuple(resolution), stride)

    def size_at(self, step: int, resolution: Shape, spent: float = 0.0, stride: int = 1) -> PatchSize:
        """Return the size of a step, by its number and, if the schedule is progressive, the budget's spent fraction."""
        sizes, seed = self.sizes_for(resolution, stride), self.seed or 0
        small_share = 0.0 if self.context is None else SMALL_SHARE
        if self.context is not None and uniform(seed, "small images", step) < small_share:
            return next(size for size in sizes if size.small)
        sizes = [size for size in sizes if not size.small]
        place = spent if self.kind == "progressive" else uniform(seed, "patch size", step)
        place *= 1 - small_share
        for size in sizes:
            place -= size.probability
            if place < 0:
                return size
        return sizes[-1]


@lru_cache(maxsize=256)
@about("patches.sizes")
def _sizes(
    whole: float,
    shares_of_rest: tuple[tuple[str, float], ...],
    growth: Growth,
    weight: Weight,
    context: int | None,
    resolution: Shape,
    stride: int,
) -> tuple[PatchSize, ...]:
    """Return the sizes of `PatchSchedule.sizes_for`; the result is memoized, since every step needs it."""
    # Samples are whole images, even if training never takes one.
    _check_stride(resolution, resolution, stride)
    shares: dict[Shape, float] = {}
    if whole > 0:
        shares[resolution] = whole
    if whole < 1:
        for size, share in shares_of_rest:
            if share > 0:
                shape = patch_shape(size, resolution)
                shares[shape] = shares.get(shape, 0.0) + share * (1 - whole)
    for shape in shares:
        _check_stride(shape, resolution, stride)
    small_share = 0.0 if context is None else SMALL_SHARE
    given = [(shape, share * (1 - small_share), False) for shape, share in shares.items()]
    if context is not None:
        given.append((small_shape(context, resolution, stride), small_share, True))
    sizes = []
    for shape, probability, small in sorted(given, key=lambda each: math.prod(each[0])):
        area = math.prod(shape) / math.prod(resolution)
        factor = {"linear": area ** (-1 / len(shape)), "area": 1 / area, "none": 1.0}[growth]
        sizes.append(PatchSize(shape, probability, factor, area if weight == "area" else 1.0, small))
    return tuple(sizes)


def shares_text(shares: Mapping[str, float], kind: str) -> str:
    """Return a text of the shares of patch sizes, by name, such as "16x16 20%, 32x32 80%", and what they are of."""
    text = ", ".join(f"{size} {share:.0%}" for size, share in shares.items())
    return f"{text} of the budget, from small to large" if kind == "progressive" else text


def _check_stride(shape: Shape, resolution: Shape, stride: int) -> None:
    if all(length % stride == 0 for length in shape):
        return
    halves = f"halves them {stride.bit_length() - 1} times and needs multiples of {stride}"
    if shape == resolution:
        below = as_text([max(length // stride, 1) * stride for length in shape])
        raise InputError(
            f"images of {as_text(shape)} cannot pass the network, which {halves}: set data.resolution, for example to "
            f"{below}, or take fewer network.multipliers",
            option="data.resolution",
        )
    shorter = min(resolution)
    fitting = [
        side
        for side in range(stride, shorter, stride)
        if all(length * side % (shorter * stride) == 0 for length in resolution)
    ]
    choice = f"patch sizes that fit are {', '.join(map(str, fitting))}" if fitting else "no smaller patch fits"
    raise InputError(
        f"patches of {as_text(shape)} cannot pass the network, which {halves}: for images of {as_text(resolution)} "
        f"{choice} (patches.sizes, in pixels of the shorter side); or take fewer network.multipliers"
    )


def _rescaled(sizes: Mapping[str, float], total: float) -> str:
    shares = [1 / len(sizes)] * len(sizes) if total <= 0 and sizes else [share / total for share in sizes.values()]
    return ", ".join(f"{size}: {share:.3g}" for size, share in zip(sizes, shares, strict=True)) or "1/2: 1"
