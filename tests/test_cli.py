import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image

import patch_diffusion as pd
from patch_diffusion.cli import VERBS, main
from patch_diffusion.cli.import_ import Import
from patch_diffusion.cli.sample import Sample
from patch_diffusion.cli.train import Train
from patch_diffusion.cli.verb import Verb
from patch_diffusion.errors import Note
from patch_diffusion.sampling.options import SCHEDULE_NAMES, SOLVER_NAMES
from patch_diffusion.sampling.pictures import write_picture

TINY = (
    "--network.width 8 --network.multipliers 1 2 --network.attention 1 --network.blocks 1 "
    "--optimizer.learning-rate 0.03 --batch 4 --samples 1 --checkpoints 2 --log-every 1"
)


@pytest.fixture
def run(capsys):
    """``run("train ...")``: exit status, stdout and stderr."""

    def call(line, **places):
        words = [str(places.get(word, word)) for word in line.split()]
        status = main(words)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "digits", "--out", str(folder), "--steps", "4", *TINY.split()]) == 0
    return folder


def one_line(text):
    return len(text.strip().splitlines()) == 1 and "Traceback" not in text


@pytest.mark.slow
def test_help_and_version_are_quick_because_torch_is_not_imported():
    for arguments in (["--help"], ["--version"], ["train", "--help"], ["sample", "--help"], ["info", "--help"]):
        code = (
            "import sys; from patch_diffusion.cli import main\n"
            f"try: main({arguments!r})\nexcept SystemExit: pass\n"
            "assert 'torch' not in sys.modules and 'PIL' not in sys.modules and 'pydantic' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def refused_before_torch(lines, folder):
    """Run commands that are to be refused before torch is imported, in one process; return what they say."""
    code = (
        "import sys; from patch_diffusion.cli import main\n"
        "for name in ('onnxruntime', 'h5py', 'schedulefree', 'huggingface_hub', 'datasets'): sys.modules[name] = None\n"
        f"for line in {lines}:\n"
        "    print(line, file=sys.stderr)\n"
        "    assert main(line.split()) and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()[1::2]
    assert len(said) == len(lines), said
    return said


def test_mistakes_that_are_refused_before_torch_is_imported(tmp_path):
    """The names that options take are known without the functions, and libraries are looked for without importing."""
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "config.json").write_text("{}")
    (tmp_path / "i.h5").write_text("")
    mistakes = {
        "sample runs/a --out o --seeds a": "--seeds are numbers below 2^63",
        "sample runs/a --out o --seeds 3-1": "--seeds 3-1 names no seed",
        "sample runs/a --out o --solver x": "there is no solver 'x'; choose from euler",
        "sample runs/a --out o --solver huen": "there is no solver 'huen'; did you mean 'heun'?",
        "sample runs/a --out o --schedule x": "there is no schedule 'x'; choose from karras",
        "sample runs/a --out o --guidance 2 --guide x": "there is no guide 'x'; choose from class",
        "sample runs/a --out o --guidance 2 --guide step:x": "guide step:N is the step of a checkpoint",
        "sample runs/a --out o --guidance 2 --guide runs": "runs holds no run (no config.json), but those in a: give",
        "sample runs --out o": "runs holds no run (no config.json), but those in a: give one of them",
        "sample runs/a/config.json --out o": "runs/a/config.json is a file",
        "edit runs . --mask . --out o": "runs holds no run (no config.json), but those in a: give one of them",
        "edit runs/a . --out o": "say what to do with the image: --mask FILE",
        "edit runs/a . --restore deblur --out o": "restore deblur needs blur",
        "edit runs/a . --mask . --seeds x --out o": "--seeds are numbers below 2^63",
        "evaluate runs/a --metrics fid": "there is no metric 'fid'",
        "evaluate runs/a --solver x": "there is no solver 'x'",
        "export runs --to torch --out o": "runs holds no run (no config.json), but those in a: give one of them",
        "export runs/a --to torch --out runs": "runs is not empty: choose a new or an empty folder",
        "export runs/a --to torch --out i.h5": "i.h5 is a file: give a folder for the export",
        "export runs/a --to diffusers --out o --solver x": "there is no solver 'x'",
        "export runs/a --to diffusers --out o --license MIT!": "a licence is given by its short name",
        "export runs/a --to onnx --out o": "an ONNX file needs onnxruntime: pip install",
        "export runs/a --to torch --out o --push a/b": "--push needs huggingface_hub: pip install",
        "info runs": "runs holds no run (no config.json), but those in a: give one of them",
        "train i.h5 --out o": "reading i.h5 needs h5py: pip install",
        "inspect hf:a": "reading hf:a needs datasets: pip install",
        "train digits --out o --optimizer.kind schedule_free": "optimizer.kind schedule_free needs schedulefree",
        "train runs --out o --data.labels new.csv": "there is no file of labels at new.csv, nor in runs",
        "prepare runs o.zip --data.labels new.csv": "there is no file of labels at new.csv, nor in runs",
    }
    said = refused_before_torch([*mistakes], tmp_path)
    for line, told in zip(said, mistakes.values(), strict=True):
        assert told in line
    assert not (tmp_path / "o").exists()


def test_names_that_options_take_are_those_of_what_they_name():
    assert set(SOLVER_NAMES) == set(pd.SOLVERS) and [*SCHEDULE_NAMES] == [*pd.SCHEDULES]


def test_a_path_at_which_there_is_nothing_is_refused_before_torch_is_imported(tmp_path):
    lines = [
        "sample NEW --out o",
        "sample . --vae NEW --out o",
        "evaluate NEW",
        "evaluate . --data NEW",
        "evaluate . --held-out NEW",
        "evaluate . --reference NEW",
        "edit NEW . --out o",
        "edit . NEW --out o",
        "edit . . --mask NEW --out o",
        "export NEW --to onnx --out o",
        "export . --to onnx --vae NEW --out o",
        "export . --to onnx --evaluation NEW --out o",
        "import NEW --out o",
        "info NEW",
        "info . NEW --report o.html",
        "inspect NEW",
        "inspect --config c.yaml",
        "prepare NEW o.zip",
        "prepare digits o --latents NEW",
        "race NEW --out o",
        "race digits --held-out NEW --out o",
        "train NEW --out o --json o.json",
        "train --out NEW",
        "train --config c.yaml --out o",
        "train digits --config NEW --out o",
    ]
    (tmp_path / "c.yaml").write_text("data: {source: NEW}")
    (tmp_path / "config.json").write_text("{}")  # so that "." is a run
    said = refused_before_torch(lines, tmp_path)
    assert all("NEW" in line for line in said), said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.yaml", "config.json"]


def test_help_shows_every_option(run, capsys):
    import dataclasses

    from patch_diffusion.config import Config

    with pytest.raises(SystemExit) as stopped:
        main(["train", "--help-all"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(Config):
        group = getattr(Config(), field.name)
        names = dataclasses.fields(group) if dataclasses.is_dataclass(group) else [None]
        for name in names:
            option = field.name if name is None else f"{field.name}.{name.name}"
            group_name, _, last = f"--{option.replace('_', '-')}".rpartition(".")
            negated = f"{group_name}.no-{last}"  # a switch that is on
            last = {"start": "--from"}.get(option, last)
            assert (
                option in ("data.source", "network.unet")
                or f"{group_name}.{last}".lstrip(".") in text
                or negated in text
            ), option
    assert all(len(line) <= 80 for line in text.splitlines())


def test_overview(run):
    for line, status in (("", 2), ("--help", 0)):
        found, out, _ = run(line)
        assert found == status and "train" in out and "sample" in out and "info" in out
    assert run("--version")[1].startswith("patch-diffusion ")


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_error():
    for arguments in ("train --help", "--help"):
        command = f"{sys.executable} -m patch_diffusion {arguments} | head -1"
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        assert done.stdout.startswith("usage") and not done.stderr


def test_train_sample_info(trained, run, tmp_path):
    assert sorted(path.name for path in trained.glob("[!.]*")) == [
        "checkpoints",
        "config.json",
        "linear_floor.json",
        "log.jsonl",
        "model.safetensors",
        "report.html",
        "samples",
        "tensorboard",
    ]
    out = tmp_path / "pictures"
    status, text, _ = run(
        "sample RUN --seeds 0-2,7 --out OUT --steps 2 --grid GRID --json", RUN=trained, OUT=out, GRID=tmp_path / "g.png"
    )
    assert status == 0 and json.loads(text) == {
        "samples": 4,
        "out": str(out),
        "grid": str(tmp_path / "g.png"),
        "already": 0,
    }
    assert sorted(path.name for path in out.glob("[!.]*")) == [f"{seed:06d}.png" for seed in (0, 1, 2, 7)] + [
        "samples.json"
    ]
    entries = json.loads((out / "samples.json").read_text())["samples"]
    assert [(entry["seed"], entry["class"], entry["class_name"]) for entry in entries] == [
        (0, 0, "0"),
        (1, 1, "1"),
        (2, 2, "2"),
        (7, 7, "7"),
    ]
    assert entries[0]["settings"]["steps"] == 2 and entries[0]["settings"]["resolution"] == [16, 16]
    status, text, _ = run("info RUN --json", RUN=trained)
    found = json.loads(text)
    assert found["complete"] and found["checkpoints"] == [2, 4] and found["model"]["num_images"] == 1707
    status, text, _ = run("info RUN --json FILE", RUN=trained, FILE=tmp_path / "new" / "described.json")
    assert json.loads((tmp_path / "new" / "described.json").read_text()) == found and "1,707 images" in text
    status, text, _ = run("info RUN", RUN=trained)
    assert status == 0 and "1,707 images" in text and "4 steps" in text
    assert "linear floor 0." in text and "; the floor in brackets" in text
    assert "held out     loss " in text and "16x16 (whole images) " in text


def sampled(run, trained, out, options=""):
    assert run(f"sample RUN --seeds 3 --out OUT --steps 3 {options}", RUN=trained, OUT=out)[0] == 0
    return np.asarray(Image.open(out / "000003.png"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    [
        "--class 5",
        "--steps 2",
        "--solver euler",
        "--solver ancestral",
        "--schedule vp",
        "--sigma-min 0.3",
        "--sigma-max 5",
        "--rho 2",
        "--guidance 4",
        "--resolution 8",
        "--resolution 8 20",
    ],
)
def test_every_sampling_option_changes_the_picture(trained, run, tmp_path, option):
    plain, other = sampled(run, trained, tmp_path / "a"), sampled(run, trained, tmp_path / "b", option)
    assert plain.shape != other.shape or not np.array_equal(plain, other)


@pytest.mark.parametrize(
    ("solver", "option"),
    [
        ("stochastic_heun", "--churn 0.3"),
        ("stochastic_heun", "--churn-min 10"),
        ("stochastic_heun", "--churn-max 1"),
        ("stochastic_heun", "--churn-noise 0.5"),
        ("ancestral", "--eta 0.4"),
    ],
)
def test_every_option_of_a_solver_changes_the_picture(trained, run, tmp_path, solver, option):
    plain = sampled(run, trained, tmp_path / "a", f"--solver {solver}")
    assert not np.array_equal(plain, sampled(run, trained, tmp_path / "b", f"--solver {solver} {option}"))
    settings = json.loads((tmp_path / "b" / "samples.json").read_text())["samples"][0]["settings"]
    name, value = option.removeprefix("--").replace("-", "_").split()
    assert settings["solver"] == solver and settings[name] == float(value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("optimiser.learning_rate", "; did you mean 'optimizer.learning_rate'?"),
        ("network", "; choose from network.dropout, network.label_dropout"),
        ("rulez", "; choose from batch, data.augment.colour, "),
    ],
)
def test_what_cannot_be_allowed_is_told_with_what_can(trained, run, name, said):
    status, _, err = run(f"train --out RUN --allow {name}", RUN=trained)
    assert status == 1 and f"there is no option '{name}' to allow{said}" in err
    assert not any(word in err for word in (" rules", " codec", "parameters", "engine.device", "network.width"))


def test_sample_help_names_every_solver_and_schedule(capsys):
    from patch_diffusion.sampling.solvers import SCHEDULES
    from patch_diffusion.sampling.stochastic import SOLVERS

    with pytest.raises(SystemExit):
        main(["sample", "--help-all"])
    words = set(re.findall(r"\w+", capsys.readouterr().out))
    assert words >= SOLVERS.keys() | SCHEDULES.keys()


def test_sampling_from_a_checkpoint_and_in_other_batches(trained, run, tmp_path):
    plain = sampled(run, trained, tmp_path / "a")
    early = sampled(run, trained / "checkpoints" / "step-00000002", tmp_path / "b")
    batch = sampled(run, trained, tmp_path / "c", "--batch 1 --device cpu --class 3")
    assert not np.array_equal(plain, early)
    entries = [json.loads((tmp_path / name / "samples.json").read_text())["samples"] for name in "ab"]
    assert [each["step"] for (each,) in entries] == [4, 2]
    assert abs(plain.astype(int) - batch).max() <= 1


def test_more_samples_join_those_that_are_there(trained, run, tmp_path):
    sampled(run, trained, tmp_path / "a")
    run("sample RUN --seeds 1 --out OUT --steps 1", RUN=trained, OUT=tmp_path / "a")
    entries = json.loads((tmp_path / "a" / "samples.json").read_text())["samples"]
    assert [(entry["seed"], entry["settings"]["steps"]) for entry in entries] == [(1, 1), (3, 3)]


def test_samples_that_are_there_are_not_made_again(trained, run, tmp_path):
    """They are of the same weights, settings and class; what is missing, and what a grid shows, is made."""
    line, out = "sample RUN --out OUT --seeds 0-3 --steps 1", tmp_path / "out"
    places = {"RUN": trained, "OUT": out}

    def times():
        return {path.stem: path.stat().st_ino for path in out.glob("*.png")}

    def made(line, **more):
        before = times()
        status, text, err = run(f"{line} --json", **places, **more)
        assert status == 0, err
        after = times()
        assert json.loads(text)["already"] == sum(
            before.get(name) == now for name, now in after.items() if int(name) < 4
        )
        return sorted(int(name) for name, now in after.items() if before.get(name) != now)

    assert made(line) == [0, 1, 2, 3]
    entries = (out / "samples.json").read_bytes()
    assert made(line) == [] and (out / "samples.json").read_bytes() == entries
    (out / "000002.png").unlink()
    assert "4 pictures in OUT (3 were there already)".replace("OUT", str(out)) in run(line, **places)[2]
    assert made(line) == []
    assert made(f"{line} --again") == [0, 1, 2, 3]
    assert made(f"{line} --grid GRID", GRID=tmp_path / "grid.png") == [0, 1, 2, 3]
    assert made(f"{line} --class 2") == [0, 1, 3]
    assert made(f"{line} --class 2 --sigma-max 70") == [0, 1, 2, 3]
    places["RUN"] = trained / "checkpoints" / "step-00000002"
    assert made(f"{line} --class 2 --sigma-max 70") == [0, 1, 2, 3]
    guided = f"{line} --guidance 2 --guide"
    assert made(f"{guided} step:4") == [0, 1, 2, 3] and made(f"{guided} step:4") == []


def test_a_picture_says_how_it_was_made(trained, run, tmp_path):
    status, _, _ = run("sample RUN --out OUT --seeds 3 --steps 1", RUN=trained, OUT=tmp_path)
    status, text, _ = run("info PICTURE --json", PICTURE=tmp_path / "000003.png")
    (entry,) = json.loads((tmp_path / "samples.json").read_text())["samples"]
    assert entry.pop("file") == "000003.png" and entry["source"] == str(trained)
    assert status == 0 and json.loads(text) == {**entry, "source": trained.name}
    status, text, _ = run("info PICTURE", PICTURE=tmp_path / "000003.png")
    assert status == 0 and "seed         3\n" in text and "solver       heun\n" in text
    told = "\x1b[31m"
    write_picture(Image.new("L", (1, 1)), tmp_path / "other.png", {told: told, "settings": told})
    assert run("info PICTURE", PICTURE=tmp_path / "other.png")[:2] == (0, "\\x1b[31m     \\x1b[31m\n")


@pytest.mark.filterwarnings("default")
def test_notes_of_the_library_are_one_line(trained, run, tmp_path):
    for options, told in (("--steps 2", True), ("--steps 5", False), ("--steps 2 --solver euler", False)):
        status, _, err = run(f"sample RUN --out OUT --seeds 0 {options}", RUN=trained, OUT=tmp_path / "out")
        note = "heun makes only noise with 2 steps: use 8 or more, or the solver dpm_solver_2m\n"
        assert status == 0 and err == note * told + f"1 picture in {tmp_path / 'out'}\n"
    with pytest.warns(Note):
        pd.Sampling(steps=4, solver="stochastic_heun").solver_for(pd.load(trained, device="cpu"), torch.ones(5))


def test_repeated_seeds_are_one(trained, run, tmp_path):
    for seeds, told in (("1,1,1", "1 picture in"), ("2-4,3-5", "4 pictures in")):
        status, _, err = run(f"sample RUN --out OUT --seeds {seeds} --steps 1", RUN=trained, OUT=tmp_path / seeds)
        assert status == 0 and err.startswith(told)


@pytest.mark.slow
def test_train_continues(trained, run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    status, text, err = run("train --out RUN --json", RUN=folder)
    assert status == 0 and json.loads(text)["progress"]["step"] == 4
    spent = "its budget of 4 steps is spent; to train longer, give more: --steps 8"
    assert f"this run is complete, after 4 steps: {spent}" in err and "trained for" not in err
    status, text, err = run("train --out RUN --steps 6 --json", RUN=folder)
    assert status == 0 and "continuing after step 4" in err and json.loads(text)["progress"]["step"] == 6
    status, text, err = run(f"train digits --out RUN --images 40 {TINY}", RUN=folder)
    assert status == 0 and "this run is complete" in err
    status, _, err = run("train --out RUN --patches.whole 0.3", RUN=folder)
    assert status == 1 and "other options (patches.whole)" in err and one_line(err)


@pytest.mark.slow
def test_a_config_file_changes_a_run_that_continues(trained, run, tmp_path):
    folder, file = tmp_path / "run", tmp_path / "more.yaml"
    shutil.copytree(trained, folder)
    file.write_text("steps: 5\n")
    status, text, _ = run("train --out RUN --config FILE --json", RUN=folder, FILE=file)
    assert status == 0 and json.loads(text)["progress"]["step"] == 5
    file.write_text("images: 5\npatches: {whole: 0.3}\n")
    status, _, err = run("train --out RUN --config FILE", RUN=folder, FILE=file)
    assert status == 1 and "other options (patches.whole)" in err
    status, _, err = run("train --out RUN --preset small", RUN=folder)
    assert status in (1, 2) and "--preset is for a new run" in err and one_line(err)


def test_folders_with_the_names_of_guides(trained, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("class", "crops"):
        (tmp_path / name).mkdir()
    assert run("sample RUN --out OUT --seeds 0 --steps 1", RUN=trained, OUT=tmp_path / "out")[0] == 0


@pytest.mark.slow
def test_a_config_file_a_preset_and_options(run, tmp_path):
    (tmp_path / "options.yaml").write_text("data: {source: digits}\nsteps: 1\nbatch: 9\npatches: {whole: 0.9}\n")
    status, text, _ = run(
        f"train --config FILE --preset digits --out RUN {TINY} --patches.sizes 1/2=0.3 4=0.7 --json",
        FILE=tmp_path / "options.yaml",
        RUN=tmp_path / "run",
    )
    options = json.loads(text)["options"]
    assert status == 0
    assert (options["steps"], options["minutes"], options["batch"]) == (1, None, 4)
    assert options["patches"]["whole"] == 0.9 and options["patches"]["sizes"] == {"1/2": 0.3, "4": 0.7}
    assert options["network"]["dropout"] == 0.0  # the preset's
    assert options["noise"]["sigma_data"] == pytest.approx(0.695, abs=1e-3)


@pytest.mark.slow
def test_an_interrupted_run_continues(tmp_path):
    """As a user: Ctrl-C, exit status 130, and the advice works."""
    folder = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "patch_diffusion",
        "train",
        "digits",
        "--out",
        str(folder),
        "--steps",
        "100000",
        *TINY.split(),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = folder / "log.jsonl"
    for _ in range(600):
        if log.exists() and '"loss"' in log.read_text():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"continue with: patch-diffusion train --out {folder}" in err
    step = int(sorted((folder / "checkpoints").iterdir())[-1].name[5:])
    assert main(["train", "--out", str(folder), "--steps", str(step + 1)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("trian", 2, "did you mean 'train'"),
        ("--verion", 2, "did you mean '--version'"),
        ("train digits", 2, "needs --out RUN"),
        ("train --out NEW", 2, "there is no run to continue in"),
        ("train digits --out NEW --patches.whol 0.3", 2, "perhaps you meant --patches.whole"),
        ("train digits --out NEW --batch few", 2, "--batch"),
        ("train digits --out NEW --network.kind unett", 2, "--network.kind takes ddpmpp, ncsnpp"),
        ("train digits --out NEW --patches.sizes 1/2", 2, "as in 1/2=0.6 1/4=0.4"),
        ("train digits --out NEW --preset smol", 2, "did you mean 'small'"),
        ("train digits --out NEW --config NEW", 2, "cannot read the config file"),
        ("train digits --out NEW --patches.whole 1.2", 1, "between 0 and 1, not 1.2"),
        ("train digits --out NEW --network.width 7", 1, "network.width is a multiple of 4"),
        ("train digits --out NEW --network.kind custom", 1, "from Python"),
        ("train digits --out NEW --resolution 9", 1, "cannot pass the network"),
        ("train digits --out NEW --steps 3 --minutes 2", 1, "not steps and minutes together"),
        ("train digits --out NEW --engine.device abacus", 1, "'abacus' is not there"),
        ("train NOWHERE --out NEW", 1, "there is no data at"),
        ("train EMPTY --out NEW", 1, "is empty"),
        ("train digits --out OTHER", 1, "holds other files (thesis.tex) and no run"),
        ("train digits --out FILE", 1, "is a file"),
        ("train digits --out FILE/run", 1, "Not a directory"),
        ("sample RUN --out FILE/new --seeds 0 --steps 1", 1, "Not a directory"),
        ("sample RUN --out NEW --grid FILE/grid.png --seeds 0 --steps 1", 1, "Not a directory"),
        ("sample RUN --out NEW --grid GRID.png --seeds 0 --steps 1", 1, "is a folder: give the name of a picture"),
        ("evaluate RUN --samples 9 --steps 1 --pairs FILE/pairs.png", 1, "Not a directory"),
        ("inspect digits --most 50 --no-forecast --sheet FILE/sheet.png", 1, "Not a directory"),
        ("info RUN --report FILE/report.html", 1, "Not a directory"),
        ("info RUN --json FILE/told.json", 1, "Not a directory"),
        ("race digits --steps 1 --tune 0 --out FILE/race", 1, "Not a directory"),
        ("prepare digits FILE/new.zip", 1, "Not a directory"),
        ("prepare digits FILE/new --latents EMPTY", 1, "Not a directory"),
        ("export RUN --to torch --out FILE/new", 1, "Not a directory"),
        ("sample NOWHERE --out NEW", 1, "does not exist"),
        ("sample EMPTY --out NEW", 1, "holds no run"),
        ("sample RUN --out NEW --seeds 1-x", 1, "not '1-x'"),
        ("sample RUN --out NEW --seeds 5-1", 1, "names no seed"),
        ("sample RUN --out NEW --seeds 0-3,9-5", 1, "--seeds 9-5 names no seed"),
        ("sample RUN --out NEW --seeds ²", 1, "not '²'"),
        ("sample RUN --out NEW --seeds 9223372036854775808", 1, "below 2^63"),
        (f"sample RUN --out NEW --seeds {'9' * 5000}", 1, "below 2^63"),
        (f"sample RUN --out NEW --class {'9' * 5000}", 1, "there is no class '999"),
        ("sample RUN --out NEW --class ²", 1, "there is no class '²'"),
        ("sample RUN --out NEW --grid grid.jpg", 1, "not as 'grid.jpg'"),
        ("sample RUN --out NEW --class eleven", 1, "there is no class 'eleven'"),
        ("sample RUN --out NEW --class 11", 1, "classes 0 to 9"),
        ("sample RUN --out NEW --solver hune", 1, "there is no solver 'hune'"),
        ("sample RUN --out NEW --schedule kara", 1, "there is no schedule 'kara'; did you mean 'karras'"),
        ("sample RUN --out NEW --churn 3", 1, "churn is not an option of the solver 'heun', only of 'stochastic_heun'"),
        ("sample RUN --out NEW --schedule ve --rho 3", 1, "rho is not an option of the schedule 've'"),
        ("sample RUN --out NEW --solver ancestral --eta 2", 1, "eta is between 0 (no noise) and 1, not 2.0"),
        ("sample RUN --out NEW --sigma-min 0", 1, "0 < sigma_min"),
        (
            "sample RUN --out NEW --resolution 7",
            1,
            "multiples of 2 for this network, not 7x7: take 6x6 or 8x8, or give ti",
        ),
        ("sample CONFIG --out NEW", 1, "config.json is a file: give the --out folder"),
        ("sample ABOVE --out NEW", 1, "holds no run (no config.json), but those in run: give one of them"),
        ("sample RUN --out FILE", 1, "is a file"),
        ("sample RUN --out NEW --guidance nan", 2, "guidance is a finite number, not nan"),
        ("sample RUN --out NEW --sigma-max inf", 2, "sigma_max is a finite number, not inf"),
        ("sample RUN --out NEW --seeds 0-3 --steps 5 --sigma-max 1e30", 1, "4 of 4 images are not finite"),
        ("sample RUN --out NEW --seeds 0-99999999999", 1, "100,000,000,000 pictures, and at most 1,000,000"),
        ("sample RUN --out NEW --grid NEW/000003.png", 1, "is the name of one of the pictures"),
        ("evaluate RUN --samples 20 --steps 2 --metrics frechet --guidance nan", 2, "guidance is a finite number"),
        ("evaluate RUN --samples 20 --steps 2 --metrics frechet --sigma-max 1e30", 1, "20 images are not finite"),
        ("evaluate RUN --json CONFIG", 1, "is read by this command, and would be overwritten"),
        ("train digits --out NEW --optimizer.learning-rate nan", 1, "optimizer.learning_rate is a finite number"),
        ("train digits --out NEW --minutes inf", 1, "minutes is a finite number, not inf"),
        ("sample RUN", 2, "--out"),
        ("info NOWHERE", 1, "does not exist"),
    ],
)
def test_mistakes_get_one_line_and_nothing_is_written(trained, run, tmp_path, line, status, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "grid.png").mkdir()
    for file in ("file", "other/thesis.tex"):
        (tmp_path / file).write_text("")
    places = {name.upper(): tmp_path / name for name in ("new", "nowhere", "empty", "other", "file")}
    places |= {word: tmp_path / word.replace("FILE", "file") for word in line.split() if word.startswith("FILE/")}
    places |= {"ABOVE": trained.parent, "GRID.png": tmp_path / "grid.png"}
    places |= {"NEW/000003.png": tmp_path / "new" / "000003.png", "CONFIG": trained / "config.json"}
    before = sorted(tmp_path.rglob("*"))
    found, out, err = run(line, RUN=trained, **places)
    assert found == status and message in err and one_line(err) and not out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_truncated_picture_is_named_in_the_log(run, make_folder, tmp_path):
    folder = make_folder(120, (8, 8))
    broken = folder / "033.png"
    broken.write_bytes(broken.read_bytes()[:80])
    status, _, err = run(
        f"train PICTURES --out RUN --steps 1 {TINY} --patches.sizes 1/2=1", PICTURES=folder, RUN=tmp_path / "run"
    )
    assert status == 0 and "skipped 033.png" in err
    assert "skipped 033.png" in (tmp_path / "run" / "log.jsonl").read_text()


def test_damaged_runs(trained, run, tmp_path):
    for file, line in (
        ("config.json", "info RUN"),
        ("model.safetensors", "sample RUN --out OUT"),
        ("config.json", "train --out RUN"),
    ):
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(trained, folder)
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: len(content) // 2])
        status, _, err = run(line, RUN=folder, OUT=tmp_path / "out")
        assert status in (1, 2) and f"{folder / file} is damaged" in err and one_line(err)
        assert not (tmp_path / "out").exists()


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("mount"), reason="mounts a tiny disk"
)
def test_a_disk_without_room(run, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a disk")
    try:
        status, _, err = run(f"train digits --out RUN --steps 2 {TINY}", RUN=disk / "run")
        assert status == 1 and "MB of room" in err and one_line(err)
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)


def test_json_goes_to_a_file_in_every_verb(run, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for verb, kind in VERBS.items():
        assert issubclass(kind, Verb) and kind.__name__.lower() == verb
        assert {field.name: field.default for field in fields(kind)}["json"] is None, verb
    status, text, err = run("info RUN --json new/info.json", RUN=trained)
    assert (status, err) == (0, "the result is in new/info.json\n") and "patches" in text
    assert json.loads((tmp_path / "new/info.json").read_text())["complete"]
    status, _, err = run("sample RUN --out OUT --seeds 3 --steps 2 --json told.json", RUN=trained, OUT="out")
    assert status == 0 and err.endswith("1 picture in out\nthe result is in told.json\n")
    assert json.loads((tmp_path / "told.json").read_text())["samples"] == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("info RUN --json RUN/config.json", "is read by this command"),
        ("sample RUN --out OUT --json OUT/samples.json", "is in the folder that the command writes"),
        ("inspect labelled --json labelled/dataset.json", "is read by this command"),
        ("info RUN --json folder.json", "is a folder"),
        ("info RUN --follow --json told.json", "give --json without a file"),
    ],
)
def test_a_file_for_json_takes_no_others_place(run, trained, tmp_path, monkeypatch, line, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "labelled").mkdir()
    (tmp_path / "labelled/dataset.json").write_text("{}")
    before = (trained / "config.json").read_bytes()
    status, _, err = run(line.replace("RUN", str(trained)).replace("OUT", "out"))
    assert status in (1, 2) and reason in err and err.count("\n") == 1
    assert (trained / "config.json").read_bytes() == before and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fails", "reason"),
    [
        (lambda: torch.empty(10**15), "more memory than there is"),
        (lambda: np.empty(10**16), "more memory than there is"),
        (lambda: json.loads("[" * 10**5), "nested too deeply"),
    ],
)
def test_the_limits_of_the_machine_are_one_line(run, monkeypatch, fails, reason):
    """Errors of the allocators and of the parser themselves, wherever they come from."""
    for place in ("run", "parse"):
        with monkeypatch.context() as patched:
            patched.setattr(Verb if place == "parse" else Import, place, lambda *_: fails())
            status, _, err = run("import . --out b")
        assert status == 1 and err.startswith("patch-diffusion import: ") and reason in err and one_line(err)


def test_a_reason_that_quotes_a_long_word_is_cut_in_the_middle(run):
    for line in (4000 * "x", f"import a.pkl --out b {5000 * 'x'}"):
        status, _, err = run(line)
        assert status == 2 and one_line(err) and "xxx ... " in err and 2500 < len(err) < 3100


def test_a_defect_keeps_its_traceback(run, monkeypatch):
    monkeypatch.setattr(Import, "run", lambda _: divmod(1, 0))
    with pytest.raises(ZeroDivisionError):
        run("import . --out b")
    monkeypatch.setattr(Import, "run", lambda _: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        run("import . --out b")


@pytest.mark.parametrize("words", ["--resolution 36x52", "--data.resolution=36x52", "--resolution 36 52"])
def test_a_size_is_given_as_messages_write_it(words):
    command = Train.parse(["digits", *words.split(), "--out", "36x52"])
    assert command.options.data.resolution == (36, 52) and str(command.out) == "36x52"
    assert Sample.parse(["run", "--tile", "8x16", "--resolution=24", "--out", "b"]).sampling.tile == (8, 16)
    assert Train.parse(["digits", "--resolution", "8", "--out", "a"]).options.data.resolution == 8


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--engine.compile"], True),
        (["--engine.compile", "--steps", "3"], True),
        (["--engine.compile", "auto"], "auto"),
        (["--engine.compile=auto"], "auto"),
        (["--engine.no-compile"], False),
        ([], False),
    ],
)
def test_a_switch_with_a_third_value(words, value):
    from patch_diffusion.cli.train import Train

    assert Train.parse(["digits", "--out", "run", *words]).options.engine.compile == value
