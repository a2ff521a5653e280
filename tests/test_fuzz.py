"""Whatever a stranger gives: the files of a run, data sets, options and requests that no one meant to write.

Each case is one command or one visit of the page, in a process of its own (`attempts`). It ends with status 0, or with
one line that says what is wrong: no traceback, at most 20 s of CPU time, valid JSON wherever JSON is promised, bounded
memory and bytes written. Memory: a process may take 1.5 GiB more than at its start; what needs more has to say so in a
line. Hostile sizes are far beyond that, or small, so that no case is right and yet needs more.

A valid wish can take for ever: a million steps, a run that is watched until it is complete. So whoever has begun to
compute is interrupted, as by Ctrl-C, after 8 steps of training or 300 evaluations of a network; a watched run after a
second; a job of the page is stopped after 5 s. The 20 s hold for all before that, for the steps, and for the way
out. Several processes are asked for and not started; `--engine.compile`, `--compile`, `--push`, the graphs of `export`,
trackers of other services and extractors that need weights take minutes or a network, and are left out.

The cases are the same each time. ``PATCH_DIFFUSION_FUZZ_CASES`` sets their number in all, ``PATCH_DIFFUSION_FUZZ_SEED``
chooses others. All cases are run: a failure lists each kind of fault with its smallest case.
"""

import base64
import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import sys
import time
import warnings
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st
from PIL import Image

import patch_diffusion
from attempts import Limits, Tally, attempt, faulty, strictly
from hostile import DEEP, NUMBERS, TEXTS, Bytes, Cell, Raw, altered, at, damages_of, hostile, letters, paths_of
from image_files import random_pictures, write_folder, write_zip
from needs import need
from page_client import ask, served
from patch_diffusion.cli import VERBS, main
from patch_diffusion.cli.help import options_of

not_here = pytest.mark.skipif(sys.platform != "linux", reason="needs processes with limits, as Linux has them")
pytestmark = [pytest.mark.slow, not_here]

CASES = int(os.environ.get("PATCH_DIFFUSION_FUZZ_CASES", "80"))
SEED = os.environ.get("PATCH_DIFFUSION_FUZZ_SEED")
MOST_STEPS, MOST_EVALUATIONS, MOST_PROCESSES = 8, 300, 1024
OF_TRAIN = "--samples 0 --checkpoints 2 --log-every 1 --track"
TINY = (
    f"--batch 2 {OF_TRAIN} --engine.device cpu --held-out 0.25 "
    "--network.width 8 --network.blocks 1 --network.multipliers 1 2 --network.attention 1"
).split()


class Wrong(Exception):
    """The page answers what it must not."""


def command(*words):
    """Return the work of a command, which is interrupted when it has computed enough."""

    def work():
        _limit_the_work(lambda: os.kill(os.getpid(), signal.SIGINT))
        if "--follow" in words:
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
            signal.setitimer(signal.ITIMER_REAL, 1.0)
        status = main([str(word) for word in words])
        if status == 0 and "--json" in words:
            sys.stdout.flush()
            said = Path("/proc/self/fd/1").read_text(encoding="utf-8")
            for text in said.splitlines() if "--follow" in words else [said]:
                strictly(text)
        return status

    return work


def _limit_the_work(interrupt):
    """Have ``interrupt`` called by whoever computes for long, start no processes, and use the CPU."""
    import torch

    from patch_diffusion.denoise.denoiser import Denoiser
    from patch_diffusion.training.trainer import Trainer

    def counted(function, most):
        calls = 0

        def call(*arguments, **named):
            nonlocal calls
            calls += 1
            if calls % most == 0:
                interrupt()
            return function(*arguments, **named)

        return call

    Trainer.train_step = counted(Trainer.train_step, MOST_STEPS)
    Denoiser.forward = counted(Denoiser.forward, MOST_EVALUATIONS)
    torch.cuda.is_available = lambda: False

    def run_processes(num, *_):
        assert num <= MOST_PROCESSES, f"{num} processes would be started"
        raise patch_diffusion.InputError("no processes are started here")

    for module in list(sys.modules.values()):
        if module.__name__.startswith("patch_diffusion.") and hasattr(module, "run_processes"):
            vars(module)["run_processes"] = run_processes


def judged(words, folder):
    """How a command ends; a fault if it has changed a file of the data."""
    before = of_data(folder)
    ended = attempt(command(*words), folder, f"patch-diffusion {words[0]}")
    after = of_data(folder)
    changed = [file.name for file, content in before.items() if after.get(file) != content]
    return faulty(ended, f"has changed {changed}") if changed else ended


def of_data(folder):
    """The files of a case's data set and the table of its labels; an image alone may be replaced, as by ``--grid``."""
    given = [folder / "table.csv", *(folder / "data").glob("*")]
    return {file: file.read_bytes() for file in given if file.is_file()}


def with_things(things, folder):
    """A folder with copies of what a command may be given."""
    shutil.copytree(things / "data", folder / "data")
    for name in ("table.csv", "image.png"):
        shutil.copy(things / name, folder)
    shutil.copytree(things / "run", folder / "runs" / "run")


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """A folder with a data set, a table of its labels, a run, its twin, and an image; all is imported that may be."""
    need("starlette", "serve")
    for module in walk_packages(patch_diffusion.__path__, "patch_diffusion."):
        if "exported_code" not in module.name and not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):
                import_module(module.name)
    for name in ("torch._dynamo", "yaml", "uvicorn", "starlette.staticfiles", "rich.console", "PIL.PngImagePlugin"):
        with contextlib.suppress(ImportError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_module(name)
    folder = tmp_path_factory.mktemp("things")
    data = write_folder(folder / "data", random_pictures(num=24, size=(8, 12), channels=1))
    rows = [f"{name},{label}" for name, label in json.loads((data / "dataset.json").read_text())["labels"]]
    (folder / "table.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    shutil.copy(data / "00000.png", folder / "image.png")
    words = f"train {data} --out run --steps 2 {' '.join(TINY)} --ema.lengths 0.1".replace("--samples 0", "--samples 1")
    made = judged(words.split(), folder)
    assert made.outcome == "done", made
    with (folder / "run" / "log.jsonl").open("a") as log:  # as of a run with watch.metrics, which takes longer
        log.write(
            '{"step": 2, "images": 6, "seconds": 0.5, "spent": 1.0, "samples": {"kernel": 0.1, "near_copies": 0.0}}\n'
        )
    return folder


@pytest.fixture
def fuzz(tmp_path, capsys, request):
    """``fuzz(share, one)``: ``one(draw, folder)`` for a share of the cases, and a failure if there was a fault.

    ``draw`` is a `random.Random`: hypothesis would make five of six cases by copying a part of another into it.
    """

    def run(share, one):
        tally = Tally(request.node.name)

        @settings(
            max_examples=max(1, round(share * CASES)),
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.randoms(use_true_random=True))
        def cases(draw):
            folder = tmp_path / "case"
            folder.mkdir()
            try:
                told, ended = one(draw, folder)
                tally.add(told, ended)
            finally:
                shutil.rmtree(folder)

        (cases if SEED is None else seed(int(SEED))(cases))()
        if "PATCH_DIFFUSION_FUZZ_CASES" in os.environ:
            with capsys.disabled():
                print(f"\n{tally.summary}")
        assert not tally.found, tally.told()

    return run


def with_run(things, folder):
    """Copy the run to ``folder / "runs" / "altered"``, beside a sound one; the sound one is not copied but linked."""
    shutil.copytree(things / "run", folder / "runs" / "altered")
    shutil.copytree(things / "run", folder / "runs" / "sound")
    return folder / "runs" / "altered"


VIEWS = {
    "info": "info RUN",
    "info --json": "info RUN --json",
    "follow": "info RUN --follow --json",
    "followed": "info RUN --follow",
    "report": "info RUN --report",
    "side by side": "info SOUND RUN --report side.html",
    "sample": "sample RUN --out pictures --seeds 0-1 --steps 2 --json",
    "sample a checkpoint": "sample RUN/checkpoints/step-00000001 --out pictures --seeds 0 --steps 2",
    "train": "train --out RUN --steps 4",
    "train anew": "train DATA --out RUN --steps 4 --json --ema.lengths 0.1 " + " ".join(TINY),
    "serve": "",
}


def looked_at(view, things, folder, run):
    """How one look at a run ends: by a command, or by the page."""
    if view == "serve":
        return attempt(lambda: visit(folder / "runs", run.name), folder, None)
    words = VIEWS[view].split()
    named = {"RUN": run, "SOUND": run.with_name("sound"), "DATA": things / "data"}
    words = [str(named[word]) if word in named else word.replace("RUN/", f"{run}/") for word in words]
    return judged(words, folder)


FILES = {
    "config.json": ("config.json", 0.20),
    "log.jsonl": ("log.jsonl", 0.10),
    "state.json": ("checkpoints/step-00000002/state.json", 0.10),
    "model.safetensors": ("model.safetensors", 0.02),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_a_run(name, things, fuzz):
    """The altered file of a run that a stranger gives, through all that reads runs."""
    path, share = FILES[name]
    content = (things / "run" / path).read_bytes()

    def one(draw, folder):
        view, sealed = draw.choice(list(VIEWS)), name == "state.json" and draw.random() < 0.8
        damages = damages_of(draw, content, "model", structure=0.0 if name.endswith("tensors") else 0.85)
        run = with_run(things, folder)
        altered(run / path, damages, sealed)
        return f"{view}; {name}: {damages}{' sealed' * sealed}", looked_at(view, things, folder, run)

    fuzz(share, one)


DATA_VERBS = {
    "train": f"train DATA --out new --steps 1 {' '.join(TINY)}",
    "inspect": "inspect DATA --no-forecast --json",
    "prepare": "prepare DATA new.zip --json",
}


def read_as_data(verb, data, folder, *more):
    """How a command ends that reads a data set."""
    words = DATA_VERBS[verb].split()
    return judged([str(data) if word == "DATA" else word for word in words] + list(more), folder)


def test_dataset_json(things, fuzz):
    """The labels beside images, in a folder or a zip."""
    content = (things / "data" / "dataset.json").read_bytes()

    def one(draw, folder):
        verb, zipped, damages = draw.choice(list(DATA_VERBS)), draw.random() < 0.5, damages_of(draw, content)
        data = folder / "data"
        shutil.copytree(things / "data", data)
        altered(data / "dataset.json", damages)
        if zipped:
            data = write_zip(folder / "data.zip", data)
        return f"{verb}; dataset.json{' in a zip' * zipped}: {damages}", read_as_data(verb, data, folder)

    fuzz(0.1, one)


CELLS = [
    *(text for text in TEXTS if len(text) < 400),
    *('"', '"a\nb"', '""', ";", "\t", ",", "=1+1", "00000.png", "./00000.png", "nan", "1.5", "-1", "1" + 20 * "0"),
    *("9" * 5000, "1e3", " 1 ", "None", "1234567890", "\ufeff", "00000.PNG", "x" * DEEP),
]


def test_tables_of_labels(things, fuzz):
    """A CSV of labels that somebody made by hand or by a program of their own."""
    content = (things / "table.csv").read_bytes()

    def damage(draw):
        if draw.random() < 0.2:
            return Bytes.drawn(draw, content)
        how = draw.choice(["file", "label", "label", "label", "row", "lost", "all", "more", "twice"])
        return Cell(how, draw.randrange(25), Raw(draw.choice([draw.choice(CELLS), draw.choice(CELLS), letters(draw)])))

    def one(draw, folder):
        verb, damages = draw.choice(list(DATA_VERBS)), [damage(draw) for _ in range(draw.choice([1, 1, 2]))]
        shutil.copy(things / "table.csv", folder / "table.csv")
        altered(folder / "table.csv", damages)
        labels = ("--data.labels", "table.csv")
        return f"{verb}; table.csv: {damages}", read_as_data(verb, things / "data", folder, *labels)

    fuzz(0.08, one)


BASES = {
    "train": f"train DATA --out new --steps 1 {' '.join(TINY)}",
    "sample": "sample RUN --out new --seeds 0-1 --steps 2 --device cpu --json",
    "evaluate": "evaluate RUN --samples 8 --steps 2 --device cpu --json",
    "edit": "edit RUN IMAGE --extend left=4 --out new --steps 2 --device cpu --json",
    "detect": "detect RUN IMAGE --normal DATA --out new --noises 2 --levels 0.3 --device cpu --json",
    "tune": f"tune RUN --out new --images 8 --batch 2 {OF_TRAIN} --engine.device cpu --json",
    "info": "info RUN --json",
    "inspect": "inspect DATA --no-forecast --engine.device cpu --json",
    "prepare": "prepare DATA new.zip --json",
    "race": f"race DATA --out new --steps 2 --moments 1 --tune 0 {' '.join(TINY)}".replace(OF_TRAIN, ""),
    "import": "import TABLE --out new --json",
    "export": "export RUN --to diffusers --out new --json",
    "serve": "serve RUNS --port 0 --device cpu --json",
    "doctor": "doctor --quick --json",
    "completion": "completion bash --json",
}
_LEFT_OUT = ("--engine.compile", "--compile", "--push", "--public", "--help", "--follow")
_LEFT_OUT_WORDS = {"wandb", "trackio", "tensorboard", "onnx", "torch", "inception", "dinov2"}
ARGUMENTS = [
    *(text for text in TEXTS if len(text) < 400 and "\0" not in text and text != "\ud800"),
    *("None", "True", "--", "-", "=", "{", "1/2=0.6", "1/2=nan", "0/0=1", "1/0=1", "1/2=1e308", "8=1", "left=1", "x=1"),
    *("left=1" + 20 * "0", "0-99999999999", "3,3,3", "5-2", "²-³", "0,", "0-999999", "100000x100000", "8x12", "a=b"),
    *("RUN", "DATA", "TABLE", "IMAGE", "RUNS", "new", ".", "missing", "whole", "patches.whole=2", "\udce9"),
]
NUMERALS = [*NUMBERS, "inf", "-inf", "nan", "1_000", "0x10", "٣", "²", "1e", " 1", "7", "8", "12"]


@pytest.fixture(scope="module")
def offered():
    """The options of each verb, each with the values that it takes."""
    found = {verb: list(options_of(VERBS[verb])) for verb in VERBS}
    return {
        verb: [(name, one.values) for one in options for name in one.names if not name.startswith(_LEFT_OUT)]
        for verb, options in found.items()
    }


def test_options(things, offered, fuzz):
    """Each verb with options and values that nobody meant, in place of sound ones or after them."""

    def value(draw, meant):
        choices = meant.removesuffix(" ...").split("|")
        choices = choices if len(choices) > 1 else []
        pool = [word for word in choices if word not in _LEFT_OUT_WORDS] or draw.choice([ARGUMENTS, NUMERALS])
        if re.search(r"\b[NX]\b", meant):
            pool = NUMERALS
        return draw.choice(pool if draw.random() < 0.8 else ARGUMENTS + NUMERALS)

    def line(draw):
        verb = draw.choice(list(VERBS))
        words = BASES[verb].split()
        for option, meant in draw.choices(offered[verb], k=draw.choice([1, 1, 2])):
            num = 0 if not meant else draw.choice([1, 1, 1, 1, 2, 0]) if " ..." not in meant else draw.randint(0, 3)
            given = [value(draw, meant) for _ in range(num)]
            if option in words and given:
                place = words.index(option)
                words[place : place + 2] = [option, *given]
            else:
                words += [f"{option}={given[0]}"] if num == 1 and draw.random() < 0.3 else [option, *given]
        if draw.random() < 0.1:
            words[draw.randrange(1, len(words))] = draw.choice(ARGUMENTS)
        return [Raw(word) for word in words]

    def one(draw, folder):
        case = line(draw)
        words = list(map(named, case))
        with_things(things, folder)
        if words[0] in ("serve", "doctor"):
            work = {"serve": serve_and_end, "doctor": find_nothing}[words[0]]
            return f"{case}", attempt(lambda: work(words), folder, f"patch-diffusion {words[0]}")
        return f"{case}", judged(words, folder)

    fuzz(0.16, one)


def named(word):
    """The path that a word in capitals stands for."""
    paths = {"DATA": "data", "TABLE": "table.csv", "IMAGE": "image.png", "RUN": "runs/run", "RUNS": "runs"}
    return paths.get(word, str(word))


def serve_and_end(words):
    """The work of ``serve``, whose server ends as soon as it would begin to wait."""
    import uvicorn

    uvicorn.Server.run = lambda self, sockets=None: None
    return command(*words)()


def find_nothing(words):
    """The work of ``doctor`` without its minutes."""
    from patch_diffusion.doctor import diagnose

    diagnose.FULL = diagnose.QUICK = diagnose.Plan(whole=0.0)
    return command(*words)()


YAML_VALUES = [
    *("!!python/object/apply:os.getcwd []", "!!binary x", "2020-13-45", "!!timestamp x", "1:2:3", "~", "0o9"),
    *("&a [*a]", "*b", "!!set {1, 2}", "!x y", "{[1]: 2}", "? [1]\n : 2", "|\n  a\n b", "<<: 1", "%", "- a\n- b"),
    *("[" * 5000, "{a: " * 5000, "\t", '"\\ud800"', "'", "@", "!!int x", "!!float x", "0x", "1e", ".nan", "-.inf"),
    *("{1: 2}", "{null: 1}", "{2020-01-01: 1}"),
    "[&a [x,x,x,x,x,x,x,x], "
    + ", ".join(f"&{b} [{','.join([f'*{a}'] * 8)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "]",
]


def test_options_in_yaml(things, fuzz):
    """A file of options from somebody else."""
    config = json.loads((things / "run" / "config.json").read_text())
    del config["version"], config["model"]
    paths = [path for path in paths_of(config) if len(path) in (1, 2) and isinstance(path[-1], str)]

    def option(draw):
        path = draw.choice(paths)
        value = draw.choice(YAML_VALUES) if draw.random() < 0.3 else hostile(draw, at(config, path))
        *groups, name = path
        if draw.random() < 0.1:
            name = draw.choice(["x", "1", '"\\u001b"', "<<", "[1]", "2020-01-01", "null", "1.5"])
        return "".join(f"{group}:\n  " for group in groups) + f"{name}: {value}\n"

    def one(draw, folder):
        verb = draw.choice(["train", "train", "race", "inspect"])
        text = "".join(option(draw) for _ in range(draw.choice([1, 1, 2]))).encode("utf-8", "surrogatepass")
        damages = [Bytes.drawn(draw, text)] if draw.random() < 0.1 else []
        (folder / "options.yaml").write_bytes(text)
        altered(folder / "options.yaml", damages)
        with_things(things, folder)
        words = [named(word) for word in BASES[verb].split() if word != "--json"]
        ended = judged([*words, "--config", "options.yaml"], folder)
        return f"{verb}; YAML: {Raw(text.decode('utf-8', 'replace'))!r} {damages}", ended

    fuzz(0.08, one)


def checked(answer, wanted=None):
    """The answer of the page, if it may be one: no 500, and JSON where it says so."""
    if answer.status == 500 or not 200 <= answer.status < 600:
        raise Wrong(f"the page answers {answer.status}: {answer.content[:200]}")
    if wanted is not None and answer.status != wanted:
        raise Wrong(f"the page answers {answer.status} in place of {wanted}: {answer.content[:200]}")
    if "json" in answer.headers.get("content-type", "") and answer.content:
        try:
            return strictly(answer.content)
        except (ValueError, RecursionError) as error:
            raise Wrong(f"the page answers with invalid JSON: {error}: {answer.content[:200]}") from None
    return {}


def page_of(folder):
    """The site of a folder, and its application as it is served."""
    from patch_diffusion.web.guard import guarded, own_names
    from patch_diffusion.web.site import Site

    _limit_the_work(lambda: None)
    site = Site(folder, Path("work").absolute(), "cpu")
    return site, guarded(site.app, own_names("127.0.0.1"))


def finished(app, answer, draw):
    """Wait for the job that a request has begun, if it has; stop it if it takes long."""
    job = checked(answer).get("job")
    if job is None:
        return
    for name in ("after", "state", "name"):
        checked(ask(app, "/api/job", {"id": job, name: draw.choice(QUERY_VALUES)}))
        checked(ask(app, "/api/file", {"id": job, "name": draw.choice(QUERY_VALUES)}))
    begun, state, num, stopped = time.monotonic(), "", 0, False
    while state not in ("done", "failed", "stopped"):
        found = checked(ask(app, "/api/job", {"id": job, "state": state, "after": str(num)}), 200)
        state, num = found["state"], num + len(found["events"])
        if not stopped and time.monotonic() - begun > 5:
            stopped = bool(checked(ask(app, "/api/stop", {"id": job}, b""), 200) or True)
    events = checked(ask(app, "/api/job", {"id": job}), 200)["events"]
    for event in events:
        if "file" in event:
            checked(ask(app, "/api/file", {"job": job, "name": event["file"]}))


def visit(folder, name):
    """See the list of runs, of which one is altered, then each of them, and have pictures made by it."""
    _, app = page_of(folder)
    runs = checked(ask(app, "/api/runs"), 200)["runs"]
    if "sound" not in (found := [run["name"] for run in runs]):
        raise Wrong(f"the list has {found} only")
    checked(ask(app, "/api/run", {"name": "sound"}), 200)
    detail = checked(ask(app, "/api/run", {"name": name}))
    for sample in detail.get("samples", [])[:1]:
        checked(ask(app, "/api/picture", {"run": name, "file": sample}), 200)
    wanted = {"models": [{"run": name}], "pictures": 1, "steps": 2}
    finished(app, ask(app, "/api/generate", {}, json.dumps(wanted).encode()), random.Random(0))
    return 0


def png():
    stream = io.BytesIO()
    Image.new("L", (12, 8), 99).save(stream, "PNG")
    return stream.getvalue()


SAMPLE = {"models": [{"run": "run", "checkpoint": 1, "ema_length": None}], "pictures": 2, "steps": 2, "seed": 0}
SAMPLE |= {"label": 1, "solver": "heun", "guidance": 1.5, "tile": None, "resolution": [8, 12], "schedule": "karras"}
_PNG = base64.b64encode(png()).decode()
EDIT = {"model": {"run": "run", "checkpoint": None}, "image": _PNG, "mask": _PNG, "pictures": 1, "steps": 2, "seed": 0}
EXTEND = {"model": {"run": "run"}, "image": _PNG, "extend": {"left": 4}, "pictures": 1, "steps": 2}
RESTORE = {
    "model": {"run": "run"},
    "image": _PNG,
    "restore": "super-resolution",
    "factor": 2,
    "pictures": 1,
    "steps": 2,
}
BODIES = [json.dumps(body).encode() for body in (SAMPLE, SAMPLE, EDIT, EXTEND, RESTORE)]
PATHS = [
    *("/", "/api/runs", "/api/run", "/api/picture", "/api/options", "/api/job", "/api/file", "/api/fit", "/api/stop"),
    *(
        "/api/generate",
        "/api/edit",
        "/static/style.css",
        "/static/",
        "/static/..%2f..%2fpyproject.toml",
        "/static/a%00b",
    ),
    *("/api/runs/", "/API/RUNS", "/x" * 2000, "/static/" + "x" * 300, "/%ff%fe", "/api/%0d%0aX-A:1"),
]
QUERY_VALUES = [
    *(text for text in TEXTS if len(text) < 400),
    "run",
    ".",
    "run/../run",
    "step-00000002.png",
    "own",
    "-1",
    "9" * 5000,
]
HEADERS = {
    "content_type": ["application/json", "application/octet-stream", "text/plain", "", "x" * 3000],
    "content_length": ["0", "1", "1" + 18 * "0"],  # a server lets no other through, see `RAW_REQUESTS`
    "host": ["localhost", "127.0.0.1:7474", "evil.example", "", "[", "[::1", "a:b:c", "%00", "x" * 3000, "é"],
    "origin": ["null", "http://localhost", "http://[", "x", ""],
    "range": [
        "bytes=0-1",
        "bytes=-1",
        "bytes=9-1",
        "bytes=0-0,0-0",
        "bytes=x",
        "x=0-1",
        "bytes=" + "0-1," * 500 + "0-1",
    ],
    "if_none_match": ["*", "x"],
    "transfer_encoding": ["chunked", "x"],
}


PARAMETERS = ["name", "known", "run", "file", "size", "id", "job", "after", "state", "save", "x"]
METHODS = [*[""] * 7, "HEAD", "PUT", "OPTIONS", "DELETE", "GET", "POST", "x"]


def test_requests_to_the_page(things, fuzz):
    """Requests that no page of ours makes, and after each the page answers as before."""

    def request(draw):
        path = draw.choice(PATHS)
        query = {draw.choice(PARAMETERS): draw.choice(QUERY_VALUES) for _ in range(draw.randint(0, 2))}
        headers = {name: draw.choice(HEADERS[name]) for name in draw.choices(list(HEADERS), k=draw.choice([0, 0, 1]))}
        body, damages = None, []
        if path in ("/api/fit", "/api/generate", "/api/edit", "/api/stop") or draw.random() < 0.1:
            body = draw.choice(BODIES)
            if path == "/api/fit":
                body, query = png(), {"run": "run", **query}
                headers = {"content_type": "application/octet-stream", **headers}
            if draw.random() < 0.9:
                damages = damages_of(draw, body, structure=0.0 if path == "/api/fit" else 0.9)
        return path, query, headers, body, damages, draw.choice(METHODS)

    def one(draw, folder):
        path, query, headers, body, damages, method = request(draw)
        shutil.copytree(things / "run", folder / "runs" / "run")
        for damage in damages:
            body = damage.applied(body)

        def work():
            _, app = page_of(folder / "runs")
            text = urlencode(query, errors="surrogatepass")
            answer = ask(app, f"{path}?{text}", None, body, method, **headers)
            finished(app, answer, draw)
            checked(ask(app, "/api/runs"), 200)

        told = {name: Raw(value) for name, value in (query | headers).items()}
        ended = attempt(work, folder, None)
        return f"{method} {Raw(path)!r} {told} {len(body or b'')} bytes: {damages}", ended

    fuzz(0.12, one)


RAW_REQUESTS = [
    b"GET /api/runs HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /api/edit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    *(
        f"POST /api/fit?run=run HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n{{}}".encode("latin-1")
        for length in ("-1", "x", "1" + 30 * "0", "²", "", "1.5", 5000 * "9", "2, 2", "1\r\nContent-Length: 2")
    ),
]


def test_bytes_to_the_port(things, fuzz):
    """Bytes that are no HTTP, or not quite, to the page as it is served; the page answers others as before."""

    def said(port, content, patience=20.0):
        with socket.create_connection(("127.0.0.1", port), 20) as client:
            client.sendall(content)
            client.settimeout(patience)
            told = b""
            try:
                while part := client.recv(2**16):
                    told += part
            except TimeoutError:  # it waits for the rest, and for another request
                client.shutdown(socket.SHUT_WR)
                client.settimeout(20)
                told += b"".join(iter(lambda: client.recv(2**16), b""))
        return told

    def one(draw, folder):
        sent = draw.choice(RAW_REQUESTS)
        damages = [Bytes.drawn(draw, sent) for _ in range(draw.choice([1, 2]))]
        shutil.copytree(things / "run", folder / "runs" / "run")
        for damage in damages:
            sent = damage.applied(sent)

        def work():
            site, _ = page_of(folder / "runs")
            with served(site) as page:
                with contextlib.suppress(ConnectionError):
                    answer = said(page.port, sent, 0.3)
                    if answer.startswith(b"HTTP/1.1 500") or (answer and not answer.startswith(b"HTTP/1.1 ")):
                        raise Wrong(f"the page answers {answer[:300]}")
                last = RAW_REQUESTS[0].replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
                head, _, content = said(page.port, last).partition(b"\r\n\r\n")
                if b" 200 " not in head.partition(b"\r\n")[0]:
                    raise Wrong(f"afterwards the page answers {head[:300]}")
                strictly(content)

        return f"{Raw(sent[:200].decode('latin-1'))!r}", attempt(work, folder, None)

    fuzz(0.04, one)


@pytest.mark.parametrize("verb", sorted({*BASES} - {"import", "serve", "doctor"}))
def test_the_sound_command_works(verb, things, tmp_path):
    """Without which every altered one might be refused for the same reason."""
    folder = tmp_path / "case"
    folder.mkdir()
    with_things(things, folder)
    ended = judged([named(word) for word in BASES[verb].split()], folder)
    assert ended.outcome == "done", ended


@pytest.mark.parametrize("view", VIEWS)
def test_a_sound_run_is_seen(view, things, tmp_path):
    """In each way in which altered ones are looked at."""
    folder = tmp_path / "case"
    folder.mkdir()
    ended = looked_at(view, things, folder, with_run(things, folder))
    assert ended.outcome == "done", ended


def say(*lines, status=1):
    """The work of a command that says these lines on stderr."""

    def work():
        print(*lines, sep="\n", file=sys.stderr)
        return status

    return work


def _in_c():
    sum(range(10**12))


def _in_python():
    while True:
        with contextlib.suppress(BaseException):  # even the error of a limit
            time.monotonic()


def _waiting():
    time.sleep(1000)


def _writing():
    Path("large").write_bytes(bytes(3 * 2**20))


def _half_written():
    Path("a.json.1234.tmp").touch()


def _invalid():
    Path("a.json").write_text('{"a": NaN}')


def _raising():
    raise TypeError("'int' object is not iterable")


def _of_memory():
    bytearray(2**40)


def _dying():
    os.kill(os.getpid(), signal.SIGSEGV)


def _leaving():
    os._exit(7)


@pytest.mark.parametrize(
    ("work", "fault"),
    [
        (_raising, "TypeError: 'int'"),
        (_of_memory, "MemoryError"),
        (_in_c, "more than 1 s of CPU"),
        (_in_python, "more than 1 s of CPU"),
        (_waiting, "no end within"),
        (_dying, "ended by SIGSEGV"),
        (_leaving, "exit status 7"),
        (_writing, "too many bytes"),
        (_half_written, "a half-written file"),
        (_invalid, "invalid JSON in a new file: a.json: NaN"),
        (say("patch-diffusion info: a", "b"), "not one line"),
        (say("patch-diffusion info: a", "patch-diffusion info: b"), "not one line"),
        (say("patch-diffusion info: a", status=0), "a reason to fail"),
        (say("a"), "not one line"),
        (say("patch-diffusion info: \x1b[31m"), "a control character"),
        (say("patch-diffusion info: \x9b31m"), "a control character"),
        (say("patch-diffusion info: " + "x" * 5000), "a line of 5,0"),
        (say("a note", "patch-diffusion info: no é here"), ""),
        (say("a note", status=0), ""),
    ],
)
def test_a_fault_is_found(work, fault, tmp_path):
    folder = tmp_path / "case"
    folder.mkdir()
    limits = Limits(cpu=1, wall=60 if work is not _waiting else 0.5, written=2**20)
    ended = attempt(work, folder, "patch-diffusion info", limits)
    assert ended.fault.startswith(fault) and bool(fault) == bool(ended.fault), ended


def broken(name, function):
    """Replace a function of the package, in the process of the attempt only."""
    module, _, attribute = name.rpartition(".")
    setattr(import_module(f"patch_diffusion.{module}"), attribute, function)


def test_faults_of_the_package_are_found_where_they_are(things, tmp_path):
    """Each way to see a run, with the package broken in one place."""
    folder = tmp_path / "case"
    folder.mkdir()
    run = with_run(things, folder)

    def seen(view, name, function):
        words = [str(run) if word == "RUN" else word for word in VIEWS[view].split()]
        work = command(*words) if words else lambda: visit(folder / "runs", run.name)
        name_said = "patch-diffusion info" if words else None
        return attempt(lambda: broken(name, function) or work(), folder, name_said, Limits(cpu=2))

    loose = json.dumps
    not_json = seen("info --json", "cli.verb.to_json", lambda content: loose({**content, "a": float("nan")}))
    assert not_json.fault == "ValueError: NaN is not JSON"
    body = seen("serve", "web.site.to_json", lambda content, lines: loose({**content, "a": float("inf")}))
    assert "invalid JSON: Infinity" in body.fault
    raised = seen("info", "cli.info.clock", lambda seconds: seconds.no)
    assert raised.fault.startswith("AttributeError") and raised.place.startswith("cli/info.py:")
    of_page = seen("serve", "web.site.read_request", lambda kind, body: 1 / 0)
    assert "the page answers 500" in of_page.fault or "ZeroDivisionError" in of_page.fault
    assert of_page.place.startswith("web/site.py:")
    endless = seen("info", "runs.folder.best_of", lambda checkpoints, by: _in_python())
    assert endless.fault.startswith("more than 2 s of CPU") and endless.place.startswith("runs/folder.py:")
