import json
import os
import re
import subprocess
import sys
import zipfile
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import patch_diffusion as pd
from image_files import classes_of, own_cache, random_pictures, refusal, write_folder  # noqa: F401
from needs import need
from patch_diffusion.data.arrays import stored
from patch_diffusion.data.arrays.read import channel_axis
from patch_diffusion.data.codec import PixelCodec
from refusal import refused

PICTURES = random_pictures()


def save(path, **arrays):
    """Arrays by name, in the format that the ending says."""
    if path.suffix == ".npy":
        np.save(path, *arrays.values())
    elif path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
    elif path.suffix == ".h5":
        with need("h5py", "data").File(path, "w") as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=array, chunks=(3, *array.shape[1:]))
    else:
        group = need("zarr", "data", minversion="3").open_group(str(path), mode="w")
        for name, array in arrays.items():
            group.create_array(name, shape=array.shape, dtype=array.dtype, chunks=(3, *array.shape[1:]))[:] = array
    return path


EVERY_FORMAT = pytest.mark.parametrize("ending", [".npy", ".npz", ".h5", ".zarr"])
FORMATS_OF_SEVERAL = pytest.mark.parametrize("ending", [".npz", ".h5", ".zarr"])


@EVERY_FORMAT
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_every_format_and_layout(tmp_path, ending, layout):
    stored = PICTURES.pixels if layout == "channels_first" else PICTURES.pixels.transpose(0, 2, 3, 1)
    path = save(tmp_path / f"a{ending}", images=np.ascontiguousarray(stored))
    for given in ("auto", layout):
        images = pd.open_images(path, layout=given)
        assert np.array_equal(images.pixels.numpy(), PICTURES.pixels) and images.labels is None


@EVERY_FORMAT
def test_images_without_channels_have_one(tmp_path, ending):
    path = save(tmp_path / f"a{ending}", images=PICTURES.pixels[:, 0])
    assert np.array_equal(pd.open_images(path).pixels.numpy(), PICTURES.pixels[:, :1])


@EVERY_FORMAT
@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        ("uint16", "uint16"),
        (">u2", "uint16"),
        ("float16", "float32"),
        ("float32", "float32"),
        (">f4", "float32"),
        ("float64", "float32"),
        ("int16", "float32"),
        ("int64", "float32"),
    ],
)
def test_types_and_their_range(tmp_path, ending, dtype, kept):
    values = PICTURES.pixels.astype(np.int64) - (100 if kept == "float32" else 0)
    images = pd.open_images(save(tmp_path / f"a{ending}", images=values.astype(dtype)))
    assert images.codec.dtype == kept
    assert np.array_equal(images.pixels.numpy(), values)
    assert images.codec.range == ((-100, 155) if kept == "float32" else (0, 65535))  # pyright: ignore[reportAttributeAccessIssue]
    encoded = images.codec.encode(images.pixels)
    assert encoded.min() == -1 and (encoded.max() == 1) == (kept == "float32")
    assert pd.open_images(tmp_path / f"a{ending}", range=(-10, 10)).codec.range == (-10, 10)  # pyright: ignore[reportAttributeAccessIssue]


@EVERY_FORMAT
def test_bools_are_black_and_white(tmp_path, ending):
    images = pd.open_images(save(tmp_path / f"a{ending}", images=PICTURES.pixels > 100))
    assert np.array_equal(images.pixels.numpy(), np.where(PICTURES.pixels > 100, 255, 0))
    assert images.codec.range == (0, 255)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("ending", [".npy", ".npz"])  # the others know no Fortran order
def test_one_order_of_bytes_or_the_other(tmp_path, ending):
    path = save(tmp_path / f"a{ending}", images=np.asfortranarray(PICTURES.pixels))
    assert np.array_equal(pd.open_images(path).pixels.numpy(), PICTURES.pixels)


def test_what_the_notes_say(tmp_path):
    values = PICTURES.pixels.astype(np.float64)
    values[3] = 7
    notes = " ".join(pd.open_images(save(tmp_path / "a.npz", images=values)).notes)
    assert "float64 values are kept as float32" in notes
    assert "values from 0 to 255, which become -1 and 1" in notes
    assert f"1 of 20 images checked have one value only (first: image 3 of {tmp_path / 'a.npz'})" in notes
    notes = " ".join(pd.open_images(save(tmp_path / "b.npz", images=values), range=(0, 100)).notes)
    assert "the data has values from 0 to 255, beyond the data.range of 0 to 100" in notes
    notes = " ".join(pd.open_images(save(tmp_path / "c.npy", images=PICTURES.pixels.astype(np.uint16))).notes)
    assert "the data has only values from 0 to 255 of the range 0 to 65535" in notes


@pytest.mark.parametrize(
    ("low", "high", "taken"),
    [
        (-0.294, 1, (-1, 1)),
        (-0.99, 0.4, (-1, 1)),
        (0.3, 0.992, (0, 1)),
        (0, 0.4, (0, 0.4)),
        (-0.5, 0.5, (-0.5, 0.5)),
        (-0.3, 1.1, (-0.3, 1.1)),
    ],
)
def test_the_range_that_floats_were_scaled_to(tmp_path, low, high, taken):
    values = np.linspace(low, high, 4 * 8 * 8, dtype=np.float32).reshape(4, 8, 8)
    images = pd.open_images(save(tmp_path / "a.npy", images=values))
    assert images.codec.range == pytest.approx(taken)  # pyright: ignore[reportAttributeAccessIssue]
    assert any("taken as values of the range" in note for note in images.notes) == (taken != (low, high))
    given = pd.open_images(save(tmp_path / "a.npy", images=values), range=(low, high))
    assert given.codec.range == (low, high)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("ending", [".npy", ".npz"])  # one is mapped, and the other is read
@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint16])
@pytest.mark.parametrize("share", [0.001, 0.3])
def test_outliers_and_values_for_what_is_missing_are_told(tmp_path, ending, dtype, share):
    random = np.random.default_rng(0)
    values = random.integers(1000, 3000, (300, 16, 16)).astype(dtype)
    assert not any("but 98%" in note for note in pd.open_images(save(tmp_path / f"a{ending}", images=values)).notes)
    values[random.random(values.shape) < share] = 65_000 if dtype == np.uint16 else -32_000
    noted = [note for note in pd.open_images(save(tmp_path / f"b{ending}", images=values)).notes if "but 98%" in note]
    assert len(noted) == 1 and re.search(r"--data.range 10[0-9]{2} 29[0-9]{2} ", noted[0]), noted
    given = pd.open_images(save(tmp_path / f"b{ending}", images=values), range=(1000, 3000)).notes
    assert any("beyond the data.range" in note and "not clipped" in note for note in given)


@EVERY_FORMAT
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_found_wherever_it_is(tmp_path, ending, bad):
    values = PICTURES.pixels.astype(np.float32)
    values[17, 2, 3, 4] = values[18, 0, 0, 0] = bad
    path = save(tmp_path / f"a{ending}", images=values)
    for cache in ("auto", "memory"):
        assert refusal(path, cache=cache) == f"image 17 of {path} holds NaN or infinity: repair or remove it"


def test_floats_that_all_are_one_value_are_refused(tmp_path):
    path = save(tmp_path / "a.npy", images=np.ones((4, 3, 8, 8), np.float32))
    assert "all values of the images are 1" in refusal(path)
    assert pd.open_images(path, range=(0, 2)).notes


@FORMATS_OF_SEVERAL
def test_the_name_of_the_array(tmp_path, ending):
    other = PICTURES.pixels[::-1].copy()
    path = save(tmp_path / f"a{ending}", photos=PICTURES.pixels, masks=other)
    assert "several arrays: name the images with --data.key (masks 20x3x8x12, photos 20x3x8x12)" in refusal(path)
    assert np.array_equal(pd.open_images(path, key="masks").pixels.numpy(), other)
    assert "no array 'mask' for data.key; did you mean 'masks'?" in refusal(path, key="mask")
    path = save(tmp_path / f"b{ending}", other=other, x=PICTURES.pixels)
    assert np.array_equal(pd.open_images(path).pixels.numpy(), PICTURES.pixels)
    path = save(tmp_path / f"c{ending}", numbers=np.arange(4))
    assert "no array of images, which have three or four dimensions: numbers 4" in refusal(path)


@FORMATS_OF_SEVERAL
def test_labels_beside_the_images(tmp_path, ending):
    path = save(tmp_path / f"a{ending}", photos=PICTURES.pixels, y=PICTURES.labels, ages=PICTURES.labels[:, None] + 1)
    assert np.array_equal(pd.open_images(path).labels.numpy(), PICTURES.labels)
    assert pd.open_images(path, classes=False).labels is None
    assert classes_of(pd.open_images(path, labels="ages")) == [str(label + 1) for label in PICTURES.labels]
    assert "no array 'age' for data.labels; did you mean 'ages'?" in refusal(path, labels="age")
    path = save(tmp_path / f"b{ending}", images=PICTURES.pixels, mine=PICTURES.labels[:-1])
    assert "has 20 images, but 19 labels" in refusal(path, labels="mine")
    assert "has no labels: name them with --data.labels" in refusal(path, classes=True)
    path = save(tmp_path / f"c{ending}", images=PICTURES.pixels, labels=PICTURES.labels - 1)
    assert "the label of image 0 is -1, and class numbers are 0 or more" in refusal(path)
    path = save(tmp_path / f"d{ending}", images=PICTURES.pixels, labels=PICTURES.labels * 0.5)
    assert "labels are one class number or name per image, not float64" in refusal(path)


@pytest.mark.parametrize("ending", [".h5", ".zarr"])
def test_names_within_groups(tmp_path, ending):
    arrays = {"test/images": PICTURES.pixels[:4], "test/labels": PICTURES.labels[:4] + 1}
    path = save(tmp_path / f"a{ending}", **arrays)
    images = pd.open_images(path)
    assert np.array_equal(images.pixels.numpy(), PICTURES.pixels[:4]) and classes_of(images) == ["1", "2", "3", "4"]
    arrays |= {"train/images": PICTURES.pixels[:4], "labels": PICTURES.labels[:4]}
    path = save(tmp_path / f"b{ending}", **arrays)
    assert classes_of(pd.open_images(path, key="test/images")) == ["1", "2", "3", "4"]
    assert pd.open_images(path, key="train/images").labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("ending", [".npz", ".h5"])
def test_labels_that_are_words(tmp_path, ending):
    names = np.array(["wolf", "cat", "dog", "cat"])
    path = save(tmp_path / f"a{ending}", images=PICTURES.pixels[:4], labels=names.astype("S4"))
    images = pd.open_images(path)
    odd = save(tmp_path / f"b{ending}", images=PICTURES.pixels[:3], labels=np.array([b"a", b"\xff", b"a"]))
    assert pd.open_images(odd).class_names == ("\\xff", "a")
    assert images.class_names == ("cat", "dog", "wolf") and images.labels.tolist() == [2, 0, 1, 0]
    assert "2 classes have one image only (first: dog)" in images.notes


def test_words_of_any_length_in_hdf5(tmp_path):
    with need("h5py", "data").File(tmp_path / "a.h5", "w") as file:
        file["images"] = PICTURES.pixels[:3]
        file["labels"] = ["wolf", "cat", "wolf"]
    images = pd.open_images(tmp_path / "a.h5")
    assert images.class_names == ("cat", "wolf") and images.labels.tolist() == [1, 0, 1]


def test_labels_of_an_npy_are_in_another(tmp_path):
    path, labels = save(tmp_path / "a.npy", images=PICTURES.pixels), save(tmp_path / "b.npy", y=PICTURES.labels)
    assert np.array_equal(pd.open_images(path, labels=str(labels)).labels.numpy(), PICTURES.labels)
    assert pd.open_images(path).labels is None
    assert "there is no .npy file at nowhere.npy" in refusal(path, labels="nowhere.npy")
    assert "is one array and has no names" in refusal(path, key="images")


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((9, 3, 64, 48), 1),
        ((9, 64, 48, 3), 3),
        ((9, 1, 4, 8), 1),
        ((9, 8, 8, 4), 3),
        ((9, 12, 64, 64), 1),
        ((9, 64, 64, 12), 3),
        ((9, 64, 48), 0),
    ],
)
def test_where_the_channels_are(shape, axis):
    assert channel_axis(shape, "auto", "a") == axis


@pytest.mark.parametrize("shape", [(9, 3, 64, 3), (9, 1, 28, 1), (9, 64, 64, 64), (9, 16, 24, 16)])
def test_a_shape_that_does_not_tell_names_the_option(shape):
    with refused("data.layout"):
        channel_axis(shape, "auto", "a")
    assert channel_axis(shape, "channels_first", "a") == 1
    assert channel_axis(shape, "channels_last", "a") == 3


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((100, 784), np.uint8), "has the shape 100 x 784: images are n x c x h x w"),
        (np.zeros(5, np.uint8), "has the shape 5: images are"),
        (np.zeros((64, 48, 3), np.uint8), "which is one image, or images of a few columns"),
        (np.zeros((0, 3, 8, 8), np.uint8), "holds no images: its shape is 0 x 3 x 8 x 8"),
        (np.zeros((2, 3, 8, 8), np.complex64), "holds complex64: pixels are whole numbers, floats or bools"),
        (np.full((2, 3, 8, 8), 2**25), "has whole numbers of 33,554,432; up to 16,777,216 can be kept"),
        (np.full((2, 3, 8, 8), "a"), "holds <U1: pixels are"),
    ],
)
def test_what_is_no_array_of_images(tmp_path, array, message):
    assert message in refusal(save(tmp_path / "a.npy", images=array))
    assert message in refusal(save(tmp_path / "a.npz", images=array), key="images")
    assert message in refusal(array)


def test_nothing_is_unpickled(tmp_path, own_cache):  # noqa: F811
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    objects = np.empty((2, 3, 8, 8), object)
    objects[:] = Bomb()
    np.save(tmp_path / "a.npy", objects)
    np.savez(tmp_path / "a.npz", images=objects)
    np.savez(tmp_path / "b.npz", images=PICTURES.pixels, labels=np.array([Bomb()] * 20))
    for name in ("a.npy", "a.npz", "b.npz"):
        assert "holds Python objects" in refusal(tmp_path / name)
    assert not (tmp_path / "exploded").exists()
    assert not list(own_cache.glob("*"))


@EVERY_FORMAT
def test_damaged_files_are_named(tmp_path, ending, own_cache):  # noqa: F811
    path = save(tmp_path / f"a{ending}", images=PICTURES.pixels)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    for keep in (0.5, 0):
        for file in files:
            file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])
        message = refusal(path)
        assert message.startswith(f"{path} ") and "damaged" in message
    assert not list(own_cache.glob("*partial*")) and not list(own_cache.rglob("*.npy"))


def test_an_npz_that_holds_less_than_it_says(tmp_path):
    np.save(tmp_path / "images.npy", PICTURES.pixels)
    content = (tmp_path / "images.npy").read_bytes().replace(b"(20,", b"(21,")
    for some in (content, content[:-7]):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("images.npy", some)
        assert refusal(tmp_path / "a.npz").startswith(f"{tmp_path / 'a.npz'} is damaged: ")


def test_a_wrong_byte_in_an_npz_is_found(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=PICTURES.pixels)
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo("images.npy").header_offset + 1000
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert "is damaged: Bad CRC-32" in refusal(path)


@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_arrays_are_resized_as_pictures_are(tmp_path, ending):
    path = save(tmp_path / f"a{ending}", images=PICTURES.pixels)
    folder = write_folder(tmp_path / "pictures", PICTURES, labels=False)
    options: Any
    for options in ({"resolution": 6}, {"resolution": (10, 5)}, {"resolution": 6, "fit": "stretch"}):
        images = pd.open_images(path, **options)
        assert torch.equal(images.pixels, pd.open_images(folder, **options).pixels)  # pyright: ignore[reportAttributeAccessIssue]
        assert any("images of 8x12" in note and "resized to" in note for note in images.notes)
    assert "images of 8x12 in" in refusal(path, resolution=64) and "too small" in refusal(path, resolution=64)


def test_deep_arrays_are_resized_within_their_type(tmp_path):
    values = np.where(PICTURES.pixels > 100, 65535, 0).astype(np.uint16)
    images = pd.open_images(save(tmp_path / "a.npy", images=values), resolution=6)
    assert images.pixels.dtype == torch.uint16
    assert images.pixels.int().min() == 0 and images.pixels.int().max() == 65535
    flat = pd.open_images(save(tmp_path / "b.npy", images=np.full((2, 3, 8, 8), 40_000, np.uint16)), resolution=6)
    assert (flat.pixels.int() == 40_000).all()


def test_mode_is_for_files(tmp_path):
    path = save(tmp_path / "a.npy", images=PICTURES.pixels)
    assert "data.mode L is for image files" in refusal(path, mode="L")
    assert pd.open_images(path, mode="RGB").channels == 3


def test_arrays_and_tensors_in_python():
    for source in (PICTURES.pixels, torch.from_numpy(PICTURES.pixels), PICTURES.pixels.transpose(0, 2, 3, 1)):
        images = pd.open_images(source)
        assert np.array_equal(images.pixels.numpy(), PICTURES.pixels) and images.options.source == ""
    floats = pd.open_images(PICTURES.pixels / 255)
    assert floats.codec.range == (0, 1) and floats.pixels.dtype == torch.float32  # pyright: ignore[reportAttributeAccessIssue]
    assert pd.open_images(torch.arange(64 * 64.0).view(1, 64, 64).bfloat16()).codec.range == (0, 4096)  # pyright: ignore[reportAttributeAccessIssue]
    assert "image 0 of the array holds NaN" in refusal(np.full((4, 3, 8, 8), np.nan))


def test_an_npy_is_mapped_and_not_read(tmp_path):
    path = save(tmp_path / "a.npy", images=PICTURES.pixels)
    mapped, read = pd.open_images(path).pixels, pd.open_images(path, cache="memory").pixels
    changed = np.load(path, mmap_mode="r+")
    changed[0] = 0
    changed.flush()
    assert mapped[0].max() == 0 and read[0].max() > 0


def test_chunks_are_read_whole(monkeypatch):
    class Chunked:
        shape, dtype, chunks = (100, 3, 8, 8), np.dtype(np.uint8), (48, 3, 8, 8)

        def __getitem__(self, rows):
            asked.append((rows.start, rows.stop))
            return np.zeros((rows.stop - rows.start, 3, 8, 8), np.uint8)

    asked = []
    monkeypatch.setattr(stored, "_BLOCK_BYTES", 10 * 3 * 8 * 8)
    assert list(stored._slices(Chunked(), "a")) and asked == [(0, 48), (48, 96), (96, 144)]


def test_the_libraries_are_named_where_they_are_missing(tmp_path, monkeypatch):
    for library, name in (("h5py", "a.h5"), ("zarr", "a.zarr")):
        monkeypatch.setitem(sys.modules, library, None)
        (tmp_path / name).mkdir() if library == "zarr" else (tmp_path / name).touch()
        assert refusal(tmp_path / name).endswith(f"needs {library}: pip install 'patch_diffusion[data]'")


@pytest.mark.slow
def test_a_million_images_open_at_once(tmp_path):
    """12 GB that take no room on the disk, in a process that may take 300 MB beside what the libraries take."""
    path = tmp_path / "a.npy"
    np.lib.format.open_memmap(path, "w+", np.uint8, (1_000_000, 3, 64, 64))
    program = f"""
import resource, time
import patch_diffusion as pd
from patch_diffusion.data import sources
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
images = pd.open_images({str(path)!r})
assert images.pixels.shape == (1_000_000, 3, 64, 64)
print(time.process_time() - began, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    if os.name == "nt":
        pytest.skip("memory is measured as Unix does")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, done.stdout.split())
    assert seconds < 2 and megabytes < 300


def test_arrays_of_one_name_in_several_groups(tmp_path):
    """Which of them is meant is not to be guessed; where one is in no group, it is that."""
    h5py = need("h5py", "data")
    path = tmp_path / "groups.h5"
    with h5py.File(path, "w") as file:
        for group, num in (("train", 9), ("test", 4)):
            file[f"{group}/images"] = np.full((num, 8, 8, 3), num, np.uint8)
    assert "several arrays: name the images with --data.key" in refusal(path)
    assert len(pd.open_images(path, key="train/images")) == 9
    with h5py.File(path, "a") as file:
        file["images"] = np.full((5, 8, 8, 3), 5, np.uint8)
    assert len(pd.open_images(path)) == 5


def test_a_range_beyond_what_the_type_holds():
    """White stays white."""
    for codec in (PixelCodec("uint8", 0, 256), PixelCodec("uint8", -1, 256), PixelCodec("uint16", -5, 70000)):
        ends = codec.decode(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1)).int().flatten().tolist()
        assert ends == [0, 255 if codec.dtype == "uint8" else 65535]


@pytest.mark.parametrize("given", [255, (0, 1, 2)])
def test_a_range_is_two_numbers(given):
    with refused("data.range"):
        pd.open_images("digits", range=given)


@EVERY_FORMAT
@pytest.mark.parametrize("shape", [(3, 0, 8), (3, 8, 0), (3, 0, 8, 8), (3, 8, 8, 0), (0, 8, 8)])
def test_arrays_without_pixels(tmp_path, ending, shape):
    what = "pixels" if shape[0] else "images"
    array = np.zeros(shape, np.uint8)
    if ending in (".npy", ".npz"):  # others cannot have chunks of such a size
        path = save(tmp_path / f"a{ending}", images=array)
        assert refusal(path) == f"{path} holds no {what}: its shape is {' x '.join(map(str, shape))}"
    assert f"holds no {what}" in refusal(array)


def test_items_and_sets_without_pixels():
    assert "item 0 (has no pixels: its shape is (0, 8))" in refusal([np.zeros((0, 8), np.uint8)] * 3)
    with pytest.raises(pd.InputError, match="the images have no pixels"):
        pd.ImageSet(torch.zeros(3, 1, 0, 8, dtype=torch.uint8))


@pytest.mark.parametrize("shape", [(-5, 8, 8), (10**18, 8, 8)])
def test_an_npz_of_a_shape_that_it_cannot_have(tmp_path, shape):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("images.npy", "w") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(bytes(4000))
    assert refusal(path).startswith(f"{path} is damaged: images.npy is shorter than its shape says")


def h5_file(path, **values):
    """An HDF5 file of an array, of values that are elsewhere (a list) or of another file's by a layout (a function)."""
    h5py = need("h5py", "data")
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, each in values.items():
            if isinstance(each, list):
                file.create_dataset(name, (20,) if name == "labels" else (20, 8, 8), "u1", external=each)
            elif isinstance(each, tuple):
                layout = h5py.VirtualLayout((20, 8, 8), "u1")
                layout[:] = h5py.VirtualSource(*each, (20, 8, 8))
                file.create_virtual_dataset(name, layout)
            elif isinstance(each, str):
                file[name] = h5py.ExternalLink(each, "images")
            else:
                file.create_dataset(name, data=each)
    return path


def test_hdf5_does_not_read_other_files_of_the_machine(tmp_path):
    values = PICTURES.pixels[:, 0, :, :8]
    (tmp_path / "secret").write_bytes(bytes(4096))
    outside = h5_file(tmp_path / "secret.h5", images=values)
    here = tmp_path / "here"
    h5_file(here / "beside.h5", images=values)
    h5_file(here / "external.h5", images=[(str(tmp_path / "secret"), 0, 1280)])
    h5_file(here / "link.h5", images=str(outside))
    (here / "symbolic.h5").symlink_to(outside)
    refused = [
        here / "external.h5",
        h5_file(here / "labels.h5", images=values, labels=[(str(tmp_path / "secret"), 0, 20)]),
        h5_file(here / "up.h5", images=("../secret.h5", "images")),
        h5_file(here / "absolute.h5", images=(str(outside), "images")),
        h5_file(here / "of_external.h5", images=("external.h5", "images")),
        h5_file(here / "of_link.h5", images=("link.h5", "images")),
        h5_file(here / "of_symbolic.h5", images=("symbolic.h5", "images")),
    ]
    for path in refused:
        assert refusal(path).startswith(f"{path} takes values from other files, and only from HDF5 files"), path
    sources = [SimpleNamespace(file_name="../secre%b.h5", dset_name="images")]
    file = SimpleNamespace(filename=here / "a.h5")
    pattern = SimpleNamespace(file=file, name="/a", external=None, is_virtual=True, virtual_sources=lambda: sources)
    with pytest.raises(pd.InputError, match=r"^a\.h5 takes values from files named by a pattern"):
        stored._files_of_hdf5(None, pattern, here / "a.h5", "a.h5")
    round_about = h5_file(here / "round.h5", images=("round.h5", "images"))
    assert refusal(round_about) == f"{round_about} is damaged: /images takes values from itself"
    assert refusal(here / "link.h5").endswith("holds no arrays")
    images = pd.open_images(h5_file(here / "virtual.h5", images=("beside.h5", "images")))
    assert np.array_equal(images.pixels[:, 0].numpy(), values)


def test_a_file_that_says_it_holds_far_more_than_it_can(tmp_path):
    with need("h5py", "data").File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", (10**8, 8, 8), "u1", chunks=(1000, 8, 8))
    assert "a.h5 is damaged: it says that an array has 6,400,000,000 bytes" in refusal(tmp_path / "a.h5")


def test_zarr_that_is_damaged_pickled_or_elsewhere(tmp_path):
    path = save(tmp_path / "here" / "a.zarr", images=PICTURES.pixels)
    facts = path / "images" / "zarr.json"
    content = facts.read_text()
    assert '"chunk_shape"' in content
    changed = json.loads(content)
    changed["chunk_grid"]["configuration"]["chunk_shape"] = [0, 0, 0, 0]
    facts.write_text(json.dumps(changed))
    assert refusal(path).startswith(f"{path} is damaged: ")
    facts.write_text(content)
    chunk = path / "images" / "c" / "0" / "0" / "0" / "0"
    (tmp_path / "secret").write_bytes(chunk.read_bytes())
    chunk.unlink()
    chunk.symlink_to(tmp_path / "secret")
    assert refusal(path) == f"{path} takes 0 from elsewhere by a link: copy the file itself into it"


def test_a_pickle_in_zarr_is_refused_whatever_the_library_would_do(tmp_path):
    zarr = need("zarr", "data", minversion="3")
    path = save(tmp_path / "a.zarr", images=PICTURES.pixels)
    labels = {"zarr_format": 2, "shape": [20], "chunks": [20], "dtype": "|O", "fill_value": "", "order": "C"}
    labels |= {"filters": [{"id": "vlen-utf8"}], "compressor": {"id": "pickle", "protocol": 5}}
    (tmp_path / "labels.zarr").mkdir()
    (tmp_path / "labels.zarr" / ".zarray").write_text(json.dumps(labels))
    array = zarr.open(str(tmp_path / "labels.zarr"), mode="r")
    with pytest.raises(ValueError, match="pickle"):
        stored._files_of_zarr(array, [])
    assert stored._files_of_zarr(zarr.open(str(path), mode="r")["images"], [path]) == [path]
