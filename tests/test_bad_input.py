"""Bad input, given or in the files of a run: one clear line that names it, and nothing is written."""

import copy
import io
import json
import math
import os
import pickle
import re
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import patch_diffusion as pd
from image_files import cut_in_half, random_pictures, write_folder, write_zip
from patch_diffusion import load
from patch_diffusion.cli import main
from patch_diffusion.data.reading.cache import cache_folder
from patch_diffusion.files import to_json
from patch_diffusion.runs.report import write_report

PICTURES = random_pictures(num=12, size=(16, 16))
TINY = (
    "--steps 1 --batch 1 --samples 0 "
    "--network.width 8 --network.blocks 1 --network.multipliers 1 2 --network.attention 1"
)


@pytest.fixture
def train(tmp_path, capsys):
    """``train(source, *options)``: the exit status and what was said."""

    def run(source, *options):
        status = main(["train", *map(str, source), *TINY.split(), *options, "--out", str(tmp_path / "run")])
        said = capsys.readouterr()
        assert not said.out
        return status, said.err

    return run


def truncated(path):
    folder = write_folder(path, PICTURES, labels=False)
    cut_in_half(folder / "00003.png")
    return folder, "00003.png"


def zero_bytes(path):
    folder = write_folder(path, PICTURES, labels=False)
    (folder / "00003.png").write_bytes(b"")
    return folder, "00003.png (an empty file)"


def bomb(path):
    folder = write_folder(path, PICTURES, labels=False)
    Image.new("1", (20_000, 10_000)).save(folder / "bomb.png")
    return folder, "bomb.png (200,000,000 pixels, more than the 89,478,485 that are read"


def way_up(path):
    with zipfile.ZipFile(f"{path}.zip", "w") as archive:
        archive.writestr("../out.png", b"")
    return f"{path}.zip", "../out.png"


def zip_in_zip(path):
    write_zip(path.with_suffix(".inner.zip"), write_folder(path, PICTURES))
    with zipfile.ZipFile(f"{path}.zip", "w") as archive:
        archive.write(path.with_suffix(".inner.zip"), "inner.zip")
    return f"{path}.zip", "only inner.zip: unpack it first"


def as_array(path, values, **options):
    np.save(f"{path}.npy", values, **options)
    return f"{path}.npy"


def not_finite(path):
    values = PICTURES.pixels.astype(np.float32)
    values[7, 1, 2, 3] = np.nan
    return as_array(path, values), "image 7 of"


def constant(path):
    return as_array(path, np.full((4, 3, 16, 16), 0.5, np.float32)), "all values of the images are 0.5"


def complex_numbers(path):
    return as_array(path, PICTURES.pixels.astype(np.complex64)), "holds complex64"


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (f"{self.path}-was-run",)


def objects(path):
    return as_array(path, np.array([Trap(path)] * 3, dtype=object), allow_pickle=True), "Python objects"


def labels_miss_a_file(path):
    folder = write_folder(path, PICTURES)
    entries = json.loads((folder / "dataset.json").read_text())["labels"]
    (folder / "dataset.json").write_text(json.dumps({"labels": entries[:-1]}))
    return folder, "00011.png"


def nobodys_home(path):
    return "~nosuchuser/photos", "~nosuchuser/photos"


def two_sizes(path):
    folder = write_folder(path, PICTURES, labels=False)
    Image.new("RGB", (20, 16)).save(folder / "wide.png")
    return folder, "wide.png, 16x20"


CASES = [
    truncated,
    zero_bytes,
    bomb,
    way_up,
    zip_in_zip,
    not_finite,
    constant,
    complex_numbers,
    objects,
    labels_miss_a_file,
    nobodys_home,
    two_sizes,
]


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["auto", "disk"])
@pytest.mark.parametrize("make", CASES)
def test_refused_in_one_line(make, cache, train, tmp_path):
    source, named = make(tmp_path / "data")
    before = sorted(tmp_path.rglob("*"))
    status, said = train([source], "--data.cache", cache)
    assert status == 1 and said.count("\n") == 1 and named in said and "Traceback" not in said
    assert sorted(tmp_path.rglob("*")) == before
    assert not [path for path in cache_folder().rglob("*") if path.suffix in (".npy", ".partial", ".tmp")]


def test_the_trap_works(tmp_path):
    """Without which the test of objects could not fail."""
    pickle.loads(pickle.dumps(Trap(tmp_path / "a")))
    assert (tmp_path / "a-was-run").exists()


@pytest.mark.slow
def test_images_of_one_value_and_a_class_of_one_image_are_told(train, tmp_path):
    pictures = random_pictures(num=12, size=(16, 16), num_classes=11)
    pictures.pixels[5] = 7
    status, said = train([write_folder(tmp_path / "data", pictures)])
    assert status == 0, said
    assert "have one value only (first: 00005.png)" in said and "one image" in said
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert "00005.png" in log and "one image" in log


@pytest.mark.slow
@pytest.mark.parametrize("by_name", [True, False], ids=["the same command", "train --out RUN"])
def test_data_that_shrank_is_refused_when_a_run_goes_on(train, tmp_path, by_name):
    folder = write_folder(tmp_path / "data", PICTURES, labels=False)
    status, said = train([folder])
    assert status == 0, said
    (folder / "00003.png").unlink()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    status, said = train([folder] if by_name else [], "--steps", "2")
    assert status == 1 and said.count("\n") == 1
    assert f"the data in {folder} have changed since" in said and "(11 images now, 12 then)" in said
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_names_that_are_not_utf8(train, tmp_path, monkeypatch):
    """They are escaped where text is written, and neither a report nor a narrow terminal ends anything."""
    data, run = tmp_path / os.fsdecode(b"d\xe9"), tmp_path / "run"
    for name in (os.fsdecode(b"caf\xe9"), "ok"):
        (data / name).mkdir(parents=True)
        for index in range(60):
            Image.fromarray(PICTURES.pixels[index % 12].transpose(1, 2, 0)).save(data / name / f"{index}.png")
    (data / "ok" / os.fsdecode(b"br\xe9ken.png")).touch()
    assert train([data], "--data.classes", "True", "--track")[0] == 0
    assert train([], "--steps", "2")[0] == 0
    page = (run / "report.html").read_bytes().decode("utf-8")
    assert r"caf\udce9" in page and r"br\udce9ken.png" in page
    run = run.rename(tmp_path / os.fsdecode(b"r\xe9"))
    assert load(run).class_names == ("caf\udce9", "ok")
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", narrow)
    assert main(["info", str(run)]) == 0
    assert rb"d\udce9, 120 images" in narrow.buffer.getvalue()


HOSTILE = [
    None,
    -1,
    0,
    "x",
    [1],
    {},
    1e9,
    math.nan,
    math.inf,
    True,
    "y" * 5000,
    [1e9, 1e9],
    10**12,
    10**400,
    [None],
    "\ud800",
]


@pytest.fixture(scope="module")
def run_before(tmp_path_factory):
    """A run folder, its config.json and that as a dict."""
    run = tmp_path_factory.mktemp("hostile") / "run"
    shutil.copytree(Path(__file__).parent / "runs_before" / "run", run)
    return run, run / "config.json", json.loads((run / "config.json").read_text())


def used(run):
    """What is done with a run by those who did not make it; the error if it is refused."""
    try:
        to_json(pd.describe(run))
        write_report(run)
        pd.load(run, device="cpu")
    except pd.InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
        return str(error)
    return ""


FACTS = [
    *("image_channels", "resolution", "num_classes", "class_names", "num_images", "sigma_data", "parameters"),
    *("augment_channels", "codec", "codec.dtype", "codec.low", "data_digest", "rules", "network.width"),
]


@pytest.mark.parametrize("fact", FACTS)
def test_a_fact_of_any_kind_is_taken_or_refused_by_name(fact, run_before):
    run, file, content = run_before
    *groups, name = (("model." if "network" not in fact else "") + fact).split(".")
    for value in [*HOSTILE, "missing"]:
        altered = group = copy.deepcopy(content)
        for each in groups:
            group = group[each]
        group[name] = value
        if value == "missing":
            del group[name]
        file.write_text(json.dumps(altered))
        said = used(run)
        assert not said or str(file) in said or "network" in said, (value, said)
        if isinstance(value, str) and len(value) > 9:
            assert said or fact in ("codec", "data_digest")


@pytest.mark.parametrize(
    ("fact", "value", "told"),
    [
        ("class_names", 5, "model.class_names is 5: input should be a valid tuple"),
        ("class_names", ["a"], "model.class_names has a name for each class, or none"),
        ("resolution", [1e9, 1e9], "model.resolution is at most 1,048,576, not 1000000000"),
        ("resolution", [2**20, 2**20], "model.resolution has at most 2^32 pixels"),
        ("num_classes", 10**12, "model.num_classes is at most 10,000,000, not 1000000000000"),
        (
            "codec",
            {"dtype": "uint7"},
            "model.codec is {'dtype': 'uint7'}: pixels are uint8, uint16, float32, not uint7",
        ),
        ("codec", {"kind": "sound"}, "a codec is of pixels or latents, not 'sound'"),
        ("data_digest", {"images": "x"}, "model.data_digest has the number of images"),
        ("colour", 1, "model.colour is 1: unexpected keyword argument"),
        (
            "image_channels",
            9999,
            "the network that the options describe has more parameters than the 11,433 numbers in",
        ),
    ],
)
def test_a_wrong_fact_is_one_sentence(fact, value, told, run_before):
    run, file, content = run_before
    file.write_text(json.dumps({**content, "model": {**content["model"], fact: value}}))
    assert told in used(run)


def test_networks_without_end_are_not_built(run_before):
    run, file, content = run_before
    for options in ({"width": 10**7}, {"blocks": 10**6}, {"width": 16_384}, {"multipliers": [1] * 5000}):
        file.write_text(json.dumps({**content, "network": {**content["network"], **options}}))
        assert re.search("at most|more parameters than", used(run))
