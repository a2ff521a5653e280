import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import patch_diffusion as pd
from checkpoint_files import read_checkpoint
from patch_diffusion.config import Optimizer
from patch_diffusion.files import read_tensors
from patch_diffusion.runs.floor import LinearFloor
from patch_diffusion.training import loop, watchdog
from patch_diffusion.training.hardware.group import Group
from patch_diffusion.training.losses import Summary
from patch_diffusion.training.optimizing.optimizers import make_optimizer
from patch_diffusion.training.state import optimizer_tensors
from patch_diffusion.training.watchdog import PATIENCE, Watchdog, lacks_layout
from patch_diffusion.training.watching import evaluation


def means(loss, *, steps=20, skipped=0):
    return Summary({"8x8": loss}, {}, steps, skipped)


def lines(trainer):
    return [json.loads(line) for line in trainer.run.log_file.read_text().splitlines()]


def notes(trainer):
    return [line["note"] for line in lines(trainer) if "note" in line]


def spoil(trainer, when, how):
    """Something goes wrong in some steps of a trainer."""
    step = trainer.train_step

    def spoiled(spent):
        if when(trainer):
            how(trainer)
        return step(spent)

    trainer.train_step = spoiled


@torch.no_grad()
def to_nan(trainer):
    next(iter(trainer.state.network.parameters())).fill_(math.nan)


@torch.no_grad()
def scramble(trainer):
    for parameter in trainer.state.network.parameters():
        parameter.add_(10 * torch.randn_like(parameter))


def test_losses_may_fluctuate_and_fall_but_not_rise_for_good():
    dog = Watchdog()
    for step, loss in enumerate([1.0, 0.5, 0.9, 0.4, 0.3, 0.6, 0.3, 0.9, 0.3]):
        assert not dog.judge(step, means(loss))
    assert dog.good == 8
    reasons = [dog.judge(9 + line, means(2.0)) for line in range(PATIENCE)]
    assert not any(reasons[:-1]) and "the loss has risen to" in reasons[-1] and dog.good == 8


def test_an_explosion_takes_two_lines():
    dog = Watchdog()
    dog.judge(1, means(0.3))
    assert not dog.judge(2, means(1e4)) and "times what it was" in dog.judge(3, means(1e4))
    dog = Watchdog()
    dog.judge(1, means(0.3))
    assert not dog.judge(2, means(1e4)) and not dog.judge(3, means(0.3)) and not dog.judge(4, means(1e4))


def test_a_few_skipped_steps_are_no_trouble_and_many_are():
    dog = Watchdog()
    assert not dog.judge(20, means(0.3, skipped=10))
    assert dog.judge(40, means(0.3, skipped=21)) == "the gradients of 11 of the last 20 steps were not finite"


def test_steps_are_counted_and_not_lines():
    """With a line for each step, one that is skipped is not most of them; ten in a row are."""
    dog = Watchdog()
    told = [dog.judge(step, means(0.3, steps=1, skipped=min(step, 1) + max(step - 4, 0))) for step in range(1, 15)]
    assert dog.good == 4 and not any(told[:-1])
    assert told[-1] == "the gradients of 10 of the last 10 steps were not finite"
    assert Watchdog().judge(3, means(0.3, steps=3, skipped=2), last=True)
    assert not Watchdog().judge(30, means(0.3, steps=3, skipped=2), last=True)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_gradients_that_are_no_numbers_move_nothing_and_are_counted(make_trainer, kind, clip):
    """A step with them leaves weights and moments as they were, and the next one is as if it had not been."""
    trainer = make_trainer(optimizer=Optimizer(kind=kind, clip=clip, weight_decay=0.1))
    trainer.train_step(0.5)
    before = {name: tensor.clone() for name, tensor in trainer.state.network.state_dict().items()}
    moments = {
        name: tensor.clone()
        for name, tensor in optimizer_tensors(trainer.state.optimizer, trainer.state.network).items()
    }
    broken = next(iter(trainer.state.network.parameters())).register_hook(lambda gradient: gradient * math.inf)
    trainer.train_step(0.5)
    broken.remove()
    after = trainer.state.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    later = optimizer_tensors(trainer.state.optimizer, trainer.state.network)
    assert all(torch.equal(moments[name], later[name]) for name in moments)
    trainer.train_step(0.5)
    assert trainer.state.losses.summary().skipped == 1
    assert any(not torch.equal(before[name], tensor) for name, tensor in trainer.state.network.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(("how", "why"), [(to_nan, "gradients of"), (scramble, "the loss has risen")])
def test_it_goes_back_once_with_half_the_rate(make_trainer, how, why):
    trainer = make_trainer(log_every=2, checkpoints=6)
    spoiled = []

    def once(trainer):
        if trainer.state.counters.step == 12 and not spoiled:
            spoiled.append(True)
            return True
        return False

    spoil(trainer, once, how)
    trainer.fit(steps=24)
    assert trainer.state.counters.step == 24 and trainer.state.watchdog.rate == 0.5 and trainer.state.watchdog.back
    [note] = [note for note in notes(trainer) if "WARNING" in note]
    assert why in note and "back to step 12 with half the learning rate" in note
    steps = [line["step"] for line in lines(trainer) if "loss" in line]
    assert steps == sorted(set(steps)) and steps[-1] == 24
    assert all(weight.isfinite().all() for weight in read_tensors(trainer.run.model_file).values())
    rates = {line["step"]: line["learning_rate"] for line in lines(trainer) if "loss" in line}
    assert rates[14] < 0.6 * rates[12]
    # What was written in between is neither used nor lost.
    assert not list(trainer.run.path.glob("checkpoints/*.tmp"))


@pytest.mark.slow
def test_what_it_goes_back_to_stays_where_it_was_to_stay(make_trainer):
    trainer = make_trainer(log_every=2, checkpoints=6)
    spoil(trainer, lambda trainer: trainer.state.counters.step == 12 and not trainer.state.watchdog.back, to_nan)
    trainer.fit(steps=24)
    assert trainer.state.watchdog.back
    kept = [read_checkpoint(path)[1]["keep"] for path in trainer.run.checkpoints()]
    assert [path.name[-2:] for path in trainer.run.checkpoints()] == ["04", "08", "12", "16", "20", "24"] and all(kept)


@pytest.mark.slow
def test_what_goes_back_and_is_killed_goes_on_from_there(make_trainer, monkeypatch):
    """The half rate is part of the checkpoint."""
    trainer = make_trainer(log_every=2, checkpoints=6)
    spoil(trainer, lambda trainer: trainer.state.counters.step == 12 and not trainer.state.watchdog.back, to_nan)
    trainer.fit(steps=24)

    killed = make_trainer("killed", log_every=2, checkpoints=6)
    spoil(killed, lambda trainer: trainer.state.counters.step == 12 and not trainer.state.watchdog.back, to_nan)

    def die(trainer):
        raise ZeroDivisionError

    spoil(killed, lambda trainer: trainer.state.counters.step == 13 and trainer.state.watchdog.back, die)
    with pytest.raises(ZeroDivisionError):
        killed.fit(steps=24)
    continued = make_trainer("killed", log_every=2, checkpoints=6)
    continued.fit(steps=24)
    one, two = (read_checkpoint(each.run.checkpoint(24))[0] for each in (trainer, continued))
    assert all(torch.equal(one[group][name], two[group][name]) for group in one for name in one[group])


@pytest.mark.slow
def test_the_second_time_it_stops_and_leaves_the_good_state(make_trainer, monkeypatch):
    monkeypatch.setattr(watchdog, "LOST", 1)
    trainer = make_trainer(log_every=1, checkpoints=4)
    spoil(trainer, lambda trainer: trainer.state.counters.step >= 2, to_nan)
    with pytest.raises(pd.InputError, match=r"not finite again \(step 3\), so training stopped; look at the data"):
        trainer.fit(steps=4)
    assert [path.name for path in trainer.run.checkpoints()] == ["step-00000001", "step-00000002"]
    assert all(weight.isfinite().all() for weight in read_tensors(trainer.run.model_file).values())
    continued = make_trainer(
        log_every=1, checkpoints=4, optimizer=Optimizer(learning_rate=1e-4), allow=["optimizer.learning_rate"]
    )
    continued.fit(steps=4)
    assert continued.state.counters.step == 4
    assert "changed from here on: optimizer.learning_rate: 0.005, now 0.0001" in notes(continued)


@pytest.mark.slow
def test_it_may_be_told_to_stop_at_once_or_to_go_on(make_trainer, monkeypatch):
    monkeypatch.setattr(watchdog, "LOST", 1)
    stops = make_trainer("stops", log_every=1, watchdog="stop")
    spoil(stops, lambda trainer: trainer.state.counters.step == 2, to_nan)
    with pytest.raises(pd.InputError, match="so training stopped"):
        stops.fit(steps=4)
    assert stops.state.counters.step == 3 and stops.state.watchdog.rate == 1
    goes_on = make_trainer("goes on", log_every=1, watchdog="off")
    spoil(goes_on, lambda trainer: trainer.state.counters.step == 2, to_nan)
    goes_on.fit(steps=4)
    assert goes_on.state.counters.step == 4 and sum("since watchdog is off" in note for note in notes(goes_on)) == 2


@pytest.mark.slow
def test_trouble_from_the_start_goes_back_to_the_start(make_trainer):
    trainer = make_trainer(log_every=2)
    spoil(trainer, lambda trainer: not trainer.state.watchdog.back, to_nan)
    trainer.fit(steps=4)
    assert "back to step 0 with half" in notes(trainer)[-1] and trainer.state.counters.step == 4


@pytest.mark.slow
def test_samples_of_one_colour_are_trouble(make_trainer, monkeypatch):
    trainer = make_trainer(samples=2, checkpoints=4)
    generate = evaluation.generate

    def constant(model, seeds, *others, **told):
        for sample in generate(model, seeds, *others, **told):
            if trainer.state.counters.step == 4 and not trainer.state.watchdog.back:
                sample = replace(sample, pixels=torch.full_like(sample.pixels, 77))
            yield sample

    monkeypatch.setattr(evaluation, "generate", constant)
    trainer.fit(steps=8)
    [note] = [note for note in notes(trainer) if "the samples show nothing but one colour (step 5)" in note]
    assert "back to step 2 " in note or "back to step 0 " in note  # not to what was saved with that picture
    assert trainer.state.counters.step == 8 and trainer.state.watchdog.back


def test_a_network_that_predicts_the_clean_image_may_begin_with_one_colour():
    pictures = [torch.full((1, 4, 4), 77)]
    for process, collapsed in ((pd.EDM(), True), (pd.VP(), True), (pd.XPrediction(), False)):
        assert evaluation.is_collapsed(pd.Denoiser(torch.nn.Identity(), process=process), pictures) == collapsed


@pytest.mark.slow
@pytest.mark.parametrize("watchdog", ["restore", "off"])
def test_a_last_picture_of_one_colour_is_told_once(make_trainer, monkeypatch, watchdog):
    generate = evaluation.generate

    def constant(model, seeds, *others, **told):
        for sample in generate(model, seeds, *others, **told):
            yield replace(sample, pixels=torch.full_like(sample.pixels, 77))

    monkeypatch.setattr(evaluation, "generate", constant)
    last = make_trainer(samples=1, watchdog=watchdog)
    last.fit(steps=4)
    assert sum("nothing but one colour" in note for note in notes(last)) == 1


@pytest.mark.slow
def test_a_picture_of_one_colour_is_told_once_where_nothing_is_done_about_it(make_trainer, monkeypatch):
    generate, trainer = evaluation.generate, make_trainer(samples=2, watchdog="off")

    def constant(model, seeds, *others, **told):
        for sample in generate(model, seeds, *others, **told):
            yield (
                replace(sample, pixels=torch.full_like(sample.pixels, 77))
                if trainer.state.counters.step == 4
                else sample
            )

    monkeypatch.setattr(evaluation, "generate", constant)
    trainer.fit(steps=8)
    assert sum("nothing but one colour" in note for note in notes(trainer)) == 1


def test_a_slow_process_is_named():
    group = Group(0, 1, torch.device("cpu"))
    group._busy_of_all = np.array([10.0, 10.5, 25.0])
    assert group.lagging() == "process 2 takes 2.4 times as long as the others, which wait for it"
    assert group.lagging() == ""


@pytest.mark.slow
def test_a_clock_that_stands_still_ends_a_budget_of_minutes(make_trainer, monkeypatch):
    monkeypatch.setattr(loop, "_STANDING", 5)
    trainer = make_trainer()
    monkeypatch.setattr("patch_diffusion.training.clock.time.monotonic", lambda: 1000.0)
    with pytest.raises(pd.InputError, match="clock of this machine has stood still for 6 steps"):
        trainer.fit(minutes=1)
    assert trainer.run.checkpoints()
    continued = make_trainer()
    continued.fit(steps=8)
    assert continued.state.counters.step == 8


def test_make_optimizer_steps_without_an_engine():
    """Muon by itself knows nothing of skipped steps."""
    weight = torch.nn.Parameter(torch.eye(8))
    optimizer = make_optimizer([weight], Optimizer(kind="muon"))
    weight.grad = torch.ones(8, 8)
    optimizer.step()
    assert not torch.equal(weight, torch.eye(8))


def test_a_model_above_the_linear_floor_at_the_highest_level_lacks_layout():
    floor = LinearFloor(0.5, (0.4, 0.6), {"0.1": 0.4, "6.4": 0.56}, {"0.1": (0.3, 0.5), "6.4": (0.5, 0.6)}, 100, 64)
    said = lacks_layout(0.6, {"0.1": 0.4, "6.4": 0.7}, floor)
    assert "at noise 6.4 its held-out loss is 0.70, that of the best linear denoiser 0.56" in said
    assert said.endswith("if it stays so")
    assert not lacks_layout(1.0, {"0.1": 0.4, "6.4": 0.7}, floor).endswith("if it stays so")
    assert not lacks_layout(0.4, {"0.1": 0.4, "6.4": 0.7}, floor)  # early
    assert not lacks_layout(1.0, {"0.1": 0.9, "6.4": 0.59}, floor)  # within the interval
    assert not lacks_layout(1.0, {}, floor)
