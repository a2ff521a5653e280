"""Every option of sampling has an effect or is refused, wherever it is given."""

import inspect
import json
import re
import warnings
from dataclasses import fields, replace
from functools import partial

import pytest
import torch

import patch_diffusion as pd
from page_client import ask
from patch_diffusion.cli import main
from patch_diffusion.deprecation import takes_old_keywords
from patch_diffusion.sampling.editing.edit import OWN_SOLVER
from patch_diffusion.web.commands import sample_command
from patch_diffusion.web.requests import EditRequest, ModelChoice, SampleRequest, read_request
from patch_diffusion.web.site import Site
from refusal import refused

CHURN = {"solver": "stochastic_heun", "churn_max": 60.0}
LARGE = {"resolution": (16, 24)}
# Of each option: others beside which it has an effect, and a value off its default.
CHANGES = {
    "steps": ({}, 3),
    "solver": ({}, "euler"),
    "schedule": ({}, "vp"),
    "sigma_min": ({}, 0.3),
    "sigma_max": ({}, 9.0),
    "rho": ({}, 3.0),
    "shift": ({"schedule": "flow"}, 3.0),
    "churn": (CHURN, 1.0),
    "churn_min": (CHURN, 10.0),
    "churn_max": ({"solver": "stochastic_heun"}, 1.0),
    "churn_noise": (CHURN, 0.5),
    "eta": ({"solver": "ancestral"}, 0.3),
    "guidance": ({}, 3.0),
    "guide": ({"guidance": 3.0}, "crops"),
    "guidance_interval": ({"guidance": 3.0}, (0.1, 5.0)),
    "resolution": ({}, (16, 24)),
    "coords": (LARGE, "extend"),
    "tile": (LARGE, 8),
    "overlap": ({**LARGE, "tile": 8}, 0),
    "batch": ({}, 1),
    "precision": ({}, "bf16"),
    "compile": ({}, True),
}
FIELDS = [field.name for field in fields(pd.Sampling)]
SEEN = [name for name in FIELDS if name != "compile"]  # see test_compiling.py


@pytest.fixture(scope="module")
def known():
    image = torch.randint(0, 256, (1, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return pd.inpainting(image, torch.arange(24).expand(16, 24) < 12)


def result(make):
    """The pixels of two samples, and how many images the solver was given together."""
    together = []
    pixels = [sample.pixels for sample in make(callback=lambda step: together.append(len(step.noisy)))]
    return [each.tolist() for each in pixels], together


def test_every_option_is_here():
    assert list(CHANGES) == FIELDS


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEN)
def test_every_option_changes_what_generate_makes(model, name):
    beside, value = CHANGES[name]
    plain = pd.Sampling(**{"steps": 4, **beside})
    one, other = (
        result(partial(pd.generate, model, [0, 1], options)) for options in (plain, replace(plain, **{name: value}))
    )
    assert one != other


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEN)
def test_every_option_changes_what_edit_makes_or_is_refused(model, known, name):
    beside, value = CHANGES[name]
    edit = partial(pd.edit, model, known, [0, 1], label=1, covariance="isotropic", repeats=1)
    if name in (*OWN_SOLVER, "resolution"):
        with pytest.raises(pd.InputError, match=rf"^{name} has no effect: "):
            edit(pd.Sampling(**{name: value}))
        return
    beside = {option: given for option, given in beside.items() if option != "resolution"}
    plain = pd.Sampling(**{"steps": 4, **beside})
    one, other = (
        result(partial(edit, options)) for options in (plain, replace(plain, **{name: 3 if name == "steps" else value}))
    )
    assert one != other


def test_half_precision_gives_nearly_the_same_pictures(model, monkeypatch):
    """Also of tiles, by a guide, and shared by threads; the settings say it."""
    for options in ({}, {"tile": 8, "resolution": (8, 16)}, {"guidance": 2.0, "guide": "crops"}):
        wide, half = (
            next(pd.generate(model, [1], pd.Sampling(steps=8, precision=precision, **options)))
            for precision in ("fp32", "bf16")
        )
        far = (wide.pixels.float() - half.pixels.float()).abs()
        assert far.max() > 0 and far.mean() < 4
        assert half.settings == {**wide.settings, "precision": "bf16"}
    alone = [sample.pixels for sample in pd.generate(model, [1, 2], pd.Sampling(steps=2, precision="bf16"))]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        shared = [sample.pixels for sample in pd.generate(model, [1, 2], pd.Sampling(steps=2, precision="bf16"))]
    finally:
        torch.set_num_threads(before)
    assert all((one.float() - two.float()).abs().max() <= 1 for one, two in zip(alone, shared, strict=True))


def test_a_number_format_that_is_not_there_is_refused(model):
    with refused("precision", "fp16 is for CUDA"):
        pd.generate(model, [0], pd.Sampling(precision="fp16"))
    with refused("precision", "cannot be 'half'"):
        pd.generate(model, [0], pd.Sampling(precision="half"))  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_steps_are_given_once(model, known):
    (one,), (other,) = (
        pd.generate(model, [0], pd.Sampling(steps=3)),
        pd.generate(model, [0], pd.Sampling(steps=3), steps=3),
    )
    assert torch.equal(one.pixels, other.pixels) and one.settings == other.settings
    with refused("steps"):
        pd.generate(model, [0], pd.Sampling(steps=3), steps=4)
    assert next(pd.generate(model, [0])).settings["steps"] == 18
    assert next(pd.edit(model, known, label=0, covariance="isotropic", repeats=1)).settings["steps"] == 32


@pytest.mark.parametrize("verb", ["sample", "edit", "evaluate"])
def test_the_command_line_has_every_option(capsys, verb):
    with pytest.raises(SystemExit):
        main([verb, "--help-all"])
    told = capsys.readouterr().out
    without = {*OWN_SOLVER, "resolution"} if verb == "edit" else set()  # which edit refuses
    named = {name for name in FIELDS if f"--{name.replace('_', '-')}" in re.findall(r"--[a-z-]+", told)}
    assert named == set(FIELDS) - without


def test_the_page_has_every_option(tmp_path):
    site = Site(tmp_path, tmp_path / "work", "cpu")
    schema = json.loads(ask(site.app, "/api/options").content)["properties"]
    site.jobs.close()
    assert schema["schedule"]["enum"] == list(pd.SCHEDULES)
    assert list(schema) == FIELDS and all(option["description"] for option in schema.values())
    values = {name: CHANGES[name][1] for name in FIELDS}
    body = json.dumps({"models": [{"run": "mine"}], **values}).encode()
    assert read_request(SampleRequest, body).sampling == pd.Sampling(**values)
    edited = json.dumps({"model": {"run": "mine"}, "image": "", "restore": "denoise", "noise": 2, **values}).encode()
    assert read_request(EditRequest, edited).sampling == pd.Sampling(**values)


@pytest.mark.parametrize(
    ("options", "option", "message"),
    [
        ({"steps": 257}, None, "steps can be 1 to 256 here"),
        ({"tile": [8, 0]}, None, "tile can be 1 to 32,768 here"),
        ({"resolution": 0}, None, "height can be 1 to 32,768 here"),
        ({"rho": "much"}, "rho", "^rho: input should be a valid number"),
        ({"chrun": 1.0}, "chrun", "^chrun: unexpected keyword argument"),
    ],
)
def test_what_the_page_refuses(options, option, message):
    with refused(option, message):
        read_request(SampleRequest, json.dumps({"models": [{"run": "mine"}], **options}).encode())


@pytest.mark.slow
def test_commands_of_the_page_are_read_as_the_same_options(tmp_path):
    from patch_diffusion.cli.sample import Sample
    from patch_diffusion.runs.folder import RunFolder

    chosen = ModelChoice("mine")
    for name in FIELDS:
        beside, value = CHANGES[name]
        sampling = pd.Sampling(**{**beside, name: value})
        command = sample_command(SampleRequest(models=[chosen], sampling=sampling), chosen, RunFolder(tmp_path))
        assert vars(Sample.parse(command.split()[2:]).sampling) == vars(sampling)
    assert "--" not in sample_command(SampleRequest(models=[chosen]), chosen, RunFolder(tmp_path)).replace(
        "--seeds 0-15", ""
    ).replace("--out", "")


def test_keywords_of_the_version_before(model, known):
    """They do the same, with one warning that says how to write it now."""
    with pytest.warns(DeprecationWarning) as warned:
        old = next(pd.generate(model, [0], steps=3, solver="euler", guidance=2.0, labels=1))  # pyright: ignore[reportCallIssue]
    assert [str(each.message) for each in warned] == [
        "generate takes solver, guidance as keywords for one more release only: give "
        "sampling=pd.Sampling(solver=..., guidance=...)"
    ]
    assert warned[0].filename == __file__
    new = next(pd.generate(model, [0], pd.Sampling(steps=3, solver="euler", guidance=2.0), labels=1))
    assert torch.equal(old.pixels, new.pixels) and old.settings == new.settings
    with pytest.warns(DeprecationWarning, match=r"^edit takes steps, rho .*sampling=pd.Sampling\(steps=..., rho=...\)"):
        edited = next(pd.edit(model, known, [0], label=1, steps=3, rho=5.0, covariance="isotropic"))  # pyright: ignore[reportCallIssue]
    again = next(pd.edit(model, known, [0], pd.Sampling(steps=3, rho=5.0), label=1, covariance="isotropic"))
    assert torch.equal(edited.pixels, again.pixels)


def test_old_keywords_of_evaluate(model):
    images = pd.ImageSet(torch.randint(0, 256, (8, 1, 8, 12), dtype=torch.uint8))
    with pytest.warns(
        DeprecationWarning, match=r"pd.Sampling\(steps=...\), options=pd.EvaluationOptions\(metrics=..."
    ) as one:
        found = pd.evaluate(model, images, metrics=["frechet"], samples=4, steps=1)  # pyright: ignore[reportCallIssue]
    assert len(one) == 1 and found.settings["samples"] == 4 and found.settings["steps"] == 1
    options = pd.EvaluationOptions(metrics=("frechet",), samples=4)
    again = pd.evaluate(model, images, sampling=pd.Sampling(steps=1), options=options)
    assert again.measures == found.measures and again.settings == found.settings


def test_signatures_show_the_new_way_only():
    for function in (pd.generate, pd.edit, pd.evaluate):
        parameters = inspect.signature(function).parameters
        assert len(parameters) <= 9 and not {"solver", "guidance", "metrics"} & set(parameters)
        assert all(each.kind is not inspect.Parameter.VAR_KEYWORD for each in parameters.values())


def test_folding_of_old_keywords():
    @takes_old_keywords(sampling=pd.Sampling, options=pd.EvaluationOptions)
    def both(first, sampling=None, *, options=None, seed=0):
        return first, sampling, options, seed

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert both(1, pd.Sampling(3), seed=2) == (1, pd.Sampling(3), None, 2)  # seed is a parameter of its own
    with pytest.warns(DeprecationWarning):
        assert both(1, pd.Sampling(3), rho=2.0) == (1, pd.Sampling(3, rho=2.0), None, 0)  # pyright: ignore[reportCallIssue]
    with pytest.warns(DeprecationWarning):
        assert both(first=1, samples=5) == (1, None, pd.EvaluationOptions(samples=5), 0)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="unexpected keyword argument 'slover'"):
        both(1, slover="euler")  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": (8, 8, 8)}, "resolution is two numbers, not "),
        ({"tile": (8,)}, "tile is two numbers, not "),
        ({"guidance_interval": []}, "guidance_interval is two numbers, not "),
        ({"sigma_max": (1.0, 2.0)}, "sigma_max is one number, not "),
    ],
)
def test_one_number_or_two(options, message):
    """They were a ValueError or TypeError of whatever read them first."""
    with pytest.raises(pd.InputError, match=message):
        pd.Sampling(**options)
