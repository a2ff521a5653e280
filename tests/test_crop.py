import pytest
import torch
from hypothesis import given, strategies as st

import parity
import patch_diffusion as pd


@st.composite
def shapes(draw):
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    return (
        draw(st.integers(1, 5)),
        draw(st.sampled_from([1, 3, 5])),
        height,
        width,
        (
            draw(st.integers(1, height)),
            draw(st.integers(1, width)),
        ),
    )


@given(shapes(), st.integers(0, 2**31))
def test_coordinate_image(shape, seed):
    """Where the pixels are their own coordinates, a patch's pixels are its coords: they cannot disagree."""
    num, _, height, width, size = shape
    grids = pd.coordinate_grid(height, width).expand(num, -1, -1, -1)
    patch = pd.random_patches(grids, size, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(patch.pixels, patch.coords)


@given(shapes(), st.integers(0, 2**31))
def test_every_sample_is_cut_at_its_own_place(shape, seed):
    num, channels, height, width, size = shape
    images = torch.arange(num * channels * height * width).reshape(num, channels, height, width)
    patch = pd.random_patches(images, size, generator=torch.Generator().manual_seed(seed))
    assert patch.pixels.shape == (num, channels, *size)
    for index in range(num):
        top, left = int(patch.top[index]), int(patch.left[index])
        assert 0 <= top <= height - size[0] and 0 <= left <= width - size[1]
        assert torch.equal(patch.pixels[index], images[index, :, top : top + size[0], left : left + size[1]])


def test_all_places_are_equally_likely():
    images = torch.zeros(30_000, 1, 5, 7)
    patch = pd.random_patches(images, (3, 4), generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(patch.top * 4 + patch.left, minlength=12)
    assert len(counts) == 12  # 3 rows and 4 columns to begin at
    assert ((counts - 2500).abs() < 250).all()  # five standard deviations


def test_a_place_of_nearly_one_stays_inside():
    nearly_one = torch.full((1, 2), 1 - 2**-24)
    patch = pd.random_patches(torch.zeros(1, 1, 1000, 1000), 999, places=nearly_one)
    assert (int(patch.top), int(patch.left)) == (1, 1)


def test_whole_image():
    images = torch.rand(2, 3, 4, 6)
    patch = pd.whole_image(images)
    assert torch.equal(patch.pixels, images)
    assert torch.equal(patch.coords[1], pd.coordinate_grid(4, 6))


def test_pixels_lie_channels_last():
    patch = pd.random_patches(torch.rand(2, 3, 8, 8), 4)
    assert patch.pixels.is_contiguous(memory_format=torch.channels_last)


def test_too_large_a_patch_is_refused():
    with pytest.raises(pd.InputError, match="9x4 does not fit an image of 8x8"):
        pd.random_patches(torch.zeros(1, 1, 8, 8), (9, 4))


@pytest.mark.parametrize("kind", ["full", "half"])
def test_coordinates_equal_the_reference(kind):
    tensors, _ = parity.read("ddpmpp.safetensors")
    side = tensors[f"{kind}.coords"].shape[-1]
    images = torch.zeros(3, 1, 16, 16)
    # The places that lead to the recorded corners: the middle of each corner's interval.
    corners = torch.stack([tensors[f"{kind}.top"], tensors[f"{kind}.left"]], dim=1)
    patch = pd.random_patches(images, side, places=(corners + 0.5) / (16 - side + 1))
    assert torch.equal(patch.top, tensors[f"{kind}.top"]) and torch.equal(patch.left, tensors[f"{kind}.left"])
    torch.testing.assert_close(patch.coords, tensors[f"{kind}.coords"], atol=1e-6, rtol=0)
