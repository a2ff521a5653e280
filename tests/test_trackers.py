import importlib.util
import io
import json
import threading
import time
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

import patch_diffusion as pd
from needs import need
from patch_diffusion.cli.train import Train
from patch_diffusion.config import Config
from patch_diffusion.config_dict import changed_options
from patch_diffusion.training.hardware.group import Group
from patch_diffusion.training.watching import trackers as module
from patch_diffusion.training.watching.trackers import choose_trackers, scalars
from patch_diffusion.training.watching.tracking import TRACKERS


def log_of(trainer):
    return [json.loads(line) for line in trainer.run.log_file.read_text().splitlines()]


def events(folder):
    """What TensorBoard shows: {name: [(step, value)]} of scalars, of texts and of pictures."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    found.Reload()
    tags = found.Tags()
    return {
        **{name: [(one.step, one.value) for one in found.Scalars(name)] for name in tags["scalars"]},
        **{name: [(one.step, one.encoded_image_string) for one in found.Images(name)] for name in tags["images"]},
        **{
            name: [(one.step, one.tensor_proto.string_val[0].decode()) for one in found.Tensors(name)]
            for name in tags["tensors"]
        },
    }


def losses(lines):
    curves = {}
    for line in lines:
        for size, loss in line.get("loss", {}).items():
            curves.setdefault(f"loss/{size}", []).append((line["step"], pytest.approx(loss, rel=1e-6)))
    return curves


class Recorded:
    """A tracker that keeps what it is told."""

    made: ClassVar[list] = []

    def __init__(self, run, step):
        self.begun, self.told, self.finished = step, [], False
        self.made.append(self)

    def write(self, step, values, note):
        self.told.append((step, values, note))

    def picture(self, step, path):
        self.told.append((step, path))

    def finish(self):
        self.finished = True


@pytest.fixture
def as_tensorboard(monkeypatch):
    """``as_tensorboard(kind)``: that kind takes TensorBoard's place."""
    monkeypatch.setattr(Recorded, "made", [])

    def replace(kind):
        monkeypatch.setitem(TRACKERS, "tensorboard", kind)

    return replace


def test_what_a_line_holds():
    line = {
        "step": 4,
        "images": 30,
        "seconds": 3.0,
        "spent": 0.5,
        "learning_rate": 1e-3,
        "skipped": 2,
        "loss": {"8x8": 0.5, "4x4": float("nan")},
        "loss_by_noise": {"0.05": 0.25, "1": None},
    }
    assert scalars(line, {"seconds": 1.0, "images": 10}) == {
        "loss/8x8": 0.5,
        "noise/0.05": 0.25,
        "learning_rate": 1e-3,
        "spent": 0.5,
        "images": 30,
        "skipped": 2,
        "images_per_second": 10.0,
    }
    held_out = {"step": 4, "seconds": 3.0, "images": 30, "held_out": {"loss": 0.7, "by_noise": {"0.5": 0.6}}}
    assert scalars(held_out, line) == {"held_out/loss": 0.7, "held_out_noise/0.5": 0.6}
    held_out["held_out"]["by_size"] = {"8x8": 0.8}
    assert scalars(held_out, line)["held_out_size/8x8"] == 0.8
    samples = {"step": 4, "seconds": 3.0, "images": 30, "samples": {"frechet": 2.0, "kernel": float("nan")}}
    assert scalars(samples, line) == {"samples/frechet": 2.0}
    assert scalars({"step": 1, "note": "a"}, {}) == {}


@pytest.mark.slow
def test_tensorboard_shows_the_log(make_trainer):
    trainer = make_trainer(track=None, log_every=2, samples=2)
    trainer.fit(steps=8)
    found, lines = events(trainer.run.path / "tensorboard"), log_of(trainer)
    assert {name: curve for name, curve in found.items() if name.startswith("loss/")} == losses(lines)
    rates = [(line["step"], pytest.approx(line["learning_rate"])) for line in lines if "loss" in line]
    assert found["learning_rate"] == rates
    measured = [line for line in lines if "loss" in line]
    speeds = [
        (line["images"] - before["images"]) / (line["seconds"] - before["seconds"])
        for before, line in pairwise(measured)
    ]
    assert [step for step, _ in found["images_per_second"]] == [4, 6, 8]
    assert [speed for _, speed in found["images_per_second"]] == pytest.approx(speeds)
    assert found["notes/text_summary"] == [(line["step"], line["note"]) for line in lines if "note" in line]
    assert "| batch | 4 |" in found["settings/text_summary"][0][1]
    pictures = sorted(trainer.run.path.glob("samples/*.png"))
    assert [step for step, _ in found["samples"]] == [4, 8]
    for path, (_, encoded) in zip(pictures, found["samples"], strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(io.BytesIO(encoded))))


@pytest.mark.slow
def test_a_killed_run_that_continues_shows_each_step_once(make_trainer):
    killed = make_trainer(track=None, log_every=1, checkpoints=2)
    step = killed.train_step

    def kill(spent):
        if killed.state.counters.step == 7:
            raise RuntimeError("killed")
        return step(spent)

    killed.train_step = kill
    with pytest.raises(RuntimeError, match="killed"):
        killed.fit(steps=8)
    folder = killed.run.path / "tensorboard"
    assert max(step for step, _ in events(folder)["learning_rate"]) == 7  # the checkpoint is of step 4
    trainer = make_trainer(track=None, log_every=1, checkpoints=2)
    trainer.fit(steps=8)
    found = events(folder)
    assert [step for step, _ in found["learning_rate"]] == list(range(1, 9))
    assert {name: curve for name, curve in found.items() if name.startswith("loss/")} == losses(log_of(trainer))
    assert len(found["settings/text_summary"]) == 1 and len(list(folder.iterdir())) == 2


@pytest.mark.slow
def test_a_complete_run_opens_nothing(make_trainer, as_tensorboard):
    as_tensorboard(Recorded)
    make_trainer(track=None).fit(steps=2)
    make_trainer(track=None).fit(steps=2)
    assert len(Recorded.made) == 1 and Recorded.made[0].finished


@pytest.mark.slow
def test_what_trackers_are_told(make_trainer, as_tensorboard):
    as_tensorboard(Recorded)
    trainer = make_trainer(track=["tensorboard"], log_every=2, samples=1)
    trainer.fit(steps=4)
    trainer.fit(steps=6)
    first, second = Recorded.made
    assert (first.begun, second.begun) == (0, 4)
    told = [(step, rest[0]) for step, *rest in first.told]
    assert [step for step, _ in told] == [0, 2, 4, 4] and told[-1] == (4, trainer.run.sample_file(4))
    assert [step for step, *_ in second.told] == [4, 6, 6]  # a note: the larger budget raises the learning rate


class Failing(Recorded):
    def write(self, step, values, note):
        if step >= 2:
            raise OSError("[Errno 28] no\nroom")


class Unopened(Recorded):
    def __init__(self, run, step):
        raise SystemExit(3)  # as some libraries do


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "reason"), [(Failing, "[Errno 28] no room"), (Unopened, "SystemExit: 3")])
def test_one_that_fails_is_dropped_with_one_note(make_trainer, as_tensorboard, kind, reason):
    as_tensorboard(kind)
    trainer = make_trainer(track=None, log_every=1)
    trainer.fit(steps=4)
    notes = [line["note"] for line in log_of(trainer) if "note" in line and "tensorboard" in line["note"]]
    assert notes == [f"tensorboard gets no more data of this run ({reason}); training continues"]
    assert trainer.state.counters.step == 4


@pytest.mark.slow
def test_training_does_not_wait_for_one_that_hangs(make_trainer, as_tensorboard, monkeypatch):
    release = threading.Event()

    class Hanging(Recorded):
        def write(self, step, values, note):
            release.wait(60)

    as_tensorboard(Hanging)
    monkeypatch.setattr(module, "_SECONDS_AT_THE_END", 0.1)
    monkeypatch.setattr(module, "_MOST_WAITING", 3)
    trainer = make_trainer(track=None, log_every=1)
    trainer.fit(steps=6)
    assert not release.is_set() and trainer.state.counters.step == 6
    release.set()
    notes = [line["note"] for line in log_of(trainer) if "tensorboard" in line.get("note", "")]
    assert notes == [
        "tensorboard gets no more data of this run (it has not taken the last 3 lines); training continues"
    ]


def test_the_end_is_not_waited_for_long(make_trainer, as_tensorboard, monkeypatch):
    release = threading.Event()

    class Slow(Recorded):
        def finish(self):
            release.wait(60)

    as_tensorboard(Slow)
    monkeypatch.setattr(module, "_SECONDS_AT_THE_END", 0.1)
    trainer = make_trainer(track=None)
    trainer.fit(steps=2)
    assert not release.is_set()
    release.set()
    assert "it did not take the last lines within 0.1 seconds" in log_of(trainer)[-1]["note"]


@pytest.mark.slow
def test_results_are_the_same_with_and_without(make_trainer):
    def result(out, track):
        trainer = make_trainer(out=out, track=track, log_every=1)
        trainer.fit(steps=4)
        return [line["loss"] for line in log_of(trainer) if "loss" in line]

    assert result("a", ()) == result("b", None)
    assert not (make_trainer(out="a").run.path / "tensorboard").exists()


def test_only_the_first_process_tracks(make_trainer, as_tensorboard, monkeypatch):
    as_tensorboard(Recorded)
    monkeypatch.setattr(Group, "is_main", property(lambda self: False))
    make_trainer(track=None).fit(steps=2)
    assert not Recorded.made


def test_choices(monkeypatch, make_trainer):
    assert choose_trackers(None) == ("tensorboard",) and choose_trackers(()) == ()
    assert choose_trackers(["tensorboard", "tensorboard"]) == ("tensorboard",)
    with pytest.raises(pd.InputError, match="no tracker 'tensorbord'; did you mean 'tensorboard'"):
        make_trainer(track=["tensorbord"])
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert choose_trackers(None) == ()
    with pytest.raises(pd.InputError, match=r"needs wandb: pip install 'patch_diffusion\[track\]'"):
        make_trainer(track=["wandb"])


def test_a_folder_of_that_name_is_no_library(tmp_path, monkeypatch):
    (tmp_path / "trackio").mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert importlib.util.find_spec("trackio") is not None and not module._installed("trackio")


@pytest.mark.parametrize(
    ("words", "track"),
    [
        ("", None),
        ("--track", ()),
        ("--track tensorboard", ("tensorboard",)),
        ("--track wandb trackio", ("wandb", "trackio")),
    ],
)
def test_on_the_command_line(words, track, tmp_path):
    command = Train.parse(["digits", "--out", str(tmp_path / "run"), *words.split()])
    assert command.options.track == track


def test_it_may_change_when_a_run_continues():
    assert changed_options(Config(track=()), Config(track=("wandb",))) == []


@pytest.mark.slow
def test_wandb_continues_the_same_run(make_trainer, monkeypatch):
    need("wandb", "track")
    monkeypatch.setenv("WANDB_MODE", "offline")
    make_trainer(track=["wandb"], log_every=1).fit(steps=2)
    time.sleep(1.1)  # its folders are named after the second
    trainer = make_trainer(track=["wandb"], log_every=1, samples=1)
    trainer.fit(steps=4)
    identity = json.loads((trainer.run.path / "tracking.json").read_text())["id"]
    folders = sorted(path.name for path in trainer.run.path.glob("wandb/offline-run-*"))
    assert len(folders) == 2 and all(name.endswith(f"-{identity}") for name in folders)
    assert not [line for line in log_of(trainer) if "wandb" in line.get("note", "")]


@pytest.mark.slow
def test_wandb_without_an_account_does_not_stop_training(make_trainer, monkeypatch):
    wandb = need("wandb", "track")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    trainer = make_trainer(track=["wandb"], log_every=1)
    trainer.fit(steps=2)
    notes = [line["note"] for line in log_of(trainer) if "wandb" in line.get("note", "")]
    assert len(notes) == 1 and "there is no account: wandb login, or WANDB_MODE=offline" in notes[0]


@pytest.mark.slow
def test_trackio_has_each_step_once(make_trainer, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    need("trackio", "track")
    from trackio.sqlite_storage import SQLiteStorage

    make_trainer(track=["trackio"], log_every=1).fit(steps=2)
    trainer = make_trainer(track=["trackio"], log_every=1, samples=1)
    trainer.fit(steps=4)
    [name] = SQLiteStorage.get_runs("patch_diffusion")
    found = SQLiteStorage.get_logs("patch_diffusion", name)
    assert [entry["step"] for entry in found if "learning_rate" in entry] == [1, 2, 3, 4]
    assert [entry["step"] for entry in found if "samples" in entry] == [4]
    assert not capsys.readouterr().out
