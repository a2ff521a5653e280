"""Models as priors with the interface of deepinv's Denoiser, by a class with its signatures, and in closed form."""

import inspect

import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.data.latents.codec import LatentCodec

MEAN, DEVIATION = 0.6, 0.15  # of pixels in [0, 1]


class DeepinvDenoiser(torch.nn.Module):
    """The signatures of deepinv 0.5's ``deepinv.models.Denoiser``."""

    def forward(self, x, sigma, **kwargs):
        raise NotImplementedError


class Gaussian(pd.Denoiser):
    """The posterior mean where the pixels are normal numbers, in model space."""

    image_channels = 1

    def forward(self, noisy, sigma, conditions):
        mean, variance, level = 2 * MEAN - 1, 4 * DEVIATION**2, sigma.view(-1, 1, 1, 1)
        return mean + (noisy - mean) * variance / (variance + level**2)


@pytest.fixture
def prior():
    return pd.as_prior(Gaussian(lambda *_: None))


def test_it_is_called_as_deepinv_calls(prior):
    theirs, ours = (inspect.signature(kind.forward).parameters for kind in (DeepinvDenoiser, type(prior)))
    assert list(theirs)[:3] == list(ours)[:3] and isinstance(prior, torch.nn.Module)
    assert [each.kind for each in theirs.values()] == [each.kind for each in ours.values()]
    x = torch.rand(3, 1, 4, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    levels = torch.tensor([0.05, 0.2, 1.0])
    share = DEVIATION**2 / (DEVIATION**2 + levels.view(-1, 1, 1, 1) ** 2)
    for sigma in (levels, levels.view(3, 1, 1, 1)):
        torch.testing.assert_close(prior(x, sigma, physics=None), MEAN + share * (x - MEAN))
    for sigma in (0.2, torch.tensor(0.2), torch.tensor([0.2])):
        torch.testing.assert_close(prior(x, sigma), MEAN + share[1] * (x - MEAN))
    assert torch.autograd.grad(prior(x, 0.2).sum(), x)[0].mean().item() == pytest.approx(share[1].item())
    torch.testing.assert_close(prior(x, 0.0), prior(x, 0.001))  # the lowest level of the model, 0.002 in [-1, 1]


def test_plug_and_play_finds_the_exact_posterior(prior):
    """Proximal gradient steps, with the prior in the place of the proximal map, as deepinv's PnP takes them.

    For data y = A x + noise the map is that of N(MEAN, DEVIATION^2) where the prior's sigma^2 is the step size.
    """
    generator = torch.Generator().manual_seed(1)
    known, noise, step = torch.rand(1, 1, 4, 6, generator=generator) < 0.5, 0.1, 0.005
    y = torch.rand(1, 1, 4, 6, generator=generator) * known
    x = torch.zeros_like(y)
    for _ in range(400):
        x = prior(x - step * known * (x - y) / noise**2, step**0.5)
    weight = DEVIATION**2 / (DEVIATION**2 + noise**2)
    torch.testing.assert_close(x, torch.where(known, MEAN + weight * (y - MEAN), MEAN), atol=1e-4, rtol=0)


def test_classes_and_coordinates_are_the_model_s(make_model):
    model = make_model()
    x = torch.rand(2, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    expected = (model(2 * x - 1, 0.4, pd.coordinate_grid(8, 12), torch.tensor([3, 3])) + 1) / 2
    torch.testing.assert_close(pd.as_prior(model, label=3)(x, 0.2), expected)
    assert not torch.equal(pd.as_prior(model)(x, 0.2), expected)


def test_models_that_are_no_priors(make_model):
    model = make_model()
    with pytest.raises(pd.InputError, match="classes 0 to 3"):
        pd.as_prior(model, label=4)
    model.network.label_dropout = 0.0
    with pytest.raises(pd.InputError, match="give a label"):
        pd.as_prior(model)
    model.codec = LatentCodec((0.0,), (1.0,), False, 8, "vae")
    with pytest.raises(pd.InputError, match="makes latents"):
        pd.as_prior(model, label=1)
