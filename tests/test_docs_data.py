"""The commands of docs/data.md and docs/latents.md, executed."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from needs import need
from patch_diffusion.cli import main

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[1] / "docs"
SHORT = "--steps 1 --batch 1 --network.width 8 --network.blocks 1 --samples 0"


def commands(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("patch-diffusion")]


def smooth(random, height, width):
    """Pictures that are not alike."""
    small = random.integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with photos of two classes and three shapes, and their labels."""
    random = np.random.default_rng(0)
    names = []
    for index in range(36):
        folder = tmp_path / "photos" / ("cats", "dogs")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        smooth(random, *((70, 80), (60, 120), (90, 64))[index % 3]).save(folder / f"{index:03d}.png")
        names.append(f"{folder.name}/{index:03d}.png")
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(f"{name},{name[:3]}\n" for name in names))
    rows = [f"{name},{20 + index},{('red', 'blue')[index % 2]}\n" for index, name in enumerate(names)]
    (tmp_path / "table.csv").write_text("file,age,colour\n" + "".join(rows))
    (tmp_path / "wanted.csv").write_text("age,colour\n30,red\n,blue\n")
    for folder, side, num in (("high", 64, 8), ("low", 16, 8), ("coarse", 16, 1)):
        (tmp_path / folder).mkdir()
        for index in range(num):
            smooth(random, side, side).save(tmp_path / folder / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def follow(page, capsys):
    """Execute the commands of a page, shortened, and return the configs of the runs they make, by name."""
    for line in commands(page):
        line = re.sub(r"--steps \d+|--minutes \d+", SHORT, line.partition("  #")[0]).replace("256", "64")
        if line.startswith("patch-diffusion inspect"):
            line += " --no-forecast"
        if line.startswith("patch-diffusion evaluate"):
            line += " --samples 4 --steps 2"
        line = line.replace("--seeds 0-3", "--seeds 0-1 --steps 2")
        assert main(shlex.split(line, comments=True)[1:]) == 0, (line, capsys.readouterr().err)
    return {run.name: json.loads((run / "config.json").read_text()) for run in Path("runs").iterdir()}


def test_the_commands(here, capsys):
    found = follow("data.md", capsys)
    assert (here / "sheet.png").exists()
    shapes = {name: tuple(config["model"]["resolution"]) for name, config in found.items()}
    assert shapes["square"] == (64, 64) and shapes["wide"] == (48, 64) and shapes["photos"] == (64, 64)
    assert found["classes"]["model"]["class_names"] == ["cats", "dogs"]
    assert found["of-csv"]["model"]["class_names"] == ["cat", "dog"]


def test_the_commands_of_latents(here, capsys):
    need("diffusers", "hub").AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[4, 4],
        norm_num_groups=2,
        latent_channels=4,
    ).save_pretrained(here / "vae")
    model = follow("latents.md", capsys)["latents"]["model"]
    assert model["image_channels"] == 4 and tuple(model["resolution"]) == (32, 32)
    assert len(list((here / "pictures").glob("*.png"))) == 2


def test_what_the_page_promises():
    from patch_diffusion.data.files.collection import MOST_UNUSABLE
    from patch_diffusion.data.reading.pixels import MOST_IN_MEMORY
    from patch_diffusion.data.reading.sizes import LEAST_IN_BUCKET, MOST_ENLARGED
    from patch_diffusion.training import prefetch
    from patch_diffusion.training.hardware import feed

    assert MOST_IN_MEMORY == 128 * 2**20 and MOST_UNUSABLE == 0.01 and LEAST_IN_BUCKET == 8
    assert MOST_ENLARGED == 4
    assert (feed.SHARE_OF_DEVICE, prefetch.SECONDS_TO_A_NOTE, prefetch.SECONDS_TO_THE_END) == (1 / 4, 60, 30 * 60)
