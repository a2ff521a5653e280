import time

import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.devices import memory_of
from patch_diffusion.training import forecast as module
from patch_diffusion.training.forecast import Forecast, forecast
from patch_diffusion.training.hardware.memory import memory_of_image, memory_of_weights
from patch_diffusion.training.trainer import Trainer


def steps_of(monkeypatch, seconds, left_out=()):
    """Steps that take such seconds by size, of which some never come up; the rest of the forecast is as it is."""

    def step(trainer, spent):
        size = trainer.schedule.size_at(trainer.state.counters.step, trainer.images.resolution, spent)
        if str(size) in left_out:
            size = trainer.schedule.sizes_for(trainer.images.resolution)[-1]
        trainer.state.counters.step += 1
        return str(size), seconds[str(size)] * trainer.batches.batch / 4

    monkeypatch.setattr(module, "_step", step)


@pytest.mark.parametrize("kind", ["stochastic", "progressive"])
def test_seconds_of_sizes_are_weighed_by_their_shares(make_trainer, monkeypatch, kind):
    steps_of(monkeypatch, {"4x6": 0.25, "8x12": 0.5})
    trainer = make_trainer(schedule={"whole": 0.25, "kind": kind}, samples=2)
    found = forecast(trainer)
    assert found.shares == {"4x6": 0.75, "8x12": 0.25} and found.images == {"4x6": 8, "8x12": 4}
    assert found.seconds == {"4x6": 0.25, "8x12": 0.5}
    of_time = 0.75 * 8 / 0.25 + 0.25 * 4 / 0.5  # shares of a progressive schedule are of the minutes
    of_steps = (0.75 * 8 + 0.25 * 4) / (0.75 * 0.25 + 0.25 * 0.5)
    assert found.images_per_second == pytest.approx(of_time if kind == "progressive" else of_steps)
    assert found.pictures == 2 and found.device == "cpu" and trainer.config.batch == 4
    assert not trainer.run.path.exists()


@pytest.mark.parametrize("unit", ["steps", "images", "minutes"])
@pytest.mark.parametrize("context", [False, True])
def test_progressive_shares_are_of_the_budget(unit, context):
    """A training is played step by step, with the sizes of the schedule and a second for 4 images of 64 pixels."""
    schedule = pd.PatchSchedule(whole=0.5, kind="progressive", context=16 if context else None, seed=3)
    sizes = schedule.sizes_for((64, 64))
    images = {str(size): size.num_images(16) for size in sizes}
    seconds = {str(size): size.num_images(16) / 4 * (size.shape[0] / 64) ** 2 for size in sizes}
    in_turn = tuple(str(size) for size in sizes if not size.small)
    shares = {str(size): size.probability for size in sizes}
    found = Forecast("cpu", 10, seconds, shares, images, images, 0.0, 0, 16, 7, 9, in_turn, unit)
    budget = {"steps": 4000, "images": 100_000, "minutes": 120}[unit]
    seen = {"steps": 0, "images": 0, "minutes": 0.0}
    while (spent := seen[unit] / budget) < 1:
        size = str(schedule.size_at(seen["steps"], (64, 64), spent))
        seen = {
            "steps": seen["steps"] + 1,
            "images": seen["images"] + images[size],
            "minutes": seen["minutes"] + seconds[size] / 60,
        }
    assert found.images_per_second == pytest.approx(seen["images"] / seen["minutes"] / 60, rel=0.03)
    if unit == "minutes":
        assert found.images_in(budget) == pytest.approx(seen["images"], rel=0.03)
    else:
        assert found.minutes_for(**{unit: budget}) == pytest.approx(seen["minutes"], rel=0.03)


def test_the_shares_say_what_they_are_of(make_trainer):
    stochastic, progressive = (
        make_trainer(kind, schedule={"whole": 0.25, "kind": kind}).summary() for kind in ("stochastic", "progressive")
    )
    assert "steps on 4x6 75%, 8x12 25%; sigma_data" in stochastic
    assert "steps on 4x6 75%, 8x12 25% of the budget, from small to large; sigma_data" in progressive


def test_a_size_that_did_not_come_up_is_counted_by_its_operations(make_trainer, monkeypatch):
    steps_of(monkeypatch, {"4x6": 9.0, "8x12": 0.5}, left_out={"4x6"})
    trainer = make_trainer()
    per_image = 0.5 / 4 * trainer.flops[4, 6] / trainer.flops[8, 12]
    assert forecast(trainer, seconds=0.1).seconds["4x6"] == pytest.approx(8 * per_image)


def test_where_a_step_takes_too_long_a_part_of_it_is_timed(make_trainer, monkeypatch):
    timed = []

    def step(trainer, spent):
        timed.append(trainer.batches.batch)
        return "8x12", 0.5 * trainer.batches.batch

    monkeypatch.setattr(module, "_step", step)
    found = forecast(make_trainer(schedule={"whole": 1.0}, batch=64), seconds=10)
    assert max(timed) == 4 and found.seconds["8x12"] == pytest.approx(32)


@pytest.mark.slow
def test_steps_are_of_the_batch_that_is_timed(make_trainer, monkeypatch):
    trainer, steps = make_trainer(schedule={"whole": 1.0}, batch=64), []
    step = trainer.train_step

    def seen(spent=0.0):
        before = trainer.state.counters.images
        result = step(spent)
        steps.append((trainer.batches.batch, trainer.state.counters.images - before))
        return result

    monkeypatch.setattr(trainer, "train_step", seen)
    forecast(trainer, seconds=0.01)
    assert steps[0] == (1, 1) and all(batch == num for batch, num in steps)
    assert trainer.batches.batch == trainer.config.batch == 64


def test_images_and_minutes_are_two_ways_to_say_the_same():
    seconds, shares = {"8x8": 0.5, "16x16": 1.0}, {"8x8": 0.5, "16x16": 0.5}
    images, operations = {"8x8": 8, "16x16": 4}, {"8x8": 30, "16x16": 60}
    found = Forecast("cpu", 10, seconds, shares, images, operations, 3.0, 5, 4, 7, 9)
    assert found.images_per_second == 8
    assert found.images_in(5) == 300 * 8  # pictures take no minutes of a budget
    assert found.minutes_for(images=found.images_in(5)) == pytest.approx(5 + 15 / 60)
    assert found.minutes_for(steps=380) == pytest.approx(5)
    assert found.memory == 16 and found.as_dict()["memory"] == 16
    assert found.rate == 60
    half = found.with_batch(2)
    assert half.operations == {"8x8": 15, "16x16": 30} and half.rate == 60
    assert half.images == {"8x8": 4, "16x16": 2} and half.seconds["16x16"] == 0.5
    assert half.memory == 7 + round(9 / 2) and half.images_per_second == 8


@pytest.mark.slow
def test_the_forecast_is_of_the_steps_that_are_made(make_trainer):
    """Real steps, roughly: a machine that is busy with other things is no reason to fail."""
    found = forecast(make_trainer("foreseen", batch=16, network={"width": 32}))
    trainer = make_trainer("made", batch=16, network={"width": 32})
    for _ in range(3):
        trainer.train_step()
    began, images = time.monotonic(), trainer.state.counters.images
    for _ in range(30):
        trainer.train_step()
    rate = (trainer.state.counters.images - images) / (time.monotonic() - began)
    assert 1 / 3 < found.images_per_second / rate < 3


@pytest.mark.slow
def test_memory_grows_with_the_images_and_is_less_in_parts(make_trainer):
    schedule = {"whole": 1.0}
    found = [forecast(make_trainer(f"run {batch}", batch=batch, schedule=schedule)) for batch in (2, 8)]
    assert found[1].memory_of_step == pytest.approx(4 * found[0].memory_of_step, rel=0.01)
    assert found[0].memory_of_weights == found[1].memory_of_weights == 4 * 5 * found[0].parameters
    from patch_diffusion.config import Engine

    parts = forecast(make_trainer("parts", batch=8, schedule=schedule, engine=Engine(accumulation=4)))
    assert parts.memory_of_step == found[0].memory_of_step


def test_activations_are_counted_once_and_weights_are_not():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 1)

        def forward(self, x, c_noise, labels):
            hidden = self.conv(x)
            for _ in range(40):
                hidden = hidden * hidden.exp()
            return hidden

    images = pd.ImageSet(torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8))
    kept = []
    for side in (16, 8):
        trainer = Trainer(
            pd.Denoiser(Twice(), 0.5, coords=False), images, pd.PatchSchedule(whole=1.0), out="nowhere", show=False
        )
        kept.append(memory_of_image(trainer.demand(), (side, side)))
    # What comes out of each operation, once, though all are used twice; and a little before and after.
    assert kept[0] == pytest.approx(80 * 3 * 16 * 16 * 4, rel=0.1) and kept[0] == pytest.approx(4 * kept[1], rel=0.02)


def test_memory_of_machine_and_weights():
    assert memory_of(torch.device("cpu")) > 2**28
    network = torch.nn.Linear(9, 10)
    assert memory_of_weights(network) == 5 * 4 * 100 and memory_of_weights(network, 2) == 7 * 4 * 100
