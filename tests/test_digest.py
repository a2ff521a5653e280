"""A run notices that its data have changed, says what, and goes on with them without training on what is held out."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

import patch_diffusion as pd
from image_files import encoded, random_pictures, write_folder, write_zip
from patch_diffusion.config import Config, Data, Network, Optimizer
from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.evaluation.subject import open_subject
from patch_diffusion.races.race import race
from patch_diffusion.runs.folder import RunFolder
from patch_diffusion.training.build import build_trainer


def config_of(source, held_out=0.2, **data):
    return Config(
        data=Data(source=str(source), held_out=held_out, **data),
        network=Network(width=8, multipliers=(1,), blocks=1, attention=(), dropout=0.0),
        optimizer=Optimizer(learning_rate=1e-3),
        batch=2,
        samples=0,
        checkpoints=1,
        track=(),
        steps=1,
    )


def continued(run, source=None, allow=()):
    """The trainer that goes on with a run."""
    config, _ = RunFolder(run).read_config()
    data = config.data if source is None else replace(config.data, source=str(source))
    how = {name: value for name, value in vars(data).items() if name not in ("augment", "held_out")}
    return build_trainer(replace(config, data=data), pd.open_images(**how), run, allow=allow, show=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of 20 pictures in two class folders, and a run on them."""
    folder = tmp_path_factory.mktemp("digest")
    pictures = random_pictures(20, (8, 8), num_classes=2)
    for label, name in enumerate(("cat", "dog")):
        (folder / "data" / name).mkdir(parents=True)
        for index in np.flatnonzero(pictures.labels == label):
            (folder / "data" / name / f"{index:02d}.png").write_bytes(encoded(pictures.pixels[index]))
    pd.train(config_of(folder / "data", classes=True), folder / "run", show=False)
    return folder


@pytest.fixture
def copied(made, tmp_path):
    """A copy of the pictures in the place that the copy of the run knows."""
    shutil.copytree(made, tmp_path / "all")
    file = tmp_path / "all" / "run" / "config.json"
    content = json.loads(file.read_text())
    content["data"]["source"] = str(tmp_path / "all" / "data")
    file.write_text(json.dumps(content))
    return tmp_path / "all"


def replace_five(data):
    for index, path in enumerate(sorted(data.rglob("*.png"))[:5]):
        path.write_bytes(encoded(np.full((3, 8, 8), index, np.uint8)))


def exchange_folders(data):
    (data / "cat").rename(data / "x")
    (data / "dog").rename(data / "cat")
    (data / "x").rename(data / "dog")


def rename_one(data):
    (data / "cat" / "00.png").rename(data / "cat" / "99.png")


def add_one(data):
    (data / "cat" / "more.png").write_bytes(encoded(np.zeros((3, 8, 8), np.uint8)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (replace_five, "some of the 20 images are others"),
        (exchange_folders, "the labels of the images differ"),
        (rename_one, "the images are in another order"),
        (add_one, "21 images now, 20 then"),
    ],
)
def test_changed_data_are_refused_and_said(copied, change, said):
    run, data = copied / "run", copied / "data"
    change(data)
    before = (run / "config.json").read_bytes()
    with pytest.raises(pd.InputError, match=rf"have changed since .* was trained \({said}.*--allow data_digest"):
        continued(run)
    assert (run / "config.json").read_bytes() == before
    subject = open_subject(run, None, None, device="cpu")
    assert any(said in note for note in subject.notes) and subject.held_out is not None
    trainer = continued(run, allow=["data_digest"])
    assert any(said in text for text in trainer.changed)
    trainer.fit(steps=2)
    continued(run)  # from now on these are its data


def test_data_that_moved_are_the_same(copied, tmp_path):
    for path in copied.rglob("*.png"):
        os.utime(path, (1e9, 1e9))
    continued(copied / "run")
    zipped = write_zip(tmp_path / "moved.zip", copied / "data")
    trainer = continued(copied / "run", zipped, allow=["data.source"])
    assert len(trainer.changed) == 1 and trainer.changed[0].startswith("data.source")
    subject = open_subject(copied / "run", zipped, None, device="cpu")
    assert len(subject.held_out) == len(trainer.held_out) and not subject.notes
    others = open_subject(copied / "run", write_folder(tmp_path / "others", random_pictures(9)), None, device="cpu")
    assert others.held_out is None and len(others.training) == 9


@pytest.mark.slow
def test_exchanged_labels_are_refused(tmp_path):
    data = write_folder(tmp_path / "data", random_pictures(8, (8, 8), num_classes=2))
    pd.train(config_of(data), tmp_path / "run", show=False)
    content = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps({"labels": [[name, 1 - label] for name, label in content["labels"]]}))
    with pytest.raises(pd.InputError, match="the labels of the images differ"):
        continued(tmp_path / "run")


def test_a_run_goes_on_by_the_range_that_it_found(tmp_path):
    values = np.linspace(-0.3, 1, 12 * 8 * 8, dtype=np.float32).reshape(12, 8, 8)
    np.save(tmp_path / "a.npy", values)
    images = pd.open_images(tmp_path / "a.npy")
    assert images.codec.range == (-1, 1)  # pyright: ignore[reportAttributeAccessIssue]
    earlier = replace(images, codec=PixelCodec("float32", float(values.min()), 1.0))
    trainer = build_trainer(config_of(tmp_path / "a.npy", 0.0), earlier, tmp_path / "run", show=False)
    trainer.fit(steps=1)
    again = continued(tmp_path / "run")
    assert again.images.codec == earlier.codec and not again.changed
    assert again.facts == trainer.facts
    subject = open_subject(tmp_path / "run", None, None, device="cpu")
    assert subject.training is not None and subject.training.codec == earlier.codec


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "allow"),
    [
        (lambda first, more: np.concatenate([first[1:], more[:1]]), "data_digest"),
        (lambda first, more: np.concatenate([more, first]), "num_images"),
    ],
)
def test_no_held_out_image_was_ever_trained_on(tmp_path, change, allow):
    first, more = np.split(np.random.default_rng(0).integers(0, 256, (720, 8, 8), dtype=np.uint8), [700])
    np.save(tmp_path / "a.npy", first)
    config = config_of(tmp_path / "a.npy", 0.1)
    trainer = build_trainer(config, pd.open_images(tmp_path / "a.npy"), tmp_path / "run", show=False)
    trainer.fit(steps=1)

    def shown(images):
        return {image.numpy().tobytes() for image in images.batch(np.arange(len(images)))[0]}

    trained_on, held_out = shown(trainer.images), shown(trainer.held_out)
    np.save(tmp_path / "a.npy", change(first, more))
    again = continued(tmp_path / "run", allow=[allow])
    assert len(held_out) == 70 and 60 <= len(again.held_out) <= 80
    assert not shown(again.held_out) & trained_on and not shown(again.images) & held_out
    assert not [text for text in again.changed if "chosen by place" in text]


@pytest.mark.slow
def test_a_race_is_not_continued_with_other_data(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8))
    arms = {name: replace(config_of(tmp_path / "a.npy"), batch=batch) for name, batch in (("one", 1), ("two", 2))}
    race(arms, tmp_path / "race", moments=1)
    record = (tmp_path / "race" / "race.json").read_bytes()
    np.save(tmp_path / "a.npy", np.random.default_rng(1).integers(0, 256, (20, 8, 8), dtype=np.uint8))
    with pytest.raises(pd.InputError, match=r"race.*some of the 20 images are others"):
        race(arms, tmp_path / "race", moments=1, seeds=[1])
    assert (tmp_path / "race" / "race.json").read_bytes() == record


@pytest.mark.slow
def test_a_run_of_an_earlier_version_goes_on_by_places(copied):
    file = copied / "run" / "config.json"
    content = json.loads(file.read_text())
    del content["model"]["held_out_below"], content["model"]["data_digest"]
    file.write_text(json.dumps(content))
    replace_five(copied / "data")
    trainer = continued(copied / "run")
    assert trainer.facts.data_digest == {} and trainer.facts.held_out_below is None and not trainer.changed
    add_one(copied / "data")
    with pytest.raises(pd.InputError, match=r"holds a run on .* images, but there are now"):
        continued(copied / "run")
    assert any("chosen by place" in text for text in continued(copied / "run", allow=["num_images"]).changed)
