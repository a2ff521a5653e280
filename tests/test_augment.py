import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import patch_diffusion as pd
from patch_diffusion.config import Engine
from patch_diffusion.data.augment import Augment, _frame, _warp
from refusal import refused

SHAPES = [(1, 9, 16), (3, 16, 16), (5, 12, 7)]


def noise(num, channels=3, height=12, width=16):
    return torch.randn(num, channels, height, width, generator=torch.Generator().manual_seed(0))


def cosines(places, height, width):
    """A smooth picture at any places (..., 2), x and y in pixels, that is its own reflection at its outer pixels."""
    x, y = places[..., 0] * (math.pi / max(width - 1, 1)), places[..., 1] * (math.pi / max(height - 1, 1))
    waves = [(1, 0), (0, 1), (2, 1), (1, 3), (width // 4, 1), (2, height // 4)]
    return sum(torch.cos(k * x) * torch.cos(m * y) / (1 + k + m) for k, m in waves)


def pixel_places(height, width):
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    return torch.stack([x, y], dim=-1)


def rotation(angle):
    return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()


def test_a_flip_of_coordinates_is_the_mirrored_grid_and_coordinates_stay_with_the_frame():
    grids = pd.coordinate_grid(6, 9).repeat(4, 1, 1, 1)
    flipped, labels = Augment(flip=1.0)(grids, 0, 0, range(4))
    assert labels is None and torch.equal(flipped[:, 0], -grids[:, 0]) and torch.equal(flipped[:, 1], grids[:, 1])
    patch = pd.random_patches(flipped, (3, 4), generator=torch.Generator().manual_seed(0))
    assert torch.equal(patch.pixels[:, 0], -patch.coords[:, 0]) and torch.equal(patch.pixels[:, 1], patch.coords[:, 1])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_flips_keep_the_type_and_happen_as_often_as_asked(dtype):
    images = torch.arange(2 * 3).reshape(1, 1, 2, 3).to(dtype).repeat(4000, 1, 1, 1)
    result, _ = Augment(flip=0.3)(images, 0, 0, range(4000))
    same = (result.int() == images.int()).flatten(1).all(1)
    mirrored = (result.int() == images.int().flip(-1)).flatten(1).all(1)
    assert result.dtype == dtype and (same ^ mirrored).all()
    assert mirrored.float().mean().item() == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / 4000))


def test_nothing_asked_for_gives_the_images_themselves():
    images = noise(2)
    result, labels = Augment()(images, 0, 0, range(2))
    assert result is images and labels is None and Augment().channels == 0


@pytest.mark.parametrize(("channels", "height", "width"), SHAPES)
def test_without_resampling_every_pixel_moves_to_a_whole_place(channels, height, width):
    images = noise(200, channels, height, width)
    result, labels = Augment(p=1.0, resample=False)(images, 0, 0, range(200))
    assert labels.shape == (200, 9) and (labels[:, 2:7] == 0).all()
    across, down = labels[:, 7] * width / 8, labels[:, 8] * height / 8
    torch.testing.assert_close(torch.stack([across, down]), torch.stack([across, down]).round(), atol=1e-5, rtol=0)
    assert across.round().unique().numel() > 3 and down.round().unique().numel() > 3
    for image, altered, label, x, y in zip(images, result, labels, across, down, strict=True):
        expected = image.numpy()
        expected = expected[:, :, ::-1] if label[0] else expected
        expected = expected[:, ::-1] if label[1] else expected
        pad = np.pad(expected, [(0, 0), (height - 1, height - 1), (width - 1, width - 1)], mode="reflect")
        top, left = height - 1 - round(y.item()), width - 1 - round(x.item())
        assert np.array_equal(altered.numpy(), pad[:, top : top + height, left : left + width])


@pytest.mark.parametrize(("height", "width"), [(24, 40), (32, 32)])
def test_a_resampled_image_is_the_picture_at_the_places_that_the_label_says(height, width):
    places, centre = pixel_places(height, width), torch.tensor([(width - 1) / 2, (height - 1) / 2]).double()
    images = cosines(places, height, width).float().expand(40, 2, -1, -1)  # pyright: ignore[reportAttributeAccessIssue]
    result, labels = Augment(p=1.0)(images, 0, 0, range(40))
    bilinear = []
    for altered, label in zip(result, labels.double(), strict=True):
        a0, a1, a2, cos, sin, u, v, a6, a7 = label.tolist()
        flip = torch.diag(torch.tensor([1 - 2 * a0, 1 - 2 * a1])).double()
        shift = torch.tensor([a6 * width / 8, a7 * height / 8]).double()
        found = []
        for stretch in (math.hypot(u, v), -math.hypot(u, v)):  # the label is the same for both
            along = rotation(-math.atan2(v, u))
            factors = torch.tensor([2 ** (0.2 * stretch), 2 ** (-0.2 * stretch)]).double()
            forward = (
                along @ torch.diag(factors) @ along.T @ rotation(-math.atan2(sin, cos + 1)) * 2 ** (0.2 * a2) @ flip
            )
            sources = (places - centre - shift) @ forward.inverse().T + centre
            expected = cosines(sources, height, width)
            grid = ((sources - centre) / centre)[None].float()
            plain = F.grid_sample(images[:1], grid, padding_mode="reflection", align_corners=True)[0, 0]
            found.append(((altered[0] - expected).square().mean().sqrt(), (plain - expected).square().mean().sqrt()))
        error, of_bilinear = min(found)
        assert error < 0.02 * images.std()
        bilinear.append((error, of_bilinear))
    ours, plain = torch.tensor(bilinear).mean(0)
    assert ours < plain / 2  # why it is not simply interpolated


def moved_images(monkeypatch, augment, num, height, width):
    """Labels (num, 9), and the maps (num, 2, 2) and shifts (num, 2) that images are moved by after their flips."""
    moves = []

    def frame(forward, shift, height, width):
        moves.extend([forward, shift])
        return torch.zeros(num, 2, 3)

    monkeypatch.setattr("patch_diffusion.data.augment._frame", frame)
    _, labels = augment(torch.zeros(num, 1, height, width), 0, 0, range(num))
    return labels.double(), *moves


@pytest.mark.parametrize("published", [True, False])
def test_the_map_of_each_label_is_the_published_one(monkeypatch, published):
    """R(-r) S R(r) after R(-a3) after scaling, where r is 0 for half; runs made before have R(r) S R(-r)."""
    labels, maps, shifts = moved_images(monkeypatch, Augment(p=0.5, published=published), 2000, 12, 16)
    for label, found, shift in zip(labels[:200], maps, shifts, strict=False):
        _, _, a2, cos, sin, u, v, a6, a7 = label.tolist()
        turn = rotation(math.atan2(v, u) * (1 if published else -1))
        turned = rotation(-math.atan2(sin, cos + 1)) * 2 ** (0.2 * a2)
        either = []  # a stretch and one by the inverse along the opposite axis have the same label
        for a5 in (math.hypot(u, v), -math.hypot(u, v)):
            stretch = torch.diag(torch.tensor([2 ** (0.2 * a5), 2 ** (-0.2 * a5)])).double()
            either.append((found - turn.T @ stretch @ turn @ turned).abs().max())
        assert min(either) < 1e-6
        torch.testing.assert_close(shift, torch.tensor([a6 * 16 / 8, a7 * 12 / 8]).double(), atol=1e-5, rtol=0)
    stretched = labels[:, 5] != 0
    level = (labels[stretched, 6] == 0).double().mean().item()
    assert level == pytest.approx(0.5 if published else 0.0, abs=5 * math.sqrt(0.25 / 1000))


def test_what_becomes_too_fine_for_the_pixels_fades():
    wave = torch.cos(0.8 * math.pi * torch.arange(64)).expand(1, 1, 64, 64)
    smaller = _frame(torch.eye(2).double()[None] * 0.6, torch.zeros(1, 2).double(), 64, 64)
    larger = _frame(torch.eye(2).double()[None] * 1.25, torch.zeros(1, 2).double(), 64, 64)
    assert _warp(wave, smaller.float()).std() < 0.1 * wave.std()
    assert _warp(wave, larger.float()).std() > 0.8 * wave.std()


def test_a_constant_image_stays_constant():
    result, _ = Augment(p=1.0)(torch.full((8, 3, 1, 13), -0.4), 0, 0, range(8))
    torch.testing.assert_close(result, torch.full((8, 3, 1, 13), -0.4))


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_zeros_are_told_of_untouched_images_and_of_no_others(channels):
    images = noise(300, channels)
    result, labels = Augment(p=0.2, colour=True)(images, 0, 0, range(300))
    altered = (result != images).flatten(1).any(1)
    assert labels.shape == (300, 15) == (300, Augment(p=0.2, colour=True).channels)
    assert torch.equal(altered, (labels != 0).any(1)) and 50 < altered.sum() < 290


@pytest.mark.slow
def test_each_alteration_is_as_frequent_and_as_large_as_published():
    num, p = 20_000, 0.3
    _, labels = Augment(p=p, colour=True)(torch.zeros(num, 3, 1, 1), 0, 0, range(num))
    shares = [0.5, p / 2, p, p, p, p, p / 2, p, p, p, p, p / 2, p, p, p]  # the axis of a stretch is turned for half
    for column, share in enumerate(shares):
        values = labels[:, column][labels[:, column] != 0]
        assert len(values) / num == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / num)), column
        if column in (2, 7, 8, 9, 10, 14):
            assert values.mean().item() == pytest.approx(0, abs=5 / math.sqrt(len(values)))
            assert values.square().mean().item() == pytest.approx(1, abs=5 * math.sqrt(2 / len(values)))
        if column in (3, 12):  # cos - 1 of an angle that is anywhere
            assert values.mean().item() == pytest.approx(-1, abs=5 * math.sqrt(0.5 / len(values)))
        if column in (4, 13):
            assert values.mean().item() == pytest.approx(0, abs=5 * math.sqrt(0.5 / len(values)))
        if column in (0, 1, 11):
            assert (values == 1).all()
    untouched = 0.5 * (1 - p / 2) * (1 - p) ** 4 * (1 - p / 2) * (1 - p) ** 4
    share = (labels == 0).all(1).double().mean().item()
    assert share == pytest.approx(untouched, abs=5 * math.sqrt(untouched / num))
    chosen = labels != 0
    kinds = [chosen[:, column].double() for column in (0, 1, 2, 3, 5, 7, 9, 10, 11, 12, 14)]
    for one, other in itertools.combinations(kinds, 2):
        assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 5 / math.sqrt(num)


def test_colours_are_those_of_ada():
    images = noise(40)
    _, without = Augment(p=1.0, resample=False)(images, 0, 0, range(40))
    moved, _ = Augment(p=1.0, resample=False)(images, 0, 0, range(40))
    result, labels = Augment(p=1.0, resample=False, colour=True)(images, 0, 0, range(40))
    assert torch.equal(labels[:, :9], without)
    axis = torch.full((3,), 1 / math.sqrt(3)).double()
    x, y, z = axis.tolist()
    cross, grey = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]]).double(), torch.outer(axis, axis)
    for before, after, (b, c, turned_over, cos, sin, s) in zip(moved, result, labels[:, 9:].tolist(), strict=True):
        hue = torch.matrix_exp(math.atan2(sin, cos + 1) * cross)
        matrix = (grey + (torch.eye(3) - grey) * 2**s) @ hue @ (torch.eye(3) - 2 * turned_over * grey) * 2 ** (c / 2)
        expected = torch.einsum("ij,jhw->ihw", matrix, before.double() + 0.2 * b)
        torch.testing.assert_close(after.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 5])
def test_other_channels_have_brightness_and_contrast(channels):
    images = noise(40, channels)
    moved, _ = Augment(p=1.0, resample=False)(images, 0, 0, range(40))
    result, labels = Augment(p=1.0, resample=False, colour=True)(images, 0, 0, range(40))
    assert (labels[:, 11:] == 0).all() and (labels[:, 9:11] != 0).all()
    b, c = labels[:, 9:11, None, None, None].unbind(1)
    torch.testing.assert_close(result, (moved + 0.2 * b) * 2 ** (c / 2))


@pytest.mark.parametrize("slots", [range(8), range(8, 24), range(3, 11)])
def test_an_image_does_not_depend_on_the_others_of_its_batch(slots):
    augment, images = Augment(flip=0.5, p=0.5, colour=True), noise(24)
    whole, labels = augment(images, 1, 2, range(24))
    part, part_labels = augment(images[slots.start : slots.stop], 1, 2, slots)
    assert torch.equal(part_labels, labels[slots.start : slots.stop])
    torch.testing.assert_close(part, whole[slots.start : slots.stop], atol=1e-5, rtol=1e-5)


def test_the_seed_and_the_step_say_it_all():
    images = noise(16)
    augment = Augment(flip=0.5, p=0.5)
    first, again = augment(images, 0, 0, range(16)), augment(images, 0, 0, range(16))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    for seed, step in ((1, 0), (0, 1)):
        assert not torch.equal(first[1], augment(images, seed, step, range(16))[1])


def test_a_plain_flip_is_not_told():
    images = noise(200)
    _, labels = Augment(p=0.2)(images, 0, 0, range(200))
    flipped, same = Augment(flip=1.0, p=0.2)(images, 0, 0, range(200))
    untouched = (labels == 0).all(1)
    assert torch.equal(labels, same) and torch.equal(flipped[untouched], images[untouched].flip(-1))


@pytest.mark.slow
def test_training_alters_each_image_alike_in_whichever_part_of_the_batch(make_trainer):
    def loss(name, augment, **options):
        trainer = make_trainer(name, network={"augment_channels": augment.channels}, augment=augment, **options)
        return trainer.train_step()[1].item()

    augment = Augment(flip=0.5, p=0.5, colour=True)
    whole = loss("whole", augment)
    assert loss("parts", augment, engine=Engine(device="cpu", accumulation=2)) == pytest.approx(whole, rel=1e-5)
    assert loss("plain", Augment()) != loss("flipped", Augment(flip=1.0)) != pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"flip": 1.5}, "data.augment.flip"),
        ({"p": -0.1}, "data.augment.p"),
        ({"p": float("nan")}, "data.augment.p"),
        ({"colour": True}, "data.augment.colour"),
        ({"flip": 0.5, "resample": False}, "data.augment.resample"),
    ],
)
def test_what_is_refused(options, option):
    with refused(option):
        Augment(**options)


def test_what_cannot_be_altered():
    with pytest.raises(ValueError, match="encode them first"):
        Augment(p=0.1)(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), 0, 0, range(2))
    with pytest.raises(ValueError, match="not those of the slots"):
        Augment(p=0.1)(torch.zeros(2, 3, 4, 4), 0, 0, range(3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_and_nothing_waits_for_it():
    augment, images = Augment(flip=0.5, p=0.5, colour=True), noise(32)
    expected, labels = augment(images, 0, 0, range(32))
    there = images.cuda()
    augment(there, 0, 0, range(32))
    torch.cuda.set_sync_debug_mode("error")
    try:
        result, told = augment(there, 0, 0, range(32))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(told.cpu(), labels)
    torch.testing.assert_close(result.cpu(), expected, atol=1e-4, rtol=1e-4)
