"""A distance between sets of cat faces that other code measured with the same weights, where the files are there."""

from pathlib import Path

import pytest

import patch_diffusion as pd

FOLDER = Path(__file__).parents[2] / "shared" / "data"
FILES = ("cat-faces-64-train.zip", "cat-faces-64-heldout.zip", "mobilenet_v2_imagenet_f16.safetensors")


@pytest.mark.scheduled
def test_held_out_faces_beside_the_first_thousand_of_the_training():
    """All rows: benchmarks/reference_distances.py."""
    for name in FILES:
        if not (FOLDER / name).exists():
            pytest.skip(f"the test data {name} is not beside this checkout")
    extractor = pd.open_extractor(FOLDER / FILES[2])
    train, held_out = (pd.open_images(FOLDER / name, classes=False).pixels for name in FILES[:2])
    assert len(train) == 3795 and len(held_out) == 1000
    gaussians = [pd.gaussian_of(map(extractor, pixels.split(50))) for pixels in (held_out, train[:1000])]
    assert pd.frechet_distance(*gaussians) == pytest.approx(209.2, rel=0.01)
