from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

import patch_diffusion as pd
from image_files import classes_of, own_cache, random_pictures, refusal, to_picture, write_folder  # noqa: F401

PICTURES = random_pictures()


class Pictures(Dataset):
    """A map-style data set whose items are made by ``item(index)``."""

    def __init__(self, item, num=20, **attributes):
        self.item, self.num = item, num
        vars(self).update(attributes)

    def __len__(self):
        return self.num

    def __getitem__(self, index):
        return self.item(index)


def plain(index):
    return to_picture(PICTURES.pixels[index])


KINDS = {
    "Pillow": plain,
    "tensor": lambda index: torch.from_numpy(PICTURES.pixels[index]),
    "array": lambda index: PICTURES.pixels[index],
    "array, channels last": lambda index: PICTURES.pixels[index].transpose(1, 2, 0),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_data_sets(kind, labelled, cache):
    item = KINDS[kind]
    data = Pictures((lambda index: (item(index), PICTURES.labels[index])) if labelled else item)
    for source in (data, [data[index] for index in range(20)]):
        images = pd.open_images(source, cache=cache)
        assert np.array_equal(images.pixels.numpy(), PICTURES.pixels)
        assert (images.labels is not None) == labelled and images.options.source == ""
        if labelled:
            assert np.array_equal(images.labels.numpy(), PICTURES.labels)
            assert pd.open_images(source, classes=False).labels is None


@pytest.mark.parametrize(
    ("label", "names", "numbers"),
    [
        (lambda index: index % 2, (), [0, 1]),
        (lambda index: np.int64(index % 2), (), [0, 1]),
        (lambda index: torch.tensor(index % 2), (), [0, 1]),
        (lambda index: "ba"[index % 2], ("a", "b"), [1, 0]),
    ],
)
def test_labels_of_any_kind(label, names, numbers):
    images = pd.open_images(Pictures(lambda index: (plain(index), label(index))))
    assert images.labels.tolist() == numbers * 10 and images.class_names == names


def test_names_of_classes_as_data_sets_have_them():
    data = Pictures(lambda index: (plain(index), index % 2), classes=["cat", "dog", "elk"])
    images = pd.open_images(data)
    assert images.class_names == ("cat", "dog") and images.num_classes == 2  # there is no elk


def test_mappings():
    data = Pictures(lambda index: {"image": plain(index), "mask": plain(19 - index), "label": index, "age": 3})
    images = pd.open_images(data)
    assert np.array_equal(images.pixels.numpy(), PICTURES.pixels) and images.labels.tolist() == list(range(20))
    other = pd.open_images(data, key="mask", labels="age")
    assert np.array_equal(other.pixels.numpy(), PICTURES.pixels[::-1]) and set(classes_of(other)) == {"3"}
    assert "item 0 (has no image 'masks', only image, mask, label, age" in refusal(data, key="masks")


def test_paths(tmp_path):
    folder = write_folder(tmp_path / "pictures", PICTURES, labels=False)
    for paths in (sorted(folder.iterdir()), sorted(map(str, folder.iterdir()))):
        assert np.array_equal(pd.open_images(paths).pixels.numpy(), PICTURES.pixels)


def test_floats_have_a_measured_range():
    images = pd.open_images(Pictures(lambda index: torch.from_numpy(PICTURES.pixels[index]) / 255))
    assert images.pixels.dtype == torch.float32 and images.codec.range == (0, 1)  # pyright: ignore[reportAttributeAccessIssue]
    half = pd.open_images(Pictures(lambda index: torch.zeros(3, 8, 8, dtype=torch.bfloat16)), range=(-1, 1))
    assert half.pixels.dtype == torch.float32


def test_options_are_those_of_files(tmp_path):
    folder = write_folder(tmp_path / "pictures", PICTURES, labels=False)
    options: Any
    for options in ({"resolution": 6}, {"resolution": (10, 5), "fit": "stretch"}, {"mode": "L"}):
        assert torch.equal(pd.open_images(Pictures(plain), **options).pixels, pd.open_images(folder, **options).pixels)  # pyright: ignore[reportAttributeAccessIssue]
    ambiguous = Pictures(lambda index: PICTURES.pixels[index][:, :3, :3])
    assert "does not tell where the channels are: give --data.layout" in refusal(ambiguous)
    assert pd.open_images(ambiguous, layout="channels_last").channels == 3


def test_several_sizes_need_a_resolution():
    data = Pictures(lambda index: np.zeros((8 + index, 8), np.uint8), num=3)
    assert "(first: item 1, 9x8): give --resolution" in refusal(data)
    assert pd.open_images(data, resolution=8).resolution == (8, 8)


def test_items_that_change_from_one_time_to_the_next_are_named():
    asked = []

    def item(index):
        asked.append(index)
        return np.zeros((8 + len(asked), 8), np.uint8)

    assert "item 0 (is a different image each time it is loaded" in refusal(Pictures(item), resolution=8)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("not a path", "No such file"),
        (None, "is a NoneType, and not a Pillow image, an array or a tensor"),
        (3, "is a int, and not a Pillow image"),
        ((np.zeros((8, 8), np.uint8), 1, 2), "has 3 elements, and is not an image or (image, label)"),
        (np.zeros(8, np.uint8), "has the shape 1 x 8: images are"),
        (np.full((8, 8), np.nan), "holds NaN or infinity"),
        (np.full((8, 8), 1j), "holds complex128"),
    ],
)
def test_items_that_are_no_images(item, message):
    assert f"item 0 ({'[Errno 2] ' if message.startswith('No') else ''}" in refusal([item])
    assert message in refusal([item])


def test_a_broken_item_is_passed_over_with_its_label():
    def item(index):
        if index == 7:
            raise RuntimeError("a broken disk")
        return to_picture(PICTURES.pixels[index % 20]), index

    images = pd.open_images(Pictures(item, num=100))
    assert classes_of(images) == [str(index) for index in range(100) if index != 7]
    assert "skipped item 7: a broken disk" in images.notes


def test_names_of_fewer_classes_than_there_are():
    data = Pictures(lambda index: (plain(index), index % 4), classes=["cat", "dog"])
    assert "the data set names 2 classes, and the label of item 3 is 3, where numbers count from 0" in refusal(data)
    assert pd.open_images(data, classes=False).labels is None


def test_what_is_called_classes_and_is_no_names():
    images = pd.open_images(Pictures(lambda index: (plain(index), index % 2), classes=2))
    assert images.num_classes == 2 and not images.class_names


def test_labels_that_some_items_have_not():
    data = Pictures(lambda index: (plain(index), None if index == 4 else 1))
    assert "has no label for 1 of 20 images (first: item 4)" in refusal(data)
    assert "has no labels: its items must be (image, label)" in refusal(Pictures(plain), classes=True)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "the data set is empty"),
        (iter([]), "a data set needs a length and items by index, which list_iterator lacks"),
        (type("Stream", (IterableDataset,), {"__iter__": None})(), "which Stream lacks"),
        (SimpleNamespace(), "which SimpleNamespace lacks"),
    ],
)
def test_what_is_no_data_set(source, message):
    assert message in refusal(source)


def test_one_picture_is_no_data_set():
    assert "which Image lacks" in refusal(Image.new("L", (8, 8)))


def test_labels_of_several_lengths():
    items = [(np.zeros((8, 8, 3), np.uint8), [0] * (1 + number % 2)) for number in range(4)]
    with pytest.raises(pd.InputError, match="not lists of several lengths: set data.classes to False"):
        pd.open_images(items)
    assert len(pd.open_images(items, classes=False)) == 4
