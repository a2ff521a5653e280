import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

import patch_diffusion as pd
from patch_diffusion.cli import main
from patch_diffusion.config import Config, Engine, Network, Patches
from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.data.inspection.resolution import suggest_resolution
from patch_diffusion.denoise.whole_image import SIGMAS
from patch_diffusion.devices import processor_has_bf16
from patch_diffusion.patches.schedule import PatchSchedule
from patch_diffusion.runs.folder import RunFolder
from patch_diffusion.runs.model import build_network
from patch_diffusion.training.build import build_trainer
from patch_diffusion.training.choices.shapes import FURTHEST_SIZE, stride
from patch_diffusion.training.choices.suggest import suggest

SMALL, PAPER = pd.PRESETS["small"], pd.PRESETS["paper"]


def images_of(*shapes, num=9):
    sets = tuple(pd.ImageSet(torch.zeros(num, 1, *shape, dtype=torch.uint8)) for shape in shapes)
    return sets[0] if len(sets) == 1 else pd.ImageBuckets(sets)


def with_patches(config, **options):
    return Config(**{**vars(config), "patches": Patches(**{**vars(config.patches), **options})})


def with_network(config, **options):
    return Config(**{**vars(config), "network": Network(**{**vars(config.network), **options})})


def test_hiding_classes_of_images_without_any_is_refused():
    hiding, images = with_network(SMALL, label_dropout=0.2), images_of((32, 32))
    with pytest.raises(pd.InputError, match=r"these images have none: give --data\.classes True"):
        suggest(images, hiding, {"network.label_dropout"})
    assert suggest(images, hiding)[0] == hiding  # of a preset, or of a run that continues
    labelled = pd.ImageSet(images.pixels, torch.arange(9) % 3)  # pyright: ignore[reportAttributeAccessIssue]
    assert suggest(labelled, hiding, {"network.label_dropout"})[0] == hiding


@pytest.mark.parametrize("preset", ["small", "digits", "dit-small"])
@pytest.mark.parametrize("shape", [(16, 16), (32, 32), (64, 64), (48, 96), (128, 128)])
def test_what_fits_stays_as_it_is(preset, shape):
    as_it_is = replace(pd.PRESETS[preset], batch_pixels=None)
    assert suggest(images_of(shape), as_it_is) == (as_it_is, [])


@pytest.mark.parametrize(
    ("shape", "batch", "whole"),
    [((32, 32), 16, 0.5), ((44, 44), 16, 0.5), ((64, 64), 8, 0.25), ((48, 96), 7, 0.25), ((256, 256), 2, 0.25)],
)
def test_steps_on_larger_images_are_smaller(shape, batch, whole):
    config, reasons = suggest(images_of(shape), SMALL)
    assert (config.batch, config.patches.whole) == (batch, whole)
    told = [reason.partition(",")[0].partition(":")[0] for reason in reasons]
    expected = [f"batch {batch}", "patches.whole 0.25"] if batch < 16 else []
    assert [each for each in told if each.startswith(("batch", "patches.whole"))] == expected
    again = suggest(images_of(shape), config)[0]
    assert (again.batch, again.patches) == (config.batch, config.patches)


def test_steps_that_were_asked_for_are_not_smaller():
    images = images_of((64, 64))
    assert suggest(images, SMALL, {"batch"})[0] == SMALL
    config, reasons = suggest(images, SMALL, {"patches.whole"})
    assert (config.batch, config.patches.whole, len(reasons)) == (8, 0.5, 1)
    config, _ = suggest(images, with_patches(SMALL, whole=1.0))
    assert (config.batch, config.patches.whole) == (8, 1.0)
    # Patches of a quarter, four for each image: as many pixels as a fourth of the image's.
    config, _ = suggest(images_of((128, 128)), with_patches(SMALL, whole=0.0, sizes={"1/4": 1.0}))
    assert (config.batch, config.patches.whole) == (8, 0.0)
    assert suggest(images, PAPER)[0] == PAPER


@pytest.fixture
def bf16(monkeypatch):
    monkeypatch.setattr("patch_diffusion.training.choices.suggest.processor_has_bf16", lambda: True)


def formats_of(images, config, given=()):
    """With a CPU as the device."""
    config = replace(config, engine=replace(config.engine, device="cpu"))
    found, reasons = suggest(images, config, given)
    assert any("engine.precision" in reason for reason in reasons) == (found.engine != config.engine)
    return found.engine.precision


def test_large_images_are_trained_on_in_bf16_where_the_processor_has_it(bf16, monkeypatch):
    large = images_of((64, 64))
    assert formats_of(large, SMALL) == formats_of(images_of((48, 96)), PAPER) == "bf16"
    assert formats_of(large, SMALL, {"engine.precision"}) == "auto"
    assert formats_of(large, replace(SMALL, engine=Engine(precision="fp32"))) == "fp32"
    assert formats_of(large, replace(SMALL, engine=Engine(compile=True))) == "auto"
    assert formats_of(images_of((56, 56)), SMALL) == "auto"
    alone = with_patches(SMALL, whole=0.0, sizes={"32": 1.0}, context=32)
    assert formats_of(images_of((512, 512)), alone) == "auto"  # the network sees patches of 32
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert formats_of(large, SMALL) == "auto"


def test_a_processor_without_bf16_is_left_with_fp32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert processor_has_bf16()
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert not processor_has_bf16()
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert not processor_has_bf16()
    assert formats_of(images_of((64, 64)), SMALL) == "auto"


def test_batch_pixels_that_would_do_nothing_are_refused():
    with pytest.raises(pd.InputError, match="batch_pixels is for a batch that is not given"):
        suggest(images_of((64, 64)), SMALL, {"batch", "batch_pixels"})
    with pytest.raises(pd.InputError, match="at least 1"):
        suggest(images_of((64, 64)), replace(SMALL, batch_pixels=0), {"batch_pixels"})


def test_levels_suit_what_the_network_sees():
    """Large images want more levels, but not where patches of them are all that it sees."""
    alone = {"whole": 0.0, "sizes": {"64": 1.0}}
    levels = {
        context: len(
            suggest(images_of((512, 512)), with_patches(SMALL, **alone, context=context))[0].network.multipliers
        )
        for context in (None, 64)
    }
    assert levels == {None: 5, 64: 3}


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((28, 28), {"16": 0.6, "8": 0.4}),
        ((36, 36), {"20": 0.6, "8": 0.4}),
        ((48, 36), {"24": 0.6, "12": 0.4}),
        ((8, 8), {"1/2": 1.0}),
    ],
)
def test_sizes_move_to_what_the_network_takes(shape, sizes):
    config, reasons = suggest(images_of(shape), SMALL)
    assert config.patches.sizes == sizes and config.network == SMALL.network
    assert len(reasons) == 1 and reasons[0].startswith(f"patches.sizes {next(iter(sizes))}=")


def test_sizes_that_are_no_whole_pixels_of_a_shorter_side_are_parts():
    config, _ = suggest(images_of((100, 64)), SMALL)
    assert all("/" in size or int(size) < 64 for size in config.patches.sizes)
    shapes = [size.shape for size in PatchSchedule(**vars_of(config)).sizes_for((100, 64), 4)]
    assert len(shapes) == 3 and all(height % 4 == width % 4 == 0 for height, width in shapes)


def test_levels_go_where_images_cannot_be_halved_so_often():
    config, reasons = suggest(images_of((50, 50)), SMALL)
    assert config.network.multipliers == (1, 2) and config.network.attention == (1,)
    assert "--resolution 48" in reasons[0]
    config, _ = suggest(images_of((28, 28)), PAPER)
    assert config.network.multipliers == (1, 2, 2) and config.network.attention == (2,)


def test_large_images_take_more_levels_and_attention_stays_where_it_was():
    config, reasons = suggest(images_of((256, 256)), SMALL)
    assert config.network.multipliers == (1, 2, 4, 4) and config.network.attention == (3,)
    assert [reason.split()[0] for reason in reasons] == ["network.multipliers", "batch", "patches.whole"]
    for name, option in (("network.multipliers", config.network.multipliers), ("network.attention", (2,))):
        config, _ = suggest(images_of((256, 256)), SMALL, {name})
        assert getattr(config.network, name[8:]) == (option if name == "network.attention" else (1, 2, 4))


def test_what_was_given_is_not_changed():
    base = with_patches(SMALL, sizes={"14": 1.0})
    config, _ = suggest(images_of((28, 28)), base, {"patches.sizes"})
    assert config.patches == base.patches and config.network.multipliers == (1, 2)
    assert suggest(images_of((28, 28)), base, {"patches.sizes", "network.multipliers"}) == (base, [])
    # Attention at a level that the shorter network would not have.
    assert suggest(images_of((50, 50)), SMALL, {"network.attention"}) == (SMALL, [])
    config, _ = suggest(images_of((50, 50)), with_network(SMALL, attention=(1,)), {"network.attention"})
    assert config.network.attention == (1,) and config.network.multipliers == (1, 2)


@pytest.mark.parametrize(
    ("preset", "asked", "replaced"),
    [
        ("small", {"multipliers": (1, 2)}, {"attention": (1,)}),
        ("small", {"kind": "dit"}, dict.fromkeys(["multipliers", "blocks", "attention", "width"])),
        ("dit-small", {"kind": "adm"}, dict.fromkeys(["depth", "heads", "token", "width"])),
        ("dit-small", {"width": 100}, {"heads": 1}),
        ("dit-small", {"heads": 3}, {"width": 60}),
        ("small", {"blocks": 2}, {}),
        ("dit-small", {"heads": 3, "width": 24}, {}),
    ],
)
def test_what_does_not_go_with_what_was_given_of_a_network_is_replaced(preset, asked, replaced):
    base = pd.PRESETS[preset]
    network = replace(base.network, **asked)
    images, config = images_of((32, 32)), replace(base, network=network)
    chosen, reasons = suggest(images, config, {f"network.{name}" for name in asked})
    assert chosen.network == replace(network, **replaced)
    assert any("network." in reason for reason in reasons) == bool(replaced)
    build_network(chosen.network, 3, 0, coords=True)
    assert suggest(images, config, {f"network.{name}" for name in vars(network)})[0].network == network


def test_where_nothing_helps_the_trainer_says_why(tmp_path):
    images = pd.ImageSet(torch.arange(33 * 33).remainder(256).to(torch.uint8).reshape(1, 1, 33, 33))
    config, reasons = suggest(images, SMALL)
    assert (config, reasons) == (SMALL, [])
    with pytest.raises(pd.InputError, match="set data.resolution, for example to 32x32"):
        build_trainer(config, images, tmp_path / "run", show=False)


def test_without_patches_their_sizes_do_not_matter():
    base = with_patches(SMALL, whole=1.0)
    assert suggest(images_of((28, 28)), base) == (base, [])


def test_buckets_have_sizes_that_suit_all_of_them():
    shapes = [(64, 64), (48, 80), (80, 48)]
    config, _ = suggest(images_of(*shapes), PAPER)
    for shape in shapes:
        assert PatchSchedule(**vars_of(config)).sizes_for(shape, stride(config.network))
    as_it_is = replace(SMALL, batch_pixels=None)
    assert suggest(images_of(*shapes), as_it_is) == (as_it_is, [])


def vars_of(config):
    return {name: value for name, value in vars(config.patches).items() if name != "coords"}


sides = st.integers(4, 200)


@pytest.mark.slow
@given(sides, sides, st.sampled_from(sorted(pd.PRESETS)))
def test_any_shape_either_fits_then_or_stays_as_it_was(height, width, preset):
    base = pd.PRESETS[preset]
    config, reasons = suggest(images_of((height, width)), base)
    try:
        sizes = PatchSchedule(**vars_of(config)).sizes_for((height, width), stride(config.network))
    except pd.InputError:
        assert (config, reasons) == (base, [])
        return
    assert math.isclose(sum(config.patches.sizes.values()), 1)
    assert sum(size.shape == (height, width) for size in sizes) == 1
    assert bool(reasons) == (config != base)
    smallest = min(1 / 4, *(math.prod(size.shape) / (height * width) for size in sizes)) ** 0.5
    assert smallest >= 1 / 4 / FURTHEST_SIZE - 2 / min(height, width)


@pytest.mark.slow
@pytest.mark.parametrize("preset", sorted(pd.PRESETS))
def test_the_stride_is_that_of_the_network(preset):
    with torch.device("meta"):
        network = build_network(pd.PRESETS[preset].network, 3, 0, coords=True)
    assert stride(pd.PRESETS[preset].network) == network.stride


@pytest.mark.slow
def test_a_network_so_chosen_trains(tmp_path):
    pixels = torch.randint(0, 256, (8, 1, 28, 20), dtype=torch.uint8)
    base = with_network(SMALL, width=8)
    config, reasons = suggest(pd.ImageSet(pixels), base)
    assert reasons
    trainer = build_trainer(config, pd.ImageSet(pixels), tmp_path / "run", show=False)
    assert torch.isfinite(trainer.train_step()[1])


def test_a_resolution_for_large_images_and_for_those_of_many_sizes():
    assert suggest_resolution({(64, 64): 9}, 64) is None and suggest_resolution({(90, 60): 9}, 64) is None
    assert suggest_resolution({(512, 512): 9}, 64).size == (64, 64)
    assert suggest_resolution({(512, 768): 9}, 64).size == (48, 80)
    assert suggest_resolution({(33, 33): 9}, 64).size == (32, 32)
    assert suggest_resolution({(31, 31): 9}, 64).size == (28, 28)
    assert suggest_resolution({(40, 40): 9, (40, 42): 1}, 64).size == (40, 40)  # that most have, and that fits
    similar = suggest_resolution({(100, 150): 5, (200, 300): 4}, 64)
    assert similar.fit == "crop" and similar.size == (48, 80)
    mixed = suggest_resolution({(100, 200): 5, (200, 100): 5}, 64)
    assert mixed.fit == "bucket" and mixed.size == (64, 64) and "cut off" in mixed.reason
    small = suggest_resolution({(20, 20): 2, (400, 400): 8}, 64)
    assert small.size == (20, 20)  # no image of the smallest tenth is enlarged


@pytest.mark.slow
def test_train_takes_what_is_suggested_and_says_why(tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(100, 140, (20, 1, 28, 28), np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    line = ["train", str(tmp_path / "a.npy"), "--out", str(tmp_path / "run"), "--steps", "1", "--samples", "0"]
    line += ["--network.width", "8"]
    assert main(line) == 0
    options = json.loads((tmp_path / "run" / "config.json").read_text())
    assert options["patches"]["sizes"] == {"16": 0.6, "8": 0.4} and options["noise"]["p_mean"] < -1
    shown, notes = capsys.readouterr().err, (tmp_path / "run" / "log.jsonl").read_text()
    for reason in ("patches.sizes 16=0.6 8=0.4, not 1/2 1/4: patches of", "noise.p_mean -"):
        assert reason in shown and reason in notes
    # What is asked for stays, and a continued run takes what it began with.
    assert main([*line[:3], str(tmp_path / "other"), *line[4:], "--patches.sizes", "1/2=1", "--noise.p-mean", "0"]) == 0
    options = json.loads((tmp_path / "other" / "config.json").read_text())
    assert options["patches"]["sizes"] == {"1/2": 1.0} and options["noise"]["p_mean"] == 0
    assert main(["train", "--out", str(tmp_path / "run"), "--steps", "2"]) == 0


def two_values(side, low=64, high=191, num=4):
    """Images of rows of two pixel values, without a copy of them in memory."""
    rows = torch.where(torch.arange(side) % 2 > 0, high, low).to(torch.uint8)
    return pd.ImageSet(rows[:, None].expand(num, 1, side, side))


def test_noise_of_large_images_is_shifted_in_training_sampling_and_measures_alike():
    assert suggest(two_values(64), SMALL, {"batch"})[0].noise == SMALL.noise
    config, reasons = suggest(two_values(512), SMALL, {"batch"})
    noise = config.noise
    assert (noise.p_mean, noise.sigma_max, noise.sigma_min) == (2.1, 640, None)
    assert noise.levels == tuple(pytest.approx(8 * sigma, rel=0.02) for sigma in SIGMAS)
    (told,) = [reason for reason in reasons if "noise" in reason]
    assert told == (
        "noise.p_mean 2.1: 8 times the usual noise levels, which suit images of standard deviation 0.5 and up to 64 "
        "pixels; these have 0.50 and 512, so also noise.sigma_max 640, noise.levels 0.4 to 51"
    )
    # What was given stays, and so does all with a process whose noise is as published.
    given = replace(SMALL, noise=replace(SMALL.noise, sigma_max=80.0))
    assert suggest(two_values(512), given, {"batch", "noise.sigma_max"})[0].noise.sigma_max == 80
    assert suggest(two_values(512), SMALL, {"batch", "noise.p_mean"})[0].noise == replace(noise, p_mean=0.0)
    other = replace(SMALL, noise=replace(SMALL.noise, process="vp"))
    assert suggest(two_values(512, 20, 60), other)[0].noise == other.noise


@pytest.mark.parametrize(("side", "context", "p_mean"), [(1024, 64, 0.0), (1024, 128, 0.7), (2048, 16, 0.7)])
def test_noise_with_a_small_copy_is_that_of_what_the_network_makes_at_once(side, context, p_mean):
    """Of the copy, or of what lies behind one of its pixels; images of 1,024 pixels without it have a shift of 2.8."""
    base = with_patches(SMALL, whole=0.0, sizes={"64": 1.0}, growth="none", context=context)
    assert suggest(two_values(side, num=2), base, {"batch"})[0].noise.p_mean == p_mean


def test_flat_images_have_their_range_of_sampling_about_their_mean():
    noise = suggest(two_values(16, 20, 33), SMALL)[0].noise  # of deviation 0.05
    assert noise.mean_data == (-0.79,) and noise.p_mean == -2.3
    assert (noise.sigma_min, noise.sigma_max) == (pytest.approx(0.0002), pytest.approx(8))
    assert noise.levels is not None and noise.levels[0] == pytest.approx(0.005)
    assert suggest(two_values(16, 20, 33), SMALL, {"noise.mean_data"})[0].noise.mean_data == (-0.79,)
    published = suggest(two_values(16, 20, 33), PAPER)[0].noise
    assert (published.mean_data, published.sigma_data) == ((0.0,), 0.5)


@pytest.mark.slow
def test_a_run_made_before_keeps_its_noise_though_the_images_are_named_again(tmp_path):
    np.save(tmp_path / "a.npy", two_values(16, 20, 33).pixels.numpy())
    base = with_network(SMALL, width=8)
    base = replace(base, data=replace(base.data, source=str(tmp_path / "a.npy")), minutes=None, steps=1, samples=0)
    before = replace(base, noise=replace(base.noise, p_mean=-2.3))  # all that an earlier version suggested
    build_trainer(before, pd.open_images(base.data.source), tmp_path / "run", show=False).fit(steps=1)
    stored = RunFolder(tmp_path / "run").read_config()[0]
    assert (stored.noise.levels, stored.noise.mean_data, stored.noise.sigma_max) == (None, None, 80)
    pd.train(base, tmp_path / "run", given=(), show=False)
    assert RunFolder(tmp_path / "run").read_config()[0] == stored


class Exact(pd.Denoiser):
    """The best guess for images of independent pixels N(0, 0.4^2), plus a brightness N(-0.3, 0.3^2) of each image."""

    image_channels = 1

    def forward(self, noisy, sigma, coords, labels=None):
        about = noisy.double() + 0.3
        bright, variance = about.mean(dim=(1, 2, 3), keepdim=True), sigma.double() ** 2  # pyright: ignore[reportAttributeAccessIssue]
        high, low = 0.4**2 + about[0].numel() * 0.3**2, 0.4**2
        return (high / (high + variance) * bright + low / (low + variance) * (about - bright) - 0.3).to(noisy)


@pytest.mark.parametrize("side", [64, 512])
def test_the_brightness_of_samples_is_that_of_the_images(side):
    noise = suggest(two_values(side, 26, 153), SMALL, {"batch"})[0].noise  # of mean -0.3 and deviation 0.5
    ends = {name: value for name, value in vars(noise).items() if name in ("sigma_min", "sigma_max", "mean_data")}
    model = Exact(lambda *_: None, resolution=(side, side), coords=False, **ends)
    # The ODE is linear: the sample of no noise is the mean, and what noise of one deviation adds is the deviation.
    mean, above = (
        pd.decode(model, torch.full((1, 1, side, side), start / side), steps=18).mean().item() for start in (0, 1)
    )
    assert mean == pytest.approx(-0.3, abs=0.01)  # -0.23 and -0.03 from noise about 0 of level 80
    assert above - mean == pytest.approx(math.sqrt(0.3**2 + (0.4 / side) ** 2), rel=0.05)  # 0.14 of 512 pixels


@pytest.mark.slow
def test_the_loss_at_the_start_is_the_same_at_all_levels_of_images_far_from_grey(tmp_path):
    draws = torch.Generator().manual_seed(0)
    values = torch.randn(40, 1, 16, 16, generator=draws) * 0.3 - 0.8
    images = pd.ImageSet(values, codec=PixelCodec("float32", -1, 1))
    config, _ = suggest(images, with_network(SMALL, width=8))
    model = build_trainer(config, images, tmp_path / "run", show=False).state.denoiser
    assert model.sigma_data == pytest.approx(0.3, rel=0.02)
    losses = pd.whole_image_loss(model, images)
    assert len(losses) == 8 and all(loss == pytest.approx(1, rel=0.1) for loss in losses.values())
