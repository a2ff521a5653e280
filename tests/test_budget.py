"""Are the operations of a step those that a hand counts?"""

import pytest
import torch.nn.functional as F
from torch import nn

import patch_diffusion as pd
from patch_diffusion.presets import PRESETS
from patch_diffusion.runs.model import build_network
from patch_diffusion.training.budget import training_flops


def operations(network, side):
    return training_flops(pd.Denoiser(network, 0.5), network.image_channels, (side, side)) // 3


@pytest.mark.parametrize("side", [16, 32])
def test_a_transformer_by_hand(side):
    width, depth, values, tokens = 128, 2, 3 * 2**2, (side // 2) ** 2
    conditions = 64 * width + width**2 + depth * width * 6 * width + width * 2 * width
    each_token = values * width + 32 * width + depth * (3 + 1 + 4 + 4) * width**2 + width * values
    attention = depth * 4 * tokens**2 * width
    network = pd.DiT(3, width=width, depth=depth, heads=4, token=2)
    assert operations(network, side) == 2 * (conditions + tokens * each_token) + attention
    assert round(operations(network, side) / 1e6, 1) == {16: 56.0, 32: 272.6}[side]


def test_a_unet_by_hand():
    width, pixels = 8, 8 * 12
    embedding = width * 4 * width + (4 * width) ** 2
    block = 4 * width * width + pixels * 9 * width**2  # of the embedding, and the second convolution
    first = pixels * 9 * (3 + 2) * width
    last = pixels * 9 * width * 3
    narrow = pixels * 9 * width**2
    wide = pixels * (9 + 1) * 2 * width**2  # of a decoder block, with its skip path
    attention = pixels * (3 + 1) * width**2 + 2 * pixels**2 * width
    products = first + embedding + 5 * block + 3 * narrow + 2 * wide + 3 * attention + last
    network = pd.UNet(3, width=width, multipliers=(1,), blocks=1, attention=(0,))
    assert training_flops(pd.Denoiser(network, 0.5), 3, (8, 12)) == 3 * 2 * products


@pytest.mark.parametrize("preset", ["digits", "small", "dit-small"])
def test_the_networks_of_presets_layer_by_layer(preset, monkeypatch):
    """Each layer by its sizes, and attention by its two products."""
    network = build_network(PRESETS[preset].network, 3, 0, coords=True)
    found = {"layers": 0, "attention": 0}

    def layer(module, inputs, output):
        found["layers"] += 2 * output.numel() * module.weight[0].numel()

    def attention(query, key, value, plain=F.scaled_dot_product_attention):
        found["attention"] += 4 * query.numel() * key.shape[-2]
        return plain(query, key, value)

    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(layer)
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    flops = operations(network, 32)
    layers, of_attention = found.values()
    assert flops == layers + of_attention > layers
    # Runs that began before go on to count as they did.
    assert training_flops(pd.Denoiser(network, 0.5), 3, (32, 32), attention=False) == 3 * layers
