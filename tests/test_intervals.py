"""Do intervals of 95 % hold the truth in 95 of 100 cases?"""

import pytest
import torch

from patch_diffusion.evaluation.collect import Collected
from patch_diffusion.evaluation.comparing import compare
from patch_diffusion.evaluation.distances import FrechetTo, Gaussian, Moments, merged
from patch_diffusion.evaluation.intervals import (
    Measure,
    groups_of,
    interval_of_halves,
    interval_of_mean,
    interval_of_rate,
    num_groups,
)
from patch_diffusion.evaluation.reference import Reference


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


@pytest.mark.slow
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


@pytest.fixture(scope="module")
def fresh_samples():
    """Measures of 40 sets of 80 samples beside the same 800 real images, which are many more."""
    random = torch.Generator().manual_seed(0)
    real = torch.randn(800, 6, generator=random)
    gaussian = Gaussian(real.double().mean(0), real.double().T.cov())
    reference = Reference(gaussian, real, torch.arange(len(real)))
    found = []
    for seed in range(40):
        features = 0.3 + 0.7 * torch.randn(80, 6, generator=random)
        collected = Collected(len(features), [], features, torch.empty(0), 3, (8, 8))
        found.append(compare(("precision", "density"), collected, reference, None, "none", seed)[0])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["precision", "recall", "density", "coverage"])
def test_intervals_say_how_a_number_varies_over_fresh_samples(fresh_samples, name):
    """The reference stays. Drawn over the real images, the interval of recall was a third as wide as it should be."""
    measures = [measures[name] for measures in fresh_samples]
    values = torch.tensor([each.value for each in measures]).double()
    assert 0.86 <= share_that_hold(values.mean(), measures) <= 1
    reach = torch.tensor([(each.high - each.low) / 2 for each in measures]).double().mean()
    assert 1.6 < reach / values.std() < 3.6  # 1.96, or Student's 2.37 for 8 groups, but for the luck of 40 sets


def test_of_few_samples_shares_have_no_interval():
    features = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    gaussian = Gaussian(torch.zeros(3).double(), torch.eye(3).double())
    reference = Reference(gaussian, torch.randn(40, 3), torch.arange(40))
    found, _ = compare(
        ("precision", "density"), Collected(7, [], features, torch.empty(0), 3, (8, 8)), reference, None, "none", 0
    )
    assert found["recall"].low is None and found["coverage"].high is None and found["precision"].low is not None


def test_as_json():
    assert Measure(1.0).as_dict() == {"value": 1.0, "interval": None, "settings": {}}
    assert Measure(1.0, 0.5, 2.0, {"images": 3}).as_dict()["interval"] == [0.5, 2.0]
