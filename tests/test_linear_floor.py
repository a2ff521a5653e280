import json
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

import patch_diffusion as pd
from patch_diffusion.config import Noise, Optimizer
from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.data.images import ImageBuckets, ImageSet
from patch_diffusion.data.latents.codec import LatentCodec
from patch_diffusion.data.latents.folder import LatentSet
from patch_diffusion.denoise.process import PROCESSES
from patch_diffusion.denoise.whole_image import losses_of_images, whole_image_loss
from patch_diffusion.evaluation import linear_floor as module
from patch_diffusion.evaluation.linear_floor import Basis, LinearDenoiser, coefficients, cosines, fit
from patch_diffusion.runs.floor import LinearFloor, read_floor
from patch_diffusion.training import loop
from refusal import refused

LEVELS = (0.1, 0.5, 2.0)
SHAPE = (2, 4, 6)
NUM_VALUES = 2 * 4 * 6


@pytest.fixture(scope="module")
def gaussian():
    """Mean (c, h, w) and covariance (d, d) of images, with variances from 1e-4 to 1."""
    random = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(NUM_VALUES, NUM_VALUES, generator=random, dtype=torch.float64))[0]
    variances = torch.logspace(-4, 0, NUM_VALUES, dtype=torch.float64)
    mean = 0.3 * torch.randn(SHAPE, generator=random)
    return mean, ((basis * variances) @ basis.T).float()


def images_of(gaussian, num, seed):
    mean, covariance = gaussian
    root = torch.linalg.cholesky(covariance.double()).float()
    random = torch.Generator().manual_seed(seed)
    pixels = mean + (torch.randn(num, NUM_VALUES, generator=random) @ root.T).view(-1, *mean.shape)
    return ImageSet(pixels, codec=PixelCodec("float32", -1, 1))


def closed_form(covariance, sigma, noise):
    variances = torch.linalg.eigvalsh(covariance.double())
    weight = PROCESSES[noise.process].loss_weight(torch.tensor(sigma, dtype=torch.float64), noise.sigma_data)
    return float(weight * (variances * sigma**2 / (variances + sigma**2)).mean())


@pytest.mark.parametrize("process", ["edm", "vp", "flow"])
def test_of_known_moments_it_is_the_closed_form(gaussian, process):
    mean, covariance = gaussian
    noise = Noise(levels=LEVELS, sigma_data=0.4, process=process)
    model = LinearDenoiser({SHAPE[1:]: Basis.known(mean, covariance)}, noise)
    for sigma in LEVELS:
        # The linear map of the denoiser, and its expected error on the Gaussian, from nothing but calls.
        at_mean = model(mean[None], sigma)[0]
        units = torch.eye(NUM_VALUES).view(-1, *SHAPE)
        matrix = (model(mean + units, sigma) - at_mean).flatten(1).double().T
        assert torch.allclose(at_mean, mean, atol=1e-5)
        bias = matrix - torch.eye(NUM_VALUES)
        error = torch.trace(bias @ covariance.double() @ bias.T) + sigma**2 * matrix.square().sum()
        loss = float(model.loss_weight(torch.tensor(sigma)) * error / NUM_VALUES)
        assert loss == pytest.approx(closed_form(covariance, sigma, noise), rel=1e-4)


def test_of_images_it_is_the_unbiased_estimate_of_that(gaussian):
    mean, covariance = gaussian
    noise = Noise(levels=LEVELS, sigma_data=0.4)
    model = LinearDenoiser({SHAPE[1:]: Basis.known(mean, covariance)}, noise)
    for sigma, losses in losses_of_images(model, images_of(gaussian, 4000, 1)).items():
        error = float(losses.std()) / len(losses) ** 0.5
        assert float(losses.mean()) == pytest.approx(closed_form(covariance, sigma, noise), abs=4 * error)
    floor = pd.linear_floor(images_of(gaussian, 6000, 2), images_of(gaussian, 1000, 3), noise=noise, most=1000)
    exact = {f"{sigma:g}": closed_form(covariance, sigma, noise) for sigma in LEVELS}
    assert floor.by_noise == pytest.approx(exact, rel=0.05)
    for level, (low, high) in floor.intervals.items():
        reach = high - low
        assert low < floor.by_noise[level] < high
        assert low - reach / 2 < exact[level] < high + reach / 2
    assert floor.loss == pytest.approx(sum(floor.by_noise.values()) / len(LEVELS))
    assert (floor.images, floor.held_out, floor.crossed) == (6000, 1000, False)


class Dense(nn.Module):
    """A network that can learn any linear map of whole images, and others."""

    image_channels = 2

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(NUM_VALUES + 1, 256), nn.Linear(256, NUM_VALUES)
        self.straight = nn.Linear(NUM_VALUES, NUM_VALUES)

    def forward(self, x, c_noise, labels=None):
        flat = x.flatten(1)
        bent = self.second(torch.relu(self.first(torch.cat([flat, c_noise[:, None]], dim=1))))
        return (self.straight(flat) + bent).view_as(x)


def test_no_trained_model_is_below_it_by_more_than_its_interval(gaussian, tmp_path):
    images, judges = images_of(gaussian, 4000, 2), images_of(gaussian, 256, 3)
    denoiser = pd.Denoiser(Dense(), images.standard_deviation, coords=False, levels=LEVELS)
    trainer = pd.Trainer(
        denoiser,
        images,
        pd.PatchSchedule(whole=1.0),
        out=tmp_path / "run",
        optimizer=Optimizer(kind="adamw", learning_rate=3e-3),
        noise=pd.NoiseLevels(levels=LEVELS, p_mean=-0.7, p_std=1.3),
        batch=128,
        samples=0,
        held_out=judges,
        log_every=100,
        show=False,
    )
    losses = whole_image_loss(trainer.fit(steps=200), judges)
    floor = read_floor(trainer.run.floor_file)
    assert floor is not None
    assert floor.held_out == 64
    floor = pd.linear_floor(images, judges, noise=trainer.config.noise)
    assert losses[2.0] < 1.4 * floor.by_noise["2"]  # it has learned much of it
    for sigma, loss in losses.items():
        assert loss > floor.intervals[f"{sigma:g}"][0]
    assert sum(losses.values()) / len(losses) > floor.interval[0]


def test_measured_on_the_same_noise_as_a_model(gaussian, monkeypatch):
    judges = images_of(gaussian, 20, 3)
    images = images_of(gaussian, 200, 2)
    seen = []
    monkeypatch.setattr(Basis, "denoise", lambda self, noisy, sigma: seen.append(noisy) or torch.zeros_like(noisy))
    pd.linear_floor(images, judges, noise=Noise(levels=LEVELS))
    network = pd.UNet(image_channels=2, width=8, multipliers=(1,), blocks=1, coords=False)
    monkeypatch.setattr(network, "forward", lambda x, *_: seen.append(x) or x)
    whole_image_loss(pd.Denoiser(network, images.standard_deviation, coords=False, levels=LEVELS), judges)
    for mine, theirs, sigma in zip(seen[:3], seen[3:], LEVELS, strict=True):
        assert torch.allclose(mine, theirs * (sigma**2 + images.standard_deviation**2) ** 0.5, atol=1e-5)


def test_principal_components_are_better_than_cosines_alone(gaussian, monkeypatch):
    images, judges = images_of(gaussian, 3000, 2), images_of(gaussian, 500, 3)
    floor = pd.linear_floor(images, judges, most=500)
    monkeypatch.setattr(module, "_ROTATED", (0,))
    assert floor.loss < 0.9 * pd.linear_floor(images, judges, most=500).loss


def test_few_images_are_not_overfitted(gaussian):
    """With 30 images for 48 values, no component is fitted, so that the loss is finite and below that of the mean."""
    floor = pd.linear_floor(images_of(gaussian, 30, 2), images_of(gaussian, 200, 3), noise=Noise(levels=LEVELS))
    assert floor.by_noise["0.1"] < floor.intervals["0.1"][1] < 1.2
    model = LinearDenoiser.fitted(images_of(gaussian, 30, 2), Noise(levels=LEVELS))
    (basis,) = model.bases.values()
    assert all(torch.equal(each.axes, torch.eye(NUM_VALUES)) for each in basis.rotations.values())


def test_variances_along_components_are_not_those_of_the_fit(monkeypatch):
    """Those of noise are all alike, while along components of the very images they were from a tenth to three times."""
    monkeypatch.setattr(module, "_ROTATED", (160,))
    pixels = torch.randn(400, 1, 10, 16, generator=torch.Generator().manual_seed(0)) / 4
    basis = fit(ImageSet(pixels, codec=PixelCodec("float32", -1, 1)), LEVELS)
    for rotation in basis.rotations.values():
        assert 0.4 < float(16 * rotation.variances.min()) < float(16 * rotation.variances.max()) < 1.8


def test_the_basis_is_orthonormal_and_comes_back():
    images = torch.randn(3, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    colours = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(1)))[0]
    axes = colours, cosines(5), cosines(7)
    found = coefficients(images, axes)
    assert torch.allclose(found.square().sum(dim=1), images.flatten(1).square().sum(dim=1), rtol=1e-5)
    back = coefficients(found.view_as(images), (axes[0].T, axes[1].T, axes[2].T))
    assert torch.allclose(back.view_as(images), images, atol=1e-5)


def test_large_images_are_read_in_part(monkeypatch):
    images = ImageSet(torch.randint(0, 256, (40, 1, 80, 96), dtype=torch.uint8))
    monkeypatch.setattr(module, "_VALUES_OF_VARIANCES", 20 * 80 * 96)
    monkeypatch.setattr(module, "_VALUES_OF_COMPONENTS", 30 * 80 * 96)
    read = []
    monkeypatch.setattr(
        ImageSet, "batch", lambda self, rows, own=ImageSet.batch: read.append(len(rows)) or own(self, rows)
    )
    basis = fit(images, LEVELS)
    assert sum(read) == 30 + 20 + 30  # for colours all that are used
    rows = basis.strongest % (80 * 96) // 96
    assert rows.max() < 64  # only low frequencies are rotated
    chosen = images.codec.encode(images.pixels[torch.linspace(0, 39, 30).long()])
    of_all = coefficients(chosen, basis.axes)[:, basis.strongest]
    assert torch.allclose(basis.mean[basis.strongest], of_all.mean(dim=0), atol=1e-4)
    assert basis.denoise(torch.zeros(2, 1, 80, 96), 0.5).shape == (2, 1, 80, 96)


def test_sizes_apart_and_rare_ones_left_out(gaussian):
    random = torch.Generator().manual_seed(0)
    sets = [
        ImageSet(torch.randint(0, 256, (num, 3, *shape), dtype=torch.uint8, generator=random))
        for num, shape in ((40, (4, 6)), (30, (6, 4)), (3, (4, 4)))
    ]
    floor = pd.linear_floor(ImageBuckets(tuple(sets)), ImageBuckets(tuple(sets)))
    assert floor.held_out == 70
    with refused(None, "other sizes"):
        pd.linear_floor(ImageBuckets(tuple(sets)), sets[2])
    with refused(None, "at least 16 images"):
        pd.linear_floor(sets[2])


def test_without_held_out_images_either_half_judges_the_other(gaussian):
    images = images_of(gaussian, 600, 2)
    floor = pd.linear_floor(images, noise=Noise(levels=LEVELS))
    assert floor.crossed
    assert 400 < floor.held_out <= 512  # at most 256 of each half
    apart = pd.linear_floor(images, images_of(gaussian, 256, 3), noise=Noise(levels=LEVELS))
    assert floor.loss == pytest.approx(apart.loss, rel=0.1)


def test_refused_where_it_would_take_long():
    with refused(None, "it would take long"):
        pd.linear_floor(ImageSet(torch.zeros(1, 1, 2048, 1024, dtype=torch.uint8)))


def test_it_repeats(gaussian):
    images, judges = images_of(gaussian, 300, 2), images_of(gaussian, 50, 3)
    before = torch.random.get_rng_state()
    assert pd.linear_floor(images, judges) == pd.linear_floor(images, judges)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_classes_are_ignored(gaussian):
    images = images_of(gaussian, 60, 2)
    with_labels = replace(images, labels=torch.arange(60) % 3)
    assert pd.linear_floor(with_labels, with_labels) == pd.linear_floor(images, images)


def test_the_file_comes_back_and_a_damaged_one_counts_as_none(tmp_path):
    floor = LinearFloor(0.4, (0.3, 0.5), {"0.1": 0.2, "6.4": 0.6}, {"0.1": (0.1, 0.3), "6.4": (0.5, 0.7)}, 100, 20)
    file = tmp_path / "linear_floor.json"
    assert read_floor(file) is None
    floor.write(file)
    assert read_floor(file) == floor
    for wrong in ({"intervals": {}}, {"loss": "much"}, {"by_noise": {"high": 1.0}, "intervals": {"high": (0.5, 1.5)}}):
        file.write_text(json.dumps(asdict(floor) | wrong))
        assert read_floor(file) is None
    file.write_text("{")
    assert read_floor(file) is None


def notes(trainer):
    return [line["note"] for line in map(json.loads, trainer.run.log_file.read_text().splitlines()) if "note" in line]


def test_a_run_measures_it_once_and_is_told_when_it_stays_above(make_trainer, images, monkeypatch):
    monkeypatch.setattr(loop, "_LONG_RUN", 0.0)
    trainer = make_trainer(held_out=images, checkpoints=4)
    trainer.fit(steps=8)
    floor = read_floor(trainer.run.floor_file)
    assert floor is not None and not floor.crossed
    assert list(floor.by_noise) == list(pd.describe(trainer.run.path)["by_noise"])
    # These pictures are noise, which no step has learned anything of; both times are told, on the way and at the end.
    told = [note for note in notes(trainer) if "has not learned the layout" in note]
    assert len(told) == 2 and told[0].endswith("if it stays so") and not told[1].endswith("if it stays so")
    monkeypatch.undo()
    short = make_trainer(held_out=images, checkpoints=4, out="short")
    short.fit(steps=8)
    assert len([note for note in notes(short) if "has not learned the layout" in note]) == 1  # the end comes soon
    changed = replace(floor, loss=9.0)
    changed.write(trainer.run.floor_file)
    monkeypatch.setattr(loop, "linear_floor", None)
    make_trainer(held_out=images, checkpoints=4).fit(steps=12)
    assert not any("goes on without" in note for note in notes(trainer))
    assert read_floor(trainer.run.floor_file) == changed


def test_without_held_out_images_a_run_has_none(make_trainer):
    trainer = make_trainer()
    trainer.fit(steps=1)
    assert not trainer.run.floor_file.exists()
    assert pd.describe(trainer.run.path)["linear_floor"] is None


def test_it_changes_no_number_of_a_run_and_a_failure_stops_none(make_trainer, images, monkeypatch):
    with_floor = make_trainer("with", held_out=images)
    with_floor.fit(steps=2)

    def fails(*_, **__):
        raise RuntimeError("no memory left")

    monkeypatch.setattr(loop, "linear_floor", fails)
    without = make_trainer("without", held_out=images)
    without.fit(steps=2)
    assert any("goes on without the linear floor (" in note for note in notes(without))
    assert not without.run.floor_file.exists()
    for name, value in with_floor.state.denoiser.state_dict().items():
        assert torch.equal(value, without.state.denoiser.state_dict()[name])


def test_a_run_that_has_none_says_why(make_trainer, images):
    few = replace(images, pixels=images.pixels[:10], labels=images.labels[:10])
    trainer = make_trainer(images=few, held_out=images)
    trainer.fit(steps=1)
    assert "no linear floor is measured: a linear denoiser is fitted to at least 16 images of one size" in notes(
        trainer
    )


def test_of_latents_it_is_that_of_the_means_of_posteriors(gaussian):
    images = images_of(gaussian, 200, 2)
    codec = LatentCodec((0.0, 0.0), (0.5, 0.5), True, 8, "")
    stored = torch.cat([images.pixels, torch.ones_like(images.pixels)], dim=1)
    latents = LatentSet(stored, codec=codec)
    noise = Noise(levels=LEVELS, sigma_data=0.5)
    of_latents, of_images = (pd.linear_floor(each, each, noise=noise) for each in (latents, images))
    assert of_latents.by_noise == pytest.approx(of_images.by_noise, rel=1e-5)
