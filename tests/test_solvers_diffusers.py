"""The solvers of diffusers, on the same levels and the same denoiser, come to the same images."""

import pytest
import torch

from needs import need
from patch_diffusion.denoise.process import EDM
from patch_diffusion.sampling.solvers import karras_sigmas
from patch_diffusion.sampling.stochastic import SOLVERS

diffusers = need("diffusers", "hub")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]

STEPS = 20
SIGMAS = karras_sigmas(STEPS, 0.002, 80)
NOISY = torch.tensor([-100.0, -30, -2, 1, 50, 90], dtype=torch.float64).reshape(6, 1, 1, 1)


def gaussian(noisy, sigma):
    return 0.3 + (noisy - 0.3) * 0.25 / (0.25 + sigma**2)


def two_points(noisy, sigma):
    return torch.tanh(noisy / sigma**2)


def line(noisy, sigma):
    return (0.3 - 0.1 * sigma.log()).expand_as(noisy)


def solution(scheduler, denoise, predict, *, sigmas=SIGMAS, scaled=False, **options):
    """What a scheduler makes of `NOISY`.

    ``predict(noisy, denoised, sigma)`` is what its model returns; ``scaled`` schedulers work on x / sqrt(1 + sigma^2).
    """
    scheduler.set_timesteps(STEPS)
    scheduler.sigmas = sigmas.float()
    scheduler.set_begin_index(0)
    scheduler.is_scale_input_called = True
    scales = (1 + scheduler.sigmas**2).rsqrt() if scaled else torch.ones(len(sigmas))
    state = NOISY.float() * scales[0]
    for time, sigma, scale in zip(scheduler.timesteps, scheduler.sigmas, scales, strict=False):
        noisy = state / scale
        output = predict(noisy, denoise(noisy, sigma), sigma)
        state = scheduler.step(output, time, state, return_dict=False, **options)[0]
    return state.double()


def noise_in(noisy, denoised, sigma):
    return (noisy - denoised) / sigma


def denoised_itself(noisy, denoised, sigma):
    return denoised


def edm_output(noisy, denoised, sigma):
    factors = EDM().preconditioning(sigma, 0.5)
    return (denoised - factors.c_skip * noisy) / factors.c_out


def check(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("denoise", [gaussian, two_points])
def test_euler(denoise):
    ours = SOLVERS["euler"](denoise, NOISY, SIGMAS)
    check(ours, solution(diffusers.EulerDiscreteScheduler(), denoise, noise_in))
    check(ours, solution(diffusers.EDMEulerScheduler(), denoise, edm_output))


@pytest.mark.parametrize("denoise", [gaussian, two_points])
def test_heun(denoise):
    twice = torch.cat([SIGMAS[:1], SIGMAS[1:-1].repeat_interleave(2), SIGMAS[-1:]])
    theirs = solution(diffusers.HeunDiscreteScheduler(), denoise, noise_in, sigmas=twice)
    check(SOLVERS["heun"](denoise, NOISY, SIGMAS), theirs)


@pytest.mark.parametrize("denoise", [gaussian, two_points])
def test_dpm_solver_2m(denoise):
    ours = SOLVERS["dpm_solver_2m"](denoise, NOISY, SIGMAS)
    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type="sample")
    check(ours, solution(scheduler, denoise, denoised_itself, scaled=True))
    check(ours, solution(diffusers.EDMDPMSolverMultistepScheduler(), denoise, edm_output))


def test_dpm_solver_3m():
    """The same where D is a line. Their curvature is half that of the parabola through three D, hence second order."""
    options = {"solver_order": 3, "solver_type": "heun"}
    for scheduler, predict, scaled in (
        (diffusers.DPMSolverMultistepScheduler(prediction_type="sample", **options), denoised_itself, True),
        (diffusers.EDMDPMSolverMultistepScheduler(**options), edm_output, False),
    ):
        check(SOLVERS["dpm_solver_3m"](line, NOISY, SIGMAS), solution(scheduler, line, predict, scaled=scaled))


@pytest.mark.parametrize("denoise", [gaussian, two_points])
def test_unipc(denoise):
    """Theirs with its defaults: second order of the predictor, B(h) = e^h - 1, denoised images predicted."""
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="sample", final_sigmas_type="zero")
    check(SOLVERS["unipc"](denoise, NOISY, SIGMAS), solution(scheduler, denoise, denoised_itself, scaled=True))


@pytest.mark.parametrize("denoise", [gaussian, two_points])
def test_ancestral(denoise):
    def draw(generator):
        return lambda index: torch.randn(NOISY.shape, generator=generator).double()

    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    theirs = solution(diffusers.EulerAncestralDiscreteScheduler(), denoise, noise_in, generator=generators[0])
    check(SOLVERS["ancestral"](denoise, NOISY, SIGMAS, noise=draw(generators[1])), theirs)
