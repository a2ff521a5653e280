"""Images of one group are held out together, wherever the groups are named."""

import json
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

import patch_diffusion as pd
from image_files import encoded, random_pictures, write_shard, write_zip
from needs import need
from patch_diffusion.advice import advise
from patch_diffusion.config import Config, Data, Network
from patch_diffusion.data.held_out import hold_out
from patch_diffusion.data.inspection.inspect import inspect_images
from patch_diffusion.data.preparation.prepare import prepare_images
from patch_diffusion.data.reading.groups import groups_of_names
from patch_diffusion.evaluation.subject import open_subject
from patch_diffusion.races.setup import RaceSetup

PICTURES = random_pictures(24, (8, 8), channels=1)
PATIENTS = [index // 4 for index in range(24)]


@pytest.fixture
def folder(tmp_path):
    """Four pictures of each of six patients, in folders named by them and in a CSV."""
    data, rows = tmp_path / "scans", ["file,label,patient"]
    for index, patient in enumerate(PATIENTS):
        name = f"p{patient}/patient-{patient}-slice-{index % 4}.png"
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(encoded(PICTURES.pixels[index]))
        rows.append(f"{name},{index % 2},{patient}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    return data


def patients_of(images, side=None):
    """The patients of the images of one side of a split, by what is in them."""
    of_picture = {pixels.tobytes(): patient for pixels, patient in zip(PICTURES.pixels, PATIENTS, strict=True)}
    chosen = images if side is None else hold_out(images, 0.4, 0)[side]
    return sorted(of_picture[image.numpy().tobytes()] for image in chosen.batch(np.arange(len(chosen)))[0])


def is_whole(images):
    """True if every patient is on one side."""
    train, held_out = (patients_of(images, side) for side in (0, 1))
    return not set(train) & set(held_out) and len(train) + len(held_out) == 24 and len(held_out) == 12


@pytest.mark.parametrize("group", ["folder", r"patient-(\d+)", "patient"])
@pytest.mark.parametrize("zipped", [False, True])
def test_of_files(folder, tmp_path, group, zipped):
    source = write_zip(tmp_path / "a.zip", folder) if zipped else folder
    column: Any = {"labels": str(tmp_path / "labels.csv")} if group == "patient" else {}
    images = pd.open_images(source, group=group, **column)
    assert is_whole(images) and images.options.group == group
    assert "24 images in 6 groups; a group is held out as a whole" in images.notes
    assert not is_whole(pd.open_images(source))
    if column:
        without = pd.open_images(source, group=group, classes=False, **column)
        assert is_whole(without) and without.labels is None  # pyright: ignore[reportAttributeAccessIssue]


def test_of_arrays_tables_shards_and_objects(folder, tmp_path):
    np.savez(tmp_path / "a.npz", images=PICTURES.pixels, patient=np.array([f"p{each}" for each in PATIENTS]))
    assert is_whole(pd.open_images(tmp_path / "a.npz", group="patient"))
    np.save(tmp_path / "a.npy", PICTURES.pixels)
    np.save(tmp_path / "patients.npy", np.array(PATIENTS))
    assert is_whole(pd.open_images(tmp_path / "a.npy", group=str(tmp_path / "patients.npy")))
    items = [{"image": pixels, "patient": patient} for pixels, patient in zip(PICTURES.pixels, PATIENTS, strict=True)]
    assert is_whole(pd.open_images(items, group="patient", layout="channels_first"))
    samples = []
    for index, patient in enumerate(PATIENTS):
        name = f"p{patient}/{index:02d}"
        samples += [(f"{name}.png", encoded(PICTURES.pixels[index]))]
        samples += [(f"{name}.json", json.dumps({"patient": patient}).encode())]
    write_shard(tmp_path / "a.tar", samples)
    for group in ("folder", "p([0-9]+)/", "patient", "patient"):
        assert is_whole(pd.open_images(f"wds:{tmp_path}/a.tar", group=group)), group
    with pytest.raises(pd.InputError, match=r"p0/00\.png has no field 'other' of \.json"):
        pd.open_images(f"wds:{tmp_path}/a.tar", group="other")


@pytest.mark.slow
def test_of_a_table(tmp_path):
    datasets = need("datasets", "data")
    pictures = [Image.open(BytesIO(encoded(pixels))) for pixels in PICTURES.pixels]
    table = datasets.Dataset.from_dict({"image": pictures, "patient": PATIENTS})
    table = table.cast_column("image", datasets.Image())
    assert is_whole(pd.open_images(table, group="patient"))
    with pytest.raises(pd.InputError, match="has no column 'patients'; did you mean 'patient'"):
        pd.open_images(table, group="patients")


@pytest.mark.slow
def test_in_training_races_and_evaluation(folder, tmp_path):
    network = Network(width=8, multipliers=(1,), blocks=1, attention=(), dropout=0.0)
    data = Data(str(folder), group="folder", held_out=0.4)
    config = Config(data=data, network=network, batch=2, samples=0, checkpoints=1, track=(), steps=1)
    pd.train(config, tmp_path / "run", show=False)
    subject = open_subject(tmp_path / "run", None, None, device="cpu")
    sides = [set(patients_of(images)) for images in (subject.training, subject.held_out)]
    assert not sides[0] & sides[1] and not subject.notes
    setup = RaceSetup.open({"one": config, "two": replace(config, batch=1)}, None, None)
    trainer, judges = setup.trainer(config, 0, tmp_path / "arm")
    assert [set(patients_of(images)) for images in (trainer.images, judges.race)] == sides
    (folder / "p0" / "patient-0-slice-0.png").rename(folder / "p1" / "patient-0-slice-0.png")
    with pytest.raises(pd.InputError, match="the groups of the images differ"):
        pd.train(config, tmp_path / "run", show=False)
    with pytest.raises(pd.InputError, match="none are with data.held_out 0"):
        pd.train(replace(config, data=replace(data, held_out=0.0)), tmp_path / "other", show=False)


def test_what_prepare_writes_keeps_them(folder, tmp_path):
    report = prepare_images(Data(str(folder), group=r"patient-(\d+)"), tmp_path / "a.zip")
    assert report["num_groups"] == 6
    again = prepare_images(Data(str(folder), group=r"patient-(\d+)"), tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes() and again["made_of"]
    images = pd.open_images(tmp_path / "a.zip")
    assert is_whole(images)
    assert patients_of(images, 1) == patients_of(pd.open_images(folder, group=r"patient-(\d+)"), 1)
    with pytest.raises(pd.InputError, match="is there already, of other data or options"):
        prepare_images(Data(str(folder)), tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (r"slice-([0-2])", r"p0/patient-0-slice-3.png in .* does not match 'slice-\(\[0-2\]\)', and every image needs"),
        ("patient", "is a column of the CSV that data.labels names, and there is none"),
        ("(", "is no regular expression"),
        ("(a)(b)", "one pair of parentheses"),
        ("patient-(?:.)", "one pair of parentheses"),
    ],
)
def test_groups_that_cannot_be_used(folder, group, message):
    with pytest.raises(pd.InputError, match=message):
        pd.open_images(folder, group=group)


def test_an_image_without_a_group_is_named(folder, tmp_path):
    (folder / "alone.png").write_bytes(encoded(PICTURES.pixels[0]))
    with pytest.raises(pd.InputError, match="alone.png in .* is in no sub-folder, and every image needs a group"):
        pd.open_images(folder, group="folder")
    (folder / "alone.png").unlink()
    (folder / "p5" / "twin.png").write_bytes(encoded(PICTURES.pixels[0]))
    assert any("1 image identical to one in another group" in n for n in pd.open_images(folder, group="folder").notes)
    with pytest.raises(pd.InputError, match="data.group has no meaning for the digits"):
        pd.open_images("digits", group="folder")


def test_inspect_proposes_groups(tmp_path):
    """Of names with numbers, and of alike pictures whose names begin alike; not where the first word says the class."""
    random = np.random.default_rng(0)
    tones, classes = tmp_path / "tones", tmp_path / "classes"
    for number in range(30):
        small = Image.fromarray(random.integers(0, 200, (4, 4, 3), dtype=np.uint8))
        picture = small.resize((32, 32), Image.Resampling.BICUBIC)
        for name in (f"1f{number:03x}.png", f"1f{number:03x}-dark.png"):
            tones.mkdir(exist_ok=True)
            picture.point(lambda value, name=name: value + 9 * ("dark" in name)).save(tones / name)
        classes.mkdir(exist_ok=True)
        picture.save(classes / f"{'cat' if number % 2 else 'dog'}_{number}.png")
    found = inspect_images(Data(str(tones)))
    assert found.groups == (r"([^-_./]+)[^/]*$", 30)
    assert len(set(groups_of_names(sorted(path.name for path in tones.iterdir()), found.groups[0], ""))) == 30
    told = advise(found, Config(data=Data(str(tones))), timed=False).warnings
    assert any("--data.group '([^-_./]+)[^/]*$'" in line for line in told)
    assert inspect_images(Data(str(classes))).groups is None
