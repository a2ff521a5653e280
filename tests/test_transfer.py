"""Copies to a device; what a GPU would wait for is seen in test_pretended.py, and on a GPU in test_gpu.py."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import patch_diffusion as pd
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.sampling.editing.tasks import deblurring, inpainting
from patch_diffusion.sampling.options import Sampling
from patch_diffusion.sampling.stochastic import SOLVERS
from patch_diffusion.transfer import copied_once, to_device, type_on

META = torch.device("meta")
"""A device that every torch has; its tensors hold nothing, and a copy to it is an operation as on any."""


class Copies(TorchDispatchMode):
    """A record of the copies of host tensors to the device."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].device != META and kwargs.get("device") == META:
            self.seen.append(args[0].shape)
        return func(*args, **kwargs)


def network(x, c_noise, labels=None):
    return x[:, :1] * c_noise.view(-1, 1, 1, 1)


@pytest.mark.parametrize("sigma", [0.5, torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.5)])
def test_one_noise_level_of_the_host_is_not_copied(sigma):
    model, coords = pd.Denoiser(network), torch.zeros(2, 4, 4, device=META)
    with Copies() as copies:
        model(torch.zeros(3, 1, 4, 4, device=META), sigma, coords)
    assert not copies.seen


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("tile", [None, 4])
def test_no_step_of_sampling_copies_anything_but_noise(solver, tile):
    model = pd.Denoiser(network, resolution=(8, 8))
    view = Sampling(tile=tile).view(model)
    conditions = Conditions(coords=view.grid, labels=torch.zeros(2, dtype=torch.long)).to(META)
    denoise = replace(view, grid=view.grid.to(META)).bind(model, conditions)
    sigmas = Sampling(steps=3).sigmas(model)
    start = torch.zeros(2, 1, 8, 8, dtype=torch.float64, device=META)
    denoise(start, sigmas[0])  # the weights of a tile are copied once
    with Copies() as copies:
        SOLVERS[solver](denoise, start, sigmas, noise=lambda index: torch.zeros_like(start))
    assert not copies.seen


def test_what_an_operator_holds_is_copied_once(model):
    image, images = torch.zeros(1, 8, 12, dtype=torch.uint8), torch.zeros(2, 1, 8, 12, device=META)
    for known in (inpainting(image, torch.arange(96).view(8, 12) < 30), deblurring(model, image, blur=0.8)):
        with Copies() as copies:
            for _ in range(3):
                known.operator(images)
        assert len(copies.seen) == 1


def test_a_constant_has_the_type_and_the_device_of_what_it_is_for():
    constant = copied_once(torch.tensor([1.0, 2.0], dtype=torch.float64))
    found = constant(torch.zeros(1))
    assert found.dtype == torch.float32 and found.tolist() == [1, 2] and constant(torch.ones(3)) is found
    assert constant(torch.zeros(1, device=META)).device == META


def test_pixels_of_16_bits_have_a_sign_on_an_apple_gpu():
    types = {kind: type_on(torch.device(kind), torch.uint16) for kind in ("cpu", "cuda", "mps")}
    assert types == {"cpu": torch.uint16, "cuda": torch.uint16, "mps": torch.int32}
    assert type_on(torch.device("mps"), torch.uint8) == torch.uint8
    pixels = torch.tensor([65535]).to(torch.uint16)
    assert to_device(pixels, torch.device("cpu")) is pixels
