import json

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

import patch_diffusion as pd
from patch_diffusion.data import small as module
from patch_diffusion.data.held_out import hold_out
from patch_diffusion.data.latents.codec import LatentCodec
from patch_diffusion.data.latents.folder import LatentSet
from patch_diffusion.data.small import make_small, small_images, small_shape
from refusal import refused


@pytest.mark.parametrize(("large", "small"), [((33, 48), (8, 12)), ((64, 64), (16, 16)), ((17, 9), (16, 3))])
def test_a_place_shows_the_same_before_and_after(large, small):
    """Of an image whose values are its coordinates; only outer pixels see no further than the image."""
    made = make_small(pd.coordinate_grid(*large)[None], small)[0]
    assert made[:, 1:-1, 1:-1].allclose(pd.coordinate_grid(*small)[:, 1:-1, 1:-1], atol=0.05)
    symmetric = make_small(pd.coordinate_grid(65, 65)[None], (17, 17))[0]
    assert symmetric[:, 1:-1, 1:-1].allclose(pd.coordinate_grid(17, 17)[:, 1:-1, 1:-1], atol=1e-5)


def test_no_aliasing_and_nothing_lost():
    fine = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 2.0 - 1
    assert make_small(fine[None, None], (16, 16))[..., 1:-1, 1:-1].abs().max() < 0.02
    assert make_small(torch.full((2, 3, 31, 45), 0.7), (8, 12)).allclose(torch.full((2, 3, 8, 12), 0.7))
    assert make_small(torch.rand(1, 1, 9, 9), (1, 1)).shape == (1, 1, 1, 1)


def test_strips_of_a_large_image_make_the_same(monkeypatch):
    image = torch.randint(0, 256, (2, 3, 70, 50), dtype=torch.uint8)
    whole = make_small(image, (16, 12))
    monkeypatch.setattr(module, "_VALUES_AT_ONCE", 1000)
    assert make_small(image, (16, 12)).allclose(whole, atol=1e-3)


@given(st.integers(1, 8), st.integers(20, 90), st.integers(20, 90), st.sampled_from([1, 2, 4]))
def test_shapes(multiple, height, width, stride):
    side = multiple * stride
    if side >= min(height, width):
        with refused("patches.context"):
            small_shape(side, (height, width), stride)
        return
    small = small_shape(side, (height, width), stride)
    assert min(small) == side and all(length % stride == 0 for length in small)
    assert (small[0] <= small[1]) == (height <= width) or side == max(small)
    assert abs(max(small) - side * max(height, width) / min(height, width)) <= stride


def test_a_side_that_does_not_suit_the_network():
    with refused("patches.context"):
        small_shape(6, (32, 32), 4)


def test_small_images_are_those_of_the_images(images):
    train, held_out = hold_out(images, 0.25, seed=3)
    for part in (train, held_out):
        small = small_images(part, (4, 6))
        chosen = np.arange(5)
        pixels, labels = small.batch(chosen)
        whole, expected = part.batch(chosen)  # pyright: ignore[reportAttributeAccessIssue]
        assert pixels.dtype == torch.uint8 and torch.equal(labels, expected) and len(small) == len(part)
        assert torch.equal(pixels, make_small(whole, (4, 6)).round().to(torch.uint8))


def test_they_are_made_once_for_a_file(tmp_path, monkeypatch):
    path = tmp_path / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (5, 24, 32, 3), dtype=np.uint8))
    first = small_images(pd.open_images(path), (6, 8))
    assert first.file is not None and first.file.exists()

    def never(*_):
        raise AssertionError("made again")

    with monkeypatch.context() as watched:
        watched.setattr(module, "make_small", never)
        assert torch.equal(small_images(pd.open_images(path), (6, 8)).pixels, first.pixels)
    np.save(path, np.zeros((5, 24, 32, 3), np.uint8))
    assert not small_images(pd.open_images(path), (6, 8)).pixels.any()
    assert json.loads((first.file.parent / "facts.json").read_text())["key"]["small"] == [6, 8]


def test_floats_stay_floats():
    array = np.random.default_rng(0).normal(size=(5, 1, 16, 16)).astype(np.float32)
    small = small_images(pd.open_images(array), (4, 4))
    assert small.pixels.allclose(make_small(torch.from_numpy(array), (4, 4)))


def test_latents_are_refused():
    codec = LatentCodec((0.0,) * 4, (1.0,) * 4, posterior=False, factor=8, vae="")
    with refused("patches.context"):
        small_images(LatentSet(torch.zeros(3, 4, 8, 8), codec=codec), (4, 4))
