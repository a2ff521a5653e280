"""Samples measured while a model is trained: the numbers of `evaluate`, told once, the same after a stop."""

import json
import math

import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.config import Watch
from patch_diffusion.data.held_out import hold_out
from patch_diffusion.errors import NotFiniteError
from patch_diffusion.evaluation.meter import MeterReading
from patch_diffusion.runs.retention import step_of

ALL = ("frechet", "kernel", "memorization")


def lines(trainer, kind="samples"):
    return [line for line in map(json.loads, trainer.run.log_file.read_text().splitlines()) if kind in line]


def untimed(trainer):
    every = map(json.loads, trainer.run.log_file.read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "seconds"} for line in every]


class Rising:
    """A meter that finds so much one time after the other, and copies where it finds more than 2."""

    options = Watch(("kernel",), times=6)

    def __init__(self, *values):
        self.values = list(values)

    def begin(self, images, held_out, device):
        assert len(images) and device.type == "cpu"

    def __call__(self, model):
        value = self.values.pop(0)
        return MeterReading({"kernel": value}, "the model copies" if value > 2 else "")


class Broken(Rising):
    """A meter of samples that are not finite, and then of a distance that is not."""

    def __call__(self, model):
        if self.values.pop(0):
            raise NotFiniteError("500 of 500 images are not finite")
        return MeterReading({"kernel": math.nan, "mine": 1.0})


@pytest.mark.slow
def test_samples_that_are_not_finite_are_not_measured_and_training_goes_on(make_trainer, monkeypatch):
    def none(model, num, images):
        raise NotFiniteError("none is finite")

    monkeypatch.setattr("patch_diffusion.training.loop.sample_pictures", none)
    trainer = make_trainer(meter=Broken(1, 0, 1, 0, 1, 0), samples=1, watchdog="off")
    trainer.fit(steps=6)
    assert [line["samples"] for line in lines(trainer)] == [{"mine": 1.0}] * 3
    notes = [line["note"] for line in lines(trainer, "note")]
    without = "WARNING: training goes on without"
    assert notes.count(f"{without} the metrics of samples (500 of 500 images are not finite)") == 1
    assert notes.count(f"{without} pictures of samples (none is finite)") == 1
    assert notes.count("WARNING: kernel of the samples is not finite") == 3
    assert not (trainer.run.path / "samples").exists()
    for path in (trainer.run.log_file, *trainer.run.path.rglob("*.json")):
        for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(text, parse_constant=pytest.fail)


@pytest.mark.slow
def test_the_numbers_are_those_of_evaluate(make_trainer, images):
    train, held_out = hold_out(images, 0.25, 0)
    meter = pd.SampleMeter(ALL, times=1, samples=20, seed=0)
    trainer = make_trainer(images=train, held_out=held_out, meter=meter)
    model = trainer.fit(steps=2)
    (line,) = lines(trainer)
    found = pd.evaluate(model, train, held_out=held_out, options=pd.EvaluationOptions(metrics=ALL, samples=20)).measures
    assert line["step"] == 2 and line["samples"].keys() >= {"frechet", "kernel", "near_copies", "near_copies@1/4"}
    assert line["samples"] == pytest.approx({name: found[name].value for name in line["samples"]}, rel=1e-6, abs=1e-6)
    assert trainer.config.watch == Watch(ALL, 1, 20, "random")


@pytest.mark.slow
def test_only_what_is_asked_for_and_so_often(make_trainer):
    trainer = make_trainer(meter=pd.SampleMeter(("kernel",), times=3, samples=2))
    trainer.fit(steps=6)
    assert [(line["step"], list(line["samples"])) for line in lines(trainer)] == [
        (2, ["kernel"]),
        (4, ["kernel"]),
        (6, ["kernel"]),
    ]
    plain = make_trainer("plain")
    plain.fit(steps=6)
    assert not lines(plain) and lines(plain, "loss")[-1]["loss"] == lines(trainer, "loss")[-1]["loss"]


@pytest.mark.slow
def test_a_stopped_run_has_the_same_log(make_trainer, images, monkeypatch):
    train, held_out = hold_out(images, 0.25, 0)

    def make(out):
        meter = pd.SampleMeter(ALL, times=4, samples=6)
        return make_trainer(out, images=train, held_out=held_out, meter=meter, checkpoints=2, log_every=3)

    whole = make("whole")
    whole.fit(steps=8)
    killed = make("killed")
    step = killed.train_step

    def die(spent):
        if killed.state.counters.step == 7:
            raise RuntimeError("killed")
        return step(spent)

    monkeypatch.setattr(killed, "train_step", die)
    with pytest.raises(RuntimeError, match="killed"):
        killed.fit(steps=8)
    continued = make("killed")
    continued.fit(steps=8)
    assert untimed(continued) == untimed(whole) and [line["step"] for line in lines(whole)] == [2, 4, 6, 8]


@pytest.mark.slow
def test_that_it_copies_is_told_when_it_begins(make_trainer):
    trainer = make_trainer(meter=Rising(1, 3, 4, 1, 5, 6))
    trainer.fit(steps=6)
    notes = [(line["step"], line["note"]) for line in lines(trainer, "note") if "WARNING" in line["note"]]
    assert notes == [
        (2, "WARNING: the model copies; after step 1 it did not, so stop about there"),
        (5, "WARNING: the model copies; after step 4 it did not, so stop about there"),
    ]
    at_once = make_trainer("other", meter=Rising(3, 3, 3, 3, 3, 3))
    at_once.fit(steps=6)
    (note,) = (line["note"] for line in lines(at_once, "note") if "WARNING" in line["note"])
    assert note.endswith("it did at the first measurement already")


@pytest.mark.slow
def test_a_run_that_continues_does_not_tell_it_again(make_trainer):
    trainer = make_trainer(meter=Rising(1, 3, 3), checkpoints=2)
    with trainer.in_laps(steps=6) as train_until:
        train_until(0.5)
        trainer.checkpoints.wait()
    continued = make_trainer(meter=Rising(3, 3, 3), checkpoints=2)
    continued.fit(steps=6)
    notes = [line["step"] for line in lines(continued, "note") if "WARNING" in line["note"]]
    assert notes == [2] and len(lines(continued)) == 6


@pytest.mark.slow
def test_the_best_checkpoint_by_what_was_measured(make_trainer):
    trainer = make_trainer(meter=Rising(3, 2, 0.5, 1, 2, 3), checkpoint_best=True, checkpoint_by="kernel")
    trainer.fit(steps=6)
    assert [step_of(path) for path in trainer.run.checkpoints()] == [3, 6]
    assert pd.describe(trainer.run.path)["best_checkpoint"] == 3
    best, third = (pd.load(trainer.run.path, checkpoint=which, device="cpu").state_dict() for which in ("best", 3))
    assert all(torch.equal(best[name], third[name]) for name in best)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("frechet", "kernal")}, "watch.metrics has no 'kernal'; did you mean 'kernel'"),
        ({"metrics": ()}, "no metric was asked for: choose from frechet, kernel, memorization"),
        ({"times": 0}, "watch.times is at least 1, not 0"),
        ({"samples": 1}, "watch.samples is at least 2, not 1"),
        ({"extractor": "inceptoin"}, "there is no extractor 'inceptoin'; did you mean 'inception'"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, message):
    with pytest.raises(pd.InputError, match=message):
        pd.SampleMeter(**{"metrics": ("frechet",), **options})


def test_a_best_checkpoint_by_what_is_not_measured_is_refused(make_trainer):
    meter = pd.SampleMeter(("frechet",), samples=2)
    for options, message in (
        ({"checkpoint_best": True, "checkpoint_by": "kernel"}, "checkpoint_by kernel needs it to be measured"),
        ({"checkpoint_by": "frechet"}, "says which checkpoint is the best: add checkpoint_best"),
    ):
        with pytest.raises(pd.InputError, match=message):
            make_trainer(meter=meter, **options)
    with pytest.raises(pd.InputError, match="call begin first"):
        meter(torch.nn.Identity())


@pytest.mark.slow
def test_any_callable_makes_features(make_trainer):
    def brightness(pixels):
        return pixels.float().mean(dim=(1, 2, 3))[:, None].expand(-1, 2)

    trainer = make_trainer(meter=pd.SampleMeter(("kernel",), times=1, samples=4, extractor=brightness))
    trainer.fit(steps=1)
    assert trainer.config.watch.extractor.endswith("brightness") and lines(trainer)[0]["samples"].keys() == {"kernel"}


@pytest.mark.slow
def test_as_a_command(tmp_path, capsys):
    from patch_diffusion.cli import main

    run = str(tmp_path / "run")
    tiny = "--preset digits --resolution 8 --network.width 8 --batch 4 --samples 0 --track"
    tiny += " --watch.samples 4 --watch.times 2"
    words = f"{tiny} --steps 2 --checkpoint-best --checkpoint-by frechet"
    assert main(["train", "digits", "--out", run, *words.split(), "--watch.metrics", "frechet", "memorization"]) == 0
    told = capsys.readouterr().err
    assert "step 1: Frechet distance" in told and "near copies 0.0% (of held-out images: 0.0%)" in told
    assert main(["train", "--out", run, "--steps", "4"]) == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "samples" in line] == [1, 2, 4]
    assert main(["train", "--out", run, "--steps", "6", "--watch.samples", "5"]) == 1
    assert "--allow watch.samples" in capsys.readouterr().err
    assert main(["train", "digits", "--out", str(tmp_path / "a"), *tiny.split(), "--watch.extractor", "none.pt"]) == 1
    assert "watch.times has no effect without watch.metrics" in capsys.readouterr().err


@pytest.mark.slow
def test_measuring_takes_no_minutes_of_the_budget(make_trainer, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("patch_diffusion.training.clock.time.monotonic", lambda: clock[0])

    class Slow(Rising):
        def __call__(self, model):
            clock[0] += 1000
            return super().__call__(model)

    trainer = make_trainer(meter=Slow(1, 1, 1, 1, 1, 1))
    step = trainer.train_step

    def one_second(spent):
        clock[0] += 1
        return step(spent)

    monkeypatch.setattr(trainer, "train_step", one_second)
    trainer.fit(minutes=0.1)
    assert trainer.state.counters.step == 6 and [line["seconds"] for line in lines(trainer)] == [1, 2, 3, 4, 5, 6]
