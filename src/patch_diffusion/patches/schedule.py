"""The patch size of each training step, its number of images and its weight. Any number of axes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import lru_cache
from typing import Literal, get_args

from patch_diffusion.config import Patches
from patch_diffusion.data.small import small_shape
from patch_diffusion.errors import InputError, did_you_mean
from patch_diffusion.streams import uniform

Kind = Literal["stochastic", "progressive"]
Growth = Literal["linear", "area", "none"]
Weight = Literal["patch", "area"]
Shape = tuple[int, ...]

SMALL_SHARE = 1 / 4
"""Share of the steps that a schedule with a context takes on the small whole images themselves."""


@dataclass(frozen=True)
class PatchSize:
    """One size of a schedule, in the pixels of images of one shape.

    ``shape`` is (height, width), or (depth, height, width); ``probability`` its share of the steps, ``growth`` the
    factor on the batch, ``weight`` the factor on the loss. ``small``: it is no patch, but the whole image made small,
    see `make_small`.
    """

    shape: Shape
    probability: float
    growth: float
    weight: float
    small: bool = False

    def num_images(self, batch: int) -> int:
        """Return the number of images in a step of this size, for ``batch`` whole images."""
        return max(1, round(batch * self.growth))

    def __str__(self) -> str:
        return _text(self.shape) + " small" * self.small


@dataclass(frozen=True)
class PatchSchedule(Patches):
    """The sizes that training takes (Patch Diffusion, arXiv 2304.12526, section 3.2).

    The options ``patches`` of a config, and what they do. A size is a fraction of the image ("1/2", rounded down, each
    axis on its own) or the pixels of the shorter side ("32", the aspect is kept). The batch grows for a patch s of an
    image R by R/s ("linear"), by the ratio of their numbers of pixels ("area"), or not; for a patch of another aspect
    R/s is the root of that ratio.

    Args:
        whole, sizes, kind, growth, weight, coords, context: see `patch_diffusion.config.Patches`.
        seed: of the run; the size of a step is a function of the seed and the step alone. It is an option of the whole
            config and not stored with the patches. None: that of the config, or 0.

    Raises:
        InputError: at construction where the numbers make no schedule; in `sizes_for` where they do not suit the image
            or the network.

    >>> schedule = PatchSchedule(whole=0.5, seed=1)
    >>> [str(size) for size in schedule.sizes_for((64, 64))]
    ['16x16', '32x32', '64x64']
    """

    seed: int | None = None

    def __post_init__(self) -> None:
        if self.kind == "fixed":
            warnings.warn("patches.kind 'fixed' is 'stochastic' with one size now", DeprecationWarning, stacklevel=3)
            object.__setattr__(self, "kind", "stochastic")
        for name, choices in (("kind", Kind), ("growth", Growth), ("weight", Weight)):
            value = str(getattr(self, name))
            if value not in get_args(choices):
                raise InputError(f"patches.{name} cannot be '{value}'{did_you_mean(value, get_args(choices))}")
        if not 0 <= self.whole <= 1:
            raise InputError(f"patches.whole is a probability between 0 and 1, not {self.whole}")
        for size, share in self.sizes.items():
            _parse_size(size)
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
        """Return the schedule of a config's options and seed; one that acts already stays of its own class."""
        if isinstance(options, PatchSchedule):
            return replace(options, seed=seed)
        return cls(**{field.name: getattr(options, field.name) for field in fields(Patches)}, seed=seed)

    def sizes_for(self, resolution: Shape, stride: int = 1) -> tuple[PatchSize, ...]:
        """Return the sizes in pixels, from small to large, that have a share of the steps.

        Args:
            resolution: shape of the whole images.
            stride: the number that the network needs every side to be a multiple of.
        """
        shares = tuple((str(size), share) for size, share in self.sizes.items())
        return _sizes(self.whole, shares, self.growth, self.weight, self.context, tuple(resolution), stride)

    def size_at(self, step: int, resolution: Shape, spent: float = 0.0, stride: int = 1) -> PatchSize:
        """Return the size of a step, from its number and, for a progressive schedule, the spent part of the budget."""
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
def _sizes(
    whole: float,
    shares_of_rest: tuple[tuple[str, float], ...],
    growth: Growth,
    weight: Weight,
    context: int | None,
    resolution: Shape,
    stride: int,
) -> tuple[PatchSize, ...]:
    """Return the sizes of `PatchSchedule.sizes_for`; kept, since every step asks for them."""
    # Sampling is on whole images, also where training never sees one.
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


def _parse_size(size: str | int) -> Fraction | int:
    """Return a size as a fraction of the image, or as pixels."""
    text = str(size).strip()
    try:
        parsed = Fraction(text) if "/" in text else int(text)
    except (ValueError, ZeroDivisionError):
        parsed = 0
    if parsed <= 0 or (isinstance(parsed, Fraction) and parsed >= 1):
        raise InputError(
            f"patch size '{size}' is neither a fraction of the image such as '1/2' nor pixels such as '32'"
        )
    return parsed


def patch_shape(size: str | int, resolution: Shape) -> Shape:
    """Return the shape of a patch of an image.

    Args:
        size: a fraction of the image such as "1/2", or pixels of its shorter side.
        resolution: shape of the image.

    Raises:
        InputError: for what is neither, and for a patch that does not fit.
    """
    parsed, shorter = _parse_size(size), min(resolution)
    if isinstance(parsed, Fraction):
        shape = tuple(int(length * parsed) for length in resolution)
    elif parsed <= shorter:
        shape = tuple(length * parsed // shorter for length in resolution)
    else:
        raise InputError(
            f"patch size {size} does not fit images of {_text(resolution)}: take at most {shorter}, or a fraction like "
            "1/2"
        )
    if min(shape) < 1:
        raise InputError(
            f"patch size {size} of images of {_text(resolution)} is less than one pixel: take a larger one"
        )
    return shape


def _check_stride(shape: Shape, resolution: Shape, stride: int) -> None:
    if all(length % stride == 0 for length in shape):
        return
    halves = f"halves them {stride.bit_length() - 1} times and needs multiples of {stride}"
    if shape == resolution:
        below = _text([max(length // stride, 1) * stride for length in shape])
        raise InputError(
            f"images of {_text(shape)} cannot pass the network, which {halves}: set data.resolution, for example to "
            f"{below}, or take fewer network.multipliers"
        )
    shorter = min(resolution)
    fitting = [
        side
        for side in range(stride, shorter, stride)
        if all(length * side % (shorter * stride) == 0 for length in resolution)
    ]
    choice = f"patch sizes that fit are {', '.join(map(str, fitting))}" if fitting else "no smaller patch fits"
    raise InputError(
        f"patches of {_text(shape)} cannot pass the network, which {halves}: for images of {_text(resolution)} "
        f"{choice} (patches.sizes, in pixels of the shorter side); or take fewer network.multipliers"
    )


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _rescaled(sizes: Mapping[str, float], total: float) -> str:
    shares = [1 / len(sizes)] * len(sizes) if total <= 0 and sizes else [share / total for share in sizes.values()]
    return ", ".join(f"{size}: {share:.3g}" for size, share in zip(sizes, shares, strict=True)) or "1/2: 1"
