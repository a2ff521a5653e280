"""Images from images: inputs that are cut, augmented, dropped and shown with the images that they belong to."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import patch_diffusion as pd
from patch_diffusion.config import Augment as AugmentOptions
from patch_diffusion.data.augment import Augment
from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.data.paired import Paired, PairedInput, channels_of
from patch_diffusion.data.small import make_small
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.whole_image import losses_of_images
from patch_diffusion.errors import InputError
from patch_diffusion.runs.folder import RunFolder
from patch_diffusion.sampling.options import Sampling
from patch_diffusion.training.batches import Position
from refusal import refused

NUM = 24
COORDS_CODEC = PixelCodec("float32", -1.0, 1.0)
COORDS = PairedInput("coords", 2, {"dtype": "float32", "low": -1.0, "high": 1.0})
MAPS = PairedInput("maps", 1, {"dtype": "uint8", "low": 0.0, "high": 255.0}, categories=(0, 5, 9))


@pytest.fixture
def folders(tmp_path):
    """Pictures of 16 x 16, the same at half the size, and label maps with a palette."""
    random = np.random.default_rng(0)
    for name in ("high", "low", "maps"):
        (tmp_path / name).mkdir()
    for index in range(NUM):
        pixels = random.integers(0, 256, (8, 8, 3), np.uint8).repeat(2, 0).repeat(2, 1)
        Image.fromarray(pixels).save(tmp_path / "high" / f"{index:03}.png")
        Image.fromarray(pixels[::2, ::2]).save(tmp_path / "low" / f"{index:03}.png")
        labels = Image.fromarray(np.array([0, 5, 9], np.uint8)[random.integers(0, 3, (16, 16))], "P")
        labels.putpalette(list(range(256)) * 3)
        labels.save(tmp_path / "maps" / f"{index:03}.png")
    return tmp_path


def test_inputs_are_found_by_name_and_resized(folders):
    images = pd.open_images(folders / "high", paired=[str(folders / "low"), str(folders / "maps")])
    low, maps = images.paired
    assert (low.about.channels, low.about.categories, maps.about.categories) == (3, (), (0, 5, 9))
    assert low.pixels.shape == images.pixels.shape and maps.pixels.shape == (NUM, 1, 16, 16)
    assert (low.pixels.float() - images.pixels.float()).abs().mean() < 45
    stored = np.asarray(Image.open(folders / "maps" / "003.png"))
    assert torch.equal(maps.pixels[3, 0].int(), torch.from_numpy(stored.copy()).int())
    smaller = pd.open_images(folders / "high", resolution=8, paired=str(folders / "maps"))
    assert set(smaller.paired[0].pixels.unique().tolist()) == {0, 5, 9}
    assert torch.equal(
        smaller.paired[0].pixels[0, 0].int(),
        torch.from_numpy(
            np.asarray(Image.open(folders / "maps" / "000.png").resize((8, 8), Image.Resampling.NEAREST)).copy()
        ).int(),
    )


def test_endings_may_differ_and_arrays_are_in_order(folders, tmp_path):
    for path in (folders / "low").iterdir():
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    images = pd.open_images(folders / "high", paired=str(folders / "low"))
    assert torch.equal(
        images.paired[0].pixels[5], pd.open_images(folders / "high", paired=str(folders / "low")).paired[0].pixels[5]
    )
    arrays = images.pixels.numpy(), np.random.default_rng(1).normal(size=(NUM, 2, 8, 8)).astype(np.float32)
    np.save(tmp_path / "a.npy", arrays[0])
    np.save(tmp_path / "b.npy", arrays[1])
    np.savez(tmp_path / "c.npz", images=arrays[0], inputs=arrays[1])
    for found in (
        pd.open_images(tmp_path / "a.npy", paired=str(tmp_path / "b.npy")),
        pd.open_images(tmp_path / "c.npz", key="images", paired="inputs"),
        pd.open_images(arrays[0], paired=arrays[1]),
    ):
        assert found.paired[0].pixels.shape == (NUM, 2, 16, 16) and found.inputs[0].codec["dtype"] == "float32"
    pictures = [Image.fromarray(each.transpose(1, 2, 0)) for each in arrays[0]]
    found = pd.open_images(pictures, paired={"low": pictures, "other": [each.convert("L") for each in pictures]})
    assert [each.channels for each in found.inputs] == [3, 1] and torch.equal(found.paired[0].pixels, found.pixels)


def test_one_of_several_inputs_may_be_missing(folders):
    (folders / "maps" / "004.png").unlink()
    images = pd.open_images(folders / "high", paired=[str(folders / "low"), str(folders / "maps")])
    given = images.inputs_given(np.arange(NUM))
    assert given[:, 0].all() and given[:, 1].tolist() == [float(index != 4) for index in range(NUM)]
    assert any("no file for 1 image (first: 004.png): not given" in note for note in images.notes)
    with refused("data.paired", "no file for 1 of 24 images .first: 004.png"):
        pd.open_images(folders / "high", paired=str(folders / "maps"))


def test_inputs_that_cannot_be_right(folders, tmp_path):
    with refused("data.paired", "there is no data"):
        pd.open_images(folders / "high", paired=str(folders / "lower"))
    with refused("data.paired", "has 3 images, and there are 24"):
        pd.open_images(np.zeros((NUM, 1, 8, 8), np.uint8), paired=np.zeros((3, 1, 8, 8), np.uint8))
    Image.new("RGB", (8, 12)).save(folders / "low" / "007.png")
    with refused("data.paired", "007.png in .* is 12x8, and its image 16x16"):
        pd.open_images(folders / "high", paired=str(folders / "low"))
    (folders / "low" / "007.png").write_bytes(b"no picture")
    with refused("data.paired", "007.png in .* cannot be read"):
        pd.open_images(folders / "high", paired=str(folders / "low"))
    with refused("data.paired_kind", "there are none"):
        pd.open_images(folders / "high", paired_kind="labels")
    with pytest.raises(InputError, match="several channels"):
        pd.open_images(folders / "high", paired=str(folders / "high"), paired_kind="labels")


@pytest.fixture
def coordinate_images():
    """Images whose input is the coordinate of each pixel, and another input of label maps."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (NUM, 3, 16, 24), dtype=torch.uint8, generator=generator)
    grid = pd.coordinate_grid(16, 24).expand(NUM, -1, -1, -1).clone()
    maps = torch.tensor([0, 5, 9], dtype=torch.uint8)[torch.randint(0, 3, (NUM, 1, 16, 24), generator=generator)]
    return pd.ImageSet(pixels, paired=(Paired(COORDS, grid), Paired(MAPS, maps)))


def batches_of(images, make_trainer, augment=None, dropout=0.0, schedule=None):
    network = {"paired_channels": channels_of(images.inputs), "label_dropout": dropout, "num_classes": 0}
    augment = augment or AugmentOptions()
    network["augment_channels"] = Augment.of(augment).channels
    schedule = schedule or {"whole": 0.3, "sizes": {"1/2": 0.5, "1/4": 0.5}}
    return make_trainer("run", network, schedule, images=images, augment=augment, batch=8).batches


@pytest.mark.parametrize(
    "augment", [None, {"flip": 0.5}, {"p": 0.5}, {"p": 0.5, "resample": False}, {"p": 0.5, "colour": True}]
)
def test_a_condition_whose_pixels_are_coordinates_is_the_coordinates_of_the_crop(
    coordinate_images, make_trainer, augment
):
    """The augmentation moves what is in the frame: the input moves with the image, as its own channels of it would."""
    images = coordinate_images
    # The image itself holds the same coordinates, so both must agree wherever they went.
    grid = images.paired[0].pixels
    images = pd.ImageSet(grid, codec=COORDS_CODEC, paired=images.paired)
    batches = batches_of(images, make_trainer, AugmentOptions(**augment) if augment else None)
    sizes = set()
    for step in range(6):
        plan = batches.plan(Position(step, 0, {}, 0.0))
        batch = batches.make(plan, range(plan.num))
        inputs, around = batch.conditions.inputs, batch.conditions.around
        assert inputs is not None and around is not None
        assert inputs.shape == (plan.num, 2 + 1 + 3 + 1, *plan.size.shape) and around.shape == (plan.num, 5, 4, 6)
        assert torch.equal(inputs[:, 2], torch.ones_like(inputs[:, 2]))
        if not (augment or {}).get("colour"):
            assert torch.allclose(inputs[:, :2], batch.clean, atol=1e-5)
        if not augment:
            assert torch.allclose(inputs[:, :2], batch.conditions.coords, atol=1e-6)
            assert torch.equal(inputs[:, 3:6].sum(dim=1), torch.ones_like(inputs[:, 2]))
            assert torch.allclose(around[:, :2], make_small(grid[:1], (4, 6)).expand(plan.num, -1, -1, -1), atol=1e-5)
        sizes.add(plan.size.shape)
        part = batches.make(plan, range(1, 3))
        assert torch.equal(part.conditions.inputs, inputs[1:3]) and torch.equal(part.conditions.around, around[1:3])
    assert len(sizes) > 1


def test_inputs_are_dropped_by_themselves_and_together(coordinate_images, make_trainer):
    batches = batches_of(coordinate_images, make_trainer, dropout=0.4)
    found = []
    for step in range(8):
        plan = batches.plan(Position(step, 0, {}, 0.0))
        told = batches.make(plan, range(plan.num)).conditions
        flags = told.inputs[:, [2, 6]].amax(dim=(2, 3))
        assert torch.equal(told.inputs[:, :2].abs().amax(dim=(1, 2, 3)) > 0, flags[:, 0] > 0)
        assert torch.equal(told.around[:, 2:].amax(dim=(1, 2, 3)) > 0, flags[:, 1] > 0)
        found += flags.int().tolist()
    assert {tuple(each) for each in found} == set(itertools.product((0, 1), repeat=2))
    assert 0.25 < np.mean(found) < 0.5


@pytest.mark.parametrize("network", ["unet", "dit", "edm2"])
def test_networks_are_shown_them(coordinate_images, network):
    torch.manual_seed(0)
    channels = channels_of(coordinate_images.inputs)
    made = {
        "unet": lambda: pd.UNet(3, 8, (1,), 1, paired_channels=channels),
        "dit": lambda: pd.DiT(3, 16, 1, 1, paired_channels=channels),
        "edm2": lambda: pd.EDM2UNet(3, 8, (1,), 1, paired_channels=channels),
    }[network]()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model = pd.Denoiser(made, 0.5, inputs=coordinate_images.inputs).eval()
    noisy, coords = torch.randn(2, 3, 8, 8), pd.coordinate_grid(8, 8)

    def denoised(inputs, around):
        with torch.no_grad():
            return model(noisy, 1.0, Conditions(coords, inputs=inputs, around=around))

    inputs, around = torch.randn(2, 7, 8, 8), torch.randn(2, 5, 4, 4)
    assert not torch.equal(denoised(inputs, around), denoised(None, None))
    assert not torch.equal(denoised(inputs, around), denoised(inputs, -around))
    assert torch.equal(denoised(torch.zeros_like(inputs), torch.zeros_like(around)), denoised(None, None))
    with pytest.raises(ValueError, match="do not belong to images"):
        denoised(torch.randn(2, 7, 4, 4), around)


def test_a_run_of_pairs_stores_continues_and_samples(coordinate_images, make_trainer, tmp_path):
    network = {"paired_channels": channels_of(coordinate_images.inputs), "num_classes": 0}
    make_trainer("whole", network, images=coordinate_images).fit(steps=4)
    with make_trainer("run", network, images=coordinate_images).in_laps(steps=4) as train_until:
        train_until(0.5)
    make_trainer("run", network, images=coordinate_images).fit(steps=4)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "run")]
    assert weights[0] == weights[1]
    assert RunFolder(tmp_path / "run").read_config()[1].inputs == (COORDS, MAPS)
    model = pd.load(tmp_path / "run", device="cpu")
    assert model.inputs == (COORDS, MAPS)
    losses = losses_of_images(model, coordinate_images, sigmas=(1.0,), most=4)
    alone = losses_of_images(model, replace(coordinate_images, paired=()), sigmas=(1.0,), most=4)
    assert losses[1.0].shape == alone[1.0].shape


def random_model(inputs, **options):
    torch.manual_seed(0)
    network = pd.UNet(1, 8, (1, 2), 1, paired_channels=channels_of(inputs), **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return pd.Denoiser(network, 0.5, resolution=(16, 24), inputs=inputs).eval()


def test_samples_are_made_from_inputs(tmp_path):
    low = PairedInput("low", 1, {"dtype": "uint8", "low": 0.0, "high": 255.0})
    model = random_model((low, MAPS))
    picture, labels = np.full((16, 24), 200, np.uint8), np.full((16, 24), 5, np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")

    def pixels(paired, seeds=(0, 1), **options):
        found = pd.generate(model, seeds, Sampling(steps=2, **options), paired=paired)
        return torch.stack([sample.pixels for sample in found])

    both = pixels((picture, labels))
    assert torch.equal(both, pixels({"low": tmp_path / "a.png", "maps": labels}))
    assert torch.equal(both, pixels([(picture[None], labels), (Image.fromarray(picture), torch.from_numpy(labels))]))
    assert not torch.equal(both, pixels((picture, None))) and not torch.equal(both, pixels(None))
    assert torch.equal(both[1:], pixels((picture, labels), seeds=[1]))
    assert not torch.equal(both, pixels((picture, labels), guidance=2.0))
    small = Image.fromarray(picture).resize((12, 8))
    assert torch.equal(both, pixels((small, labels)))
    for paired, told in (
        (picture, "takes 2 inputs, low, maps, not 1"),
        (
            (picture, np.full((16, 24), 7, np.uint8)),
            "maps has the label 7, which the model does not know: it knows 0, 5, 9",
        ),
        ((np.zeros((3, 16, 24), np.uint8), None), "has 3 channels, and the input low of this model has 1"),
        ((picture.astype(np.float32), None), "has pixels of float32, and the input low of this model uint8"),
        ({"lo": picture}, "has no input 'lo', only low, maps"),
        ((None, None), "no input image is given"),
        ([(picture, None)], "2 images need as many inputs, not 1"),
        ((tmp_path / "b.png", None), "there is no file at"),
    ):
        with refused("paired", told):
            pixels(paired)
    with refused("paired", "trained without data.paired"):
        next(pd.generate(random_model(()), [0], Sampling(steps=1), paired=picture))


def test_tiles_are_shown_their_part_of_the_input():
    model = random_model((COORDS,))
    grid = pd.coordinate_grid(32, 48)
    seen = []
    original = model.network.forward

    def look(x, *rest):
        seen.append(x)
        return original(x, *rest)

    model.network.forward = look
    next(pd.generate(model, [0], Sampling(steps=1, resolution=(32, 48), tile=(16, 24), coords="stretch"), paired=grid))
    tiles = torch.cat(seen)
    assert torch.allclose(tiles[:, 1:3], tiles[:, 3:5], atol=1e-6)  # coordinates, and the input that holds them
