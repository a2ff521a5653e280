import math

import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.sampling.encode import decode, encode

SHAPE = (2, 4, 6)
MEAN = torch.linspace(-0.4, 0.4, math.prod(SHAPE)).reshape(SHAPE)
DEVIATION = torch.linspace(0.1, 0.6, math.prod(SHAPE)).reshape(SHAPE)


class Gaussian(pd.Denoiser):
    """Knows the data: N(MEAN + 0.2 class, DEVIATION^2), each number for itself."""

    image_channels, num_classes, label_dropout = 2, 3, 0.1

    def forward(self, noisy, sigma, conditions):
        labels = conditions.labels
        assert conditions.coords.shape[-3:] == (2, *SHAPE[1:])
        mean = MEAN if labels is None else MEAN + 0.2 * labels[:, None, None, None]
        return mean + (noisy - mean) * DEVIATION**2 / (DEVIATION**2 + sigma**2)


@pytest.fixture
def model():
    return Gaussian(lambda *_: None)


@pytest.fixture
def images():
    return MEAN + DEVIATION * torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("process", [pd.EDM(), pd.Flow()])
def test_encode_then_decode_gives_the_image(process, images):
    """Of flow matching, up to pure noise and back."""
    model = Gaussian(lambda *_: None, process=process)
    for labels in (None, 2, [0, 1] * 8):
        noise = encode(model, images, labels=labels)
        assert (decode(model, noise, labels=labels) - images).square().mean().sqrt() < 1e-2
    wrong = decode(model, encode(model, images, labels=0), labels=1)
    assert (wrong - images).mean().item() == pytest.approx(0.2, abs=0.02)


def test_the_noise_is_that_of_the_exact_ode(model, images):
    """The standard score is kept, on the way from sigma_min to sigma_max; so the noise is nearly standard normal."""
    noise = encode(model, images, steps=256)
    start, end = (DEVIATION**2 + 0.002**2).sqrt(), (DEVIATION**2 + 80**2).sqrt()
    exact = (MEAN + (images - MEAN) / start * end) / 80
    torch.testing.assert_close(noise, exact.double(), atol=2e-3, rtol=0)
    assert noise.std().item() == pytest.approx(1, abs=0.05)


def test_the_noise_of_flow_matching_is_the_standard_score(images):
    noise = encode(Gaussian(lambda *_: None, process=pd.Flow()), images, steps=128)
    torch.testing.assert_close(noise, ((images - MEAN) / DEVIATION).double(), atol=5e-3, rtol=5e-3)


def test_decode_makes_the_pictures_of_generate(model):
    samples = list(pd.generate(model, range(3), pd.Sampling(resolution=SHAPE[1:], steps=12), labels=[2, 0, 1]))
    noise = [
        torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in range(3)
    ]
    images = decode(model, torch.stack(noise), labels=[2, 0, 1], steps=12)
    assert torch.equal(torch.stack([sample.pixels for sample in samples]), PixelCodec().decode(images))


def test_the_network_gets_coordinates_and_its_own_mode_back():
    network = pd.UNet(2, 8, (1, 2), 1, dropout=0.5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05)
    model = pd.Denoiser(network, 0.5).train()
    image = torch.linspace(-1, 1, 48).reshape(1, *SHAPE)
    whole, other = (encode(model, image, steps=3, coords=coords) for coords in (None, torch.zeros(2, 4, 6)))
    torch.testing.assert_close(whole, encode(model, image, steps=3, coords=pd.coordinate_grid(4, 6)))
    assert model.training and (whole - other).abs().max() > 1e-4
    noise = torch.zeros(1, *SHAPE)
    whole, other = (decode(model, noise, steps=3, coords=coords) for coords in (None, torch.zeros(2, 4, 6)))
    assert not whole.requires_grad and (whole - other).abs().max() > 1e-4


def test_every_setting_matters(model, images):
    plain = encode(model, images), decode(model, images)
    for settings in ({"steps": 12}, {"sigma_min": 0.2}, {"sigma_max": 9.0}, {"rho": 2.0}):
        for function, result in zip((encode, decode), plain, strict=True):
            assert (function(model, images, **settings) - result).abs().max() > 1e-5, (function, settings)


@pytest.mark.parametrize("function", [encode, decode])
@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        (torch.zeros(2, 2, 4, 6, dtype=torch.uint8), {}, "images are floats"),
        (torch.zeros(2, 4, 6), {}, "images are floats"),
        (torch.zeros(1, 3, 4, 6), {}, "images of 2 channels, not 3"),
        (torch.zeros(1, 2, 4, 6), {"coords": torch.zeros(2, 6, 4)}, "coords of these images"),
        (torch.zeros(1, 2, 4, 6), {"labels": 3}, "classes 0 to 2"),
        (torch.zeros(1, 2, 4, 6), {"labels": [0, 1]}, "as many labels, not 2"),
        (torch.zeros(1, 2, 4, 6), {"sigma_min": 90.0}, "sigma_min <= sigma_max"),
        (torch.zeros(1, 2, 4, 6), {"steps": 0}, "at least"),
    ],
)
def test_what_the_model_cannot_take(model, function, images, settings, message):
    with pytest.raises(pd.InputError, match=message):
        function(model, images, **settings)


def test_labels_must_be_such_as_the_model_knows():
    image = torch.zeros(1, 1, 4, 4)
    with pytest.raises(pd.InputError, match="trained without classes"):
        encode(pd.Denoiser(pd.UNet(1, 8, (1,), 1)), image, labels=0)
    with pytest.raises(pd.InputError, match="give labels"):
        encode(pd.Denoiser(pd.UNet(1, 8, (1,), 1, num_classes=2, label_dropout=0.0)), image)
    with pytest.raises(pd.InputError, match="multiples of 2"):
        encode(pd.Denoiser(pd.UNet(1, 8, (1, 1), 1)), torch.zeros(1, 1, 5, 4))


def test_noise_is_about_the_mean_of_the_data(images):
    """The way there and back is that of data of mean 0, moved."""

    def network(x, c_noise, labels):
        return x[:, :2].tanh()

    about, plain = pd.Denoiser(network, 0.3, mean_data=(0.6,)), pd.Denoiser(network, 0.3)
    noise = encode(about, images + 0.6, steps=8)
    torch.testing.assert_close(noise, encode(plain, images, steps=8), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(decode(about, noise), decode(plain, noise) + 0.6, atol=1e-4, rtol=1e-4)
