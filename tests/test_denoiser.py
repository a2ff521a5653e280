import pytest
import torch

import parity
import patch_diffusion as pd
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.networks.unet import STYLES
from refusal import refused


def zero_network(x, c_noise, labels):
    return torch.zeros_like(x[:, :3])


def test_without_a_network_it_is_the_gaussian_s_best_guess():
    """With F = 0, D = c_skip x: the posterior mean of data ~ N(0, sigma_data^2)."""
    denoiser = pd.Denoiser(zero_network, sigma_data=0.7)
    noisy, sigma = torch.randn(4, 3, 2, 2), torch.tensor([0.1, 0.7, 2.0, 50.0])
    expected = noisy * (0.49 / (0.49 + sigma**2))[:, None, None, None]
    coords = pd.coordinate_grid(2, 2)
    torch.testing.assert_close(denoiser(noisy, sigma, coords), expected)
    # and the score is that of N(0, sigma_data^2 + sigma^2)
    expected = -noisy / (0.49 + sigma**2)[:, None, None, None]
    torch.testing.assert_close(denoiser.score(noisy, sigma, coords), expected, atol=1e-4, rtol=1e-4)


def test_what_the_network_is_given():
    given = {}

    def network(x, c_noise, labels):
        given.update(x=x, c_noise=c_noise, labels=labels)
        return x[:, :1]

    coords = pd.coordinate_grid(3, 4)
    noisy, labels = torch.full((2, 1, 3, 4), 10.0), torch.tensor([1, -1])
    pd.Denoiser(network, sigma_data=3.0)(noisy, 4.0, coords, labels)
    torch.testing.assert_close(given["x"][:, :1], noisy / 5)  # c_in = 1 / sqrt(sigma^2 + sigma_data^2)
    assert torch.equal(given["x"][:, 1:], coords.expand(2, -1, -1, -1))  # not scaled
    torch.testing.assert_close(given["c_noise"], torch.full((2,), 4.0).log() / 4)
    assert given["labels"] is labels
    pd.Denoiser(network, sigma_data=3.0, coords=False)(noisy, 4.0, coords)
    assert given["x"].shape == (2, 1, 3, 4) and given["labels"] is None


def test_coords_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"expected \(2, 8, 8\)"):
        pd.Denoiser(zero_network)(torch.zeros(1, 3, 8, 8), 1.0, pd.coordinate_grid(4, 8))


@pytest.mark.parametrize(
    "options", [{"sigma_data": 0.0}, {"sigma_data": float("nan")}, {"sigma_min": 3, "sigma_max": 2}]
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(pd.InputError, match="sigma"):
        pd.Denoiser(zero_network, **options)


def test_the_loss_weight_makes_levels_count_alike():
    """With F = 0 and unit data of sigma_data, the expected loss is 1 at every level."""
    generator = torch.Generator().manual_seed(0)
    denoiser = pd.Denoiser(zero_network, sigma_data=0.5)
    clean = 0.5 * torch.randn(4, 3, 100, 100, generator=generator)
    sigma = torch.tensor([0.01, 0.1, 1.0, 10.0])
    losses = pd.denoising_loss(denoiser, clean, pd.coordinate_grid(100, 100), sigma, generator=generator)
    torch.testing.assert_close(losses, torch.ones(4), atol=0.05, rtol=0)


NETWORKS = {
    **{kind: lambda kind=kind: pd.UNet(3, width=16, multipliers=(1, 2), blocks=1, kind=kind) for kind in STYLES},
    "edm2": lambda: pd.EDM2UNet(3, width=16, multipliers=(1, 2), blocks=1),
    "dit": lambda: pd.DiT(3, width=32, depth=2, heads=2),
}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("deviation", [0.15, 0.5])
def test_every_network_begins_with_a_loss_of_1_at_every_level(kind, deviation):
    """Of images of mean 0, whole ones and patches: then no level of noise drowns another in the first steps."""
    torch.manual_seed(0)
    denoiser = pd.Denoiser(NETWORKS[kind](), sigma_data=deviation)
    sigma = torch.tensor([0.002, 0.05, 0.4, 3.2, 80.0])
    for side, coords in ((32, pd.coordinate_grid(32, 32)), (16, pd.coordinate_grid(32, 32)[..., 8:24, 3:19])):
        clean = deviation * torch.randn(len(sigma), 3, side, side)
        with torch.no_grad():
            losses = pd.denoising_loss(denoiser, clean, coords, sigma)
        torch.testing.assert_close(losses, torch.ones(len(sigma)), atol=0.15, rtol=0)


def test_noise_levels_are_log_normal():
    logs = pd.NoiseLevels(-0.5, 0.3).draw(50_000, generator=torch.Generator().manual_seed(0)).log()
    assert abs(logs.mean() + 0.5) < 0.01 and abs(logs.std() - 0.3) < 0.01
    with refused("noise.p_std"):
        pd.NoiseLevels(p_std=-1)


@pytest.mark.parametrize("name", ["ddpmpp.safetensors", "ddpmpp-class-augment.safetensors"])
@pytest.mark.parametrize("kind", ["full", "half"])
def test_loss_weighting_equals_the_reference(name, kind):
    """On the recorded denoised images, whatever network made them."""
    tensors, _ = parity.read(name)
    sigma, clean = tensors["sigma"], tensors[f"{kind}.clean"]
    weight = pd.Denoiser(zero_network).loss_weight(sigma)[:, None, None, None]
    weighted = weight * (tensors[f"{kind}.denoised"] - clean).square()
    torch.testing.assert_close(weighted, tensors[f"{kind}.weighted_loss"], atol=1e-5, rtol=1e-5)


def test_data_of_another_mean_are_denoised_about_it():
    """As data of mean 0 are whose pixels, and whose small copy, are that much lower."""
    seen = []

    def network(x, c_noise, labels):
        seen.append(x)
        return x[:, :2].tanh()

    mean = torch.tensor([0.3, -0.5])[:, None, None]
    about, plain = pd.Denoiser(network, 0.4, mean_data=(0.3, -0.5)), pd.Denoiser(network, 0.4)
    noisy, sigma, coords = torch.randn(2, 2, 6, 8), torch.tensor([0.2, 3.0]), pd.coordinate_grid(6, 8)
    torch.testing.assert_close(about(noisy, sigma, coords), plain(noisy - mean, sigma, coords) + mean)
    about.context = plain.context = 3
    small = torch.randn(2, 2, 3, 4)
    about(noisy, sigma, Conditions(coords, thumbnail=small))
    plain(noisy - mean, sigma, Conditions(coords, thumbnail=small - mean))
    torch.testing.assert_close(seen[-2], seen[-1])
    assert not any("mean" in name for name in about.state_dict())
    for wrong in ((), (float("nan"),)):
        with refused("noise.mean_data"):
            pd.Denoiser(network, mean_data=wrong)
    for wrong in ((), (0.0, 1.0), (1.0, 0.5)):
        with refused("noise.levels"):
            pd.Denoiser(network, levels=wrong)


def test_one_noise_level_is_a_number_or_a_tensor():
    model, coords = (
        pd.Denoiser(lambda x, c_noise, labels: x[:, :1] * c_noise[:, None, None, None]),
        torch.zeros(2, 4, 4),
    )
    noisy = torch.rand(3, 1, 4, 4)
    each = torch.full((3,), 0.3)
    expected = model(noisy, each, coords)
    for sigma in (0.3, torch.tensor(0.3), torch.tensor(0.3, dtype=torch.float64), each.double()):
        assert torch.equal(model(noisy, sigma, coords), expected)
    one, several = torch.tensor(0.3, requires_grad=True), each.clone().requires_grad_()
    for sigma in (one, several):
        model(noisy, sigma, coords).sum().backward()
    assert one.grad is not None and several.grad is not None
    assert one.grad.item() == pytest.approx(several.grad.sum().item(), rel=1e-5)
