import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import patch_diffusion as pd


def zip_folder(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def test_digits():
    digits = pd.open_images("digits")
    assert digits.pixels.shape == (1797, 1, 16, 16) and digits.num_classes == 10
    assert digits.labels.bincount().min() > 170
    assert pd.open_images("digits", resolution=8).resolution == (8, 8)
    assert pd.open_images("digits", classes=False).labels is None
    assert pd.open_images("digits", mode="RGB").channels == 3


def test_digits_are_those_of_scikit_learn():
    bundled = pytest.importorskip("sklearn.datasets").load_digits()
    digits = pd.open_images("digits", resolution=8)
    assert np.array_equal(digits.pixels[:, 0].numpy(), np.round(bundled.images * 255 / 16))
    assert np.array_equal(digits.labels.numpy(), bundled.target)


def test_folder_and_zip_give_the_same(make_folder, tmp_path):
    folder = make_folder(3, (8, 12))
    make_folder(2, (8, 12), subfolder="more")
    from_folder = pd.open_images(folder)
    from_zip = pd.open_images(zip_folder(folder, tmp_path / "pictures.zip"))
    assert from_folder.pixels.shape == (5, 3, 8, 12) and from_folder.labels is None
    assert torch.equal(from_folder.pixels, from_zip.pixels)
    first = np.asarray(Image.open(folder / "000.png")).transpose(2, 0, 1)
    assert np.array_equal(from_folder.pixels[0].numpy(), first)


def test_classes_from_subfolders(make_folder):
    folder = make_folder(2, subfolder="wolf")
    make_folder(3, subfolder="cat/tabby")
    images = pd.open_images(folder, classes=True)
    assert images.class_names == ("cat", "wolf") and images.labels.tolist() == [0, 0, 0, 1, 1]
    assert pd.open_images(folder).labels is None
    make_folder(1)
    with pytest.raises(pd.InputError, match=r"000\.png in .* is in none"):
        pd.open_images(folder, classes=True)


def test_labels_of_a_dataset_json(make_folder, tmp_path):
    folder = make_folder(3)
    labels = folder / "dataset.json"
    labels.write_text(json.dumps({"labels": [["002.png", 4], ["000.png", 0], ["001.png", 2]]}))
    images = pd.open_images(zip_folder(folder, tmp_path / "pictures.zip"))
    assert images.labels.tolist() == [0, 2, 4] and images.num_classes == 5
    assert pd.open_images(folder, classes=False).labels is None
    labels.write_text(json.dumps({"labels": None}))
    assert pd.open_images(folder).labels is None
    for content, message in (
        ('{"labels": [["000.png", 1]]}', r"no label for 2 of 3 images \(first: 001\.png\)"),
        ('{"labels": [["000.png", "one"]]}', "label of 000.png is 'one', not a class number"),
        ("[1, 2", "is not of the form"),
        ("[1, 2]", "is not of the form"),
    ):
        labels.write_text(content)
        with pytest.raises(pd.InputError, match=message):
            pd.open_images(folder)


@pytest.mark.parametrize(
    ("modes", "channels"),
    [("L", 1), ("1", 1), ("RGB", 3), ("P", 3), ("L RGB", 3), ("RGBA", 4), ("LA", 4), ("RGB RGBA", 3), ("CMYK", 3)],
)
def test_kinds_of_files(tmp_path, modes, channels):
    rgba = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    for mode in modes.split():
        picture = Image.fromarray(rgba, "RGBA").convert("RGB" if mode == "P" else "RGBA").convert(mode)
        picture.save(tmp_path / f"{mode}.{'tiff' if mode == 'CMYK' else 'png'}")
    assert pd.open_images(tmp_path).channels == channels
    assert pd.open_images(tmp_path, mode="L").channels == 1


def test_transparency_is_laid_over_white_and_said(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4), (0, 0, 255)).save(tmp_path / "b.png")
    images = pd.open_images(tmp_path)
    assert images.pixels[0].unique().tolist() == [255]
    assert images.pixels[1, :, 0, 0].tolist() == [0, 0, 255]
    assert any("1 transparent images laid over white" in note for note in images.notes)


def test_palette_colours_and_their_transparency(tmp_path):
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "a.png")
    assert pd.open_images(tmp_path).pixels[0, :, 0, 0].tolist() == [10, 20, 30]
    palette.save(tmp_path / "a.png", transparency=1)
    assert pd.open_images(tmp_path, mode="RGB").pixels[0, :, 0, 0].tolist() == [255, 255, 255]
    assert pd.open_images(tmp_path).pixels[0, :, 0, 0].tolist() == [10, 20, 30, 0]


def test_an_opaque_alpha_channel_is_left_out(make_folder, tmp_path):
    Image.new("RGBA", (4, 4), (1, 2, 3, 255)).save(tmp_path / "a.png")
    images = pd.open_images(tmp_path)
    assert images.channels == 3 and any("opaque" in note for note in images.notes)


def test_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (12, 8)).save(tmp_path / "a.jpg", exif=exif)
    assert pd.open_images(tmp_path).resolution == (12, 8)


def test_mixed_sizes_are_refused_with_count_and_fix(make_folder):
    make_folder(5, (8, 8))
    Image.new("RGB", (20, 10)).save(make_folder(0) / "odd.png")
    with pytest.raises(pd.InputError, match=r"1 of 6 images are not 8x8 .*odd\.png, 10x20\): give --resolution"):
        pd.open_images(make_folder(0))
    resized = pd.open_images(make_folder(0), resolution=(4, 6))
    assert (
        resized.resolution == (4, 6)
        and resized.notes[0] == "6 of 6 images, 6 of them cropped to its aspect, resized to 4x6"
    )


def test_resizing_crops_the_middle(tmp_path):
    picture = np.zeros((8, 24), np.uint8)
    picture[:, 8:16] = 200
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert pd.open_images(tmp_path, resolution=4).pixels.min() > 150  # nothing of the black sides


def break_file(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_broken_file_among_many_is_named_and_passed_over(make_folder):
    folder = make_folder(100)
    break_file(folder / "007.png")
    images = pd.open_images(folder)
    assert len(images) == 99
    assert any(note.startswith("skipped 007.png: ") for note in images.notes)


def test_labels_stay_with_their_images_when_one_is_passed_over(make_folder):
    folder = make_folder(100)
    (folder / "dataset.json").write_text(json.dumps({"labels": [[f"{i:03d}.png", i] for i in range(100)]}))
    break_file(folder / "007.png")
    assert pd.open_images(folder).labels.tolist() == [i for i in range(100) if i != 7]


def test_many_broken_files_are_refused(make_folder):
    folder = make_folder(50)
    break_file(folder / "007.png")
    (folder / "008.png").write_bytes(b"")
    with pytest.raises(pd.InputError, match=r"2 of 50 images cannot be used, more than the 1% .*007\.png .*008\.png"):
        pd.open_images(folder)


def test_tiny_images_are_not_blown_up(make_folder):
    folder = make_folder(1, (3, 3))
    with pytest.raises(pd.InputError, match=r"3x3 is too small to enlarge to 32x32"):
        pd.open_images(folder, resolution=32)


def test_deep_images_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(pd.InputError, match=r"deep\.png \(more than 8 bits a channel"):
        pd.open_images(tmp_path)


def test_what_is_no_data(tmp_path):
    for path, message in (
        (tmp_path / "nowhere", "there is no data at"),
        (tmp_path, "is empty"),
    ):
        with pytest.raises(pd.InputError, match=message):
            pd.open_images(path)
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(pd.InputError, match="neither a folder nor a zip"):
        pd.open_images(tmp_path / "notes.txt")
    with pytest.raises(pd.InputError, match=r"holds no images, only notes\.txt"):
        pd.open_images(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("notes.txt", "no picture")
    with pytest.raises(pd.InputError, match=r"holds no images, only notes\.txt"):
        pd.open_images(tmp_path / "a.zip")
    with pytest.raises(pd.InputError, match="one of auto, L, RGB, RGBA"):
        pd.open_images("digits", mode="HSV")
    with pytest.raises(pd.InputError, match="at least 1 pixel"):
        pd.open_images("digits", resolution=0)


def test_other_files_are_counted_and_hidden_ones_are_not(make_folder):
    folder = make_folder(2)
    for name in ("notes.txt", ".DS_Store", "__MACOSX_x.txt"):
        (folder / name).write_text("")
    images = pd.open_images(folder)
    assert len(images) == 2 and images.notes == ("1 files that are not images left aside (first: notes.txt)",)


def test_standard_deviation_is_that_of_the_encoded_pixels(images):
    encoded = images.pixels.double() / 127.5 - 1
    assert images.standard_deviation == pytest.approx(encoded.std(correction=0).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("pixels", "labels"),
    [
        (torch.zeros(2, 3, 4, 4), None),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), None),
        (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), None),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0])),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, -1])),
    ],
)
def test_what_is_no_image_set(pixels, labels):
    with pytest.raises(pd.InputError):
        pd.ImageSet(pixels, labels)
