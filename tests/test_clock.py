"""The time of a run: a budget of minutes is one of training, and evaluation adds a twentieth to it at most."""

import json
import math
from datetime import datetime
from types import SimpleNamespace

import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.cli import main
from patch_diffusion.data.held_out import hold_out
from patch_diffusion.runs.retention import state_of
from patch_diffusion.training import loop
from patch_diffusion.training.budget import Budget, Cadence
from patch_diffusion.training.clock import Clock
from patch_diffusion.training.state import Counters
from patch_diffusion.training.watching.evaluation import MOST_HELD_OUT
from patch_diffusion.training.watching.thinning import Evaluation, Evaluations
from refusal import refused


@pytest.fixture
def time(monkeypatch):
    """A list of one number, the seconds that `time.monotonic` returns."""
    now = [100.0]
    monkeypatch.setattr("patch_diffusion.training.clock.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def slow(make_trainer, images, time, monkeypatch):
    """``slow(**options)``: a trainer with held-out images whose steps and evaluations take times that are known."""

    def held_out(model, images, schedule, most):
        time[0] += most / 64
        return {0.5: 1.0}, {"8x12": 1.0}

    def sampled(model, num, images):
        time[0] += num / 8
        return [torch.randint(0, 256, (3, 8, 12), dtype=torch.uint8) for _ in range(num)], None

    monkeypatch.setattr(loop, "held_out_losses", held_out)
    monkeypatch.setattr(loop, "sample_pictures", sampled)
    monkeypatch.setattr(loop, "seconds_per_held_out", lambda *_: 1 / 64)
    monkeypatch.setattr(loop, "seconds_per_picture", lambda *_: 1 / 8)

    def make(seconds=1.0, **options):
        train, held_out = hold_out(images, 0.25, 0)
        trainer = make_trainer(images=train, held_out=held_out, checkpoints=10, **{"samples": 10, **options})
        step = trainer.train_step

        def train_step(spent):
            time[0] += seconds
            return step(spent)

        monkeypatch.setattr(trainer, "train_step", train_step)
        return trainer

    return make


def lines(trainer, kind):
    log = [json.loads(line) for line in trainer.run.log_file.read_text().splitlines()]
    return [line for line in log if kind in line]


@pytest.mark.slow
def test_minutes_are_minutes_of_training(slow, time):
    trainer = slow(2.0)
    trainer.fit(minutes=2)
    assert trainer.state.counters.step == 60 and trainer.state.counters.seconds == 120
    evaluated = trainer.clock.parts["evaluation"]
    assert 0.8 * 0.04 * 120 < evaluated <= 0.05 * 120
    assert time[0] == pytest.approx(100 + 120 + evaluated)
    held_out, pictures = lines(trainer, "held_out"), sorted(trainer.run.path.glob("samples/*.png"))
    assert held_out[-1]["step"] == 60 and pictures[-1].stem == "step-00000060"
    assert [line["step"] for line in held_out] == [12, 24, 36, 48, 60] and len(pictures) == 4
    (note,) = [line["note"] for line in lines(trainer, "note") if "evaluation" in line["note"]]
    assert note == (
        "evaluation is cut to 5% of the training time: pictures of 4 samples, 4 times (not 10 times); held-out loss of "
        "32 images, 5 times (not 10 times)"
    )


@pytest.mark.slow
def test_a_budget_of_steps_leaves_nothing_out(slow):
    trainer = slow()
    trainer.fit(steps=20)
    assert len(lines(trainer, "held_out")) == 10 == len(list(trainer.run.path.glob("samples/*.png")))
    assert trainer.state.counters.seconds == 20


@pytest.mark.slow
def test_a_continued_run_is_evaluated_on_the_same_number_of_images(slow):
    trainer = slow()
    trainer.fit(minutes=0.5)
    number = trainer.state.evaluated["held_out"]
    assert 16 <= number < MOST_HELD_OUT
    continued = slow(5.0)
    continued.fit(minutes=5)
    assert continued.state.evaluated["held_out"] == number and len(lines(continued, "held_out")) > 2
    assert continued.clock.parts["evaluation"] <= 0.05 * 300


@pytest.mark.slow
def test_wall_minutes_end_by_the_clock(slow, time):
    trainer = slow()
    time[0] += 7  # before the first step
    trainer.fit(wall_minutes=2)
    assert 100 + 110 < time[0] <= 100 + 120
    assert slow().config.wall_minutes is None
    again = slow()
    steps = trainer.state.counters.step
    again.fit(wall_minutes=2)
    assert again.state.counters.step == steps


@pytest.mark.slow
def test_where_the_time_went(slow, capsys, time, monkeypatch):
    monkeypatch.setattr(loop, "_LONG", 0.25)
    trainer = slow(4.0, show=True)
    trainer.fit(minutes=4)
    told = capsys.readouterr().err
    assert (
        "will end at" in told and "evaluating held-out images" in told and "trained for 4 min 00 s: steps 100%" in told
    )
    assert main(["info", str(trainer.run.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["time"]
    assert found["steps"] + found["data"] + found["saves"] == 240 and 0 < found["evaluation"] <= 12
    stored = state_of(trainer.run.checkpoints()[-1])
    assert stored.time is not None and stored.time["evaluation"] == found["evaluation"]


def test_a_clock_counts_parts(time):
    clock = Clock()
    time[0] += 3
    with clock.running():
        time[0] += 10
        with clock.part("data"):
            time[0] += 1
        with clock.part("evaluation"):
            time[0] += 100
        assert clock.seconds == 11 and clock.wall == 114
    time[0] += 1000
    with clock.running(), clock.part("saves"):
        time[0] += 2
    assert clock.seconds == 13 and clock.wall == 116
    assert clock.parts == {"data": 1, "saves": 2, "evaluation": 100, "metrics": 0, "start": 3, "end": 0}


@pytest.mark.parametrize("parts", [1, 2, 7, 10])
@pytest.mark.parametrize("stride", [1, 2, 3, 10])
def test_every_kth_moment_counted_back_from_the_last(parts, stride):
    cadence = Cadence(parts, stride)
    due = [k for k in range(1, 1001) if cadence.is_due((k - 1) / 1000, k / 1000)]
    expected = sorted(math.ceil(1000 * place / parts) for place in range(parts, 0, -stride))
    assert due == expected and cadence.times == len(expected)


@pytest.mark.parametrize("seconds", [1.0, 10.0, 100.0, 1000.0, 1e5])
@pytest.mark.parametrize("each", [1e-4, 0.01, 1.0])
def test_what_is_planned_fits(seconds, each):
    evaluations = Evaluations(
        {"a": Evaluation("a of {}", Cadence(10), 16, 4), "b": Evaluation("b of {}", Cadence(10), 64, 16)}, seconds
    )
    said = evaluations.plan({}, {"a": 35 * each, "b": 12 * each})
    planned = sum(evaluations[name].cost * evaluations[name].moments.times for name in "ab")
    assert planned <= 0.04 * seconds
    full = all(evaluations[name].moments == Cadence(10) for name in "ab")
    assert full == (not said) and (full or planned + 64 * 12 * each > 0.01 * seconds)


def test_budgets():
    seen = Counters(step=5, images=50, seconds=30.0)
    assert Budget(minutes=1).spent(seen, 40.0) == 0.5 and Budget(wall_minutes=1).spent(seen, 45.0) == 0.75
    with pytest.raises(pd.InputError, match="one of steps, images, minutes or wall_minutes"):
        Budget(minutes=1, wall_minutes=1)
    with refused("wall_minutes"):
        Budget(wall_minutes=0)


@pytest.mark.parametrize(
    ("minutes", "told"), [(1.0, "08:48 with evaluation"), (60.0, "09:47, or by 09:50 with evaluation")]
)
def test_the_end_is_one_time_if_evaluation_does_not_move_it(minutes, told, monkeypatch):
    at = datetime(2026, 1, 2, 8, 47, 0)
    monkeypatch.setattr(loop, "datetime", SimpleNamespace(now=lambda: at))
    run = SimpleNamespace(budget=Budget(minutes=minutes), meter=None)
    assert loop.Loop._forecast(run, 0.0) == f"will end at {told}"


def test_how_to_give_a_spent_budget_more():
    told = "its budget of 6,000 images is spent; to train longer, give more: --images "
    assert Budget(images=6000).how_to_go_on(1.003) == told + "12000"
    assert Budget(images=6000).how_to_go_on(2.5) == told + "24000"  # a run that was trained with more before
    assert Budget(wall_minutes=1.5).how_to_go_on(1).endswith(" --wall-minutes 3")
