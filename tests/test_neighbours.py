"""Against loops over all pairs, and sets whose shares are known."""

import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.evaluation import neighbours
from patch_diffusion.evaluation.intervals import groups_of
from patch_diffusion.evaluation.neighbours import coverage_without, nearest_two, radii, recall_without


def points(num, size=4, seed=0):
    return torch.randn(num, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that there are several."""
    monkeypatch.setattr(neighbours, "_ROWS", 7)


def sorted_distances(one, others, skip=None):
    return sorted(float((one - other).norm()) for place, other in enumerate(others) if place != skip)


def test_the_nearest_two():
    ours, others = points(20), points(31, seed=1)
    found = nearest_two(ours, others.split(10))
    for place, one in enumerate(ours):
        distances = (others - one).norm(dim=1)
        torch.testing.assert_close(found.distances[place], distances.sort().values[:2])
        assert found.places[place].tolist() == distances.argsort()[:2].tolist()
    torch.testing.assert_close(found.ratios, found.distances[:, 0] / found.distances[:, 1])


def test_copies_are_at_no_distance_though_the_points_are_far_from_zero():
    others = points(50) + 300
    found = nearest_two(others[[3, 40]], [others])
    assert found.distances[:, 0].tolist() == [0, 0] and found.places[:, 0].tolist() == [3, 40]
    assert found.ratios.tolist() == [0, 0]
    twice = nearest_two(others[[3]], [others, others])
    assert twice.ratios.tolist() == [0] and set(twice.places[0].tolist()) == {3, 53}


def test_a_second_nearest_needs_two():
    with pytest.raises(pd.InputError, match="at least two to compare with, and here are 1"):
        nearest_two(points(3), [points(1)])


def test_radii():
    ours = points(20)
    for neighbour in (1, 3):
        found = radii(ours, neighbour)
        for place, one in enumerate(ours):
            expected = sorted_distances(one, ours, skip=place)[neighbour - 1]
            assert float(found[place]) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(pd.InputError, match="more than 3 images on either side, not 3"):
        radii(ours[:3], 3)


def test_shares_are_the_loops_of_the_papers():
    generated, real = points(24, 3) * 0.8 + 0.5, points(30, 3, seed=1)
    inside, covered = pd.precision_recall(generated, real, neighbours=3)
    of_real = [sorted_distances(one, real, skip=place)[2] for place, one in enumerate(real)]
    of_generated = [sorted_distances(one, generated, skip=place)[2] for place, one in enumerate(generated)]
    for place, one in enumerate(generated):
        assert inside[place] == any((one - other).norm() <= of_real[j] for j, other in enumerate(real))
    for place, one in enumerate(real):
        assert covered[place] == any((one - other).norm() <= of_generated[j] for j, other in enumerate(generated))
    assert 0 < inside.float().mean() < 1 and 0 < covered.float().mean() < 1
    density, coverage = pd.density_coverage(generated, real, neighbours=5)
    of_real = [sorted_distances(one, real, skip=place)[4] for place, one in enumerate(real)]
    for place, one in enumerate(generated):
        count = sum(bool((one - other).norm() <= of_real[j]) for j, other in enumerate(real))
        assert float(density[place]) == pytest.approx(count / 5)
    for place, one in enumerate(real):
        assert coverage[place] == any((other - one).norm() <= of_real[place] for other in generated)


def test_shares_without_a_group_are_those_of_the_rest():
    generated, real = points(25, 3) * 0.8 + 0.5, points(30, 3, seed=1)
    groups = groups_of(25)
    recall, coverage = (function(generated, real, groups) for function in (recall_without, coverage_without))
    for group, without, covered in zip(groups, recall, coverage, strict=True):
        rest = torch.cat([generated[: group.start], generated[group.stop :]])
        assert without == pytest.approx(float(pd.precision_recall(rest, real)[1].double().mean()))
        assert covered == pytest.approx(float(pd.density_coverage(rest, real)[1].double().mean()))
    assert len({*recall}) > 1 and len({*coverage}) > 1


def test_sets_whose_shares_are_known():
    """All generated images are one of the real ones: every one is real, and of the others nothing is found."""
    real = torch.arange(40.0)[:, None] * torch.ones(1, 2)
    generated = real[20:21] + 1e-3 * points(20, 2)
    inside, covered = pd.precision_recall(generated, real)
    assert inside.all() and covered.float().mean() <= 1 / 40
    density, coverage = pd.density_coverage(generated, real)
    assert density.mean() >= 1 and coverage.float().mean() < 0.3
    far = pd.precision_recall(generated + 1000, real)
    assert not far[0].any() and not far[1].any()
    assert not pd.density_coverage(generated + 1000, real)[0].any()
