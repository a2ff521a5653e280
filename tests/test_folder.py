import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import patch_diffusion as pd
from patch_diffusion.sampling.folder import digest_of
from patch_diffusion.sampling.pictures import metadata_of


def sample(seed, label=None):
    return pd.Sample(torch.full((1, 2, 2), seed, dtype=torch.uint8), seed, label, {"steps": 1})


def test_pictures_and_index(tmp_path):
    assert pd.write_samples([sample(5, 1), sample(3, 0)], tmp_path, class_names=("cat", "dog"), source="runs/a") == 2
    assert Image.open(tmp_path / "000005.png").getpixel((0, 0)) == 5
    first, second = json.loads((tmp_path / "samples.json").read_text())["samples"]
    assert first == {
        "file": "000003.png",
        "seed": 3,
        "class": 0,
        "class_name": "cat",
        "source": "runs/a",
        "settings": {"steps": 1},
    }
    assert (second["seed"], second["class_name"]) == (5, "dog")
    pd.write_samples([sample(7)], tmp_path, weights="12ab", step=0, ema_length=0.1)
    third = json.loads((tmp_path / "samples.json").read_text())["samples"][-1]
    assert (third["weights"], third["step"], third["ema_length"]) == ("12ab", 0, 0.1)


def test_the_grid_is_sorted_by_class(tmp_path):
    pd.write_samples([sample(1, 2), sample(2, 0), sample(3, 2), sample(4, 0)], tmp_path, grid=tmp_path / "grid.png")
    grid = Image.open(tmp_path / "grid.png")
    scale = grid.width // 5
    assert [grid.getpixel((x * scale, y * scale)) for y in (0, 3) for x in (0, 3)] == [2, 4, 1, 3]


def test_a_mean(tmp_path):
    pd.write_samples([sample(seed) for seed in (1, 2, 5)], tmp_path, mean=True)
    assert Image.open(tmp_path / "mean.png").getpixel((1, 1)) == 3
    assert len(json.loads((tmp_path / "samples.json").read_text())["samples"]) == 3
    floats = [pd.Sample(torch.full((5, 2, 2), value), 0, None, {}) for value in (0.5, 1.0)]
    pd.write_samples(floats, tmp_path / "floats", mean=True)
    found = np.load(tmp_path / "floats" / "mean.npy")
    assert found.dtype == np.float32 and (found == 0.75).all()
    pd.write_samples([], tmp_path / "none", mean=True)
    assert not (tmp_path / "none").exists()


def test_an_interruption_leaves_an_index_of_what_is_there(tmp_path):
    def interrupted():
        yield sample(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pd.write_samples(interrupted(), tmp_path)
    assert [entry["seed"] for entry in json.loads((tmp_path / "samples.json").read_text())["samples"]] == [1]


def test_a_writer_that_is_killed_loses_no_entries(tmp_path):
    """Its entries are in a file of lines, the last of which may be torn; the next writer takes them into the index."""

    def killed():
        yield sample(1)
        assert [json.loads(line)["seed"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()] == [1]
        yield sample(2)
        shutil.copytree(tmp_path, tmp_path.with_name("killed"))
        yield sample(3)

    pd.write_samples(killed(), tmp_path, source="killed")
    assert not (tmp_path / "samples.jsonl").exists()
    folder = tmp_path.with_name("killed")
    assert not (folder / "samples.json").exists()
    with (folder / "samples.jsonl").open("a") as file:
        file.write('{"file": "000003.png", "se')
    pd.write_samples([], folder)
    assert index_of(folder) == {1: "killed", 2: "killed"} and not (folder / "samples.jsonl").exists()


def test_a_picture_carries_its_entry_without_private_places(tmp_path):
    settings = {"steps": 1, "guide": "crops:1/4", "image": str(tmp_path / "cat.png"), "resolution": [2, 2]}
    source = tmp_path / "run" / "checkpoints" / "step-00000004"
    given = [pd.Sample(torch.zeros(1, 2, 2, dtype=kind), 3, 1, settings) for kind in (torch.uint8, torch.uint16)]
    for number, each in enumerate(given):
        out = tmp_path / str(number)
        pd.write_samples([each], out, class_names=("cat", "dog"), source=str(source), weights="12ab")
        assert metadata_of(out / "000003.png") == {
            "seed": 3,
            "class": 1,
            "class_name": "dog",
            "source": "run/checkpoints/step-00000004",
            "weights": "12ab",
            "settings": {**settings, "image": "cat.png"},
        }
    (entry,) = json.loads((tmp_path / "0" / "samples.json").read_text())["samples"]
    assert (entry["source"], entry["settings"], entry["weights"]) == (str(source), settings, "12ab")
    first, second = (sample(5, 1).save(tmp_path / name) for name in "ab")
    assert metadata_of(first) == {"seed": 5, "class": 1, "settings": {"steps": 1}}
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("text", [None, "", "{", "[]", "[" * 100_000, '{"seed": NaN}', '{"seed": ' + "9" * 5000 + "}"])
def test_pictures_that_do_not_say_how_they_were_made(tmp_path, text):
    info = PngInfo()
    if text is not None:
        info.add_text("patch_diffusion", text)
    Image.new("L", (1, 1)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(pd.InputError, match=r"a\.png (does not say how it was made|is damaged)"):
        metadata_of(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with pytest.raises(pd.InputError, match=r"b\.png is damaged"):
        metadata_of(tmp_path / "b.png")


def test_a_digest_is_of_all_weights(make_model):
    model, other = make_model(), make_model()
    assert digest_of(model) == digest_of(other) != digest_of(model, other) != digest_of(make_model(3))
    with torch.no_grad():
        list(other.parameters())[-1].view(-1)[-1] += 1
    assert digest_of(model) != digest_of(other)


def test_a_damaged_index_is_named_before_anything_is_written(tmp_path):
    (tmp_path / "samples.json").write_text("{")
    with pytest.raises(pd.InputError, match=r"samples\.json is damaged"):
        pd.write_samples([sample(1)], tmp_path)
    assert not (tmp_path / "000001.png").exists()


def index_of(folder):
    """Of each seed, where it came from."""
    return {entry["seed"]: entry["source"] for entry in json.loads((folder / "samples.json").read_text())["samples"]}


def test_writers_of_one_folder_lose_nothing(tmp_path):
    """A second writer begins and ends while the first is at work; several at once write the same files."""

    def first():
        yield sample(1)
        pd.write_samples([sample(2)], tmp_path, source="second")
        yield sample(3)

    pd.write_samples(first(), tmp_path, source="first")
    assert index_of(tmp_path) == {1: "first", 2: "second", 3: "first"}
    given = [[sample(seed) for seed in (9, 10 + place)] for place in range(4)]
    threads = [threading.Thread(target=pd.write_samples, args=(each, tmp_path)) for each in given]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(index_of(tmp_path)) == [1, 2, 3, 9, 10, 11, 12, 13]
    assert Image.open(tmp_path / "000009.png").getpixel((0, 0)) == 9 and not list(tmp_path.glob("*.tmp"))


def test_a_list_of_new_entries_may_go_while_it_is_looked_for(tmp_path, monkeypatch):
    """Another writer has put it into the index: that is no mistake."""
    pd.write_samples([sample(1)], tmp_path, source="first")
    (tmp_path / "samples.jsonl").touch()
    read = Path.read_text

    def gone(path, **options):
        path.unlink() if path.suffix == ".jsonl" else None
        return read(path, **options)

    monkeypatch.setattr(Path, "read_text", gone)
    pd.write_samples([sample(2)], tmp_path, source="second")
    assert index_of(tmp_path)[1] == "first"


def test_samples_of_one_seed_are_one_picture(tmp_path):
    assert pd.write_samples([sample(1), sample(2), sample(1)], tmp_path) == 2


@pytest.mark.parametrize("content", ['{"samples": [{"name": "x"}]}', '{"samples": {"a": 1}}', "{}", '{"samples": [1]}'])
def test_an_index_of_something_else_is_left_alone(tmp_path, content):
    (tmp_path / "samples.json").write_text(content)
    with pytest.raises(pd.InputError, match="is no index of samples"):
        pd.write_samples([sample(1)], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["samples.json"]
    assert (tmp_path / "samples.json").read_text() == content
