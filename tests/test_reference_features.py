"""Features of the reference: made once, found again for the same images and the same extractor only."""

import numpy as np
import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.evaluation import reference as module
from patch_diffusion.evaluation.extractors.extractor import Extractor
from patch_diffusion.evaluation.reference import is_statistics, read_statistics, reference_of
from patch_diffusion.evaluation.stream import stream_of_images


def pictures(num=40, seed=0):
    random = torch.Generator().manual_seed(seed)
    return pd.ImageSet(torch.randint(0, 256, (num, 3, 8, 8), dtype=torch.uint8, generator=random))


class Counting:
    """Features, and how often they were made."""

    def __init__(self, settings=None, name="counting"):
        self.num = 0
        self.extractor = Extractor(name, self.features, settings)

    def features(self, images):
        self.num += len(images)
        return images.float().flatten(2).mean(dim=2)

    def of(self, images):
        return reference_of(stream_of_images(images, batch=16), self.extractor)


def test_they_are_made_once():
    counting = Counting({"version": 1})
    first, second = counting.of(pictures()), Counting({"version": 1}).of(pictures())
    assert counting.num == 40
    for found in (first, second):
        torch.testing.assert_close(found.features, counting.features(pictures().pixels))
        torch.testing.assert_close(found.gaussian.covariance, found.features.double().mT.cov())
        assert found.gaussian.num == 40 and found.places.tolist() == list(range(40))
    again = Counting({"version": 1})
    again.of(pictures())
    assert again.num == 0


@pytest.mark.parametrize(
    "other",
    [
        lambda: Counting({"version": 2}).of,
        lambda: Counting({"version": 1}, "other").of,
        lambda: Counting().of,
        lambda: lambda images: Counting({"version": 1}).of(pictures(seed=1)),
        lambda: lambda images: Counting({"version": 1}).of(pictures(39)),
    ],
)
def test_others_are_not_found(other):
    Counting({"version": 1}).of(pictures())
    calls = []
    made = Extractor.__call__

    def counted(self, images):
        calls.append(len(images))
        return made(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Extractor, "__call__", counted)
        other()(pictures())
    assert sum(calls) >= 39


def test_without_a_cache_they_are_kept_in_memory(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PATCH_DIFFUSION_CACHE", str(tmp_path / "file"))
    found = Counting({"version": 1}).of(pictures())
    assert found.features.shape == (40, 3) and found.gaussian.num == 40


def test_what_cannot_be_kept_to_the_end_is_made_anew(monkeypatch):
    """As on a disk that is full in the middle: what was gone through does not count twice."""
    expected = Counting().of(pictures())

    def full(path, blocks, *others):
        next(iter(blocks))
        raise OSError("No space left on device")

    monkeypatch.setattr(module.cache, "write_blocks", full)
    found = Counting({"version": 1}).of(pictures())
    assert found.gaussian.num == 40 and torch.equal(found.features, expected.features)
    assert torch.equal(found.gaussian.mean, expected.gaussian.mean)


def test_of_many_images_some_features_are_kept(monkeypatch):
    monkeypatch.setattr(module, "MOST_FEATURES", 7)
    for settings in ({"version": 1}, None):
        found = Counting(settings).of(pictures())
        assert found.places.tolist() == [0, 6, 13, 20, 26, 32, 39] and found.gaussian.num == 40
        torch.testing.assert_close(found.features, Counting().features(pictures().pixels[found.places]))


def test_a_reference_of_one_image():
    with pytest.raises(pd.InputError, match="at least two images, and there are 1"):
        Counting().of(pictures(1))


def test_published_statistics(tmp_path):
    path = tmp_path / "reference.npz"
    np.savez(path, mu=np.arange(3.0), sigma=np.eye(3, dtype=np.float32))
    found = read_statistics(path)
    assert found.mean.tolist() == [0, 1, 2] and found.covariance.dtype == torch.float64 and found.num is None
    assert is_statistics(path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "arrays mu and sigma are expected"),
        ({"mu": np.zeros(3), "sigma": np.zeros((3, 2))}, r"sigma \(3, 2\)"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"mu is \(0,\)"),
        ({"mu": np.array([{}]), "sigma": np.zeros((1, 1))}, "is damaged"),
        ({"mu": np.array(["a"]), "sigma": np.zeros((1, 1))}, "is damaged"),
    ],
)
def test_statistics_that_are_none(tmp_path, arrays, message):
    np.savez(tmp_path / "reference.npz", **arrays)
    with pytest.raises(pd.InputError, match=message):
        read_statistics(tmp_path / "reference.npz")


def test_files_that_are_no_statistics(tmp_path):
    np.savez(tmp_path / "images.npz", images=np.zeros((2, 8, 8, 3), np.uint8))
    assert not is_statistics(tmp_path / "images.npz") and not is_statistics(tmp_path / "nowhere.npz")
    (tmp_path / "half.npz").write_bytes((tmp_path / "images.npz").read_bytes()[:100])
    with pytest.raises(pd.InputError, match="is damaged"):
        read_statistics(tmp_path / "half.npz")
    with pytest.raises(pd.InputError, match="is missing"):
        read_statistics(tmp_path / "nowhere.npz")
