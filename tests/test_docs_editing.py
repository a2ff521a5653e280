"""The commands and the code of docs/editing.md, executed."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patch_diffusion.cli import main

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[1] / "docs" / "editing.md").read_text(encoding="utf-8")
TINY = "--network.width 8 --network.multipliers 1 2 --network.attention 1 --network.blocks 1 --batch 4 --samples 0"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("editing")
    assert main(["train", "digits", "--out", str(folder / "runs" / "digits"), "--steps", "2", *TINY.split()]) == 0
    digit = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(digit).save(folder / "digit.png")
    np.save(folder / "digit.npy", digit)
    Image.fromarray(np.tri(16, dtype=np.uint8) * 255).save(folder / "mask.png")
    return folder


def test_the_commands(here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) == 5
    for line in commands:
        words = shlex.split(line, comments=True)
        seeds = [] if "--seeds" in words else ["--seeds", "0"]
        assert main([*words[1:], *seeds, "--steps", "3"]) == 0, (line, capsys.readouterr().err)
        assert list(Path(words[words.index("--out") + 1]).glob("*.png")), line


def test_the_code(here, monkeypatch):
    monkeypatch.chdir(here)
    for code in blocks("python"):
        exec(compile(code, "editing.md", "exec"), {})
    assert (here / "mask.png").exists()
    assert len(list((here / "rows").iterdir())) == 2


def test_its_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (Path(__file__).parents[1] / "docs" / link).exists(), link
