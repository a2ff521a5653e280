"""Are the overhead and the rate of steps found, on machines that wait for the images and on those that do not?"""

import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.config import Config, Network, Patches
from patch_diffusion.training import timing
from patch_diffusion.training.timing import fit_speed, measure_speed
from patch_diffusion.training.trainer import Trainer

IMAGE = 10**10  # operations


class Machine:
    """A machine on which a step of so many operations takes ``seconds(operations)``, and the batches that it took."""

    def __init__(self, seconds):
        self.seconds, self.batches = seconds, []

    def __call__(self, batches):
        self.batches += batches
        return {each * IMAGE: self.seconds(each * IMAGE) for each in batches}


def test_overhead_and_rate_of_a_machine_without_parallel_launches():
    machine = Machine(lambda operations: 0.01 + operations / 1e12)
    assert fit_speed(machine, 10**6) == pytest.approx((0.01, 1e12))
    assert machine.batches == [2, 8]


@pytest.mark.parametrize("noise", [0.97, 1.03])
def test_a_gpu_that_waits_for_the_host_is_timed_on_more_images(noise):
    """Two and eight images take equally long there, so that by them alone it would have any rate, or none."""
    machine = Machine(lambda operations: max(0.006 * (1 if operations == 2 * IMAGE else noise), operations / 1e14))
    overhead, rate = fit_speed(machine, 10**6)
    assert machine.batches == [2, 8, 32, 128]
    assert overhead == pytest.approx(0.006, rel=0.2) and 1e14 < rate < 2e14


@pytest.mark.parametrize("noise", [0.97, 1.0, 1.03])
def test_no_more_images_are_timed_than_memory_takes(noise):
    machine = Machine(lambda operations: 0.006 * (noise if operations == 32 * IMAGE else 1))
    overhead, rate = fit_speed(machine, 100)
    assert machine.batches == [2, 8, 32]
    assert 0.003 < overhead < 0.0065 and 0.9 < rate / (32 * IMAGE / 0.006) < 2.2  # what was seen to be done, or twice
    for most, batches in ((5, [2, 5]), (1, [1]), (0, [1])):
        machine = Machine(lambda operations: 0.006)
        assert fit_speed(machine, most)[0] > 0
        assert machine.batches == batches


def test_steps_of_any_batch_are_timed_with_few_images_and_one_patch_size(monkeypatch):
    monkeypatch.setattr(timing, "_TELLING", 1e9)
    monkeypatch.setattr(timing, "_LARGEST", 32)
    images = pd.ImageSet(torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8))
    network = Network(width=4, blocks=1, multipliers=(1,), attention=(), dropout=0.0)
    timed, steps = [], []
    take = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda *given: steps.append(given) or take(*given))
    monkeypatch.setattr(timing, "_time", lambda *given, time=timing._time: timed.append(time(*given)) or timed[-1])
    speed = measure_speed(images, Config(network=network, patches=Patches(whole=1.0), batch=2, steps=1), seconds=0.0)
    two, eight, many = sorted(operations for each in timed for operations in each)
    assert len(timed) == 2 and len(steps) < 20 and (eight, many) == (4 * two, 16 * two)
    assert speed.overhead > 0 and speed.rate > 0 and speed.activations > 0


@pytest.fixture
def pictures():
    random = torch.Generator().manual_seed(0)
    return pd.ImageSet(torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8, generator=random))


def config(**options):
    return Config(network=Network(width=4, multipliers=(1, 2), blocks=1), minutes=1.0, **options)


def test_overhead_and_rate_are_told_apart(pictures, monkeypatch):
    """Steps take so long as a clock says that a host of 0.3 s a step and a device of 10^9 operations a second would."""
    now, step = [0.0], timing.Trainer.train_step

    def taken(trainer, spent=0.0):
        before = trainer.state.counters.flops
        found = step(trainer, spent)
        now[0] += 0.3 + (trainer.state.counters.flops - before) / 1e9
        return found

    monkeypatch.setattr(timing.Trainer, "train_step", taken)
    monkeypatch.setattr(timing.time, "monotonic", lambda: now[0])
    speed = measure_speed(pictures, config(), seconds=1000)
    assert speed.overhead == pytest.approx(0.3, rel=1e-6) and speed.rate == pytest.approx(1e9, rel=1e-6)
    assert speed.activations > 0 and (speed.memory is None or speed.memory > 10**8)


def test_it_measures_what_it_says_and_writes_nothing(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    speed = measure_speed(pictures, config(), seconds=0.1)
    assert 0 < speed.overhead < 10 and 1e5 < speed.rate < 1e15
    assert not list(tmp_path.iterdir())
