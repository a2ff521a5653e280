import math
from dataclasses import replace
from typing import NamedTuple

import pytest

from patch_diffusion.config import Config, Optimizer, Patches
from patch_diffusion.config_dict import flat_options
from patch_diffusion.races.tuning import (
    BATCH,
    GROWTH,
    LEAST_STEPS,
    RATE,
    SHARE,
    SIZES,
    most_trials,
    searched,
    taken,
    tune,
    with_option,
)

BASE = Config(batch=16, optimizer=Optimizer(learning_rate=0.01), patches=Patches(whole=1.0), minutes=30)
PATCHES = replace(BASE, patches=Patches(whole=0.25))


class Found(NamedTuple):
    config: Config
    sweep: dict
    told: list
    trained: list


def sweep(loss, config=BASE, budget=30.0, *, each=0.01, slower=1.0, given=(), known=()):
    """``tune`` where the loss is a function of the options, and a step of a batch of 16 takes so many minutes."""
    told, trained = [], []

    def cost(config):
        return each * config.batch / 16 if config.steps is None else 1.0

    def run(config, steps):
        trained.append((config, steps))
        return loss(flat_options(config)), 60 * slower * steps * cost(config)

    chosen, found = tune(config, budget, run, cost, given=given, known=known, tell=told.append)
    return Found(chosen, found, told, trained)


def away_from(**best):
    """A loss with its valley at these values; other options do not matter."""
    names = {"rate": RATE, "batch": BATCH, "whole": SHARE}
    return lambda options: sum(math.log(options[names[name]] / value) ** 2 for name, value in best.items())


def test_the_best_is_found_and_nothing_else_is_changed():
    chosen, found, told, _ = sweep(away_from(rate=0.02, batch=8))
    assert chosen == with_option(replace(BASE, batch=8), RATE, 0.02)
    assert found["options"] == {RATE: 0.02, BATCH: 8} == taken(found)
    assert found["trials"] == told and found["outermost"] == [] and found["left_out"] == ""
    # Along the rate until it is worse, then along the batch: 0.005 and 32 lie on the side that is worse.
    tried = [(trial["options"][RATE], trial["options"][BATCH]) for trial in told]
    assert tried == [(0.01, 16), (0.02, 16), (0.04, 16), (0.02, 8), (0.02, 4)]


def test_options_of_patches_are_searched_too():
    def loss(options):
        return away_from(whole=0.5)(options) + (options[GROWTH] != "area") + (list(options[SIZES]) != ["1/4"])

    chosen, found, told, _ = sweep(loss, PATCHES)
    assert chosen.patches == replace(PATCHES.patches, whole=0.5, sizes={"1/4": 1.0}, growth="area")
    assert found["options"] == {SHARE: 0.5, SIZES: {"1/4": 1.0}, GROWTH: "area"}
    shares = [trial["options"][SHARE] for trial in told]
    assert list(dict.fromkeys(shares)) == [0.25, 0.1, 0.5, 0.75]  # lower first, and beyond what is better
    assert len(told) <= most_trials(PATCHES) == 14 and most_trials(BASE) == 7


def test_what_is_searched():
    """Of patches what was not given; by steps no batch, as a larger one would win by seeing more in as many."""
    assert searched(BASE) == [RATE, BATCH]
    assert searched(PATCHES, {SHARE, RATE}) == [RATE, BATCH, SIZES, GROWTH]
    assert searched(replace(PATCHES, minutes=None, images=9)) == [RATE, BATCH]
    assert searched(replace(PATCHES, minutes=None, steps=9)) == [RATE]


@pytest.mark.parametrize("best", [{"rate": 0.01, "batch": 16}, {"rate": 1e-4, "batch": 1}, {"rate": 9, "batch": 999}])
@pytest.mark.parametrize("slower", [0.5, 1.0, 1.11, 3.0])
def test_no_sweep_takes_longer_than_asked_for_and_no_trial_has_too_few_steps(best, slower):
    """If the machine is slower than it was, the trial before may take as much more, and none follows."""
    for budget in (1.0, 1.2, 3.0, 30.0):
        _, found, told, _ = sweep(away_from(**best), budget=budget, slower=slower)
        used = [trial["seconds"] / 60 for trial in told]
        assert sum(used[:1]) <= budget * max(slower, 1) and (sum(used) <= budget + 1e-3 or len(used) == 1)
        assert all(trial["steps"] >= LEAST_STEPS for trial in told)
        assert told or found["left_out"]


def test_all_trials_are_equally_long_however_large_their_steps():
    _, _, told, trained = sweep(away_from(rate=0.01, batch=2), budget=30.0)
    lengths = [steps * config.batch for config, steps in trained]
    assert {trial["options"][BATCH] for trial in told} >= {16, 8, 4, 2}
    assert max(lengths) - min(lengths) <= 16  # a step more or less


def test_where_steps_take_long_fewer_settings_are_tried_and_it_is_told():
    """Of 50 steps of the given settings 3 fit into the minutes."""
    chosen, found, told, _ = sweep(away_from(rate=0.02, batch=8), budget=10 / 6, each=0.01)
    assert len(told) == 3 and chosen.optimizer.learning_rate == 0.02 and chosen.batch == 16
    assert found["left_out"] == "no time was left for some values of batch: each trial takes 50 steps or more"
    chosen, found, told, _ = sweep(away_from(rate=0.02), budget=1.0, each=0.01)
    assert chosen == BASE and not told and found["trials"] == [] and found["options"] == {} == taken(found)
    assert found["left_out"].startswith("no settings were tried, as there is no time for two trainings of 50 steps")


def test_a_trial_of_too_few_steps_is_left_out_though_others_have_enough():
    """Twice the batch would have half of the steps."""
    _, found, told, _ = sweep(away_from(rate=0.01, batch=32), budget=7 * 0.6 / 0.9)
    assert 32 not in {trial["options"][BATCH] for trial in told} and "values of batch" in found["left_out"]


def test_it_is_kept_where_nothing_is_better():
    chosen, found, *_ = sweep(lambda options: 0.5, PATCHES)
    assert chosen == PATCHES and found["outermost"] == [] and found["options"] == {}


def test_the_best_may_be_outermost():
    _, found, *_ = sweep(away_from(rate=1.0, batch=16))
    assert found["options"] == {RATE: 0.08} and found["outermost"] == [RATE]


def test_trials_that_go_wrong_have_lost():
    def loss(options):
        return math.nan if options[RATE] > 0.008 else away_from(rate=0.005)(options)

    chosen, _, told, _ = sweep(loss)
    assert chosen.optimizer.learning_rate == 0.005
    assert {trial["loss"] for trial in told if trial["options"][RATE] > 0.008} == {None}


@pytest.mark.parametrize("stopped_after", [1, 4, 9])
def test_finished_trials_are_not_run_again(stopped_after):
    loss = away_from(rate=0.02, batch=8, whole=0.1)
    chosen, found, told, trained = sweep(loss, PATCHES, slower=1.05)
    again = sweep(loss, PATCHES, slower=1.05, known=told[:stopped_after])
    assert again.told == told[stopped_after:] and again.trained == trained[stopped_after:]
    assert (again.config, again.sweep) == (chosen, found)


def test_trials_of_other_settings_do_not_count():
    *_, told, _ = sweep(away_from(rate=0.02))
    assert sweep(away_from(rate=0.02), replace(BASE, batch=8), known=told).told[0]["options"][BATCH] == 8


def test_what_a_sweep_of_earlier_versions_found():
    before = {"batch": 4, "learning_rate": 0.00125, "rounds": [], "outermost": []}
    assert (
        taken(before) == {BATCH: 4, RATE: 0.00125} and taken({"rounds": []}) is None and taken({"trials": []}) is None
    )


def test_of_a_budget_of_steps_trials_share_the_steps():
    chosen, found, told, _ = sweep(away_from(rate=0.02), replace(BASE, minutes=None, steps=400), budget=400)
    assert chosen.optimizer.learning_rate == 0.02 and [trial["steps"] for trial in told] == [100, 100, 100]
    assert "seconds" not in told[0] and found["outermost"] == []


def test_small_batches_are_not_tried_twice():
    _, _, told, _ = sweep(away_from(rate=0.01, batch=1), replace(BASE, batch=2))
    assert [trial["options"][BATCH] for trial in told if trial["options"][RATE] == 0.01] == [2, 1]
