"""Conditional sampling against closed forms, and the files it reads."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

import patch_diffusion as pd
from grouped import grouped
from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.errors import Note
from patch_diffusion.sampling.editing.operators import average_pooling, gaussian_blur
from patch_diffusion.sampling.guidance.posterior import conjugate_gradients
from patch_diffusion.sampling.resampling import resampling
from patch_diffusion.sampling.stochastic import ancestral


class Gaussian(pd.Denoiser):
    """The exact denoiser of normal data, in the values -1 to 1 as they are, so that all can be checked by algebra."""

    image_channels = 1

    def __init__(self, mean, covariance, shape, **options):
        options = {"sigma_max": 20.0, "codec": PixelCodec("float32", -1, 1), **options}
        super().__init__(lambda *_: None, resolution=shape, **options)
        self.mean, self.covariance = mean, covariance

    def forward(self, noisy, sigma, conditions):
        identity = torch.eye(len(self.mean))
        gain = self.covariance @ torch.linalg.inv(self.covariance + float(sigma) ** 2 * identity)
        return (self.mean + (noisy.flatten(1) - self.mean) @ gain.mT).view_as(noisy)


@pytest.fixture
def gaussian():
    random = torch.Generator().manual_seed(0)
    factor = torch.randn(6, 6, generator=random) / 4
    return Gaussian(torch.rand(6, generator=random) - 0.5, factor @ factor.mT + 0.02 * torch.eye(6), (2, 3))


@pytest.fixture
def image():
    return torch.randint(0, 256, (1, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mask():
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[2:6, 3:9] = True
    return mask


MATRIX = torch.tensor([[1.0, 0, 2, 0, 0, 1], [0, 1, 0, 0, -1, 0]])


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "flow"), [(0.0, False), (0.3, False), (0.0, True)])
def test_samples_are_those_of_the_exact_posterior(gaussian, noise, flow):
    """Of normal data the network's covariance makes no error: mean and covariance of samples are the known ones."""
    if flow:  # from pure noise
        gaussian = Gaussian(gaussian.mean, gaussian.covariance, (2, 3), process=pd.Flow(), sigma_max=None)
    measured = torch.tensor([0.7, -0.2])
    known = pd.Measurement(measured, lambda images: images.flatten(1) @ MATRIX.mT, (1, 2, 3), noise)
    samples = pd.edit(gaussian, known, range(1000), pd.Sampling(steps=60, batch=1000), repeats=1, covariance="network")
    found = torch.stack([sample.pixels.flatten() for sample in samples])
    prior = gaussian.covariance
    gain = prior @ MATRIX.mT @ torch.linalg.inv(MATRIX @ prior @ MATRIX.mT + noise**2 * torch.eye(2))
    mean = gaussian.mean + gain @ (measured - MATRIX @ gaussian.mean)
    covariance = prior - gain @ MATRIX @ prior
    assert (found.mean(0) - mean).abs().max() < 0.03
    assert (found.T.cov() - covariance).abs().max() < 0.03
    if not noise:
        assert (found @ MATRIX.mT - measured).abs().max() < 1e-3


def test_an_isotropic_covariance_is_exact_where_the_pixels_are_independent():
    model = Gaussian(torch.zeros(6), 0.25 * torch.eye(6), (2, 3))
    measured = torch.tensor([0.4, -0.3])
    known = pd.Measurement(measured, lambda images: images.flatten(1) @ MATRIX.mT, (1, 2, 3), 0.2)
    one, other = (
        next(pd.edit(model, known, [3], pd.Sampling(steps=20), repeats=1, covariance=covariance)).pixels
        for covariance in ("isotropic", "network")
    )
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_repeats_bring_what_is_filled_together_with_what_is_known():
    """Two pixels that are always nearly equal, one known: replacement alone does not tell the other enough."""
    covariance = 0.25 * torch.tensor([[1.0, 0.99], [0.99, 1.0]])
    model = Gaussian(torch.zeros(2), covariance, (1, 2))
    image, mask = torch.tensor([[[0.8, 0.0]]]), torch.tensor([[False, True]])

    def error(repeats, covariance="isotropic"):
        known = pd.inpainting(image, mask)
        found = [
            sample.pixels[0, 0, 1]
            for sample in pd.edit(
                model, known, range(200), pd.Sampling(steps=20), repeats=repeats, covariance=covariance
            )
        ]
        return float((torch.stack(found) - 0.8 * 0.99).square().mean().sqrt())

    spread = (0.25 * (1 - 0.99**2)) ** 0.5
    once, often, exact = error(1), error(10), error(1, "network")
    assert once > 2 * often and exact < 1.3 * spread


def test_resampling_is_ancestral_where_steps_are_taken_once():
    def denoise(noisy, sigma):
        return noisy / (1 + sigma**2)

    def noise(index):
        return torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(index)).double()

    sigmas, start = pd.karras_sigmas(9, 0.01, 20), 20 * noise(99)
    torch.testing.assert_close(
        resampling(denoise, start, sigmas, noise=noise), ancestral(denoise, start, sigmas, noise=noise)
    )


def test_resampling_keeps_the_noise_at_its_level():
    """Where nothing is known of the data, the images are noise of exactly the level of every step."""
    steps, calls = [], []

    def nothing(noisy, sigma):
        calls.append(float(sigma))
        return torch.zeros_like(noisy)

    sigmas = pd.karras_sigmas(5, 0.1, 9)
    resampling(
        nothing,
        9 * torch.randn(50_000, dtype=torch.float64, generator=torch.Generator().manual_seed(7)),
        sigmas,
        noise=lambda i: torch.randn(50_000, dtype=torch.float64, generator=torch.Generator().manual_seed(100 + i)),
        repeats=3,
        callback=steps.append,
    )
    assert [step.index for step in steps] == [0, 1, 2, 3, 4] and len(calls) == 4 * 3 + 1
    for step in steps:
        assert step.noisy.std() == pytest.approx(float(step.sigma), rel=0.02)


def test_conjugate_gradients_solve_every_system_on_its_own():
    random = torch.Generator().manual_seed(0)
    factors = torch.randn(4, 5, 5, generator=random, dtype=torch.float64)
    matrices = factors @ factors.mT + torch.eye(5)
    right = torch.randn(4, 5, generator=random, dtype=torch.float64)
    right[2] = 0
    found = conjugate_gradients(lambda u: (matrices @ u[..., None])[..., 0], right, 20, tolerance=1e-9)
    torch.testing.assert_close(found, torch.linalg.solve(matrices, right))


def test_conjugate_gradients_leave_directions_that_rounding_has_made():
    system = torch.tensor([1.0, 0.5, 1e-6])
    right = torch.ones(1, 3)
    everything = conjugate_gradients(lambda u: system * u, right, 9)
    some = conjugate_gradients(lambda u: system * u, right, 9, least_curvature=0.03)
    assert everything.max() > 1e5 and some.max() < 100
    assert conjugate_gradients(lambda u: -u, right, 9).abs().max() == 0  # nor what is not positive


@pytest.mark.parametrize("operator", [average_pooling(2), average_pooling(4), gaussian_blur(1.2, (8, 12))])
def test_the_transposed_operator_is_found(operator):
    random = torch.Generator().manual_seed(0)
    values = operator(torch.randn(1, 2, 8, 12, generator=random))[0]
    known = pd.Measurement(values, operator, (2, 8, 12))
    image, other = torch.randn(1, 2, 8, 12, generator=random), torch.randn(1, *values.shape, generator=random)
    torch.testing.assert_close((operator(image) * other).sum(), (image * known.transposed(other)).sum())


def test_operators_keep_grey_as_it_is():
    grey = torch.full((1, 3, 12, 8), 77.0)
    assert torch.allclose(gaussian_blur(1.5, (12, 8))(grey), grey) and torch.all(average_pooling(4)(grey) == 77)


@pytest.mark.slow
def test_what_a_mask_leaves_is_kept_exactly(model, image, mask):
    samples = list(pd.edit(model, pd.inpainting(image, mask), range(3), pd.Sampling(steps=3), repeats=2))
    for sample in samples:
        assert torch.equal(sample.pixels[:, ~mask], image[:, ~mask]) and sample.label is None
    assert not torch.equal(samples[0].pixels, samples[1].pixels)
    assert samples[0].settings["filled"] == pytest.approx(0.25) and samples[0].settings["repeats"] == 2


def test_an_extended_image_lies_where_it_should(model, image, mask):
    known = pd.outpainting(image, {"left": 4, "bottom": 2})
    (sample,) = pd.edit(model, known, [0], pd.Sampling(steps=2))
    assert sample.pixels.shape == (1, 10, 16) and torch.equal(sample.pixels[:, :8, 4:], image)
    assert sample.settings["extend"] == {"left": 4, "bottom": 2}
    (both,) = pd.edit(model, pd.outpainting(image, {"left": 4}, mask), [0], pd.Sampling(steps=2))
    assert torch.equal(both.pixels[:, :, 4:][:, ~mask], image[:, ~mask])
    assert not torch.equal(both.pixels[:, :, 4:], image)
    (other,) = pd.edit(model, known, [0], pd.Sampling(steps=2, coords="extend"))
    assert not torch.equal(other.pixels, sample.pixels)


@pytest.mark.slow
@pytest.mark.parametrize("covariance", ["isotropic", "network"])
def test_restored_images_agree_with_what_was_measured(image, covariance):
    """Whatever the model thinks: what it is shown of its own picture is within the noise of what was given."""
    model = Gaussian(torch.zeros(96), 0.25 * torch.eye(96), (8, 12))
    values = image.float() / 127.5 - 1
    for known, within in (
        (pd.super_resolution(model, values[:, ::2, ::2]), 0.01),
        (pd.deblurring(model, gaussian_blur(1.0, (8, 12))(values[None])[0], blur=1.0), 0.02),
        (pd.denoising(values, noise=0.05), 0.2),
    ):
        (sample,) = pd.edit(model, known, [0], pd.Sampling(steps=20), repeats=1, covariance=covariance)
        assert (known.operator(sample.pixels[None])[0] - known.values).abs().mean() < within, known.settings


def test_operators_of_ones_own(image):
    """Complex numbers, and an adjoint where torch cannot differentiate, give the same."""
    model = Gaussian(torch.zeros(96), 0.25 * torch.eye(96), (8, 12))
    kept = torch.rand(8, 12, generator=torch.Generator().manual_seed(3)) < 0.5

    def fourier(images):
        return torch.fft.fft2(images, norm="ortho") * kept

    truth = image.float() / 127.5 - 1
    known = pd.Measurement(fourier(truth[None])[0], fourier, (1, 8, 12))
    (sample,) = pd.edit(model, known, [0], pd.Sampling(steps=8))
    assert (fourier(sample.pixels[None])[0] - known.values).abs().max() < 1e-3

    def blind(images):
        return torch.from_numpy(images.detach().numpy()[..., ::2].copy())

    def adjoint(values):
        filled = torch.zeros(len(values), 1, 8, 12)
        filled[..., ::2] = values
        return filled

    measured = truth[..., ::2]
    with pytest.raises(pd.InputError, match="give its adjoint"):
        next(pd.edit(model, pd.Measurement(measured, blind, (1, 8, 12)), [0], pd.Sampling(steps=2)))
    one, other = (
        next(
            pd.edit(model, pd.Measurement(measured, operator, (1, 8, 12), adjoint=given), [0], pd.Sampling(steps=4))
        ).pixels
        for operator, given in ((blind, adjoint), (lambda images: images[..., ::2], None))
    )
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("covariance", ["isotropic", "network"])
def test_measurements_that_no_image_explains(covariance):
    """One pixel measured twice, with two results, and no noise: their mean is the least of evils."""
    model = Gaussian(torch.zeros(6), 0.25 * torch.eye(6), (2, 3))

    def twice(images):
        return images[:, 0, 0, :1].expand(-1, 2)

    known = pd.Measurement(torch.tensor([0.2, 0.6]), twice, (1, 2, 3))
    (sample,) = pd.edit(model, known, [0], pd.Sampling(steps=12), covariance=covariance)
    assert sample.pixels[0, 0, 0].item() == pytest.approx(0.4, abs=1e-3) and sample.pixels.abs().max() < 3


@pytest.mark.slow
def test_a_seed_gives_the_same_in_any_batch(model, image, mask):
    known = pd.inpainting(image, mask)
    for covariance in ("isotropic", "network"):
        together = list(pd.edit(model, known, range(3), pd.Sampling(steps=3), repeats=2, covariance=covariance))
        (alone,) = pd.edit(model, known, [2], pd.Sampling(steps=3), repeats=2, covariance=covariance)
        assert (alone.pixels.int() - together[2].pixels.int()).abs().max() <= 2


@pytest.mark.slow
def test_every_setting_matters(model, image, mask):
    known = pd.inpainting(image, mask)

    def pixels(**settings):
        return next(
            pd.edit(model, known, [0], **grouped(**{"steps": 4, "repeats": 2, "covariance": "isotropic", **settings}))
        ).pixels

    plain = pixels()
    for settings in (
        {"label": 2},
        {"steps": 3},
        {"repeats": 1},
        {"covariance": "network"},
        {"label": 2, "guidance": 3.0},
        {"guidance": 3.0, "guide": "crops"},
        {"guidance": 3.0, "guide": "crops", "guidance_interval": (0.0, 1.0)},
        {"tile": (8, 8)},
        {"tile": (8, 8), "overlap": 6},
        {"sigma_min": 0.1},
        {"sigma_max": 5.0},
        {"rho": 3.0},
    ):
        assert not torch.equal(pixels(**settings), plain), settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": 9}, "classes 0 to 3"),
        ({"repeats": 0}, "at least once, not 0 times"),
        ({"covariance": "diagonal"}, "isotropic or network, not 'diagonal'"),
        ({"guidance": 2.0}, "guidance by the class needs one"),
        ({"tile": 16}, "does not fit"),
        ({"steps": 0}, "at least 1 step"),
        ({"seeds": [-1]}, "integers from 0"),
    ],
)
def test_wrong_settings_are_refused_at_once(model, image, mask, settings, message):
    with pytest.raises(pd.InputError, match=message):
        pd.edit(model, pd.inpainting(image, mask), **grouped(**settings))


def test_models_and_images_that_do_not_fit(model, image, mask):
    with pytest.raises(pd.InputError, match="images of 1 channels, not 3"):
        pd.edit(model, pd.inpainting(image.expand(3, -1, -1), mask))
    with pytest.raises(pd.InputError, match="multiples of 2 for this network, not 8x11"):
        pd.edit(model, pd.inpainting(image[..., 1:], mask[:, 1:]))
    always = pd.Denoiser(pd.UNet(1, 8, (1, 2), 1, num_classes=4, label_dropout=0.0))
    with pytest.raises(pd.InputError, match="of a class only"):
        pd.edit(always, pd.inpainting(image, mask))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model, image, mask: pd.inpainting(image, mask[1:]), "the mask is 7x12 and the image 8x12"),
        (lambda model, image, mask: pd.inpainting(image, mask & False), "the mask is empty"),
        (lambda model, image, mask: pd.inpainting(image, mask | True), "covers the whole image"),
        (lambda model, image, mask: pd.outpainting(image, {"lef": 2}), "no side 'lef'; did you mean 'left'"),
        (lambda model, image, mask: pd.outpainting(image, {"left": -2}), "at least 0 pixels, not -2 at the left"),
        (lambda model, image, mask: pd.outpainting(image, {"left": 0}), "none are given"),
        (lambda model, image, mask: pd.super_resolution(model, image, factor=1), "at least 2, not 1"),
        (lambda model, image, mask: pd.deblurring(model, image, blur=0), "above 0 pixels, not 0"),
        (lambda model, image, mask: pd.deblurring(model, image, blur=4), "reaches 12 pixels far"),
        (lambda model, image, mask: pd.denoising(image, noise=0), "above 0, not 0"),
        (lambda model, image, mask: pd.Measurement(image, lambda each: each, (1, 8, 12), -1), "at least 0, not -1"),
        (lambda model, image, mask: pd.Measurement(image, lambda each: each + 1, (1, 8, 12)), "is not linear"),
        (lambda model, image, mask: pd.Measurement(image, lambda each: each.abs(), (1, 8, 12)), "is not linear"),
        (lambda model, image, mask: pd.Measurement(image, lambda each: each[..., :3], (1, 8, 12)), "does not fit"),
    ],
)
def test_measurements_that_are_none(model, image, mask, make, message):
    with pytest.raises(pd.InputError, match=message):
        make(model, image, mask)


def test_arrays_and_pictures_are_read_as_they_are(model, image, tmp_path):
    np.save(tmp_path / "a.npy", image.numpy())
    np.save(tmp_path / "b.npy", image[0].numpy())
    np.save(tmp_path / "c.npy", image.permute(1, 2, 0).numpy())
    Image.fromarray(image[0].numpy()).save(tmp_path / "d.png")
    for path in sorted(tmp_path.iterdir()):
        assert torch.equal(pd.read_image(path, model), image), path
    np.save(tmp_path / "big.npy", image.numpy().astype(">u2"))
    deep = pd.Denoiser(model.network, codec=PixelCodec("uint16"))
    assert torch.equal(pd.read_image(tmp_path / "big.npy", deep).int(), image.int())
    np.savez(tmp_path / "several.npz", image=image.numpy())
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    with pytest.raises(pd.InputError, match="holds several arrays"):
        pd.read_image(tmp_path / "several.npy", model)
    floats = pd.Denoiser(model.network, codec=PixelCodec("float32", 0, 255))
    assert torch.equal(pd.read_image(tmp_path / "a.npy", floats), image.float())
    wide = pd.Denoiser(model.network, codec=PixelCodec("uint16"))
    values = (image[0].numpy().astype(np.uint16) * 256) + 3
    Image.fromarray(values).save(tmp_path / "e.png")
    assert torch.equal(pd.read_image(tmp_path / "e.png", wide)[0].int(), torch.from_numpy(values.astype(np.int32)))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "transparent"])
def test_pictures_are_converted_as_in_training(make_model, image, tmp_path, mode):
    """A grey picture that an editor has stored in another form is the same; where pixels are lost that is said."""
    grey = Image.fromarray(image[0].numpy())
    stored = grey.convert("LA" if mode == "transparent" else mode)
    if mode == "transparent":
        stored.putpixel((0, 0), (9, 0))
        image[0, 0, 0] = 255
    stored.save(tmp_path / "a.png")
    own = {"LA": "grey with transparency", "RGBA": "RGB with transparency", "P": "RGB"}.get(mode, mode)
    own = "grey with transparency" if mode == "transparent" else own
    with pytest.warns(Note, match=f"a.png is {own}, and was converted to grey"):
        assert torch.equal(pd.read_image(tmp_path / "a.png", make_model()), image)
    Image.fromarray(np.stack([image[0].numpy()] * 3, axis=-1)).save(tmp_path / "b.png")
    assert torch.equal(pd.read_image(tmp_path / "b.png", make_model(3)), image.expand(3, -1, -1))


def test_pictures_that_cannot_be_converted(make_model, tmp_path):
    Image.fromarray(np.zeros((8, 12), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(
        pd.InputError, match=r"has 1 channel \(grey\), but this run's images have 2 channels: convert it"
    ):
        pd.read_image(tmp_path / "a.png", make_model(2))
    for read in (lambda path: pd.read_image(path, make_model()), pd.read_mask):
        with pytest.raises(pd.InputError, match="is a folder: give a file"):
            read(tmp_path)


def drawn(mask, mode, low, high):
    """A picture of a mask in two colours."""
    picture = Image.new(mode, mask.shape[::-1], low)
    picture.paste(high, mask=Image.fromarray(mask.numpy().astype(np.uint8) * 255))
    return picture


@pytest.mark.parametrize(
    ("mode", "low", "high", "told"),
    [
        ("L", 100, 200, ""),
        ("RGBA", (0, 0, 0, 0), (255, 255, 255, 255), "what is painted is filled in"),
        ("RGBA", (0, 0, 0, 0), (0, 0, 0, 200), "what is painted is filled in"),
        ("LA", (255, 9), (255, 255), "what is painted is filled in"),
        ("L", 0, 1, "its brightest level, 1 of 255, is filled in"),
        ("L", 1, 2, "its brightest level, 2 of 255, is filled in"),
        ("RGB", (0, 0, 0), (255, 0, 0), "its brightest level, 76 of 255, is filled in"),
    ],
)
def test_masks_as_programs_write_them(tmp_path, mask, mode, low, high, told):
    drawn(mask, mode, low, high).save(tmp_path / "mask.png")
    with pytest.warns(Note, match=told) if told else nullcontext():
        assert torch.equal(pd.read_mask(tmp_path / "mask.png"), mask)


def test_masks_that_do_not_tell_what_is_to_be_filled(tmp_path, mask):
    picture = drawn(mask, "RGBA", (0, 0, 0, 255), (255, 255, 255, 255))
    picture.putpixel((0, 0), (0, 0, 0, 0))
    picture.save(tmp_path / "all.png")
    with pytest.raises(pd.InputError, match="has transparent, dark and bright parts"):
        pd.read_mask(tmp_path / "all.png")
    Image.fromarray(np.arange(96, dtype=np.uint8).reshape(8, 12)).save(tmp_path / "dark.png")
    with pytest.raises(
        pd.InputError, match="its brightest pixel is 95 of 255, and it has 96 levels of grey: make white"
    ):
        pd.read_mask(tmp_path / "dark.png")
    Image.new("L", (12, 8)).save(tmp_path / "empty.png")
    assert not pd.read_mask(tmp_path / "empty.png").any()


def test_masks_are_read(tmp_path, mask):
    Image.fromarray(mask.numpy().astype(np.uint8) * 255).convert("RGB").save(tmp_path / "mask.png")
    for name, array in (("a", mask.numpy()), ("b", mask.numpy()[None] * 3.0), ("c", mask.numpy()[..., None])):
        np.save(tmp_path / f"{name}.npy", array)
        assert torch.equal(pd.read_mask(tmp_path / f"{name}.npy"), mask)
    assert torch.equal(pd.read_mask(tmp_path / "mask.png"), mask)


def test_models_of_latents_are_refused(model, image, tmp_path):
    from patch_diffusion.data.latents.codec import LatentCodec

    latents = pd.Denoiser(model.network, codec=LatentCodec((0.0,), (1.0,), False, 8, "vae"))
    np.save(tmp_path / "a.npy", image.numpy())
    with pytest.raises(pd.InputError, match="a model of latents"):
        pd.read_image(tmp_path / "a.npy", latents)
