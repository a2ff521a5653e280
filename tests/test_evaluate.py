"""The verb and the function, on models whose samples are known."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import patch_diffusion as pd
from grouped import grouped
from needs import need
from patch_diffusion.cli import main
from patch_diffusion.denoise.whole_image import SIGMAS, losses_of_images
from patch_diffusion.evaluation import denoising
from patch_diffusion.evaluation.options import DEFAULT_METRICS, METRICS
from patch_diffusion.evaluation.processes import distributed_evaluation, first_alone, shared
from patch_diffusion.evaluation.stream import stream_of_images
from patch_diffusion.processes import run_processes

TINY = (
    "--network.width 8 --network.multipliers 1 2 --network.attention 1 --network.blocks 1 --batch 4 --samples 0 "
    "--checkpoints 1 --track"
)
MEAN, DEVIATION = 0.1, 0.2


class Gaussian(pd.Denoiser):
    """The best denoiser of independent normal pixels: its samples are such pixels, to the solver's steps."""

    image_channels = 3

    def forward(self, noisy, sigma, coords, labels=None, augment=None):
        sigma = torch.as_tensor(sigma, dtype=noisy.dtype).reshape(-1, 1, 1, 1)
        return MEAN + (noisy - MEAN) * DEVIATION**2 / (DEVIATION**2 + sigma**2)


def gaussian_images(num, seed=0, mean=MEAN, deviation=DEVIATION):
    values = mean + deviation * torch.randn(num, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return pd.ImageSet(pd.ImageSet(torch.zeros(1, 1, 1, 1, dtype=torch.uint8)).codec.decode(values))


@pytest.fixture
def model():
    return Gaussian(lambda *_: None, resolution=(8, 8))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "digits", "--out", str(folder), "--steps", "3", "--held-out", "0.05", *TINY.split()]) == 0
    return folder


@pytest.fixture
def run(capsys):
    """``run("evaluate ...")``: exit status, stdout and stderr."""

    def call(line, **places):
        status = main([str(places.get(word, word)) for word in line.split()])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def colours(images):
    """Nine features: means and squares of each channel, and products."""
    values = images.double().flatten(2) / 255
    return torch.cat(
        [values.mean(dim=2), values.square().mean(dim=2), values.roll(1, 1).mul(values).mean(dim=2)], dim=1
    )


@pytest.mark.slow
def test_samples_of_a_perfect_model_are_as_good_as_other_real_images(model):
    real = gaussian_images(400)
    good = pd.evaluate(
        model, real, extractor=colours, sampling=pd.Sampling(steps=60), options=pd.EvaluationOptions(samples=200)
    )
    real_again = pd.evaluate(gaussian_images(200, 1), real, extractor=colours)
    bad = pd.evaluate(gaussian_images(200, 1, mean=MEAN + 0.1), real, extractor=colours)
    for name in ("frechet", "kernel"):
        of_good, of_real, of_bad = (each.measures[name] for each in (good, real_again, bad))
        assert of_good.low < of_real.high and of_real.low < of_good.high and of_bad.low > 10 * of_good.high
    for name in ("precision", "recall", "coverage"):
        assert good.measures[name].value > 0.6 > 0.1 > bad.measures[name].value
    assert good.settings["seeds"] == "0-199" and good.settings["steps"] == 60
    assert good.measures["frechet"].settings["reference_images"] == 400


def test_the_distance_is_that_of_samples_which_generate_gives(model):
    real = gaussian_images(50)
    found = pd.evaluate(
        model,
        real,
        extractor=colours,
        sampling=pd.Sampling(steps=4, batch=7),
        options=pd.EvaluationOptions(samples=20, seed=3, metrics=("frechet",)),
    )
    pixels = torch.stack([sample.pixels for sample in pd.generate(model, range(60, 80), steps=4)])
    exact = pd.frechet_distance(pd.gaussian_of([colours(real.pixels)]), pd.gaussian_of([colours(pixels)]))
    assert found.measures["frechet"].value == pytest.approx(exact, rel=1e-4)
    assert found.settings["seeds"] == "60-79" and list(found.measures) == ["frechet"]


def test_images_are_evaluated_in_any_batch_and_some_follow_from_the_seed():
    real, pictures = gaussian_images(60), gaussian_images(40, 1)

    def frechet(**options):
        return (
            pd.evaluate(pictures, real, **grouped(metrics=["frechet"], extractor=colours, **options))
            .measures["frechet"]
            .value
        )

    assert frechet() == pytest.approx(frechet(batch=3), rel=1e-6)
    assert frechet(samples=40) == frechet()
    assert frechet(samples=20) != frechet(samples=20, seed=1)
    shuffled = stream_of_images(pictures, 20, batch=6)
    every = torch.cat(list(shuffled.batches()))
    assert all(
        torch.equal(every[place], image) for place, image in zip((3, 19, 6), shuffled.some((3, 19, 6)), strict=True)
    )
    assert len({image.numpy().tobytes() for image in every}) == 20


def test_the_interval_does_not_depend_on_the_order_of_the_pictures():
    """Dark ones first: groups of neighbours would differ far more than other samples would."""
    real = gaussian_images(100)
    pixels = torch.cat([gaussian_images(48, 1, mean=-0.3).pixels, gaussian_images(48, 2, mean=0.5).pixels])
    found = pd.evaluate(
        pd.ImageSet(pixels), real, extractor=colours, options=pd.EvaluationOptions(metrics=("frechet",))
    ).measures["frechet"]
    assert found.high - found.low < 0.1 * found.value


def test_buckets_come_in_one_order():
    small, large = gaussian_images(10), pd.ImageSet(torch.randint(0, 255, (7, 3, 4, 6), dtype=torch.uint8))
    stream = stream_of_images(pd.ImageBuckets((small, large)), 12, batch=5)
    every = [image for batch in stream.batches() for image in batch]
    assert len(every) == 12 and {tuple(image.shape) for image in every} == {(3, 8, 8), (3, 4, 6)}
    assert all(torch.equal(every[place], stream.some([place])[0]) for place in range(12))
    assert stream.digest() != stream_of_images(small).digest()


def test_published_statistics_take_the_place_of_images(model, tmp_path):
    real = gaussian_images(50)
    gaussian = pd.gaussian_of([colours(real.pixels)])
    np.savez(tmp_path / "reference.npz", mu=gaussian.mean.numpy(), sigma=gaussian.covariance.numpy())
    options = {"samples": 20, "steps": 3, "extractor": colours}
    of_images = pd.evaluate(model, real, **grouped(metrics=["frechet"], **options))
    of_file = pd.evaluate(model, reference=tmp_path / "reference.npz", **grouped(**options))
    assert of_file.measures["frechet"].value == pytest.approx(of_images.measures["frechet"].value, rel=1e-5)
    assert list(of_file.measures) == ["frechet"] and "not measured: kernel, which needs images" in " ".join(
        of_file.notes
    )


def test_another_reference_than_the_training(model):
    training, other = gaussian_images(40), gaussian_images(40, 2, mean=-0.5)
    near, far = (
        pd.evaluate(
            model,
            training,
            reference=reference,
            extractor=colours,
            sampling=pd.Sampling(steps=3),
            options=pd.EvaluationOptions(samples=20),
        )
        for reference in (None, other)
    )
    assert far.measures["frechet"].value > 5 * near.measures["frechet"].value
    assert far.measures["near_copies"] == near.measures["near_copies"]


def test_denoising_is_the_loss_of_whole_images(model):
    held_out = gaussian_images(30)
    found = pd.evaluate(model, held_out=held_out, options=pd.EvaluationOptions(metrics=("denoising",), seed=2)).measures
    exact = pd.whole_image_loss(model, held_out, seed=2)
    assert set(found) == {"denoising", *(f"denoising@{sigma:g}" for sigma in SIGMAS)}
    for sigma in SIGMAS:
        measure = found[f"denoising@{sigma:g}"]
        assert measure.value == pytest.approx(exact[sigma]) and measure.low < measure.value < measure.high
    assert found["denoising"].value == pytest.approx(sum(exact.values()) / len(exact))
    each = losses_of_images(model, held_out, sigmas=(0.4,), seed=0, most=7)[0.4]
    assert each.shape == (7,) and each.std() > 0


@pytest.mark.slow
def test_bits_agree_between_seeds_within_their_interval(model):
    need("torchdiffeq", "likelihood")
    held_out = gaussian_images(24)
    one, other = (
        pd.evaluate(
            model, held_out=held_out, options=pd.EvaluationOptions(metrics=("bits",), bits_images=24, seed=seed)
        ).measures["bits"]
        for seed in (0, 1)
    )
    assert one.value != other.value and one.low < other.value < one.high and other.low < one.value < other.high
    entropy = 0.5 * np.log2(2 * np.pi * np.e * DEVIATION**2) + np.log2(255 / 2)
    assert one.value == pytest.approx(entropy, rel=0.02)
    fewer = pd.evaluate(
        model, held_out=held_out, options=pd.EvaluationOptions(metrics=("bits",), bits_images=5)
    ).measures["bits"]
    assert fewer.settings["held_out_images"] == 5


@pytest.mark.slow
def test_every_option_changes_the_numbers(trained, tmp_path):
    options = {"samples": 8, "steps": 2, "metrics": ["frechet"], "extractor": few_features}
    digits = pd.open_images("digits")
    few = pd.ImageSet(digits.pixels[:50], digits.labels[:50], digits.class_names)

    def frechet(**other):
        return pd.evaluate(trained, few, **grouped(**{**options, **other})).measures["frechet"].value

    plain = frechet()
    assert plain == frechet()
    found = [plain]
    for other in (
        {"samples": 9},
        {"steps": 3},
        {"solver": "euler"},
        {"seed": 1},
        {"guidance": 3.0},
        {"guidance": 3.0, "guide": "crops"},
        {"guidance": 3.0, "guidance_interval": (1.0, 100.0)},
        {"extractor": "random"},
    ):
        found.append(frechet(**other))
        assert found[-1] not in found[:-1], other
    assert frechet(batch=3) == pytest.approx(plain, rel=1e-4)


def few_features(images):
    """Means of blocks, so that every pixel counts, and the distance takes little time."""
    return torch.nn.functional.avg_pool2d(images.float(), 4).flatten(1)


@pytest.mark.slow
def test_the_verb(trained, run, tmp_path):
    status, text, err = run(
        "evaluate RUN --samples 12 --steps 2 --json JSON --pairs PAIRS",
        RUN=trained,
        JSON=tmp_path / "a.json",
        PAIRS=tmp_path / "p.png",
    )
    assert status == 0 and "the result is in" in err and (tmp_path / "p.png").exists()
    assert all(len(line) <= 80 for line in text.splitlines())
    for word in ("Frechet distance", "95 % interval", "of held-out images", "sigma 6.4", "12 against 1,707", "random"):
        assert word in text, word
    found = json.loads((tmp_path / "a.json").read_text())
    assert set(found) == {"source", "metrics", "settings", "notes"}
    names = "frechet kernel precision recall density coverage near_copies nearest_ratio denoising denoising@0.4"
    assert set(names.split()) <= set(found["metrics"])
    for measure in found["metrics"].values():
        assert measure["interval"][0] <= measure["value"] <= measure["interval"][1] and measure["settings"]
    settings = found["settings"]
    assert settings["samples"] == 12 and settings["classes"] == "as frequent as in the data"
    assert settings["extractor"]["kind"] == "random convolutions" and settings["resolution"] == [16, 16]
    status, text, err = run("evaluate RUN --samples 12 --steps 2 --json", RUN=trained)
    again = json.loads(text)
    assert status == 0 and not err and again["metrics"] == found["metrics"]


@pytest.mark.slow
def test_the_verb_knows_every_guide(trained, run):
    found = {}
    for guide in ("class", "crops", "step:3", "--guidance-interval 1 100"):
        option = guide if guide.startswith("--") else f"--guide {guide}"
        line = f"evaluate RUN --samples 8 --steps 2 --metrics frechet --guidance 3 {option} --json"
        result = json.loads(run(line, RUN=trained)[1])
        found[guide] = result["metrics"]["frechet"]["value"]
        assert result["settings"]["guidance"] == 3 and result["settings"]["guide"] in (guide, "class")
    assert len(set(found.values())) == 4
    status, _, err = run("evaluate RUN --guidance 3 --guide crop", RUN=trained)
    assert status == 1 and "did you mean 'crops'" in err


@pytest.mark.scheduled
def test_processes_share_the_samples(trained, run, tmp_path):
    line = "evaluate RUN --samples 40 --batch 6 --steps 2 --metrics frechet kernel memorization bits"
    line += " --bits-images 8 --json JSON --pairs PAIRS"
    found = {}
    for num in (1, 2):
        json_file, pairs = tmp_path / f"{num}.json", tmp_path / f"{num}.png"
        assert run(f"{line} --processes {num}", RUN=trained, JSON=json_file, PAIRS=pairs)[0] == 0 and pairs.exists()
        found[num] = json.loads(json_file.read_text())
    assert found[2]["settings"] == found[1]["settings"] and found[2]["notes"] == found[1]["notes"]
    for name, measure in found[1]["metrics"].items():
        assert found[2]["metrics"][name]["value"] == pytest.approx(measure["value"], rel=1e-4, abs=1e-6), name
    status, _, err = run("evaluate RUN --processes 2 --metrics frechet --extractor FILE", RUN=trained, FILE=tmp_path)
    assert status == 1 and err.startswith("patch-diffusion evaluate: ") and err.count("\n") == 1
    for num in (0, 10**9):
        assert run(f"evaluate RUN --processes {num}", RUN=trained)[0] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_what_one_process_cannot_make_fails_in_all(tmp_path):
    with pytest.raises(pd.InputError, match="part 5 is broken"):
        run_processes(2, share_numbers, tmp_path)
    assert sorted((tmp_path / f"{rank}").read_text() for rank in (0, 1)) == ["0 1 2 3 4", "0 1 2 3 4"]


def share_numbers(folder):
    def make(number):
        if number == 5:
            raise pd.InputError("part 5 is broken")
        return number

    with distributed_evaluation("cpu") as device:
        assert device == "cpu" and first_alone(lambda: 3) == 3
        assert list(shared(lambda number: number * number, 3)) == [0, 1, 4]
        got = []
        try:
            got.extend(map(str, shared(make, 9)))
        finally:
            (folder / os.environ["RANK"]).write_text(" ".join(got))


@pytest.mark.slow
def test_a_run_knows_what_it_held_out(trained, monkeypatch):
    found = pd.evaluate(
        trained,
        sampling=pd.Sampling(steps=1),
        options=pd.EvaluationOptions(metrics=("memorization", "denoising"), samples=4),
    )
    assert found.measures["denoising"].settings["held_out_images"] == 90
    assert found.measures["near_copies_held_out"].settings["images"] == 4
    assert denoising.MOST_DENOISED == 1000
    monkeypatch.setattr(denoising, "MOST_DENOISED", 100)
    other = pd.evaluate(trained, "digits", held_out="digits", options=pd.EvaluationOptions(metrics=("denoising",)))
    assert other.measures["denoising"].settings["held_out_images"] == 100  # of 1,797
    checkpoint = trained / "checkpoints" / "step-00000003"
    assert (
        pd.evaluate(checkpoint, options=pd.EvaluationOptions(metrics=("denoising",))).measures
        == pd.evaluate(trained, options=pd.EvaluationOptions(metrics=("denoising",))).measures
    )


@pytest.mark.slow
def test_data_that_is_not_what_it_was_trained_on(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["num_images"] = 1000
    del config["model"]["held_out_below"], config["model"]["data_digest"]  # as in runs of earlier versions
    (folder / "config.json").write_text(json.dumps(config))
    found = pd.evaluate(
        folder, sampling=pd.Sampling(steps=1), options=pd.EvaluationOptions(metrics=("frechet",), samples=4)
    )
    assert any("trained on 1,000 images, but this data would give it 1,707" in note for note in found.notes)
    with pytest.raises(pd.InputError, match="needs images the model was not trained on"):
        pd.evaluate(folder, options=pd.EvaluationOptions(metrics=("denoising",)))


@pytest.mark.slow
def test_folders_of_pictures(run, make_folder, tmp_path):
    pictures, data = make_folder(12, (10, 12), name="generated"), make_folder(30, (20, 24), name="data")
    status, text, _ = run("evaluate PICTURES --data DATA --held-out DATA --json", PICTURES=pictures, DATA=data)
    found = json.loads(text)
    assert status == 0 and found["settings"]["images"] == 12 and found["settings"]["resolution"] == [10, 12]
    assert "not measured: denoising, which needs a run, not pictures" in found["notes"]
    status, text, _ = run("evaluate PICTURES --data digits --metrics frechet --json", PICTURES=pictures)
    assert status == 0 and json.loads(text)["metrics"]["frechet"]["settings"]["reference_images"] == 1797


def test_grey_images_for_an_extractor_of_colours():
    grey = pd.ImageSet(gaussian_images(20).pixels[:, :1])
    extractor = pd.Extractor("colours", colours)
    found = pd.evaluate(grey, grey, extractor=extractor, options=pd.EvaluationOptions(metrics=("kernel",)))
    assert "images of 1 channel are repeated to 3 for the extractor colours" in found.notes


def test_images_of_16_bits_and_floats():
    from patch_diffusion.data.codec import PixelCodec

    codec = PixelCodec("uint16", 0, 4095)
    pixels = gaussian_images(20).pixels
    wide = pd.ImageSet((pixels.float() * 4095 / 255).round().to(torch.uint16), codec=codec)
    floats = pd.ImageSet(pixels.float() / 255, codec=PixelCodec("float32", 0, 1))
    real = gaussian_images(30, 1)
    found = [
        pd.evaluate(images, real, extractor=colours, options=pd.EvaluationOptions(metrics=("frechet",)))
        .measures["frechet"]
        .value
        for images in (pd.ImageSet(pixels), wide, floats)
    ]
    assert found[1] == pytest.approx(found[0]) and found[2] == pytest.approx(found[0])


def nan(images):
    return colours(images) * torch.nan


def test_mistakes_from_python(model):
    real = gaussian_images(20)
    for options, message in (
        ({"extractor": nan}, "not finite numbers of 20 of 20"),
        ({"samples": 1}, "at least two samples"),
        ({"metrics": ["fid"]}, "there is no metric 'fid'"),
        ({"metrics": []}, "no metric was asked for: choose from frechet"),
        ({"bits_images": 0}, "at least 1 image"),
        ({"batch": 0}, "a batch has at least 1 image, not 0"),
        ({"samples": 21}, "there are 20 images, and 21 were asked for"),
        ({"metrics": ["denoising"]}, "the metric denoising needs a run, not pictures"),
    ):
        with pytest.raises(pd.InputError, match=message):
            pd.evaluate(real, real, **grouped(**options))
    with pytest.raises(pd.InputError, match="at least two images are needed, and images has 1"):
        pd.evaluate(gaussian_images(1), real)
    with pytest.raises(pd.InputError, match="needs more than 3 images on both sides"):
        pd.evaluate(gaussian_images(3), real, options=pd.EvaluationOptions(metrics=("precision",)))
    few = pd.evaluate(gaussian_images(3), real)
    assert "not measured: precision, which needs more than 3 images on both sides" in few.notes
    assert few.measures["frechet"].low is None
    with pytest.raises(pd.InputError, match="nothing to compare with: give the training images"):
        pd.evaluate(model)
    for metric in ("memorization", "frechet", "kernel"):
        with pytest.raises(pd.InputError, match=f"the metric {metric} needs .*give --data DATA"):
            pd.evaluate(model, options=pd.EvaluationOptions(metrics=(metric,)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("evaluate", 2, "RUN"),
        ("evaluate NOWHERE --data digits", 1, "there is no run or data at"),
        ("evaluate EMPTY --data digits", 1, "is empty"),
        ("evaluate ONE --data digits", 1, "at least two images are needed"),
        ("evaluate PICTURES", 1, "nothing to compare with: give the training images"),
        ("evaluate PICTURES --data NOWHERE", 1, "there is no data at"),
        ("evaluate PICTURES --data EMPTY", 1, "is empty"),
        ("evaluate PICTURES --data ONE --metrics frechet", 1, "a reference has at least two images, and there are 1"),
        ("evaluate PICTURES --data digits --reference EMPTY", 1, "is empty"),
        (
            "evaluate PICTURES --data digits --reference BAD.npz --metrics frechet",
            1,
            "no reference statistics: mu is (0,)",
        ),
        ("evaluate PICTURES --data digits --metrics fid", 1, "there is no metric 'fid'"),
        ("evaluate PICTURES --data digits --metrics frechet kernl", 1, "did you mean 'kernel'"),
        ("evaluate PICTURES --data digits --metrics bits", 1, "needs a run, not pictures"),
        ("evaluate PICTURES --data digits --samples 500", 1, "there are 4 images, and 500 were asked for"),
        ("evaluate PICTURES --data digits --samples few", 2, "--samples"),
        ("evaluate PICTURES --data digits --extractor inception", 1, "pt_inception-2015-12-05-6726825d.pth"),
        ("evaluate PICTURES --data digits --extractor WEIGHTS", 1, "holds no weights that can be read"),
        ("evaluate PICTURES --data digits --extractor resnet", 1, "there is no extractor 'resnet'"),
        ("evaluate PICTURES --data digits --pairs p.jpg", 1, "written as .png"),
        ("evaluate PICTURES --data digits --pairs PICTURES/000.png", 1, "is read by this command"),
        ("evaluate PICTURES --data ONE --pairs ONE/000.png", 1, "is read by this command"),
        ("evaluate PICTURES --data digits --sampels 3", 2, "perhaps you meant --samples"),
        ("evaluate RUN --device abacus", 1, "'abacus' is not there"),
        ("evaluate RUN --solver hune", 1, "there is no solver 'hune'"),
        ("evaluate RUN --samples 1", 1, "at least two samples"),
        ("evaluate RUN --ema-length 0.1", 1, "kept no averages"),
        ("evaluate RUN --vae PICTURES", 1, "takes no VAE"),
    ],
)
def test_mistakes_get_one_line_and_nothing_is_written(trained, run, make_folder, tmp_path, line, status, message):
    (tmp_path / "empty").mkdir()
    make_folder(4, name="pictures")
    make_folder(1, name="one")
    (tmp_path / "weights").write_text("none")
    np.savez(tmp_path / "bad.npz", mu=np.zeros(0), sigma=np.zeros((0, 0)))
    places = {name.upper(): tmp_path / name for name in ("nowhere", "empty", "one", "pictures", "weights")}
    before = sorted(tmp_path.rglob("*"))
    places |= {f"{name.upper()}/000.png": tmp_path / name / "000.png" for name in ("pictures", "one")}
    found, out, err = run(line, RUN=trained, **places, **{"BAD.npz": tmp_path / "bad.npz"})
    assert found == status and message in err and not out, err
    assert len(err.strip().splitlines()) == 1 and "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_help_names_every_metric_and_torch_is_not_imported(capsys):
    import subprocess
    import sys

    with pytest.raises(SystemExit):
        main(["evaluate", "--help-all"])
    text = capsys.readouterr().out
    assert all(name in text for name in METRICS) and all(len(line) <= 80 for line in text.splitlines())
    assert set(DEFAULT_METRICS) == set(METRICS) - {"bits"}
    code = (
        "import sys; from patch_diffusion.cli import main\n"
        "try: main(['evaluate', '--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_picture_of_pairs_shows_samples_beside_training_images(trained, tmp_path):
    pd.evaluate(
        trained,
        sampling=pd.Sampling(steps=1),
        options=pd.EvaluationOptions(metrics=("memorization",), samples=4, pairs=tmp_path / "pairs.png"),
    )
    with Image.open(tmp_path / "pairs.png") as picture:
        assert picture.width > 900
