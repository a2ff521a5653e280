import numpy as np
import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.config import Ema, Optimizer
from patch_diffusion.files import read_tensors
from patch_diffusion.runs.averages import LONGEST, combination, combine, exponent
from patch_diffusion.runs.retention import remove_checkpoint
from patch_diffusion.training.optimizing.power_ema import PowerAverage
from refusal import refused


def model(value):
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(network.weight, value)
    return pd.Denoiser(network)


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.2, LONGEST])
def test_the_length_is_the_standard_deviation_of_the_profile(length):
    gamma = exponent(length)
    tau = np.linspace(0, 1, 1_000_001)[1:]
    profile = tau**gamma / (tau**gamma).sum()
    mean = (profile * tau).sum()
    assert ((profile * (tau - mean) ** 2).sum()) ** 0.5 == pytest.approx(length, rel=1e-3)


@pytest.mark.parametrize("length", [0.0, -0.1, 0.3, 1e-300, float("nan")])
def test_impossible_lengths_are_refused(length):
    with pytest.raises(pd.InputError, match="length of an average"):
        exponent(length)


def follow(path, lengths, every):
    """Averages at every so many steps of a weight that takes the values of ``path``, 10 images a step."""
    denoiser = model(0.0)
    averages = [PowerAverage(denoiser, length) for length in lengths]
    kept, times, kept_lengths = [], [], []
    for step, value in enumerate(path, 1):
        torch.nn.init.constant_(denoiser.network.weight, value)
        for average in averages:
            average.update(denoiser, 10, 10 * step)
        if step % every == 0:
            for average in averages:
                kept.append({name: tensor.clone() for name, tensor in average.tensors.items()})
                times.append(10 * step)
                kept_lengths.append(average.length)
    return kept, times, kept_lengths


def test_the_average_is_the_profile_s():
    path = np.sin(np.arange(1, 401) / 30)
    kept, _, _ = follow(path, [0.1], 400)
    tau = np.arange(401) / 400
    share = np.diff(tau ** (exponent(0.1) + 1))
    assert kept[-1]["weight"].item() == pytest.approx((share * path).sum(), abs=1e-5)


def test_the_first_update_forgets_the_start():
    denoiser = model(5.0)
    average = PowerAverage(denoiser, 0.1)
    torch.nn.init.constant_(denoiser.network.weight, 1.0)
    average.update(denoiser, 10, 10)
    assert average.tensors["weight"].item() == 1.0


@pytest.mark.parametrize("length", [0.05, 0.07, 0.1, 0.15])
def test_any_length_is_put_together_from_two(length):
    path = 1 / np.sqrt(np.arange(1, 1001)) + 0.1 * np.sin(np.arange(1, 1001) / 50)
    kept, times, lengths = follow(path, [0.05, 0.1], 100)
    weights = combination(times, lengths, length, times[-1])
    assert weights.sum() == pytest.approx(1, abs=1e-9)
    expected = follow(path, [length], 1000)[0][-1]["weight"].item()
    found = combine(kept, list(weights))["weight"].item()
    assert found == pytest.approx(expected, abs=2e-3)
    assert abs(found - path[-1]) > 0.005  # it is an average, not the last weights


def test_one_that_was_kept_comes_back_as_it_is():
    kept, times, lengths = follow(np.arange(300.0), [0.05, 0.1], 50)
    weights = combination(times, lengths, 0.1, times[-1])
    assert weights[-1] == pytest.approx(1, abs=1e-6)
    assert combine(kept, list(weights))["weight"].item() == pytest.approx(kept[-1]["weight"].item(), rel=1e-5)


@pytest.mark.parametrize("length", [0.075, 0.15])
def test_what_does_not_move_costs_nothing(length):
    """Weights are large beside what training moves them by: the shares sum to 1, or 100 would drown the path."""
    path = 100 + 1 / np.sqrt(np.arange(1, 1001)) + 0.1 * np.sin(np.arange(1, 1001) / 50)
    kept, times, lengths = follow(path, [0.05, 0.1], 100)
    expected, other = (follow(path, [each], 1000)[0][-1]["weight"].item() for each in (length, 0.1))
    found = combine(kept, list(combination(times, lengths, length, times[-1])))["weight"].item()
    assert abs(found - expected) < 0.1 * abs(other - expected)


def test_lengths_of_one_name_are_refused(make_trainer):
    with refused("ema.lengths"):
        make_trainer(ema=Ema(lengths=(0.1, 0.10000001)))


@pytest.mark.slow
def test_what_is_left_of_the_checkpoints_is_enough(make_trainer):
    trainer = make_trainer(checkpoints=3, ema=Ema(lengths=(0.1, 0.2)))
    trainer.fit(steps=6)
    run = trainer.run
    whole = pd.load(run.path, ema_length=0.15).module.state_dict()
    (run.checkpoint(4) / "ema-0.2.safetensors").unlink()
    with pytest.raises(
        pd.InputError, match=r"step-00000004.ema-0\.2\.safetensors is missing: without .*step-00000004 "
    ):
        pd.load(run.path, ema_length=0.15)
    remove_checkpoint(run.checkpoint(4))
    fewer = pd.load(run.path, ema_length=0.15).module.state_dict()
    assert not torch.equal(fewer["first.weight"], whole["first.weight"])
    torch.testing.assert_close(fewer["first.weight"], whole["first.weight"], atol=1e-3, rtol=0)
    for step in (2, 6):
        remove_checkpoint(run.checkpoint(step))
    with pytest.raises(pd.InputError, match="has no checkpoint"):
        pd.load(run.path, ema_length=0.15)


@pytest.mark.slow
def test_a_run_keeps_them_and_load_makes_any_length(make_trainer):
    trainer = make_trainer("run", checkpoints=8, ema=Ema(lengths=(0.1, 0.2)))
    trainer.fit(steps=40)
    direct = make_trainer("direct", ema=Ema(lengths=(0.15,)))
    direct.fit(steps=40)
    expected = direct.state.power_averages["ema-0.15"].tensors
    last = direct.state.network.state_dict()
    for run in (trainer.run, direct.run):
        found = pd.load(run.path, ema_length=0.15).module.state_dict()
        for name in ("first.weight", "middle.0.conv0.weight"):
            assert (found[name] - expected[name]).norm() < 0.2 * (last[name] - expected[name]).norm()
    early = pd.load(trainer.run.path, checkpoint=20, ema_length=0.1).module.state_dict()
    kept = read_tensors(trainer.run.checkpoint(20) / "ema-0.1.safetensors")
    torch.testing.assert_close(early["first.weight"], kept["first.weight"], atol=1e-6, rtol=0)
    with pytest.raises(pd.InputError, match="length of an average"):
        pd.load(trainer.run.path, ema_length=0.5)
    plain = make_trainer("plain")
    plain.fit(steps=1)
    with pytest.raises(pd.InputError, match=r"--ema\.lengths"):
        pd.load(plain.run.path, ema_length=0.1)


@pytest.mark.slow
def test_they_survive_a_stop(make_trainer):
    options = {"checkpoints": 2, "ema": Ema(lengths=(0.1,)), "optimizer": Optimizer(decay="constant", warmup=0.0)}
    whole, stopped = make_trainer("whole", **options), make_trainer("stopped", **options)
    whole.fit(steps=6)
    stopped.fit(steps=3)
    continued = make_trainer("stopped", **options)
    continued.fit(steps=6)
    one, two = (trainer.state.power_averages["ema-0.1"].tensors for trainer in (whole, continued))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_a_checkpoint_before_the_first_step_is_no_part_of_an_average(make_trainer):
    trainer = make_trainer(checkpoints=2, checkpoint_last=20, ema=Ema(lengths=(0.05, 0.1)))
    trainer.fit(steps=4)
    assert trainer.run.checkpoint(0).exists()
    assert all(weight.isfinite().all() for weight in pd.load(trainer.run.path, ema_length=0.07).parameters())
    with pytest.raises(pd.InputError, match="no checkpoint after a step yet"):
        pd.load(trainer.run.path, checkpoint=0, ema_length=0.07)
