import math

import pytest
import torch

import patch_diffusion as pd
from needs import need
from patch_diffusion.denoise.process import VP, Flow
from patch_diffusion.sampling.solvers import (
    SCHEDULES,
    exponential_sigmas,
    few_sigmas,
    flow_sigmas,
    karras_sigmas,
    ve_sigmas,
    vp_sigmas,
)
from refusal import refused

ZEROS = torch.zeros(16, dtype=torch.float64)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_falls_from_sigma_max_to_sigma_min_and_zero(name):
    sigmas = SCHEDULES[name](18, 0.002, 80)
    assert sigmas.dtype == torch.float64 and sigmas.shape == (19,)
    assert sigmas[0].item() == pytest.approx(80) and sigmas[-1] == 0
    assert (sigmas[-2].item() == pytest.approx(0.002)) == (name != "few")
    assert (sigmas.diff() < 0).all()
    model = pd.Denoiser(lambda x, c_noise, labels: x)
    large = pd.Sampling(3, schedule=name, sigma_max=2**70)  # more than torch's whole numbers
    assert large.sigmas(model)[0].item() == 2**70
    assert SCHEDULES[name](1, 0.002, 80).tolist() == pytest.approx([80, 0])
    for wrong, message in (((0, 0.1, 1), "at least 1 step"), ((5, 0, 1), "sigma_min"), ((5, 2, 1), "sigma_min")):
        with pytest.raises(pd.InputError, match=message):
            SCHEDULES[name](*wrong)


def test_karras_sigmas():
    torch.testing.assert_close((karras_sigmas(18, 0.002, 80)[:-1] ** (1 / 7)).diff().diff(), ZEROS)
    torch.testing.assert_close(karras_sigmas(18, 0.002, 80, rho=1)[:-1].diff().diff(), ZEROS, atol=1e-6, rtol=0)
    with refused("rho"):
        karras_sigmas(5, 0.1, 1, rho=0)


def test_vp_sigmas():
    """As published (EDM, table 1): t from 1 to 1e-3 in equal steps."""
    torch.testing.assert_close(VP().time(vp_sigmas(18, 0.002, 80)[:-1]).diff().diff(), ZEROS)
    ends = VP().sigma(torch.tensor([1e-3, 1], dtype=torch.float64))
    times = torch.tensor([1 + index / 17 * (1e-3 - 1) for index in range(18)], dtype=torch.float64)
    published = ((19.9 * times**2 / 2 + 0.1 * times).exp() - 1).sqrt()
    torch.testing.assert_close(vp_sigmas(18, *ends.tolist())[:-1], published)


def test_ve_sigmas():
    """As published (EDM, table 1): sigma^2 = sigma_max^2 (sigma_min^2 / sigma_max^2)^(i / (N - 1))."""
    published = [100**2 * (0.02**2 / 100**2) ** (index / 17) for index in range(18)]
    assert (ve_sigmas(18, 0.02, 100)[:-1] ** 2).tolist() == pytest.approx(published)


def test_exponential_sigmas():
    torch.testing.assert_close(exponential_sigmas(18, 0.002, 80), ve_sigmas(18, 0.002, 80))
    middle = math.log(0.002) + math.log(80 / 0.002) * 0.5**2
    assert exponential_sigmas(3, 0.002, 80, rho=2)[1].item() == pytest.approx(math.exp(middle))
    with refused("rho"):
        exponential_sigmas(5, 0.1, 1, rho=-1)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_sigmas(shift):
    """Even times, each then k t / (1 + (k - 1) t) (arXiv 2403.03206, equation 23)."""
    sigmas = flow_sigmas(18, 0.002, 80, shift)[:-1]
    even = Flow().time(sigmas / shift)
    torch.testing.assert_close(even.diff().diff(), ZEROS)
    torch.testing.assert_close(Flow().time(sigmas), shift * even / (1 + (shift - 1) * even))
    with refused("shift"):
        flow_sigmas(5, 0.1, 1, shift=0)


@pytest.mark.slow
def test_diffusers_has_the_same_levels():
    need("diffusers", "hub")
    from diffusers import EDMEulerScheduler  # pyright: ignore[reportPrivateImportUsage]

    for name, ours in (("karras", karras_sigmas), ("exponential", exponential_sigmas)):
        scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_schedule=name)
        scheduler.set_timesteps(18)
        torch.testing.assert_close(scheduler.sigmas.double(), ours(18, 0.002, 80), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("low", "high"), [(0.002, 80.0), (0.002, 100.0), (0.03, 0.7)])
def test_the_ends_are_exactly_what_was_asked_for(name, low, high):
    for steps in (1, 2, 18):
        sigmas = SCHEDULES[name](steps, low, high)
        assert sigmas[0] == high and (steps == 1 or name == "few" or sigmas[-2] == low) and sigmas[-1] == 0


def test_few_sigmas():
    """The second of two levels is the published one; all scale with the images; sigma_min is the one after the last."""
    assert few_sigmas(2, 0.002, 80)[1].item() == pytest.approx(0.821, rel=0.01)
    assert few_sigmas(4, 0.002, 80)[2].item() == few_sigmas(2, 0.002, 80)[1].item()
    torch.testing.assert_close(few_sigmas(3, 0.004, 160, sigma_data=1.0), 2 * few_sigmas(3, 0.002, 80))
    assert few_sigmas(2, 0.5, 80)[1] > few_sigmas(2, 0.002, 80)[1]
    narrow, wide = (pd.Denoiser(lambda x, c_noise, labels: x, sigma_data, few_steps=2) for sigma_data in (0.25, 0.5))
    levels = [pd.Sampling().settled(model).sigmas(model)[1].item() for model in (narrow, wide)]
    assert levels[0] == pytest.approx(levels[1] / 2, rel=0.01)
