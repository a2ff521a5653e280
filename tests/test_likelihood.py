"""Oracles: Gaussian data, whose density is known at every noise level."""

import math
import sys

import pytest
import torch

import patch_diffusion as pd
from needs import need
from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.sampling.likelihood import bits_per_dimension, log_density

torchdiffeq = need("torchdiffeq", "likelihood")

MEAN, DEVIATION = 0.1, 0.25
RANGE = {"sigma_min": 0.002, "sigma_max": 80.0}
# Four numbers that hang together, so that the divergence needs its probes: of all 16 signs, these four are orthogonal.
COVARIANCE = torch.tensor([[4, 2, 1, 0], [2, 3, 1, 1], [1, 1, 2, 1], [0, 1, 1, 1]], dtype=torch.float64) / 10
HADAMARD = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=torch.float64)


class Gaussian(pd.Denoiser):
    image_channels, num_classes, label_dropout = 3, 2, 0.1

    def forward(self, noisy, sigma, conditions):
        labels = conditions.labels
        mean = MEAN if labels is None else MEAN + labels[:, None, None, None]
        return mean + (noisy - mean) * DEVIATION**2 / (DEVIATION**2 + sigma**2)


@pytest.fixture
def model():
    return Gaussian(lambda *_: None)


@pytest.fixture
def pixels():
    values = MEAN + DEVIATION * torch.randn(24, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    return PixelCodec().decode(values)


def correlated(noisy, sigma):
    """The best guess for data ~ N(0, COVARIANCE)."""
    gain = COVARIANCE @ torch.linalg.inv(COVARIANCE + sigma**2 * torch.eye(4, dtype=torch.float64))
    return (noisy.flatten(1) @ gain.mT).reshape(noisy.shape)


def correlated_images(num):
    normal = torch.randn(num, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (normal @ torch.linalg.cholesky(COVARIANCE).mT).reshape(num, 1, 2, 2)


def exact_density(images):
    covariance = COVARIANCE + RANGE["sigma_min"] ** 2 * torch.eye(4, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(torch.zeros(4, dtype=torch.float64), covariance)
    return normal.log_prob(images.flatten(1))


def test_log_density_of_a_gaussian():
    """With a full set of orthogonal probes the divergence is exact, and so the density, to the tolerance."""
    images = correlated_images(6)
    probes = HADAMARD.reshape(4, 1, 1, 2, 2).expand(4, 6, 1, 2, 2)
    found = log_density(correlated, images, probes, **RANGE, tolerance=1e-7)
    # The prior is N(0, sigma_max^2), the noise that sampling starts from, without the data's own variance.
    torch.testing.assert_close(found, exact_density(images), atol=3e-4, rtol=0)
    rough = log_density(correlated, images, probes, **RANGE, tolerance=1e-2)
    assert (rough - found).abs().max() > 1e-5


def test_the_prior_is_about_the_mean_of_the_data():
    images, levels = correlated_images(3), {"sigma_min": 0.01, "sigma_max": 2.0}
    probes = HADAMARD.reshape(4, 1, 1, 2, 2).expand(4, 3, 1, 2, 2)
    moved = log_density(
        lambda noisy, sigma: correlated(noisy - 0.6, sigma) + 0.6, images + 0.6, probes, **levels, mean=0.6
    )
    torch.testing.assert_close(moved, log_density(correlated, images, probes, **levels), atol=1e-4, rtol=0)


def test_random_probes_are_unbiased():
    images = correlated_images(1).expand(400, 1, 2, 2)
    probes = 2.0 * torch.randint(2, (1, *images.shape), generator=torch.Generator().manual_seed(2)) - 1
    found = log_density(correlated, images, probes.double(), **RANGE, tolerance=1e-4)
    assert found.std() > 0.1
    assert found.mean().item() == pytest.approx(exact_density(images)[0].item(), abs=4 * found.std().item() / 20)


def test_an_image_is_solved_to_the_tolerance_whatever_it_is_among():
    """Data at -1 and 1: an image that lies between them is the hard one among 400 that lie on a point."""

    def two_points(noisy, sigma):
        return torch.tanh(noisy / sigma**2)

    def density(images, tolerance):
        probes = torch.ones_like(images)[None]  # one number an image: any sign is exact
        return log_density(two_points, images, probes, sigma_min=0.1, sigma_max=80.0, tolerance=tolerance)[0].item()

    hard = torch.full((1, 1, 1, 1), 0.02, dtype=torch.float64)
    among = torch.cat([hard, torch.ones(400, 1, 1, 1, dtype=torch.float64)])
    exact = -0.5 * (0.98 / 0.1) ** 2 + math.log(0.5 * (1 + math.exp(-4.0)) / 0.1 / (2 * math.pi) ** 0.5)
    assert density(hard, 1e-6) == pytest.approx(exact, abs=1e-3)
    assert density(hard, 1e-4) == pytest.approx(exact, abs=0.1)
    assert density(among, 1e-4) == pytest.approx(exact, abs=0.1)


@pytest.mark.parametrize("process", [pd.EDM(), pd.Flow()])
def test_bits_per_dimension_of_a_gaussian(process, pixels):
    """Entropy of the data in bits, and the bits of the 8-bit grid: 255 / 2 levels per unit."""
    bits = bits_per_dimension(Gaussian(lambda *_: None, process=process), pixels)
    entropy = 0.5 * math.log2(2 * math.pi * math.e * DEVIATION**2) + math.log2(255 / 2)
    assert bits.shape == (24,) and bits.mean().item() == pytest.approx(entropy, rel=0.01)
    standard = (PixelCodec().encode(pixels).double() - MEAN) / DEVIATION
    squares = 0.5 * standard.square().mean(dim=(1, 2, 3)) / math.log(2)
    each = squares + 0.5 * math.log2(2 * math.pi * DEVIATION**2) + math.log2(255 / 2)
    torch.testing.assert_close(bits, each, atol=0.02, rtol=0)


def test_levels_are_spread_evenly_over_their_bins():
    """Where the density is as narrow as a bin: the mean square over the bin, width^2 / 12, shows."""

    class Narrow(pd.Denoiser):
        def forward(self, noisy, sigma, conditions):
            return centre + (noisy - centre) * 0.003**2 / (0.003**2 + sigma**2)

    pixels = torch.full((16, 1, 16, 16), 140, dtype=torch.uint8)
    centre = PixelCodec().encode(pixels)[0, 0, 0, 0]
    bits = bits_per_dimension(Narrow(lambda *_: None), pixels)
    variance = 0.003**2 + 0.002**2
    nats = 0.5 * math.log(2 * math.pi * variance) + (2 / 255) ** 2 / 12 / (2 * variance)
    assert bits.mean().item() == pytest.approx(nats / math.log(2) + math.log2(255 / 2), abs=0.02)
    assert bits.std() > 1e-3  # each seed has its own


def test_every_seed_has_its_own_probes():
    class Correlated(pd.Denoiser):
        def forward(self, noisy, sigma, conditions):
            return correlated(noisy.double(), sigma.double())

    fine = Correlated(lambda *_: None, codec=PixelCodec("uint16"))  # with bins too narrow to matter
    pixels = fine.codec.decode(correlated_images(1).expand(32, 1, 2, 2))
    one, many = (bits_per_dimension(fine, pixels, probes=probes, tolerance=1e-3).std() for probes in (1, 16))
    assert one > 0.05 and many < one / 2


def test_bits_of_a_model_of_other_pixels():
    codec = PixelCodec("uint16", 0, 4095)
    model = Gaussian(lambda *_: None, codec=codec)
    values = MEAN + DEVIATION * torch.randn(24, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    entropy = 0.5 * math.log2(2 * math.pi * math.e * DEVIATION**2) + math.log2(4095 / 2)
    assert bits_per_dimension(model, codec.decode(values)).mean().item() == pytest.approx(entropy, rel=0.01)
    with pytest.raises(pd.InputError, match="are uint16, not torch.uint8"):
        bits_per_dimension(model, torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    model.codec = PixelCodec("float32", -1, 1)
    with pytest.raises(pd.InputError, match="whole numbers, and this model has floats"):
        bits_per_dimension(model, torch.zeros(1, 3, 4, 4))


@pytest.mark.slow
def test_an_image_that_the_model_does_not_expect_costs_more(model, pixels):
    expected, inverted = (bits_per_dimension(model, images).mean() for images in (pixels, 255 - pixels))
    assert inverted > expected + 0.1
    of_class = [bits_per_dimension(model, pixels, labels=label).mean() for label in (0, 1)]
    assert abs(of_class[0] - expected) < 1e-6 and of_class[1] > expected + 1


@pytest.mark.slow
def test_an_image_keeps_its_bits_in_any_batch():
    torch.manual_seed(0)
    network = pd.UNet(3, 4, (1,), 1, dropout=0.5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model = pd.Denoiser(network, 0.5).train()
    pixels = torch.randint(0, 256, (2, 3, 2, 4), dtype=torch.uint8)

    def bits(**settings):
        return bits_per_dimension(model, pixels, tolerance=1e-3, **settings)

    together = bits()
    assert model.training and not together.requires_grad
    alone = bits_per_dimension(model, pixels[1:], seeds=[1], tolerance=1e-3)
    torch.testing.assert_close(alone, together[1:], atol=2e-3, rtol=0)
    for settings in (
        {"seeds": [5, 6]},
        {"probes": 2},
        {"sigma_min": 0.01},
        {"sigma_max": 20.0},
        {"coords": torch.zeros(2, 2, 4)},
    ):
        assert (bits(**settings) - together).abs().max() > 1e-4, settings


@pytest.mark.parametrize(
    ("pixels", "settings", "message"),
    [
        (torch.zeros(1, 3, 4, 4), {}, "pixels of this model are uint8, not torch.float32"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), {"seeds": [0]}, "as many seeds, not 1"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), {"probes": 0}, "at least 1 probe"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.uint8), {}, "3 channels, not 1"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), {"labels": 2}, "classes 0 to 1"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), {"sigma_max": 0.001}, "sigma_min < sigma_max"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), {"tolerance": 0.0}, "tolerance is above 0"),
    ],
)
def test_what_cannot_be_counted(model, pixels, settings, message):
    with pytest.raises(pd.InputError, match=message):
        bits_per_dimension(model, pixels, **settings)


def test_without_torchdiffeq_the_extra_is_named(model, pixels, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(pd.InputError, match=r"pip install 'patch_diffusion\[likelihood\]'"):
        bits_per_dimension(model, pixels)
