import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.config import Ema
from patch_diffusion.training.optimizing.ema import WeightAverage


def denoiser(value):
    network = torch.nn.BatchNorm2d(1)
    torch.nn.init.constant_(network.weight, value)
    network.running_mean.fill_(value)
    return pd.Denoiser(network)


def test_half_of_a_weight_s_share_is_left_after_the_half_life():
    model = denoiser(1.0)
    average = WeightAverage(model, Ema(half_life_images=1000, ramp=1e9))
    torch.nn.init.constant_(model.network.weight, 0.0)
    for _ in range(10):
        average.update(model, 100, 10**9)
    assert average.denoiser.network.weight.item() == pytest.approx(0.5)


def test_the_batch_does_not_matter():
    results = []
    for batch in (1, 50):
        model = denoiser(1.0)
        average = WeightAverage(model, Ema(half_life_images=300, ramp=1e9))
        torch.nn.init.constant_(model.network.weight, 0.0)
        for _ in range(500 // batch):
            average.update(model, batch, 10**9)
        results.append(average.denoiser.network.weight.item())
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_the_ramp_shortens_the_half_life_of_young_runs():
    model = denoiser(1.0)
    average = WeightAverage(model, Ema(half_life_images=1e9, ramp=0.1))
    torch.nn.init.constant_(model.network.weight, 0.0)
    average.update(model, 10, 100)  # the half-life is 10 images now
    assert average.denoiser.network.weight.item() == pytest.approx(0.5)


def test_buffers_are_copied_and_the_average_is_not_trained():
    model = denoiser(1.0)
    average = WeightAverage(model, Ema())
    model.network.running_mean.fill_(7.0)
    average.update(model, 1, 1)
    assert average.denoiser.network.running_mean.item() == 7.0
    assert not average.denoiser.training and not any(p.requires_grad for p in average.denoiser.parameters())
