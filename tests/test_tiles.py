import weakref
from itertools import pairwise

import pytest
import torch
from hypothesis import given, strategies as st

import patch_diffusion as pd
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.patches.coords import extended_grid
from patch_diffusion.sampling.tiles import covering, even_starts, in_tiles, shifted_starts, smooth_window
from refusal import refused


class Oracle(pd.Denoiser):
    """Remembers what it was given; what it sees is up to ``see(noisy, sigma, coords)``."""

    image_channels = 1

    def __init__(self, see, resolution=(8, 8), **options):
        super().__init__(lambda *_: None, resolution=resolution, **options)
        self.see, self.shapes, self.grids = see, [], []

    def forward(self, noisy, sigma, conditions):
        self.shapes.append(tuple(noisy.shape))
        self.grids.append(conditions.coords)
        return self.see(noisy, sigma, conditions.coords)


def gaussian(noisy, sigma, coords):
    """The denoiser of independent normal pixels of variance 0.3."""
    return 0.3 * noisy / (0.3 + sigma**2)


def own_places(noisy, sigma, coords):
    return coords.expand(len(noisy), -1, -1, -1)[:, :1].clone()


def test_starts_cover_from_end_to_end():
    for length in range(8, 60):
        for overlap in range(8):
            starts = even_starts(length, 8, overlap)
            assert starts[0] == 0 and starts[-1] == length - 8
            assert all(1 <= after - before <= 8 - overlap for before, after in pairwise(starts))


def test_windows_that_overlap_exactly_add_up_to_1():
    window = smooth_window((8, 9), 4).float()
    total = torch.zeros(16, 9)
    for top in (0, 4, 8):
        total[top : top + 8] += window
    assert torch.allclose(total[4:12, 4], torch.ones(8)) and window.min() > 0
    assert torch.equal(smooth_window((4, 6), 0), torch.ones(4, 6))


@pytest.mark.parametrize("shape", [(8, 8), (20, 13), (9, 31)])
def test_what_does_not_look_at_its_neighbours_is_the_same_in_tiles(shape):
    """Also at sizes that the network itself could not take."""
    whole = next(pd.generate(Oracle(gaussian), [3], pd.Sampling(steps=5, resolution=shape)))
    tiled = next(pd.generate(Oracle(gaussian), [3], pd.Sampling(steps=5, resolution=shape, tile=(8, 6), overlap=3)))
    assert torch.equal(whole.pixels, tiled.pixels) and tiled.pixels.shape == (1, *shape)
    assert tiled.settings["tile"] == [8, 6] and tiled.settings["overlap"] == 3


def test_tiles_keep_their_coordinates():
    """A model that sees coordinates gives the coordinate grid, stretched, extended or repeated."""
    for coords, expected in (
        ("stretch", pd.coordinate_grid(16, 20)),
        ("extend", extended_grid((16, 20), (8, 8), (-4, -6))),
    ):
        view = pd.Sampling(resolution=(16, 20), coords=coords, tile=8).view(Oracle(own_places))
        denoise = view.bind(Oracle(own_places), Conditions())
        torch.testing.assert_close(denoise(torch.zeros(2, 1, 16, 20), torch.ones(()))[1, 0], expected[0])
    oracle = Oracle(own_places)
    list(pd.generate(oracle, [0], pd.Sampling(steps=1, resolution=16, tile=8)))
    assert all(torch.equal(grid, pd.coordinate_grid(8, 8)) for grid in oracle.grids)
    inside = pd.Sampling(resolution=8, tile=4).view(Oracle(own_places))  # of a size that was trained, they are patches
    assert torch.equal(inside.grid, pd.coordinate_grid(8, 8))


def test_extended_coordinates_are_as_far_apart_as_in_training():
    grid = pd.Sampling(resolution=(8, 16), coords="extend").view(Oracle(own_places)).grid
    assert torch.allclose(grid[:, :, 4:12], pd.coordinate_grid(8, 8), atol=1e-6)
    assert grid[0, 0, 0].item() == pytest.approx(-1 - 8 / 7) and grid[0, 0, -1].item() == pytest.approx(1 + 8 / 7)
    smaller = pd.Sampling(resolution=(4, 8), coords="extend").view(Oracle(own_places)).grid
    assert torch.allclose(smaller, pd.coordinate_grid(8, 8)[:, 2:6], atol=1e-6)
    left_extended = pd.Sampling(resolution=(6, 10), coords="extend").view(Oracle(own_places), (0, 4, 6, 6)).grid
    assert torch.allclose(left_extended[:, :, 4:], pd.coordinate_grid(6, 6), atol=1e-6)


def test_the_network_never_sees_more_than_a_batch_of_tiles():
    oracle = Oracle(gaussian)
    assert len(list(pd.generate(oracle, range(3), pd.Sampling(steps=2, resolution=64, tile=8, batch=5)))) == 3
    assert {shape[1:] for shape in oracle.shapes} == {(1, 8, 8)} and max(shape[0] for shape in oracle.shapes) == 5
    view = pd.Sampling(resolution=64, tile=8, batch=512).view(oracle)
    assert view.images_at_once == 8 and pd.Sampling(resolution=64, batch=7).view(oracle).images_at_once == 7


def test_labels_go_with_their_images():
    class Classes(pd.Denoiser):
        image_channels, num_classes, label_dropout = 1, 3, 0.1

        def forward(self, noisy, sigma, conditions):
            return (conditions.labels.double() / 2 - 0.5)[:, None, None, None].expand_as(noisy).clone()

    model = Classes(lambda *_: None, resolution=(8, 8))
    pictures = [
        each.pixels.unique().tolist()
        for each in pd.generate(model, range(3), pd.Sampling(steps=2, resolution=12, tile=8))
    ]
    assert pictures == [[64], [128], [191]]


def wiener(noisy, sigma, coords):
    """The exact denoiser of a smooth random texture, as far as a tile is its own world: neighbours do not tell it."""
    height, width = noisy.shape[-2:]
    bases = [cosines(length).to(noisy) for length in (height, width)]
    frequencies = torch.arange(height)[:, None] ** 2 / height**2 + torch.arange(width) ** 2 / width**2
    power = (frequencies + 0.004) ** -1.5
    power = (power / power.mean() / 4).to(noisy)
    spectrum = bases[0] @ noisy @ bases[1].mT
    return bases[0].mT @ (spectrum * (power / (power + sigma**2))) @ bases[1]


def cosines(length):
    place = torch.arange(length, dtype=torch.float64)
    basis = torch.cos(torch.pi / length * (place + 0.5) * place[:, None]) * (2 / length) ** 0.5
    basis[0] *= 0.5**0.5
    return basis


def seams(overlap):
    """Steepness across the borders of tiles, as a ratio to that elsewhere, and where tiles begin."""
    starts = even_starts(160, 32, overlap)
    borders = {start - 1 for start in starts[1:]} | {start + 31 for start in starts[:-1]}
    across, elsewhere = [], []
    for sample in pd.generate(
        Oracle(wiener, (32, 32)), range(6), pd.Sampling(steps=12, resolution=160, tile=32, overlap=overlap)
    ):
        for image in (sample.pixels[0].float(), sample.pixels[0].float().T):
            steepness = image.diff(dim=1).abs().mean(0)
            across += [steepness[column] for column in borders]
            elsewhere += [steepness[column] for column in set(range(159)) - borders]
    return float(torch.stack(across).mean() / torch.stack(elsewhere).mean())


@pytest.mark.slow
def test_no_seams_at_the_borders_of_tiles():
    assert seams(overlap=8) == pytest.approx(1, abs=0.1)
    assert seams(overlap=0) > 1.5  # or the measure would see nothing


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"tile": 3}, "tile"),
        ({"tile": 16}, "tile"),
        ({"tile": 4, "overlap": 4}, "overlap"),
        ({"overlap": 4}, "overlap"),
        ({"coords": "repeat"}, "coords"),
        ({"coords": "strech"}, "coords"),
        ({"resolution": (8, 7)}, "resolution"),
    ],
)
def test_wrong_views_are_refused_at_once(settings, option):
    model = pd.Denoiser(pd.UNet(1, 8, (1, 2), 1), resolution=(8, 8))
    with refused(option):
        pd.generate(model, [0], pd.Sampling(**settings))


def test_coords_need_a_model_that_has_them():
    model = pd.Denoiser(pd.UNet(1, 8, (1, 2), 1, coords=False), coords=False, resolution=(8, 8))
    with refused("coords"):
        pd.generate(model, [0], pd.Sampling(coords="extend", resolution=16))
    model = pd.Denoiser(pd.UNet(1, 8, (1, 2), 1))
    with refused("coords"):
        pd.generate(model, [0], pd.Sampling(coords="extend", resolution=16))


@st.composite
def tilings(draw):
    """The shape of an image, and the shape and overlap of tiles that fit it."""
    shape = draw(st.tuples(st.integers(1, 24), st.integers(1, 24)))
    tile = tuple(draw(st.integers(1, side)) for side in shape)
    return shape, tile, draw(st.integers(0, min(tile) - 1))


@given(tilings(), st.integers(1, 3), st.integers(1, 9), st.floats(-2, 2), st.floats(-2, 2))
def test_tiles_of_any_shape_and_overlap_give_what_the_whole_gives(tiling, num, at_once, factor, slope):
    """Each pixel is covered by tiles inside of the image, and their weights add up to 1."""
    shape, tile, overlap = tiling
    places = covering(shape, tile, overlap)(num, torch.ones(()))
    assert all(0 <= top <= shape[0] - tile[0] and 0 <= left <= shape[1] - tile[1] for _, top, left in places)

    def linear(noisy, sigma, conditions):
        shown = slope * own_places(noisy, sigma, conditions.coords) + conditions.labels.view(-1, 1, 1, 1)
        return factor * noisy + shown

    grid, noisy = pd.coordinate_grid(*shape), torch.linspace(-1, 1, num * shape[0] * shape[1]).view(num, 1, *shape)
    known = Conditions(grid, torch.arange(num))
    tiled = in_tiles(linear, known, lambda *_: places, smooth_window(tile, overlap), at_once)(noisy, torch.ones(()))
    torch.testing.assert_close(tiled, linear(noisy, None, known), atol=1e-5, rtol=1e-5)


@given(st.integers(1, 40), st.data())
def test_shifted_tiles_cover_an_axis(length, data):
    size, offset = data.draw(st.integers(1, length)), data.draw(st.integers(0, 99))
    starts = shifted_starts(length, size, offset)
    assert starts[0] == 0 and starts[-1] == length - size
    assert all(0 < after - before <= size for before, after in pairwise(starts))


@given(tilings(), st.integers(1, 300))
def test_a_view_holds_as_many_numbers_at_a_time_as_its_batch(tiling, batch):
    shape, tile, overlap = tiling
    view = pd.Sampling(resolution=shape, tile=tile, overlap=overlap, batch=batch).view(Oracle(gaussian, (4, 4)))
    numbers = batch * tile[0] * tile[1]
    assert view.images_at_once == 1 or view.images_at_once * shape[0] * shape[1] <= numbers
    assert (view.images_at_once + 1) * shape[0] * shape[1] > numbers


@given(*[st.integers(1, 20)] * 4)
def test_extended_coordinates_are_those_of_training_about_the_middle(height, width, own_height, own_width):
    """Their mean is that of the image, and their distances are those in training, whatever the shapes."""
    view = pd.Sampling(resolution=(height, width), coords="extend").view(Oracle(own_places, (own_height, own_width)))
    for axis, (num, own) in enumerate([(width, own_width), (height, own_height)]):
        line = view.grid[axis].movedim(1 - axis, -1)[0]
        assert float(line.mean()) == pytest.approx(0, abs=1e-5)
        torch.testing.assert_close(line.diff(), torch.full((num - 1,), 2 / max(own - 1, 1)), atol=1e-5, rtol=1e-5)


class Held(torch.autograd.Function):
    """Half of its input, which it keeps for the backward pass; ``now`` and ``most`` count the bytes that are kept."""

    now = most = 0

    @staticmethod
    def forward(ctx, x):
        kept = x.detach().numpy().copy()  # its memory is given back when the last tensor on it is gone
        Held.now += kept.nbytes
        Held.most = max(Held.most, Held.now)
        weakref.finalize(kept, Held.freed, kept.nbytes)
        ctx.save_for_backward(torch.from_numpy(kept))
        return x / 2

    @staticmethod
    def freed(size):
        Held.now -= size

    @staticmethod
    def backward(ctx, slope):
        assert ctx.saved_tensors[0].isfinite().all()
        return slope / 2


def test_restoration_of_larger_images_keeps_no_more_of_the_network():
    """By the network's covariance, whose backward passes go through all tiles: those of one group are kept."""

    def network(x, c_noise, labels):
        return Held.apply(x)

    network.image_channels = 1
    model = pd.Denoiser(network, coords=False)
    peaks = []
    for side in (16, 48):
        Held.now = Held.most = 0
        known = pd.denoising(torch.full((1, side, side), 100, dtype=torch.uint8), noise=25)
        list(pd.edit(model, known, [0], pd.Sampling(steps=2, tile=8, batch=2), covariance="network"))
        assert Held.now == 0
        peaks.append(Held.most)
    assert peaks[0] == peaks[1] == 2 * 8 * 8 * 4
