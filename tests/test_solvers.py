"""Oracles: closed-form denoisers, so the exact answers are known."""

import math
from itertools import pairwise

import pytest
import torch

import patch_diffusion as pd

SOLVERS = {"euler": (pd.euler, 1), "heun": (pd.heun, 2)}


def gaussian(noisy, sigma, mean=0.3, deviation=0.5):
    """The best guess for data ~ N(mean, deviation^2)."""
    return mean + (noisy - mean) * deviation**2 / (deviation**2 + sigma**2)


def gaussian_answer(noisy, sigma, end, mean=0.3, deviation=0.5):
    """Where the probability-flow ODE takes a noisy value: the standard score is kept."""
    return mean + (noisy - mean) * ((deviation**2 + end**2) / (deviation**2 + sigma**2)) ** 0.5


@pytest.mark.parametrize("name", SOLVERS)
def test_order_of_convergence_on_a_gaussian(name):
    solver, order = SOLVERS[name]
    noisy = torch.linspace(-20, 20, 9, dtype=torch.float64).reshape(9, 1, 1, 1)
    errors = []
    for steps in (64, 128, 256):
        sigmas = pd.karras_sigmas(steps + 1, 0.01, 10.0)[:-1]  # without the last step to 0
        exact = gaussian_answer(noisy, 10.0, 0.01)
        errors.append((solver(gaussian, noisy, sigmas) - exact).abs().max().item())
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_single_point_is_reached_exactly(name):
    """Where all data is one point the ODE is a straight line: every solver is exact in a single step."""
    solver, _ = SOLVERS[name]
    point = torch.full((1, 1, 2, 2), 0.7, dtype=torch.float64)
    noisy = point + 80 * torch.randn_like(point)
    torch.testing.assert_close(solver(lambda x, sigma: point.expand_as(x), noisy, pd.karras_sigmas(1, 80, 80)), point)


@pytest.mark.parametrize("name", SOLVERS)
def test_two_points(name):
    """Data at -1 and 1: D = tanh(x / sigma^2). Every start ends on the point of its own sign."""
    solver, _ = SOLVERS[name]
    noisy = torch.tensor([-90.0, -40, -5, 5, 40, 90], dtype=torch.float64).reshape(6, 1, 1, 1)
    ends = solver(lambda x, sigma: torch.tanh(x / sigma**2), noisy, pd.karras_sigmas(200, 0.002, 80))
    torch.testing.assert_close(ends, noisy.sign(), atol=1e-3, rtol=0)


def test_karras_sigmas():
    sigmas = pd.karras_sigmas(18, 0.002, 80, rho=7)
    assert sigmas.dtype == torch.float64 and sigmas.shape == (19,)
    assert sigmas[0] == pytest.approx(80) and sigmas[-2] == pytest.approx(0.002) and sigmas[-1] == 0
    torch.testing.assert_close((sigmas[:-1] ** (1 / 7)).diff().diff(), torch.zeros(16, dtype=torch.float64))
    for wrong in ((0, 0.1, 1), (5, 0, 1), (5, 2, 1)):
        with pytest.raises(pd.InputError):
            pd.karras_sigmas(*wrong)


def test_classifier_free_guidance():
    from patch_diffusion.sampling.guidance.classifier_free import classifier_free

    def of(value):
        return lambda noisy, sigma: torch.full_like(noisy, value)

    zeros = torch.zeros(1, 1, 1, 1)
    for scale, expected in ((0, 1.0), (1, 3.0), (1.5, 4.0), (2, 5.0)):
        assert classifier_free(of(3.0), of(1.0), scale)(zeros, torch.ones(())).item() == expected
