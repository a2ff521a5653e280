import json
import os
import shutil

import pytest
import torch
from PIL import Image

import patch_diffusion as pd
from comparable_runs import make_run as trained_run
from page_client import ask
from patch_diffusion.runs.folder import RunFolder
from patch_diffusion.web.runs import GoneError, Runs
from patch_diffusion.web.site import Site


@pytest.fixture
def make_run(tmp_path):
    """``make_run(name)``: the folder of a run that has begun, of 8 x 12 pictures of two classes."""

    def make(name, **facts):
        from patch_diffusion.config import Config
        from patch_diffusion.runs.folder import ModelFacts

        known = {
            "image_channels": 3,
            "resolution": (8, 12),
            "num_classes": 2,
            "class_names": ("cat", "dog"),
            "num_images": 64,
            "sigma_data": 0.5,
            "parameters": 1234,
            **facts,
        }
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir(parents=True)
        folder.write_config(Config(), ModelFacts(**known))
        return folder

    return make


def log(folder, step, loss=0.5):
    line = {"step": step, "images": 4 * step, "seconds": 0.1 * step, "spent": step / 100, "learning_rate": 1e-3}
    with folder.log_file.open("a") as file:
        file.write(json.dumps({**line, "loss": {"8x12": loss, "4x6": 2 * loss}}) + "\n")


def test_runs_are_found_at_any_depth_of_up_to_three(make_run, tmp_path):
    for name in ("runs/one", "runs/race/whole-seed0", "runs/a/b/c/deep", "runs/a/b/c/d/too-deep", "runs/.hidden"):
        make_run(name)
    make_run("runs/one/inside-another")
    (tmp_path / "runs" / "empty").mkdir()
    assert Runs(tmp_path / "runs").names() == ["a/b/c/deep", "one", "race/whole-seed0"]
    assert Runs(tmp_path / "runs" / "one").names() == ["."]
    assert Runs(tmp_path / "nowhere").names() == []


@pytest.mark.parametrize(
    "name",
    ["..", "../secret", "one/../../secret", "one/..", "/etc", "", "one/", "./one", "one\\..", "one\0", "link", "none"],
)
def test_names_lead_nowhere_else(make_run, tmp_path, name):
    make_run("runs/one")
    make_run("secret")
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "secret")
    runs = Runs(tmp_path / "runs")
    assert runs.names() == ["one"]
    with pytest.raises(GoneError):
        runs.find(name)


def test_pictures_lead_nowhere_else(make_run, tmp_path):
    folder = make_run("runs/one")
    secret = tmp_path / "secret.png"
    Image.new("L", (2, 2)).save(secret)
    folder.sample_file(1).parent.mkdir()
    Image.new("L", (2, 2)).save(folder.sample_file(1))
    folder.sample_file(2).symlink_to(secret)
    runs = Runs(tmp_path / "runs")
    assert runs.picture("one", "step-00000001.png") == folder.sample_file(1)
    for file in ("step-00000002.png", "../config.json", "../samples/step-00000001.png", str(secret)):
        with pytest.raises(GoneError, match="no picture"):
            runs.picture("one", file)


def test_a_run_that_is_trained_progresses(make_run, tmp_path):
    folder, runs = make_run("one"), Runs(tmp_path)
    first = runs.detail("one")
    assert (first["state"], first["step"], first["charts"], first["has_model"]) == ("stopped", 0, "", False)
    assert first["model"]["classes"] == 2 and first["model"]["stride"] == 4 and first["model"]["editable"]
    log(folder, 10)
    second = runs.detail("one", first["version"])
    assert second["step"] == 10 and second["spent"] == 0.1 and second["loss"] == 0.75 and "svg" in second["charts"]
    assert "charts" not in runs.detail("one", second["version"])
    log(folder, 100, loss=0.25)
    third = runs.detail("one", second["version"])
    assert third["state"] == "complete" and ">100<" in third["standing"]
    assert runs.overview()[0]["loss"] == 0.375 and third["few"] and not first["few"]


def test_who_trains_is_told(make_run, tmp_path):
    from patch_diffusion.runs.lock import locked

    folder, runs = make_run("one"), Runs(tmp_path)
    with locked(folder.path):
        assert runs.overview()[0]["state"] == "training" and "process" in runs.overview()[0]["trainer"]
    assert runs.overview()[0]["state"] == "stopped"


def test_runs_that_go_or_are_damaged_leave_the_others(make_run, tmp_path):
    for name in ("one", "two", "three", "four"):
        log(make_run(name), 10)
    runs = Runs(tmp_path)
    before = runs.detail("one")
    shutil.rmtree(tmp_path / "one")
    (tmp_path / "two" / "config.json").write_text("{")
    (tmp_path / "three" / "log.jsonl").write_text('{"step": 1, "loss": 3, "spent": "half"}\n')
    found = {run["name"]: run for run in runs.overview()}
    assert set(found) == {"two", "three", "four"} and found["four"]["step"] == 10
    assert "damaged" in found["two"]["damaged"] and found["three"]["step"] == 0  # its log has no sound line
    with pytest.raises(GoneError, match="no run 'one'"):
        runs.detail("one")
    make_run("one")
    again = runs.detail("one", before["version"])
    assert again["step"] == 0 and again["charts"] == ""


def facts(**facts):
    """Alter the facts about the model in a run's config.json."""

    def alter(folder):
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**content, "model": {**content["model"], **facts}}))

    return alter


def logged(**values):
    """Add a line with these values to a run's log."""
    known = {"step": 210, "images": 1, "seconds": 1.0, "spent": 0.5, "learning_rate": 1e-3, "loss": {"16x16": 0.5}}

    def alter(folder):
        with (folder / "log.jsonl").open("a") as file:
            file.write(json.dumps({**known, **values}) + "\n")

    return alter


def holding(name, content):
    """Write a file of the run."""

    def alter(folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)

    return alter


def with_folder(name):
    def alter(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir(parents=True)

    return alter


def with_pipe(name):
    """A reader of it waits for ever."""

    def alter(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(folder / name)

    return alter


def with_link(name, target):
    def alter(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return alter


NAN, INFINITE, DEEP = float("nan"), float("inf"), "[" * 100_000
STATE = "checkpoints/step-00000200/state.json"
STRANGE = {
    "a resolution that is not finite": facts(resolution=[NAN, NAN]),
    "a number of classes that is not finite": facts(num_classes=NAN),
    "a number of parameters that is not finite": facts(parameters=INFINITE),
    "no number of parameters": facts(parameters=None),
    "a number of images in words": facts(num_images="x"),
    "one class name": facts(class_names=5),
    "lists as class names": facts(class_names=[[1]]),
    "a codec that is a number": facts(codec=5),
    "a codec of words": facts(codec={"dtype": "uint8", "low": "x", "high": 1}),
    "channels that are a list": facts(image_channels=[]),
    "deep options": holding("config.json", DEEP),
    "a deep log": holding("log.jsonl", DEEP + "\n"),
    "a deep state": holding(STATE, DEEP),
    "a share that is not finite": logged(spent=NAN),
    "a share below all": logged(spent=-INFINITE),
    "a loss that is not finite": logged(loss={"16x16": NAN, "8x8": INFINITE}),
    "seconds that are not finite": logged(seconds=INFINITE),
    "skipped steps in words": logged(skipped="x"),
    "a step of 400 digits": holding("log.jsonl", '{"step": ' + "1" * 400 + "}\n"),
    "a loss in words in a state": holding(STATE, '{"held_out": "x"}'),
    "a loss of 400 digits in a state": holding(STATE, '{"held_out": ' + "1" * 400 + "}"),
    "a checkpoint of no number": with_folder("checkpoints/step-²"),
    "a log that is a folder": with_folder("log.jsonl"),
    "a picture that is a folder": with_folder("samples/step-00000999.png"),
    "a log that is a pipe": with_pipe("log.jsonl"),
    "a state that is a pipe": with_pipe(STATE),
    "a lock that is a pipe": with_pipe(".lock"),
    "a picture that is a pipe": with_pipe("samples/step-00000999.png"),
    "a log that has no end": with_link("log.jsonl", "/dev/zero"),
    "a log that leads to itself": with_link("log.jsonl", "log.jsonl"),
    "a picture that leads to itself": with_link("samples/step-00000999.png", "step-00000999.png"),
}


def strict(answer):
    """The JSON of an answer, which has no NaN."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(answer.content, parse_constant=refuse)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    for name in ("sound", "strange"):
        trained_run(folder / name, samples=1, steps=20)
    return folder


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("alter", STRANGE.values(), ids=STRANGE)
def test_a_strange_run_spoils_nothing(two_runs, tmp_path, alter):
    shutil.copytree(two_runs, tmp_path / "runs")
    alter(tmp_path / "runs" / "strange")
    site = Site(tmp_path / "runs", tmp_path / "work", "cpu")
    listed = {run["name"]: run for run in strict(ask(site.app, "/api/runs"))["runs"]}
    assert listed["sound"]["step"] == 20
    told = listed["strange"].get("damaged", "")
    assert len(told.splitlines()) <= 1
    whole = ask(site.app, "/api/run", {"name": "strange"})
    assert whole.status in ({400} if told else {200, 400}) and strict(whole)
    assert ask(site.app, "/api/run", {"name": "sound"}).status == 200
    for path, query, body in (
        ("/api/picture", {"run": "strange", "file": "step-00000020.png"}, None),
        ("/api/picture", {"run": "strange", "file": "step-00000999.png"}, None),
        ("/api/fit", {"run": "strange"}, b"no picture"),
    ):
        assert ask(site.app, path, query, body).status in (200, 400, 404)


def test_links_that_lead_to_themselves_leave_the_others(make_run, tmp_path):
    make_run("one")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    runs = Runs(tmp_path)
    assert runs.names() == ["one"]
    with pytest.raises(GoneError):
        runs.find("loop")


def test_a_server_that_begins_anew_has_other_versions(make_run, tmp_path):
    folder = make_run("one")
    log(folder, 10)
    before = Runs(tmp_path).detail("one")
    log(folder, 100)
    assert ">100<" in Runs(tmp_path).detail("one", before["version"])["standing"]


def test_imported_runs_and_models_of_other_images(make_run, tmp_path):
    make_run("one", num_images=0, codec={"dtype": "float32", "low": -1.0, "high": 1.0}, image_channels=5)
    found = Runs(tmp_path).overview()[0]
    assert found["state"] == "imported" and not found["model"]["editable"]


@pytest.mark.slow
def test_models_are_loaded_anew_where_the_weights_have_changed(make_trainer, tmp_path):
    from patch_diffusion.web.models import Models

    make_trainer("run", checkpoints=2).fit(steps=2)
    models, folder = Models("cpu"), RunFolder(tmp_path / "run")
    newest = models.load(folder)
    assert models.load(folder) is newest and models.load(folder, 2) is not newest
    first = models.load(folder, 1)
    assert not torch.equal(first.module.first.weight, newest.module.first.weight)  # pyright: ignore[reportAttributeAccessIssue]
    shutil.copy(folder.checkpoint(1) / "ema.safetensors", folder.model_file)
    assert torch.equal(models.load(folder).module.first.weight, first.module.first.weight)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(pd.InputError, match="checkpoints of the steps 1, 2"):
        models.load(folder, 7)
