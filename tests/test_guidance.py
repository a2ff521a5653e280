from itertools import chain, pairwise

import pytest
import torch

import patch_diffusion as pd
from grouped import grouped
from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.data.latents.codec import LatentCodec
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.sampling.guidance.crops import in_crops
from patch_diffusion.sampling.guidance.extrapolation import extrapolate, within
from patch_diffusion.sampling.tiles import shifted_starts
from refusal import refused


class Fixed(pd.Denoiser):
    """Whatever it is given, it sees the same grey value; it remembers at which noise levels and shapes."""

    image_channels = 1

    def __init__(self, value=0.0, **options):
        super().__init__(lambda *_: None, resolution=(8, 12), **options)
        self.value, self.seen = value, []

    def forward(self, noisy, sigma, conditions):
        self.seen.append((float(sigma), tuple(noisy.shape)))
        return torch.full_like(noisy, self.value)


class Places(Fixed):
    """It sees the coordinates themselves, x or y."""

    def __init__(self, axis, **options):
        super().__init__(**options)
        self.axis = axis

    def forward(self, noisy, sigma, conditions):
        self.seen.append((float(sigma), tuple(noisy.shape)))
        return conditions.coords.expand(len(noisy), -1, -1, -1)[:, self.axis, None].clone()


def grey(value):
    """The 8-bit pixel of a value in model space."""
    return round((min(max(value, -1), 1) + 1) * 127.5)


def test_away_from_a_weaker_model():
    """Closed form: of two constants, the line through them."""
    for scale, expected in ((0.0, 0.1), (1.25, 0.35), (2.0, 0.5)):
        (sample,) = pd.generate(Fixed(0.3), [0], pd.Sampling(steps=3, guidance=scale, guide=Fixed(0.1)))
        assert set(sample.pixels.flatten().tolist()) == {grey(expected)}
        assert sample.settings["guide"] == "model"


def test_guides_compose():
    def of(value):
        return lambda noisy, sigma: torch.full_like(noisy, value)

    weaker = extrapolate(of(2.0), of(1.0), 2.0)  # 3
    both = within(extrapolate(of(5.0), weaker, 3.0), of(5.0), 1.0, 2.0)
    zeros = torch.zeros(1, 1, 1, 1)
    assert [both(zeros, torch.tensor(sigma)).item() for sigma in (1.0, 1.5, 2.0, 2.1)] == [5.0, 9.0, 9.0, 5.0]


def test_the_weaker_model_is_evaluated_within_the_interval_only():
    weaker, model = Fixed(0.1), Fixed(0.3)
    levels = pd.karras_sigmas(8, 0.002, 80)[:-1].tolist()
    (sample,) = pd.generate(
        model,
        [0],
        pd.Sampling(steps=8, solver="euler", guidance=2.0, guide=weaker, guidance_interval=(levels[5], levels[2])),
    )
    assert [sigma for sigma, _ in weaker.seen] == pytest.approx(levels[2:5])
    assert [sigma for sigma, _ in model.seen] == pytest.approx(levels)
    assert sample.settings["guidance_interval"] == [levels[5], levels[2]]


@pytest.mark.parametrize(("size", "shape"), [("crops", (4, 6)), ("crops:1/4", (2, 3)), ("crops:2", (2, 3))])
def test_crops_have_the_coordinates_of_their_places(size, shape):
    """A model that sees the coordinates sees the same on crops as on the whole, and so is not guided."""
    for axis in (0, 1):
        model = Places(axis)
        plain = next(pd.generate(model, [5], steps=3))
        guided = next(pd.generate(model, [5], pd.Sampling(steps=3, guidance=4.0, guide=size)))
        assert torch.equal(plain.pixels, guided.pixels)
        assert {found[2:] for _, found in model.seen} == {(8, 12), shape}


def test_crops_cover_every_pixel_wherever_they_begin():
    for length, size in ((16, 8), (17, 5), (8, 7), (9, 3)):
        for offset in range(size):
            starts = shifted_starts(length, size, offset)
            assert starts[0] == 0 and starts[-1] == length - size and min(offset, length - size) in starts
            assert all(after - before <= size for before, after in pairwise(starts))


def test_crops_are_a_function_of_the_seed_and_the_step():
    sigmas = torch.tensor([9.0, 3.0, 1.0, 0.0])

    def corners(seeds, sigma):
        """Where the crops of each seed begin: pixels number themselves."""
        found = []

        class Looks(Fixed):
            def forward(self, noisy, sigma, conditions):
                found.extend(noisy[:, 0, 0, 0].tolist())
                return noisy

        image = torch.arange(32 * 32, dtype=torch.float64).view(1, 1, 32, 32).expand(len(seeds), -1, -1, -1)
        conditions = Conditions(pd.coordinate_grid(32, 32))
        crops = in_crops(Looks(), conditions, size=(16, 16), seeds=seeds, sigmas=sigmas, at_once=3)
        torch.testing.assert_close(crops(image, torch.tensor(sigma)), image.clone())
        return found

    alone = [corners([seed], 3.0) for seed in range(4)]
    assert corners(range(4), 3.0) == list(chain(*alone))
    assert corners([0], 3.5) == corners([0], 3.0)  # a level that the solver raised
    assert len({tuple(corners([0], sigma)) for sigma in sigmas[:3].tolist()}) == 3
    assert len({tuple(each) for each in alone}) == 4


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["class", "crops", "crops:4"])
def test_guides_change_the_picture_in_any_batch_alike(model, guide):
    settings = {"steps": 4, "guidance": 3.0, "guide": guide}
    together = list(pd.generate(model, range(3), pd.Sampling(**settings)))
    plain = list(pd.generate(model, range(3), steps=4))
    for seed in range(3):
        (alone,) = pd.generate(model, [seed], pd.Sampling(**settings, batch=1))
        assert (alone.pixels.int() - together[seed].pixels.int()).abs().max() <= 1
        assert not torch.equal(alone.pixels, plain[seed].pixels)
    limited = next(pd.generate(model, [0], pd.Sampling(**settings, guidance_interval=(0.0, 1.0))))
    assert not torch.equal(limited.pixels, together[0].pixels) and not torch.equal(limited.pixels, plain[0].pixels)


def test_a_weaker_model_has_no_dropout_and_its_mode_is_kept(model):
    torch.manual_seed(0)
    weaker = pd.Denoiser(pd.UNet(1, 8, (1, 2), 1, num_classes=4, dropout=0.5))
    for parameter in weaker.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    first, second = (
        next(pd.generate(model, [0], pd.Sampling(steps=2, guidance=2, guide=weaker))).pixels for _ in range(2)
    )
    assert torch.equal(first, second) and weaker.training


def test_latents_of_one_autoencoder_wherever_it_is(model):
    """And another decoder: they are the same latents."""
    codec = LatentCodec((0.0,), (1.0,), False, 8, "vae", "abc")
    latents = pd.Denoiser(model.network, resolution=(8, 12), codec=codec.decoded_by("elsewhere"))
    weaker = pd.Denoiser(model.network, resolution=(8, 12), codec=codec)
    pd.generate(latents, [0], pd.Sampling(guidance=2.0, guide=weaker))
    others = pd.Denoiser(model.network, codec=LatentCodec((0.0,), (2.0,), False, 8, "vae", "abc"))
    with pytest.raises(pd.InputError, match="theirs have other values"):
        pd.generate(latents, [0], pd.Sampling(guidance=2.0, guide=others))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guide": "crops"}, "for a guidance other than 1"),
        ({"guidance_interval": (0.1, 2.0)}, "for a guidance other than 1"),
        ({"guidance": 2.0, "guide": "crop"}, "there is no guide 'crop'; did you mean 'crops'"),
        ({"guidance": 2.0, "guide": "crops:x"}, "neither a fraction of the image such as '1/2' nor pixels"),
        ({"guidance": 2.0, "guide": "crops:3"}, "cannot pass this network, which needs multiples of 2"),
        ({"guidance": 2.0, "guide": "crops:8"}, "as large as the image"),
        ({"guidance": 2.0, "guide": "crops", "tile": 4}, "not for tiles"),
        ({"guidance": 2.0, "guidance_interval": (2.0, 1.0)}, "from a lower to a higher noise level, not 2.0 to 1.0"),
        ({"guidance": 2.0, "guidance_interval": (90.0, 100.0)}, "none of the noise levels, 80 to 0.002"),
        ({"guidance": 2.0, "guide": Fixed()}, "its num_classes is 0, not 4"),
        ({"guidance": 2.0, "guide": pd.Denoiser(pd.UNet(3, 8, (1,), 1, num_classes=4))}, "image_channels is 3, not 1"),
        (
            {"guidance": 2.0, "guide": pd.Denoiser(pd.UNet(1, 8, (1, 2, 2, 2), 1, num_classes=4))},
            "multiples of 8, not",
        ),
        (
            {
                "guidance": 2.0,
                "guide": pd.Denoiser(
                    pd.UNet(1, 8, (1,), 1, num_classes=4),
                    codec=PixelCodec("uint8", 0, 100),
                ),
            },
            "theirs have other values",
        ),
    ],
)
def test_wrong_guidance_is_refused_at_once(model, settings, message):
    with refused("guidance_interval" if {"guidance", "guidance_interval"} <= settings.keys() else "guide", message):
        pd.generate(model, [0], **grouped(**settings))


def test_a_model_without_classes_is_guided_by_crops():
    network = pd.UNet(1, 8, (1, 2), 1)
    model = pd.Denoiser(network, resolution=(8, 8))
    with pytest.raises(pd.InputError, match="another guide, such as crops, does without"):
        pd.generate(model, [0], pd.Sampling(guidance=2.0))
    assert next(pd.generate(model, [0], pd.Sampling(steps=2, guidance=2.0, guide="crops"))).pixels.shape == (1, 8, 8)
