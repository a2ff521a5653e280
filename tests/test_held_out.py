"""Images that are held out without being asked for, and what is looked at with them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.config import Config, Data, Network
from patch_diffusion.data.held_out import halved, hold_out
from patch_diffusion.denoise.whole_image import losses_of_images
from patch_diffusion.training.build import build_trainer
from refusal import refused

TINY = Config(
    network=Network(width=8, multipliers=(1,), blocks=1), batch=4, samples=0, checkpoints=1, steps=1, track=()
)


def numbered(num):
    """Images that all differ, by their first two pixels."""
    pixels = torch.zeros(num, 1, 4, 4, dtype=torch.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = torch.arange(num) % 256, torch.arange(num) // 256
    return pd.ImageSet(pixels)


def build(images, out, held_out=None):
    config = replace(TINY, data=Data(held_out=held_out), noise=replace(TINY.noise, sigma_data=0.5))
    return build_trainer(config, images, out, show=False)


@pytest.mark.parametrize(
    ("num", "asked", "held_out", "share"),
    [
        (640, None, 64, 0.05),
        (2000, None, 100, 0.05),
        (639, None, 0, 0.0),
        (639, 0.05, 64, 0.05),
        (2000, 0.0, 0, 0.0),
    ],
)
def test_how_many_are_held_out(num, asked, held_out, share, tmp_path):
    trainer = build(numbered(num), tmp_path / "run", asked)
    assert (len(trainer.held_out) if trainer.held_out is not None else 0) == held_out
    assert len(trainer.images) == num - held_out and trainer.config.data.held_out == share
    assert f", {held_out} held out" in trainer.summary() or not held_out
    few = [note for note in trainer.images.notes if "no images are held out of fewer than 640" in note]
    assert len(few) == (num == 639 and asked is None)


@pytest.mark.parametrize(
    ("num", "held_out", "few"),
    [(1, "", "1 image is very few"), (5, "about 2 of them", "5 images are very few"), (600, "about 64 of them", "")],
)
def test_what_is_said_of_few_images(num, held_out, few, tmp_path):
    notes = " ".join(build(numbered(num), tmp_path / "run").images.notes)
    assert (f"--held-out 0.1 holds out {held_out}" if held_out else "no images are held out") in notes
    assert ("--held-out" in notes) == bool(held_out) and ("very few" in notes) == bool(few) and few in notes


@pytest.mark.parametrize("colour", [(0, 0, 0), (2, 2, 2), (200, 30, 40)])
def test_images_of_one_colour_teach_nothing(colour, tmp_path):
    images = pd.ImageSet(torch.tensor(colour, dtype=torch.uint8)[None, :, None, None].repeat(7, 1, 9, 9))
    with refused(None, "all images are of one and the same value, or colour: there is nothing to learn"):
        build_trainer(TINY, images, tmp_path / "run", show=False)


@pytest.mark.slow
def test_a_run_made_before_continues_with_all_its_images(tmp_path):
    images = pd.open_images("digits")
    first = build(images, tmp_path / "run", 0.0)
    first.run.write_config(first.config, first.facts)
    again = build(images, tmp_path / "run")
    assert again.held_out is None and len(again.images) == 1797 and not again.images.notes
    with pytest.raises(pd.InputError, match=r"with other options \(data.held_out\)"):
        build(images, tmp_path / "run", 0.05)


def test_the_published_recipe_trains_on_all():
    assert pd.PRESETS["paper"].data.held_out == 0
    assert all(config.data.held_out is None for name, config in pd.PRESETS.items() if name != "paper")


def test_mirror_images_of_held_out_images_are_held_out():
    numbers = torch.arange(1000).remainder(500).div(2, rounding_mode="floor").to(torch.uint8)
    images = replace(pd.ImageSet(numbers[:, None, None, None].expand(1000, 1, 4, 4)), mirrored=2)
    train, held_out = hold_out(images, 0.1, 3)
    assert (len(train), len(held_out)) == (900, 100)
    rows = [part.rows(np.arange(len(part))) for part in (train, held_out)]  # pyright: ignore[reportAttributeAccessIssue]
    assert sorted(np.concatenate(rows).tolist()) == list(range(1000))
    assert not set((rows[0] % 500).tolist()) & set((rows[1] % 500).tolist())
    assert all(np.array_equal(each[: len(each) // 2] + 500, each[len(each) // 2 :]) for each in rows)


@pytest.mark.parametrize("mirrored", [1, 2])
def test_halves_share_no_image(mirrored):
    """Of all images, of a part of them, and of several sizes; the mirror image goes with its image."""
    images = replace(numbered(120 // mirrored), mirrored=1)
    images = replace(images, pixels=images.pixels.repeat(mirrored, 1, 1, 1), mirrored=mirrored)
    for whole in (images, hold_out(images, 0.3, 3)[1]):
        rows = [set(half.rows(np.arange(len(half))) % (120 // mirrored)) for half in halved(whole)]  # pyright: ignore[reportAttributeAccessIssue]
        assert min(map(len, rows)) > 10 and not rows[0] & rows[1]
        assert sum(map(len, halved(whole))) == len(whole)
    wide = replace(images, pixels=images.pixels.reshape(120, 1, 2, 8))
    buckets = pd.ImageBuckets((images, wide))
    assert sum(map(len, halved(buckets))) == 240 and min(map(len, halved(buckets))) > 60
    one = numbered(1)
    assert halved(one) == (one, one)


@pytest.mark.slow
def test_the_log_has_the_loss_of_patches_of_each_size(make_trainer, images):
    train, held_out = hold_out(images, 0.25, 0)
    trainer = make_trainer(images=train, held_out=held_out, checkpoints=2)
    model = trainer.fit(steps=4)
    found = [json.loads(line) for line in trainer.run.log_file.read_text().splitlines() if "held_out" in line]
    found = [line["held_out"] for line in found if "held_out" in line]
    assert len(found) == 2 and all(set(each["by_size"]) == {"8x12", "4x6"} for each in found)
    assert found[-1]["by_size"]["8x12"] == pytest.approx(found[-1]["loss"])
    patches = losses_of_images(model, held_out, most=64, size=(4, 6))
    mean = float(torch.stack(list(patches.values())).mean())
    assert found[-1]["by_size"]["4x6"] == pytest.approx(mean) and mean != found[-1]["loss"]


@pytest.mark.slow
def test_every_bucket_has_its_own_sizes(make_trainer):
    random = torch.Generator().manual_seed(0)
    buckets = pd.ImageBuckets(
        tuple(
            pd.ImageSet(torch.randint(0, 256, (20, 3, *shape), dtype=torch.uint8, generator=random))
            for shape in ((8, 8), (8, 16))
        )
    )
    train, held_out = hold_out(buckets, 0.5, 0)
    trainer = make_trainer(images=train, held_out=held_out)
    trainer.fit(steps=1)
    (line,) = (json.loads(line) for line in trainer.run.log_file.read_text().splitlines() if '"held_out"' in line)
    assert set(line["held_out"]["by_size"]) == {"8x8", "4x4", "8x16", "4x8"}
    nums = [len(bucket) for bucket in held_out.buckets]
    whole = [num * line["held_out"]["by_size"][size] for num, size in zip(nums, ("8x8", "8x16"), strict=True)]
    assert sum(whole) / sum(nums) == pytest.approx(line["held_out"]["loss"])


def test_a_patch_of_an_image_is_denoised_with_its_own_coordinates(images):
    """A network that answers with the coordinates it is given: the loss of a patch tells where it was taken to lie."""

    class Where(torch.nn.Module):
        image_channels = 3

        def forward(self, x, c_noise, labels):
            return x[:, -2:-1].expand(-1, 3, -1, -1)  # the column

    grid = pd.coordinate_grid(8, 12)[0].expand(40, 3, 8, 12)
    pixels = ((grid + 1) * 127.5).round().to(torch.uint8)
    model = pd.Denoiser(Where(), sigma_data=1.0)
    high = 1e3  # all noise: D is sigma_data times what the network answers
    for size in (None, (4, 6), (2, 2)):
        losses = losses_of_images(model, pd.ImageSet(pixels), sigmas=(high,), batch=7, size=size)[high]
        assert len(losses) == 40 and losses.max() < 1e-4


@pytest.mark.slow
def test_losses_and_the_learned_weight_have_the_levels_of_the_run(tmp_path):
    noise = replace(TINY.noise, levels=(0.2, 0.8), weight="learned", p_mean=2.0)
    config = replace(TINY, data=Data("digits", held_out=0.05), noise=noise, log_every=1, steps=2)
    pd.train(config, tmp_path / "run", show=False)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {level for line in log for level in line.get("loss_by_noise", {})} <= {"0.2", "0.8"}
    (last, *_) = [line["held_out"]["by_noise"] for line in reversed(log) if "held_out" in line]
    assert list(last) == ["0.2", "0.8"]
    assert pd.load(tmp_path / "run").levels == (0.2, 0.8)
    wider = replace(config, noise=replace(noise, levels=(0.2, 0.8, 3.2)))
    with pytest.raises(pd.InputError, match=r"noise\.levels cannot change"):
        pd.train(wider, tmp_path / "run", allow=["noise.levels"], show=False)
