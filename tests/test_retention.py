import json

import numpy as np
import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.data.held_out import hold_out
from patch_diffusion.runs.retention import best_of, step_of, sweep
from refusal import refused


@pytest.fixture
def checkpoints(tmp_path):
    """``checkpoints(keep, held_out, ...)``: folders of the steps 1, 2, ..."""

    def make(*states):
        for step, state in enumerate(states, 1):
            (tmp_path / f"step-{step:08d}").mkdir()
            # With NaN, as an earlier version wrote it.
            (tmp_path / f"step-{step:08d}" / "state.json").write_text(json.dumps(state))
        return sorted(tmp_path.iterdir())

    return make


def left(checkpoints, **options):
    sweep(checkpoints, **{"last": 1, "best": None, "good": 0, **options})
    return [step_of(path) for path in checkpoints if path.exists()]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [2, 5]),
        ({"last": 3}, [2, 3, 4, 5]),
        ({"best": "loss"}, [1, 2, 5]),
        ({"best": "frechet"}, [2, 4, 5]),
        ({"best": "kernel"}, [2, 5]),
        ({"good": 3}, [2, 3, 5]),
        ({"last": 9}, [1, 2, 3, 4, 5]),
    ],
)
def test_what_stays(checkpoints, options, steps):
    losses = (0.1, 0.3, 0.2, None, 0.4)
    samples = ({}, {"frechet": 3.0}, {"frechet": float("nan")}, {"frechet": 2.0}, None)
    states = (
        {"keep": step == 2, "held_out": loss, "samples": found}
        for step, loss, found in zip(range(1, 6), losses, samples, strict=True)
    )
    assert left(checkpoints(*states), **options) == steps


def test_what_cannot_be_read_stays(checkpoints):
    found = checkpoints({"keep": False}, {"keep": False})
    (found[0] / "state.json").write_text("{")
    assert left(found) == [1, 2] and best_of(found) is None


@pytest.mark.slow
def test_every_so_many_steps(make_trainer):
    trainer = make_trainer(checkpoint_steps=3, checkpoints=2)
    trainer.fit(steps=8)
    assert [step_of(path) for path in trainer.run.checkpoints()] == [3, 4, 6, 8]
    with refused("checkpoint_steps"):
        make_trainer("other", checkpoint_steps=0)


@pytest.mark.slow
def test_the_newest_stay(make_trainer):
    trainer = make_trainer(checkpoint_minutes=1e-9, checkpoint_last=3, log_every=1)
    trainer.fit(steps=8)
    found = [step_of(path) for path in trainer.run.checkpoints()]
    assert found[-1] == 8 and len(found) == 3


@pytest.mark.slow
def test_the_best_stays_and_is_loaded(make_trainer, images):
    train, held_out = hold_out(images, 0.25, 0)
    trainer = make_trainer(images=train, held_out=held_out, checkpoints=6, checkpoint_best=True, log_every=1)
    trainer.fit(steps=12)
    lines = [json.loads(line) for line in trainer.run.log_file.read_text().splitlines()]
    losses = {line["step"]: line["held_out"]["loss"] for line in lines if "held_out" in line}
    best = min(losses, key=losses.__getitem__)
    assert list(losses) == [2, 4, 6, 8, 10, 12]
    assert {step_of(path) for path in trainer.run.checkpoints()} == {best, 12}
    assert step_of(best_of(trainer.run.checkpoints())) == best
    found = pd.load(trainer.run.path, checkpoint="best", device="cpu").state_dict()
    expected = pd.load(trainer.run.path, checkpoint=best, device="cpu").state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert pd.describe(trainer.run.path)["best_checkpoint"] == best
    with refused("checkpoint_best"):
        make_trainer("other", checkpoint_best=True)
    plain = make_trainer("plain")
    plain.fit(steps=1)
    with pytest.raises(pd.InputError, match="has no best checkpoint: train with --held-out"):
        pd.load(plain.run.path, checkpoint="best")


def test_held_out_images_are_not_trained_on(make_trainer, images):
    all_images = numbered(640)
    train, held_out = hold_out(all_images, 0.1, 7)
    assert (len(train), len(held_out)) == (576, 64)
    rows = np.concatenate([part.rows(np.arange(len(part))) for part in (train, held_out)])  # pyright: ignore[reportAttributeAccessIssue]
    assert sorted(rows.tolist()) == list(range(640))
    again = hold_out(all_images, 0.1, 7)[1]
    other = hold_out(all_images, 0.1, 8)[1]
    assert np.array_equal(again.rows(np.arange(64)), held_out.rows(np.arange(64)))  # pyright: ignore[reportAttributeAccessIssue]
    assert not np.array_equal(other.rows(np.arange(64)), held_out.rows(np.arange(64)))  # pyright: ignore[reportAttributeAccessIssue]
    pixels, _ = held_out.batch(np.arange(64))  # pyright: ignore[reportAttributeAccessIssue]
    assert pixels[:, 0, 0, 0].tolist() == [row % 256 for row in held_out.rows(np.arange(64))]  # pyright: ignore[reportAttributeAccessIssue]
    assert train.options.held_out == 0.1


def numbered(num, width=8):
    """Images that all differ: the first two pixels hold their number."""
    pixels = torch.zeros(num, 1, 8, width, dtype=torch.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = torch.arange(num) % 256, torch.arange(num) // 256
    return pd.ImageSet(pixels)


def test_at_least_64_are_held_out_or_half():
    images = numbered(200)
    assert len(hold_out(images, 0.05, 0)[1]) == 64
    assert len(hold_out(pd.ImageSet(images.pixels[:100]), 0.05, 0)[1]) == 50
    assert hold_out(images, 0, 0) == (images, None)
    for share in (-0.1, 0.6):
        with refused("data.held_out"):
            hold_out(images, share, 0)
    with refused("data.held_out"):
        hold_out(pd.ImageSet(images.pixels[:1]), 0.5, 0)


def test_of_buckets_together_a_share_is_held_out():
    buckets = pd.ImageBuckets(
        (
            numbered(300),
            numbered(100, 16),
        )
    )
    train, held_out = hold_out(buckets, 0.25, 0)
    assert sum(map(len, train.buckets)) == 300 and len(train.buckets) == 2
    assert [bucket.resolution for bucket in held_out.buckets] == [(8, 8), (8, 16)]


@pytest.mark.slow
def test_a_run_with_held_out_images_continues(tmp_path):
    from patch_diffusion.cli import main

    line = [
        "train",
        "digits",
        "--out",
        str(tmp_path / "run"),
        "--preset",
        "digits",
        "--steps",
        "2",
        "--held-out",
        "0.1",
    ]
    assert main([*line, "--network.width", "8", "--samples", "0", "--checkpoint-best"]) == 0
    assert main(["train", "--out", str(tmp_path / "run"), "--steps", "4"]) == 0
    facts = json.loads((tmp_path / "run" / "config.json").read_text())["model"]
    assert facts["num_images"] == 1797 - 180
