import json
import re
from dataclasses import replace

import pytest

from patch_diffusion.cli.tables import race_table
from patch_diffusion.config import Config, Data
from patch_diffusion.config_dict import to_dict
from patch_diffusion.races.arms import whole_images
from patch_diffusion.races.page import race_page
from patch_diffusion.races.standings import standings
from patch_diffusion.races.summary import sentences
from test_report import ATTACK, Page

SPEED = {"whole": 1, "patches": 2}
PATCHES = Config(data=Data(source="photos", held_out=0.05), minutes=8, seed=0)
ROUND = {"budget": 0.5, "trials": [{"batch": 8, "learning_rate": 1e-3, "loss": 0.3}]}


def measured(speed, moments, worse=1.0):
    """Losses 1 / (speed t) after t minutes, at the moments of 8 minutes."""
    return [
        {
            "step": 100 * speed * t,
            "images": 1200 * speed * t,
            "seconds": 60 * t,
            "spent": t / 8,
            "loss": worse / (speed * t),
            "by_noise": {"0.1": 2 * worse / (speed * t), "1.6": 0.5 / (speed * t)},
        }
        for t in range(1, moments + 1)
    ]


@pytest.fixture
def make_content():
    """What is in race.json of a race of two seeds, of the second of which only so many moments are over."""

    def make(moments=8, names=SPEED, **changed):
        points = {
            name: {"0": measured(speed, 8), "1": measured(speed, moments, worse=1.1)} for name, speed in names.items()
        }
        finished = [seed for seed in ("0", "1") if all(found[seed][-1]["spent"] >= 1 for found in points.values())]
        curves = {
            name: {int(seed): [(each["seconds"] / 60, each["loss"]) for each in found[seed]] for seed in finished}
            for name, found in points.items()
        }
        options = dict(zip(names, (whole_images(PATCHES), PATCHES, replace(PATCHES, batch=8)), strict=False))
        content = {
            "plan": {"arms": {name: to_dict(config) for name, config in options.items()}, "moments": 8},
            "unit": "minutes",
            "budget": 8,
            "source": "photos",
            "seeds": [0, 1],
            "images": {"resolution": [64, 48], "trained_on": 950},
            "judged_by": {"images": 64, "sigmas": [0.1, 1.6]},
            "parameters": dict.fromkeys(names, 12345),
            "circumstances": [{"device": "abacus", "threads": 2, "versions": {"torch": "2.13"}, "commit": "abc"}],
            "tuning": {"whole": {"batch": 8, "learning_rate": 1e-3, "outermost": ["batch"], "rounds": [ROUND]}},
            "points": points,
            "standings": standings(curves),
            "distances": {},
            **changed,
        }
        return json.loads(json.dumps(content))

    return make


@pytest.fixture
def look(tmp_path):
    """The page as a browser sees it."""

    def at(content, title="race"):
        (tmp_path / "race.html").write_text(race_page(title, content), encoding="utf-8")
        return Page(tmp_path / "race.html")

    return at


def test_curves_are_means_over_the_seeds_in_minutes(make_content, look):
    page = look(make_content())
    whole, patches = page.curves()[0]
    assert [minute for minute, _ in whole] == list(range(1, 9))
    assert [float(value) for _, value in patches] == pytest.approx([1.05 / (2 * t) for t in range(1, 9)], rel=5e-3)
    assert all(minute >= 4 for curve in page.curves()[1] for minute, _ in curve)
    assert '"over":"minute"' in "".join(page.scripts)


def test_who_is_how_much_faster(make_content, look):
    content = make_content()
    assert sentences(content) == [
        "patches reaches the final loss of whole (0.1313) in 4 of 8 min, 2.00 times as fast (2.00 to 2.00 with 2 "
        "seeds).",
        "whole does not reach the final loss of patches (0.0656).",
    ]
    page = look(content)
    for words in (
        "2.00 times as fast",
        "950 images of 64 x 48",
        "abacus",
        "commit abc",
        "outermost in batch",
        "0.3000",
    ):
        assert words in page.text, words
    table = race_table(content)
    assert "2.00x" in table and "never" in table and "4 min" in table and "0.1313 ±0.0088" in table
    assert all(len(row) <= 80 for row in table.splitlines())


def test_a_sweep_has_a_row_for_each_trial_and_says_what_it_left_out(make_content, look):
    def trial(share, loss):
        options = {"optimizer.learning_rate": 0.005, "patches.whole": share, "patches.sizes": {"1/2": 0.6, "1/4": 0.4}}
        return {"options": options, "steps": 1234, "loss": loss}

    found = {
        "options": {"patches.whole": 0.25},
        "trials": [trial(0.5, 0.3), trial(0.25, None)],
        "outermost": ["patches.whole"],
        "left_out": "no time was left for some values of batch",
    }
    judged_by = {"images": 70, "chosen_by": 80, "sigmas": [0.1], "stride": 4, "samples": 99, "samples_stride": 2}
    text = look(make_content(tuning={"patches": found}, judged_by=judged_by)).text
    for words in (
        "Taken: patches.whole 0.25. It is outermost in patches.whole: what was not tried may be better.",
        "No time was left for some values of batch.",
        "optimizer.learning_rate patches.whole patches.sizes steps loss",
        "0.005 0.5 1/2=0.6 1/4=0.4 1234 0.3000",
        "0.005 0.25 1/2=0.6 1/4=0.4 1234 -",
        "80 held-out images choose in the search for settings, and 70 others judge the race.",
        "2 times by the loss of 70 held-out images",
        "measured 1 time, of 99 samples",
    ):
        assert words in text, (words, text)
    begun = {"speed": {}, "trials": []}  # nothing is known of it yet
    assert "Taken" not in look(make_content(tuning={"patches": begun})).text


def test_distances_of_samples_are_shown_like_losses(make_content, look):
    content = make_content()
    for found in content["points"].values():
        for by_seed in found.values():
            for each in by_seed:
                each["frechet"] = 1000 * each["loss"]
    curves = {
        name: {int(seed): [(each["seconds"] / 60, each["frechet"]) for each in found[seed]] for seed in found}
        for name, found in content["points"].items()
    }
    content["distances"] = json.loads(json.dumps({"frechet": standings(curves)}))
    assert sentences(content)[2] == (
        "patches reaches the final Frechet distance of whole (131.2) in 4 of 8 min, 2.00 times as fast (2.00 to 2.00 "
        "with 2 seeds)."
    )
    page = look(content)
    assert (
        "Frechet distance" in page.text
        and "131" in page.text
        and len(page.curves()) == len(look(make_content()).curves()) + 1
    )


def test_a_dashed_line_from_where_it_is_reached_to_the_end(make_content):
    first = race_page("race", make_content()).partition("In the second half")[0]
    (line,) = re.findall(r'<path class="guide c0" d="M([\d.]+) ([\d.]+)H([\d.]+)"', first)
    assert (float(line[0]), float(line[2])) == (pytest.approx(500), pytest.approx(1000))


def test_a_race_that_is_not_over(make_content, look):
    content = make_content(moments=3)
    assert content["standings"]["seeds"] == [0] and "Seed 1: 38% of the budget is spent." in sentences(content)
    assert "38%" in look(content).text and "±" not in race_table(content)
    begun = make_content(points={name: {"0": [], "1": []} for name in SPEED}, standings=standings({}), seeds=[0])
    page = look(begun)
    assert "Seed 0: 0% of the budget is spent." in page.text and not page.curves()
    assert race_table(begun) == "Seed 0: 0% of the budget is spent."


def test_what_comes_from_the_user_is_text(make_content, look):
    page = look(make_content(names={ATTACK: 1, "b": 2}, source=ATTACK, tuning={ATTACK: {"rounds": [ROUND]}}), ATTACK)
    assert page.text.count(ATTACK) > 5 and not any("alert" in script for script in page.scripts)
    assert not [tag for tag, attributes in page.tags if tag in ("a", "img", "link") or "onerror" in attributes]


def test_arms_are_compared_with_the_first_where_whole_images_do_not_race(make_content):
    content = make_content(names={"slow": 1, "fast": 2})
    assert sentences(content)[0].startswith("fast reaches the final loss of slow")


def test_the_linear_floor_is_a_row_a_column_and_a_line(make_content, look):
    """Races of earlier versions have none, and their pages go on."""
    floor = {"loss": 0.3456, "by_noise": {"0.1": 0.4321, "1.6": 0.2345}}
    page = look(make_content(linear_floor=floor, distances={}))
    losses, later = page.curves()[:2]
    assert losses[2] == [[1, "0.346"], [8, "0.346"]] and later[2] == [[4, "0.346"], [8, "0.346"]]
    assert "linear floor 0.3456" in page.text  # at the end
    assert "sigma whole patches linear floor 0.1" in page.text and "0.432" in page.text
    assert "linear floor" in race_table(make_content(linear_floor=floor)) and "0.3456" in race_table(
        make_content(linear_floor=floor)
    )
    for content in (make_content(), make_content(linear_floor=None)):
        assert "linear floor" not in look(content).text and "linear floor" not in race_table(content)
