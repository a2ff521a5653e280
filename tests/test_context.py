import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.cli import main
from patch_diffusion.config import Engine, Patches
from patch_diffusion.data.augment import Augment
from patch_diffusion.data.small import make_small
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.whole_image import losses_of_images, whole_image_loss
from patch_diffusion.errors import InputError
from patch_diffusion.files import read_tensors
from patch_diffusion.patches.schedule import SMALL_SHARE
from patch_diffusion.races.arms import check_arms
from patch_diffusion.sampling.editing.edit import edit
from patch_diffusion.sampling.editing.tasks import inpainting
from patch_diffusion.streams import slot_normal
from patch_diffusion.training.batches import Position
from patch_diffusion.training.watching.evaluation import sample_pictures
from refusal import refused


class Shown:
    """A network that keeps what it is given."""

    image_channels = 2

    def __call__(self, x, c_noise, labels):
        self.x = x
        return x[:, :2]


def test_the_network_sees_what_is_shown_at_each_place():
    """A small copy whose values are its coordinates shows every pixel of a patch its own coordinates."""
    network = Shown()
    denoiser = pd.Denoiser(network, 0.5, context=4)
    patch = pd.random_patches(torch.zeros(3, 2, 24, 36), 8)
    small = pd.coordinate_grid(4, 6).expand(3, -1, -1, -1)
    denoiser(torch.zeros(3, 2, 8, 8), 1.0, Conditions(patch.coords, thumbnail=small))
    assert (network.x[:, 4:6] * 0.5).allclose(patch.coords, atol=1e-6)
    assert (network.x[:, 6] == 1).all() and network.x[:, 2:4].equal(patch.coords)
    denoiser(torch.zeros(3, 2, 8, 8), 1.0, patch.coords)
    assert network.x.shape[1] == 7 and not network.x[:, 4:].any()


@pytest.mark.parametrize("network", [pd.UNet(3, 8, (1, 2), 1, context=True), pd.DiT(3, 16, 1, 2, context=True)])
def test_networks_take_it(network):
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    denoiser = pd.Denoiser(network, context=4).eval()
    small = torch.randn(2, 3, 4, 4, requires_grad=True)
    denoised = denoiser(torch.randn(2, 3, 8, 8), 1.0, Conditions(pd.coordinate_grid(8, 8), thumbnail=small))
    assert denoised.shape == (2, 3, 8, 8) and torch.autograd.grad(denoised.sum(), small)[0].abs().min() > 0


@pytest.mark.parametrize("kind", ["stochastic", "progressive"])
def test_a_quarter_of_the_steps_is_on_the_small_images(kind):
    options = {"whole": 0.25, "kind": kind, "seed": 5}
    plan, without = pd.PatchSchedule(**options, context=8), pd.PatchSchedule(**options)
    assert sum(size.probability for size in plan.sizes_for((32, 48), 4)) == pytest.approx(1)
    sizes = [plan.size_at(step, (32, 48), step / 2000, 4) for step in range(2000)]
    small = [size for size in sizes if size.small]
    assert {size.shape for size in small} == {(8, 12)} and str(small[0]) == "8x12 small"
    assert abs(len(small) / len(sizes) - SMALL_SHARE) < 0.03 and sizes[1999] is not None
    assert any(size.small for size in sizes[-50:])
    others = [(step, size) for step, size in enumerate(sizes) if not size.small]
    assert all(size.shape == without.size_at(step, (32, 48), step / 2000).shape for step, size in others)


@pytest.fixture
def smooth():
    """16 pictures whose values are coordinates, each brighter or darker."""
    grid = pd.coordinate_grid(24, 36)
    shade = torch.linspace(0.4, 1, 16)[:, None, None, None]
    values = torch.cat([grid, grid.mean(0, keepdim=True)])[None] * shade
    return pd.ImageSet(((values + 1) * 127.5).round().to(torch.uint8))


@pytest.mark.parametrize("flip", [0.0, 1e-12])
def test_a_patch_comes_with_its_own_image(make_trainer, smooth, monkeypatch, flip):
    """What the small copy shows where a patch lies is what the patch shows, whether images are altered first or not."""
    monkeypatch.setattr("patch_diffusion.training.batches.CONTEXT_NOISE", 0.0)
    plan = {"whole": 0.0, "context": 12}
    trainer = make_trainer(images=smooth, network={"context": True}, schedule=plan, augment=Augment(flip=flip), batch=8)
    checked = set()
    for step in range(8):
        trainer.state.counters.step = step
        plan = trainer.batches.plan(Position(step, 0, {}))
        size, batch = plan.size, trainer.batches.make(plan, range(2, 8))
        clean, coords, context = batch.clean, batch.conditions.coords, batch.conditions.thumbnail
        if size.small:
            assert context is None and coords.equal(pd.coordinate_grid(12, 18).expand(6, -1, -1, -1))
            assert clean.shape == (6, 3, 12, 18)
        else:
            shown = torch.nn.functional.grid_sample(context, coords.permute(0, 2, 3, 1), align_corners=True)
            assert (shown - clean).abs().max() < 0.1 and clean.shape == (6, 3, 12, 18)
        checked.add(size.small)
    assert checked == {True, False}


def test_its_noise_belongs_to_the_slot(make_trainer, images):
    options = {"network": {"context": True}, "schedule": {"whole": 0.0, "sizes": {"1/2": 1.0}, "context": 4}}
    trainer = make_trainer(**options)
    trainer.state.counters.step = next(
        step for step in range(9) if not trainer.schedule.size_at(step, (8, 12), 0.0, 2).small
    )
    plan = replace(trainer.batches.plan(Position(trainer.state.counters.step, 0, {})), num=8)
    whole, part = (trainer.batches.make(plan, slots).conditions.thumbnail for slots in (range(8), range(3, 8)))
    assert torch.equal(whole[3:], part)
    clean = images.codec.encode(trainer.batches.small.get(0, 0, 8)[0])
    levels = (whole - clean).abs().amax((1, 2, 3)) / slot_normal(
        0, "context", trainer.state.counters.step, range(8), (3, 4, 6)
    ).abs().amax((1, 2, 3))
    assert (levels <= 0.1 + 1e-6).all() and levels.unique().numel() == 8 and levels.max() > 0.03


def test_whole_images_are_not_read_for_the_small_ones(make_trainer, tmp_path, monkeypatch):
    path = tmp_path / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8))
    plan = {"whole": 0.0, "sizes": {"4": 1.0}, "context": 8}
    trainer = make_trainer(images=pd.open_images(path), network={"context": True}, schedule=plan)
    monkeypatch.setattr(trainer.schedule.__class__, "size_at", lambda self, *_: self.sizes_for((16, 16), 2)[1])
    monkeypatch.setattr(trainer.batches.feed, "get", lambda *_: pytest.fail("whole images were read"))
    size, loss = trainer.train_step()
    assert (
        size.small
        and loss.isfinite()
        and trainer.state.counters.patches == 0
        and trainer.state.counters.pixels == 8 * 8 * 8
    )


OPTIONS = {"network": {"context": True}, "schedule": {"whole": 0.0, "context": 4}}


@pytest.mark.slow
def test_a_stopped_run_continues_as_if_it_had_not(make_trainer):
    whole = make_trainer("whole", **OPTIONS)
    whole.fit(steps=8)
    for until in (0.5, 1.0):
        trainer = make_trainer("laps", **OPTIONS)
        with trainer.in_laps(steps=8) as train_until:
            train_until(until)
            trainer.save()
    one, two = (read_tensors(trainer.run.model_file) for trainer in (whole, trainer))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert sum("small" in size for line in lines(whole) for size in line.get("loss", ())) == 1


def lines(trainer):
    return [json.loads(line) for line in trainer.run.log_file.read_text().splitlines()]


@pytest.fixture
def model(make_trainer):
    """Trained for a moment, with weights that let the context through."""
    trainer = make_trainer(**OPTIONS, log_every=1)
    trainer.fit(steps=3)
    loaded = pd.load(trainer.run.path)
    torch.manual_seed(0)
    for parameter in loaded.parameters():
        torch.nn.init.normal_(parameter.data, std=0.1)
    return loaded


@pytest.mark.slow
def test_small_copies_first_and_then_whole_images(model, monkeypatch):
    contexts = []
    forward = type(model).forward

    def watched(self, noisy, sigma, conditions):
        contexts.append((conditions.thumbnail, noisy.shape))
        return forward(self, noisy, sigma, conditions)

    monkeypatch.setattr(type(model), "forward", watched)
    samples = list(pd.generate(model, range(3), steps=2))
    assert samples[0].settings["context"] == [4, 6] and samples[0].pixels.shape == (3, 8, 12)
    assert [context is None for context, _ in contexts] == [True] * 3 + [False] * 3
    assert [shape[2:] for _, shape in contexts] == [(4, 6)] * 3 + [(8, 12)] * 3
    small = list(pd.generate(model, range(3), pd.Sampling(steps=2, resolution=(4, 6))))
    decoded = model.codec.decode(contexts[3][0])
    assert all((one.pixels.int() - two.int()).abs().max() <= 1 for one, two in zip(small, decoded, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"tile": 4, "overlap": 2}, {"solver": "ancestral"}, {"guidance": 2.0}])
def test_a_seed_gives_the_same_in_any_batch(model, options):
    alone, among = (
        list(pd.generate(model, [2], pd.Sampling(steps=2, **options))),
        list(pd.generate(model, range(3), pd.Sampling(steps=2, batch=2, **options), labels=[0, 1, 0])),
    )
    difference = (alone[0].pixels.float() - among[2].pixels.float()).abs()
    assert difference.max() <= 1 and alone[0].pixels.float().std() > 1


@pytest.mark.slow
def test_tiles_see_their_own_part_of_the_small_copy(model):
    """A tile as large as the image is the image."""
    whole, tiled = (list(pd.generate(model, [5], pd.Sampling(steps=2, tile=tile))) for tile in (None, (8, 12)))
    assert (whole[0].pixels.float() - tiled[0].pixels.float()).abs().max() <= 1
    large = next(pd.generate(model, [5], pd.Sampling(steps=2, resolution=(20, 30), tile=4)))
    assert large.pixels.shape == (3, 20, 30) and large.settings["coords"] == "stretch"


@pytest.mark.slow
def test_held_out_images_are_shown_their_small_copies(model, images):
    before = whole_image_loss(model, images, sigmas=(1.0,), most=4)
    clean = images.codec.encode(images.batch(np.arange(4))[0])
    noise = slot_normal(0, "evaluation", 0, range(4), (3, 8, 12))
    labels = images.labels[:4]
    conditions = Conditions(pd.coordinate_grid(8, 12), labels, thumbnail=make_small(clean, (4, 6)))
    losses = pd.denoising_loss(model, clean, conditions, torch.ones(4), noise=noise)
    assert before[1.0] == pytest.approx(losses.mean().item(), rel=1e-4)


@pytest.mark.slow
def test_held_out_patches_are_shown_the_small_copy_of_their_whole_image(model, images, monkeypatch):
    shown = []

    def watched(model, clean, conditions, sigma, *, noise):
        shown.append((clean.shape, conditions.coords.shape, conditions.thumbnail))
        return pd.denoising_loss(model, clean, conditions, sigma, noise=noise)

    monkeypatch.setattr("patch_diffusion.denoise.whole_image.denoising_loss", watched)
    losses_of_images(model, images, sigmas=(1.0,), most=4, size=(4, 6))
    clean = images.codec.encode(images.batch(np.arange(4))[0])
    ((patches, coords, context),) = shown
    assert patches == (4, 3, 4, 6) and coords == (4, 2, 4, 6)
    torch.testing.assert_close(context, make_small(clean, (4, 6)))


def test_pictures_of_large_images_are_small(make_trainer, monkeypatch):
    monkeypatch.setattr("patch_diffusion.training.watching.evaluation.LARGEST_PICTURE", 8)
    asked = []

    def watched(model, seeds, sampling, **told):
        assert told == {"conditions": {}, "paired": None}
        asked.append(sampling)
        return pd.generate(model, seeds, sampling, steps=1)

    monkeypatch.setattr("patch_diffusion.training.watching.evaluation.generate", watched)
    trainer = make_trainer(**OPTIONS)
    trainer.fit(steps=1)
    sample_pictures(trainer.state.average.denoiser, 2, trainer.images)
    assert asked == [pd.Sampling(resolution=(4, 6))]


@pytest.mark.slow
def test_what_has_one_stage_is_refused(model, images, tmp_path):
    pixels, mask = images.pixels[:1], torch.arange(12).expand(8, 12) < 6
    for make in (
        lambda: pd.encode(model, torch.zeros(1, 3, 8, 12), labels=0),
        lambda: pd.bits_per_dimension(model, pixels, labels=0),
        lambda: edit(model, inpainting(pixels[0], mask), label=0),
        lambda: pd.export_model(tmp_path / "run", tmp_path / "exported"),
    ):
        with pytest.raises(InputError, match="two stages"):
            make()
    assert not (tmp_path / "exported").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coords": "extend"}, "go beyond the small copy"),
        ({"tile": 4, "coords": "repeat"}, "go beyond the small copy"),
        ({"guidance": 2.0, "guide": "crops"}, "crops are no guide"),
    ],
)
def test_ways_of_sampling_that_are_refused(model, options, message):
    with pytest.raises(InputError, match=message):
        pd.generate(model, [0], pd.Sampling(**options))


@pytest.mark.slow
def test_a_guide_has_the_same_context(model):
    other = pd.Denoiser(pd.UNet(3, 8, (1, 2), 1, num_classes=2), resolution=(8, 12))
    with pytest.raises(InputError, match="its context is None, not 4"):
        pd.generate(model, [0], pd.Sampling(guidance=2.0, guide=other))


@pytest.mark.parametrize(
    ("network", "context", "message"),
    [
        ({}, 4, "context=False"),
        ({"context": True}, None, "context=True"),
        ({"context": True}, 8, "give less than 8"),
        ({"context": True}, 3, "multiple of 2"),
    ],
)
def test_settings_that_do_not_suit_each_other(make_trainer, network, context, message):
    with pytest.raises(InputError, match=message):
        make_trainer(network=network, schedule={"context": context})


def test_without_coordinates_there_is_no_context(make_trainer):
    with refused("patches.coords"):
        pd.Denoiser(Shown(), coords=False, context=4)
    with refused("patches.coords"):
        make_trainer(coords=False, **OPTIONS)


def test_a_denoiser_and_a_schedule_of_different_contexts(images, tmp_path):
    denoiser = pd.Denoiser(pd.UNet(3, 8, (1, 2), 1, num_classes=2, context=True), context=2)
    with pytest.raises(InputError, match="a context of 2, but patches.context is 4"):
        pd.Trainer(denoiser, images, pd.PatchSchedule(sizes={"1/2": 1.0}, context=4), out=tmp_path / "run")


@pytest.mark.slow
def test_bits_are_refused_before_anything_is_measured(model, images):
    with pytest.raises(InputError, match="metric bits needs a model without patches.context"):
        pd.evaluate(model, data=images, held_out=images, options=pd.EvaluationOptions(metrics=("bits",), device="cpu"))
    found = pd.evaluate(
        model, data=images, held_out=images, options=pd.EvaluationOptions(metrics=("denoising",), device="cpu")
    )
    assert found.measures["denoising"].settings["context"] == 4


def test_it_does_not_race():
    small = pd.PRESETS["small"]
    arms = {"patches": small, "context": pd.Config(patches=Patches(context=16), engine=Engine())}
    with pytest.raises(InputError, match="arm 'context' has patches.context"):
        check_arms(arms)


@pytest.mark.slow
def test_as_a_user(tmp_path):
    run = tmp_path / "run"
    tiny = "--network.width 8 --network.multipliers 1 2 --network.blocks 1 --network.attention 1 --batch 4 --steps 2"
    line = f"train digits --out {run} {tiny} --samples 0 --patches.whole 0 --patches.sizes 1/2=1 --patches.context 8"
    assert main(line.split()) == 0
    assert json.loads((run / "config.json").read_text())["patches"]["context"] == 8
    assert main(f"sample {run} --seeds 0-1 --steps 2 --out {tmp_path / 'pictures'} --tile 8".split()) == 0
    made = json.loads((tmp_path / "pictures" / "samples.json").read_text())["samples"]
    assert len(made) == 2 and made[0]["settings"]["context"] == [8, 8]
