"""Networks, loss and samplers against the published implementation's recorded numbers, through imported weights."""

import pytest
import torch

import parity
import patch_diffusion as pd
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.sampling.bind import bind
from patch_diffusion.sampling.guidance.extrapolation import extrapolate
from patch_diffusion.sampling.stochastic import stochastic_heun

pytestmark = pytest.mark.slow

GUIDED = [name for name in parity.NAMES if "class" in name]


def labels_of(tensors):
    return tensors["class_labels"].argmax(1) if "class_labels" in tensors else None


@pytest.mark.parametrize("kind", ["full", "half"])
@pytest.mark.parametrize("name", parity.NAMES)
def test_denoised_and_loss(name, kind, tmp_path):
    tensors, _ = parity.read(name)
    model = parity.imported(name, tmp_path)
    clean, noise, coords = (tensors[f"{kind}.{key}"] for key in ("clean", "noise", "coords"))
    sigma, labels, expected = tensors["sigma"], labels_of(tensors), tensors[f"{kind}.denoised"]
    with torch.no_grad():
        conditions = Conditions(coords, labels, tensors.get("augment_labels"))
        denoised = model(clean + sigma[:, None, None, None] * noise, sigma, conditions)
    torch.testing.assert_close(denoised, expected, atol=1e-5, rtol=0)
    weight, recorded = model.loss_weight(sigma)[:, None, None, None], tensors[f"{kind}.weighted_loss"]
    torch.testing.assert_close(weight * (expected - clean).square(), recorded, atol=1e-5, rtol=1e-6)
    # A last digit of what is denoised weighs several hundred times at low noise.
    torch.testing.assert_close(weight * (denoised - clean).square(), recorded, atol=1e-5, rtol=1e-4)


def solve(model, tensors, solver, steps, *, guidance=1.0, **options):
    sigmas, coords, labels = pd.karras_sigmas(steps, 0.002, 80), pd.coordinate_grid(16, 16), labels_of(tensors)
    denoise = bind(model, Conditions(coords, labels))
    if guidance != 1:
        denoise = extrapolate(denoise, bind(model, Conditions(coords)), guidance)
    with torch.no_grad():
        return solver(denoise, tensors["sample.latents"] * sigmas[0], sigmas, **options)


@pytest.mark.parametrize("name", parity.NAMES)
def test_heun(name, tmp_path):
    tensors, _ = parity.read(name)
    images = solve(parity.imported(name, tmp_path), tensors, pd.heun, 18)
    torch.testing.assert_close(images, tensors["sample.heun18"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", GUIDED)
def test_guidance(name, tmp_path):
    tensors, _ = parity.read(name)
    images = solve(parity.imported(name, tmp_path), tensors, pd.heun, 18, guidance=1.5)
    torch.testing.assert_close(images, tensors["sample.heun18_cfg1.5"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", parity.NAMES)
def test_churn(name, tmp_path):
    tensors, _ = parity.read(name)
    recorded = tensors["sample.churn8_noise"].double()
    churn = {"churn": 10, "churn_min": 0.05, "churn_max": 50, "churn_noise": 1.003}
    images = solve(
        parity.imported(name, tmp_path), tensors, stochastic_heun, 8, noise=lambda index: recorded[index], **churn
    )
    torch.testing.assert_close(images, tensors["sample.churn8"], atol=1e-4, rtol=0)
