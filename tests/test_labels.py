import json
import shutil
import unicodedata
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

import patch_diffusion as pd
from image_files import classes_of, own_cache, random_pictures, refusal, write_folder, write_zip  # noqa: F401
from patch_diffusion.config import Config, Data, Engine, Network
from patch_diffusion.data.images import numbered_as
from patch_diffusion.data.inspection.inspect import inspect_images
from patch_diffusion.data.reading import damage
from patch_diffusion.evaluation.samples import classes_like
from patch_diffusion.files import read_tensors
from patch_diffusion.training.build import build_trainer


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
        assert not any("not images" in note for note in images.notes)


def test_a_csv_as_spreadsheets_write_it(folder, tmp_path):
    rows = ['"id","label","file"', '1,"a, b",00000.png', "2,c,00001.png", "3,c,00002.png", "4,c,sub\\00003.png"]
    (folder / "sub").mkdir()
    (folder / "00003.png").rename(folder / "sub" / "00003.png")
    (tmp_path / "a.csv").write_bytes("\r\n".join(rows).encode("utf-8-sig"))
    images = pd.open_images(folder, labels=str(tmp_path / "a.csv"))
    assert images.class_names == ("a, b", "c") and images.labels.tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [";", "\t", ", "])
def test_a_csv_of_another_separator_and_encoding(folder, tmp_path, encoding, separator):
    rows = [("File ", "Label"), *((f"0000{index}.png", label) for index, label in enumerate(["10.5", "é", "2", "é"]))]
    (tmp_path / "a.csv").write_bytes("\r\n".join(map(separator.join, rows)).encode(encoding))
    images = pd.open_images(folder, labels=str(tmp_path / "a.csv"))
    assert images.class_names == ("10.5", "2", "é") and images.labels.tolist() == [0, 2, 1, 2]


def test_labels_of_files_that_are_not_here_are_noted(folder, tmp_path):
    (tmp_path / "a.csv").write_text(csv_of(*NUMBERS, "zebra.png,2", "ape.png,2"))
    notes = pd.open_images(folder, labels=str(tmp_path / "a.csv")).notes
    assert any(
        note.endswith("a.csv has labels for 2 files that the data does not have (first: ape.png)") for note in notes
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (csv_of(*NUMBERS[:2]), "has no label for 2 of 4 images (first: 00002.png): add them, or set data.classes"),
        (csv_of(*NUMBERS, "00001.png,2"), "gives 00001.png two labels, 0 and 2"),
        (csv_of("00000.png,"), "line 2 of"),
        (csv_of("00000.png"), "line 2 of"),
        (csv_of(*NUMBERS[:3], "00003.png,NaN"), "line 5 of"),
        (csv_of(*NUMBERS[:3], "00003.png,-1"), "the label of 00003.png is -1, and class numbers are 0 or more"),
        ("name,class\na,b", "must name the columns file and label, not name, class"),
        ("", "must name the columns file and label, not none"),
        ("file,label\n\0\xff".encode("latin-1"), "is not a CSV of file,label in UTF-8: save it as that"),
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


@pytest.mark.parametrize(
    ("given", "names", "labels"),
    [
        ([0, 1, 2], (), [0, 1, 2]),
        ([3, 1, 2], ("1", "2", "3"), [2, 0, 1]),
        ([2000, 2002, 2000], ("2000", "2002"), [0, 1, 0]),
        ([1234567890, 0, 7], ("0", "7", "1234567890"), [2, 0, 1]),
        (["10", "9", "1"], ("1", "9", "10"), [2, 1, 0]),
        (["b10", "b9", "a"], ("a", "b10", "b9"), [1, 2, 0]),
        (["10.0", "-2.5", "9"], ("-2.5", "9", "10.0"), [2, 0, 1]),
        ([10**20, 5, 10**20], ("5", str(10**20)), [1, 0, 1]),
    ],
)
def test_the_classes_are_those_that_occur(given, names, labels):
    pixels = np.zeros((3, 8, 8), np.uint8)
    images = pd.open_images(list(zip(pixels, given, strict=True)))
    assert (images.class_names, images.labels.tolist(), images.num_classes) == (names, labels, len(set(given)))


def test_labels_of_a_tensor_are_counted_as_well():
    pixels = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    images = pd.ImageSet(pixels, torch.tensor([1, 3, 2]))
    assert (images.class_names, images.labels.tolist()) == (("1", "2", "3"), [0, 2, 1])
    assert pd.ImageSet(pixels, torch.tensor([0, 2, 1])).class_names == ()
    assert pd.ImageSet(pixels, torch.tensor([10**12, 0, 0])).num_classes == 2
    some = pd.ImageSet(pixels, torch.tensor([0, 2, 2]), num_classes=5)  # of which others have no image here
    assert (some.class_names, some.labels.tolist(), some.num_classes) == ((), [0, 2, 2], 5)
    both = pd.ImageBuckets((images, pd.ImageSet(pixels[..., :2], torch.tensor([3, 7, 3]))))
    assert both.class_names == ("1", "2", "3", "7") and both.buckets[1].labels.tolist() == [2, 3, 2]
    with pytest.raises(pd.InputError, match="labels go up to 2, but there are 2 class names"):
        pd.ImageSet(pixels, torch.tensor([0, 1, 2]), ("a", "b"))


def test_numbered_folders_are_in_numeric_order_and_one_of_broken_files_is_no_class(tmp_path):
    folder = of_subfolders(tmp_path / "pictures", {"1": 60, "2": 60, "10": 60})
    of_subfolders(folder, {"3": 1})
    (folder / "3").rename(folder / "bad")
    (folder / "bad" / "00000.png").write_bytes(b"broken")
    images = pd.open_images(folder, classes=True)
    assert images.class_names == ("1", "2", "10") and images.labels.bincount().tolist() == [60, 60, 60]
    assert images.labels[60] == 2  # of folder 10, which is read before folder 2
    assert inspect_images(Data(str(folder), classes=True)).class_counts == {"1": 60, "2": 60, "10": 60}


def test_a_folder_around_everything_is_no_class(tmp_path):
    folder = of_subfolders(tmp_path / "pictures", {"photos/cat": 2, "photos/wolf": 1})
    assert pd.open_images(folder, classes=True).class_names == ("cat", "wolf")
    (folder / "photos" / "dataset.json").write_text(
        json.dumps({"labels": [["cat/00000.png", 5], ["cat/00001.png", 6], ["wolf/00000.png", 6]]})
    )
    images = pd.open_images(write_zip(tmp_path / "a.zip", folder))
    assert images.class_names == ("5", "6") and not any("not images" in note for note in images.notes)


def test_ids_are_refused_in_one_line(tmp_path, capsys):
    folder = write_folder(tmp_path / "pictures", random_pictures(30), labels=False)
    ids = tmp_path / "ids.csv"
    ids.write_text(csv_of(*(f"{index:05d}.png,{1234567890 + index}" for index in range(30))))
    message = "30 images have 30 different labels: these look like ids, not classes; use --data.classes False"
    config = Config(data=Data(str(folder), labels=str(ids)), steps=1, engine=Engine(device="cpu"))
    with pytest.raises(pd.InputError, match=message):
        pd.train(config, tmp_path / "run", show=False)
    assert message in inspect_images(config.data).problems[0] and not (tmp_path / "run").exists()


def numbered_run(folder, out, names, num):
    """A run of one step, as an earlier version numbered its classes; also what one of two steps has learned."""
    network = Network(kind="ddpmpp", width=8, multipliers=(1,), blocks=1, attention=())
    data = Data(str(folder), labels=str(folder / "labels.csv"), held_out=0.0)
    config = Config(data=data, network=network, steps=1, batch=4, samples=0, engine=Engine(device="cpu"))
    images = numbered_as(pd.open_images(folder, labels=data.labels), names, num)
    stopped = build_trainer(config, images, out, show=False)
    with stopped.in_laps(steps=2) as train_until:
        train_until(0.5)
        stopped.save()
    whole = build_trainer(config, images, out.with_name("whole"), show=False)
    whole.fit(steps=2)
    return replace(config, steps=2), images, read_tensors(whole.run.model_file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "num", "labels"), [((), 11, [10, 1, 2, 2]), (("1", "10", "2", "no more"), 4, [1, 0, 2, 2])]
)
def test_a_run_made_before_keeps_its_numbering(folder, tmp_path, names, num, labels):
    (folder / "labels.csv").write_text(csv_of(*(f"{i:05d}.png,{label}" for i, label in enumerate([10, 1, 2, 2]))))
    config, before, expected = numbered_run(folder, tmp_path / "run", names, num)
    assert before.labels.tolist() == labels  # pyright: ignore[reportAttributeAccessIssue]
    model = pd.train(config, tmp_path / "run", show=False)
    assert (model.num_classes, model.class_names) == (num, names)
    found = read_tensors(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    images = pd.open_images(folder, labels=config.data.labels)
    assert images.labels.tolist() == [2, 0, 1, 1] and images.class_names == ("1", "2", "10")
    assert set(classes_like(images, model, 40, 0)) == set(labels)
    assert pd.whole_image_loss(model, images, sigmas=(0.4,)) == pd.whole_image_loss(model, before, sigmas=(0.4,))
    others = pd.ImageSet(images.pixels, torch.tensor([0, 1, 2, 77]))
    with pytest.raises(pd.InputError, match="classes that the model does not know"):
        pd.whole_image_loss(model, others)
    assert classes_like(others, model, 4, 0) is None


@pytest.mark.slow
def test_a_model_of_other_classes_learns_on_by_their_names(folder, tmp_path):
    (folder / "labels.csv").write_text(csv_of(*(f"{i:05d}.png,{label}" for i, label in enumerate([10, 1, 2, 2]))))
    _, images, _ = numbered_run(folder, tmp_path / "run", ("1", "10", "2"), 3)
    less = pd.ImageSet(images.pixels[:2], torch.tensor([10, 2]))  # pyright: ignore[reportAttributeAccessIssue]
    trainer = pd.Trainer(pd.load(tmp_path / "run", device="cpu"), less, out=tmp_path / "on", batch=2, show=False)
    assert trainer.images.labels.tolist() == [1, 2] and trainer.facts.class_names == ("1", "10", "2")  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "is nested too deeply to be read"),
        (b'{"groups":' * 100_000, "is nested too deeply to be read"),
        (b'{"labels": [["00000.png", 1.5]]}', "the label of 00000.png is 1.5, not a class number"),
        (b'{"labels": [["00000.png", NaN]]}', "the label of 00000.png is nan, not a class number"),
        (b'{"labels": [["00000.png", %s]]}' % (b"9" * 5000), "is not of the form"),
    ],
)
def test_labels_of_a_stranger(folder, content, message):
    (folder / "dataset.json").write_bytes(content)
    assert message in refusal(folder)


def test_a_label_that_no_integer_holds_is_a_name(folder):
    (folder / "dataset.json").write_text(
        json.dumps({"labels": [[f"{n:05d}.png", [3, 10**20][n % 2]] for n in range(4)]})
    )
    assert pd.open_images(folder).class_names == ("3", "1" + "0" * 20)
    (folder / "a.csv").write_text(csv_of(*(f"{n:05d}.png,{'9' * 5000 if n % 2 else 3}" for n in range(4))))
    assert pd.open_images(folder, labels="a.csv").class_names == ("3", "9" * 5000)


def test_files_of_labels_are_not_read_without_end(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(damage, "_MOST_BYTES", 2**20)
    (folder / "dataset.json").write_bytes(bytes(2**20 + 4 * 2**10 + 1))
    assert "has more than 1 MB, too many for labels of 4 images" in refusal(folder)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("00000.png", "dataset.json"):
            archive.write(folder / name, name)
    assert "dataset.json in " in refusal(tmp_path / "a.zip") and "has more than 1 MB" in refusal(tmp_path / "a.zip")
    (folder / "a.csv").write_bytes(bytes(2**21))
    assert refusal(folder, labels="a.csv").startswith(f"a.csv in {folder} has more than 1 MB")


def test_a_line_without_end(folder):
    (folder / "a.csv").write_bytes(b"file,label\n" + b"a" * 10**6)
    assert "is not a CSV of file,label: field larger than field limit" in refusal(folder, labels="a.csv")
    (folder / "a.csv").write_bytes(b"a," * 10**6)
    assert len(refusal(folder, labels="a.csv")) < 400


def renamed(folder, *names):
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{index:05d}.png").rename(folder / name)
    return folder


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("kind", ["csv", "json", "groups"])
def test_names_that_mean_the_same(folder, tmp_path, form, kind):
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    names = [unicodedata.normalize(form, f"é{index}.png") for index in range(4)]
    written = [f"./{unicodedata.normalize(other, name)}" for name in names[:2]] + ["sub\\é2.PNG", "É3.png"]
    renamed(folder, *names[:2], f"sub/{names[2]}", names[3])
    rows = [[name, index % 2] for index, name in enumerate(written)]
    (folder / "a.csv").write_text(csv_of(*(f"{name},{label}" for name, label in rows)))
    content = {"labels": rows} | ({"groups": [[name, f"g{label}"] for name, label in rows]} if kind == "groups" else {})
    if kind != "csv":
        (folder / "dataset.json").write_text(json.dumps(content))
    for source in (folder, write_zip(tmp_path / "a.zip", folder)):
        images = pd.open_images(source, labels="a.csv" if kind == "csv" else None)
        # By name: é0 and é1 are before or after sub/é2, as the form sorts.
        assert sorted(images.labels.tolist()) == [0, 0, 1, 1]
        assert any("names 2 of 4 images in other upper or lower case (first: " in note for note in images.notes)
        assert kind != "groups" or len(set(images.groups.tolist())) == 2


def test_another_case_that_could_mean_two_is_not_guessed(folder):
    renamed(folder, "A.png", "a.png", "b.png", "c.png")
    (folder / "a.csv").write_text(csv_of("a.PNG,0", "b.png,1", "c.png,1"))
    assert "has no label for 2 of 4 images (first: A.png)" in refusal(folder, labels="a.csv")
    (folder / "a.csv").write_text(csv_of("a.png,0", "A.png,1", "B.png,2", "c.png,3"))
    assert pd.open_images(folder, labels="a.csv").labels.tolist() == [1, 0, 2, 3]


def test_a_dataset_json_in_any_folder_around_the_images(folder, tmp_path):
    (folder / "dataset.json").write_text(
        json.dumps({"labels": [[f"{index:05d}.png", index % 2] for index in range(4)]})
    )
    shutil.move(folder, tmp_path / "all" / "photos" / "00000")
    assert pd.open_images(tmp_path / "all").num_classes == 2
    path = tmp_path / "all" / "photos" / "00000" / "dataset.json"
    labels = json.loads(path.read_text())["labels"]
    path.unlink()
    outer = {"labels": [[f"00000/{name}", label] for name, label in labels]}
    (tmp_path / "all" / "photos" / "dataset.json").write_text(json.dumps(outer))
    images = pd.open_images(tmp_path / "all")
    assert images.labels.tolist() == [0, 1, 0, 1] and images.notes == ()


def test_which_folders_are_classes_is_told(tmp_path):
    around = of_subfolders(tmp_path / "a", {"photos/cats": 2, "photos/dogs": 2})
    assert "the classes are the folders in photos: cats, dogs" in pd.open_images(around, classes=True).notes
    parts = of_subfolders(tmp_path / "b", {f"data/{part}/{name}": 2 for part in ("train", "val") for name in "xy"})
    for source in (parts, write_zip(tmp_path / "b.zip", parts)):
        images = pd.open_images(source, classes=True)
        assert images.class_names == ("x", "y") and images.labels.tolist() == [0, 0, 1, 1] * 2
        assert "the classes are the folders in data/train and data/val: x, y" in images.notes
        told = "the folders train and val are read together; to read one of them alone, give its path"
        assert told in images.notes and told in pd.open_images(source).notes
    flat = of_subfolders(tmp_path / "c", {"train": 2, "Test": 2})
    assert (
        "the classes are Test and train, which look like splits of a data set, not like classes"
        in pd.open_images(flat, classes=True).notes
    )
    assert not any("with --data.classes True" in note for note in pd.open_images(flat).notes)
    assert pd.open_images(parts / "data" / "train", classes=True).notes == ()
