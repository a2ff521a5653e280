import sys

import numpy as np
import pytest
import torch

import patch_diffusion as pd
from checkpoint_files import read_checkpoint
from needs import need
from patch_diffusion.config import Ema, Optimizer
from patch_diffusion.files import read_json, read_tensors
from patch_diffusion.training.optimizing.optimizers import make_average, make_optimizer, settled
from patch_diffusion.training.state import optimizer_tensors
from patch_diffusion.training.step import learning_rate

AdamWScheduleFree = need("schedulefree", "schedule-free").AdamWScheduleFree

RATES = (0.0, 0.05, 0.1, 0.1, 0.07, 0.1, 0.1)
"""A warm-up from nothing, and a budget that was enlarged on the way."""


def problem():
    """A denoiser of two parameters, one of which gets no gradient, and gradients that pull the other to 1."""
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2)
    return pd.Denoiser(network), network


def gradients():
    random = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, generator=random) for _ in RATES]


def follow(options):
    """The network, its average and the optimizer after all steps."""
    denoiser, network = problem()
    optimizer = make_optimizer(network.parameters(), options)
    average = make_average(denoiser, Ema(), options)
    average.follow(optimizer)  # pyright: ignore[reportAttributeAccessIssue]
    for step, (rate, noise) in enumerate(zip(RATES, gradients(), strict=True), 1):
        network.weight.grad = network.weight.detach() - 1 + noise
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        average.update(denoiser, 4, 4 * step)
    return network, average.denoiser.module, optimizer


def test_equals_the_library_used_by_hand():
    options = Optimizer("schedule_free", betas=(0.9, 0.95), weight_decay=0.1)
    ours, average, optimizer = follow(options)
    _, theirs = problem()
    by_hand = AdamWScheduleFree(theirs.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    by_hand.train()
    for rate, noise in zip(RATES, gradients(), strict=True):
        theirs.weight.grad = theirs.weight.detach() - 1 + noise
        by_hand.param_groups[0]["lr"] = rate
        by_hand.step()
    assert torch.equal(ours.weight, theirs.weight)
    numbers = ("k", "weight_sum", "lr_max", "scheduled_lr", "train_mode")
    assert all(optimizer.param_groups[0][name] == by_hand.param_groups[0][name] for name in numbers)
    by_hand.eval()
    assert torch.equal(average.weight, theirs.weight)
    assert not torch.equal(average.weight, ours.weight)
    assert torch.equal(average.bias, ours.bias)


def test_equals_the_paper_s_formulas():
    """Algorithm 1 of arXiv 2405.15682, in double precision, with each step's weight the square of the highest rate."""
    beta, second = 0.8, 0.95
    ours, average, _ = follow(Optimizer("schedule_free", betas=(beta, second)))
    x = z = problem()[1].weight.detach().double().numpy()
    moment, weights = np.zeros_like(x), []
    for step, (rate, noise) in enumerate(zip(RATES, gradients(), strict=True), 1):
        gradient = (1 - beta) * z + beta * x - 1 + noise.double().numpy()
        moment = second * moment + (1 - second) * gradient**2
        z = z - rate * gradient / (np.sqrt(moment / (1 - second**step)) + 1e-8)
        weights.append(max(RATES[:step]) ** 2)
        share = weights[-1] / sum(weights) if sum(weights) else 0.0
        x = (1 - share) * x + share * z
    np.testing.assert_allclose(average.weight.numpy(), x, atol=1e-5)  # pyright: ignore[reportCallIssue]
    np.testing.assert_allclose(ours.weight.detach().numpy(), (1 - beta) * z + beta * x, atol=1e-5)


@pytest.mark.slow
def test_a_run_s_model_is_the_optimizer_s_own_average(make_trainer):
    trainer = make_trainer(optimizer=Optimizer("schedule_free", learning_rate=1e-2))
    model = trainer.fit(steps=6)
    weights = {name: tensor.clone() for name, tensor in trainer.state.network.state_dict().items()}
    trainer.state.optimizer.eval()  # exchanges the weights for their average
    expected = trainer.state.network.state_dict()
    stored, loaded = read_tensors(trainer.run.model_file), pd.load(trainer.run.path).module.state_dict()
    for found in (model.module.state_dict(), stored, loaded):
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert any(not torch.equal(weights[name], expected[name]) for name in expected)
    kept = read_tensors(trainer.run.checkpoint(6) / "weights.safetensors")
    assert all(torch.equal(kept[name], weights[name]) for name in weights)


@pytest.mark.slow
def test_it_needs_no_end(make_trainer):
    """Without a warm-up, 3 steps and then 3 more are 6, bit for bit, with all that the optimizer counts."""
    options = {"optimizer": Optimizer("schedule_free", warmup=0.0)}
    whole, stopped = make_trainer("whole", **options), make_trainer("stopped", **options)
    whole.fit(steps=6)
    stopped.fit(steps=3)
    continued = make_trainer("stopped", **options)
    continued.fit(steps=6)
    found, expected = (read_checkpoint(trainer.run.checkpoint(6))[0] for trainer in (continued, whole))
    for group in expected:
        assert found[group].keys() == expected[group].keys()
        assert all(torch.equal(found[group][name], expected[group][name]) for name in expected[group])
    before, after = whole.state.optimizer.param_groups[0], continued.state.optimizer.param_groups[0]
    assert {name: value for name, value in before.items() if name != "params"} == {
        name: value for name, value in after.items() if name != "params"
    }
    assert after["k"] == 6
    assert after["weight_sum"] == pytest.approx(6 * 1e-6)


@pytest.mark.slow
def test_going_back_takes_the_counts_back_too(make_trainer):
    trainer = make_trainer(optimizer=Optimizer("schedule_free"))
    for step in range(3):
        trainer.train_step(step / 6)
    folder = trainer.save()
    expected = {
        name: tensor.clone()
        for name, tensor in optimizer_tensors(trainer.state.optimizer, trainer.state.network).items()
    }
    for step in range(3, 6):
        trainer.train_step(step / 6)
    trainer.checkpoints.restore(folder)
    found = optimizer_tensors(trainer.state.optimizer, trainer.state.network)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {"learning_rate": 1e-2},
        {"betas": (0.5, 0.99)},
        {"betas": (0.9, 0.5)},
        {"weight_decay": 1.0},
        {"clip": 1e-3},
        {"warmup": 0.5},
    ],
    ids=str,
)
def test_every_option_changes_the_result(make_trainer, changed):
    plain = make_trainer("plain", optimizer=Optimizer("schedule_free"))
    other = make_trainer("other", optimizer=Optimizer("schedule_free", **changed))
    one, two = (trainer.fit(steps=8).module.state_dict() for trainer in (plain, other))
    assert any(not torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("options", "ema", "message"),
    [
        ({"decay": "cosine"}, {}, "leave out optimizer.decay cosine"),
        ({"decay": "linear"}, {}, "leave out optimizer.decay linear"),
        ({"betas": (0.0, 0.99)}, {}, "first beta above 0"),
        ({"betas": (1.0, 0.99)}, {}, r"in \[0, 1\)"),
        ({"warmup": 1.0}, {}, "fraction of the budget"),
        ({}, {"lengths": (0.1,)}, "ema.lengths"),
        ({}, {"half_life_images": 1e3}, "leave ema.half_life_images at 500000"),
        ({}, {"half_life_images": 1e3, "ramp": 1.0}, "ema.half_life_images at 500000 and ema.ramp at 0.05"),
    ],
)
def test_refusals(make_trainer, tmp_path, options, ema, message):
    with pytest.raises(pd.InputError, match=message):
        make_trainer(optimizer=Optimizer("schedule_free", **options), ema=Ema(**ema))
    assert not (tmp_path / "run").exists()


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(pd.InputError, match=r"patch_diffusion\[schedule-free\]"):
        make_optimizer(problem()[1].parameters(), Optimizer("schedule_free"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "decay", "expected"),
    [
        ("adamw", None, "cosine"),
        ("muon", None, "linear"),
        ("muon", "linear", "linear"),
        ("schedule_free", None, "constant"),
        ("schedule_free", "constant", "constant"),
    ],
)
def test_the_decay_that_is_meant_is_stored(make_trainer, kind, decay, expected):
    options = settled(Optimizer(kind, decay=decay), "ddpmpp")
    assert options.decay == expected
    end = {"cosine": 0.0, "linear": 0.0, "constant": options.learning_rate}[expected]
    assert learning_rate(options, 1.0) == pytest.approx(end)
    trainer = make_trainer(optimizer=options)
    trainer.fit(steps=1)
    assert read_json(trainer.run.config_file)["optimizer"]["decay"] == expected
    make_trainer(optimizer=Optimizer(kind, decay=expected)).fit(steps=2)  # the same option: the run continues


def test_gradients_that_are_not_finite_move_nothing_far():
    """Told as a fused optimizer is, and in any memory layout."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 2, 1))
    network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = make_optimizer(network.parameters(), Optimizer("schedule_free", betas=(0.9, 0.95)))
    for overflows in (False, True, False):
        before = [parameter.detach().clone() for parameter in network.parameters()]
        network(torch.randn(1, 3, 4, 4)).sum().backward()
        gradient = network[0].weight.grad
        gradient[3, 1] = float("nan") if overflows else gradient[3, 1]
        optimizer.found_inf = torch.tensor(float(overflows))  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step()
        for parameter, old in zip(network.parameters(), before, strict=True):
            assert parameter.isfinite().all()
            assert (parameter.grad == 0).all() == overflows
            assert not torch.equal(parameter, old) or overflows
        optimizer.zero_grad()
