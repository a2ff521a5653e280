"""The method and the denoiser in any number of axes: volumes (d, h, w), and rows of numbers."""

import math

import pytest
import torch
from hypothesis import given, strategies as st

import patch_diffusion as pd
from patch_diffusion.data.small import small_shape
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.patches.coords import extended_grid, patch_coordinates, patch_corners
from refusal import refused

shapes = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)


@given(shapes)
def test_coordinates_come_x_first_and_end_at_one(shape):
    grid = pd.coordinate_grid(*shape)
    assert grid.shape == (len(shape), *shape)
    for number, line in enumerate(grid.flip(0)):  # in the order of the axes
        ends = line.movedim(number, 0)
        assert (ends[0] == (-1 if shape[number] > 1 else 0)).all() and (ends[-1] == (shape[number] > 1)).all()
        assert all(torch.equal(line, line.select(other, 0).unsqueeze(other).expand_as(line)) for other in
                   set(range(len(shape))) - {number})  # fmt: skip


@given(st.data())
def test_pixels_and_coordinates_are_cut_by_the_same_indices(data):
    resolution = data.draw(shapes)
    size = tuple(data.draw(st.integers(1, length)) for length in resolution)
    grid = pd.coordinate_grid(*resolution)
    patch = pd.random_patches(grid.expand(3, *grid.shape), size, generator=torch.Generator().manual_seed(0))
    assert patch.pixels.shape == (3, len(resolution), *size) and patch.corners.shape == (3, len(resolution))
    assert torch.equal(patch.pixels, patch.coords)
    for index in range(3):
        where = tuple(slice(c, c + s) for c, s in zip(patch.corners[index].tolist(), size, strict=True))
        assert torch.equal(patch.pixels[index], grid[(slice(None), *where)])


def test_every_place_of_a_volume_is_reachable_and_none_outside():
    places = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0))
    corners = patch_corners(places, (2, 3, 1), (3, 4, 3))
    assert sorted({tuple(corner) for corner in corners.tolist()}) == [
        (z, y, x) for z in range(2) for y in range(2) for x in range(3)
    ]
    with pytest.raises(pd.InputError, match="a patch of 4x3x1 does not fit an image of 3x4x3"):
        patch_corners(places, (4, 3, 1), (3, 4, 3))
    with pytest.raises(pd.InputError, match="a patch of 2x3 does not fit an image of 3x4x3"):
        pd.random_patches(torch.zeros(1, 1, 3, 4, 3), (2, 3))


def test_a_single_number_is_the_side_of_every_axis():
    patch = pd.random_patches(torch.zeros(2, 1, 8, 9, 10), 4)
    assert patch.pixels.shape == (2, 1, 4, 4, 4) and patch.coords.shape == (2, 3, 4, 4, 4)
    assert torch.equal(patch.top, patch.corners[:, 1]) and torch.equal(patch.left, patch.corners[:, 2])
    assert pd.whole_image(torch.zeros(2, 1, 8, 9, 10)).coords.equal(
        pd.coordinate_grid(8, 9, 10).expand(2, -1, -1, -1, -1)
    )


def test_a_grid_continues_beyond_a_volume():
    grid = extended_grid((4, 5, 6), (2, 3, 4), (-1, -1, -1))
    torch.testing.assert_close(grid[:, 1:3, 1:4, 1:5], pd.coordinate_grid(2, 3, 4))
    assert grid[0, 0, 0, 0] < -1 and grid[2, -1, -1, -1] > 1


def test_sizes_of_volumes():
    schedule = pd.PatchSchedule(whole=0.5)
    sizes = schedule.sizes_for((16, 32, 32), stride=2)
    assert [str(size) for size in sizes] == ["4x8x8", "8x16x16", "16x32x32"]
    assert [round(size.growth, 6) for size in sizes] == [4, 2, 1]  # R/s, the root of the ratio of volumes
    assert [size.weight for size in pd.PatchSchedule(weight="area").sizes_for((16, 16, 16))] == [1 / 64, 1 / 8, 1]
    assert sum(size.probability for size in sizes) == pytest.approx(1)
    with refused("patches.sizes"):
        schedule.sizes_for((8, 16, 16), stride=4)
    assert small_shape(4, (8, 16, 12), 2) == (4, 8, 6)


def test_patch_coordinates_of_volumes_are_those_of_the_grid():
    corners = torch.tensor([[1, 0, 2], [0, 3, 1]])
    coords = patch_coordinates(corners, (2, 2, 3), (4, 5, 6))
    grid = pd.coordinate_grid(4, 5, 6)
    assert torch.equal(coords[0], grid[:, 1:3, 0:2, 2:5]) and torch.equal(coords[1], grid[:, 0:2, 3:5, 1:4])


class Mean(torch.nn.Module):
    """A network of any number of axes that is told coordinates and a thumbnail."""

    def forward(self, x, c_noise, labels):
        self.x = x
        return x[:, :2]


@pytest.mark.parametrize("shape", [(7,), (5, 6), (3, 4, 5)])
def test_a_denoiser_of_any_number_of_axes(shape):
    denoiser = pd.Denoiser(Mean(), 0.5)
    clean = torch.randn(3, 2, *shape)
    coords = pd.coordinate_grid(*shape)
    sigma = torch.tensor([0.1, 1.0, 10.0])
    noise = torch.randn_like(clean)
    losses = pd.denoising_loss(denoiser, clean, coords, sigma, noise=noise)
    along = [-1] + [1] * (len(shape) + 1)
    c_skip, c_out, c_in, _ = (each.view(along) for each in pd.EDM().preconditioning(sigma, 0.5))
    noisy = clean + sigma.view(along) * noise
    expected = (c_skip + c_out * c_in) * noisy
    weight = pd.EDM().loss_weight(sigma, 0.5)
    torch.testing.assert_close(losses, weight * (expected - clean).square().flatten(1).mean(1))
    torch.testing.assert_close(denoiser.score(noisy, sigma, coords), (expected - noisy) / sigma.square().view(along))
    assert torch.equal(denoiser.network.x[:, 2:], coords.expand(3, *[-1] * (len(shape) + 1)))
    with pytest.raises(ValueError, match="do not belong to images"):
        denoiser(noisy, sigma, pd.coordinate_grid(*[side + 1 for side in shape]))


def test_a_volume_is_shown_its_small_copy():
    denoiser = pd.Denoiser(Mean(), 0.5, context=2)
    small = pd.coordinate_grid(2, 3, 4)[:2].expand(2, -1, -1, -1, -1)
    patch = pd.random_patches(torch.zeros(2, 2, 6, 9, 12), 4)
    denoiser(patch.pixels, 1.0, Conditions(patch.coords, thumbnail=small))
    shown = denoiser.network.x[:, 5:7] * denoiser.sigma_data
    torch.testing.assert_close(shown, patch.coords[:, :2], atol=1e-5, rtol=0)


def test_conditions_are_selected_moved_and_left_out_together():
    conditions = Conditions(pd.coordinate_grid(4, 5), torch.arange(3), thumbnail=torch.randn(3, 1, 2, 2))
    spread = conditions.spread(torch.zeros(3, 1, 4, 5))
    assert spread.coords.shape == (3, 2, 4, 5)
    one = spread.select([2])
    assert one.labels.tolist() == [2] and torch.equal(one.thumbnail, conditions.thumbnail[2:])
    assert spread.without("thumbnail").thumbnail is None and spread.to(torch.device("cpu")).augment is None
    assert math.prod(spread.select(slice(0, 0)).coords.shape) == 0
