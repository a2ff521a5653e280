"""The scripts of examples/ and the tour, each at its smallest."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import patch_diffusion as pd
from needs import need

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
BRIEF = "--minutes 0.003 --samples 2"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name, words):
    return load(name).main(words.split() if isinstance(words, str) else words)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_each_says_what_it_shows_and_how_to_run_it(script):
    text = script.read_text(encoding="utf-8")
    commands = re.findall(r"^    python (\S+)", text.split('"""')[1], re.MULTILINE)
    assert commands == [f"examples/{script.name}"]
    assert len(text.splitlines()) <= 100


@pytest.mark.scheduled
def test_photographs_that_are_drawn(here, capsys):
    assert run("photographs", f"--resolution 16 {BRIEF}") == 0
    assert len(list((here / "runs" / "photographs-drawn").iterdir())) == 400
    assert pd.load("runs/photographs").resolution == (16, 16)
    names = sorted(path.name for path in (here / "runs" / "photographs" / "pictures").glob("[!.]*"))
    assert names == ["000000.png", "000001.png", "samples.json"]
    assert (here / "runs" / "photographs-sheet.png").exists() and (here / "runs" / "photographs" / "grid.png").exists()
    assert capsys.readouterr().out.count("$ patch-diffusion ") == 3


@pytest.mark.scheduled
def test_photographs_of_ones_own(make_folder, here, capsys):
    words = ["--resolution", "16", *BRIEF.split(), "--out", "my runs/mine"]
    assert run("photographs", ["my photos", *words]) == 1
    assert "my photos" in capsys.readouterr().err and not (here / "my runs").exists()
    folder = make_folder(6, (20, 24), name="my photos")
    assert run("photographs", [str(folder), *words]) == 0
    assert (here / "my runs" / "mine" / "grid.png").exists()


@pytest.mark.parametrize("kind", ["uint16", "float32"])
def test_grey_arrays(here, kind):
    words = BRIEF
    if kind == "float32":
        np.save(here / "mine.npy", np.random.default_rng(0).normal(5, 2, (8, 16, 24)).astype(kind))
        words = f"mine.npy --out runs/scans {BRIEF}"
    made = run("grey_arrays", words)
    assert made.dtype == kind and made.shape == ((2, 1, 24, 48) if kind == "uint16" else (2, 1, 16, 24))
    assert np.array_equal(np.load(here / "runs" / "scans" / "generated.npy"), made)
    assert (here / "runs" / "scans" / "grid.png").exists()
    if kind == "uint16":  # what was made for it is worth 16 bits
        scans = np.load(here / "runs" / "scans.npy")
        assert scans.shape == (1000, 24, 48) and len(np.unique(scans % 256)) == 256 and scans.max() > 30_000


def test_guided_digits(here):
    spread = run("guided_digits", f"{BRIEF} --guidance 1 3 --digit 4")
    assert list(spread) == [1.0, 3.0] and min(spread.values()) > 0
    with Image.open(here / "runs" / "guided-digits" / "guidance.png") as picture:
        assert picture.width == picture.height  # two rows of two


def test_diffusers_unet(here):
    need("diffusers", "hub")
    run("diffusers_unet", f"{BRIEF} --width 8")
    assert (here / "runs" / "unet2d" / "grid.png").exists()
    config = json.loads((here / "runs" / "unet2d" / "unet" / "config.json").read_text())
    assert (config["in_channels"], config["out_channels"], config["num_class_embeds"]) == (3, 1, 11)


NOTEBOOK = json.loads((EXAMPLES / "tour.ipynb").read_text(encoding="utf-8"))
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


def pictures(cell):
    """What the notebook shows under a cell."""
    return [output["data"]["image/png"] for output in cell["outputs"] if output["output_type"] == "display_data"]


def test_the_tour(here):
    """The cells in order, as a notebook runs them, with a moment of training; each shows what it shows in the file."""
    shown = []
    names = {"display": shown.append}
    assert sum("STEPS = 1000 " in source(cell) for cell in CELLS) == 1
    for number, cell in enumerate(CELLS):
        code = re.sub(r"^( *)%pip .*$", r"\1raise AssertionError('it is installed')", source(cell), flags=re.MULTILINE)
        shown.clear()
        code = code.replace("STEPS = 1000 ", "STEPS = 10 ").replace("steps=18", "steps=3")
        exec(compile(code, f"tour.ipynb, cell {number}", "exec"), names)
        assert len(shown) == len(pictures(cell)) and all(isinstance(picture, Image.Image) for picture in shown)
    assert (here / "runs" / "tour" / "report.html").exists()


def test_the_tour_shows_pictures_and_nothing_of_the_machine_that_made_it():
    assert NOTEBOOK["nbformat"] == 4 and [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    assert sum(len(pictures(cell)) for cell in CELLS) >= 8
    for cell in CELLS:
        for output in cell["outputs"]:
            assert output["output_type"] == "stream" or set(output["data"]) == {"image/png", "text/plain"}
            assert output.get("name", "stdout") == "stdout" and not re.search(r"/\w+/\w+", str(output.get("text")))
    assert len(json.dumps(NOTEBOOK)) < 200_000


def test_the_tour_keeps_the_torch_that_is_installed():
    first = source(CELLS[0])
    assert "torch=={version('torch')}" in first and "%pip install --quiet {source} {torch_as_it_is}" in first


def test_emoji_of_the_package(here, capsys):
    """Skin tones have the category and name of their emoji; forms without a picture and pairs of tones are left out."""
    pictures = here / "package" / "img" / "google" / "64"
    pictures.mkdir(parents=True)
    for name in ("wave", "light", "pair", "flag"):
        Image.new("RGBA", (64, 64)).save(pictures / f"{name}.png")

    def form(file, drawn=True, **more):
        return {"image": f"{file}.png", "has_img_google": drawn, **more}

    tones = {"1F3FB": form("light"), "1F3FC": form("missing", drawn=False), "1F3FB-1F3FC": form("pair")}
    listed = [
        form("wave", category="People & Body", name="WAVING HAND", skin_variations=tones),
        form("flag", category="Flags", name="FLAG"),
    ]
    (here / "package" / "emoji.json").write_text(json.dumps(listed))
    assert run("emoji", "package") == 0 and "3 emoji" in capsys.readouterr().out
    assert (here / "emoji.csv").read_text().splitlines() == [
        "file,label,caption",
        "flag.png,Flags,flag",
        "light.png,People & Body,waving hand",
        "wave.png,People & Body,waving hand",
    ]
    images = pd.open_images("emoji.zip", labels="emoji.csv", group="caption", resolution=16)
    assert len(images) == 3 and images.class_names == ("Flags", "People & Body")
