import base64
import io
import json
import re
import shlex
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import patch_diffusion as pd
from page_client import ask
from patch_diffusion.cli import main
from patch_diffusion.web.limits import at_once
from patch_diffusion.web.requests import MOST_PICTURES
from patch_diffusion.web.site import Site

pytestmark = pytest.mark.slow

TINY = (
    "--data.classes True --network.width 8 --network.multipliers 1 2 --network.attention 1 --network.blocks 1 "
    "--network.dropout 0 --batch 4 --samples 1 --checkpoints 2 --steps 4 --ema.lengths 0.05 0.1 "
    "--optimizer.learning-rate 0.03 --noise.p-std 1.2 --noise.weight process"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    assert main(["train", "digits", "--out", str(folder / "digits"), *TINY.split()]) == 0
    return folder


@pytest.fixture(scope="module")
def site(runs, tmp_path_factory):
    return Site(runs, tmp_path_factory.mktemp("work"), "cpu")


DIGITS = {"models": [{"run": "digits"}]}
EDIT = {"model": {"run": "digits"}, "image": "IMAGE"}
FILL = {**EDIT, "mask": "MASK"}


def content(answer):
    assert answer.status == 200, answer.content
    return json.loads(answer.content)


def asked_for(site, path, **wanted):
    """The state in which it ended, its events by kind, and its name."""
    job = content(ask(site.app, path, {}, json.dumps(wanted).encode()))["job"]
    return *over(site, job), job


def over(site, job):
    """The state in which a job ended, and its events by kind."""
    found = {"state": "", "events": []}
    while found["state"] not in ("done", "failed", "stopped"):
        query = {"id": job, "state": found["state"], "after": str(len(found["events"]))}
        found = content(ask(site.app, "/api/job", query))
    found = content(ask(site.app, "/api/job", {"id": job}))
    kinds = {}
    for event in found["events"]:
        kinds.setdefault(event["event"], []).append(event)
    return found, kinds


def picture(site, job, name):
    answer = ask(site.app, "/api/file", {"job": job, "name": name})
    assert answer.status == 200 and answer.headers["content-type"].startswith("image/")
    return np.array(Image.open(io.BytesIO(answer.content)))


def text_of(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_pictures_are_those_of_generate_and_every_step_is_seen(site, runs):
    found, kinds, job = asked_for(
        site, "/api/generate", models=[{"run": "digits"}], seed=3, pictures=5, steps=4, guidance=2.0, solver="euler"
    )
    assert found["state"] == "done", found
    model, seen = pd.load(runs / "digits", device="cpu"), []
    same = list(
        pd.generate(
            model,
            range(3, 8),
            pd.Sampling(steps=4, guidance=2.0, solver="euler"),
            callback=lambda step: seen.append(step),
        )
    )
    for sample, event in zip(same, kinds["sample"], strict=True):
        assert (event["seed"], event["label"]) == (sample.seed, str(sample.label))
        assert (picture(site, job, event["file"]) == sample.pixels[0].numpy()).all()
    assert [event["step"] for event in kinds["step"]] == [1, 2, 3, 4]
    for event, step in zip(kinds["step"], seen, strict=True):
        sheet = picture(site, job, event["sheet"])
        assert sheet.shape == (2 * 16, 3 * 16) and event["columns"] == 3 and event["sigma"] == float(step.sigma)
        expected = model.codec.decode(step.denoised.float())
        assert (sheet[16:, 16:32] == expected[4, 0].numpy()).all()
    assert kinds["finished"][0]["settings"] == same[0].settings


def test_the_archive_has_the_settings_and_the_command_that_gives_the_same(site, tmp_path, monkeypatch):
    _, kinds, job = asked_for(site, "/api/generate", models=[{"run": "digits"}], pictures=2, steps=2, label=7)
    answer = ask(site.app, "/api/file", {"job": job, "name": "pictures.zip", "save": "1"})
    assert "attachment" in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        names = ["000000.png", "000001.png", "command.txt", "grid.png", "samples.json"]
        assert sorted(archive.namelist()) == [f"1-digits/{name}" for name in names]
        entry = json.loads(archive.read("1-digits/samples.json"))["samples"][1]
        command, made = archive.read("1-digits/command.txt").decode(), archive.read("1-digits/000001.png")
    assert (entry["seed"], entry["class"], entry["settings"]["steps"]) == (1, 7, 2)
    assert command.strip() == kinds["finished"][0]["command"]
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command)[1:]) == 0
    assert (tmp_path / "pictures" / "000001.png").read_bytes() == made


def test_checkpoints_side_by_side(site, runs):
    models = [{"run": "digits", "checkpoint": 2}, {"run": "digits"}]
    _, kinds, job = asked_for(site, "/api/generate", models=models, pictures=1, steps=2)
    assert [event["model"] for event in kinds["sample"]] == [0, 1]
    first, second = (picture(site, job, event["file"]) for event in kinds["sample"])
    early = next(pd.generate(pd.load(runs / "digits", checkpoint=2, device="cpu"), [0], steps=2))
    assert (first == early.pixels[0].numpy()).all() and (first != second).any()
    assert "checkpoints/step-00000002" in kinds["finished"][0]["command"]


def test_what_a_mask_leaves_is_kept_and_edges_are_extended(site, tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    image, mask = random.integers(0, 256, (16, 16), dtype=np.uint8), np.zeros((16, 16), np.uint8)
    mask[4:12, :8] = 255
    wanted = {"model": {"run": "digits"}, "image": text_of(image), "steps": 2, "pictures": 2, "label": 3}
    found, kinds, job = asked_for(site, "/api/edit", **wanted, mask=text_of(mask))
    assert found["state"] == "done", found
    made = picture(site, job, kinds["sample"][0]["file"])
    assert (made[mask == 0] == image[mask == 0]).all() and (made[mask == 255] != image[mask == 255]).any()
    found, kinds, job = asked_for(
        site, "/api/edit", **wanted, extend={"left": 8, "bottom": 4}, coords="extend", covariance="isotropic"
    )
    assert found["state"] == "done", found
    made = picture(site, job, kinds["sample"][1]["file"])
    assert made.shape == (20, 24) and (made[:16, 8:] == image).all()
    with zipfile.ZipFile(
        io.BytesIO(ask(site.app, "/api/file", {"job": job, "name": "pictures.zip"}).content)
    ) as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(kinds["finished"][0]["command"])[1:]) == 0
    assert (np.array(Image.open(tmp_path / "edited" / "000001.png")) == made).all()


def pictured(wanted):
    """With a picture and a mask in place of their names."""
    random, mask = np.random.default_rng(0), np.zeros((16, 16), np.uint8)
    mask[4:12, :8] = 255
    pictures = {"IMAGE": text_of(random.integers(0, 256, (16, 16), dtype=np.uint8)), "MASK": text_of(mask)}
    return {name: pictures.get(value, value) if isinstance(value, str) else value for name, value in wanted.items()}


GUIDED = {"guidance": 4.0, "guide": "class"}
LARGE = {"resolution": [16, 24]}
TILED = {"resolution": [20, 22], "tile": 8}
BLURRED = {"restore": "deblur", "blur": 1}
WIDER = {"extend": {"left": 8}}
MASKED = {"mask": "MASK"}


@pytest.mark.parametrize(
    ("path", "base", "option"),
    [
        ("generate", {}, {"models": [{"run": "digits", "ema_length": 0.2}]}),
        ("generate", {}, {"models": [{"run": "digits", "checkpoint": 2}]}),
        ("generate", {}, {"seed": 7}),
        ("generate", {}, {"label": 3}),
        ("generate", {}, {"steps": 3}),
        ("generate", {}, {"solver": "euler"}),
        ("generate", {}, GUIDED),
        ("generate", GUIDED, {"guide": "crops"}),
        ("generate", {**GUIDED, "guide": "crops"}, {"guide": "crops:1/4"}),
        ("generate", GUIDED, {"guide": "step:2"}),
        ("generate", GUIDED, {"guide": "ema:0.2"}),
        ("generate", GUIDED, {"guidance_interval": [0.5, 100]}),
        ("generate", {}, LARGE),
        ("generate", LARGE, {"coords": "extend"}),
        ("generate", {}, {"tile": 8}),
        ("generate", TILED, {"overlap": 4}),
        ("generate", TILED, {"coords": "stretch"}),
        ("edit", MASKED, {"model": {"run": "digits", "ema_length": 0.2}}),
        ("edit", MASKED, {"seed": 7}),
        ("edit", MASKED, {"label": 3}),
        ("edit", MASKED, {"steps": 3}),
        ("edit", MASKED, {"covariance": "isotropic"}),
        ("edit", MASKED, {"guidance": 4.0, "guide": "crops"}),
        ("edit", {**MASKED, "label": 3}, GUIDED),
        ("edit", {**MASKED, "label": 3, **GUIDED}, {"guidance_interval": [0.001, 0.5]}),
        ("edit", {**MASKED, "covariance": "isotropic"}, {"tile": 8}),
        ("edit", {**MASKED, "tile": 8}, {"overlap": 4}),
        ("edit", WIDER, MASKED),
        ("edit", WIDER, {"coords": "extend"}),
        ("edit", {"restore": "super-resolution"}, {"factor": 3}),
        ("edit", {"restore": "super-resolution"}, {"noise": 30}),
        ("edit", {"restore": "super-resolution"}, {"coords": "extend"}),
        ("edit", BLURRED, {"blur": 1.5}),
        ("edit", BLURRED, {"noise": 30}),
        ("edit", BLURRED, {"covariance": "network"}),
        ("edit", {"restore": "denoise", "noise": 9}, {"noise": 30}),
    ],
)
def test_every_option_changes_the_picture_and_stands_in_the_command(site, path, base, option, tmp_path, monkeypatch):
    made = []
    for wanted in (base, {**base, **option}):
        wanted = {**(DIGITS if path == "generate" else EDIT), "pictures": 1, "steps": 2, **wanted}
        found, kinds, job = asked_for(site, f"/api/{path}", **pictured(wanted))
        assert found["state"] == "done", found
        made.append(picture(site, job, kinds["sample"][0]["file"]))
    assert made[0].shape != made[1].shape or (made[0] != made[1]).any()
    with zipfile.ZipFile(
        io.BytesIO(ask(site.app, "/api/file", {"job": job, "name": "pictures.zip"}).content)
    ) as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(kinds["finished"][0]["command"])[1:]) == 0
    written = "pictures" if path == "generate" else "edited"
    (same,) = [np.array(Image.open(file)) for file in (tmp_path / written).glob("*.png")]
    # The page gives a network other numbers of crops at a time than the command, and so to other kernels.
    rounding = 1 if str(option.get("guide")).startswith("crops") else 0
    assert np.abs(same.astype(int) - made[1].astype(int)).max() <= rounding
    if "guide" in option:
        told = json.loads((tmp_path / written / "samples.json").read_text())["samples"][0]["settings"]["guide"]
        assert told == option["guide"] == kinds["finished"][0]["settings"]["guide"]


@pytest.mark.parametrize(
    ("resolution", "trained", "pictures", "options", "most"),
    [
        ((16, 16), (16, 16), 4, {}, 4),
        ((16, 16), (16, 16), 64, {}, 16),
        ((256, 256), (64, 64), 64, {}, 4),
        ((256, 256), (64, 64), 64, {"backward": True}, 1),
        ((512, 512), (512, 512), 64, {"backward": True}, 1),  # as it was trained
        ((2048, 2048), (2048, 2048), 1, {}, 1),
        ((1024, 1024), (64, 64), 1, {"tile": (64, 64)}, 16),
        ((1024, 1024), (64, 64), 1, {"tile": (256, 256)}, 4),
        ((256, 256), (64, 64), 4, {"tile": (64, 64), "overlap": 32}, 16),
        ((128, 128), (64, 64), 4, {"tile": (64, 64), "overlap": 32, "backward": True}, 1),
        ((0, 0), None, 1, {}, 1),  # which others refuse
    ],
)
def test_how_many_a_network_is_given_together(resolution, trained, pictures, options, most):
    assert at_once(resolution, trained, pictures, **{"tile": None, "backward": False, **options}) == most


@pytest.mark.parametrize("backward", [False, True])
def test_tiles_that_overlap_too_much(backward):
    with pytest.raises(pd.InputError, match="choose a smaller overlap"):
        at_once((256, 256), (32, 32), 4, tile=(8, 8), overlap=7, backward=backward)
    with pytest.raises(pd.InputError, match="too much memory"):
        at_once((256, 256), (64, 64), 4, tile=(64, 64), overlap=48, backward=True)


@pytest.mark.parametrize(
    ("path", "wanted", "reason"),
    [
        ("/api/generate", {"models": [{"run": "digits"}], "pictures": 65}, "pictures can be 1 to 64 here, not 65"),
        ("/api/generate", {"models": [{"run": "digits"}], "steps": 10**9}, "steps can be 1 to 256"),
        ("/api/generate", {"models": []}, "models can be 1 to 4"),
        ("/api/generate", {"models": [{"run": "digits"}], "step": 3}, "step: unexpected"),
        ("/api/generate", {"models": [{"run": "../digits"}]}, "no run '../digits'"),
        ("/api/generate", {"models": [{"run": "digits"}], "seed": "x"}, "seed: "),
        ("/api/generate", {"models": [{"run": "digits"}], "seed": 2**53}, "seed can be 0 to 9,007,199,254,740,928"),
        ("/api/generate", {"models": [{"run": "digits"}], "guidance": "NaN"}, "guidance: "),
        ("/api/generate", {"models": [{"run": "digits"}], "resolution": [16]}, "resolution.1: "),
        ("/api/generate", {"models": [{"run": "digits"}], "resolution": [16, 10**9]}, "width can be 1 to 32,768"),
        ("/api/generate", {"models": [{"run": "digits"}], "tile": 0}, "tile can be 1 to 32,768 here, not 0"),
        ("/api/generate", {"models": [{"run": "digits"}], "coords": "wide"}, "coords: "),
        ("/api/edit", {"model": {"run": "digits"}}, "image: field required"),
        ("/api/edit", EDIT, "say what to do with the image: mask what is to be filled"),
        ("/api/edit", {**EDIT, "extend": {"left": 10**12}}, "not by 1,000,000,000,000 at the left"),
        ("/api/edit", {**EDIT, "restore": "sharpen"}, "restore: "),
        ("/api/edit", {**EDIT, "restore": "deblur"}, "restore deblur needs blur"),
        ("/api/edit", {**EDIT, "restore": "denoise"}, "restore denoise needs noise"),
        ("/api/edit", {**EDIT, "restore": "deblur", "blur": 1, "factor": 2}, "factor is for restore super-resolution"),
        ("/api/edit", {**EDIT, "restore": "denoise", "noise": 9, "extend": {"left": 4}}, "do it first"),
        ("/api/edit", {**EDIT, "restore": "denoise", "noise": float("inf")}, "noise: "),
        ("/api/nothing", {}, "there is nothing at"),
    ],
)
def test_what_cannot_be_asked_for(site, path, wanted, reason):
    answer = ask(site.app, path, {}, json.dumps(pictured(wanted)).encode())
    assert answer.status in (400, 404) and reason in json.loads(answer.content)["error"]
    assert ask(site.app, path, {}, b"{").status in (400, 404)
    assert MOST_PICTURES == 64


@pytest.mark.parametrize(
    ("path", "wanted", "reason"),
    [
        ("/api/generate", {"models": [{"run": "digits", "checkpoint": 3}]}, "checkpoints of the steps 2, 4"),
        ("/api/generate", {"models": [{"run": "digits"}], "solver": "hein"}, "did you mean 'heun'"),
        ("/api/generate", {"models": [{"run": "digits"}], "label": 10}, "class 10 does not exist"),
        ("/api/generate", {"models": [{"run": "digits", "ema_length": 0.5}]}, "a share of the training in"),
        ("/api/generate", {**DIGITS, "guide": "crops"}, "for a guidance other than 1"),
        ("/api/generate", {**DIGITS, "guidance_interval": [0, 1]}, "for a guidance other than 1"),
        ("/api/generate", {**DIGITS, "guidance": 2, "guide": "step:3"}, "checkpoints of the steps 2, 4"),
        ("/api/generate", {**DIGITS, "guidance": 2, "guide": "/etc"}, "there is no guide '/etc'"),
        ("/api/generate", {**DIGITS, "guidance": 2, "guide": "ema:x"}, "as in ema:0.02, not 'ema:x'"),
        ("/api/generate", {**DIGITS, "guidance": 2, "guidance_interval": [3, 1]}, "from a lower to a higher"),
        ("/api/generate", {**DIGITS, "resolution": [17, 16]}, "multiples of 2 for this network, not 17x16"),
        ("/api/generate", {**DIGITS, "coords": "repeat"}, "is for tiles"),
        ("/api/generate", {**DIGITS, "overlap": 2}, "give tile, too"),
        ("/api/generate", {**DIGITS, "tile": 32}, "does not fit an image of 16x16"),
        ("/api/generate", {**DIGITS, "sigma_max": 1e30}, "of 16 images are not finite"),
        ("/api/generate", {**DIGITS, "resolution": [2048, 1024], "tile": 16}, "2048x1024 is more than this page makes"),
        ("/api/generate", {**DIGITS, "resolution": [1024, 1024]}, "512x512 are seen at once: choose tiles"),
        ("/api/generate", {**DIGITS, "resolution": [1024, 1024], "tile": 600}, "choose smaller tiles"),
        ("/api/generate", {**DIGITS, "resolution": [1024, 1024], "tile": 16, "pictures": 17}, "makes at most 16"),
        ("/api/edit", {**FILL, "image": "?"}, "not sent as base64"),
        ("/api/edit", {**FILL, "image": "aGFsbG8="}, "no image file that can be read"),
        ("/api/edit", {**EDIT, "extend": {"left": 9}}, "multiples of 2"),
        ("/api/edit", {**EDIT, "extend": {"left": 0}}, "none are given"),
        ("/api/edit", {**EDIT, "extend": {"left": 8000}}, "256x256 are seen at once: choose the quick way"),
        ("/api/edit", {**EDIT, "extend": {"left": 32000}, "covariance": "isotropic"}, "choose tiles"),
        ("/api/edit", {**EDIT, "extend": {"up": 8}}, "no side 'up'"),
        ("/api/edit", {**EDIT, "extend": {"left": -8}}, "at least 0 pixels"),
        ("/api/edit", {**EDIT, "restore": "super-resolution", "factor": 1}, "at least 2, not 1"),
        ("/api/edit", {**EDIT, "restore": "super-resolution", "factor": 10**6}, "is more than this page makes"),
        ("/api/edit", {**EDIT, "restore": "super-resolution", "factor": 40}, "choose tiles"),
        ("/api/edit", {**EDIT, "restore": "deblur", "blur": 9}, "beyond an image of 16x16"),
        ("/api/edit", {**EDIT, "restore": "deblur", "blur": 0}, "above 0 pixels, not 0"),
        ("/api/edit", {**EDIT, "restore": "denoise", "noise": -1}, "above 0, not -1"),
    ],
)
def test_what_a_model_cannot_do(site, path, wanted, reason):
    found, _, _ = asked_for(site, path, **pictured(wanted))
    assert found["state"] == "failed" and reason in found["reason"], found


RUN = '{"models": [{"run": "digits"}], "pictures": 1, "steps": 1'
LONG = "9" * 5000
HOSTILE = {
    "nothing": "",
    "no object": "null",
    "text": '"text"',
    "not UTF-8": b'{"models": [{"run": "\xff"}]}',
    "UTF-16": RUN.encode("utf-16"),
    "deep lists": "[" * 30_000,
    "deep objects": '{"a":' * 10_000,
    "a deep size": f'{RUN}, "resolution": {"[" * 150}{"]" * 150}}}',
    "many names": "{" + ",".join(f'"name{place}": 1' for place in range(4000)) + "}",
    "many models": '{"models": [' + ",".join(["{}"] * 9000) + "]}",
    "a large name": '{"models": [{"run": "' + "a" * 60_000 + '"}]}',
    "a name of many parts": '{"models": [{"run": "' + "a/" * 20_000 + '"}]}',
    "a name with zero": '{"models": [{"run": "digits\\u0000"}]}',
    "a name of half a character": '{"models": [{"run": "\\ud800"}]}',
    "a list as a name": '{"models": [{"run": ["digits"]}]}',
    "a seed that is not a number": f'{RUN}, "seed": NaN}}',
    "a seed that is infinite": f'{RUN}, "seed": Infinity}}',
    "a seed beyond all floats": f'{RUN}, "seed": 1e400}}',
    "a seed of 5,000 digits": f'{RUN}, "seed": {LONG}}}',
    "a seed of 400 digits": f'{RUN}, "seed": {LONG[:400]}}}',
    "half a seed": f'{RUN}, "seed": 0.5}}',
    "a list as a seed": f'{RUN}, "seed": [1]}}',
    "an average that is not a number": '{"models": [{"run": "digits", "ema_length": NaN}]}',
    "a checkpoint of 300 digits": '{"models": [{"run": "digits", "checkpoint": ' + LONG[:300] + "}]}",
    "a checkpoint below zero": '{"models": [{"run": "digits", "checkpoint": -1}]}',
    "a class of 300 digits": f'{RUN}, "label": {LONG[:300]}}}',
    "a guide of 5,000 digits": f'{RUN}, "guidance": 2, "guide": "step:{LONG}"}}',
    "a guide of no size": f'{RUN}, "guidance": 2, "guide": "crops:1/0"}}',
    "a guide of no length": f'{RUN}, "guidance": 2, "guide": "ema:nan"}}',
    "a guide that is a path": f'{RUN}, "guidance": 2, "guide": "../../etc/passwd"}}',
    "guidance beyond all floats": f'{RUN}, "steps": 2, "guidance": 1e308}}',
    "a solver of 5,000 letters": f'{RUN}, "solver": "{LONG}"}}',
    "a noise level of almost nothing": f'{RUN}, "steps": 2, "sigma_min": 1e-320}}',
    "a curve of no noise levels": f'{RUN}, "steps": 2, "rho": -1e308}}',
    "a tile of 400 digits": f'{RUN}, "tile": {LONG[:400]}}}',
    "a side beyond all integers": f'{RUN}, "resolution": [1e308, 1e308]}}',
}
FOUND = '{"model": {"run": "digits"}, "image": IMAGE, "pictures": 1, "steps": 1'
HOSTILE_EDITS = {
    "10 MB of text": "x" * 10 * 2**20,
    "10 MB of brackets": "[" * 10 * 2**20,
    "10 MB of digits": '{"seed": ' + "9" * 10 * 2**20 + "}",
    "10 MB of names": "{" + ",".join(f'"{place:07}":1' for place in range(800_000)) + "}",
    "10 MB of names inside": '{"model": {' + ",".join(f'"{place:07}":1' for place in range(800_000)) + "}}",
    "10 MB of numbers": '{"extend": [' + "1," * 5_000_000 + "1]}",
    "10 MB as an image": '{"model": {"run": "digits"}, "mask": "", "image": "' + "A" * 10 * 2**20 + '"}',
    "an edge beyond all integers": FOUND + ', "extend": {"left": 1e308}}',
    "an edge of 4,000 digits": FOUND + ', "extend": {"left": ' + LONG[:4000] + "}}",
    "a side of 5,000 letters": FOUND + ', "extend": {"' + LONG + '": 2}}',
    "a mask that is no base64": FOUND + ', "mask": "\u00e9"}',
    "a factor of 100 digits": FOUND + ', "restore": "super-resolution", "factor": ' + LONG[:100] + "}",
    "a blur beyond all floats": FOUND + ', "restore": "deblur", "blur": 1e308}',
    "a blur of almost nothing": FOUND + ', "restore": "deblur", "blur": 1e-320}',
    "noise beyond all floats": FOUND + ', "restore": "denoise", "noise": 1e308}',
}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *(pytest.param("/api/generate", body, id=name) for name, body in HOSTILE.items()),
        *(pytest.param("/api/edit", body, id=name) for name, body in HOSTILE_EDITS.items()),
    ],
)
def test_hostile_requests_are_refused_in_one_line(site, capfd, path, body):
    if isinstance(body, str):
        image = text_of(np.zeros((16, 16), np.uint8))
        body = body.replace("IMAGE", f'"{image}"').encode()
    answer = ask(site.app, path, {}, body)
    told = json.loads(answer.content)
    if answer.status == 200:  # only the model shows that it cannot be
        told = over(site, told["job"])[0]
        assert told["state"] == "failed"
    else:
        assert answer.status in (400, 404)
    reason = told.get("error", told.get("reason"))
    assert 0 < len(reason) <= 600 and len(reason.splitlines()) == 1
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("after", [LONG, "²", "-1", "1e3", "", "x"])
def test_events_after_what_is_no_number(site, after):
    _, _, job = asked_for(site, "/api/generate", models=[{"run": "digits"}], pictures=1, steps=1)
    assert ask(site.app, "/api/job", {"id": job, "after": after}).status == 400


def test_what_was_made_is_listed_and_can_be_fetched_again(site):
    models = [{"run": "digits", "checkpoint": 2}, {"run": "digits"}]
    _, kinds, job = asked_for(site, "/api/generate", models=models, pictures=4, seed=5, steps=2)
    asked_for(site, "/api/generate", models=[{"run": "digits"}], steps=10**3 // 4, tile=99)  # which fails
    newest = content(ask(site.app, "/api/jobs"))["jobs"][0]
    assert newest["job"] == job and (newest["seed"], newest["pictures"], newest["made"]) == (5, 4, 8)
    assert [model["checkpoint"] for model in newest["models"]] == [2, None] and not newest["edited"]
    assert newest["settings"] == [kinds["finished"][0]["settings"]] and len(newest["shown"]) == 6
    for name in newest["shown"]:
        assert picture(site, job, name).shape == (16, 16)


def file_of(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb(side):
    """A small file that says it is a picture of this side."""
    content = bytearray(file_of(Image.new("1", (8, 8))))
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def test_an_uploaded_picture_is_brought_to_what_the_model_was_trained_on(site):
    answer = ask(site.app, "/api/fit", {"run": "digits"}, file_of(Image.new("RGB", (64, 32), (255, 0, 0)), "JPEG"))
    made = Image.open(io.BytesIO(answer.content))
    assert answer.status == 200 and made.size == (16, 16) and made.mode == "L"
    turned = Image.new("L", (16, 32))
    turned.paste(255, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter
    answer = ask(site.app, "/api/fit", {"run": "digits"}, file_of(turned, "JPEG", exif=exif, quality=95))
    made = np.array(Image.open(io.BytesIO(answer.content)))
    assert made[:, -6:].min() > 200 and made[:, :6].max() < 50


@pytest.mark.parametrize(
    ("upload", "reason"),
    [
        (file_of(Image.new("L", (6000, 5000))), "30.0 megapixels, and at most 24 are taken"),
        (bomb(60_000), "3600000000 pixels"),
        (file_of(Image.effect_noise((64, 64), 60))[:2000], "cannot be read"),
        (file_of(Image.new("I;16", (8, 8))), "pixels of uint16"),
        (file_of(Image.new("L", (8, 8)), "EPS"), "no image file that can be read"),
        (b"", "no image file that can be read"),
        (b"<svg onload='alert(1)'/>", "no image file that can be read"),
    ],
    ids=["30 megapixels", "a bomb", "cut off", "16 bits", "a program", "nothing", "text"],
)
def test_uploads_that_are_refused(site, upload, reason):
    answer = ask(site.app, "/api/fit", {"run": "digits"}, upload)
    assert answer.status == 400 and reason in json.loads(answer.content)["error"]


def test_an_uploaded_picture_that_keeps_its_size(site):
    array = np.random.default_rng(0).integers(0, 256, (21, 34), dtype=np.uint8)
    answer = ask(site.app, "/api/fit", {"run": "digits", "size": "own"}, file_of(Image.fromarray(array)))
    assert answer.status == 200 and (np.array(Image.open(io.BytesIO(answer.content))) == array[:20]).all()
    for upload, size, reason in [
        (file_of(Image.new("L", (2000, 1000))), "own", "at most 1,048,576, not 1000x2000"),
        (file_of(Image.new("L", (1, 9))), "own", "at least 2x2 pixels"),
        (file_of(Image.new("L", (9, 9))), "any", "size is run or own, not 'any'"),
    ]:
        answer = ask(site.app, "/api/fit", {"run": "digits", "size": size}, upload)
        assert answer.status == 400 and reason in json.loads(answer.content)["error"]


def fit_mask(site, mask, **query):
    """What the page answers to a mask, as a picture and a note, or why it refuses it."""
    answer = ask(site.app, "/api/mask", query, mask if isinstance(mask, bytes) else file_of(mask))
    found = json.loads(answer.content)
    if answer.status != 200:
        return found["error"]
    return np.array(Image.open(io.BytesIO(base64.b64decode(found["mask"])))), found["note"]


def test_a_mask_is_fitted_as_its_image_was(site):
    drawn = Image.new("L", (34, 21))
    drawn.paste(255, (9, 0, 20, 21))
    for size in ("run", "own"):
        query = {"run": "digits", "size": size}
        answer = ask(site.app, "/api/fit", query, file_of(drawn))
        image = np.array(Image.open(io.BytesIO(answer.content)))
        assert answer.headers["original-size"] == "21 34"
        query |= {"image": f"{image.shape[0]} {image.shape[1]}", "original": "21 34"}
        for mask, told in ((drawn, ""), (drawn.point(lambda value: value // 255), "is filled in")):
            made, note = fit_mask(site, mask, **query)
            assert ((image >= 128) * 255 == made).all() and told in note
        assert (fit_mask(site, Image.fromarray(made), **query)[0] == made).all()  # of the size of the image
    made, _ = fit_mask(site, drawn, size="own", image="16 16", original="21 34")  # as for a network of more levels
    assert (made == np.array(drawn)[2:18, 9:25]).all()


@pytest.mark.parametrize(
    ("mask", "query", "reason"),
    [
        (Image.new("L", (8, 9), 255), {}, "the mask is 9x8, but the image is 40x30 or 16x16"),
        (Image.new("L", (16, 16)), {}, "the mask is black everywhere"),
        (Image.linear_gradient("L").resize((16, 16)).point(lambda value: value // 3), {}, "the mask is dark"),
        (Image.new("I;16", (16, 16)), {}, "the mask has pixels of uint16"),
        (b"<svg/>", {}, "the mask is no image file that can be read"),
        (Image.new("L", (16, 16), 255), {"image": "16"}, "image is a height and a width, as in '16 24', not '16'"),
        (Image.new("L", (16, 16), 255), {"original": "1e9 -1"}, "not '1e9 -1'"),
        (Image.new("L", (16, 16), 255), {"size": "any"}, "size is run or own"),
    ],
    ids=["another size", "black", "dark", "16 bits", "text", "one side", "no numbers", "no such way"],
)
def test_masks_that_are_refused(site, mask, query, reason):
    assert reason in fit_mask(site, mask, **{"size": "run", "image": "16 16", "original": "40 30"} | query)


def test_a_job_is_stopped_and_what_it_has_stays(site):
    job = content(
        ask(site.app, "/api/generate", {}, json.dumps({"models": [{"run": "digits"}], "steps": 256}).encode())
    )["job"]
    seen = 0
    while not seen:
        seen = len(content(ask(site.app, "/api/job", {"id": job, "after": "1", "state": "running"}))["events"])
    assert ask(site.app, "/api/stop", {"id": job}, b"").status == 200
    state = "running"
    while state == "running":
        state = content(ask(site.app, "/api/job", {"id": job, "after": "999", "state": "running"}))["state"]
    assert state == "stopped" and ask(site.app, "/api/file", {"job": job, "name": "steps/0-0-0.png"}).status == 200


@pytest.mark.parametrize(
    "target",
    [
        "/static/../server.py",
        "/static/%2e%2e/server.py",
        "/static/",
        "/api/file?job=x&name=../../etc/passwd",
        "/api/run?name=../digits",
        "/api/picture?run=digits&file=../config.json",
        "/api/job?id=../digits",
        "/api/run",
        "/etc/passwd",
        "//",
    ],
)
def test_paths_lead_nowhere_else(site, target):
    answer = ask(site.app, target)
    assert answer.status in (400, 404) and "error" in json.loads(answer.content)


def test_files_of_a_job_lead_nowhere_else(site):
    _, _, job = asked_for(site, "/api/generate", models=[{"run": "digits"}], pictures=1, steps=1)
    for name in ("../../digits/config.json", "/etc/passwd", "1-digits", "", "1-digits/../1-digits/000000.png"):
        assert ask(site.app, "/api/file", {"job": job, "name": name}).status == 404


def test_the_page_names_no_other_host():
    static = Path(pd.__file__).parent / "web" / "static"
    found = [path.read_text(encoding="utf-8") for path in static.iterdir()]
    assert len(found) >= 10
    for text in found:
        text = text.replace('xmlns="http://www.w3.org/2000/svg"', "")  # a name, which is not asked for
        assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", text)
    html = (static / "index.html").read_text(encoding="utf-8")
    for target in re.findall(r'(?:src|href)="([^"]+)"', html):
        assert target.startswith("#") or (static / target.removeprefix("static/")).is_file()


def test_20_requests_at_a_time(site):
    states = []

    def ask(seed):
        found, kinds, _ = asked_for(site, "/api/generate", models=[{"run": "digits"}], seed=seed, pictures=1, steps=1)
        states.append((found["state"], kinds["sample"][0]["seed"]))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(states) == [("done", seed) for seed in range(20)]


def test_images_that_are_no_pictures_are_sampled_and_shown_in_grey(tmp_path):
    import torch

    values = np.random.default_rng(0).normal(size=(8, 5, 8, 8)).astype(np.float32)
    torch.manual_seed(0)
    network = pd.UNet(5, width=8, multipliers=(1, 2), blocks=1)
    options = {"batch": 4, "samples": 0, "checkpoints": 1, "show": False, "track": ()}
    schedule = pd.PatchSchedule(sizes={"1/2": 1.0})
    images = pd.open_images(values, layout="channels_first")
    pd.Trainer(pd.Denoiser(network, 1.0), images, schedule, out=tmp_path / "run", **options).fit(steps=1)
    site = Site(tmp_path, tmp_path / "work", "cpu")
    assert not site.runs.overview()[0]["model"]["editable"]
    found, kinds, job = asked_for(site, "/api/generate", models=[{"run": "run"}], pictures=2, steps=2)
    assert found["state"] == "done", found
    assert kinds["sample"][1]["file"] == "1-run/000001.npy"
    assert picture(site, job, kinds["sample"][1]["shown"]).shape == (8, 5 * 8)
    made = np.load(io.BytesIO(ask(site.app, "/api/file", {"job": job, "name": "1-run/000001.npy"}).content))
    assert made.shape == (5, 8, 8) and made.dtype == np.float32
    assert b"8 bits" in ask(site.app, "/api/fit", {"run": "run"}, file_of(Image.new("L", (8, 8)))).content


@pytest.mark.parametrize("length", ["", "9" * 400, "x", "-1"])
def test_a_length_that_is_no_number(site, length):
    """Over a network the parser of requests refuses it first."""
    answer = ask(site.app, "/api/generate", body=b"{}", content_length=length)
    assert answer.status == 400 and "Content-Length" in json.loads(answer.content)["error"]
