"""``patch-diffusion edit``, and guides and tiles of ``patch-diffusion sample``, as a user."""

import json

import numpy as np
import pytest
from PIL import Image

from patch_diffusion.cli import main

pytestmark = pytest.mark.slow

TINY = (
    "--network.width 8 --network.multipliers 1 2 --network.attention 1 --network.blocks 1 --ema.lengths 0.05 0.1 "
    "--optimizer.learning-rate 0.03 --batch 4 --samples 0 --checkpoints 2 --log-every 1"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "digits", "--out", str(folder), "--steps", "4", *TINY.split()]) == 0
    return folder


@pytest.fixture
def run(capsys):
    """``run("edit ...")``: exit status, stdout and stderr."""

    def call(line, **places):
        words = [str(places.get(word, word)) for word in line.split()]
        status = main(words)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def places(tmp_path, trained):
    random = np.random.default_rng(0)
    digit = random.integers(0, 256, (16, 16), dtype=np.uint8)
    half = np.zeros((16, 16), np.uint8)
    half[:, 8:] = 255
    pictures = {
        "DIGIT": digit,
        "MASK": half,
        "EMPTY": half * 0,
        "FULL": half | 255,
        "SMALL": half[:12],
        "ODD": digit[:15],
        "COLOUR": random.integers(0, 256, (16, 16, 3), dtype=np.uint8),
        "CLEAR": random.integers(0, 256, (16, 16, 4), dtype=np.uint8),
        "DEEP": digit.astype(np.uint16),
    }
    found = {"RUN": trained, "OUT": tmp_path / "out", "NOWHERE": tmp_path / "nowhere.png"}
    for name, array in pictures.items():
        found[name] = tmp_path / f"{name.lower()}.png"
        Image.fromarray(array).save(found[name])
    arrays = {"ARRAY": digit, "THREE": pictures["COLOUR"], "FLOATS": digit / 255, "WRONG": np.zeros((2, 3, 4, 5))}
    for name, array in arrays.items():
        found[name] = tmp_path / f"{name.lower()}.npy"
        np.save(found[name], array)
    found |= {"HERE": tmp_path, "SEEDED": tmp_path / "000000.png", "LINK": tmp_path / "link.png"}
    found["MEAN"] = tmp_path / "mean.png"
    for name in ("SEEDED", "MEAN"):
        found[name].write_bytes(found["MASK"].read_bytes())
    found["LINK"].symlink_to(found["SEEDED"])
    found["BROKEN"] = tmp_path / "broken.png"
    found["BROKEN"].write_bytes(found["DIGIT"].read_bytes()[:70])
    found["DAMAGED"] = tmp_path / "damaged.npy"
    found["DAMAGED"].write_bytes(b"no array")
    return found


def edited(run, places, options, seed=3):
    status, _, err = run(f"edit RUN DIGIT --out OUT --seeds {seed} --steps 3 {options}", **places)
    assert status == 0, err
    return np.asarray(Image.open(places["OUT"] / f"{seed:06d}.png"))


def settings_of(places):
    return json.loads((places["OUT"] / "samples.json").read_text())["samples"][0]["settings"]


@pytest.mark.slow
def test_a_mask(run, places):
    grid = places["OUT"].parent / "grid.png"
    status, text, _ = run(
        "edit RUN DIGIT --mask MASK --out OUT --seeds 0-2 --steps 2 --class 4 --grid GRID --json", **places, GRID=grid
    )
    assert status == 0 and json.loads(text) == {"samples": 3, "out": str(places["OUT"]), "grid": str(grid)}
    original = np.asarray(Image.open(places["DIGIT"]))
    for seed in range(3):
        found = np.asarray(Image.open(places["OUT"] / f"{seed:06d}.png"))
        assert np.array_equal(found[:, :8], original[:, :8]) and not np.array_equal(found[:, 8:], original[:, 8:])
    entries = json.loads((places["OUT"] / "samples.json").read_text())["samples"]
    assert [(entry["seed"], entry["class"]) for entry in entries] == [(0, 4), (1, 4), (2, 4)]
    settings = entries[0]["settings"]
    assert settings["image"] == str(places["DIGIT"]) and settings["mask"] == str(places["MASK"])
    assert settings["filled"] == 0.5 and settings["steps"] == 2


@pytest.mark.filterwarnings("default")
def test_a_converted_picture_is_a_note_and_help_lists_what_has_an_effect(run, places, capsys):
    for name in ("COLOUR", "CLEAR"):
        status, _, err = run(f"edit RUN {name} --mask MASK --out OUT --steps 1", **places)
        told, done = err.splitlines()
        assert status == 0 and "RGB" in told and "was converted to grey" in told and done.startswith("1 picture in")
    with pytest.raises(SystemExit):
        run("edit --help")
    words = set(capsys.readouterr().out.split())
    assert {"--steps", "--sigma-min", "--rho", "--tile"} <= words
    assert words.isdisjoint({"--solver", "--schedule", "--churn", "--churn-noise", "--eta", "--resolution"})


def test_an_image_of_far_more_pixels_than_in_training_is_a_note(run, places, tmp_path):
    Image.fromarray(np.zeros((48, 48), np.uint8)).save(tmp_path / "large.png")
    line = f"edit RUN {tmp_path / 'large.png'} --restore denoise --noise 5 --repeats 1 --steps 1 --out OUT"
    told = "the image is 48x48 and is edited at that size, but the model learned images of 16x16"
    assert told in run(line, **places)[2] and told not in run(f"{line} --tile 16", **places)[2]


def test_an_extension(run, places):
    original = np.asarray(Image.open(places["DIGIT"]))
    found = edited(run, places, "--extend left=4,top=2")
    assert found.shape == (18, 20) and np.array_equal(found[2:, 4:], original)
    assert settings_of(places)["extend"] == {"left": 4, "top": 2}
    assert np.array_equal(found, edited(run, places, "--extend left=4 top=2"))


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ("--restore super-resolution", (32, 32)),
        ("--restore super-resolution --factor 3", (48, 48)),
        ("--restore deblur --blur 1", (16, 16)),
        ("--restore denoise --noise 20", (16, 16)),
    ],
)
def test_restorations(run, places, options, shape):
    assert edited(run, places, options).shape == shape
    assert settings_of(places)["restore"] == options.split()[1]


def test_a_mean_of_several(run, places):
    line = "edit RUN DIGIT --out OUT --seeds 0-2 --steps 2 --restore denoise --noise 20"
    assert "their mean" not in run(line, **places)[2] and not (places["OUT"] / "mean.png").exists()
    assert "3 pictures in" in (err := run(line + " --mean", **places)[2]) and "and their mean" in err
    every = [np.asarray(Image.open(places["OUT"] / f"{seed:06d}.png"), float) for seed in range(3)]
    assert np.array_equal(np.asarray(Image.open(places["OUT"] / "mean.png")), np.mean(every, axis=0).round())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "option"),
    [
        ("--restore deblur --blur 1", "--restore deblur --blur 1.5"),
        ("--restore deblur --blur 1", "--restore deblur --blur 1 --noise 30"),
        ("--restore denoise --noise 9", "--restore denoise --noise 20"),
        ("--mask MASK", "--mask MASK --class 5"),
        ("--mask MASK", "--mask MASK --repeats 9"),
        ("--mask MASK", "--mask MASK --covariance network"),
        ("--mask MASK", "--mask MASK --covariance isotropic"),
        ("--mask MASK", "--mask MASK --guidance 3 --guide crops"),
        ("--mask MASK", "--mask MASK --guidance 3 --guide step:2"),
        ("--mask MASK", "--mask MASK --tile 8"),
        ("--mask MASK", "--mask MASK --ema-length 0.2"),
        ("--extend left=4", "--extend left=4 --coords extend"),
    ],
)
def test_every_option_changes_the_picture(run, places, base, option):
    if "covariance" in option:  # one of the two is the default
        kinds = [edited(run, places, f"{base} --covariance {kind}") for kind in ("isotropic", "network")]
        assert not np.array_equal(*kinds)
    else:
        assert not np.array_equal(edited(run, places, base), edited(run, places, option))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("edit RUN", 2, "IMAGE"),
        ("edit RUN DIGIT --mask MASK", 2, "--out"),
        ("edit RUN DIGIT --out OUT", 1, "say what to do with the image"),
        ("edit RUN DIGIT --out OUT --restore sharpen", 2, "--restore"),
        ("edit RUN DIGIT --out OUT --mask MASK --restore deblur --blur 1", 1, "do it first, and mask"),
        ("edit RUN DIGIT --out OUT --mask MASK --factor 2", 1, "factor is for restore super-resolution"),
        ("edit RUN DIGIT --out OUT --restore deblur --factor 2", 1, "factor is for"),
        ("edit RUN DIGIT --out OUT --restore deblur", 1, "needs blur"),
        ("edit RUN DIGIT --out OUT --restore denoise", 1, "needs noise"),
        ("edit RUN DIGIT --out OUT --restore deblur --blur 9", 1, "reaches 27 pixels far, beyond an image of 16x16"),
        ("edit RUN DIGIT --out OUT --restore super-resolution --factor 1", 1, "at least 2, not 1"),
        ("edit RUN DIGIT --out OUT --mask SMALL", 1, "the mask is 12x16 and the image 16x16"),
        ("edit RUN DIGIT --out OUT --mask EMPTY", 1, "the mask is empty"),
        ("edit RUN DIGIT --out OUT --mask FULL", 1, "covers the whole image"),
        ("edit RUN DIGIT --out OUT --mask NOWHERE", 1, "there is no file at"),
        ("edit RUN DIGIT --out OUT --mask WRONG", 1, "a mask is (height, width)"),
        ("edit RUN DIGIT --out OUT --mask DEEP", 1, "a black and white picture of 8 bits"),
        ("edit RUN DIGIT --out OUT --extend lef=4", 1, "no side 'lef'; did you mean 'left'"),
        ("edit RUN DIGIT --out OUT --extend left", 1, "as in left=32,top=8, not 'left'"),
        ("edit RUN DIGIT --out OUT --extend left=-3", 1, "as in left=32,top=8, not 'left=-3'"),
        (f"edit RUN DIGIT --out OUT --extend left={'9' * 5000}", 1, "as in left=32,top=8, not 'left=999"),
        ("edit RUN DIGIT --out OUT --extend left=0", 1, "none are given"),
        ("edit RUN DIGIT --out OUT --extend left=3", 1, "multiples of 2 for this network, not 16x19"),
        ("edit RUN HERE --out OUT --mask MASK", 1, "is a folder: give a file"),
        (
            "edit RUN DIGIT --out OUT --mask MASK --solver euler",
            2,
            "solver has no effect: edit has a solver and a schedul",
        ),
        ("edit RUN DIGIT --out OUT --mask MASK --churn-min=1", 2, "churn_min has no effect"),
        ("edit RUN DEEP --out OUT --mask MASK", 1, "pixels of uint16, but this run's are uint8"),
        ("edit RUN THREE --out OUT --mask MASK", 1, "has the shape (16, 16, 3), but this run's images have 1 channels"),
        ("edit RUN FLOATS --out OUT --mask MASK", 1, "numbers of float64, but this run's images are uint8"),
        ("edit RUN ODD --out OUT --restore denoise --noise 9", 1, "multiples of 2 for this network, not 15x16"),
        ("edit RUN NOWHERE --out OUT --mask MASK", 1, "there is no file at"),
        ("edit RUN BROKEN --out OUT --mask MASK", 1, "cannot be read"),
        ("edit RUN DAMAGED --out OUT --mask MASK", 1, "is damaged"),
        ("edit NOWHERE DIGIT --out OUT --mask MASK", 1, "does not exist"),
        ("edit RUN DIGIT --out OUT --mask MASK --class 11", 1, "classes 0 to 9"),
        ("edit RUN DIGIT --out OUT --mask MASK --guidance 2", 1, "guidance by the class needs one"),
        ("edit RUN DIGIT --out OUT --mask MASK --repeats 0", 1, "at least once, not 0 times"),
        ("edit RUN DIGIT --out DIGIT --mask MASK", 1, "is a file"),
        ("edit RUN DIGIT --out OUT --restore denoise --noise inf", 1, "noise is a finite number, not inf"),
        ("edit RUN DIGIT --out OUT --restore deblur --blur nan", 1, "a blur is a finite number, not nan"),
        ("edit RUN SEEDED --out HERE --mask MASK", 1, "000000.png is read by this command, and would be overwritten"),
        ("edit RUN DIGIT --out HERE --mask SEEDED", 1, "000000.png is read by this command"),
        ("edit RUN LINK --out HERE --mask MASK", 1, "000000.png is read by this command"),
        ("edit RUN DIGIT --out OUT --mask MASK --grid MASK", 1, "mask.png is read by this command"),
        ("edit RUN MEAN --out HERE --mask MASK --seeds 1 --mean", 1, "mean.png is read by this command"),
        ("edit RUN DIGIT --out HERE --mask MASK --seeds 1 --mean --grid MEAN", 1, "name of one of the pictures"),
        ("sample RUN --out OUT --guidance 2 --guide step:3", 1, "there are checkpoints of the steps 2, 4"),
        ("sample RUN --out OUT --guidance 2 --guide step:x", 1, "as in step:400, not 'step:x'"),
        ("sample RUN --out OUT --guidance 2 --guide ema:x", 1, "as in ema:0.02, not 'ema:x'"),
        ("sample RUN --out OUT --guidance 2 --guide ema:0.9", 1, "a share of the training in"),
        ("sample RUN --out OUT --guidance 2 --guide crop", 1, "there is no guide 'crop'; did you mean 'crops'"),
        ("sample RUN --out OUT --guidance 2 --guidance-interval 3 1", 1, "from a lower to a higher"),
        ("sample RUN --out OUT --guide crops", 1, "for a guidance other than 1"),
        ("sample RUN --out OUT --tile 32", 1, "a tile of 32x32 does not fit"),
        ("sample RUN --out OUT --overlap 3", 1, "give tile, too"),
        ("sample RUN --out OUT --coords wide", 2, "--coords"),
    ],
)
def test_mistakes_get_one_line_and_nothing_is_written(run, places, tmp_path, line, status, message):
    before = sorted(tmp_path.rglob("*"))
    found, out, err = run(line, **places)
    assert found == status and message in err and len(err.strip().splitlines()) == 1 and not out, err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    [
        "--guidance 4 --guide crops",
        "--guidance 4 --guide crops:1/4",
        "--guidance 4 --guide step:2",
        "--guidance 4 --guide ema:0.2",
        "--guidance 4 --guide CHECKPOINT",
        "--guidance 4 --guidance-interval 0.1 5",
        "--resolution 24 32 --coords extend",
        "--resolution 24 21 --tile 8 --overlap 2",
        "--tile 8",
    ],
)
def test_guides_and_views_change_the_picture(run, places, option):
    places["CHECKPOINT"] = places["RUN"] / "checkpoints" / "step-00000002"

    def sampled(options):
        assert run(f"sample RUN --seeds 3 --out OUT --steps 3 {options}", **places)[0] == 0
        return np.asarray(Image.open(places["OUT"] / "000003.png"))

    plain, other = sampled(""), sampled(option)
    assert plain.shape != other.shape or not np.array_equal(plain, other)
    settings, words = settings_of(places), option.split()
    if "--guide" in words:
        word = words[words.index("--guide") + 1]
        assert settings["guide"] == str(places.get(word, word))
    if "--coords" in words:
        other = sampled("--resolution 24 32")
        assert settings["coords"] == "extend" and not np.array_equal(sampled(option), other)
