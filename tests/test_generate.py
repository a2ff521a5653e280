import json
import math
from dataclasses import fields
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from PIL import Image

import patch_diffusion as pd
from grouped import grouped
from patch_diffusion.cli.choosing import class_number
from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.denoise.process import PROCESSES
from patch_diffusion.sampling.classes import class_place
from patch_diffusion.sampling.pictures import write_picture
from patch_diffusion.sampling.solvers import SCHEDULES
from patch_diffusion.sampling.stochastic import SOLVERS
from refusal import refused


@pytest.fixture
def model(make_model):
    return make_model(3)


def test_a_seed_gives_the_same_picture_in_any_batch(model):
    together = list(pd.generate(model, range(5), steps=4))
    for sample in together:
        (alone,) = pd.generate(model, [sample.seed], pd.Sampling(steps=4, batch=1))
        assert (alone.pixels.int() - sample.pixels.int()).abs().max() <= 1  # rounding in other kernels
        assert (alone.seed, alone.label) == (sample.seed, sample.label)
    assert torch.equal(
        torch.stack([s.pixels for s in pd.generate(model, range(5), steps=4)]),
        torch.stack([s.pixels for s in together]),
    )
    assert not torch.equal(together[0].pixels, together[4].pixels)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_seed_gives_the_same_picture_with_every_solver(model, solver):
    together, again = (list(pd.generate(model, [4, 0, 7], pd.Sampling(steps=6, solver=solver))) for _ in range(2))
    alone = list(pd.generate(model, [7, 4], pd.Sampling(steps=6, solver=solver, batch=1)))
    assert all(torch.equal(first.pixels, second.pixels) for first, second in zip(together, again, strict=True))
    for first, second in ((together[2], alone[0]), (together[0], alone[1])):
        assert (first.pixels.int() - second.pixels.int()).abs().max() <= 1
    assert not torch.equal(alone[0].pixels, alone[1].pixels)


def test_noise_of_steps_is_independent_of_the_start_and_of_other_steps_and_seeds(model):
    """Where nothing is known of the data, the noisy images are the noise itself."""

    class Nothing(pd.Denoiser):
        image_channels = 1

        def forward(self, noisy, sigma, conditions):
            return torch.zeros_like(noisy)

    steps = []
    oracle = Nothing(lambda *_: None, resolution=(32, 32))
    list(pd.generate(oracle, [0, 1], pd.Sampling(steps=4, solver="ancestral"), callback=steps.append))
    drawn = [steps[0].noisy / steps[0].sigma]
    for before, after in pairwise(steps):
        ratio = after.sigma / before.sigma
        drawn.append((after.noisy - before.noisy * ratio**2) / (after.sigma * (1 - ratio**2).sqrt()))
    values = torch.cat(drawn).flatten(1)
    assert values.shape == (8, 1024)
    products = values @ values.mT / 1024
    assert (products - torch.eye(8)).abs().max() < 0.2


def test_the_callback_sees_every_step_of_every_batch(model):
    steps = []
    samples = list(pd.generate(model, range(3), pd.Sampling(steps=4, batch=2), callback=steps.append))
    assert [step.index for step in steps] == [0, 1, 2, 3] * 2
    assert [len(step.noisy) for step in steps] == [2] * 4 + [1] * 4
    assert [step.sigma.item() for step in steps[:4]] == pd.karras_sigmas(4, 0.002, 80)[:-1].tolist()
    assert torch.equal(PixelCodec().decode(steps[-1].denoised)[0], samples[2].pixels)


def test_settings_are_told_with_the_sample(model):
    settings = next(
        pd.generate(model, [0], pd.Sampling(steps=2, solver="ancestral", schedule="exponential", sigma_max=9.0))
    ).settings
    assert settings == {
        "steps": 2,
        "solver": "ancestral",
        "eta": 1.0,
        "schedule": "exponential",
        "rho": 1.0,
        "guidance": 1.0,
        "resolution": [8, 12],
        "sigma_min": pytest.approx(0.002),
        "sigma_max": pytest.approx(9.0),
    }


def test_the_reverse_sde_is_in_the_process_of_the_model():
    class Oracle(pd.Denoiser):
        image_channels = 1

        def forward(self, noisy, sigma, conditions):
            return 0.3 * noisy / (0.3 + sigma**2)

    def picture(process):
        oracle = Oracle(lambda *_: None, resolution=(8, 8), process=process)
        return next(
            pd.generate(oracle, [0], pd.Sampling(steps=8, solver="euler_maruyama", sigma_min=0.02, sigma_max=20.0))
        ).pixels

    # The path of x_prediction is that of edm.
    pictures = [picture(process) for name, process in PROCESSES.items() if name != "x_prediction"]
    assert all(not torch.equal(first, second) for first, second in combinations(pictures, 2))


def test_classes(model):
    assert [sample.label for sample in pd.generate(model, range(2, 8), steps=1)] == [2, 3, 0, 1, 2, 3]
    assert [sample.label for sample in pd.generate(model, range(3), steps=1, labels=2)] == [2, 2, 2]
    assert [sample.label for sample in pd.generate(model, range(3), steps=1, labels=[3, 1, 0])] == [3, 1, 0]
    first, second = (next(pd.generate(model, [0], steps=3, labels=label)).pixels for label in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.slow
def test_every_setting_matters(model):
    def pixels(**settings):
        return next(pd.generate(model, [0], pd.Sampling(**{"steps": 5, **settings}))).pixels

    plain = pixels()
    for settings in (
        {"steps": 3},
        *({"solver": solver} for solver in SOLVERS if solver != "heun"),
        *({"schedule": schedule} for schedule in SCHEDULES if schedule != "karras"),
        {"schedule": "exponential", "rho": 2.0},
        {"guidance": 3.0},
        {"sigma_min": 0.2},
        {"sigma_max": 10.0},
        {"rho": 1.0},
    ):
        assert not torch.equal(pixels(**settings), plain), settings


def test_any_resolution_that_the_network_takes(model):
    assert next(pd.generate(model, [0], steps=1)).pixels.shape == (3, 8, 12)
    assert next(pd.generate(model, [0], pd.Sampling(steps=1, resolution=4))).pixels.shape == (3, 4, 4)
    assert next(pd.generate(model, [0], pd.Sampling(steps=1, resolution=(16, 2)))).pixels.shape == (3, 16, 2)


def test_dropout_is_off_and_the_mode_is_kept(model):
    noisy_network = model.train()
    first, second = (next(pd.generate(noisy_network, [0], steps=2)).pixels for _ in range(2))
    assert torch.equal(first, second) and noisy_network.training


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"solver": "heum"}, "solver"),
        ({"schedule": "karas"}, "schedule"),
        ({"churn": 1.0}, "churn"),
        ({"solver": "euler_maruyama", "eta": 1.0}, "eta"),
        ({"solver": "ancestral", "eta": 2.0}, "eta"),
        ({"solver": "stochastic_heun", "churn": -1.0}, "churn"),
        ({"schedule": "vp", "rho": 3.0}, "rho"),
        ({"rho": -3.0}, "rho"),
        ({"sigma_min": 0.0}, "sigma_min"),
        ({"steps": 0}, "steps"),
        ({"resolution": 7}, "resolution"),
        ({"batch": 0}, "batch"),
    ],
)
def test_wrong_options_are_refused_at_once(model, settings, option):
    with refused(option):
        pd.generate(model, **grouped(**{"seeds": [0, 1], **settings}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": 4}, "classes 0 to 3"),
        ({"labels": [1]}, "2 images need as many labels"),
        ({"seeds": [-1, 0]}, "seeds are integers from 0"),
        ({"seeds": [0, 2**63]}, "not 9223372036854775808"),
    ],
)
def test_wrong_labels_and_seeds_are_refused_at_once(model, settings, message):
    with pytest.raises(pd.InputError, match=message):
        pd.generate(model, **grouped(**{"seeds": [0, 1], **settings}))


def test_guidance_needs_dropped_labels():
    for network, message in (
        (pd.UNet(1, 8, (1,), 1, num_classes=2, label_dropout=0.0), "label_dropout 0"),
        (pd.UNet(1, 8, (1,), 1), "has no classes"),
    ):
        with pytest.raises(pd.InputError, match=message):
            pd.generate(pd.Denoiser(network, resolution=(4, 4)), [0], pd.Sampling(guidance=2.0))
    with pytest.raises(pd.InputError, match="trained without classes"):
        pd.generate(pd.Denoiser(pd.UNet(1, 8, (1,), 1), resolution=(4, 4)), [0], labels=1)
    with refused("resolution"):
        pd.generate(pd.Denoiser(pd.UNet(1, 8, (1,), 1)), [0])


def test_a_perfect_denoiser_gives_its_data():
    """The whole chain, from seeds to bytes: data that is one picture is generated exactly."""
    picture = torch.randint(0, 256, (3, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))

    class Oracle(pd.Denoiser):
        image_channels = 3

        def forward(self, noisy, sigma, conditions):
            assert torch.equal(conditions.coords, pd.coordinate_grid(4, 6))
            return (picture.float() / 127.5 - 1).expand_as(noisy)

    for sample in pd.generate(Oracle(lambda *_: None, resolution=(4, 6)), range(3)):
        assert torch.equal(sample.pixels, picture)


class Half(pd.Denoiser):
    """A denoiser of which the images of some seeds are not finite."""

    image_channels = 1

    def __init__(self):
        super().__init__(lambda *_: None, resolution=(4, 6))

    def forward(self, noisy, sigma, conditions):
        return torch.where(noisy[:, :, :1, :1] <= 0, -0.3, math.nan).expand_as(noisy)


@pytest.mark.slow
def test_images_that_are_not_finite_are_told_and_neither_written_nor_measured(tmp_path):
    starts = [
        torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in range(8)
    ]
    broken = [seed for seed, start in enumerate(starts) if start[0, 0, 0] > 0]
    assert 3 < len(broken) < 8
    told = f"{len(broken)} of 8 images are not finite \\(seed {', seed '.join(map(str, broken[:3]))}, ...\\)"
    with pytest.raises(pd.InputError, match=told):
        pd.write_samples(pd.generate(Half(), range(8), steps=3), tmp_path, grid=tmp_path / "grid.png")
    entries = json.loads((tmp_path / "samples.json").read_text())["samples"]
    assert [entry["seed"] for entry in entries] == [seed for seed in range(8) if seed not in broken]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [entry["file"] for entry in entries]
    known = pd.denoising(torch.zeros(1, 4, 6), noise=9.0)
    with pytest.raises(pd.InputError, match="images? (is|are) not finite"):
        list(pd.edit(Half(), known, range(8), pd.Sampling(steps=2)))
    images = pd.ImageSet(torch.zeros(8, 1, 4, 6, dtype=torch.uint8))
    with pytest.raises(pd.InputError, match="8 images are not finite"):
        pd.evaluate(Half(), images, options=pd.EvaluationOptions(metrics=("frechet",), samples=8))
    for make in (pd.encode, pd.decode):
        with pytest.raises(pd.InputError, match="1 of 2 images is not finite"):
            make(Half(), torch.stack([torch.ones(1, 4, 6), -torch.ones(1, 4, 6)]), steps=3)


def test_a_long_range_of_seeds_is_not_written_out(model):
    samples = pd.generate(model, range(10**12), pd.Sampling(steps=1, batch=1), labels=1)
    assert next(samples).seed == 0
    known = pd.inpainting(torch.zeros(3, 8, 12, dtype=torch.uint8), torch.arange(12).expand(8, 12) < 6)
    assert next(pd.edit(model, known, range(10**12), pd.Sampling(steps=1, batch=1), label=1)).seed == 0
    with pytest.raises(pd.InputError, match="2\\^63 - 1"):
        pd.generate(model, range(10**30), steps=1)


@pytest.mark.parametrize("name", [field.name for field in fields(pd.Sampling)])
def test_every_number_is_finite(name):
    if name in ("solver", "schedule", "guide", "coords", "precision", "compile"):
        return
    for value in (math.nan, math.inf, -math.inf):
        for given in (value, (value, 1.0)):
            with pytest.raises(pd.InputError, match=f"{name} is (a whole|a finite|one) number, not") as error:
                pd.Sampling(**{name: given})
            assert error.value.option == name


def test_seeds_and_classes_of_other_libraries(model, tmp_path):
    expected = list(pd.generate(model, range(3), steps=2, labels=[0, 3, 1]))
    for seeds, labels in ((np.arange(3), np.array([0, 3, 1])), (torch.arange(3), torch.tensor([0, 3, 1]))):
        found = list(pd.generate(model, seeds, steps=2, labels=labels))
        assert all(torch.equal(one.pixels, other.pixels) for one, other in zip(found, expected, strict=True))
        assert pd.write_samples(found, tmp_path) == 3
    assert next(pd.generate(model, [1], steps=1, labels=np.int64(2))).label == 2


def test_seeds_that_differ_by_2_to_the_32_are_other_pictures(model):
    near, far = pd.generate(model, [7, np.int64(7 + 2**32)], steps=2, labels=1)
    assert (near.pixels.int() - far.pixels.int()).abs().max() > 10 and type(far.seed) is int


def test_a_grid_that_cannot_be_written_is_refused_before_the_work(model, tmp_path):
    (tmp_path / "folder.png").mkdir()
    for name, message in (("grid.jpg", "not as 'grid.jpg'"), ("folder.png", "is a folder")):
        with pytest.raises(pd.InputError, match=message):
            pd.write_samples(pd.generate(model, [0], steps=1), tmp_path / "out", grid=tmp_path / name)
    assert not (tmp_path / "out").exists()


def test_save_and_grid(model, tmp_path):
    samples = list(pd.generate(model, [3, 12], steps=1))
    assert [sample.save(tmp_path / "out").name for sample in samples] == ["000003.png", "000012.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "000003.png")), samples[0].pixels.permute(1, 2, 0))
    grid = pd.picture_grid([sample.pixels for sample in samples])
    scale = grid.width // 25
    assert grid.size == (25 * scale, 8 * scale) and grid.width >= 512
    assert grid.getpixel((12 * scale, 0)) == (128, 128, 128)
    assert grid.getpixel((14 * scale, 0)) == tuple(samples[1].pixels[:, 0, 1].tolist())


def test_pictures_that_cannot_be_written(tmp_path):
    with pytest.raises(pd.InputError, match="2 channels are no pictures"):
        pd.picture_grid([torch.zeros(2, 4, 4, dtype=torch.uint8)])
    with pytest.raises(pd.InputError, match="no pictures"):
        pd.picture_grid([])
    with pytest.raises(pd.InputError, match="not as 'a.txt'"):
        write_picture(Image.new("L", (2, 2)), tmp_path / "a.txt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wanted", "names", "place", "note"),
    [
        ("dog", ("cat", "dog"), 1, ""),
        ("1", ("cat", "dog"), 1, ""),
        (1, (), 1, ""),
        (1, ("0", "1"), 1, ""),
        ("3", ("1", "2", "3"), 2, ""),
        (2, ("1", "2", "3"), 1, "class 2 is taken as a name; class number 2 is 3"),
    ],
)
def test_a_name_of_a_class_wins_over_a_place(wanted, names, place, note):
    assert class_place(wanted, names, max(len(names), 2)) == (place, note)


def test_a_class_that_does_not_exist(model, capsys):
    model.class_names = ("2", "4", "6", "8")
    assert class_number("4", model) == 1 and not capsys.readouterr().err
    assert class_number("2", model) == 0 and "class number 2 is 6" in capsys.readouterr().err
    for text, message in (("9", r"classes 0 to 3 \(2, 4, 6, 8\)"), ("cat", "there is no class 'cat'")):
        with pytest.raises(pd.InputError, match=message):
            class_number(text, model)
