"""Do intervals of 95 % hold the truth in 95 of 100 cases?"""

import pytest
import torch

from patch_diffusion.evaluation.distances import FrechetTo, Gaussian, Moments, merged
from patch_diffusion.evaluation.intervals import (
    Measure,
    groups_of,
    interval_of_halves,
    interval_of_mean,
    interval_of_rate,
    num_groups,
)


def test_groups_take_all_images_in_nearly_equal_numbers():
    for num in (2, 7, 8, 11, 16, 100, 1003):
        groups = groups_of(num)
        assert [place for group in groups for place in group] == list(range(num))
        assert len(groups) == (num_groups(num) or 1)
        assert max(map(len, groups)) - min(map(len, groups)) <= 1
    assert [num_groups(num) for num in (2, 7, 8, 12, 16, 1000)] == [0, 0, 4, 6, 8, 8]


def share_that_hold(truth, measures):
    return sum(each.low <= truth <= each.high for each in measures) / len(measures)


def test_intervals_of_means():
    random = torch.Generator().manual_seed(0)
    measures = [interval_of_mean(torch.randn(60, generator=random) ** 2, seed) for seed in range(200)]
    assert 0.85 < share_that_hold(1.0, measures) < 0.99
    assert interval_of_mean(torch.tensor([3.0]), 0) == Measure(3.0)
    values = torch.arange(10.0)
    assert interval_of_mean(values, 0) == interval_of_mean(values, 0) != interval_of_mean(values, 1)


def test_intervals_of_rates():
    assert interval_of_rate(0, 100).low == 0 and 0.02 < interval_of_rate(0, 100).high < 0.05
    assert interval_of_rate(100, 100).high == pytest.approx(1)
    found = interval_of_rate(30, 100)
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.2189, 0.3958), abs=1e-3)  # Wilson's formula


def test_intervals_of_distances_hold_the_distance_that_sets_of_that_size_have():
    """The Frechet distance of a few images is too large; the interval says how it varies from set to set."""
    size, num = 6, 160
    distance = FrechetTo(Gaussian(torch.zeros(size).double(), torch.eye(size).double()))
    random = torch.Generator().manual_seed(0)
    measures = []
    for seed in range(120):
        features = 0.3 + torch.randn(num, size, generator=random)
        groups = []
        for group in groups_of(num):
            groups.append(Moments())
            groups[-1].add(features[group.start : group.stop])

        def of(chosen, groups=groups):
            return distance(merged([groups[place] for place in chosen]))

        measures.append(interval_of_halves(of(range(len(groups))), of, len(groups), seed))
    mean = sum(each.value for each in measures) / len(measures)
    assert mean > size * 0.09 * 1.02
    assert 0.88 < share_that_hold(mean, measures) <= 1
    deviation = torch.tensor([each.value for each in measures]).std()
    reach = torch.tensor([(each.high - each.low) / 2 for each in measures]).mean() / 2.365
    assert 0.7 < reach / deviation < 1.6
    assert interval_of_halves(1.0, lambda chosen: 0.0, 2, 0) == Measure(1.0)


def test_as_json():
    assert Measure(1.0).as_dict() == {"value": 1.0, "interval": None, "settings": {}}
    assert Measure(1.0, 0.5, 2.0, {"images": 3}).as_dict()["interval"] == [0.5, 2.0]
