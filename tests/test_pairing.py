"""What inspect says of paired inputs that are missing, swapped, shifted or of other shapes."""

import numpy as np
import pytest
from PIL import Image

from patch_diffusion.cli import main
from patch_diffusion.config import Data
from patch_diffusion.data.inspection.inspect import inspect_images

NUM = 30


@pytest.fixture
def pairs(tmp_path):
    """``pairs(shift)``: pictures of blobs, and the same at half the size, moved to the right by some pixels."""

    def make(shift=0, swapped=0):
        random = np.random.default_rng(0)
        for name in ("high", "low"):
            (tmp_path / name).mkdir()
        for index in range(NUM):
            blobs = random.integers(0, 256, (9, 9, 3), np.uint8)
            whole = Image.fromarray(blobs).resize((72, 72), Image.Resampling.BICUBIC)
            other = index + 1 if index % 2 == 0 and index < swapped else index - 1 if index < swapped else index
            whole.crop((4, 4, 68, 68)).save(tmp_path / "high" / f"{index:02}.png")
            moved = whole.crop((4 - shift, 4, 68 - shift, 68)).resize((32, 32), Image.Resampling.BOX)
            moved.save(tmp_path / "low" / f"{other:02}.png")
        return Data(source=str(tmp_path / "high"), paired=(str(tmp_path / "low"),))

    return make


def test_good_pairs_are_passed_over(pairs):
    assert inspect_images(pairs()).pairs == []


def test_shifted_pairs(pairs):
    (told,) = inspect_images(pairs(shift=3)).pairs
    assert "images lie +0.0 pixels down and -3.0 across from their inputs" in told


def test_swapped_pairs(pairs):
    (told,) = inspect_images(pairs(swapped=6)).pairs
    assert "6 images of 30 that were compared match the input of another one" in told
    assert "(first: 00.png, that of 01.png)" in told


def test_missing_inputs_and_other_shapes(pairs, tmp_path, capsys):
    options = pairs()
    (tmp_path / "low" / "07.png").unlink()
    assert "has no file for 1 of 30 images (first: 07.png)" in inspect_images(options).pairs[0]
    Image.new("RGB", (32, 40)).save(tmp_path / "low" / "07.png")
    assert any("07.png is 64x64, and its input in" in told for told in inspect_images(options).pairs)
    words = ["inspect", options.source, "--data.paired", *(options.paired or ()), "--no-forecast"]
    assert main([*words]) == 0
    assert "Training would be refused: data.paired 07.png in" in " ".join(capsys.readouterr().out.split())
    assert "there is no data at nowhere" in inspect_images(Data(options.source, paired=("nowhere",))).pairs[0]
