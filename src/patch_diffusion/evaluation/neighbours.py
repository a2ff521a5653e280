"""Nearest-neighbour search in blocks, and the metrics that count neighbours: precision, recall, density, coverage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from patch_diffusion.errors import InputError

_ROWS = 2048  # rows of points whose distances are in memory at a time


@dataclass(frozen=True)
class Nearest:
    """The nearest and second nearest neighbour of each of n points: ``distances`` (n, 2) and indices, ``places``."""

    distances: Tensor
    places: Tensor

    @property
    def ratios(self) -> Tensor:
        """The distance to the nearest neighbour divided by that to the second, (n,): 0 for an exact copy, at most 1."""
        nearest, second = self.distances.unbind(dim=1)
        return torch.where(nearest == 0, 0.0, nearest / second.clamp(min=torch.finfo(nearest.dtype).tiny))


class NearestTwo:
    """A search for the two nearest neighbours of each given point among other points, which are added block by block.

    Args:
        points: the points (n, d) whose neighbours are searched, of any dtype.
    """

    def __init__(self, points: Tensor) -> None:
        self._points = points
        self._distances = torch.full((len(points), 2), torch.inf)
        self._places = torch.full((len(points), 2), -1)
        self._num = 0

    def add(self, block: Tensor) -> None:
        """Search another block of points (m, d) for nearer neighbours."""
        for part in block.split(_ROWS):
            candidates = part.float()
            for rows in torch.arange(len(self._points)).split(_ROWS):
                points = self._points[rows].float()
                found = torch.cdist(points, candidates, compute_mode="use_mm_for_euclid_dist")
                best = found.topk(min(2, len(candidates)), dim=1, largest=False)
                # Distances by matrix products have rounding errors that matter between a picture and its copy.
                exact = (points[:, None] - candidates[best.indices]).square().sum(dim=2).sqrt()
                both = torch.cat([self._distances[rows], exact], dim=1)
                which = torch.cat([self._places[rows], best.indices + self._num], dim=1)
                chosen = both.topk(2, dim=1, largest=False)
                self._distances[rows], self._places[rows] = chosen.values, which.gather(1, chosen.indices)
            self._num += len(candidates)

    def found(self) -> Nearest:
        """Return the two nearest neighbours of each point in all blocks so far; indices count on from block to block.

        Raises:
            InputError: the blocks held fewer than two points.
        """
        if self._num < 2:
            raise InputError(f"a second nearest image needs at least two to compare with, and here are {self._num}")
        return Nearest(self._distances, self._places)


def nearest_two(points: Tensor, others: Iterable[Tensor]) -> Nearest:
    """Find the two nearest neighbours of each point among other points, which come in blocks.

    Args:
        points: the points (n, d) whose neighbours are searched.
        others: blocks (m, d) of the other points, with at least two points in all.
    """
    nearest = NearestTwo(points)
    for block in others:
        nearest.add(block)
    return nearest.found()


def precision_recall(generated: Tensor, real: Tensor, neighbours: int = 3) -> tuple[Tensor, Tensor]:
    """Compute improved precision and recall (Kynkaanniemi et al., arXiv 1904.06991) per image, before the mean.

    Args:
        generated, real: features (n, d) and (m, d).
        neighbours: k; the ball around a point reaches to its k-th nearest neighbour in the same set.

    Returns:
        Booleans (n,), true for a generated image in a ball of a real image, and (m,), true for a real image in a ball
        of a generated image.

    >>> precision, recall = precision_recall(torch.zeros(4, 2), torch.randn(8, 2))
    >>> precision.shape, recall.shape
    (torch.Size([4]), torch.Size([8]))
    """
    of_real, of_generated = radii(real, neighbours), radii(generated, neighbours)
    inside, covered = torch.zeros(len(generated), dtype=torch.bool), torch.zeros(len(real), dtype=torch.bool)
    for rows, columns, found in _distances(generated, real):
        inside[rows] |= (found <= of_real[columns]).any(dim=1)
        covered[columns] |= (found <= of_generated[rows][:, None]).any(dim=0)
    return inside, covered


def density_coverage(generated: Tensor, real: Tensor, neighbours: int = 5) -> tuple[Tensor, Tensor]:
    """Compute density and coverage (Naeem et al., arXiv 2002.09797) of each image; their means are robust to outliers.

    Args:
        generated, real: features (n, d) and (m, d).
        neighbours: k; the ball around a real image reaches to its k-th nearest neighbour among the real images.

    Returns:
        The number of balls that each generated image lies in, as a share of ``neighbours``, (n,); and booleans (m,),
        true for a real image with a generated image in its ball.

    >>> density, coverage = density_coverage(torch.zeros(4, 2), torch.randn(8, 2))
    >>> density.shape, coverage.shape
    (torch.Size([4]), torch.Size([8]))
    """
    of_real = radii(real, neighbours)
    counts, covered = torch.zeros(len(generated)), torch.zeros(len(real), dtype=torch.bool)
    for rows, columns, found in _distances(generated, real):
        inside = found <= of_real[columns]
        counts[rows] += inside.sum(dim=1)
        covered[columns] |= inside.any(dim=0)
    return counts / neighbours, covered


def recall_without(generated: Tensor, real: Tensor, groups: Sequence[range], neighbours: int = 3) -> list[float]:
    """Return the recall without each group of the generated images, see `precision_recall`."""
    reach = torch.full((len(groups), len(generated)), -1.0)  # no real image lies in the ball of one that is left out
    for number, group in enumerate(groups):
        rest = [place for place in range(len(generated)) if place not in group]
        reach[number, rest] = radii(generated[rest], neighbours)
    covered = torch.zeros(len(groups), len(real), dtype=torch.bool)
    for rows, columns, found in _distances(generated, real):
        for number, of_rest in enumerate(reach):
            covered[number, columns] |= (found <= of_rest[rows][:, None]).any(dim=0)
    return covered.double().mean(dim=1).tolist()


def coverage_without(generated: Tensor, real: Tensor, groups: Sequence[range], neighbours: int = 5) -> list[float]:
    """Return the coverage without each group of the generated images, see `density_coverage`."""
    of_real = radii(real, neighbours)
    by_group = torch.zeros(len(groups), len(real), dtype=torch.bool)
    for number, group in enumerate(groups):
        for _, columns, found in _distances(generated[group.start : group.stop], real):
            by_group[number, columns] |= (found <= of_real[columns]).any(dim=0)
    num_groups = by_group.sum(dim=0)
    return [float((num_groups > by_this.long()).double().mean()) for by_this in by_group]


def radii(points: Tensor, neighbours: int) -> Tensor:
    """Return the distance (n,) of each point to its k-th nearest neighbour among ``points``; k is ``neighbours``."""
    if len(points) <= neighbours:
        raise InputError(
            f"the {neighbours} nearest neighbours of an image need more than {neighbours} images on either side, not "
            f"{len(points)}"
        )
    found = torch.full((len(points), neighbours + 1), torch.inf)
    for rows, columns, distances in _distances(points, points):
        # The distance of a point to itself is set to 0, because rounding can make it another number.
        own = rows[:, None] == columns[None]
        both = torch.cat([found[rows], distances.masked_fill(own, 0.0)], dim=1)
        found[rows] = both.topk(neighbours + 1, dim=1, largest=False).values
    return found[:, neighbours]


def _distances(one: Tensor, other: Tensor) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
    """Yield the distances between two sets of points in blocks, as tuples (row indices, column indices, distances)."""
    one, other = one.float(), other.float()
    for rows in torch.arange(len(one)).split(_ROWS):
        for columns in torch.arange(len(other)).split(_ROWS):
            yield rows, columns, torch.cdist(one[rows], other[columns], compute_mode="use_mm_for_euclid_dist")
