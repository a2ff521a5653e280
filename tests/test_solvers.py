"""Oracles: closed-form denoisers, so the exact answers are known."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.denoise.process import PROCESSES, Flow
from patch_diffusion.sampling.solvers import few_sigmas, flow_sigmas, karras_sigmas, options_of
from patch_diffusion.sampling.stochastic import OF_EACH, SOLVERS
from refusal import refused

ORDERS = {"euler": 1, "heun": 2, "dpm_solver_2m": 2, "dpm_solver_3m": 3, "unipc": 3}
STOCHASTIC = sorted(SOLVERS.keys() - ORDERS)
MEAN, DEVIATION = 0.3, 0.5


def gaussian(noisy, sigma):
    """The best guess for data ~ N(MEAN, DEVIATION^2)."""
    return MEAN + (noisy - MEAN) * DEVIATION**2 / (DEVIATION**2 + sigma**2)


def gaussian_answer(noisy, sigma, end):
    """Where the probability-flow ODE takes a noisy value: the standard score is kept."""
    return MEAN + (noisy - MEAN) * ((DEVIATION**2 + end**2) / (DEVIATION**2 + sigma**2)) ** 0.5


def two_points(noisy, sigma):
    """The best guess for data at -1 and 1."""
    return torch.tanh(noisy / sigma**2)


def two_points_share(noisy, sigma):
    """How much of the noisy data lies below a value, which the ODE keeps as well."""
    return (torch.special.ndtr((noisy - 1) / sigma) + torch.special.ndtr((noisy + 1) / sigma)) / 2


def images(*values):
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1, 1)


def step_noise(shape, seed=0):
    """``noise(index)`` from one generator, asked for in order."""
    generator = torch.Generator().manual_seed(seed)
    return lambda index: torch.randn(shape, generator=generator, dtype=torch.float64)


def order_of_convergence(error):
    """The slope of the logarithm of the error over that of the steps."""
    steps = np.array([128, 181, 256, 362, 512])
    return -np.polyfit(np.log(steps), np.log([error(num) for num in steps]), 1)[0]


@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence_on_a_gaussian(name):
    noisy = images(*np.linspace(-100, 100, 9))

    def error(steps):
        sigmas = karras_sigmas(steps + 1, 0.01, 80)[:-1]  # without the last step to 0
        return (SOLVERS[name](gaussian, noisy, sigmas) - gaussian_answer(noisy, 80, 0.01)).abs().max().item()

    assert order_of_convergence(error) == pytest.approx(ORDERS[name], abs=0.15)


@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence_on_two_points(name):
    noisy = images(-60, -20, -2, 1, 30, 90)

    def error(steps):
        sigmas = karras_sigmas(steps + 1, 1.0, 80)[:-1]
        shares = two_points_share(SOLVERS[name](two_points, noisy, sigmas), 1.0)
        return (shares - two_points_share(noisy, 80)).abs().max().item()

    assert order_of_convergence(error) == pytest.approx(ORDERS[name], abs=0.15)


@pytest.mark.parametrize("name", ORDERS)
def test_two_points_are_reached(name):
    """Every start ends on the point of its own sign."""
    noisy = images(-90, -40, -5, 5, 40, 90)
    ends = SOLVERS[name](two_points, noisy, karras_sigmas(200, 0.002, 80))
    torch.testing.assert_close(ends, noisy.sign(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_single_point_is_reached_exactly(name):
    """Where all data is one point the ODE is a straight line: every solver is exact, in one step or some."""
    point = torch.full((1, 1, 2, 2), 0.7, dtype=torch.float64)
    noisy = point + 80 * torch.randn_like(point)
    for steps in (1, 5):
        sigmas = karras_sigmas(steps, 0.002, 80)
        end = SOLVERS[name](lambda x, sigma: point.expand_as(x), noisy, sigmas, noise=step_noise(point.shape))
        torch.testing.assert_close(end, point)


@pytest.mark.parametrize(("a", "b", "c", "first"), [(0.3, -0.2, 0.0, 1), (0.3, -0.2, 0.05, 2)])
def test_three_points_make_a_parabola(a, b, c, first):
    """For D = a + b l + c l^2 of l = -ln(sigma), the third-order solver is exact once it has seen enough of D."""

    def denoise(noisy, sigma):
        level = -sigma.log()
        return (a + b * level + c * level**2).expand_as(noisy)

    def without_start(sigma):  # the solution of dx/dl = D - x that is a parabola itself
        level = -sigma.log()
        return a - b + 2 * c + (b - 2 * c) * level + c * level**2

    steps, sigmas = [], karras_sigmas(30, 0.05, 40)[:-1]
    end = SOLVERS["dpm_solver_3m"](denoise, images(-20, 0.1, 30), sigmas, callback=steps.append)
    start = steps[first]
    exact = without_start(sigmas[-1]) + (start.noisy - without_start(start.sigma)) * sigmas[-1] / start.sigma
    torch.testing.assert_close(end, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_callback_sees_every_step_once(name):
    noisy, sigmas, steps = images(-9, 2), karras_sigmas(6, 0.002, 80), []
    SOLVERS[name](gaussian, noisy, sigmas, noise=step_noise(noisy.shape), callback=steps.append)
    assert [step.index for step in steps] == list(range(6))
    for step, sigma in zip(steps, sigmas[:-1], strict=True):
        raised = name == "stochastic_heun" and 0.05 <= sigma <= 50
        torch.testing.assert_close(step.sigma, sigma * 2**0.5 if raised else sigma)
        torch.testing.assert_close(step.denoised, gaussian(step.noisy, step.sigma))
    torch.testing.assert_close(steps[0].noisy, noisy)


@pytest.mark.slow
@pytest.mark.parametrize("end", [0.0, 0.4])
@pytest.mark.parametrize("name", ["heun", "stochastic_heun", "ancestral", "edm", "ve", "vp", "flow"])
def test_samples_have_the_moments_of_the_data(name, end):
    """ODE and SDEs have the same marginals at every noise level: here N(MEAN, DEVIATION^2 + end^2)."""
    num, steps = 20_000, 600
    options = {"stochastic_heun": {"churn_noise": 1.0, "churn_min": 0.0}}.get(name, {})
    if name in PROCESSES:
        options = {"process": PROCESSES[name]}
    most = 0.45 if name == "flow" else 0.2  # of the noise at the start that is kept; its own SDE has less fresh noise
    noise = step_noise((num, 1, 1, 1), seed=1)
    sigmas = karras_sigmas(steps, end or 0.002, 20)
    noisy = MEAN + (DEVIATION**2 + sigmas[0] ** 2).sqrt() * noise(0)
    solve = SOLVERS["euler_maruyama" if name in PROCESSES else name]
    samples = solve(gaussian, noisy, sigmas if end == 0 else sigmas[:-1], noise=noise, **options)
    deviation = (DEVIATION**2 + end**2) ** 0.5
    assert samples.mean().item() == pytest.approx(MEAN, abs=4 * deviation / num**0.5)
    assert samples.std().item() == pytest.approx(deviation, abs=4 * deviation / (2 * num) ** 0.5)
    if name != "heun":  # the noise is forgotten
        start = (noisy - noisy.mean()).flatten()
        correlation = torch.dot(start, samples.flatten() - samples.mean()) / (num * start.std() * samples.std())
        assert abs(correlation.item()) < most


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_few_steps_of_the_exact_consistency_function_have_the_moments_of_the_data(steps):
    num = 20_000
    noise, sigmas = step_noise((num, 1, 1, 1)), few_sigmas(steps, 0.002, 80, DEVIATION)
    seen = []

    def exact(noisy, sigma):
        seen.append(noisy.std().item())
        return gaussian_answer(noisy, sigma, 0)

    samples = SOLVERS["consistency"](exact, MEAN + 80 * noise(0), sigmas, noise=noise)
    assert seen == pytest.approx([(DEVIATION**2 + sigma**2) ** 0.5 for sigma in sigmas[:-1].tolist()], rel=0.02)
    assert samples.mean().item() == pytest.approx(MEAN, abs=4 * DEVIATION / num**0.5)
    assert samples.std().item() == pytest.approx(DEVIATION, abs=4 * DEVIATION / (2 * num) ** 0.5)


def test_stochastic_solvers_without_noise_are_the_others():
    noisy, sigmas = images(-50, 3, 70), karras_sigmas(12, 0.002, 80)

    def refused(index):
        raise AssertionError("nothing is to be drawn")

    for name, options, plain in (("stochastic_heun", {"churn": 0.0}, "heun"), ("ancestral", {"eta": 0.0}, "euler")):
        zeros = refused if name == "stochastic_heun" else lambda index: torch.zeros_like(noisy)
        torch.testing.assert_close(
            SOLVERS[name](gaussian, noisy, sigmas, noise=zeros, **options), SOLVERS[plain](gaussian, noisy, sigmas)
        )


def of_flow(name):
    """The solver for models of the process `Flow`."""
    found = OF_EACH["flow"][name]
    return partial(found, process=Flow()) if name == "euler_maruyama" else found


@pytest.mark.parametrize("name", sorted(SOLVERS.keys() - {"consistency"}))
def test_samples_of_flow_have_the_moments_of_the_data_from_pure_noise(name):
    num = 20_000
    noise = step_noise((num, 1, 1, 1), seed=1)
    options = {"churn_noise": 1.0} if name == "stochastic_heun" else {}
    sigmas = flow_sigmas(300, Flow.sigma_min, Flow.sigma_max)
    samples = of_flow(name)(gaussian, sigmas[0] * noise(0), sigmas, noise=noise, **options)
    assert samples.mean().item() == pytest.approx(MEAN, abs=4 * DEVIATION / num**0.5 + 2e-3)
    assert samples.std().item() == pytest.approx(DEVIATION, rel=4 / (2 * num) ** 0.5 + 1e-2)


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_pure_noise_is_a_step_of_flow_like_any_other(name):
    """dx/dt = (x - D) / t of x = (1 - t) clean + t noise, from t = 1, at which nothing but the noise is known."""

    def slope(noisy, time):
        share = (1 - time) * DEVIATION**2 / ((1 - time) ** 2 * DEVIATION**2 + time**2)
        return (noisy - MEAN - share * (noisy - (1 - time) * MEAN)) / time

    times = torch.linspace(1, 1e-3, 8, dtype=torch.float64)
    noise = noisy = images(-3, -1, 0.1, 2)
    for time, following in pairwise(times):
        first = slope(noisy, time)
        second = slope(noisy + (following - time) * first, following) if name == "heun" else first
        noisy = noisy + (following - time) * (first + second) / 2
    sigmas = flow_sigmas(8, Flow.sigma_min, Flow.sigma_max)
    torch.testing.assert_close(Flow().time(sigmas[:-1]), times, rtol=0, atol=2e-8)
    ends = of_flow(name)(gaussian, MEAN + sigmas[0] * noise, sigmas[:-1])
    torch.testing.assert_close((1 - times[-1]) * ends, noisy, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", SOLVERS)
def test_flow_from_pure_noise_in_single_precision(name):
    """As on devices without float64."""
    sigmas, noise = flow_sigmas(40, Flow.sigma_min, Flow.sigma_max), images(-3, -1, 0.1, 2)
    wide, narrow = (
        of_flow(name)(gaussian, levels[0] * noise.to(levels), levels, noise=lambda index: noise)
        for levels in (sigmas, sigmas.float())
    )
    torch.testing.assert_close(narrow.double(), wide, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("stochastic_heun", {"churn": 2.0}),
        ("stochastic_heun", {"churn_min": 1.0}),
        ("stochastic_heun", {"churn_max": 10.0}),
        ("stochastic_heun", {"churn_noise": 0.9}),
        ("ancestral", {"eta": 0.5}),
        ("euler_maruyama", {"process": PROCESSES["ve"]}),
        ("euler_maruyama", {"process": PROCESSES["vp"]}),
    ],
)
def test_every_option_of_a_stochastic_solver_matters(name, options):
    noisy, sigmas = images(-50, 3, 70), karras_sigmas(12, 0.002, 80)
    plain, other = (
        SOLVERS[name](gaussian, noisy, sigmas, noise=step_noise(noisy.shape), **chosen) for chosen in ({}, options)
    )
    assert (plain - other).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "options", "option"),
    [
        ("stochastic_heun", {"churn": -1.0}, "churn"),
        ("stochastic_heun", {"churn_noise": -1.0}, "churn"),
        ("stochastic_heun", {"churn_min": 2.0, "churn_max": 1.0}, "churn_min"),
        ("ancestral", {"eta": 1.5}, "eta"),
    ],
)
def test_wrong_options(name, options, option):
    with refused(option):
        SOLVERS[name](gaussian, images(1), karras_sigmas(3, 0.1, 1), noise=step_noise((1, 1, 1, 1)), **options)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_solvers_ask_for_noise(name):
    with pytest.raises(pd.InputError, match=f"{name} adds noise at every step: give noise="):
        SOLVERS[name](gaussian, images(1), karras_sigmas(3, 0.1, 1))


def test_options_by_name():
    given = {"churn": None, "eta": None}
    assert options_of("solver", "heun", SOLVERS, given) == {}
    assert options_of("solver", "stochastic_heun", SOLVERS, given) == {"churn": 40.0}
    assert options_of("solver", "ancestral", SOLVERS, {**given, "eta": 0.0}) == {"eta": 0.0}
    with refused("churn", r"churn is not an option of the solver 'heun', only of 'stochastic_heun'"):
        options_of("solver", "heun", SOLVERS, {**given, "churn": 0.0})
    with refused("solver", "there is no solver 'dpm-solver-2m'; did you mean 'dpm_solver_2m'"):
        options_of("solver", "dpm-solver-2m", SOLVERS, given)


def test_classifier_free_guidance():
    from patch_diffusion.sampling.guidance.extrapolation import extrapolate

    def of(value):
        return lambda noisy, sigma: torch.full_like(noisy, value)

    zeros = torch.zeros(1, 1, 1, 1)
    for scale, expected in ((0, 1.0), (1, 3.0), (1.5, 4.0), (2, 5.0)):
        assert extrapolate(of(3.0), of(1.0), scale)(zeros, torch.ones(())).item() == expected
