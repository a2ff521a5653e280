import math

import pytest

from patch_diffusion.races.judging import FEWEST_JUDGES, Judging, judging, measuring


@pytest.mark.parametrize("minutes", [0.5, 6.0, 120.0])
@pytest.mark.parametrize("seconds", [1e-3, 0.1, 30.0])
def test_distances_take_no_longer_than_the_training(minutes, seconds):
    """But for the last one, of few samples, without which there would be none."""
    plan, said = measuring(20, 500, minutes, seconds)
    took = plan.cost * plan.moments.times
    assert took <= 60 * minutes or (plan.moments.times, plan.images) == (1, 64)
    assert bool(said) == (500 * 20 * seconds > 0.8 * 60 * minutes)
    assert plan.moments.is_due(1 - 1 / 20, 1.0)  # the end is measured in any case


def test_what_is_left_out_is_said():
    _, said = measuring(20, 500, 6.0, 0.1)
    assert said == (
        "measuring samples may take as long as the training: distances of 500 samples, 5 times (not 20 times)"
    )


def test_by_steps_or_images_nothing_is_left_out():
    for plan, said in (measuring(20, 500, None, 1e9), judging(20, 500, None, 1e9)):
        assert plan.moments.times == 20 and not said


def test_a_race_is_judged_at_the_end_at_least():
    plan, said = judging(20, 500, 1.0, math.inf)
    assert (plan.moments.times, plan.images) == (1, FEWEST_JUDGES)
    assert said.endswith("5% of the training time: losses of 16 held-out images (not 256), once (not 20 times)")
    later = Judging(judging(20, 500, None, 0.0)[0]).as_before(Judging(plan).as_dict())
    assert later.loss.moments.times == 1  # also where it goes on


def test_a_race_goes_on_with_the_plan_that_it_began_with():
    loss = judging(20, 500, 6.0, 0.01)[0]
    distances = measuring(loss.moments.times, 500, 6.0, 0.15)[0]
    plan = Judging(loss, distances)
    later = Judging(judging(20, 500, None, 0.0)[0], measuring(20, 500, None, 0.0)[0])
    assert later.as_dict() != plan.as_dict() == later.as_before(plan.as_dict()).as_dict()
    times = loss.moments.times
    due = [moment for moment in range(1, times + 1) if plan.measures_samples(moment)]
    assert len(due) == distances.moments.times < times and due[-1] == times
    assert later.as_before({"images": 9}).as_dict() == {"images": 9, "stride": 1, "samples": 500, "samples_stride": 1}
    assert not Judging(loss).measures_samples(times)
