"""What is held out follows from the images themselves: the property of the split, and the keys that it goes by."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

import patch_diffusion as pd
from image_files import write_zip
from patch_diffusion.data.held_out import hold_out
from patch_diffusion.data.keys import keys_of_rows


def images_of(numbers, groups=None):
    """An image for each number: equal numbers, equal images."""
    pixels = torch.zeros(len(numbers), 1, 2, 2, dtype=torch.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = torch.tensor(numbers) % 256, torch.tensor(numbers) // 256
    return pd.ImageSet(pixels, groups=None if groups is None else np.array(groups, np.uint64))


def numbers_of(part):
    pixels = part.batch(np.arange(len(part)))[0].long()
    return (pixels[:, 0, 0, 0] + 256 * pixels[:, 0, 0, 1]).tolist()


@given(st.lists(st.integers(0, 999), min_size=2, max_size=60), st.lists(st.integers(0, 999)), st.integers(0, 9))
def test_identical_images_are_on_one_side_and_others_move_none(numbers, others, seed):
    if len(set(numbers)) == 1:
        with pytest.raises(pd.InputError, match="all images are identical, so none can be held out"):
            hold_out(images_of(numbers), 0.1, seed)
        return
    train, held_out = (numbers_of(part) for part in hold_out(images_of(numbers), 0.1, seed))
    assert train and held_out and not set(train) & set(held_out)
    assert sorted(train + held_out) == sorted(numbers)
    below = hold_out(images_of(numbers), 0.1, seed)[0].part.below  # pyright: ignore[reportAttributeAccessIssue]
    # One side of all numbers stays, as not to hold out none.
    more = [train[0], held_out[0], *others]
    again, apart = (numbers_of(part) for part in hold_out(images_of(more), 0.1, seed, below=below))
    assert not set(again) & set(held_out) and not set(apart) & set(train)


def test_groups_are_held_out_as_a_whole():
    groups = [index // 10 for index in range(700)]
    train, held_out = (numbers_of(part) for part in hold_out(images_of(range(700), groups), 0.1, 0))
    assert len(held_out) == 70 and len(train) == 630
    assert not {number // 10 for number in train} & {number // 10 for number in held_out}
    with pytest.raises(pd.InputError, match="all images are of one group, so none can be held out"):
        hold_out(images_of(range(700), [1] * 700), 0.1, 0)


def test_of_mirrored_images_both_are_on_one_side():
    once = images_of(list(range(100)))
    both = pd.ImageSet(torch.cat([once.pixels, once.pixels.flip(-1)]), mirrored=2)
    train, held_out = hold_out(both, 0.5, 0)
    assert len(train) == len(held_out) == 100
    half = len(held_out) // 2
    pixels = held_out.batch(np.arange(len(held_out)))[0]  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(pixels[:half].flip(-1), pixels[half:])


def test_the_split_is_the_same_at_any_resolution_and_in_a_zip(make_folder, tmp_path, monkeypatch):
    folder = make_folder(20, (16, 16))
    zipped = write_zip(tmp_path / "a.zip", folder)
    first = pd.open_images(folder).content
    options: Any
    for source, options in ((folder, {"resolution": 8}), (zipped, {}), (folder, {"cache": "disk"})):
        assert np.array_equal(pd.open_images(source, **options).content, first)  # pyright: ignore[reportAttributeAccessIssue]
    assert np.array_equal(pd.open_images(folder, cache="disk").content, first)  # out of the cache
    array = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", images=array)
    expected = keys_of_rows(array)
    for source, options in (("a.npy", {}), ("a.npz", {}), ("a.npy", {"resolution": 8})):
        assert np.array_equal(pd.open_images(tmp_path / source, **options).content, expected)  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr("patch_diffusion.data.arrays.read.MOST_IN_MEMORY", 0)
    for _ in range(2):
        assert np.array_equal(pd.open_images(tmp_path / "a.npy").content, expected)
    digits = [pd.open_images("digits", resolution=side).content for side in (8, 16)]
    assert np.array_equal(*digits)


def test_images_in_python_have_keys_of_their_values():
    pictures = [Image.new("L", (8, 8), value) for value in (1, 2, 1)]
    for source in (pictures, [np.asarray(picture) for picture in pictures]):
        first, second, third = pd.open_images(source).content.tolist()
        assert first == third != second


def test_of_large_images_spans_are_read():
    images = np.zeros((3, 64, 64, 3), np.uint8)
    images[1, -1, -1, -1] = images[2, 0, 0, 0] = 1
    assert len(set(keys_of_rows(images).tolist())) == 3
