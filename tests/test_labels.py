import json

import pytest

import patch_diffusion as pd
from image_files import classes_of, own_cache, random_pictures, refusal, write_folder, write_zip  # noqa: F401


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "pictures", random_pictures(4), labels=False)


def of_subfolders(path, counts):
    for name, num in counts.items():
        write_folder(path / name, random_pictures(num), labels=False)
    return path


def test_sub_folders(tmp_path):
    folder = of_subfolders(tmp_path / "pictures", {"wolf": 2, "cat/tabby": 3})
    images = pd.open_images(folder, classes=True)
    assert images.class_names == ("cat", "wolf") and images.labels.tolist() == [0, 0, 0, 1, 1]
    assert pd.open_images(folder).labels is None
    from_zip = pd.open_images(write_zip(tmp_path / "a.zip", folder), classes=True)
    assert from_zip.class_names == images.class_names and from_zip.labels.tolist() == images.labels.tolist()
    of_subfolders(folder, {".": 1})
    assert "00000.png in" in refusal(folder, classes=True) and "is in none" in refusal(folder, classes=True)


def test_classes_of_one_image_are_noted(tmp_path):
    folder = of_subfolders(tmp_path / "pictures", {"wolf": 1, "cat": 3})
    assert "1 class has one image only (first: wolf)" in pd.open_images(folder, classes=True).notes
    assert not any("one image only" in note for note in pd.open_images(folder).notes)
    of_subfolders(folder, {"ape": 1})
    assert "2 classes have one image only (first: ape)" in pd.open_images(folder, classes=True).notes


def test_dataset_json(folder, tmp_path):
    labels = folder / "dataset.json"
    labels.write_text(json.dumps({"labels": [["00002.png", 4], ["00000.png", 0], ["00001.png", 2], ["00003.png", 2]]}))
    for source in (folder, write_zip(tmp_path / "a.zip", folder)):
        images = pd.open_images(source)
        assert images.labels.tolist() == [0, 1, 2, 1] and images.class_names == ("0", "2", "4")
        assert pd.open_images(source, classes=False).labels is None
    labels.write_text(json.dumps({"labels": None}))
    assert pd.open_images(folder).labels is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"labels": [["00000.png", 1]]}', "has no label for 3 of 4 images (first: 00001.png): add them, or set"),
        ('{"labels": [["00000.png", "one"]]}', "the label of 00000.png is 'one', not a class number"),
        ('{"labels": [["00000.png", -1]]}', "the label of 00000.png is -1, not a class number"),
        ("[1, 2", "is not of the form"),
        ("[1, 2]", "is not of the form"),
        ('{"labels": 5}', "is not of the form"),
    ],
)
def test_a_dataset_json_that_cannot_be_used(folder, content, message):
    (folder / "dataset.json").write_text(content)
    assert message in refusal(folder)


def csv_of(*rows):
    return "\n".join(["file,label", *rows])


NUMBERS = ("00000.png,3", "00001.png,0", "00002.png,3", "00003.png,1")
NAMES = ("00000.png,wolf", "00001.png,cat", "00002.png,wolf", "00003.png,7")


def test_a_csv_beside_the_user_or_within_the_data(folder, tmp_path, monkeypatch):
    (tmp_path / "numbers.csv").write_text(csv_of(*NUMBERS))
    (folder / "names.csv").write_text(csv_of(*NAMES))
    monkeypatch.chdir(tmp_path)
    for source in (folder, write_zip(tmp_path / "a.zip", folder)):
        images = pd.open_images(source, labels="numbers.csv")
        assert images.labels.tolist() == [2, 0, 2, 1] and images.class_names == ("0", "1", "3")
        images = pd.open_images(source, labels="names.csv")
        assert images.labels.tolist() == [2, 1, 2, 0] and images.class_names == ("7", "cat", "wolf")
        assert not any("left aside" in note for note in images.notes)


def test_a_csv_as_spreadsheets_write_it(folder, tmp_path):
    rows = ['"id","label","file"', '1,"a, b",00000.png', "2,c,00001.png", "3,c,00002.png", "4,c,sub\\00003.png"]
    (folder / "sub").mkdir()
    (folder / "00003.png").rename(folder / "sub" / "00003.png")
    (tmp_path / "a.csv").write_bytes("\r\n".join(rows).encode("utf-8-sig"))
    images = pd.open_images(folder, labels=str(tmp_path / "a.csv"))
    assert images.class_names == ("a, b", "c") and images.labels.tolist() == [0, 1, 1, 1]


def test_labels_of_files_that_are_not_here_are_noted(folder, tmp_path):
    (tmp_path / "a.csv").write_text(csv_of(*NUMBERS, "zebra.png,2", "ape.png,2"))
    notes = pd.open_images(folder, labels=str(tmp_path / "a.csv")).notes
    assert any(note.endswith("a.csv has labels for 2 files that are not here (first: ape.png)") for note in notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (csv_of(*NUMBERS[:2]), "has no label for 2 of 4 images (first: 00002.png): add them, or set data.classes"),
        (csv_of(*NUMBERS, "00001.png,2"), "gives 00001.png two labels, 0 and 2"),
        (csv_of("00000.png,"), "line 2 of"),
        (csv_of("00000.png"), "line 2 of"),
        (csv_of(*NUMBERS[:3], "00003.png,-1"), "the label of 00003.png is -1, and class numbers are 0 or more"),
        ("name,class\na,b", "must name the columns file and label, not name, class"),
        ("", "must name the columns file and label, not none"),
        ("file,label\n\0\xff".encode("latin-1"), "is not a CSV of file,label"),
    ],
)
def test_a_csv_that_cannot_be_used(folder, tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in refusal(folder, labels=str(tmp_path / "a.csv"))


def test_labels_that_are_nowhere(folder):
    assert refusal(folder, labels="a.csv") == f"there is no file of labels at a.csv, nor in {folder}"
    assert "data.classes False ignores them: give one" in refusal(folder, labels="a.csv", classes=False)


def test_labels_stay_with_their_images_when_one_is_passed_over(tmp_path):
    pictures = random_pictures(100, num_classes=100)
    folder = write_folder(tmp_path / "many", pictures)
    (folder / "00007.png").write_bytes(b"")
    for cache in ("memory", "disk", "disk"):
        images = pd.open_images(folder, cache=cache)
        assert classes_of(images) == [str(i) for i in range(100) if i != 7]
