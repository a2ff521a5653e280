import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import patch_diffusion as pd
from image_files import classes_of, own_cache, random_pictures, refusal, to_picture, write_folder  # noqa: F401
from needs import need

pytestmark = pytest.mark.slow

datasets = need("datasets", "data")

PICTURES = random_pictures(num=12)


@pytest.fixture(autouse=True)
def own_library_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "of the library")


def table(labels=None, **more):
    """Pictures and their labels, as the library holds them."""
    columns = {"image": [to_picture(pixels) for pixels in PICTURES.pixels], **more}
    features = {"image": datasets.Image(), **{name: datasets.Value("int64") for name in more}}
    if labels is not None:
        columns["label"] = PICTURES.labels.tolist()
        features["label"] = labels
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


CLASSES = datasets.ClassLabel(names=["ape", "bear", "cat", "dog", "elk"])


def save(dataset, path):
    dataset.save_to_disk(str(path))
    return f"hf:{path}"


def test_what_was_saved_to_disk(tmp_path, own_cache):  # noqa: F811
    source = save(table(CLASSES), tmp_path / "saved")
    for _ in range(2):
        images = pd.open_images(source)
        assert np.array_equal(images.pixels.numpy(), PICTURES.pixels)
        assert np.array_equal(images.labels.numpy(), PICTURES.labels)
        assert images.class_names == ("ape", "bear", "cat", "dog", "elk") and images.options.source == source
    assert len([path for path in own_cache.iterdir() if path.is_dir()]) == 1
    assert pd.open_images(source, classes=False).labels is None
    assert pd.open_images(source, resolution=6).resolution == (6, 6)


def test_a_folder_of_parquet(tmp_path):
    (tmp_path / "tables").mkdir()
    table(CLASSES).to_parquet(tmp_path / "tables" / "train-00000.parquet")
    images = pd.open_images(f"hf:{tmp_path / 'tables'}")
    assert np.array_equal(images.pixels.numpy(), PICTURES.pixels) and images.num_classes == 5


def test_a_table_in_python():
    images = pd.open_images(table(CLASSES))
    assert np.array_equal(images.pixels.numpy(), PICTURES.pixels) and images.options.source == ""
    assert np.array_equal(images.labels.numpy(), PICTURES.labels)
    few = pd.open_images(table(CLASSES).select([3, 1]))
    assert np.array_equal(few.pixels.numpy(), PICTURES.pixels[[3, 1]]) and classes_of(few) == ["dog", "bear"]


def test_a_part_of_a_table_is_not_taken_for_the_whole(tmp_path):
    save(table(CLASSES), tmp_path / "saved")
    whole = datasets.load_from_disk(str(tmp_path / "saved"))
    for chosen in ([0, 1, 2], [3, 4, 5], [5, 4, 3]):
        images = pd.open_images(whole.select(chosen))
        assert np.array_equal(images.pixels.numpy(), PICTURES.pixels[chosen])


def test_splits(tmp_path):
    splits = {"train": table(), "test": table().select(range(3))}
    source = save(datasets.DatasetDict(splits), tmp_path / "saved")
    assert len(pd.open_images(source)) == 12
    assert len(pd.open_images(f"{source}:test")) == 3
    assert refusal(f"{source}:tset").endswith("has no split 'tset'; did you mean 'test'?")
    del splits["train"]
    only = save(datasets.DatasetDict(splits), tmp_path / "only")
    assert len(pd.open_images(only)) == 3
    several = save(datasets.DatasetDict({"a": table(), "b": table()}), tmp_path / "several")
    assert refusal(several) == f"{several} has the splits a, b: choose one, as in {several}:a"
    plain = save(table(), tmp_path / "plain")
    assert refusal(f"{plain}:train") == f"{plain}:train has no splits: leave ':train' out"


def test_columns_of_images(tmp_path):
    pictures = [to_picture(pixels) for pixels in PICTURES.pixels]
    both = datasets.Dataset.from_dict(
        {"image": pictures, "mask": pictures[::-1]},
        features=datasets.Features({"image": datasets.Image(), "mask": datasets.Image()}),
    )
    assert np.array_equal(pd.open_images(both).pixels.numpy(), PICTURES.pixels)
    assert np.array_equal(pd.open_images(both, key="mask").pixels.numpy(), PICTURES.pixels[::-1])
    assert "has no column of images 'masks'; did you mean 'mask'?" in refusal(both, key="masks")
    renamed = both.rename_column("image", "left")
    assert "has several columns of images (left, mask): choose one with --data.key" in refusal(renamed)
    assert "has no column of images, only age" in refusal(table(age=[1] * 12).remove_columns("image"))


def test_columns_of_labels():
    numbers = table(datasets.Value("int64"), age=list(range(12)))
    assert pd.open_images(numbers).labels is None
    assert np.array_equal(pd.open_images(numbers, classes=True).labels.numpy(), PICTURES.labels)
    assert pd.open_images(numbers, labels="age").labels.tolist() == list(range(12))
    assert "has no column 'ages'; did you mean 'age'?" in refusal(numbers, labels="ages")
    assert "has no column of classes: name it with --data.labels" in refusal(table(), classes=True)
    two = table(CLASSES).add_column("kind", [0] * 12).cast_column("kind", CLASSES)
    assert np.array_equal(pd.open_images(two).labels.numpy(), PICTURES.labels)
    assert "several columns of classes (label2, kind): choose" in refusal(two.rename_column("label", "label2"))


def test_labels_that_cannot_be_used():
    hidden = table(CLASSES).remove_columns("label").add_column("label", [-1] * 12).cast_column("label", CLASSES)
    assert "the label of image 0 is -1, and class numbers are 0 or more" in refusal(hidden)
    missing = table().add_column("label", [1] * 5 + [None] * 7).cast_column("label", CLASSES)
    assert "has no label for image 5: set data.classes to False" in refusal(missing)


def test_images_that_are_missing_are_named():
    images = [to_picture(pixels) for pixels in PICTURES.pixels]
    holes = datasets.Dataset.from_dict(
        {"image": [*images, None]}, features=datasets.Features({"image": datasets.Image()})
    )
    assert "image 12 of the data set (no image)" in refusal(holes)


def test_files_that_a_table_points_to(tmp_path):
    folder = write_folder(tmp_path / "pictures", PICTURES, labels=False)
    paths = [str(path) for path in sorted(folder.iterdir())]
    pointing = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    assert np.array_equal(pd.open_images(pointing).pixels.numpy(), PICTURES.pixels)


def test_a_name_is_looked_up_in_the_cache_of_the_library(tmp_path):
    (tmp_path / "tables").mkdir()
    table(CLASSES).to_parquet(tmp_path / "tables" / "train.parquet")
    loaded = datasets.load_dataset(str(tmp_path / "tables"))
    made = Path(loaded["train"].cache_files[0]["filename"])
    fetched = tmp_path / "of the library" / "somebody___beasts" / "default" / "0.0.0" / ("a" * 40)
    shutil.copytree(made.parent, fetched)
    (fetched / made.name).rename(fetched / "beasts-train.arrow")
    images = pd.open_images("hf:somebody/beasts:train")
    assert np.array_equal(images.pixels.numpy(), PICTURES.pixels) and images.num_classes == 5


def test_nothing_is_downloaded(tmp_path, monkeypatch):
    def refuses(*arguments, **options):
        raise AssertionError("the network was asked")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.HfApi.hf_hub_download", refuses)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuses)
    for name in ("hf:nobody/nothing", "hf:nothing", f"hf:{tmp_path / 'nowhere'}"):
        message = refusal(name)
        assert message.startswith(f"cannot open {name}: there is no such data set on this machine")
        assert "the network was asked" not in message


def test_tables_that_are_streamed_are_refused():
    assert "load it without streaming" in refusal(table().to_iterable_dataset())


@pytest.mark.parametrize("name", ["hf:", "hf::train"])
def test_names_that_are_none(name):
    assert "a data set is hf:NAME_OR_PATH or hf:NAME_OR_PATH:SPLIT" in refusal(name)


def test_an_empty_table():
    assert "the data set is empty" in refusal(table().select([]))


def test_the_library_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert refusal("hf:a") == "reading hf:a needs datasets: pip install 'patch_diffusion[data]'"


def test_a_table_of_a_stranger_points_to_its_own_files_only(tmp_path):
    paths = []
    for place in ("set/inside", "outside"):
        folder = write_folder(tmp_path / place, PICTURES, labels=False)
        paths.append([{"bytes": None, "path": str(path)} for path in sorted(folder.iterdir())])
    for column, inside in zip(paths, (True, False), strict=True):
        for file in (tmp_path / "set").glob("*.parquet"):
            file.unlink()
        features = datasets.Features({"image": datasets.Image()})
        made = datasets.Dataset.from_dict({"image": column}, features=features)
        need("pyarrow.parquet").write_table(made.data.table, tmp_path / "set" / f"train{inside}.parquet")
        source = f"hf:{tmp_path / 'set'}"
        (tmp_path / "set" / "README.md").write_text(
            f"---\nconfigs:\n- config_name: default\n  data_files: train{inside}.parquet\n---\n"
        )
        if inside:
            assert np.array_equal(pd.open_images(source).pixels.numpy(), PICTURES.pixels)
        else:
            assert "is a path out of the data set" in refusal(source)


def test_a_folder_of_other_files_is_not_searched(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *_: pytest.fail("the library was asked"))
    (tmp_path / "etc").mkdir()
    for index in range(30):
        (tmp_path / "etc" / f"{index}.conf").touch()
    (tmp_path / "etc" / "a.json").touch()
    assert f"hf:{tmp_path / 'etc'} is a folder without a data set" in refusal(f"hf:{tmp_path / 'etc'}")
