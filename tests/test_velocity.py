"""Velocity fields of models, and back, on Gaussians in closed form."""

import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.process import PROCESSES, VP, Flow

MEAN, DEVIATION = 0.3, 0.5
X = torch.linspace(-2, 2, 12, dtype=torch.float64).view(3, 1, 2, 2)


def of_gaussian(process):
    """The field of x_t ~ N(s MEAN, s^2 (DEVIATION^2 + sigma^2)), which moves each x with its standard score."""

    def velocity(x, t, conditions=None):
        time = torch.as_tensor(t, dtype=x.dtype).expand(len(x)).clone().requires_grad_()
        scale = process.scale(time)
        moments = scale * MEAN, scale * (DEVIATION**2 + process.sigma(time) ** 2).sqrt()
        (mean, deviation), slopes = moments, [torch.autograd.grad(m.sum(), time, retain_graph=True)[0] for m in moments]
        mean, deviation, mean_slope, deviation_slope = (each.view(-1, 1, 1, 1) for each in (mean, deviation, *slopes))
        return (mean_slope + (x - mean) * deviation_slope / deviation).detach()

    return velocity


def denoise(noisy, sigma, conditions):
    level = sigma.view(-1, 1, 1, 1)
    return MEAN + (noisy - MEAN) * DEVIATION**2 / (DEVIATION**2 + level**2)


@pytest.mark.parametrize("name", ["vp", "flow"])
def test_a_denoiser_is_a_field_on_every_path_and_back(name):
    process = PROCESSES[name]
    exact = of_gaussian(process)
    times = torch.tensor([0.05, 0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(pd.as_flow(denoise, process)(X, times), exact(X, times))
    sigma = torch.tensor([0.01, 1.0, 30.0], dtype=torch.float64)
    torch.testing.assert_close(pd.from_flow(exact, process)(X, sigma, Conditions()), denoise(X, sigma, None))


def test_straight_paths_become_those_of_vp_and_back():
    straight, curved = of_gaussian(Flow()), of_gaussian(VP())
    times = torch.tensor([0.1, 0.6, 1.0], dtype=torch.float64)
    torch.testing.assert_close(pd.as_flow(pd.from_flow(straight), VP())(X, times), curved(X, times))
    again = pd.as_flow(pd.from_flow(curved, VP()))
    for time in (0.02, 0.5, 0.99):
        torch.testing.assert_close(again(X, time), straight(X, time))


@pytest.mark.parametrize("name", PROCESSES)
def test_any_model_is_a_field(name, make_model):
    """Also at t = 0 and 1, beyond its noise levels; a model of flow is its network."""
    model = pd.Denoiser(make_model(3).network, 0.5, process=PROCESSES[name]).eval()
    x = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 0])
    velocity = pd.as_flow(model)
    slope = velocity(x.requires_grad_(), torch.tensor([0.0, 1.0]), labels=labels)
    assert slope.isfinite().all() and torch.autograd.grad(slope.sum(), x)[0].isfinite().all()
    x, grid = x.detach(), pd.coordinate_grid(8, 12)
    denoised = model(2 * x, 1.0, grid, labels)
    torch.testing.assert_close(velocity(x, 0.5, labels=labels), (x - denoised) / 0.5)
    assert not torch.equal(velocity(x, 0.5, labels=labels), velocity(x, 0.5, labels=labels.flip(0)))
    assert not torch.equal(velocity(x, 0.5), velocity(x, 0.5, grid.flip(1)))
    if name == "flow":
        given = torch.cat([x, grid.expand(2, -1, -1, -1)], dim=1)
        output = model.network(given, torch.full((2,), 1000.0), labels)
        torch.testing.assert_close(velocity(x, 1.0, labels=labels), output, atol=1e-5, rtol=1e-5)


def test_levels_beyond_a_model_are_its_ends():
    """The highest level stands for pure noise about the mean, and the lowest for images."""
    seen = []

    class Oracle(pd.Denoiser):
        def forward(self, noisy, sigma, coords, labels=None):
            seen.append((noisy, sigma))
            return torch.zeros_like(noisy)

    velocity = pd.as_flow(Oracle(lambda *_: None, sigma_min=0.01, sigma_max=80.0, mean_data=(0.2,)))
    x = torch.full((1, 1, 2, 2), 0.5)
    torch.testing.assert_close(velocity(x, 1.0), x)
    torch.testing.assert_close(velocity(x, 0.0), velocity(x, 0.01 / 1.01))
    torch.testing.assert_close(seen[0], (0.2 + 80 * x, torch.full((1,), 80.0)))
    torch.testing.assert_close(seen[1], (1.01 * x, torch.full((1,), 0.01)))
