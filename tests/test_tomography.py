"""examples/tomography.py: its operators against others' definitions, and the script at tiny size."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import patch_diffusion as pd


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).parents[1] / "examples" / "tomography.py"
    spec = importlib.util.spec_from_file_location("tomography", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_projections_are_sums_along_rays(example):
    """At right angles they are sums of rows and columns; of a disc, the length of the chord, from everywhere."""
    image = torch.rand(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    views = example.radon(16, 2)(image)
    torch.testing.assert_close(views[:, :, 0], image.sum(2), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(views[:, :, 1], image.sum(3), atol=1e-4, rtol=1e-4)
    place = torch.arange(64) - 31.5
    disc = ((place[:, None] ** 2 + place**2) < 24**2).float()[None, None]
    chord = 2 * (24**2 - place**2).clamp(min=0).sqrt()
    assert (example.radon(64, 7)(disc)[0, 0] - chord).abs().mean() < 1


def test_frequencies_that_are_kept(example):
    image = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    found = example.fourier(16, 0.4)(image)[0, 0].numpy()
    kept = np.abs(found).sum(1) > 0
    np.testing.assert_allclose(found[kept], (np.fft.fft2(image[0, 0].numpy()) / 16)[kept], atol=1e-5)
    assert kept[0] and 0.2 < kept.mean() < 0.6


@pytest.mark.slow
def test_the_script(example, tmp_path, make_trainer, capsys):
    trainer = make_trainer(images=pd.open_images("digits").buckets[0], batch=4)
    trainer.fit(steps=2)
    result = example.main([str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--images", "2", "--steps", "2"])
    assert result.keys() == {"radon", "fourier"} and len(capsys.readouterr().out.splitlines()) == 2
    assert all(error["ridge"] > 15 for error in result.values())
    with Image.open(tmp_path / "out" / "radon.png") as picture:
        assert picture.mode == "L"
