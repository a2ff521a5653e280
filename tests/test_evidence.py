"""The scripts of benchmarks/evidence, at their smallest, and the figures of docs/evidence.md."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.training.build import build_trainer

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks" / "evidence"))

import changes  # noqa: E402
import page  # noqa: E402
import trials  # noqa: E402

NAMES = ("whole_share", "coordinates", "kinds", "small_data", "weights")
SCRIPTS = {name: importlib.import_module(name) for name in NAMES}
WHOLE_STEP = 56_343_552  # operations of a step on two whole digits


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("evidence")


@pytest.fixture(scope="module")
def found(runs):
    results = {}
    for name, script in SCRIPTS.items():
        arguments = ["--quick", "--runs", str(runs), "--out", str(runs / f"{name}.json")]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [name, *arguments, *(["--seeds", "0", "1"] if name == "kinds" else [])])
            trials.run(script.__doc__, script.ARMS, name)
        results[name] = json.loads((runs / f"{name}.json").read_text())
    return results


def arms_of(result):
    return {row["name"]: row for row in result["arms"]}


@pytest.mark.scheduled
def test_all_arms_cost_the_same(found):
    """But for a part of the last step, and, in a progressive run of a few steps, for how they are shared out."""
    for row in (row for result in found.values() for row in result["arms"]):
        largest = WHOLE_STEP * row["options"].get("batch", 2) / 2
        for each in row["seeds"]:
            least = 0.85 if row["name"] == "progressive" else 1
            assert least * trials.QUICK.flops <= each["cost"]["flops"] <= trials.QUICK.flops + largest, row["name"]
            assert each["cost"]["step"] >= 1 and each["loss"]["value"] > 0


@pytest.mark.scheduled
def test_an_arm_is_trained_once(found, runs):
    """The preset's own recipe is an arm of all five, and whole images are one of three."""
    losses = {
        arms_of(found[name])[arm]["seeds"][0]["loss"]["value"]
        for name, arm in (
            ("whole_share", "p = 0.5"),
            ("coordinates", "always"),
            ("kinds", "stochastic"),
            ("small_data", "all, patches"),
            ("weights", "p = 0.5, patch"),
        )
    }
    assert len(losses) == 1
    # 7, and 2 without or with hidden coordinates, progressive, fixed, 4 on few images, 2 by area, 2 with seed 1
    assert len(list(runs.glob("*/config.json"))) == 7 + 2 + 2 + 4 + 2 + 2


@pytest.mark.scheduled
def test_seeds_are_for_the_arms_that_are_repeated(found):
    rows = arms_of(found["kinds"])
    assert {name: [each["seed"] for each in row["seeds"]] for name, row in rows.items()} == {
        "stochastic": [0, 1],
        "progressive": [0],
        "fixed, halves": [0],
        "fixed, whole": [0, 1],
    }
    assert all("difference" in each for each in rows["fixed, whole"]["seeds"])


@pytest.mark.scheduled
def test_hidden_coordinates_teach_nothing(found, runs):
    """The weights behind them are those that the network began with; of the other arm they have moved."""
    arms = {arm.name: arm for arm in SCRIPTS["coordinates"].ARMS}
    moved = {}
    for name in ("always", "sampling alone"):
        folder = trials.folder_of(arms[name], trials.QUICK, 0, runs)
        config = trials.config_of(arms[name], trials.QUICK, 0)
        images = trials.images_of(arms[name], trials.QUICK)
        fresh = build_trainer(config, images, folder.parent / "fresh", show=False).state.denoiser.state_dict()
        trained = pd.load(folder).state_dict()
        (first,) = [key for key, value in fresh.items() if value.ndim == 4 and value.shape[1] == 3]
        moved[name] = (trained[first] - fresh[first]).abs().amax(dim=(0, 2, 3))
    assert moved["always"].min() > 1e-6
    assert moved["sampling alone"][0] > 1e-6 and moved["sampling alone"][1:].max() < 1e-7
    rows = arms_of(found["coordinates"])
    assert rows["always"]["seeds"][0]["loss"] != rows["training alone"]["seeds"][0]["loss"]
    assert rows["always"]["seeds"][0]["cost"] == rows["training alone"]["seeds"][0]["cost"]


def test_zeros_in_place_of_coordinates():
    given = torch.ones(2, 5, 4, 4)
    hidden, rest = changes.hide_coords(torch.nn.Identity(), (given, "others"))
    assert hidden.sum(dim=(0, 2, 3)).tolist() == [32, 32, 32, 0, 0] and rest == "others"


@pytest.mark.scheduled
def test_a_run_of_few_images_was_trained_on_those(found, runs):
    arms = {arm.name: arm for arm in SCRIPTS["small_data"].ARMS}
    for name, num in (("500, whole", 500), ("1,500, patches", 1500), ("all, whole", 1697)):
        facts = json.loads((trials.folder_of(arms[name], trials.QUICK, 0, runs) / "config.json").read_text())
        assert facts["model"]["num_images"] == num


def test_the_page_shows_the_result_files():
    text = page.PAGE.read_text(encoding="utf-8")
    results = page.results()
    for name in NAMES:
        shown = page.table(results[name]) if name in results else page.NOT_RUN
        assert f"<!-- {name} -->\n{shown}\n<!-- end -->" in text, name
    assert page.NOISE_PICTURE.read_text(encoding="utf-8") == page.noise_picture(results["whole_share"])
    if "evidence.svg" in text:
        assert page.PICTURE.read_text(encoding="utf-8") == page.picture(results)


def test_losses_in_the_text_are_in_the_tables():
    text = page.PAGE.read_text(encoding="utf-8")
    tables = "".join(re.findall(r"<!-- \w+ -->.*?<!-- end -->", text, re.DOTALL))
    prose = re.sub(r"<!-- \w+ -->.*?<!-- end -->", "", text, flags=re.DOTALL)
    told = re.findall(r"\b0\.\d{4}\b|[+-]\d+\.\d %", prose)
    assert told and [number for number in told if number not in tables] == []


def test_links_of_the_page_lead_somewhere():
    for link in re.findall(r"\]\(([^)#:]+)\)", page.PAGE.read_text(encoding="utf-8")):
        assert (page.PAGE.parent / link).exists(), link


def test_a_loss_is_compared_with_that_of_the_same_seed():
    def seed(number, loss, apart=None):
        found = {"seed": number, "loss": {"value": loss, "interval": None}}
        return found if apart is None else {**found, "difference": {"value": apart, "interval": [apart, apart]}}

    base = {"name": "base", "against": None, "seeds": [seed(0, 1.0), seed(1, 2.0)]}
    row = {"name": "other", "against": "base", "seeds": [seed(0, 1.1, 0.1), seed(1, 2.1, 0.1)]}
    assert page.against(row, {"arms": [base, row]}) == "+7.5 % (+5.0 % to +10.0 %)"
    one = {**row, "seeds": row["seeds"][:1]}
    assert page.against(one, {"arms": [base, one]}) == "+10.0 % (+10.0 to +10.0)"
