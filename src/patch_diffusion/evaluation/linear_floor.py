"""The linear floor: the loss of the best linear denoiser of whole images, which a model has to get below.

Of images with mean m and covariance C, no linear denoiser has a lower expected error at noise level s than the Wiener
filter, D(x) = m + C (C + s^2)^-1 (x - m). In an orthonormal basis in which C is diagonal, with variances v, it
multiplies each coefficient by v / (v + s^2), and its squared error is the sum of v s^2 / (v + s^2).

The covariance of whole images has more entries than images have values to estimate it by. So the basis is the discrete
cosine transform, nearly that of images whose statistics are the same everywhere, after a rotation of the channels that
makes them uncorrelated. Only its strongest coefficients, of low frequency, are rotated into their principal components,
and the images that measure the variances along these are not those that they were fitted to. How many are rotated is
chosen at each noise level by the loss on images outside of the fit. A better linear denoiser may exist: the floor is
rather too high than too low.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Annotated as Float, Annotated as Int

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from patch_diffusion.config import Noise
from patch_diffusion.data.held_out import halved
from patch_diffusion.data.images import ImageBuckets, Images, ImageSet
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.denoiser import Denoiser, Levels
from patch_diffusion.denoise.process import PROCESSES
from patch_diffusion.denoise.whole_image import SIGMAS, losses_of_images
from patch_diffusion.errors import InputError
from patch_diffusion.evaluation.intervals import interval_of_mean
from patch_diffusion.runs.floor import LinearFloor

FEWEST = 16
"""The fewest training images of one size that a linear denoiser is fitted to; those of rarer sizes are left out."""

LARGEST = 2**20
"""The most values of an image; for larger images it would take long."""

_JUDGES = 256  # most held-out images of each size
_ROTATED = (64, 256, 1024)  # how many of the strongest coefficients are rotated, whichever is best
_BOX = 64  # lowest frequencies of each axis, among which the strongest coefficients are
_IMAGES = 8192  # most training images of each size
# Most values that are read for colours, variances and principal components, and denoised at a level.
_VALUES_OF_COLOURS, _VALUES_OF_VARIANCES, _VALUES_OF_COMPONENTS, _VALUES_JUDGED = 2**22, 2**25, 2**28, 3 * 2**22
_VALUES_AT_ONCE = 2**21
_EVERY = 5  # one image in so many is left out of the fit of principal components


def linear_floor(
    images: Images, held_out: Images | None = None, *, noise: Noise | None = None, most: int = _JUDGES, seed: int = 0
) -> LinearFloor:
    """Return the loss of the best linear denoiser of whole images at each noise level, with its intervals.

    It is measured as `whole_image_loss` measures a model's, on the same noise, so that the two can be compared. A model
    above it at high noise has not learned the layout of the images yet. It takes seconds, as only a part of very many
    or very large images is read. Classes are ignored.

    Args:
        images: training images, to which the denoiser is fitted.
        held_out: images to judge it by; None: either half of the training images judges a denoiser of the other half.
        noise: the options ``noise`` of the model to compare with: levels, process and standard deviation of the data.
        most: number of images of each size that judge, the first ones; fewer of large images.
        seed: seed of the noise.

    Raises:
        InputError: there are too few images, they are larger than `LARGEST`, or the held-out ones are of other sizes.

    >>> floor = linear_floor(open_images("digits"))
    >>> list(floor.by_noise)[:2], floor.crossed
    (['0.05', '0.1'], True)
    """
    largest = max(bucket.pixels[0].numel() for bucket in images.buckets)
    if largest > LARGEST:
        raise InputError(f"for images of {largest:,} values, more than {LARGEST:,}, it would take long")
    noise = noise or Noise()
    pairs = [(images, held_out)]
    if held_out is None:
        one, other = halved(images)
        pairs = [(one, other), (other, one)]
    found: dict[float, list[Tensor]] = {}
    for fitted, judges in pairs:
        assert judges is not None
        model = LinearDenoiser.fitted(fitted, noise)
        for bucket in _known(judges, model).buckets:
            values = bucket.pixels[0].numel()
            num, batch = min(most, max(_VALUES_JUDGED // values, 1)), max(_VALUES_AT_ONCE // values, 1)
            for sigma, losses in losses_of_images(model, bucket, seed=seed, batch=min(batch, 64), most=num).items():
                found.setdefault(sigma, []).append(losses)
    by_level = {f"{sigma:g}": torch.cat(losses) for sigma, losses in found.items()}
    mean = torch.stack(list(by_level.values())).mean(dim=0)
    return LinearFloor(
        loss=float(mean.mean()),
        interval=_interval(mean, seed),
        by_noise={level: float(losses.mean()) for level, losses in by_level.items()},
        intervals={level: _interval(losses, seed) for level, losses in by_level.items()},
        images=sum(min(len(bucket), _most_images(bucket)) for bucket in images.buckets),
        held_out=len(next(iter(by_level.values()))),
        crossed=held_out is None,
    )


class LinearDenoiser(Denoiser):
    """The best linear denoiser of whole images, as a `Denoiser` without weights, to be measured like any other.

    Args:
        bases: the statistics of images by their height and width.
        noise: options of the noise; ``sigma_data`` must be set.
    """

    def __init__(self, bases: Mapping[tuple[int, int], Basis], noise: Noise) -> None:
        assert noise.sigma_data is not None
        channels = len(next(iter(bases.values())).axes[0])
        super().__init__(
            _NoNetwork(channels), noise.sigma_data, process=PROCESSES[noise.process], levels=noise.levels or SIGMAS
        )
        self.bases: dict[tuple[int, int], Basis] = dict(bases)

    @classmethod
    def fitted(cls, images: Images, noise: Noise) -> LinearDenoiser:
        """Return the denoiser that is fitted to training images, those of each size apart.

        Raises:
            InputError: there are fewer than `FEWEST` images of each size.
        """
        levels = noise.levels or SIGMAS
        bases = {bucket.resolution: fit(bucket, levels) for bucket in images.buckets if len(bucket) >= FEWEST}
        if not bases:
            raise InputError(f"a linear denoiser is fitted to at least {FEWEST} images of one size")
        if noise.sigma_data is None:
            noise = replace(noise, sigma_data=images.moments.deviation(noise.mean_data))
        return cls(bases, noise)

    @override
    def forward(
        self,
        noisy: Float[Tensor, "n c *shape"],
        sigma: Levels,
        coords: Float[Tensor, "..."] | Conditions | None = None,
        labels: Int[Tensor, "n"] | None = None,
    ) -> Float[Tensor, "n c *shape"]:
        """Return denoised images, see `Denoiser.forward`; coordinates and labels make no difference."""
        basis = self.bases[(noisy.shape[2], noisy.shape[3])]
        levels = torch.as_tensor(sigma, dtype=noisy.dtype).expand(len(noisy))
        denoised = torch.empty_like(noisy)
        for level in levels.unique().tolist():
            denoised[levels == level] = basis.denoise(noisy[levels == level], level)
        return denoised


@dataclass(frozen=True)
class Rotation:
    """Principal components of the strongest coefficients: ``axes`` (k, k), as columns, with their variances (k,)."""

    axes: Float[Tensor, "k k"]
    variances: Float[Tensor, "k"]


@dataclass(frozen=True)
class Basis:
    """The statistics of images of one size: an orthonormal basis, and mean and variance of each coefficient in it.

    Args:
        axes: the rotation of channels (c, c), and the cosines over height (h, h) and width (w, w), a row for each.
        mean, variances: of the d = c h w coefficients.
        strongest: indices of the k coefficients that are rotated further.
        rotations: the rotation at each noise level.
    """

    axes: tuple[Tensor, Tensor, Tensor]
    mean: Float[Tensor, "d"]
    variances: Float[Tensor, "d"]
    strongest: Int[Tensor, "k"]
    rotations: Mapping[float, Rotation]

    @classmethod
    def known(cls, mean: Float[Tensor, "c h w"], covariance: Float[Tensor, "d d"]) -> Basis:
        """Return the basis of images whose mean and covariance are known, so that the denoiser is the best one."""
        variances, components = torch.linalg.eigh(covariance.double())
        rotation = Rotation(components.to(mean), variances.clamp(min=0).to(mean))
        axes = torch.eye(mean.shape[0]), torch.eye(mean.shape[1]), torch.eye(mean.shape[2])
        return cls(axes, mean.flatten(), covariance.diagonal().to(mean), torch.arange(mean.numel()), {1.0: rotation})

    def denoise(self, noisy: Float[Tensor, "n c h w"], sigma: float) -> Float[Tensor, "n c h w"]:
        """Return denoised images, given images with noise of one level."""
        rotation = self.rotations[min(self.rotations, key=lambda level: abs(math.log(level / sigma)))]
        found = coefficients(noisy, self.axes) - self.mean
        strongest = found[:, self.strongest] @ rotation.axes
        found *= self.variances / (self.variances + sigma**2)
        kept = rotation.variances / (rotation.variances + sigma**2)
        found[:, self.strongest] = (strongest * kept) @ rotation.axes.mT
        back = self.axes[0].mT, self.axes[1].mT, self.axes[2].mT
        return coefficients((found + self.mean).view_as(noisy), back).view_as(noisy)


def coefficients(images: Float[Tensor, "n c h w"], axes: tuple[Tensor, Tensor, Tensor]) -> Float[Tensor, "n d"]:
    """Return the coefficients (n, d) of images along three axes: channels, height and width; a row for each."""
    colours, rows, columns = axes
    found = ((images @ columns.mT).mT @ rows.mT).mT  # large products of few matrices
    return torch.einsum("dc,nchw->ndhw", colours, found).flatten(1)


def cosines(num: int) -> Float[Tensor, "{num} {num}"]:
    """Return the orthonormal discrete cosine transform of ``num`` values as a matrix, a row for each frequency."""
    places = torch.arange(num, dtype=torch.float64)
    rows = torch.cos(torch.pi / num * (places + 0.5) * places[:, None])
    return (rows / rows.norm(dim=1, keepdim=True)).float()


def fit(images: ImageSet, levels: Sequence[float]) -> Basis:
    """Return the statistics of at least two training images of one size, for denoising at some noise levels."""
    channels, (height, width) = images.channels, images.resolution
    rows, columns = cosines(height), cosines(width)
    plain = torch.eye(channels), rows, columns
    flat = torch.cat(list(_coefficients(images, plain, _VALUES_OF_COLOURS))).view(-1, channels, height * width)
    flat = (flat - flat.mean(dim=0)).movedim(1, 0).flatten(1)
    axes = torch.linalg.eigh(flat @ flat.mT)[1].mT, rows, columns

    count, first, second = 0, *torch.zeros(2, channels * height * width, dtype=torch.float64)
    for found in _coefficients(images, axes, _VALUES_OF_VARIANCES):
        count += len(found)
        first += found.sum(dim=0)
        second += found.square_().sum(dim=0)
    mean = first / count
    variances = ((second / count - mean.square()) * (count / (count - 1))).clamp(min=0).float()
    mean = mean.float()

    # Among low frequencies alone, so that of large images the rest is not computed for all.
    box = axes[0], rows[:_BOX], columns[:_BOX]
    inside = torch.arange(mean.numel()).view(channels, height, width)[:, :_BOX, :_BOX].flatten()
    order = variances[inside].argsort(descending=True, stable=True)[: _ROTATED[-1]]
    strongest = torch.cat([found[:, order] for found in _coefficients(images, box, _VALUES_OF_COMPONENTS)])
    mean[inside[order]] = strongest.mean(dim=0)
    strongest -= strongest.mean(dim=0)
    return Basis(axes, mean, variances, inside[order], _rotations(strongest, levels))


def _rotations(strongest: Tensor, levels: Sequence[float]) -> dict[float, Rotation]:
    """Return the best rotation of the strongest coefficients (n, k) at each level, by images outside of its fit."""
    num, size = strongest.shape
    outside = torch.arange(num) % _EVERY == _EVERY - 1
    inside, outside = strongest[~outside], strongest[outside]
    sizes = sorted({min(each, size) for each in _ROTATED if 2 * each <= len(inside)})
    found = [Rotation(torch.eye(size), strongest.square().mean(dim=0) * num / (num - 1))]
    losses = [_losses(outside.square(), levels)]
    for rotated in sizes if len(outside) > 1 else ():
        axes = torch.eye(size)
        axes[:rotated, :rotated] = torch.linalg.eigh(inside[:, :rotated].mT @ inside[:, :rotated])[1]
        squares = (outside @ axes).square()
        found.append(Rotation(axes, squares.mean(dim=0)))
        losses.append(_losses(squares, levels))
    best = torch.stack(losses).argmin(dim=0).tolist()
    return {float(level): found[number] for level, number in zip(levels, best, strict=True)}


def _losses(squares: Float[Tensor, "n k"], levels: Sequence[float]) -> Float[Tensor, "levels"]:
    """Return the squared error at each level when variances come from one half of images, and the other half judges."""
    halves = squares[::2].mean(dim=0), squares[1::2].mean(dim=0) if len(squares) > 1 else squares[0]
    found = []
    for level in levels:
        noise = level**2
        error = [
            ((noise / (mine + noise)).square() * theirs + noise * (mine / (mine + noise)).square()).sum()
            for mine, theirs in (halves, halves[::-1])
        ]
        found.append(fmean(map(float, error)))
    return torch.tensor(found)


def _coefficients(images: ImageSet, axes: tuple[Tensor, Tensor, Tensor], most: int) -> Iterator[Tensor]:
    """Yield the coefficients (k, d) of images evenly over a set, some at a time; ``most`` values are read."""
    values = images.pixels[0].numel()
    num = min(len(images), _most_images(images), max(most // values, 2))
    chosen = np.unique(np.linspace(0, len(images) - 1, num).astype(np.int64))
    together = max(_VALUES_AT_ONCE // values, 1)
    for start in range(0, len(chosen), together):
        pixels, _ = images.batch(chosen[start : start + together])
        yield coefficients(images.codec.encode(pixels), axes)


def _most_images(images: ImageSet) -> int:
    return min(_IMAGES, max(_VALUES_OF_COMPONENTS // images.pixels[0].numel(), 2))


def _interval(losses: Tensor, seed: int) -> tuple[float, float]:
    found = interval_of_mean(losses, seed)
    low, high = found.low, found.high
    return (found.value, found.value) if low is None or high is None else (low, high)


def _known(judges: Images, model: LinearDenoiser) -> Images:
    """Return the images of sizes that a linear denoiser knows."""
    buckets = tuple(bucket for bucket in judges.buckets if bucket.resolution in model.bases)
    if not buckets:
        raise InputError("the held-out images are of other sizes than those that the linear denoiser is fitted to")
    return ImageBuckets(buckets, judges.options)


class _NoNetwork:
    """The place of a network in a denoiser that has none: the number of channels."""

    def __init__(self, channels: int) -> None:
        self.image_channels = channels

    def __call__(self, *_: object) -> Tensor:
        raise NotImplementedError
