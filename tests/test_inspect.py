import json
import shlex
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import patch_diffusion as pd
from image_files import encoded
from patch_diffusion.advice import advise
from patch_diffusion.cli import main
from patch_diffusion.cli.inspection import inspection
from patch_diffusion.cli.options import given_options, option_words
from patch_diffusion.cli.train import Train
from patch_diffusion.config import Augment, Config, Data, Network, Patches
from patch_diffusion.config_dict import to_dict
from patch_diffusion.data.inspection.as_files import some_images
from patch_diffusion.data.inspection.inspect import inspect_images
from patch_diffusion.data.latents.codec import LatentCodec
from patch_diffusion.training.choices.size import Speed


@pytest.fixture
def run(capsys):
    """``run("inspect", ...)``: exit status, stdout and stderr."""

    def call(*words):
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def scene(seed, side=16):
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def folder_of_noise(tmp_path):
    """A folder of 40 small pictures."""
    path = tmp_path / "noise"
    path.mkdir()
    for seed in range(40):
        scene(seed).save(path / f"{seed:02d}.png")
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder of 40 pictures: 30 of them different, and of each thing that would hurt at least one."""
    path = tmp_path / "pictures"
    path.mkdir()
    for seed in range(30):
        scene(seed, 64).save(path / f"{seed:02d}.png")
    scene(3, 64).save(path / "copy.png")
    scene(3, 64).save(path / "another-copy.webp", lossless=True)
    scene(5, 64).save(path / "small.jpg", quality=60)
    scene(40, 64).resize((48, 64)).save(path / "narrow.png")
    scene(41, 64).convert("L").save(path / "grey.png")
    scene(42, 64).convert("RGBA").save(path / "clear.png")
    Image.new("RGB", (64, 64), (255, 0, 0)).save(path / "red.png")
    Image.new("RGB", (64, 64), (9, 9, 9)).save(path / "dark.png")
    (path / "broken.png").write_bytes((path / "00.png").read_bytes()[:900])
    (path / "empty.png").write_bytes(b"")
    (path / "notes.txt").write_text("no picture")
    return path


def test_what_is_found(folder):
    found = inspect_images(Data(str(folder)))
    assert found.num_images == found.num_read == 40
    assert found.endings == {"png": 38, "webp": 1, "jpg": 1}
    assert found.sizes == {(64, 64): 38, (64, 48): 1}
    assert found.kinds == {"8 bit RGB": 37, "8 bit grey": 1, "8 bit RGB with transparency": 1}
    assert set(found.unusable) == {"broken.png", "empty.png"} and "empty file" in found.unusable["empty.png"]
    assert found.nearly_constant == ["dark.png", "red.png"]
    assert found.equal == [["03.png", "another-copy.webp", "copy.png"]]
    assert [pair[:2] for pair in found.near] == [("05.png", "small.jpg")] and found.near[0][2] > 0.98
    assert found.class_counts == found.folders == {} and found.problems == []
    assert found.values == (0, 255) == found.span


def test_means_and_deviations_are_those_of_the_pixels(make_folder):
    folder = make_folder(6)
    found = inspect_images(Data(str(folder)))
    pixels = pd.open_images(folder).pixels.double() / 255
    assert found.means == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist())
    assert found.deviations == pytest.approx(pixels.std(dim=(0, 2, 3), correction=0).tolist())


def test_every_image_counts_alike_whatever_its_size(tmp_path):
    Image.new("L", (8, 8), 0).save(tmp_path / "a.png")
    Image.new("L", (80, 80), 255).save(tmp_path / "b.png")
    found = inspect_images(Data(str(tmp_path)))
    assert found.means == [0.5] and found.deviations == [0.5]


def test_classes_and_folders(make_folder):
    make_folder(3, subfolder="cat")
    folder = make_folder(2, subfolder="dog/small")
    assert inspect_images(Data(str(folder), classes=True)).class_counts == {"cat": 3, "dog": 2}
    found = inspect_images(Data(str(folder)))
    assert found.class_counts == {} and found.folders == {"cat": 3, "dog": 2}
    (folder / "dog" / "small" / "001.png").write_bytes(encoded(np.full((3, 8, 8), 9, np.uint8)))
    advice = advise(found, Config(data=Data(str(folder))), timed=False)
    assert advice.config.data.classes and "there are 2 sub-folders" in advice.reasons["data.classes"]
    assert not any("sub-folders" in text for text in advice.warnings)
    given = advise(found, Config(data=Data(str(folder), classes=False)), {"data.classes"}, timed=False)
    assert given.config.data.classes is False and "data.classes" not in given.reasons
    warnings = advise(inspect_images(Data(str(folder))), Config(data=Data(str(folder))), timed=False).warnings
    assert sum("nearly empty" in text or "one value only" in text for text in warnings) == 1
    (folder / "dataset.json").write_text(json.dumps({"labels": [["cat/000.png", 4]]}))
    found = inspect_images(Data(str(folder)))
    assert found.num_read == 5 and "no label for 4 of 5 images" in found.problems[0]
    assert advise(found, Config(data=Data(str(folder))), timed=False).refusal == found.problems[0]


def test_a_folder_of_broken_images_alone_is_no_class(tmp_path):
    for name, content in (("cat", encoded(np.zeros((3, 8, 8), np.uint8))), ("dog", b"broken")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(content)
    assert inspect_images(Data(str(tmp_path))).folders == {}


def test_a_budget_too_small_to_learn_the_layout_is_told_with_what_it_takes(monkeypatch, folder_of_noise):
    found = inspect_images(Data(str(folder_of_noise)))
    monkeypatch.setattr("patch_diffusion.advice.measure_speed", lambda *_: Speed(0.01, 1e10, 1e5, None))
    options = {"data": Data(str(folder_of_noise)), "network": Network(width=4, multipliers=(1, 2))}
    for minutes, is_short in ((1, True), (1e6, False)):
        advice = advise(found, Config(minutes=minutes, **options))
        prospect = advice.prospect
        assert prospect is not None and prospect.is_short == is_short and list(prospect.layout) == [16]
        assert ("too slow here" in inspection(found, advice, None, "")) == is_short
        assert prospect.losses and 0.5 * prospect.floor < prospect.losses[0] <= prospect.losses[1] < 3 * prospect.floor


def test_a_class_of_one_image_is_told_once(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (31, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels, labels=[0] * 30 + [1])
    assert sum("only 1:" in text or "one image only" in text for text in advised(tmp_path / "a.npz").warnings) == 1


@pytest.mark.slow
def test_deep_images_arrays_and_digits(tmp_path):
    deep = np.random.default_rng(0).integers(0, 4096, (6, 16, 16)).astype(np.uint16)
    for index, values in enumerate(deep):
        Image.fromarray(values).save(tmp_path / f"{index}.png")
    found = inspect_images(Data(str(tmp_path)))
    assert found.kinds == {"16 bit, 1 channel": 6} and found.span == found.values == (deep.min(), deep.max())
    assert inspect_images(Data(str(tmp_path), range=(0, 65535))).span == (0, 65535)
    array = tmp_path / "five.npy"
    np.save(array, np.random.default_rng(0).normal(size=(7, 5, 8, 12)).astype(np.float32))
    found = inspect_images(Data(str(array), layout="channels_first"))
    assert found.kinds == {"float, 5 channels": 7} and found.sizes == {(8, 12): 7} and len(found.means) == 5
    found = inspect_images(Data("digits"))
    assert found.num_images == 1797 and sorted(found.class_counts) == list("0123456789")


def test_latents(tmp_path):
    facts = {"format": 1, "class_names": [], "resolution": [128, 128]}
    codec = LatentCodec((0.0,) * 4, (1.0,) * 4, posterior=True, factor=8, vae="nowhere")
    (tmp_path / "latents.json").write_text(json.dumps({**facts, "codec": codec.as_dict()}))
    stored = np.random.default_rng(0).normal(size=(12, 8, 16, 16)).astype(np.float16)
    np.save(tmp_path / "latents.npy", stored)
    found = inspect_images(Data(str(tmp_path)))
    assert found.kinds == {"float, 8 channels": 12} and found.sizes == {(16, 16): 12}
    advice = advise(found, Config(data=Data(str(tmp_path)), network=Network(width=8, multipliers=(1, 2))), timed=False)
    assert advice.config.patches.sizes == {"1/2": 1.0} and advice.sigma_data == 0.5 and not advice.refusal
    assert advice.config.noise.p_mean == 0 and set(advice.sizes) == {"8x8", "16x16"}


def test_of_many_images_some_are_looked_at_evenly(make_folder):
    folder = make_folder(20)
    found = inspect_images(Data(str(folder)), most=5)
    assert (found.num_images, found.num_read, found.sizes) == (20, 5, {(8, 8): 5})
    with pytest.raises(pd.InputError, match="at least 1 image"):
        inspect_images(Data(str(folder)), most=0)


@pytest.mark.slow
def test_whether_mirrored_images_are_as_likely(tmp_path):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (400, 1, 8, 8), dtype=np.uint8)
    either = [
        image if flip else image[..., ::-1] for image, flip in zip(images, random.integers(0, 2, 400), strict=True)
    ]
    images[..., :2] //= 4
    for name, array in (("either.npy", np.stack(either)), ("left-dark.npy", images)):
        np.save(tmp_path / name, array)
    found = inspect_images(Data(str(tmp_path / "either.npy")))
    assert found.asymmetry < 1.5 * found.asymmetry_by_chance < 0.15
    assert any("--data.augment.flip" in text for text in advised(tmp_path / "either.npy").warnings)
    assert any("train without flips" in text for text in advised(tmp_path / "left-dark.npy").warnings)


def advised(source, given=(), timed=False, **options):
    config = Config(data=Data(str(source), **options), network=Network(width=8, multipliers=(1, 2)))
    return advise(inspect_images(config.data), config, given, timed=timed)


def test_some_images_are_such_as_training_gets(make_folder):
    folder = make_folder(20, (24, 32))
    some, every = some_images(Data(str(folder), resolution=16)), pd.open_images(folder, resolution=16)
    assert (some.pixels == every.pixels).all() and some.options == every.options  # pyright: ignore[reportAttributeAccessIssue]
    assert len(some_images(Data(str(folder), resolution=16), without={"003.png"})) == 19


@pytest.mark.slow
def test_a_resolution_is_suggested_where_images_are_large_or_of_several_sizes(tmp_path):
    for index, size in enumerate([(300, 200), (200, 300)] * 8):
        scene(index, 32).resize(size).save(tmp_path / f"{index}.png")
    advice = advised(tmp_path)
    assert advice.config.data.resolution == 64 and advice.config.data.fit == "bucket"
    assert set(advice.reasons) >= {"data.resolution"} and set(advice.sizes) >= {"48x80", "80x48"}
    advice = advised(tmp_path, {"data.resolution"}, resolution=32)
    assert advice.config.data == Data(str(tmp_path), 32) and set(advice.sizes) == {"8x8", "16x16", "32x32"}


def test_what_training_would_refuse_is_said_and_not_raised(make_folder, tmp_path):
    folder = make_folder(4, (8, 8))
    assert "is too small to enlarge" in advised(folder, {"data.resolution"}, resolution=64).refusal
    Image.new("RGB", (20, 10)).save(folder / "odd.png")
    np.save(tmp_path / "flat.npy", np.full((9, 8, 8), 7, np.uint8))
    assert advised(tmp_path / "flat.npy").refusal.startswith("all images are of one and the same value")
    given = {"network.multipliers"}
    config = Config(
        data=Data(str(make_folder(4, (18, 18), name="others"))), network=Network(width=8, multipliers=(1, 2, 4))
    )
    assert "cannot pass the network" in advise(inspect_images(config.data), config, given, timed=False).refusal


def test_noise_is_suggested_for_flat_images_and_large_ones(tmp_path):
    random = np.random.default_rng(0)
    for name, spread, side in (("plain", 255, 16), ("flat", 40, 16), ("large", 128, 96)):
        low = (256 - spread) // 2
        np.save(tmp_path / f"{name}.npy", random.integers(low, low + spread, (30, side, side, 3)).astype(np.uint8))
    assert advised(tmp_path / "plain.npy").config.noise.p_mean == 0
    flat = advised(tmp_path / "flat.npy")
    assert flat.config.noise.p_mean == round(np.log(flat.sigma_data / 0.5), 1) < -1
    assert "noise.p_mean" in flat.reasons
    assert advised(tmp_path / "flat.npy", {"noise.p_mean"}).config.noise.p_mean == 0


def test_warnings(folder, tmp_path):
    found = inspect_images(Data(str(folder)))
    advice = advise(found, Config(data=Data(str(folder), 64)), {"data.resolution"}, timed=False)
    assert "2 of 40 images cannot be read" in advice.refusal and advice.sigma_data > 0
    text = "\n".join(advice.warnings)
    for words in ("2 images are exact copies of others", "2 images look like another one"):
        assert words in text, words
    assert "nearly empty: 2 images" in text and "very few" in text
    classes = tmp_path / "classes.npz"
    np.savez(
        classes,
        images=np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8),
        labels=[0] * 56 + [1] * 4,
    )
    assert any("class 0 has 56 images and class 1 only 4" in text for text in advised(classes).warnings)


@pytest.mark.parametrize(("num", "share"), [(199, None), (200, 0.1), (639, 0.1), (640, None)])
def test_some_of_few_images_are_held_out_for_the_best_checkpoint(num, share, tmp_path):
    np.save(tmp_path / "few.npy", np.random.default_rng(0).integers(0, 256, (num, 8, 8), dtype=np.uint8))
    advice = advised(tmp_path / "few.npy")
    assert advice.config.data.held_out == share and ("data.held_out" in advice.reasons) == (share is not None)
    assert advised(tmp_path / "few.npy", {"data.held_out"}).config.data.held_out is None


def test_images_that_are_nearly_all_alike_are_no_fault():
    """Digits look like one another to the eye of the check, as all of a kind do."""
    advice = advise(found := inspect_images(Data("digits")), Config(data=Data("digits")), timed=False)
    assert found.near and not any("look like another" in text for text in advice.warnings)


def test_a_sheet(folder, tmp_path):
    sheet = tmp_path / "new" / "sheet.png"
    inspect_images(Data(str(folder)), sheet=sheet)
    with Image.open(sheet) as picture:
        assert picture.width < 1000 and picture.height > 400
        seen = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert (seen == (255, 0, 0)).all(axis=1).sum() > 80 * 80  # the red picture, as one of all and among the empty
    assert sorted(path.name for path in sheet.parent.iterdir()) == ["sheet.png"]
    with pytest.raises(pd.InputError, match=r"a sheet is written as \.png"):
        inspect_images(Data(str(folder)), sheet=tmp_path / "sheet.jpg")


@pytest.mark.parametrize("kind", ["float", "five channels", "sixteen bits", "transparent"])
def test_a_sheet_of_what_is_no_picture(tmp_path, kind):
    random = np.random.default_rng(0)
    if kind == "transparent":
        for index in range(3):
            Image.fromarray(random.integers(0, 256, (9, 9, 4), dtype=np.uint8)).save(tmp_path / f"{index}.png")
        source = tmp_path
    else:
        arrays = {
            "float": random.normal(size=(3, 9, 9)).astype(np.float32),
            "five channels": random.integers(0, 256, (3, 5, 9, 9), dtype=np.uint8),
            "sixteen bits": random.integers(0, 5000, (3, 9, 9)).astype(np.uint16),
        }
        source = tmp_path / "images.npy"
        np.save(source, arrays[kind])
    layout = "channels_first" if kind == "five channels" else "auto"
    inspect_images(Data(str(source), layout=layout), sheet=tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as picture:
        assert np.asarray(picture).std() > 20


TINY = "--network.width 8 --network.multipliers 1 2 --network.attention 1 --network.blocks 1 --batch 2"


@pytest.mark.slow
def test_the_command_tells_the_main_points_in_80_columns(folder, run, tmp_path):
    status, out, err = run("inspect", folder, "--sheet", tmp_path / "sheet.png", "--resolution", 16, *TINY.split())
    assert status == 0 and "sheet.png" in err
    assert all(len(line) <= 80 or " " not in line.strip() for line in out.splitlines())
    for words in (
        "40, png (38)",
        "64x64 (38), 64x48 (1)",
        "03.png = another-copy.webp",
        "05.png ~ small.jpg",
        "8x8 30%",
    ):
        assert words in out, words
    assert "images per second" in out and "30 minutes" in out and "TO TRAIN" not in out
    (folder / "broken.png").unlink()
    (folder / "empty.png").unlink()
    status, out, err = run("inspect", folder, "--resolution", 16, "--no-forecast", *TINY.split())
    *_, heading, command = out.splitlines()
    assert heading == "TO TRAIN" and command.startswith("patch-diffusion train ") and "--resolution 16" in command


@pytest.mark.slow
def test_json_holds_all_of_it(folder, run):
    status, out, _ = run("inspect", folder, "--json", "--resolution", 16, "--steps", 50, *TINY.split())
    data, advice = json.loads(out)["data"], json.loads(out)["advice"]
    assert status == 0 and data["sizes"]["64x64"] == 38 and data["unusable"]["empty.png"] == "an empty file"
    assert advice["forecast"]["seconds"].keys() == {"4x4", "8x8", "16x16"} == advice["sizes"].keys()
    assert advice["config"]["steps"] == 50 and advice["forecast"]["memory"] > 0


def test_without_a_forecast_no_step_is_made(folder, run):
    status, out, _ = run("inspect", folder, "--no-forecast", "--json", "--resolution", 16)
    assert status == 0 and json.loads(out)["advice"]["forecast"] is None


@pytest.mark.slow
def test_the_command_that_is_suggested_gives_the_settings(run, tmp_path):
    for index, size in enumerate([(300, 200), (200, 300)] * 8):
        scene(index, 32).resize(size).save(tmp_path / f"{index}.png")
    status, out, _ = run("inspect", tmp_path, "--json", "--no-forecast", "--minutes", "2.5", "--patches.whole", "0.25")
    found = json.loads(out)
    words = shlex.split(found["command"])
    trained = Train.parse(words[2:]).options
    assert status == 0 and trained.minutes == 2.5 and trained.patches.whole == 0.25
    assert trained.data.fit == "bucket" and trained.data.resolution == 64
    # The size is chosen in training, and what is as it is in all sizes then.
    advised, asked = found["advice"]["config"], to_dict(trained)
    for group in ("network", "noise", "optimizer"):
        del advised[group], asked[group]
    assert advised == asked


def test_options_as_words(tmp_path):
    base = pd.PRESETS["small"]
    config = Config(
        **{
            **vars(base),
            "data": Data("photos", resolution=(48, 96), classes=True, augment=Augment(flip=0.5, resample=False)),
            "patches": Patches(coords=False, sizes={"16": 0.5, "8": 0.5}),
            "minutes": 2.5,
        }
    )
    config = replace(config, noise=replace(config.noise, p_mean=None, sigma_max=0.1 + 0.2))
    words = option_words(config, base, without={"data.source"})
    assert Train.parse(["photos", "--out", "x", "--preset", "small", *words]).options == config
    file = tmp_path / "options.yaml"
    file.write_text("batch: 4\nnetwork: {multipliers: [1, 2]}\ndata: {augment: {p: 0.1}}\npatches: {sizes: {8: 1.0}}\n")
    given = given_options(["DATA", "--patches.no-coords", "--resolution=32", "--noise.p-mean", "-0.5"], file)
    assert given >= {"patches.coords", "data.resolution", "noise.p_mean", "batch", "network.multipliers"}
    assert given >= {"data.augment.p", "patches.sizes"}


def bad_sources(tmp_path):
    """Each kind of data that cannot be looked at, and what is said of it."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("no picture")
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 and no more")
    with zipfile.ZipFile(tmp_path / "up.zip", "w") as archive:
        archive.writestr("../a.png", b"x")
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "nan.npy", np.full((4, 8, 8), np.nan, np.float32))
    np.save(tmp_path / "line.npy", np.zeros(4, np.uint8))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "nan.npy").read_bytes()[:100])
    (tmp_path / "no.npz").write_bytes(b"no array")
    return sorted(tmp_path.iterdir())


@pytest.mark.slow
def test_bad_sources_end_in_one_line(tmp_path, run):
    sources = [*bad_sources(tmp_path), tmp_path / "nowhere", "hf:no-such-data-set", "wds:none-*.tar"]
    for source in sources:
        status, out, err = run("inspect", source, "--no-forecast")
        assert status == 1 and not out, source
        assert len(err.strip().splitlines()) == 1 and "Traceback" not in err, source


@pytest.mark.parametrize("content", [b"", b"no picture at all", b"\x89PNG\r\n\x1a\n and no more", b"GIF89a"])
@pytest.mark.slow
def test_bad_files_are_named_with_a_reason(make_folder, run, content):
    folder = make_folder(3)
    (folder / "bad.png").write_bytes(content)
    status, out, _ = run("inspect", folder, "--no-forecast")
    assert status == 0 and "unreadable   1: bad.png (" in out


@pytest.mark.slow
def test_a_folder_of_nothing_but_broken_files(tmp_path, run):
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(b"no picture")
    status, out, _ = run("inspect", tmp_path)
    assert status == 0 and "unreadable   3: 0.png" in out and "Training would be refused" in out


def test_huge_and_odd_files_are_named(tmp_path, monkeypatch, run):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (40, 40)).save(tmp_path / "bomb.png")
    scene(0, 8).save(tmp_path / "small.png")
    pages = [Image.new("RGB", (8, 8)), Image.new("RGB", (9, 9))]
    pages[0].save(tmp_path / "pages.tiff", save_all=True, append_images=pages[1:])
    Image.fromarray(np.array([[np.nan, 1.0]], np.float32)).save(tmp_path / "nan.tiff")
    status, out, _ = run("inspect", tmp_path, "--json", "--no-forecast")
    unusable = json.loads(out)["data"]["unusable"]
    assert status == 0 and unusable.keys() == {"bomb.png", "pages.tiff", "nan.tiff"}
    assert "1,600 pixels" in unusable["bomb.png"] and "NaN" in unusable["nan.tiff"]


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["inspect", "prepare"])
def test_help_is_quick_and_narrow(verb):
    code = (
        "import sys; from patch_diffusion.cli import main\n"
        f"try: main(['{verb}', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'PIL', 'pydantic'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


def test_it_needs_data(run):
    status, _, err = run("inspect")
    assert status == 2 and "inspect needs DATA" in err
