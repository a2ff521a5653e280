import pytest
import torch
from jaxtyping import TypeCheckError

import patch_diffusion as pd
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.objective import Batch
from patch_diffusion.denoise.process import EDM
from patch_diffusion.patches import coords, crop

IMAGES, GRID, LEVELS = torch.zeros(2, 3, 4, 6), pd.coordinate_grid(4, 6), torch.tensor([2.0, 1.0, 0.0])

MODEL = pd.Denoiser(lambda x, c_noise, labels: x[:, :3])


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (lambda: pd.random_patches(IMAGES, 2, places=torch.zeros(3, 2)), "random_patches"),  # of three images
        (lambda: pd.random_patches(IMAGES[:, 0, 0, 0], 2), "random_patches"),
        (lambda: MODEL(IMAGES, torch.ones(1), GRID), "Denoiser.forward"),  # would spread by itself
        (lambda: pd.denoising_loss(lambda *_: IMAGES, IMAGES, GRID, torch.ones(3)), "denoising_loss"),
        (lambda: Conditions(labels=torch.zeros(2)), "Conditions"),  # no whole numbers
        (lambda: Conditions(labels=torch.arange(2), augment=torch.zeros(3, 9)), "Conditions"),
        (lambda: Batch(IMAGES, torch.ones(3), IMAGES, Conditions()), "Batch"),
        (lambda: pd.heun(lambda noisy, sigma: noisy.mT, IMAGES, LEVELS), "begin_step"),
        (lambda: pd.ancestral(lambda noisy, sigma: noisy, IMAGES, LEVELS[None], noise=lambda _: IMAGES), "ancestral"),
        (lambda: pd.Sample(IMAGES, 0, None, {}), "Sample"),
        (lambda: pd.UNet(3, 8, (1,), 1)(IMAGES, torch.ones(3)), "UNet.forward"),
    ],
)
def test_a_wrong_shape_is_caught(wrong, name):
    with pytest.raises(TypeCheckError, match=name):
        wrong()


def test_a_wrong_result_is_caught(monkeypatch):
    monkeypatch.setattr(crop, "patch_coordinates", lambda *_: coords.patch_coordinates(*_).mT)
    pd.random_patches(IMAGES, 2)  # square ones cannot tell
    with pytest.raises(TypeCheckError, match="Patch"):
        pd.random_patches(IMAGES, (2, 3))


def test_what_the_program_sees_is_as_it_is_written():
    """Names, arguments and annotations are those of the package, and all methods of an abstract class are there."""
    from inspect import signature

    assert signature(pd.random_patches).parameters["images"].annotation == "Shaped[Tensor, 'n c *resolution']"
    assert pd.random_patches.__module__ == "patch_diffusion.patches.crop"
    assert EDM.sigma.__qualname__ == "EDM.sigma" and hasattr(EDM.sigma, "__wrapped__")
