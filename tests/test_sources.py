import errno
import json
import os
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import patch_diffusion as pd
from image_files import (  # noqa: F401
    cut_in_half,
    encoded,
    own_cache,
    random_pictures,
    refusal,
    to_picture,
    write_folder,
    write_shard,
    write_zip,
)
from needs import need
from patch_diffusion.config import Data
from patch_diffusion.config_dict import from_dict, to_dict
from patch_diffusion.data.files import decode, folders
from patch_diffusion.data.sources import find_images


@pytest.mark.slow
def test_digits():
    digits = pd.open_images("digits")
    assert digits.pixels.shape == (1797, 1, 16, 16) and digits.num_classes == 10
    assert digits.labels.bincount().min() > 170
    assert pd.open_images("digits", resolution=8).resolution == (8, 8)
    assert pd.open_images("digits", classes=False).labels is None
    assert pd.open_images("digits", mode="RGB").channels == 3
    assert pd.open_images("digits", range=(0, 510)).codec.range == (0, 510)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
def test_digits_are_those_of_scikit_learn():
    bundled = need("sklearn.datasets", "demo").load_digits()
    digits = pd.open_images("digits", resolution=8)
    assert np.array_equal(digits.pixels[:, 0].numpy(), np.round(bundled.images * 255 / 16))
    assert np.array_equal(digits.labels.numpy(), bundled.target)


PICTURES = random_pictures(num=500)


def as_folder(path):
    return write_folder(path, PICTURES), {}


def as_sub_folders(path):
    """In the order of the classes, and so not in that of the others."""
    for label in range(5):
        chosen = PICTURES.labels == label
        pictures = random_pictures(0)
        pictures.pixels, pictures.labels = PICTURES.pixels[chosen], PICTURES.labels[chosen]
        write_folder(path / f"{label}", pictures, labels=False)
    return path, {"classes": True}


def as_csv(path):
    folder = write_folder(path, PICTURES, labels=False)
    rows = [f"{index:05d}.png,{label}" for index, label in enumerate(PICTURES.labels)]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]))
    return folder, {"labels": "labels.csv"}


def as_zip(path):
    return write_zip(path.with_suffix(".zip"), write_folder(path, PICTURES)), {}


def as_npy(path):
    np.save(path.with_suffix(".npy"), PICTURES.pixels)
    np.save(path.with_suffix(".labels.npy"), PICTURES.labels)
    return path.with_suffix(".npy"), {"labels": str(path.with_suffix(".labels.npy"))}


def as_npy_of_channels_last(path):
    source, options = as_npy(path)
    np.save(source, np.ascontiguousarray(PICTURES.pixels.transpose(0, 2, 3, 1)))
    return source, options


def as_npz(path):
    np.savez_compressed(path.with_suffix(".npz"), images=PICTURES.pixels, labels=PICTURES.labels)
    return path.with_suffix(".npz"), {}


def as_hdf5(path):
    with need("h5py", "data").File(path.with_suffix(".h5"), "w") as file:
        file.create_dataset("a/images", data=PICTURES.pixels, chunks=(7, 3, 6, 8), compression="gzip")
        file["labels"] = PICTURES.labels
    return path.with_suffix(".h5"), {}


def as_zarr(path):
    group = need("zarr", "data", minversion="3").open_group(str(path.with_suffix(".zarr")), mode="w")
    group.create_array("x", shape=PICTURES.pixels.shape, dtype="uint8", chunks=(7, 3, 6, 8))[:] = PICTURES.pixels
    group.create_array("y", shape=PICTURES.labels.shape, dtype="int64")[:] = PICTURES.labels
    return path.with_suffix(".zarr"), {}


def as_table(path):
    datasets = need("datasets", "data")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=5)})
    columns = {"image": [to_picture(pixels) for pixels in PICTURES.pixels], "label": PICTURES.labels.tolist()}
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(path))
    return f"hf:{path}", {}


def as_shards(path):
    for start in range(0, 500, 150):
        members = [
            (f"{index:05d}.{ending}", content)
            for index in range(start, min(start + 150, 500))
            for ending, content in (
                ("png", encoded(PICTURES.pixels[index])),
                ("cls", str(PICTURES.labels[index]).encode()),
            )
        ]
        write_shard(path / f"{start:03d}.tar", members)
    return f"wds:{path}/*.tar", {}


def as_data_set(path):
    return [(to_picture(pixels), label) for pixels, label in zip(PICTURES.pixels, PICTURES.labels, strict=True)], {}


SOURCES = [
    as_folder,
    as_sub_folders,
    as_csv,
    as_zip,
    as_npy,
    as_npy_of_channels_last,
    as_npz,
    as_hdf5,
    as_zarr,
    as_table,
    as_shards,
    as_data_set,
]


@pytest.mark.slow
@pytest.mark.parametrize("write", SOURCES)
@pytest.mark.parametrize("cache", ["auto", "memory", "disk"])
def test_every_source_gives_the_same(write, cache, tmp_path):
    source, options = write(tmp_path / "pictures")
    order = np.argsort(PICTURES.labels, kind="stable") if write is as_sub_folders else np.arange(500)
    for _ in range(2):
        images = pd.open_images(source, cache=cache, **options)
        assert isinstance(images, pd.ImageSet) and images.pixels.dtype == torch.uint8
        assert np.array_equal(images.pixels.numpy(), PICTURES.pixels[order])
        assert np.array_equal(images.labels.numpy(), PICTURES.labels[order])
        assert images.num_classes == 5 and images.codec.range == (0, 255)  # pyright: ignore[reportAttributeAccessIssue]
        batch, labels = images.batch(np.array([499, 3, 3]))
        assert np.array_equal(batch.numpy(), PICTURES.pixels[order][[499, 3, 3]]) and len(labels) == 3


@pytest.mark.slow
def test_sub_folders_that_could_be_classes_are_told_of(tmp_path):
    folder, _ = as_sub_folders(tmp_path / "pictures")
    (note,) = [note for note in pd.open_images(folder).notes if "sub-folders" in note]
    assert note.startswith("there are 5 sub-folders: with --data.classes True")
    for classes in (True, False):
        assert not any("sub-folders" in note for note in pd.open_images(folder, classes=classes).notes)


@pytest.mark.slow
@pytest.mark.parametrize("write", SOURCES)
def test_every_source_is_resized_to_the_same(write, tmp_path):
    source, options = write(tmp_path / "pictures")
    order = np.argsort(PICTURES.labels, kind="stable") if write is as_sub_folders else np.arange(500)
    expected = pd.open_images(as_folder(tmp_path / "folder")[0], resolution=4)
    images = pd.open_images(source, resolution=4, **options)
    assert torch.equal(images.pixels, expected.pixels[torch.from_numpy(order)])  # pyright: ignore[reportAttributeAccessIssue]


def test_a_run_starts_from_stored_options(tmp_path):
    """A field of the config is an argument of `open_images`, and what was asked for is stored and asked for again."""
    np.savez(tmp_path / "a.npz", x=PICTURES.pixels, other=PICTURES.pixels[::-1], y=PICTURES.labels)
    given = {
        "resolution": (4, 6),
        "fit": "stretch",
        "range": (0, 200),
        "labels": "y",
        "key": "other",
        "layout": "channels_first",
        "cache": "memory",
    }
    images = pd.open_images(tmp_path / "a.npz", **given)
    stored = from_dict(json.loads(json.dumps({"data": to_dict(pd.Config(data=images.options))["data"]}))).data
    assert stored == images.options == Data(str(tmp_path / "a.npz"), **given)
    again = pd.open_images(
        **{name: value for name, value in vars(stored).items() if name not in ("augment", "held_out")}
    )
    assert torch.equal(again.pixels, images.pixels) and again.codec == images.codec  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
def test_a_data_set_that_has_shrunk_is_not_continued_on(tmp_path, make_trainer):
    source, _ = as_folder(tmp_path / "pictures")
    make_trainer(images=pd.open_images(source), network={"num_classes": 5}).fit(steps=1)
    (source / "00499.png").unlink()
    with pytest.raises(pd.InputError, match=r"have changed since .* was trained \(499 images now, 500 then\)"):
        make_trainer(images=pd.open_images(source), network={"num_classes": 5})


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["crop", "bucket"])
def test_what_was_opened_can_be_trained_on(tmp_path, make_trainer, fit):
    folder = tmp_path / "pictures"
    for height, width in ((32, 32), (16, 64)):
        pictures = random_pictures(8, size=(height, width), channels=1, dtype=np.uint16)
        write_folder(folder / f"{height}", pictures, labels=False)
    images = pd.open_images(folder, resolution=32, fit=fit, classes=True, cache="disk")
    trainer = make_trainer(images=images)
    assert all(torch.isfinite(trainer.train_step()[1]) for _ in range(3))


def test_hidden_and_other_files_are_left_aside(make_folder, tmp_path):
    folder = make_folder(2)
    for name in ("notes.txt", "more.md", ".DS_Store", "__MACOSX_x.txt"):
        (folder / name).write_text("")
    (folder / ".hidden").mkdir()
    (folder / "000.png").rename(folder / ".hidden" / "000.png")
    for source in (folder, write_zip(tmp_path / "a.zip", folder)):
        images = pd.open_images(source)
        assert len(images) == 1
        assert images.notes == ("skipped 2 files: not images (first: more.md)",)


def test_links_to_folders_are_followed_once(make_folder, tmp_path):
    folder = make_folder(2)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a").symlink_to(folder)
    (folder / "loop").symlink_to(tmp_path / "links")
    assert len(pd.open_images(tmp_path / "links")) == 2


def test_what_is_no_data(tmp_path):
    assert "there is no data at" in refusal(tmp_path / "nowhere")
    assert refusal(tmp_path).endswith("is empty: give a folder or a zip of images")
    (tmp_path / "notes.txt").write_text("no picture")
    assert "neither a folder nor a zip of images, nor an array" in refusal(tmp_path / "notes.txt")
    assert "holds no images, only notes.txt: give a folder or a zip" in refusal(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("notes.txt", "no picture")
    assert "holds no images, only notes.txt: give a folder or a zip" in refusal(tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("a.npy", "give the array itself"),
        ("a.h5", "give the file itself"),
        ("a.tar", "give the shards as wds:FOLDER/*.tar"),
        ("a.parquet", "give the data set as hf:FOLDER"),
        ("a.zip", "unpack it first"),
        ("IMG_0.HEIC", "not a kind of image that is read; convert them to PNG, TIFF or .npy"),
        ("vol.nii.gz", "not a kind of image that is read; convert them to PNG, TIFF or .npy"),
        ("a.dcm", "not a kind of image that is read; convert them to PNG, TIFF or .npy"),
        (
            "IM0001",
            "names without an ending, such as .png, are not taken for images; DICOM is converted to PNG, TIFF or .npy",
        ),
    ],
)
def test_a_folder_of_something_else_says_what_to_give(tmp_path, name, hint):
    (tmp_path / name).write_text("")
    assert refusal(tmp_path) == f"{tmp_path} holds no images, only {name}: {hint}"


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "C:\\evil.png", "..\\evil.png"])
def test_zips_that_point_out_of_themselves(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good.png", encoded(PICTURES.pixels[0]))
        archive.writestr(name, encoded(PICTURES.pixels[1]))
    path = tmp_path / "a.zip"
    assert refusal(path) == f"{path} has an entry that points out of it, {name}: make it anew"


def test_zips_that_hold_zips(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1.zip", b"")
        archive.writestr("2.zip", b"")
    assert refusal(tmp_path / "a.zip").endswith("holds no images, only 1.zip, ...: unpack it first")


def test_zips_with_a_password(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", encoded(PICTURES.pixels[0]))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    assert refusal(path) == f"{path} needs a password for a.png: unpack it, give the folder"


@pytest.mark.parametrize("places", [["builtins.open", "io.open"], ["io.open"]])
def test_a_zip_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch, places):
    path, _ = as_zip(tmp_path / "pictures")

    def refuse(file, *rest, opened=open, **options):
        if str(file) == str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return opened(file, *rest, **options)

    for place in places:
        monkeypatch.setattr(place, refuse)
    assert refusal(path) == f"cannot read {path}: Permission denied"


def test_damaged_zips(tmp_path):
    path, _ = as_zip(tmp_path / "pictures")
    content = path.read_bytes()
    cut_in_half(path)
    assert refusal(path) == f"{path} is damaged: it is no complete zip"
    place = content.index(b"PK\1\2")
    path.write_bytes(content[:place] + b"xxxx" + content[place + 4 :])
    assert refusal(path).startswith(f"{path} is damaged: ")
    content = bytearray(content)
    content[content.index(b"IDAT") + 20] ^= 255
    path.write_bytes(content)
    assert "skipped 00000.png: " in " ".join(pd.open_images(path).notes)


def test_zips_with_a_name_twice(tmp_path):
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        warnings.simplefilter("ignore")
        for index in range(2):
            archive.writestr("a.png", encoded(PICTURES.pixels[index]))
    images = pd.open_images(tmp_path / "a.zip")
    assert np.array_equal(images.pixels.numpy(), PICTURES.pixels[1:2])
    assert "1 entries of the zip have the name of another one: the last one of a name is used" in images.notes


@pytest.mark.skipif(
    os.name == "nt" or os.geteuid() == 0, reason="root may read every file, and so may everybody on Windows"
)
def test_folders_that_may_not_be_looked_into(make_folder):
    folder = make_folder(2, subfolder="closed")
    (folder / "closed").chmod(0)
    try:
        assert "cannot look into" in refusal(folder)
    finally:
        (folder / "closed").chmod(0o700)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "HSV"}, "data.mode is one of auto, L, RGB, RGBA, RGB16, not 'HSV'"),
        ({"fit": "squeeze"}, "data.fit is one of crop, stretch, bucket, multiples, not 'squeeze'"),
        ({"layout": "last"}, "data.layout is one of auto, channels_first, channels_last, not 'last'"),
        ({"cache": "tape"}, "data.cache is one of auto, memory, disk, not 'tape'"),
        ({"resolution": 0}, "of at least 1 pixel, not 0"),
        ({"resolution": (8, 0)}, "of at least 1 pixel, not (8, 0)"),
        ({"resolution": (8, 8, 3)}, "data.resolution is a side, or height and width"),
        ({"resolution": 8.5}, "data.resolution is a side, or height and width"),
        ({"resolution": "8"}, "data.resolution is a side, or height and width"),
        ({"range": (1, 1)}, "data.range goes from a lower to a higher value, not from (1, 1)"),
        ({"labels": "a", "classes": False}, "data.classes False ignores them: give one"),
        ({"fit": "stretch"}, "data.fit stretch needs data.resolution"),
    ],
)
def test_options_that_are_none(options, message):
    assert message in refusal("digits", **options)


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (lambda path: "digits", ("labels", "key", "layout")),
        (lambda path: as_folder(path)[0], ("key", "layout")),
        (lambda path: as_zip(path)[0], ("key", "layout")),
        (lambda path: as_shards(path)[0], ("layout",)),
        (lambda path: PICTURES.pixels, ("labels", "key")),
    ],
)
def test_an_option_without_meaning_is_refused(write, options, tmp_path):
    source = write(tmp_path / "pictures")
    for name in options:
        value = "channels_last" if name == "layout" else "a"
        assert f"data.{name} has no meaning for" in refusal(source, **{name: value})


def test_pairs_may_be_lists():
    images = pd.open_images("digits", resolution=[8, 12], range=[0, 510])
    assert images.options == Data("digits", (8, 12), range=(0, 510)) and images.resolution == (8, 12)


def test_digits_are_not_fitted():
    assert "data.fit bucket has no meaning for the digits" in refusal("digits", resolution=16, fit="bucket")


def test_files_can_be_walked_over(tmp_path):
    for source in (as_folder(tmp_path / "pictures")[0], tmp_path / "pictures.zip"):
        if source.suffix:
            write_zip(source, tmp_path / "pictures")
        with find_images(Data(str(source))) as found:
            assert [file.name for file in found.files][:2] == ["00000.png", "00001.png"]
            assert found.labels is not None
            numbers, names = found.labels
            assert np.array_equal(numbers, PICTURES.labels) and names == ()
            with found.files[3].open() as stream, Image.open(stream) as image:  # pyright: ignore[reportGeneralTypeIssues]
                assert np.array_equal(np.asarray(image).transpose(2, 0, 1), PICTURES.pixels[3])
    for source in ("digits", as_npy(tmp_path / "a")[0]):
        with pytest.raises(pd.InputError, match="does not consist of files"), find_images(Data(str(source))):
            pass


def test_standard_deviation_is_that_of_the_encoded_pixels(images):
    encoded_pixels = images.pixels.double() / 127.5 - 1
    assert images.standard_deviation == pytest.approx(encoded_pixels.std(correction=0).item(), rel=1e-6)


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


def test_the_deviation_of_large_images_is_measured_piece_by_piece(monkeypatch):
    from patch_diffusion.data import images as module

    pixels = torch.randint(0, 256, (5, 3, 16, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = pd.ImageSet(pixels).standard_deviation
    assert whole == pytest.approx(float((pixels.double() / 127.5 - 1).std(correction=0)), rel=1e-6)
    monkeypatch.setattr(module, "_PIECE", 3 * 8 * 5)  # five rows
    seen = []
    batch = pd.ImageSet.batch
    monkeypatch.setattr(pd.ImageSet, "batch", lambda self, indices: seen.append(indices) or batch(self, indices))
    assert pd.ImageSet(pixels).standard_deviation == pytest.approx(whole, rel=1e-9) and not seen
    monkeypatch.setattr(module, "_MEASURED_VALUES", 2 * pixels[0].numel())
    two = pixels[torch.tensor([0, 4])].double() / 127.5 - 1
    assert pd.ImageSet(pixels).standard_deviation == pytest.approx(float(two.std(correction=0)), rel=1e-6)


def zip_of(path, names, **others):
    """A zip of pictures by names, and of other files."""
    with zipfile.ZipFile(path, "w") as archive:
        for index, name in enumerate(names):
            archive.writestr(name, encoded(PICTURES.pixels[index]))
        for name, content in others.items():
            archive.writestr(name, content)
    return path


NAMES = ["cats/a.png", "cats/b.png", "dogs/a.png", "dogs/b.png"]


@pytest.mark.parametrize("write", ["./{}".format, "photos/./{}".format, lambda name: name.replace("/", "\\")])
def test_names_in_zips_are_read_in_one_form(tmp_path, write):
    path = zip_of(tmp_path / "a.zip", list(map(write, NAMES)))
    images = pd.open_images(path, classes=True)
    assert np.array_equal(images.pixels.numpy(), PICTURES.pixels[:4])
    assert images.class_names == ("cats", "dogs") and images.labels.tolist() == [0, 0, 1, 1]
    labels = {"labels": [[write(name), index] for index, name in enumerate(NAMES)]}
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("./dataset.json", json.dumps(labels))
    assert pd.open_images(path).labels.tolist() == [0, 1, 2, 3]


def test_two_entries_of_one_name_stay_two(tmp_path):
    path = zip_of(tmp_path / "a.zip", ["b\\a.png", "b/a.png", "a:0.png"])
    assert np.array_equal(pd.open_images(path).pixels.numpy(), PICTURES.pixels[[2, 1, 0]])


def test_a_cache_of_earlier_names_is_not_taken_for_these(tmp_path):
    """Earlier versions left out .mpo and ./, and kept what they read by the state of the zip alone."""
    path = zip_of(tmp_path / "a.zip", ["a.png", "b.png"])
    state = path.stat()
    with find_images(Data(str(path))) as found:
        before = found.identity
        assert before == [str(path.resolve()), state.st_size, state.st_mtime_ns]
    for name in ("./b.png", "b.mpo"):
        zip_of(path, ["a.png", name])
        with find_images(Data(str(path))) as found:
            assert len(found.files) == 2 and len(found.identity) > len(before)


def test_hidden_files_alone_are_told(tmp_path):
    path = zip_of(tmp_path / "a.zip", [".a.png", "__MACOSX/b.png"])
    assert refusal(path) == f"{path} holds hidden files only, which are left out (first: .a.png): rename them"


def test_photos_of_two_lenses(tmp_path):
    pictures = [to_picture(pixels) for pixels in PICTURES.pixels[:2]]
    pictures[0].save(tmp_path / "a.mpo", save_all=True, append_images=pictures[1:])
    images = pd.open_images(tmp_path)
    with Image.open(tmp_path / "a.mpo") as first:
        assert first.format == "MPO" and np.array_equal(images.pixels[0].numpy(), np.asarray(first).transpose(2, 0, 1))


def test_an_entry_that_unpacks_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_LARGE_ENTRY", 2**20)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", encoded(PICTURES.pixels[0]) + bytes(2**21))
    assert "2,097," in refusal(path) and "bytes, and is no image" in refusal(path)
    monkeypatch.setattr(decode, "_MOST_BYTES_PER_PIXEL", 0)
    assert "a.png (more than 0 bytes" in refusal(zip_of(path, ["a.png"]))


def test_names_cannot_speak_to_the_terminal(tmp_path, make_folder):
    folder = make_folder(120)
    (folder / "a\x1b[31mRED\nline2\u202e.png").write_text("broken")
    notes = pd.open_images(folder).notes
    assert r"skipped a\x1b[31mRED\nline2\u202e.png: not an image, or a broken one" in notes
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a\x9b\r\n.txt").touch()
    assert r"only a\x9b\r\n.txt" in refusal(tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vol.nii.gz", "(.npy, .npz, .h5, .zarr): not a kind of image that is read; convert them to PNG, TIFF or .npy"),
        (
            "IM0001",
            "names without an ending, such as .png, are not taken for images; DICOM is converted to PNG, TIFF or",
        ),
        ("a.png", "is one image: give the folder that it is in"),
    ],
)
def test_a_single_file_says_what_to_give(tmp_path, name, hint):
    (tmp_path / name).write_text("no zip")
    assert hint in refusal(tmp_path / name)
