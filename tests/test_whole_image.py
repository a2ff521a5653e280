import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.evaluation.denoising import denoising_measures


def test_the_loss_of_a_known_denoiser():
    """F = 0 on data that is one grey: D = c_skip (y + n), so the loss is known at every level."""
    images = pd.ImageSet(torch.full((300, 1, 8, 8), 255, dtype=torch.uint8))  # y = 1

    class Zero(torch.nn.Module):
        image_channels = 1

        def forward(self, x, c_noise, labels):
            return torch.zeros_like(x[:, :1])

    losses = pd.whole_image_loss(pd.Denoiser(Zero(), sigma_data=1.0), images, sigmas=(0.5, 2.0), batch=100)
    for sigma, loss in losses.items():
        c_skip, weight = 1 / (1 + sigma**2), (1 + sigma**2) / sigma**2
        assert loss == pytest.approx(weight * ((c_skip - 1) ** 2 + (c_skip * sigma) ** 2), rel=0.02)


def test_the_same_noise_in_any_batch(images):
    torch.manual_seed(0)
    model = pd.Denoiser(pd.UNet(3, 8, (1, 2), 1, num_classes=2))
    first, second = (pd.whole_image_loss(model, images, sigmas=(0.3,), batch=batch) for batch in (64, 7))
    assert first[0.3] == pytest.approx(second[0.3], rel=1e-5)
    assert pd.whole_image_loss(model, images, sigmas=(0.3,), seed=1) != first


def test_other_channels_are_refused(images):
    with pytest.raises(pd.InputError, match="takes 1 channels, but the images have 3"):
        pd.whole_image_loss(pd.Denoiser(pd.UNet(1, 8, (1,), 1)), images)


def test_the_levels_are_the_model_s_own(images):
    model = pd.Denoiser(pd.UNet(3, 8, (1, 2), 1), levels=(0.2, 0.8))
    found = pd.whole_image_loss(model, images)
    assert list(found) == [0.2, 0.8] and found == pd.whole_image_loss(model, images, sigmas=(0.2, 0.8))
    assert set(denoising_measures(model, images)) == {"denoising", "denoising@0.2", "denoising@0.8"}
