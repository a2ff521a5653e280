"""Measures of images made from inputs, held to a model whose posterior is known."""

import math

import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.data.paired import Paired, PairedInput
from patch_diffusion.errors import InputError
from patch_diffusion.evaluation.options import EvaluationOptions
from patch_diffusion.evaluation.paired import crps, paired_measures, rank_histogram, ssim
from patch_diffusion.sampling.options import Sampling

INPUT = PairedInput("low", 1, {"dtype": "float32", "low": -1.0, "high": 1.0})
SLOPE, SPREAD = 0.6, 0.2


class Posterior(pd.Denoiser):
    """The exact denoiser of images that are 0.6 times their input, plus normal noise of deviation 0.2."""

    paired_channels = 3
    image_channels = 1
    stride = 1

    def forward(self, noisy, sigma, coords, labels=None):
        sigma = torch.as_tensor(sigma, dtype=noisy.dtype).view(-1, 1, 1, 1)
        inputs = coords.inputs  # pyright: ignore[reportAttributeAccessIssue]
        mean = 0.0 if inputs is None else SLOPE * inputs[:, :1].to(noisy)
        return mean + (noisy - mean) * SPREAD**2 / (SPREAD**2 + sigma**2)


@pytest.fixture
def model():
    made = Posterior(lambda x, c_noise, labels: x, 0.4, resolution=(8, 12), inputs=(INPUT,))
    made.codec = PixelCodec("float32", -1.0, 1.0)
    return made.eval()


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(6, 1, 8, 12, generator=generator) * 2 - 1
    pixels = SLOPE * inputs + SPREAD * torch.randn(6, 1, 8, 12, generator=generator)
    return pd.ImageSet(pixels, codec=PixelCodec("float32", -1.0, 1.0), paired=(Paired(INPUT, inputs),))


def test_samples_have_the_mean_and_the_variance_of_the_posterior(model, images):
    given = images.paired[0].pixels[0]
    samples = pd.generate(model, range(100), Sampling(steps=40), paired=given)
    made = torch.stack([sample.pixels for sample in samples]).double()
    left = made - SLOPE * given
    num = left.numel()
    assert abs(float(left.mean())) < 4 * SPREAD / math.sqrt(num)
    assert float(left.var()) == pytest.approx(SPREAD**2, rel=4 * math.sqrt(2 / num) + 0.01)


def test_measures_of_the_exact_posterior(model, images):
    found = paired_measures(model, images, images=6, members=8, sampling=Sampling(steps=30))
    num = 6 * 8 * 12
    mean_error = (SPREAD / 2) ** 2 * (1 + 1 / 8)  # of values from 0 to 1
    assert found["psnr_of_mean"].value == pytest.approx(-10 * math.log10(mean_error), abs=0.5)
    assert found["psnr"].value == pytest.approx(-10 * math.log10(2 * (SPREAD / 2) ** 2), abs=0.5)
    assert found["crps"].value == pytest.approx(SPREAD / 2 / math.sqrt(math.pi), rel=0.15)
    assert found["spread_skill"].value == pytest.approx(1, abs=0.12)
    ranks = torch.tensor(found["spread_skill"].settings["ranks"])
    assert len(ranks) == 9 and float((num * (ranks - 1 / 9).square() / (1 / 9)).sum()) < 26  # chi squared of 8
    assert found["ssim_of_mean"].value > found["ssim"].value
    low, high = found["crps"].low, found["crps"].high
    assert low is not None and high is not None and low < found["crps"].value < high
    again = paired_measures(model, images, images=6, members=8, sampling=Sampling(steps=30))
    assert again["crps"] == found["crps"]


def test_evaluate_measures_pairs(model, images):
    options = EvaluationOptions(metrics=("paired",), paired_images=2, members=3)
    found = pd.evaluate(model, held_out=images, options=options, sampling=Sampling(steps=2))
    assert set(found.measures) == {"psnr", "ssim", "crps", "psnr_of_mean", "ssim_of_mean", "spread_skill"}
    with pytest.raises(InputError, match=r"paired needs held-out images with their inputs"):
        pd.evaluate(model, options=options)
    with pytest.raises(InputError, match="2 members"):
        pd.evaluate(model, held_out=images, options=EvaluationOptions(metrics=("paired",), members=1))


def test_similarity_is_that_of_torchmetrics():
    metrics = pytest.importorskip("torchmetrics.functional.image")
    one, noise = (torch.rand(3, 2, 20, 24, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1))
    other = 0.7 * one + 0.3 * noise
    options = {"data_range": 1.0, "reduction": "none", "return_full_image": True}
    _, full = metrics.structural_similarity_index_measure(one, other, **options)
    expected = full[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))  # where the whole window is inside
    assert torch.allclose(ssim(one, other), expected, atol=1e-4)
    assert torch.allclose(ssim(one, one), torch.ones(3, dtype=torch.float64))


def test_scores_of_ensembles():
    members, truth = torch.randn(5, 4, 6).double(), torch.randn(4, 6).double()
    pairs = (members[:, None] - members[None]).abs().sum(dim=(0, 1)) / (5 * 4)
    assert torch.allclose(crps(members, truth), (members - truth).abs().mean(dim=0) - pairs / 2)
    ranks = rank_histogram(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([1.5]), torch.Generator())
    assert ranks.tolist() == [0, 0, 1, 0]
    ties = rank_histogram(torch.zeros(3, 1000), torch.zeros(1000), torch.Generator().manual_seed(0))
    assert ties.min() > 200
