"""The commands of docs/export.md, executed, and the code of the model cards that they write."""

import json
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import patch_diffusion as pd
from needs import need
from patch_diffusion.cli import main

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
TINY = (
    "--network.width 8 --network.multipliers 1 2 --network.attention 1 --network.blocks 1 --batch 4 --samples 0 "
    "--checkpoints 1"
)


def code_of(text, file="page", change=("", ""), block=0, names=None):
    """What a block of Python in a page leaves behind, run as a file after what is there, with a text in it changed."""
    names = names or {"__file__": str(file)}
    exec(compile(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[block].replace(*change), "page", "exec"), names)
    return names


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a run."""
    folder = tmp_path_factory.mktemp("here")
    assert main(["train", "digits", "--out", str(folder / "runs" / "photos"), "--steps", "2", *TINY.split()]) == 0
    return folder


def run(line, capsys):
    """A command of the page; the folder that it made, and its card."""
    assert main([*shlex.split(line)[1:], "--json"]) == 0, (line, capsys.readouterr().err)
    found = json.loads(capsys.readouterr().out)
    folder = Path(found["out"])
    assert sorted(found["files"]) == sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    return found, (folder / "README.md").read_text()


def test_every_command_is_tested_below():
    *exports, imported = COMMANDS
    assert [line.split("--to ")[1].split()[0] for line in exports] == ["diffusers", "onnx", "torch"]
    assert shlex.split(imported)[1] == "import"  # which has tests of its own


def test_diffusers(here, monkeypatch, capsys, request):
    need("diffusers", "hub")
    request.getfixturevalue("code_folder")
    monkeypatch.chdir(here)
    _, card = run(COMMANDS[0], capsys)
    expected = [sample.image for sample in pd.generate(pd.load("runs/photos", device="cpu"), range(4))]
    for page in (card, PAGE):
        names: dict[str, Any] = code_of(page)
        for image, other in zip(names["images"], expected, strict=True):
            assert np.abs(np.asarray(image).astype(int) - np.asarray(other)).max() <= 1
    pipe: Any = code_of(PAGE, block=1, names=names)["pipe"]
    assert pipe.scheduler.config.solver == "ancestral"
    changed = pipe(seeds=[0], num_inference_steps=18).images[0]
    assert np.abs(np.asarray(changed).astype(int) - np.asarray(expected[0])).max() > 1


@pytest.mark.scheduled
@pytest.mark.parametrize(("line", "library"), [(COMMANDS[1], "onnx"), (COMMANDS[2], "pytorch")])
def test_graphs(here, monkeypatch, capsys, line, library):
    """The card's sampler, in NumPy, makes of its noise what Heun's method here makes of it, in whatever folder."""
    for name in ("onnx", "onnxscript", "onnxruntime") if library == "onnx" else ():
        need(name, "export")
    monkeypatch.chdir(here)
    found, card = run(line, capsys)
    assert found["difference"] < 1e-4 and yaml.safe_load(card.split("---\n")[1])["library_name"] == library
    script = here / found["out"] / "sample.py"
    monkeypatch.setattr(torch.export, "load", cache(torch.export.load))  # takes a second
    for label in (10, -2):
        with pytest.raises(ValueError, match=f"there is no class {label}: they are 0 to 9"):
            code_of(card, script, ("label = 0", f"label = {label}"))
    monkeypatch.chdir("/")
    names = code_of(card, script)
    monkeypatch.chdir(here)
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 1, 16, 16)))
    images = pd.decode(pd.load("runs/photos", device="cpu"), noise, labels=0, steps=18).numpy()
    assert np.abs(names["noisy"] - images).max() < 1e-4
    assert np.abs(names["pixels"] - (images + 1) * 127.5).max() < 0.02


def test_its_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", PAGE):
        assert (Path(__file__).parents[1] / "docs" / link).exists(), link
