"""Each process against the two functions it follows from, sigma(t) and s(t), differentiated automatically."""

import math
from itertools import pairwise

import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.denoise.process import EDM, PROCESSES, VE, VP, Flow, XPrediction

TIMES = {"edm": (0.002, 80.0), "ve": (0.0004, 1e4), "vp": (1e-3, 1.0), "x_prediction": (0.02, 80.0)}
TIMES["flow"] = (1e-3, 1 - 2.0**-26)


def some_times(name, num=9):
    low, high = TIMES[name]
    return torch.linspace(low, high, num, dtype=torch.float64)


def derivative(function, time):
    time = time.clone().requires_grad_()
    return torch.autograd.grad(function(time).sum(), time)[0]


@pytest.mark.parametrize("name", PROCESSES)
def test_time_is_the_inverse_of_sigma(name):
    process, times = PROCESSES[name], some_times(name)
    torch.testing.assert_close(process.time(process.sigma(times)), times, rtol=1e-9, atol=0)
    assert process.time(torch.zeros((), dtype=torch.float64)) == 0
    ends = process.sigma(times[[0, -1]])
    torch.testing.assert_close(ends, torch.tensor([process.sigma_min, process.sigma_max]).double(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", PROCESSES)
def test_drift_and_diffusion_follow_from_sigma_and_scale(name):
    """f = x s'/s and g = s sqrt(2 sigma' sigma): EDM, arXiv 2206.00364, equations 10 and 11."""
    process, times = PROCESSES[name], some_times(name)
    scale, sigma = process.scale(times), process.sigma(times)
    scale_slope = derivative(lambda time: process.scale(time) + 0 * time, times)
    noisy = torch.linspace(-3, 2, len(times), dtype=torch.float64)
    torch.testing.assert_close(process.drift(noisy, times), noisy * scale_slope / scale)
    torch.testing.assert_close(process.diffusion(times), scale * (2 * derivative(process.sigma, times) * sigma).sqrt())


@pytest.mark.parametrize("name", PROCESSES)
def test_velocity_is_the_slope_of_the_path(name):
    """Where the denoised image is the clean one, the ODE moves along x_t = s(t) (clean + sigma(t) noise)."""
    process, times, clean, noise = PROCESSES[name], some_times(name)[1:-1], 0.7, -1.3

    def path(time):
        return process.scale(time) * (clean + process.sigma(time) * noise)

    noisy, denoised = clean + process.sigma(times) * noise, torch.full_like(times, clean)
    velocity = process.velocity(noisy, denoised, times)
    torch.testing.assert_close(velocity, derivative(path, times))
    torch.testing.assert_close(process.denoised(noisy, velocity, times), denoised)


def test_pure_noise_is_a_time_of_flow():
    """At t = 1 the network is given the noise and 1000, and all that a solver asks for is finite."""
    given, process = [], Flow()
    noise = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    sigma = process.sigma(torch.ones(()))

    def network(x, c_noise, labels):
        given.extend((x, c_noise))
        return x - 0.25  # the velocity where all data is 0.25

    model = pd.Denoiser(network, coords=False, process=process, mean_data=(0.1,))
    denoised = model(0.35 + sigma * noise, sigma, pd.coordinate_grid(4, 4))
    torch.testing.assert_close(given, [noise, torch.full((2,), 1000.0)])
    torch.testing.assert_close(denoised, torch.full_like(noise, 0.35))
    assert process.velocity(sigma * noise, denoised, torch.ones(())).isfinite().all()
    torch.testing.assert_close(process.velocity(sigma * noise, denoised, torch.ones(())), noise - denoised)
    drift, diffusion = process.reverse(sigma * noise, denoised, torch.ones(()))
    torch.testing.assert_close(drift, 2 * noise - denoised)
    assert diffusion.item() == pytest.approx(2**0.5)


@pytest.mark.parametrize("name", PROCESSES)
def test_simulated_noise_has_the_stated_moments(name):
    """Forward steps dx = f dt + g dw from one clean value: mean s(t) clean, deviation s(t) sigma(t)."""
    process, num, clean = PROCESSES[name], 20_000, 0.7
    times = process.time(torch.linspace(0, 2, 200, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    noisy = torch.full((num,), clean, dtype=torch.float64)
    for time, next_time in pairwise(times):
        middle = (time + next_time) / 2
        noise = torch.randn(num, generator=generator, dtype=torch.float64) * (next_time - time).sqrt()
        noisy = noisy + process.drift(noisy, middle) * (next_time - time) + process.diffusion(middle) * noise
    scale, deviation = process.scale(times[-1]).item(), (process.scale(times[-1]) * 2).item()
    assert noisy.mean().item() == pytest.approx(scale * clean, abs=4 * deviation / math.sqrt(num))
    assert noisy.std().item() == pytest.approx(deviation, abs=5 * deviation / math.sqrt(2 * num))


@pytest.mark.parametrize("name", PROCESSES)
def test_the_loss_of_the_network_itself_is_weighted_as_published(name):
    """lambda c_out^2 is the weight of the network's own squared error: 1 for all but one (EDM, table 1)."""
    process = PROCESSES[name]
    sigma = torch.logspace(-2, 1.9, 7, dtype=torch.float64)
    factors = process.preconditioning(sigma, 0.5)
    found = process.loss_weight(sigma, 0.5) * factors.c_out**2
    if name == "x_prediction":  # the velocity of an image times 1 / (1 + sigma) and noise times sigma / (1 + sigma)
        found = found * (sigma / (1 + sigma)).clamp(min=0.05).square() / 0.25
    torch.testing.assert_close(found, torch.ones_like(sigma))


def test_x_prediction_has_the_loss_of_velocity():
    """In the paper's own terms (JiT, arXiv 2511.13720): z = t x + (1 - t) e, v = x - e, and v' = (x' - z) / (1 - t)."""
    generator = torch.Generator().manual_seed(0)
    clean, noise, predicted = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.01, 0.3, 0.5, 0.9, 0.949], dtype=torch.float64)
    noisy = t * clean + (1 - t) * noise
    velocity, found = clean - noise, (predicted - noisy) / (1 - t)
    sigma = (1 - t) / t
    torch.testing.assert_close(noisy / t, clean + sigma * noise)
    weighted = XPrediction().loss_weight(sigma, 0.5) * (predicted - clean) ** 2
    torch.testing.assert_close(weighted, (found - velocity) ** 2)
    assert XPrediction().loss_weight(torch.tensor(1e-3), 0.5).item() == pytest.approx(400)


def test_x_prediction_denoises_gaussian_data_with_a_network_that_knows_the_mean():
    """The best denoiser of normal data, D = x sigma_data^2 / (sigma^2 + sigma_data^2), is F = c_in x, at all levels."""
    sigma, noisy = torch.logspace(-2, 2, 7, dtype=torch.float64), torch.linspace(-3, 3, 7, dtype=torch.float64)
    factors = XPrediction().preconditioning(sigma, 0.4)
    scale = 0.4 / (sigma**2 + 0.4**2).sqrt()  # which the network tells from the noise level
    denoised = factors.c_skip * noisy + factors.c_out * scale * factors.c_in * noisy
    torch.testing.assert_close(denoised, noisy * 0.4**2 / (sigma**2 + 0.4**2))
    torch.testing.assert_close(factors.c_noise, EDM().preconditioning(sigma, 0.4).c_noise)


def test_preconditioning():
    """EDM, table 1, at sigma = 1 and sigma_data = 0.5."""
    one = torch.ones((), dtype=torch.float64)
    time = VP().time(one).item()
    assert 19.9 * time**2 / 2 + 0.1 * time == pytest.approx(math.log(2))
    for process, expected in (
        (EDM(), (0.2, 0.2**0.5, 1.25**-0.5, 0.0)),
        (VE(), (1.0, 1.0, 1.0, math.log(0.5))),
        (VP(), (1.0, -1.0, 2**-0.5, 999 * time)),
        (XPrediction(), (0.0, 0.5, 1.25**-0.5, 0.0)),
        (Flow(), (0.5, -0.5, 0.5, 500.0)),
    ):
        assert [factor.item() for factor in process.preconditioning(one, 0.5)] == pytest.approx(expected)


def test_edm_scales_input_and_target_to_unit_variance():
    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64)
    factors = EDM().preconditioning(sigma, 0.5)
    torch.testing.assert_close(factors.c_in**2 * (0.25 + sigma**2), torch.ones_like(sigma))
    target = ((1 - factors.c_skip) ** 2 * 0.25 + factors.c_skip**2 * sigma**2) / factors.c_out**2
    torch.testing.assert_close(target, torch.ones_like(sigma))


def test_training_levels():
    generator = torch.Generator().manual_seed(0)
    logs = {name: process.draw(20_000, generator).double().log() for name, process in PROCESSES.items()}
    assert logs["edm"].mean().item() == pytest.approx(-1.2, abs=0.03)
    assert logs["edm"].std().item() == pytest.approx(1.2, abs=0.03)
    assert logs["x_prediction"].mean().item() == pytest.approx(0.8, abs=0.02)
    assert logs["x_prediction"].std().item() == pytest.approx(0.8, abs=0.02)
    assert logs["flow"].mean().item() == pytest.approx(0, abs=0.03)
    assert logs["flow"].std().item() == pytest.approx(1, abs=0.03)
    half = pd.NoiseLevels(process="flow", p_std=0.5).draw(20_000, generator=generator).log()
    assert half.mean().item() == pytest.approx(0, abs=0.02) and half.std().item() == pytest.approx(0.5, abs=0.02)
    uniform = (logs["ve"] - math.log(0.02)) / math.log(100 / 0.02)
    times = VP().time(logs["vp"].exp())
    for values in (uniform, times):
        assert values.min() >= 0 and values.max() <= 1 + 1e-6
        assert values.mean().item() == pytest.approx(0.5, abs=0.01)
        assert values.std().item() == pytest.approx(12**-0.5, abs=0.01)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_denoiser_takes_its_factors_from_the_process(name):
    process, seen = PROCESSES[name], {}

    def network(x, c_noise, labels):
        seen.update(x=x, c_noise=c_noise)
        return torch.full_like(x, 2.0)

    model = pd.Denoiser(network, 0.5, coords=False, process=process)
    noisy, sigma = torch.full((1, 1, 1, 1), 3.0), torch.tensor([1.5])
    factors = process.preconditioning(sigma, 0.5)
    denoised = model(noisy, sigma, pd.coordinate_grid(1, 1))
    torch.testing.assert_close(denoised.flatten(), 3 * factors.c_skip + 2 * factors.c_out)
    torch.testing.assert_close(seen["x"].flatten(), 3 * factors.c_in)
    torch.testing.assert_close(seen["c_noise"], factors.c_noise)
    assert (model.sigma_min, model.sigma_max) == (process.sigma_min, process.sigma_max)
