import math
from contextlib import contextmanager
from dataclasses import replace

import pytest

from patch_diffusion.config import Config, Optimizer
from patch_diffusion.races.tuning import Candidate, candidates, rounds, tune

BASE = Config(batch=16, optimizer=Optimizer(learning_rate=0.01), minutes=30)


class Pretender:
    """In place of a trainer: it tells when it was whose turn."""

    def __init__(self, config, turns):
        self.config, self._turns = config, turns

    @contextmanager
    def in_laps(self, **budget):
        yield lambda until: self._turns.append((self.config.batch, self.config.optimizer.learning_rate, budget, until))


def sweep(loss, tmp_path, config=BASE, known=(), budget=36.0):
    """``tune`` where the loss is a function of batch and rate: what it found, the rounds as told, the turns."""
    turns, told = [], []
    chosen, found = tune(
        config,
        budget,
        tmp_path / "tuning",
        lambda given, out: Pretender(given, turns),
        lambda trainer: loss(trainer.config.batch, trainer.config.optimizer.learning_rate),
        known=known,
        tell=told.append,
    )
    return chosen, found, told, turns


def away_from(batch, rate):
    return lambda b, r: math.log(b / batch) ** 2 + math.log(r / rate) ** 2


def test_the_best_is_found_and_nothing_else_is_changed(tmp_path):
    chosen, found, told, _ = sweep(away_from(8, 0.02), tmp_path)
    assert chosen == replace(BASE, batch=8, optimizer=replace(BASE.optimizer, learning_rate=0.02))
    assert (found["batch"], found["learning_rate"], found["outermost"]) == (8, 0.02, [])
    assert found["rounds"] == told
    # It was the highest rate, so twice of it was tried, too.
    assert [(each["batch"], each["learning_rate"]) for each in told[-1]["trials"]] == [(8, 0.04)]


def test_the_rounds_halve_and_double_and_take_what_was_asked_for(tmp_path):
    _, _, told, _ = sweep(away_from(8, 0.01), tmp_path, budget=88.0)
    assert [len(each["trials"]) for each in told] == rounds(12) == [12, 6, 3]
    assert [each["budget"] for each in told] == pytest.approx([2, 4, 8])
    _, _, told, _ = sweep(away_from(8, 0.08), tmp_path, budget=88.0)
    assert [len(each["trials"]) for each in told] == [12, 6, 3, 1, 1]
    assert sum(each["budget"] * len(each["trials"]) for each in told) == pytest.approx(88)


@pytest.mark.parametrize("best", [(8, 0.01), (1, 0.001), (1, 0.08), (64, 0.001), (32, 0.08)])
def test_no_sweep_takes_more_than_was_asked_for(tmp_path, best):
    """From a corner of the grid two rounds had two candidates each, of which one was budgeted: 18 % too many."""
    _, _, told, _ = sweep(away_from(*best), tmp_path, budget=88.0)
    assert sum(each["budget"] * len(each["trials"]) for each in told) <= 88 * (1 + 1e-9)


def test_what_a_sweep_of_earlier_versions_found_stays(tmp_path):
    _, _, told, _ = sweep(away_from(1, 0.001), tmp_path)
    later = {"budget": 1.0, "trials": [{"batch": 4, "learning_rate": 0.00125, "loss": 0.0}]}
    chosen, found, again, turns = sweep(away_from(1, 0.001), tmp_path, known=[*told, later])
    assert (chosen.batch, chosen.optimizer.learning_rate) == (4, 0.00125)
    assert found["rounds"] == [*told, later] and again == [] and turns == []


def test_trials_take_turns(tmp_path):
    *_, turns = sweep(away_from(8, 0.01), tmp_path)
    first_round = [turn for turn in turns if turn[2] == {"minutes": pytest.approx(36 / 44)}]
    assert len(first_round) == 12 * 8
    assert [until for *_, until in first_round[:24:12]] == [1 / 8, 2 / 8]
    assert len({turn[:2] for turn in first_round[:12]}) == 12
    assert {turn[3] for turn in turns[-3:]} == {1.0}


def test_what_was_given_stays_to_the_last_round(tmp_path):
    _, found, told, _ = sweep(away_from(1, 0.001), tmp_path)
    for each in told[:3]:
        assert (16, 0.01) in [(trial["batch"], trial["learning_rate"]) for trial in each["trials"]]
    # From the grid's corner of 4 and 0.005, a step further out in either, of which the rate gains most.
    assert (found["batch"], found["learning_rate"], found["outermost"]) == (4, 0.0025, ["learning_rate"])


def test_it_is_taken_where_nothing_is_better(tmp_path):
    chosen, found, *_ = sweep(lambda batch, rate: 0.5, tmp_path)
    assert chosen == BASE and found["outermost"] == []


def test_trials_that_go_wrong_have_lost(tmp_path):
    def loss(batch, rate):
        return math.nan if rate > 0.008 else away_from(8, 0.005)(batch, rate)

    chosen, _, told, _ = sweep(loss, tmp_path)
    assert (chosen.batch, chosen.optimizer.learning_rate) == (8, 0.005)  # half of that is no better
    assert {trial["loss"] for trial in told[0]["trials"] if trial["learning_rate"] > 0.008} == {None}


def test_finished_rounds_are_not_run_again(tmp_path):
    _, _, told, turns = sweep(away_from(8, 0.02), tmp_path)
    chosen, found, again, later = sweep(away_from(8, 0.02), tmp_path, known=told[:2])
    assert again == told[2:] and found["rounds"] == told and chosen.batch == 8
    assert later == [turn for turn in turns if turn[2] == {"minutes": pytest.approx(4 * 36 / 44)}]


def test_of_a_budget_of_steps_the_batch_stays():
    """A larger one would win by seeing more in as many steps."""
    found = candidates(replace(BASE, minutes=None, steps=100))
    assert {each.batch for each in found} == {16} and len(found) == 3
    assert len(candidates(replace(BASE, minutes=None, images=100))) == 12


def test_small_batches_are_not_tried_twice():
    found = candidates(replace(BASE, batch=1))
    assert found[0] == Candidate(1, 0.01) and sorted({each.batch for each in found}) == [1, 2]
    assert len(found) == len(set(found)) == 6
