"""Comparisons of samples with real images by their features: distances, precision, recall, density, coverage."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from patch_diffusion.evaluation.collect import Collected
from patch_diffusion.evaluation.distances import FrechetTo, Gaussian, KernelDistance, merged
from patch_diffusion.evaluation.intervals import (
    Measure,
    groups_of,
    interval_of_halves,
    interval_of_mean,
    interval_of_rate,
    interval_without_groups,
)
from patch_diffusion.evaluation.neighbours import coverage_without, density_coverage, precision_recall, recall_without
from patch_diffusion.evaluation.reference import Reference

MOST_COMPARED = 10_000
"""The maximum number of real images for metrics that compare images one by one; they are evenly spaced in the data."""

PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5
"""The numbers of nearest neighbours in the papers, for precision and recall, and for density and coverage."""


def compare(
    metrics: Collection[str],
    collected: Collected,
    reference: Reference | None,
    statistics: Gaussian | None,
    extractor: str,
    seed: int,
) -> tuple[dict[str, Measure], list[str]]:
    """Compare samples with real images; return a dict from metric name to `Measure`, and notes for the user.

    Metrics other than "frechet", "kernel", "precision" and "density" are ignored. Without a ``reference`` there are
    only ``statistics``, a published mean and covariance, for the Frechet distance. The seed is that of the intervals.
    """
    measures: dict[str, Measure] = {}
    notes: list[str] = []
    if "frechet" in metrics:
        gaussian = statistics if statistics is not None else reference.gaussian if reference else None
        assert gaussian is not None
        measures["frechet"] = _frechet(collected, gaussian, extractor, seed)
        notes += _too_few(collected.num, gaussian)
    if reference is None:
        return measures, notes
    real = spaced_subset(reference.features)
    of_both = {"images": len(collected.features), "reference_images": len(real), "extractor": extractor}
    groups = groups_of(len(collected.features))
    if "kernel" in metrics:
        distance = KernelDistance([collected.features[group.start : group.stop] for group in groups], real)
        measured = interval_of_halves(distance(), distance, len(groups), seed)
        measures["kernel"] = replace(measured, settings={**of_both, "kernel": "(x.y/d + 1)^3"})
    measures |= _shares(metrics, collected.features, real, groups, of_both, seed)
    return measures, notes


def _shares(
    metrics: Collection[str],
    generated: Tensor,
    real: Tensor,
    groups: Sequence[range],
    settings: dict[str, Any],
    seed: int,
) -> dict[str, Measure]:
    """Return precision with recall, and density with coverage, by name, as far as they are among the metrics."""
    measures: dict[str, Measure] = {}
    grouped = groups if len(groups) > 1 else []
    if "precision" in metrics:
        inside, covered = precision_recall(generated, real, PRECISION_NEIGHBOURS)
        without = recall_without(generated, real, grouped, PRECISION_NEIGHBOURS)
        about = {**settings, "neighbours": PRECISION_NEIGHBOURS}
        measures["precision"] = replace(interval_of_rate(int(inside.sum()), len(inside)), settings=about)
        measures["recall"] = replace(interval_without_groups(float(covered.double().mean()), without), settings=about)
    if "density" in metrics:
        counts, covered = density_coverage(generated, real, DENSITY_NEIGHBOURS)
        without = coverage_without(generated, real, grouped, DENSITY_NEIGHBOURS)
        about = {**settings, "neighbours": DENSITY_NEIGHBOURS}
        measures["density"] = replace(interval_of_mean(counts, seed), settings=about)
        measures["coverage"] = replace(interval_without_groups(float(covered.double().mean()), without), settings=about)
    return measures


def _frechet(collected: Collected, gaussian: Gaussian, extractor: str, seed: int) -> Measure:
    distance = FrechetTo(gaussian)
    groups = collected.moments
    value = distance(merged(groups))
    measured = interval_of_halves(
        value, lambda chosen: distance(merged([groups[place] for place in chosen])), len(groups), seed
    )
    settings = {"images": collected.num, "reference_images": gaussian.num, "extractor": extractor}
    return replace(measured, settings={**settings, "features": len(gaussian.mean)})


def _too_few(num: int, reference: Gaussian) -> list[str]:
    """Return a list with a warning if images are fewer than features, so that a covariance lacks full rank; else []."""
    size = len(reference.mean)
    fewer = [f"{num:,} images"] if num <= size else []
    fewer += [f"{reference.num:,} in the reference"] if reference.num is not None and reference.num <= size else []
    if not fewer:
        return []
    return [
        f"the Frechet distance is far too large with fewer images ({' and '.join(fewer)}) than features ({size:,}): "
        "compare it only with distances of equally many images"
    ]


def spaced_subset(features: Tensor) -> Tensor:
    """Return at most `MOST_COMPARED` rows of a feature matrix (n, d), evenly spaced, to compare samples with."""
    if len(features) <= MOST_COMPARED:
        return features
    step = len(features) / MOST_COMPARED
    return features[[int(place * step) for place in range(MOST_COMPARED)]]
