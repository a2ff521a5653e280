"""Which patch size a step takes, how many images it takes then, and what they weigh."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, get_args

from patch_diffusion.config import Patches
from patch_diffusion.data.small import small_shape
from patch_diffusion.errors import InputError, did_you_mean
from patch_diffusion.streams import uniform

Kind = Literal["stochastic", "progressive", "fixed"]
Growth = Literal["linear", "area", "none"]
Weight = Literal["patch", "area"]

SMALL_SHARE = 1 / 4
"""Of the steps, that a schedule with a context takes on the small whole images themselves."""


@dataclass(frozen=True)
class PatchSize:
    """One size of a schedule, in the pixels of one kind of image.

    ``probability`` is its share of the steps, ``growth`` the factor on the batch, ``weight`` the factor on the loss.
    ``small``: it is no patch, but the whole image made small, see `make_small`.
    """

    height: int
    width: int
    probability: float
    growth: float
    weight: float
    small: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    def num_images(self, batch: int) -> int:
        """Images in a step of this size, for ``batch`` whole images."""
        return max(1, round(batch * self.growth))

    def __str__(self) -> str:
        return f"{self.height}x{self.width}" + " small" * self.small


@dataclass(frozen=True)
class PatchSchedule:
    """The sizes that training takes (Patch Diffusion, arXiv 2304.12526, section 3.2).

    Args:
        whole: probability p of a step on whole images, in [0, 1]. 1 is training without patches.
        sizes: the other sizes and their shares of the rest, which add up to 1. A size is a fraction of the image
            ("1/2", rounded down, each axis on its own) or the pixels of the shorter side ("32", the aspect is kept).
        kind: "stochastic" draws a size per step; "progressive" goes from small to large as the budget is spent, in the
            same proportions; "fixed" has a single size.
        growth: how the batch grows for a patch s of an image R: "linear" R/s, "area" (R/s)^2 (a step has equally many
            pixels at every size), "none". For patches of another aspect R/s is the root of the ratio of areas.
        weight: "patch" counts every patch by the mean over its pixels, "area" by the sum, as the published
            implementation does; a whole image weighs 1 in both.
        context: shorter side of the small copies of whole images that every patch is shown with, see `Denoiser`, and
            that a quarter of the steps, whatever the kind, train on by themselves; None for no such thing.
        seed: the size of a step is a function of the seed and the step alone.

    Raises:
        InputError: at construction where the numbers make no schedule; in `sizes_for` where they do not suit the image
            or the network.

    >>> schedule = PatchSchedule(whole=0.5, seed=1)
    >>> [str(size) for size in schedule.sizes_for((64, 64))]
    ['16x16', '32x32', '64x64']
    """

    whole: float = Patches.whole
    sizes: Mapping[str, float] = field(default_factory=lambda: dict(Patches().sizes))
    kind: Kind = Patches.kind
    growth: Growth = Patches.growth
    weight: Weight = Patches.weight
    context: int | None = Patches.context
    seed: int = 0

    def __post_init__(self) -> None:
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
        num_sizes = (self.whole > 0) + sum(share > 0 for share in self.sizes.values()) * (self.whole < 1)
        if self.kind == "fixed" and num_sizes != 1:
            raise InputError(
                f"patches.kind 'fixed' trains on a single size, but {num_sizes} have a share: set patches.whole to 1, "
                "or to 0 with one size of share 1"
            )

    @classmethod
    def of(cls, options: Patches, *, seed: int = 0) -> PatchSchedule:
        """That of a config's options."""
        return cls(seed=seed, **{name: value for name, value in vars(options).items() if name != "coords"})

    def options(self, *, coords: bool) -> Patches:
        """As options of a config; the seed is one of the whole run, and ``coords`` is the denoiser's."""
        sizes = {str(size): share for size, share in self.sizes.items()}
        return Patches(self.whole, sizes, self.kind, self.growth, self.weight, coords, self.context)

    def sizes_for(self, resolution: tuple[int, int], stride: int = 1) -> tuple[PatchSize, ...]:
        """The sizes in pixels, from small to large, that have a share of the steps.

        Args:
            resolution: height and width of the whole images.
            stride: the number that the network needs every height and width to be a multiple of.
        """
        whole_height, whole_width = resolution
        # Sampling is on whole images, also where training never sees one.
        _check_stride(whole_height, whole_width, resolution, stride)
        shares: dict[tuple[int, int], float] = {}
        if self.whole > 0:
            shares[resolution] = self.whole
        if self.whole < 1:
            for size, share in self.sizes.items():
                if share > 0:
                    shape = patch_shape(size, resolution)
                    shares[shape] = shares.get(shape, 0.0) + share * (1 - self.whole)
        for height, width in shares:
            _check_stride(height, width, resolution, stride)
        given = [(shape, share * (1 - self._small_share), False) for shape, share in shares.items()]
        if self.context is not None:
            given.append((small_shape(self.context, resolution, stride), self._small_share, True))
        sizes = []
        for (height, width), probability, small in sorted(given, key=lambda each: each[0][0] * each[0][1]):
            area = height * width / (whole_height * whole_width)
            growth = {"linear": area**-0.5, "area": 1 / area, "none": 1.0}[self.growth]
            weight = area if self.weight == "area" else 1.0
            sizes.append(PatchSize(height, width, probability, growth, weight, small))
        return tuple(sizes)

    def size_at(self, step: int, resolution: tuple[int, int], spent: float = 0.0, stride: int = 1) -> PatchSize:
        """The size of a step, from its number and, for a progressive schedule, the spent fraction of the budget."""
        sizes = self.sizes_for(resolution, stride)
        if self.context is not None and uniform(self.seed, "small images", step) < self._small_share:
            return next(size for size in sizes if size.small)
        sizes = [size for size in sizes if not size.small]
        place = spent if self.kind == "progressive" else uniform(self.seed, "patch size", step)
        place *= 1 - self._small_share
        for size in sizes:
            place -= size.probability
            if place < 0:
                return size
        return sizes[-1]

    @property
    def _small_share(self) -> float:
        return 0.0 if self.context is None else SMALL_SHARE


def _parse_size(size: str | int) -> Fraction | int:
    """A fraction of the image, or pixels."""
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


def patch_shape(size: str | int, resolution: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a patch of an image of this resolution.

    Args:
        size: a fraction of the image such as "1/2", or pixels of its shorter side.
        resolution: height and width of the image.

    Raises:
        InputError: for what is neither, and for a patch that does not fit.
    """
    parsed = _parse_size(size)
    height, width = resolution
    shorter = min(resolution)
    if isinstance(parsed, Fraction):
        shape = (int(height * parsed), int(width * parsed))
    elif parsed <= shorter:
        shape = (height * parsed // shorter, width * parsed // shorter)
    else:
        raise InputError(
            f"patch size {size} does not fit images of {height}x{width}: take at most {shorter}, or a fraction like 1/2"
        )
    if min(shape) < 1:
        raise InputError(f"patch size {size} of images of {height}x{width} is less than one pixel: take a larger one")
    return shape


def _check_stride(height: int, width: int, resolution: tuple[int, int], stride: int) -> None:
    if height % stride == 0 and width % stride == 0:
        return
    whole_height, whole_width = resolution
    halves = f"halves them {stride.bit_length() - 1} times and needs multiples of {stride}"
    if (height, width) == resolution:
        below = f"{max(height // stride, 1) * stride}x{max(width // stride, 1) * stride}"
        raise InputError(
            f"images of {height}x{width} cannot pass the network, which {halves}: set data.resolution, for example to "
            f"{below}, or take fewer network.multipliers"
        )
    shorter, longer = sorted(resolution)
    fitting = [side for side in range(stride, shorter, stride) if longer * side % (shorter * stride) == 0]
    choice = f"patch sizes that fit are {', '.join(map(str, fitting))}" if fitting else "no smaller patch fits"
    raise InputError(
        f"patches of {height}x{width} cannot pass the network, which {halves}: for images of "
        f"{whole_height}x{whole_width} {choice} (patches.sizes, in pixels of the shorter side); or take fewer "
        "network.multipliers"
    )


def _rescaled(sizes: Mapping[str, float], total: float) -> str:
    shares = [1 / len(sizes)] * len(sizes) if total <= 0 and sizes else [share / total for share in sizes.values()]
    return ", ".join(f"{size}: {share:.3g}" for size, share in zip(sizes, shares, strict=True)) or "1/2: 1"
