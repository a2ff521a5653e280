"""Maps of what is unlike the training images, of models whose ordinary images are known, and the command."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import patch_diffusion as pd
from patch_diffusion.cli import main
from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.data.latents.codec import LatentCodec
from patch_diffusion.evaluation.detection.errors import smoothed, squared_errors
from patch_diffusion.evaluation.detection.folder import _file_name
from patch_diffusion.evaluation.detection.ordinary import quantile_above, rate_for, threshold_of
from refusal import refused

DEVIATION, SHADE = 0.1, 0.5
QUICK = pd.DetectionOptions(false_alarms=0.1, levels=(0.1, 0.4), noises=2, smoothing=(1.0,))


class Halves(pd.Denoiser):
    """The best denoiser of images that are dark at the left and bright at the right, by the coordinates."""

    image_channels = 1

    def forward(self, noisy, sigma, coords, labels=None):
        mean = SHADE * coords.coords[0].sign()  # pyright: ignore[reportAttributeAccessIssue]
        return mean + (noisy - mean) * self.kept(sigma)

    def kept(self, sigma):
        level = torch.as_tensor(sigma).view(-1, 1, 1, 1)
        return DEVIATION**2 / (DEVIATION**2 + level**2)


class Watched(Halves):
    """It remembers the shapes of what it was given, and the coordinates of the corners."""

    def forward(self, noisy, sigma, coords, labels=None):
        self.seen = {*getattr(self, "seen", ()), (tuple(noisy.shape[2:]), float(coords.coords[0, 0, -1]))}
        return super().forward(noisy, sigma, coords)


class Placeless(Halves):
    """The best denoiser, pixel by pixel, of those who do not know where a pixel is: it is dark or bright."""

    def forward(self, noisy, sigma, coords, labels=None):
        level = torch.as_tensor(sigma).view(-1, 1, 1, 1)
        mean = SHADE * torch.tanh(noisy * SHADE / (DEVIATION**2 + level**2))
        return mean + (noisy - mean) * self.kept(sigma)


def known(kind=Halves, **settings):
    return kind(lambda *_: None, 0.5, resolution=(16, 16), **settings)


def halves(num, seed, shape=(16, 16), codec=None):
    values = DEVIATION * torch.randn(num, 1, *shape, generator=torch.Generator().manual_seed(seed))
    pixels = (codec or PixelCodec()).decode(values + SHADE * pd.coordinate_grid(*shape)[0].sign())
    return pd.ImageSet(pixels, **({} if codec is None else {"codec": codec}))


def misplaced(images):
    """A square of the bright half put into the dark one, as bright as anything there."""
    pixels = images.pixels.clone()
    pixels[:, :, 4:8, 2:6] = pixels[:, :, 4:8, 10:14]
    return replace(images, pixels=pixels)


@pytest.fixture(scope="module")
def normal():
    return halves(100, 0)


def share_of_alarms(found):
    return np.mean([each.alarm for each in found.findings])


def test_what_is_ordinary_in_the_wrong_place_is_found_by_coordinates(normal):
    images = misplaced(halves(10, 1))
    found = pd.detect(known(), images, normal=normal, options=QUICK)
    assert all(each.alarm and 4 <= each.place[0] < 8 and 2 <= each.place[1] < 6 for each in found.findings)
    for each in found.findings:
        inside = np.zeros((16, 16), bool)
        inside[4:8, 2:6] = True
        assert each.map.shape == (16, 16) and each.map[inside].min() > each.map[~inside].mean()
        assert each.score == each.map.max() == each.map[each.place]
    without = pd.detect(known(Placeless), images, normal=normal, options=QUICK)
    assert share_of_alarms(without) < 0.5


def test_false_alarms_are_as_rare_as_asked_for(normal):
    for rate in (0.05, 0.2):
        found = pd.detect(known(), halves(400, 2), normal=normal, options=replace(QUICK, false_alarms=rate))
        # The threshold of 100 images is itself uncertain: 0.05 +- 0.022, and the share of 400 images by 0.011.
        assert share_of_alarms(found) == pytest.approx(rate, abs=2.5 * (rate * (1 - rate) / 80) ** 0.5)
        assert found.threshold.false_alarms == rate and found.threshold.images == 100
        assert found.threshold.checked == pytest.approx(rate, abs=0.1)


def test_a_map_repeats_and_does_not_depend_on_the_other_images(normal):
    images = misplaced(halves(3, 1))
    found, again = (pd.detect(known(), images, normal=normal, options=QUICK) for _ in range(2))
    alone = pd.detect(
        known(), replace(images, pixels=images.pixels[1:2]), normal=normal, options=replace(QUICK, batch=1)
    )
    assert all(np.array_equal(one.map, other.map) for one, other in zip(found.findings, again.findings, strict=True))
    assert np.allclose(alone.findings[0].map, found.findings[1].map, atol=1e-3)


def test_noise_of_both_signs_cancels_in_what_is_denoised():
    model, clean = known(), torch.rand(2, 1, 16, 16)
    one, other = (squared_errors(model, clean, (0.1, 0.4), 2, seed) for seed in (0, 1))
    mean = SHADE * pd.coordinate_grid(16, 16)[0].sign()
    exact = torch.cat([((1 - model.kept(level)) * (clean - mean)).square() for level in (0.1, 0.4)], dim=1)
    assert torch.allclose(one, other, atol=1e-6) and torch.allclose(one, exact, atol=1e-6)


def test_smoothing_is_the_same_along_every_axis_and_keeps_a_constant():
    point = torch.zeros(1, 1, 9, 9, 9)
    point[..., 4, 4, 4] = 1
    found = smoothed(point, 1.0)[0, 0]
    assert torch.allclose(found, found.permute(2, 0, 1)) and float(found[4, 4, 4] / found[4, 4, 5]) == pytest.approx(
        np.e**0.5, rel=1e-3
    )
    assert torch.allclose(smoothed(torch.ones(1, 1, 3, 7), 2.0), torch.ones(1))


def test_tiles_of_a_large_image_are_each_a_whole():
    """Pixels are dark or bright at random; a square that is brighter than any is like none."""

    def spots(num, *shape):
        random = torch.Generator().manual_seed(num)
        values = SHADE * torch.randn(num, 1, *shape, generator=random).sign()
        return pd.ImageSet(PixelCodec().decode(values + DEVIATION * torch.randn(values.shape, generator=random)))

    large, single, normal = spots(2, 32, 48), spots(3, 16, 16), spots(60, 16, 16)
    large.pixels[0, :, 20:24, 34:38] = 255
    whole, tiled = (replace(QUICK, tiles=tiles) for tiles in (False, True))
    found = pd.detect(known(Placeless), large, normal=normal, options=tiled)
    with_defect, intact = found.findings
    assert with_defect.map.shape == (32, 48) and with_defect.score > 1.5 * intact.score
    assert 19 <= with_defect.place[0] < 25 and 33 <= with_defect.place[1] < 39
    assert any("that of a tile" in note for note in found.notes)
    watched = known(Watched)
    pd.detect(watched, large, normal=normal, options=tiled)
    assert watched.seen == {((16, 16), 1.0)}
    pair = [
        pd.detect(known(Placeless), single, normal=normal, options=options).findings[0] for options in (whole, tiled)
    ]
    assert np.allclose(pair[0].map, pair[1].map, atol=1e-5)


def test_images_that_are_not_square_or_of_16_bits(make_model):
    codec = PixelCodec("uint16", 0, 4095)
    model = make_model(3)
    model.codec = codec
    pixels = torch.randint(0, 4096, (20, 3, 8, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint16)
    images = pd.ImageSet(pixels, codec=codec)
    found = pd.detect(model, images, normal=images, options=replace(QUICK, false_alarms=0.2))
    assert found.findings[0].map.shape == (8, 12) and np.isfinite(found.findings[0].map).all()


@pytest.mark.parametrize(
    "change", [{"levels": (0.1, 0.8)}, {"noises": 4}, {"smoothing": (2.0,)}, {"seed": 1}, {"levels": None}]
)
def test_every_option_changes_the_map(normal, change):
    model, images = known(Placeless), misplaced(halves(1, 1))
    one, other = (
        pd.detect(model, images, normal=normal, options=options) for options in (QUICK, replace(QUICK, **change))
    )
    assert not np.allclose(one.findings[0].map, other.findings[0].map, atol=1e-4)


def test_the_threshold_is_a_rank_and_a_rate_needs_enough_images():
    scores = np.arange(1.0, 100)
    assert quantile_above(scores, 0.01) == 99 and quantile_above(scores, 0.1) == 90
    assert rate_for(0.01, 99) == 0.01 and rate_for(None, 9) == 0.1 and rate_for(None, 500) == 0.01
    with refused("false_alarms", match="needs at least 99 ordinary images, and there are 40"):
        rate_for(0.01, 40)
    found = threshold_of(scores, np.arange(99) % 2 == 0, 0.01)
    assert found.checked is None and threshold_of(scores, np.arange(99) % 2 == 0, 0.1).checked == pytest.approx(
        0.1, abs=0.03
    )


def test_few_ordinary_images_are_told_and_fewer_refused():
    found = pd.detect(known(), halves(1, 1), normal=halves(20, 0), options=replace(QUICK, false_alarms=None))
    assert found.threshold.false_alarms == pytest.approx(1 / 21) and any("needs 99" in note for note in found.notes)
    with refused("normal", match="at least 8 ordinary images are needed, and there are 7"):
        pd.detect(known(), halves(1, 1), normal=halves(7, 0), options=QUICK)


@pytest.mark.parametrize(
    ("option", "change", "match"),
    [
        ("false_alarms", {"false_alarms": 0.0}, "above 0 and below 1, not 0"),
        ("false_alarms", {"false_alarms": 1}, "above 0 and below 1, not 1"),
        ("levels", {"levels": ()}, "1 to 16 numbers"),
        ("levels", {"levels": (0.1, -1.0)}, "above 0"),
        ("smoothing", {"smoothing": (float("nan"),)}, "a finite number"),
        ("noises", {"noises": 3}, "even number"),
        ("noises", {"noises": 0}, "even number"),
        ("seed", {"seed": -1}, "from 0 on"),
        ("batch", {"batch": 0}, "at least 1 image"),
    ],
)
def test_options_that_cannot_be_right(option, change, match):
    with refused(option, match=match):
        replace(QUICK, **change).check()


def test_models_and_images_that_are_refused(normal, make_model):
    one = halves(1, 1)
    with pytest.raises(pd.InputError, match="a model of latents"):
        pd.detect(known(codec=LatentCodec((0.0,), (1.0,), False, 8, "")), one, normal=normal)
    with pytest.raises(pd.InputError, match=r"patches\.context"):
        pd.detect(known(context=8), one, normal=normal)
    with_classes = make_model(1)
    with_classes.network.label_dropout = 0
    with pytest.raises(pd.InputError, match="images of a class only"):
        pd.detect(with_classes, one, normal=normal)
    with pytest.raises(pd.InputError, match="of 1 channels, not 3"):
        pd.detect(known(), pd.ImageSet(one.pixels.repeat(1, 3, 1, 1)), normal=normal)
    with refused("normal", match="no held-out images"):
        pd.detect(known(), one)


def test_names_of_maps_stay_in_the_folder_and_apart():
    taken = set()
    names = ["a/b.jpg", "../../a/b.jpg", "/etc/x.png", "x.png", "..", "A/B.jpg"]
    found = [_file_name(name, taken) for name in names]
    assert found == ["a/b.jpg.png", "a/b.jpg-2.png", "etc/x.png", "x.png", "image.png", "A/B.jpg-3.png"]


TINY = "--network.width 8 --network.multipliers 1 2 --network.attention 1 --network.blocks 1 --batch 4 --samples 0"
FEW = "--levels 0.3 --noises 2 --smoothing 1"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on 80 digits, of which it held out a half."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "data").mkdir()
    for place, digit in enumerate(pd.open_images("digits").pixels[:80, 0].numpy()):
        Image.fromarray(digit).save(folder / "data" / f"{place}.png")
    line = f"train {folder / 'data'} --out {folder / 'run'} --steps 2 --held-out 0.5 --checkpoints 1 {TINY} --track"
    assert main([*line.split(), "--ema.lengths", "0.05", "0.1"]) == 0
    return folder / "run"


@pytest.fixture
def places(tmp_path, trained):
    new = tmp_path / "new"
    (new / "sub").mkdir(parents=True)
    digits = pd.open_images("digits").pixels[:2, 0].numpy()
    Image.fromarray(digits[0]).save(new / "one.png")
    Image.fromarray(digits[1]).resize((32, 32)).save(new / "sub" / "two.png")
    Image.fromarray(digits[1].astype(np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "broken.png").write_bytes((new / "one.png").read_bytes()[:50])
    return {"RUN": trained, "NEW": new, "OUT": tmp_path / "out", "HERE": tmp_path, "DATA": trained.parent / "data"}


@pytest.fixture
def run(capsys):
    """``run("detect ...")``: exit status, stdout and stderr."""

    def call(line, **places):
        status = main([str(places.get(word, word)) for word in line.split()])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.mark.slow
def test_the_command_writes_a_table_maps_and_settings(run, places):
    status, text, err = run(f"detect RUN NEW --out OUT --false-alarms 0.05 {FEW} --json", **places)
    assert status == 0 and "brought to the size" in err
    told, out = json.loads(text), places["OUT"]
    assert told == json.loads((out / "detect.json").read_text())
    assert told["images"] == 2 and told["levels"] == [0.3] and told["seed"] == 0 and told["false_alarms"] == 0.05
    rows = list(csv.DictReader(io.StringIO((out / "table.csv").read_text())))
    assert [row["file"] for row in rows] == ["one.png", "sub/two.png"]
    assert all((float(row["score"]) > float(row["threshold"])) == (row["alarm"] == "1") for row in rows)
    assert all(0 <= int(row["row"]) < 16 and 0 <= int(row["column"]) < 16 for row in rows)
    for name in ("one.png", "sub/two.png"):
        with Image.open(out / "maps" / name) as picture:
            assert picture.mode == "RGB" and picture.height == 256 and picture.width > 512
    python = pd.detect(places["RUN"], places["NEW"], options=pd.DetectionOptions(0.05, (0.3,), 2, (1.0,)))
    assert [f"{each.score:.4f}" for each in python.findings] == [row["score"] for row in rows]
    status, _, err = run(f"detect RUN {places['NEW'] / 'one.png'} --out OUT --normal DATA {FEW}", **places)
    assert status == 0 and "of 1 image with an alarm" in err, err


@pytest.mark.slow
def test_tiles_and_averages_are_told_apart(run, places):
    def score(options):
        status, _, err = run(f"detect RUN {places['NEW'] / 'sub'} --out OUT {FEW} {options}", **places)
        assert status == 0, err
        return (places["OUT"] / "table.csv").read_text()

    assert len({score(""), score("--tiles"), score("--ema-length 0.2")}) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("detect RUN NEW", 2, "--out"),
        ("detect RUN NOWHERE --out OUT", 1, "there is no data at"),
        ("detect NOWHERE NEW --out OUT", 1, "does not exist"),
        ("detect RUN NEW --out OUT --false-alarms 0.0001", 1, "needs at least 9,999 ordinary images, and there are"),
        ("detect RUN NEW --out OUT --false-alarms 2", 1, "above 0 and below 1, not 2"),
        ("detect RUN NEW --out OUT --noises 3", 1, "noises is an even number"),
        ("detect RUN NEW --out OUT --normal NEW", 1, "at least 8 ordinary images are needed, and there are 2"),
        ("detect RUN NEW --out NEW", 1, "is read by this command"),
        ("detect RUN HERE/deep.png --out OUT", 1, "pixels of uint16, but this run's are uint8"),
        ("detect RUN HERE/broken.png --out OUT", 1, "cannot be read"),
        ("detect RUN NEW --out HERE/deep.png", 1, "is a file"),
        ("detect RUN NEW --out OUT --ema-length 0.9", 1, "a share of the training"),
        ("detect RUN HERE/small.png --out OUT --tiles", 1, "is 8x8, smaller than a tile of 16x16"),
    ],
)
def test_mistakes_get_one_line_and_nothing_is_written(run, places, tmp_path, line, status, message):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "small.png")
    before = sorted(tmp_path.rglob("*"))
    found, out, err = run(line.replace("HERE/", f"{places['HERE']}/"), **places)
    assert found == status and message in err and len(err.strip().splitlines()) == 1 and not out, err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_run_that_held_nothing_out_needs_ordinary_images(run, places, tmp_path):
    config = tmp_path / "other" / "config.json"
    config.parent.mkdir()
    content = json.loads((places["RUN"] / "config.json").read_text())
    content["data"]["held_out"], content["model"]["held_out_below"] = 0.0, None
    config.write_text(json.dumps(content))
    (config.parent / "model.safetensors").write_bytes((places["RUN"] / "model.safetensors").read_bytes())
    status, _, err = run("detect OTHER NEW --out OUT", **places, OTHER=config.parent)
    assert status == 1 and "there are no held-out images" in err and not places["OUT"].exists()
