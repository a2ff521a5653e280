import numpy as np
import pytest
import torch
from PIL import Image

import patch_diffusion as pd
from patch_diffusion.sampling.pictures import write_picture


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = pd.UNet(3, 8, (1, 2), 1, num_classes=4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return pd.Denoiser(network, 0.5, resolution=(8, 12)).eval()


def test_a_seed_gives_the_same_picture_in_any_batch(model):
    together = list(pd.generate(model, range(5), steps=4))
    for sample in together:
        (alone,) = pd.generate(model, [sample.seed], steps=4, batch=1)
        assert (alone.pixels.int() - sample.pixels.int()).abs().max() <= 1  # rounding in other kernels
        assert (alone.seed, alone.label) == (sample.seed, sample.label)
    assert torch.equal(
        torch.stack([s.pixels for s in pd.generate(model, range(5), steps=4)]),
        torch.stack([s.pixels for s in together]),
    )
    assert not torch.equal(together[0].pixels, together[4].pixels)


def test_classes(model):
    assert [sample.label for sample in pd.generate(model, range(2, 8), steps=1)] == [2, 3, 0, 1, 2, 3]
    assert [sample.label for sample in pd.generate(model, range(3), steps=1, labels=2)] == [2, 2, 2]
    assert [sample.label for sample in pd.generate(model, range(3), steps=1, labels=[3, 1, 0])] == [3, 1, 0]
    first, second = (next(pd.generate(model, [0], steps=3, labels=label)).pixels for label in (0, 1))
    assert not torch.equal(first, second)


def test_every_setting_matters(model):
    def pixels(**settings):
        return next(pd.generate(model, [0], **{"steps": 5, **settings})).pixels

    plain = pixels()
    for settings in (
        {"steps": 3},
        {"solver": "euler"},
        {"guidance": 3.0},
        {"sigma_min": 0.2},
        {"sigma_max": 10.0},
        {"rho": 1.0},
    ):
        assert not torch.equal(pixels(**settings), plain), settings


def test_any_resolution_that_the_network_takes(model):
    assert next(pd.generate(model, [0], steps=1)).pixels.shape == (3, 8, 12)
    assert next(pd.generate(model, [0], steps=1, resolution=4)).pixels.shape == (3, 4, 4)
    assert next(pd.generate(model, [0], steps=1, resolution=(16, 2))).pixels.shape == (3, 16, 2)


def test_dropout_is_off_and_the_mode_is_kept(model):
    noisy_network = model.train()
    first, second = (next(pd.generate(noisy_network, [0], steps=2)).pixels for _ in range(2))
    assert torch.equal(first, second) and noisy_network.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "heum"}, "did you mean 'heun'"),
        ({"steps": 0}, "at least 1 step"),
        ({"labels": 4}, "classes 0 to 3"),
        ({"labels": [1]}, "2 seeds need as many labels"),
        ({"seeds": [-1, 0]}, "seeds are integers from 0"),
        ({"resolution": 7}, "multiples of 2"),
        ({"batch": 0}, "at least 1 image"),
    ],
)
def test_wrong_settings_are_refused_at_once(model, settings, message):
    with pytest.raises(pd.InputError, match=message):
        pd.generate(model, **{"seeds": [0, 1], **settings})


def test_guidance_needs_dropped_labels():
    for network, message in (
        (pd.UNet(1, 8, (1,), 1, num_classes=2, label_dropout=0.0), "label_dropout 0"),
        (pd.UNet(1, 8, (1,), 1), "has no classes"),
    ):
        with pytest.raises(pd.InputError, match=message):
            pd.generate(pd.Denoiser(network, resolution=(4, 4)), [0], guidance=2.0)
    with pytest.raises(pd.InputError, match="trained without classes"):
        pd.generate(pd.Denoiser(pd.UNet(1, 8, (1,), 1), resolution=(4, 4)), [0], labels=1)
    with pytest.raises(pd.InputError, match="does not know the resolution"):
        pd.generate(pd.Denoiser(pd.UNet(1, 8, (1,), 1)), [0])


def test_a_perfect_denoiser_gives_its_data():
    """The whole chain, from seeds to bytes: data that is one picture is generated exactly."""
    picture = torch.randint(0, 256, (3, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))

    class Oracle(pd.Denoiser):
        image_channels = 3

        def forward(self, noisy, sigma, coords, labels=None):
            assert torch.equal(coords, pd.coordinate_grid(4, 6))
            return (picture.float() / 127.5 - 1).expand_as(noisy)

    for sample in pd.generate(Oracle(lambda *_: None, resolution=(4, 6)), range(3)):
        assert torch.equal(sample.pixels, picture)


def test_save_and_grid(model, tmp_path):
    samples = list(pd.generate(model, [3, 12], steps=1))
    assert [sample.save(tmp_path / "out").name for sample in samples] == ["000003.png", "000012.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "000003.png")), samples[0].pixels.permute(1, 2, 0))
    grid = pd.picture_grid([sample.pixels for sample in samples])
    scale = grid.width // 25
    assert grid.size == (25 * scale, 8 * scale) and grid.width >= 512
    assert grid.getpixel((12 * scale, 0)) == (128, 128, 128)
    assert grid.getpixel((14 * scale, 0)) == tuple(samples[1].pixels[:, 0, 1].tolist())


def test_pictures_that_cannot_be_written(tmp_path):
    with pytest.raises(pd.InputError, match="2 channels are no pictures"):
        pd.picture_grid([torch.zeros(2, 4, 4, dtype=torch.uint8)])
    with pytest.raises(pd.InputError, match="no pictures"):
        pd.picture_grid([])
    with pytest.raises(pd.InputError, match="not as 'a.txt'"):
        write_picture(Image.new("L", (2, 2)), tmp_path / "a.txt")
    assert not list(tmp_path.iterdir())
