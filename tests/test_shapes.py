"""Training and sampling on images of every kind, from the source to the files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import patch_diffusion as pd
from patch_diffusion.config import Augment, Data, Network, Patches
from patch_diffusion.data.augment import Augment as Alter
from patch_diffusion.presets import PRESETS

pytestmark = pytest.mark.slow

TINY = replace(
    PRESETS["small"],
    network=Network(width=8, multipliers=(1, 2), blocks=1, attention=(1,), dropout=0.0),
    patches=Patches(sizes={"1/2": 1.0}),
    minutes=None,
    steps=4,
    batch=1,
    samples=1,
    checkpoints=1,
)


def train_and_sample(tmp_path, data, **options):
    """Some steps, then sampling from the stored run; the sample, and the file that it was written to."""
    pd.train(replace(TINY, data=data, **options), tmp_path / "run", show=False)
    assert list((tmp_path / "run" / "samples").iterdir())
    model = pd.load(tmp_path / "run")
    (sample,) = pd.generate(model, [3], pd.Sampling(steps=4, solver="euler"))
    file = sample.save(tmp_path / "out")
    if file.suffix == ".npy":
        stored = torch.from_numpy(np.load(file))
    else:
        with Image.open(file) as picture:
            array = np.asarray(picture)
        stored = torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())
    assert stored.dtype == sample.pixels.dtype and torch.equal(stored, sample.pixels)
    return sample, file


def blobs(num, channels, height, width):
    """Smooth random fields in [0, 1]."""
    torch.manual_seed(0)
    small = torch.rand(num, channels, 3, 3)
    return torch.nn.functional.interpolate(small, size=(height, width), mode="bicubic").clamp(0, 1).numpy()


def save_pictures(folder, arrays):
    folder.mkdir()
    for index, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{index:03d}.png")
    return str(folder)


def test_wide_pictures(tmp_path):
    arrays = (blobs(8, 3, 16, 32).transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    sample, file = train_and_sample(tmp_path, Data(save_pictures(tmp_path / "data", arrays)))
    assert sample.pixels.shape == (3, 16, 32) and file.suffix == ".png"


def test_grey_28(tmp_path):
    np.save(tmp_path / "data.npy", (blobs(8, 1, 28, 28)[:, 0] * 255).astype(np.uint8))
    sample, _ = train_and_sample(tmp_path, Data(str(tmp_path / "data.npy")))
    assert sample.pixels.shape == (1, 28, 28)


def test_five_channels_of_floats(tmp_path):
    np.save(tmp_path / "data.npy", (blobs(8, 5, 24, 24) * 7 - 2).astype(np.float32))
    sample, file = train_and_sample(tmp_path, Data(str(tmp_path / "data.npy"), range=(-2, 5)))
    assert sample.pixels.shape == (5, 24, 24) and sample.pixels.dtype == torch.float32 and file.suffix == ".npy"
    assert sample.pixels.isfinite().all()
    assert sample.image.size == (5 * 24, 24) and sample.image.mode == "L"


def test_grey_of_16_bits(tmp_path):
    arrays = (blobs(8, 1, 16, 16)[:, 0] * 65535).astype(np.uint16)
    sample, file = train_and_sample(tmp_path, Data(save_pictures(tmp_path / "data", arrays)))
    with Image.open(file) as picture:
        assert sample.pixels.dtype == torch.uint16 and picture.mode.startswith("I")
    assert sample.image.mode == "L"


def test_transparent_pictures(tmp_path):
    arrays = (blobs(8, 4, 16, 16).transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    sample, file = train_and_sample(tmp_path, Data(save_pictures(tmp_path / "data", arrays)))
    with Image.open(file) as picture:
        assert sample.pixels.shape == (4, 16, 16) and picture.mode == "RGBA"


def test_several_shapes_in_buckets(tmp_path):
    pictures = [*blobs(10, 3, 48, 48), *blobs(20, 3, 32, 64), *blobs(10, 3, 70, 40)]
    arrays = [(picture.transpose(1, 2, 0) * 255).astype(np.uint8) for picture in pictures]
    data = Data(save_pictures(tmp_path / "data", arrays), resolution=32, fit="bucket")
    images = pd.open_images(data.source, resolution=32, fit="bucket")
    assert len(images.buckets) > 1 and len(images) == 40
    sample, _ = train_and_sample(tmp_path, data, steps=20)
    assert sample.pixels.shape[1:] == images.resolution
    drawn = pd.describe(tmp_path / "run")["progress"]["by_resolution"]
    assert set(drawn) == {"{}x{}".format(*bucket.resolution) for bucket in images.buckets}


@pytest.mark.parametrize("augment", [Augment(flip=0.5), Augment(p=0.2), Augment(p=0.2, colour=True)], ids=str)
def test_augmentation_is_trained_and_sampled_without(tmp_path, augment):
    arrays = (blobs(8, 3, 16, 16).transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    plain = Data(save_pictures(tmp_path / "data", arrays))
    train_and_sample(tmp_path, replace(plain, augment=augment))
    model = pd.load(tmp_path / "run")
    assert model.augment_channels == (15 if augment.colour else 9 if augment.p else 0)
    pd.train(replace(TINY, data=plain, steps=2), tmp_path / "plain", show=False)
    pd.train(replace(TINY, data=replace(plain, augment=augment), steps=2), tmp_path / "other", show=False)
    one, two = (pd.load(tmp_path / name).module.state_dict() for name in ("plain", "other"))
    assert one.keys() != two.keys() or any(not torch.equal(one[name], two[name]) for name in one)


def test_augmentation_wants_a_network_that_is_told(images, tmp_path):
    denoiser = pd.Denoiser(pd.UNet(3, 8, (1, 2), 1))
    with pytest.raises(pd.InputError, match="build it with augment_channels=9"):
        pd.Trainer(denoiser, images, out=tmp_path / "run", augment=Alter(p=0.1), show=False)
