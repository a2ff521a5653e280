"""Distances between two sets of features: between the Gaussians that fit them, and between kernel means.

Everything is in float64 on the CPU; features may come block by block, and only mean and covariance are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from patch_diffusion.errors import InputError

_ROWS = 2048  # rows of features whose products are in memory at a time


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian fitted to ``num`` features (None if unknown): ``mean`` (d,) and ``covariance`` (d, d), float64."""

    mean: Tensor
    covariance: Tensor
    num: int | None = None

    @property
    def rank(self) -> int:
        """The highest rank that the covariance can have, which is below d if it was fitted to few features."""
        size = len(self.mean)
        return size if self.num is None else min(size, self.num - 1)


class Moments:
    """An accumulator of the mean and scatter of features that come in blocks (Chan et al. 1979), exact for any mean."""

    def __init__(self) -> None:
        self.num: int = 0
        self._mean = self._scatter = torch.zeros((), dtype=torch.float64)  # of any shape until features come

    def add(self, features: Tensor) -> None:
        """Add another block of features (n, d)."""
        if len(features) == 0:
            return
        values = features.double()
        mean = values.mean(dim=0)
        values = values - mean
        self._add(len(features), mean, values.mT @ values)

    def merge(self, other: Moments) -> None:
        """Add all features that another accumulator of moments has seen."""
        if other.num:
            self._add(other.num, other._mean, other._scatter)

    def gaussian(self) -> Gaussian:
        """Return the mean and the sample covariance of all features added so far, as a `Gaussian`.

        Raises:
            InputError: there are fewer than two features.
        """
        if self.num < 2:
            raise InputError(f"a distance needs at least two images on either side, and here are {self.num}")
        return Gaussian(self._mean, self._scatter / (self.num - 1), self.num)

    def _add(self, num: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.num + num
        apart = mean - self._mean
        self._scatter = (self._scatter + scatter).addr_(apart, apart, alpha=self.num * num / total)
        self._mean = self._mean + apart * (num / total)
        self.num = total


def gaussian_of(blocks: Iterable[Tensor]) -> Gaussian:
    """Fit a Gaussian to features that come as blocks (n, d).

    >>> type(gaussian_of([torch.randn(5, 2), torch.randn(3, 2)])).__name__
    'Gaussian'
    """
    moments = Moments()
    for block in blocks:
        moments.add(block)
    return moments.gaussian()


def merged(several: Sequence[Moments]) -> Gaussian:
    """Fit one Gaussian to all features that several accumulators of moments have seen."""
    together = Moments()
    for one in several:
        together.merge(one)
    return together.gaussian()


class FrechetTo:
    """A callable that computes the Frechet distance of a Gaussian to a fixed reference Gaussian.

    It is |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Heusel et al., arXiv 1706.08500, equation 6). The eigenvalues of
    C1 C2 are those of S C2 S, with S the symmetric root of C1, so that only symmetric matrices are decomposed.
    """

    def __init__(self, reference: Gaussian) -> None:
        _check(reference)
        self._reference = reference
        values, vectors = torch.linalg.eigh(reference.covariance)
        self._root = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT

    def __call__(self, other: Gaussian) -> float:
        """Return the Frechet distance of a Gaussian to the reference, at least 0."""
        _check(other)
        reference = self._reference
        if other.mean.shape != reference.mean.shape:
            raise InputError(
                f"the reference has {len(reference.mean):,} features and these images have {len(other.mean):,}: it was "
                "made with another extractor"
            )
        values = torch.linalg.eigvalsh(self._root @ other.covariance @ self._root)
        # With fewer images than features, the other eigenvalues are rounding errors, which the root would enlarge.
        shared = values[-min(reference.rank, other.rank) :].clamp(min=0).sqrt().sum()
        spread = reference.covariance.trace() + other.covariance.trace() - 2 * shared
        return max(0.0, float((reference.mean - other.mean).square().sum() + spread))


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """Return the Frechet distance between two Gaussians, see `FrechetTo`.

    >>> features = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    >>> round(frechet_distance(gaussian_of([features]), gaussian_of([features + 1])), 6)
    2.0
    """
    return FrechetTo(one)(other)


class KernelDistance:
    """A callable that computes the kernel distance, an unbiased squared MMD, of groups of features to a reference.

    The kernel is (x . y / d + 1)^3 (Binkowski et al., arXiv 1801.01401, section 4). Every pair counts, not only those
    of random subsets, so that the estimate is deterministic. Sums over pairs of groups are kept, so that the distance
    of any selection of groups costs nothing more.

    Args:
        groups: features (n, d) of each group.
        reference: features (m, d) of real images.
    """

    def __init__(self, groups: Sequence[Tensor], reference: Tensor) -> None:
        if len(reference) < 2:
            raise InputError(
                f"a distance needs at least two images on either side, and the reference has {len(reference)}"
            )
        if any(group.shape[1] != reference.shape[1] for group in groups):
            raise InputError(f"the reference has {reference.shape[1]:,} features, and these images have another number")
        self._sizes = [len(group) for group in groups]
        self._among = torch.zeros(len(groups), len(groups), dtype=torch.float64)
        for first, one in enumerate(groups):
            for second, other in enumerate(groups[: first + 1]):
                total = _sum_of_kernels(one, other)
                if first == second:
                    total -= _sum_of_own_kernels(one)
                self._among[first, second] = self._among[second, first] = total
        self._across = [_sum_of_kernels(group, reference) for group in groups]
        self._num_reference = num = len(reference)
        self._of_reference = (_sum_of_kernels(reference, reference) - _sum_of_own_kernels(reference)) / (
            num * (num - 1)
        )

    def __call__(self, chosen: Sequence[int] | None = None) -> float:
        """Return the distance of some groups together, chosen by index (None: all); the estimate can be below 0."""
        places = list(range(len(self._sizes)) if chosen is None else chosen)
        num = sum(self._sizes[place] for place in places)
        if num < 2:
            raise InputError(f"a distance needs at least two images on either side, and here are {num}")
        among = float(self._among[places][:, places].sum()) / (num * (num - 1))
        across = sum(self._across[place] for place in places) / (num * self._num_reference)
        return among + self._of_reference - 2 * across


def kernel_distance(one: Tensor, other: Tensor) -> float:
    """Return the kernel distance between two sets of features (n, d) and (m, d), see `KernelDistance`.

    >>> kernel_distance(torch.zeros(4, 2), torch.ones(4, 2)) > 0
    True
    """
    return KernelDistance([one], other)()


def _sum_of_kernels(one: Tensor, other: Tensor) -> float:
    total = 0.0
    for rows in one.split(_ROWS):
        for columns in other.split(_ROWS):
            total += float((rows.double() @ columns.double().mT).div_(one.shape[1]).add_(1).pow_(3).sum())
    return total


def _sum_of_own_kernels(features: Tensor) -> float:
    """Return the sum over all features (n, d) of the kernel of a feature with itself."""
    return sum(
        float(rows.double().square().sum(dim=1).div_(features.shape[1]).add_(1).pow_(3).sum())
        for rows in features.split(_ROWS)
    )


def _check(gaussian: Gaussian) -> None:
    size = len(gaussian.mean)
    if gaussian.covariance.shape != (size, size):
        raise InputError(f"a covariance of {size} features is {size} x {size}, not {tuple(gaussian.covariance.shape)}")
    if not math.isfinite(float(gaussian.mean.sum() + gaussian.covariance.sum())):
        raise InputError("the moments of the features are not finite numbers")
