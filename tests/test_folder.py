import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import patch_diffusion as pd


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


def test_samples_of_one_seed_are_one_picture(tmp_path):
    assert pd.write_samples([sample(1), sample(2), sample(1)], tmp_path) == 2


@pytest.mark.parametrize("content", ['{"samples": [{"name": "x"}]}', '{"samples": {"a": 1}}', "{}", '{"samples": [1]}'])
def test_an_index_of_something_else_is_left_alone(tmp_path, content):
    (tmp_path / "samples.json").write_text(content)
    with pytest.raises(pd.InputError, match="is no index of samples"):
        pd.write_samples([sample(1)], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["samples.json"]
    assert (tmp_path / "samples.json").read_text() == content
