import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, strategies as st

import patch_diffusion as pd
from patch_diffusion.training.budget import training_flops
from patch_diffusion.training.choices.law import KNOTS, batch_for, operations_worth, rounded, worth

PUBLISHED = {
    # parameters, operations of training, pixels of an image (latents have 64 x 64 for 512 x 512)
    "EDM, DDPM++, CIFAR-10": (55.7e6, 2.5e19, 32 * 32),
    "EDM, DDPM++, 64 x 64": (61.8e6, 5.0e19, 64 * 64),
    "EDM, ADM, ImageNet 64": (295.9e6, 1.65e21, 64 * 64),
    "EDM2-XS": (125e6, 6 * 46e9 * 2147e6, 64 * 64),
    "EDM2-S": (280e6, 6 * 102e9 * 2147e6, 64 * 64),
    "EDM2-M": (498e6, 6 * 181e9 * 2147e6, 64 * 64),
    "EDM2-L": (777e6, 6 * 282e9 * 1879e6, 64 * 64),
    "EDM2-XL": (1119e6, 6 * 406e9 * 1476e6, 64 * 64),
    "EDM2-XXL": (1523e6, 6 * 552e9 * 940e6, 64 * 64),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_are_worth_their_budgets(name):
    """Of EDM (arXiv 2206.00364), table 8, and EDM2 (arXiv 2312.02696), table 6."""
    parameters, operations, pixels = PUBLISHED[name]
    found = worth(operations, pixels)
    assert found.source == "interpolated" and 1 / 1.5 < found.parameters / parameters < 1.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "images", "side", "network"),
    [
        ("EDM, DDPM++, CIFAR-10", 2e8, 32, {"multipliers": (2, 2, 2), "blocks": 4, "attention": (1,)}),
        ("EDM, DDPM++, 64 x 64", 2e8, 64, {"multipliers": (1, 2, 2, 2), "blocks": 4, "attention": (2,)}),
    ],
)
def test_operations_of_the_published_networks(name, images, side, network):
    with torch.device("meta"):
        unet = pd.UNet(3, width=128, **network)
        operations = images * training_flops(pd.Denoiser(unet, 0.5), 3, (side, side))
    parameters = sum(weight.numel() for weight in unet.parameters())
    assert (parameters, operations) == pytest.approx(PUBLISHED[name][:2], rel=0.02)


def test_what_is_measured_says_so():
    assert [worth(operations, 64 * 64).source for operations in (1e11, 1e12, 3e12, 4e13, 1e14, 1e22)] == [
        "extrapolated",
        *["measured"] * 3,
        "interpolated",
        "extrapolated",
    ]


def test_images_of_fewer_pixels_are_worth_larger_networks():
    assert worth(1e13, 32 * 32) == worth(4e13, 64 * 64)


@given(st.floats(1e8, 1e24), st.integers(8, 1024))
def test_more_operations_are_never_worth_less(operations, side):
    less, more = worth(operations, side**2), worth(1.5 * operations, side**2)
    assert 0 < less.parameters <= more.parameters and 0 < less.batch <= more.batch


@given(st.floats(1e3, 1e9), st.integers(8, 1024))
def test_the_inverse(parameters, side):
    assert worth(operations_worth(parameters, side**2), side**2).parameters == pytest.approx(parameters, rel=1e-6)


def test_the_points_rise():
    for less, more in pairwise(KNOTS):
        assert less.operations < more.operations and less.parameters < more.parameters and less.batch <= more.batch


@given(st.floats(0.01, 1e6))
def test_batches_are_round(batch):
    found = rounded(batch)
    power = 2 ** math.floor(math.log2(found))
    assert found in (power, 3 * power // 2) and abs(math.log(found / max(batch, 2))) < math.log(1.25)


def test_a_batch_for_a_network():
    assert batch_for(6e7, 64 * 64) in (256, 384, 512) and batch_for(1e3, 64 * 64) == 8
