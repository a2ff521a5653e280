import math

import pytest
from hypothesis import given, strategies as st

from patch_diffusion.races.standings import standings, time_to


@pytest.mark.parametrize(
    ("loss", "at"), [(0.9, 1), (0.8, 1), (0.7, 1.5), (0.5, 3), (0.45, None), (0.6, 2), (math.nan, None)]
)
def test_when_a_loss_is_reached(loss, at):
    assert time_to([(1, 0.8), (2, 0.6), (3, 0.5), (4, 0.55)], loss) == (None if at is None else pytest.approx(at))


def test_a_curve_that_rises_on_the_way_counts_where_it_first_comes_down():
    assert time_to([(1, 0.8), (2, 0.9), (3, 0.5), (4, 0.9), (5, 0.1)], 0.7) == pytest.approx(2.5)
    assert time_to([], 1.0) is None


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=20), st.floats(0.01, 10))
@pytest.mark.slow
def test_no_loss_as_low_was_seen_before(losses, loss):
    curve = [(float(place), value) for place, value in enumerate(losses, start=1)]
    at = time_to(curve, loss)
    assert (at is None) == all(value > loss for value in losses)
    if at is not None:
        assert all(value > loss for time, value in curve if time < at - 1e-9)


def power(scale, seeds):
    """Losses 1 / (scale t) at 1 ... 20: an arm of twice the scale is exactly twice as fast."""
    return {seed: [(t, 1 / (scale * t)) for t in range(1, 21)] for seed in seeds}


def test_an_arm_that_is_twice_as_fast():
    found = standings({"whole": power(1, [0, 1]), "patches": power(2, [1, 0, 7])})
    assert found["seeds"] == [0, 1]
    assert found["final"]["whole"]["loss"] == pytest.approx(1 / 20) and found["final"]["whole"]["deviation"] == 0
    ahead, behind = found["reaches"]["patches"]["whole"], found["reaches"]["whole"]["patches"]
    assert (ahead["at"], ahead["ratio"], ahead["reached"]) == (pytest.approx(10), pytest.approx(2), 2)
    assert (behind["at"], behind["ratio"], behind["reached"]) == (None, None, 0)


def test_ratios_are_those_of_each_seed():
    """2 and 8 times as fast is 4 times; one seed with which it is not reached leaves no mean."""
    whole = power(1, [0, 1])
    found = standings({"whole": whole, "other": {0: power(2, [0])[0], 1: power(8, [1])[1]}})
    reached = found["reaches"]["other"]["whole"]
    # Between moments curves are taken as straight, so that 20 / 8 is met a little late.
    assert [each["ratio"] for each in reached["by_seed"].values()] == pytest.approx([2, 20 / (2 + 3 / 5)], rel=1e-6)
    assert reached["ratio"] == pytest.approx(math.sqrt(2 * 20 / 2.6))
    found = standings({"whole": whole, "other": {0: power(2, [0])[0], 1: power(0.5, [1])[1]}})
    reached = found["reaches"]["other"]["whole"]
    assert (reached["ratio"], reached["reached"], reached["by_seed"][0]["ratio"]) == (None, 1, pytest.approx(2))


def test_nothing_is_said_of_a_race_without_a_finished_seed():
    found = standings({"whole": {}, "patches": {}})
    assert found["seeds"] == [] and found["final"]["whole"]["loss"] is None and found["reaches"] == {}
