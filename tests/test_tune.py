"""Tuning of a run for a few steps: what the new run has of the other one, and that it goes on bit for bit."""

import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.cli import main
from patch_diffusion.config import Config, Data, Engine, Network
from patch_diffusion.denoise.consistency import ConsistencyObjective
from patch_diffusion.files import read_tensors
from patch_diffusion.runs.folder import RunFolder
from refusal import refused

SMALL = Network(width=8, multipliers=(1,), blocks=1, attention=(), dropout=0.2)
QUIET = {"samples", "track", "checkpoints"}


def quiet(**options):
    return Config(samples=0, track=(), checkpoints=2, **options)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A run of two steps."""
    run = tmp_path_factory.mktemp("parent") / "run"
    pd.train(quiet(data=Data("digits"), network=SMALL, batch=4, steps=2), run, show=False)
    return run


@pytest.fixture(scope="module")
def few(parent, tmp_path_factory):
    """A run that was tuned from it, on whole images and patches."""
    run = tmp_path_factory.mktemp("few") / "run"
    pd.tune(parent, run, images=48, config=quiet(checkpoint_steps=1), given={*QUIET, "checkpoint_steps"}, show=False)
    return run


def test_it_has_all_of_the_other_run_but_the_objective(parent, few):
    (before, facts), (config, found) = (RunFolder(run).read_config() for run in (parent, few))
    assert config.few_steps == 2 and config.images == 48 and config.steps is None
    noise = replace(config.noise, p_mean=before.noise.p_mean, p_std=before.noise.p_std, weight=before.noise.weight)
    assert (config.network, config.patches, config.data, noise) == (
        before.network,
        before.patches,
        before.data,
        before.noise,
    )
    assert config.noise.weight == "process" and config.noise.p_std == 2.0
    assert config.optimizer.learning_rate == pytest.approx(before.optimizer.learning_rate / 10)
    assert replace(found, parent={}) == facts and found.parent["step"] == 2  # the same images are held out
    start = read_tensors(few / "checkpoints/step-00000001/weights.safetensors")
    for name, tensor in read_tensors(parent / "model.safetensors").items():
        torch.testing.assert_close(start[name], tensor, atol=1e-3, rtol=0)  # of the average, after one small step
    line = json.loads((few / "log.jsonl").read_text().splitlines()[-1])
    assert len(line["loss"]) > 1 and "held_out" not in (few / "log.jsonl").read_text()
    assert not (few / "linear_floor.json").exists()


def test_a_step_counts_four_passes(parent, few, make_trainer):
    counted = [make_trainer(name, **options).flops for name, options in (("a", {}), ("b", {"few_steps": 2}))]
    assert all(4 * counted[0][shape] == 3 * counted[1][shape] for shape in counted[0])


def test_a_stopped_tuning_goes_on_bit_for_bit(parent, few, tmp_path, monkeypatch):
    step = pd.Trainer.train_step

    def stopping(trainer, spent=0.0):
        found = step(trainer, spent)
        if trainer.state.counters.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return found

    how = {"images": 48, "config": quiet(checkpoint_steps=1), "given": {*QUIET, "checkpoint_steps"}, "show": False}
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(pd.Trainer, "train_step", stopping)
        pd.tune(parent, tmp_path / "run", **how)
    assert not pd.describe(tmp_path / "run")["complete"]
    shutil.copytree(tmp_path / "run", tmp_path / "trained on")
    pd.tune(parent, tmp_path / "run", **how)
    assert main(["train", "--out", str(tmp_path / "trained on")]) == 0
    whole = read_tensors(few / "model.safetensors")
    for run in ("run", "trained on"):
        found = read_tensors(tmp_path / run / "model.safetensors")
        assert all(torch.equal(tensor, whole[name]) for name, tensor in found.items()), run
    assert RunFolder(tmp_path / "trained on").read_config()[1] == RunFolder(few).read_config()[1]


def test_it_is_sampled_in_its_own_steps(few, parent):
    model, steps = pd.load(few, device="cpu"), []
    (sample,) = pd.generate(model, [3], callback=steps.append)
    assert (sample.settings["steps"], sample.settings["solver"], sample.settings["schedule"]) == (
        2,
        "consistency",
        "few",
    )
    assert [step.sigma.item() for step in steps] == pytest.approx([80, 1.64 * model.sigma_data], rel=0.02)
    again = next(pd.generate(model, [2, 3], steps=1)), next(pd.generate(model, [3], pd.Sampling(batch=1)))
    assert torch.equal(again[1].pixels, sample.pixels) and again[0].settings["steps"] == 1
    with pytest.warns(match="was tuned for the solver consistency, and heun distorts"):
        list(pd.generate(model, [], pd.Sampling(solver="heun")))
    ordinary = next(pd.generate(pd.load(parent, device="cpu"), [3])).settings
    assert (ordinary["steps"], ordinary["solver"], ordinary["schedule"]) == (18, "heun", "karras")


def test_what_needs_a_denoiser_is_refused(few):
    model, image = pd.load(few, device="cpu"), torch.zeros(1, 16, 16, dtype=torch.uint8)
    for use in (
        lambda: pd.edit(model, pd.inpainting(image, torch.arange(256).view(16, 16) > 99), [0]),
        lambda: pd.encode(model, torch.zeros(1, 1, 16, 16)),
        lambda: pd.bits_per_dimension(model, image[None]),
    ):
        with pytest.raises(pd.InputError, match="take the run that it was tuned from"):
            use()
    options = pd.EvaluationOptions(metrics=("denoising",), device="cpu")
    with pytest.raises(pd.InputError, match="needs a denoiser"):
        pd.evaluate(few, options=options)


def test_what_cannot_be_tuned_is_refused(parent, few, tmp_path):
    out = tmp_path / "new"
    for run, folder, options, message in (
        (parent, out, {}, "give one of steps, images"),
        (parent, out, {"images": 4, "steps": 17}, "few_steps"),
        (few, out, {"images": 4}, "was tuned already"),
        (parent, parent, {"images": 4}, "holds an ordinary run"),
        (parent, few, {"images": 4, "steps": 4}, "holds a run tuned for 2 steps"),
        (tmp_path / "none", out, {"images": 4}, "none"),
    ):
        with pytest.raises(pd.InputError, match=message):
            pd.tune(run, folder, **options, show=False)
    with refused("engine.compile"):
        pd.tune(parent, out, images=4, config=Config(engine=Engine(compile=True)), show=False)
    with refused("checkpoint_best"):
        pd.tune(parent, out, images=4, config=Config(checkpoint_best=True), show=False)
    assert not out.exists()


def test_the_command(parent, tmp_path, capsys):
    def run(words):
        return main(f"tune {parent} --out {tmp_path / 'run'} {words}".split()), capsys.readouterr()

    for words, message in (
        ("--steps 500", "--steps are the steps of sampling that the new run is made for, 1 to 16, not 500"),
        ("--steps 2", "tune needs a budget, one of --minutes and --images; --steps are the steps of sampling"),
        ("--minutes 1 --images 5", "tune needs a budget"),
    ):
        status, said = run(words)
        assert status == 2 and message in said.err, words
    status, said = run("--steps 4 --images 4 --patches.whole 1 --samples 1 --track --engine.threads 1")
    assert status == 0 and f"in 4 steps: patch-diffusion sample {tmp_path / 'run'}" in said.err
    config, _ = RunFolder(tmp_path / "run").read_config()
    assert config.few_steps == 4 and config.patches.whole == 1 and list((tmp_path / "run/samples").glob("*.png"))
    assert main(["info", str(tmp_path / "run"), "--report"]) == 0 and main(["info", str(tmp_path / "run")]) == 0
    told = "for 4 steps of sampling, from run at step 2"
    assert told in capsys.readouterr().out and told in (tmp_path / "run/report.html").read_text()


def test_a_denoiser_of_ones_own_is_trained_by_its_objective(make_trainer):
    trainer = make_trainer(few_steps=3)
    assert type(trainer.state.objective) is ConsistencyObjective
    trainer.fit(steps=1)
    assert pd.load(trainer.run.path, device="cpu").few_steps == 3
