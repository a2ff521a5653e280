"""The commands of docs/large-images.md, executed on images that are smaller."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patch_diffusion.cli import main

PAGE = (Path(__file__).parents[1] / "docs" / "large-images.md").read_text(encoding="utf-8")
SHORT = "--steps 2 --batch 1 --network.width 8 --network.blocks 1 --samples 0"


@pytest.mark.slow
def test_the_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    random = np.random.default_rng(0)
    for index in range(4):
        rough = Image.fromarray(random.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        rough.resize((160, 140), Image.Resampling.BICUBIC).save(tmp_path / "photos" / f"{index}.png")
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    train, *samples = block.replace("\\\n", " ").replace("64", "16").replace("1024", "96").strip().splitlines()
    assert main([*shlex.split(train)[1:], *SHORT.split()]) == 0
    # Levels of the network suit the patches, which are all that it sees.
    assert len(json.loads(Path("runs/large/config.json").read_text())["network"]["multipliers"]) == 3
    for line in samples:
        words = shlex.split(line, comments=True)[1:]
        words[words.index("--seeds") + 1] = "0-1"
        assert main([*words, "--steps", "1"]) == 0
    for name, side in (("pictures/000000.png", 96), ("small/000001.png", 16)):
        with Image.open(name) as picture:
            assert picture.size == (side, side)
