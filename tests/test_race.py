import json
import math
import os
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import patch_diffusion as pd
from checkpoint_files import read_checkpoint
from patch_diffusion.config import Config, Data, Network, Noise, Optimizer
from patch_diffusion.races import race, setup, tuning, turns
from patch_diffusion.races.arms import whole_images
from patch_diffusion.races.setup import RaceSetup
from patch_diffusion.training.checkpoints.saving import Checkpoints
from patch_diffusion.training.trainer import Trainer


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """40 pictures of 8 x 8 that are bright on one side."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    ramp = np.linspace(0, 200, 8)[None, None, :, None] * np.ones((40, 8, 1, 1))
    np.save(folder / "images.npy", (ramp + random.integers(0, 50, (40, 8, 8, 1))).astype(np.uint8))
    return str(folder / "images.npy")


@pytest.fixture(scope="module")
def arms(source):
    patches = Config(
        data=Data(source=source, held_out=0.2),
        network=Network(width=8, multipliers=(1, 2), blocks=1, attention=(), dropout=0.1),
        optimizer=Optimizer(learning_rate=1e-2),
        batch=4,
        log_every=2,
        steps=6,
    )
    return {"whole": whole_images(patches), "patches": replace(patches, optimizer=Optimizer(learning_rate=5e-3))}


@pytest.fixture
def few_steps(monkeypatch):
    """A sweep's trials may have a step or more, not 50."""
    monkeypatch.setattr(tuning, "LEAST_STEPS", 1)


def untimed(points):
    """What was measured, without the clock's part of it."""
    return {
        name: {seed: [{**each, "seconds": 0} for each in found] for seed, found in by_seed.items()}
        for name, by_seed in points.items()
    }


@pytest.mark.slow
def test_arms_are_what_training_makes_of_them(arms, tmp_path):
    """Weights, averages, optimizers and losses of both are those of a plain ``train``, bit for bit."""
    content = pd.race(arms, tmp_path / "race", moments=3, seeds=[3])
    for name, config in arms.items():
        pd.train(replace(config, seed=3, samples=0, track=()), tmp_path / name, show=False)
        mine, plain = (
            read_checkpoint(run / "checkpoints" / "step-00000006")
            for run in (tmp_path / "race" / f"{name}-seed3", tmp_path / name)
        )
        for group in plain[0]:
            assert all(torch.equal(mine[0][group][key], plain[0][group][key]) for key in plain[0][group]), name
        assert mine[1]["losses"] == plain[1]["losses"]
        logs = [
            [json.loads(line).get("loss") for line in (run / "log.jsonl").read_text().splitlines() if '"loss":' in line]
            for run in (tmp_path / "race" / f"{name}-seed3", tmp_path / name)
        ]
        assert [each for each in logs[0] if each] == [each for each in logs[1] if each]
        points = content["points"][name]["3"]
        assert [each["step"] for each in points] == [2, 4, 6] and points[-1]["spent"] == 1


def test_what_is_measured_is_the_loss_of_the_held_out_images(arms, source, tmp_path):
    content = pd.race(arms, tmp_path / "race", moments=2)
    images = pd.open_images(source)
    # Of 40 images half are held out, in an order that follows from the seed.
    from patch_diffusion.data.held_out import hold_out

    held_out = hold_out(images, 0.2, 0)[1]
    for name in arms:
        losses = pd.whole_image_loss(pd.load(tmp_path / "race" / f"{name}-seed0"), held_out)
        end = content["points"][name]["0"][-1]
        assert end["loss"] == pytest.approx(sum(losses.values()) / len(losses), rel=1e-6)
        assert list(end["by_noise"].values()) == pytest.approx(list(losses.values()), rel=1e-6)
    assert content["judged_by"]["images"] == 20 and content["images"]["trained_on"] == 20
    end = content["points"]["whole"]["0"][-1]
    assert content["linear_floor"]["by_noise"].keys() == end["by_noise"].keys()


@pytest.mark.slow
def test_other_images_to_judge_by(arms, source, tmp_path):
    pixels = np.load(source)
    np.save(tmp_path / "others.npy", pixels[:7, ::-1])
    arms = {name: replace(config, data=replace(config.data, held_out=0.0)) for name, config in arms.items()}
    content = pd.race(arms, tmp_path / "race", moments=1, held_out=str(tmp_path / "others.npy"))
    assert content["judged_by"]["images"] == 7 and content["images"]["trained_on"] == 40
    np.save(tmp_path / "wide.npy", np.concatenate([pixels, pixels], axis=2))
    with pytest.raises(pd.InputError, match=r"held-out images have resolution \(8, 16\)"):
        pd.race(arms, tmp_path / "other", held_out=str(tmp_path / "wide.npy"))


def test_judges_of_some_of_the_classes_are_numbered_as_those_to_train_on(arms, source, tmp_path):
    pixels = np.load(source)
    np.savez(tmp_path / "all.npz", images=pixels, labels=np.arange(40) % 3 + 1)
    np.savez(tmp_path / "some.npz", images=pixels[:6], labels=[1, 3] * 3)
    np.savez(tmp_path / "other.npz", images=pixels[:6], labels=[1, 4] * 3)
    data = Data(str(tmp_path / "all.npz"), held_out=0.0)
    arms = {name: replace(config, data=data) for name, config in arms.items()}
    apart = RaceSetup.open(arms, str(tmp_path / "some.npz"), None).apart
    assert apart.labels.tolist() == [0, 2] * 3 and apart.class_names == ("1", "2", "3")  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(pd.InputError, match="they must be alike"):
        RaceSetup.open(arms, str(tmp_path / "other.npz"), None)


class Killed(Exception):
    pass


def after(num, function):
    """The function, until it was called so often."""
    calls = []

    def call(*arguments, **options):
        calls.append(1)
        if len(calls) > num:
            raise Killed
        return function(*arguments, **options)

    return call


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "calls"),
    [
        ("train_step", 3),  # in the sweep's trials
        ("train_step", 25),
        ("save", 10),
        ("judgement", 4),
        ("judgement", 9),
    ],
)
def test_a_killed_race_goes_on_as_if_it_had_not_been(arms, whole_race, tmp_path, monkeypatch, few_steps, place, calls):
    with monkeypatch.context() as patched:
        if place == "judgement":
            counted = after(calls, turns.judgement)
            for module in (turns, race):
                patched.setattr(module, "judgement", counted)
        else:
            owner = Checkpoints if place == "save" else Trainer
            patched.setattr(owner, place, after(calls, getattr(owner, place)))
        with pytest.raises(Killed):
            pd.race(arms, tmp_path / "race", **TUNED)
    assert json.loads((tmp_path / "race" / "race.json").read_text())["seeds"] == [0, 1]
    content = pd.race(arms, tmp_path / "race", **TUNED)
    assert untimed(content["points"]) == untimed(whole_race["points"])
    assert content["standings"] == whole_race["standings"] and content["tuning"] == whole_race["tuning"]
    assert not (tmp_path / "race" / "tuning").exists()


TUNED = {"moments": 2, "seeds": [0, 1], "tuned": ["whole"], "tune_budget": 6}


@pytest.fixture(scope="module")
def whole_race(arms, tmp_path_factory):
    """A race that nothing happened to."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tuning, "LEAST_STEPS", 1)
        return pd.race(arms, tmp_path_factory.mktemp("whole") / "race", **TUNED)


@pytest.mark.slow
def test_more_seeds_may_come_later(arms, tmp_path):
    first = pd.race(arms, tmp_path / "race", moments=2, seeds=[1])
    both = pd.race(arms, tmp_path / "race", moments=2, seeds=[2])
    assert both["seeds"] == [1, 2] and both["standings"]["seeds"] == [1, 2]
    assert both["points"]["whole"]["1"] == first["points"]["whole"]["1"]


@pytest.mark.slow
def test_the_time_that_is_left_is_judged_by_what_was_done_since(arms, tmp_path, monkeypatch):
    """Not by what an earlier start of the race had done."""
    clock = [0.0]
    monkeypatch.setattr(race, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    judgement = turns.judgement

    def slow(trainer, judges, most):
        clock[0] += 30
        return judgement(trainer, judges, most)

    def left(line):
        return " ".join(line.partition("patches")[2].split()[1:])

    told = []
    with monkeypatch.context() as patched:
        patched.setattr(turns, "judgement", after(5, slow))  # two moments of two arms, and half of the third
        with pytest.raises(Killed):
            pd.race(arms, tmp_path / "race", moments=6, tell=told.append)
    assert [left(line) for line in told] == ["5 min 00 s left", "4 min 00 s left"]
    monkeypatch.setattr(turns, "judgement", slow)
    told.clear()
    pd.race(arms, tmp_path / "race", moments=6, tell=told.append)
    assert [line.split()[0] for line in told] == ["17%", "33%", "50%", "67%", "83%", "100%"]
    # Of the third moment one arm was judged before, hence half of a minute.
    assert [left(line) for line in told] == ["", "", "1 min 30 s left", "1 min 30 s left", "50 s left", ""]


@pytest.mark.slow
def test_ctrl_c_saves_all_arms(arms, tmp_path, monkeypatch):
    """In the step of one: it finishes that, and the other is where its lap ended."""
    step, calls = Trainer.train_step, []

    def interrupt(self, spent=0.0):
        calls.append(1)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, spent)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pd.race(arms, tmp_path / "race", moments=2)
    assert signal.getsignal(signal.SIGINT) is before
    newest = {name: sorted((tmp_path / "race" / f"{name}-seed0" / "checkpoints").iterdir())[-1].name for name in arms}
    assert newest == {"whole": "step-00000003", "patches": "step-00000004"}
    content = pd.race(arms, tmp_path / "race", moments=2)
    plain = pd.race(arms, tmp_path / "other", moments=2)
    assert untimed(content["points"]) == untimed(plain["points"])


@pytest.mark.slow
def test_all_train_for_the_same_time_in_turns_and_nothing_else_counts(arms, tmp_path, monkeypatch):
    """Whole images take 2 s a step, patches 1 s, and a judgement by the held-out images 1000 s."""
    clock, laps = [0.0], []
    step = Trainer.train_step

    def timed(self, spent=0.0):
        seconds = 2 if self.schedule.whole == 1 else 1
        clock[0] += seconds
        laps.append(seconds)
        return step(self, spent)

    def judgement(trainer, judges, most):
        clock[0] += most / 64
        return {1.0: 1 / max(trainer.state.counters.step, 1)}

    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr(Trainer, "train_step", timed)
    monkeypatch.setattr("patch_diffusion.races.turns.judgement", judgement)
    arms = {name: replace(config, steps=None, minutes=1.0) for name, config in arms.items()}
    content = pd.race(arms, tmp_path / "race", moments=2)
    points = {name: found["0"] for name, found in content["points"].items()}
    assert [(each["step"], each["seconds"]) for each in points["whole"]] == [(15, 30), (30, 60)]
    assert [(each["step"], each["seconds"]) for each in points["patches"]] == [(30, 30), (60, 60)]
    # Laps of 15 seconds; who has just been goes first, so that each begins as often.
    assert laps == 8 * [2] + 15 * [1] + 15 * [1] + 7 * [2] + 8 * [2] + 15 * [1] + 15 * [1] + 7 * [2]
    reached = content["standings"]["reaches"]
    assert reached["patches"]["whole"]["ratio"] == pytest.approx(60 / 30)
    assert reached["whole"]["patches"]["ratio"] is None and content["unit"] == "minutes"


@pytest.mark.slow
def test_judging_adds_a_twentieth_at_most(arms, tmp_path, monkeypatch):
    """Of the minutes of an arm, with the same images at the same moments for all; and a continued race keeps to it."""
    clock, step, told = [0.0], Trainer.train_step, []

    def timed(self, spent=0.0):
        clock[0] += 5
        return step(self, spent)

    def judgement(trainer, judges, most):
        clock[0] += most / 32
        return {1.0: 1.0}

    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr(Trainer, "train_step", timed)
    monkeypatch.setattr("patch_diffusion.races.judging.judgement", judgement)
    monkeypatch.setattr("patch_diffusion.races.turns.judgement", judgement)
    arms = {name: replace(config, steps=None, minutes=1.0) for name, config in arms.items()}
    content = pd.race(arms, tmp_path / "race", moments=10, tell=told.append)
    assert content["judged_by"].items() >= {"images": 20, "stride": 4}.items()
    assert [len(found["0"]) for found in content["points"].values()] == [3, 3]
    assert "losses of 20 held-out images, 3 times (not 10 times)" in "".join(told)
    assert clock[0] <= 2 * 60 * 1.05 + 2 * (1 + 4) / 32 + 10
    assert content["linear_floor"]["held_out"] == content["judged_by"]["images"]
    monkeypatch.setattr("patch_diffusion.races.race.linear_floor", None)  # it is measured once
    again = pd.race(arms, tmp_path / "race", moments=10, seeds=[1])
    assert again["linear_floor"] == content["linear_floor"]
    assert again["judged_by"] == content["judged_by"] and len(again["points"]["whole"]["1"]) == 3


@pytest.mark.slow
def test_an_arm_of_half_the_budget(arms, tmp_path):
    """It is what training for that long makes of it, and its times are its own."""
    half = replace(arms["patches"], steps=2, batch=5)
    content = pd.race({**arms, "half": half}, tmp_path / "race", moments=2)
    steps = {name: [each["step"] for each in found["0"]] for name, found in content["points"].items()}
    assert steps == {"whole": [3, 6], "patches": [3, 6], "half": [1, 2]}
    assert content["budget"] == 6 and content["standings"]["seeds"] == [0]
    pd.train(replace(half, samples=0, track=()), tmp_path / "half", show=False)
    mine, plain = (pd.load(run) for run in (tmp_path / "race" / "half-seed0", tmp_path / "half"))
    assert all(torch.equal(one, two) for one, two in zip(mine.parameters(), plain.parameters(), strict=True))
    assert "6 steps for whole, 6 steps for patches, 2 steps for half" in (tmp_path / "race" / "race.html").read_text()


@pytest.mark.slow
def test_its_own_time_counts(arms, tmp_path, monkeypatch):
    """A step takes a second, and the arm of half the time comes in that to where the others come in all of it."""
    clock, step = [0.0], Trainer.train_step

    def timed(self, spent=0.0):
        clock[0] += 1
        return step(self, spent)

    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr(Trainer, "train_step", timed)
    monkeypatch.setattr(
        "patch_diffusion.races.turns.judgement",
        lambda trainer, judges, most: {
            1.0: 1 - trainer.state.counters.step / (60 if trainer.config.minutes == 1 else 30)
        },
    )
    arms = {name: replace(config, steps=None, minutes=1.0) for name, config in arms.items()}
    content = pd.race({**arms, "half": replace(arms["patches"], minutes=0.5)}, tmp_path / "race", moments=2)
    assert [each["seconds"] for each in content["points"]["half"]["0"]] == [15, 30]
    reached = content["standings"]["reaches"]["half"]["whole"]
    assert reached["at"] == 0.5 and reached["ratio"] == 2


@pytest.mark.slow
def test_the_sweep_of_an_arm(arms, tmp_path, monkeypatch, few_steps):
    """The rate that wins is trained with; the trials are gone, and what they found stays."""
    monkeypatch.setattr(race, "judgement", lambda trainer, judges, most: {1.0: trainer.config.optimizer.learning_rate})
    told = []
    content = pd.race(arms, tmp_path / "race", moments=1, tuned=["whole"], tune_budget=10, tell=told.append)
    found = content["tuning"]["whole"]
    assert found["options"] == {"optimizer.learning_rate": 2.5e-3} and list(content["tuning"]) == ["whole"]
    assert found["outermost"] == ["optimizer.learning_rate"] and not found["left_out"]
    rates = [trial["options"]["optimizer.learning_rate"] for trial in found["trials"]]
    assert rates == [1e-2, 2e-2, 5e-3, 2.5e-3] and {trial["steps"] for trial in found["trials"]} == {2}
    assert "tuning whole: 4. 2 steps, optimizer.learning_rate 0.0025: loss 0.0025" in told
    runs = {name: pd.describe(tmp_path / "race" / f"{name}-seed0")["options"] for name in arms}
    assert runs["whole"]["optimizer"]["learning_rate"] == 2.5e-3 and runs["whole"]["patches"]["coords"] is False
    assert sorted(path.name for path in (tmp_path / "race").glob("[!.]*")) == [
        "patches-seed0",
        "race.html",
        "race.json",
        "whole-seed0",
    ]


@pytest.mark.slow
def test_patches_are_swept_by_minutes_at_the_speed_that_was_measured_once(arms, tmp_path, monkeypatch, few_steps):
    """Their options, too, but those that were given; a race that goes on keeps the speed, and trains nothing twice."""
    monkeypatch.setattr(race, "_speed", lambda images, config: {"overhead": 0.4, "rate": 1e15})
    monkeypatch.setattr(
        race, "judgement", lambda trainer, judges, most: {1.0: 1 + abs(trainer.config.patches.whole - 0.25)}
    )
    timed = {name: replace(config, steps=None, minutes=0.01) for name, config in arms.items()}
    given = {"whole": (), "patches": ("patches.sizes",)}
    asked = {"moments": 1, "tuned": ["patches"], "given": given, "tune_budget": 0.1}
    found = pd.race(timed, tmp_path / "race", **asked)["tuning"]["patches"]
    assert found["options"] == {"patches.whole": 0.25}
    searched = ["optimizer.learning_rate", "batch", "patches.whole", "patches.growth"]
    assert list(found["trials"][0]["options"]) == searched
    # 12 trials at most share 90 % of the 6 seconds, of which a step takes 0.4.
    assert {trial["steps"] for trial in found["trials"]} == {1} and len(found["trials"]) > 6
    assert pd.describe(tmp_path / "race" / "patches-seed0")["options"]["patches"]["whole"] == 0.25
    monkeypatch.setattr(race, "_speed", lambda images, config: pytest.fail("measured again"))
    stored = tmp_path / "race" / "race.json"
    before = json.loads(stored.read_text())
    del before["tuning"]["patches"]["options"]  # as if it had been stopped after the last trial
    stored.write_text(json.dumps(before))
    assert pd.race(timed, tmp_path / "race", **asked)["tuning"]["patches"] == found


@pytest.mark.slow
def test_a_sweep_chooses_by_other_images_than_the_race_is_judged_by(arms, tmp_path, monkeypatch, few_steps):
    """A race of an earlier version has chosen by its judges, and is judged on by all of them."""
    seen, told = {}, []

    def looked(where):
        def judgement(trainer, judges, most):
            pixels = judges.batch(np.arange(len(judges)))[0]
            seen.setdefault(where, set()).update(image.numpy().tobytes() for image in pixels)
            return {1.0: trainer.config.optimizer.learning_rate}

        return judgement

    monkeypatch.setattr(race, "judgement", looked("sweep"))
    monkeypatch.setattr(turns, "judgement", looked("race"))
    asked = {"moments": 1, "tuned": ["whole"], "tune_budget": 3}
    content = pd.race(arms, tmp_path / "few", **asked, tell=told.append)
    assert seen["sweep"] == seen["race"] and content["judged_by"]["images"] == 20
    assert told[0].startswith("the same 20 held-out images choose in the search for settings and judge the race")
    monkeypatch.setattr(setup, "FEWEST_JUDGES", 4)
    seen.clear()
    content = pd.race(arms, tmp_path / "race", **asked, tell=told.append)
    choose, judge = (len(seen[where]) for where in ("sweep", "race"))
    assert min(choose, judge) > 4 and not seen["sweep"] & seen["race"]
    assert (content["judged_by"]["images"], content["judged_by"]["chosen_by"]) == (judge, choose)
    words = (
        f"{choose} held-out images choose in the search for settings, and {judge} others judge the race; these are few"
    )
    assert any(line.startswith(words) for line in told)
    assert words.replace("; these are few", "") in (tmp_path / "race" / "race.html").read_text()
    monkeypatch.setattr(setup, "FEWEST_JUDGES", 16)  # a race that began with halves goes on with them
    assert pd.race(arms, tmp_path / "race", **asked)["judged_by"] == content["judged_by"]
    stored = tmp_path / "race" / "race.json"
    before = json.loads(stored.read_text())
    del before["judged_by"]["chosen_by"]
    before["judged_by"]["images"] = 20
    stored.write_text(json.dumps(before))
    seen.clear()
    content = pd.race(arms, tmp_path / "race", **asked, seeds=[1])
    assert len(seen["race"]) == content["judged_by"]["images"] == 20 and "chosen_by" not in content["judged_by"]


@pytest.mark.slow
def test_settings_that_suit_the_images(arms, tmp_path):
    """As in `train`: what was not given gives way, and is told."""
    told = []
    sizes = {
        name: replace(config, patches=replace(config.patches, sizes={"3/4": 1.0})) for name, config in arms.items()
    }
    network = {
        name: replace(config, network=replace(config.network, multipliers=(1, 2, 4))) for name, config in sizes.items()
    }
    content = pd.race(network, tmp_path / "race", moments=1, given=dict.fromkeys(arms, ()), tell=told.append)
    assert any(line.startswith("patches: patches.sizes 8=1") or "network.multipliers" in line for line in told)
    assert content["notes"]["patches"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tuned": ["patches"]}, "tuning"),
        ({"moments": 3}, "moments"),
        ({"held_out": "IMAGES"}, "whole.data.held_out"),
        ({"batch": 8}, "patches.batch"),
        ({"steps": 7}, "whole.steps"),
        ({"without": "whole"}, "holds a race of whole, patches, and this one is of other, patches"),
    ],
)
def test_only_the_same_race_goes_on(arms, source, tmp_path, change, message):
    pd.race(arms, tmp_path / "race", moments=1)
    before = (tmp_path / "race" / "race.json").read_bytes()
    options = {"moments": 1, **{name: value for name, value in change.items() if name in ("tuned", "moments")}}
    if "batch" in change:
        arms["patches"] = replace(arms["patches"], batch=8)
    if "steps" in change:
        arms = {name: replace(config, steps=7) for name, config in arms.items()}
    if "held_out" in change:
        arms = {name: replace(config, data=replace(config.data, held_out=0.0)) for name, config in arms.items()}
        options["held_out"] = source
    if "without" in change:
        arms = {"other": arms["whole"], "patches": arms["patches"]}
    with pytest.raises(pd.InputError) as raised:
        pd.race(arms, tmp_path / "race", **options)
    assert message in str(raised.value)
    assert (tmp_path / "race" / "race.json").read_bytes() == before


def test_what_is_refused_before_anything_is_written(arms, tmp_path, monkeypatch):
    def refused(message, arms=arms, **options):
        with pytest.raises(pd.InputError) as raised:
            pd.race(arms, tmp_path / "race", **options)
        assert message in str(raised.value) and not (tmp_path / "race").exists()

    def changed(group, **options):
        return {name: replace(each, **{group: replace(getattr(each, group), **options)}) for name, each in arms.items()}

    refused("needs images that are held out", changed("data", held_out=0.0))
    refused("leave out the share data.held_out 0.2", held_out="digits")
    refused("one process", changed("engine", processes=2))
    refused("network.width is a multiple of 4", changed("network", width=7))
    refused("moments is at least 1", moments=0)
    refused("at least one seed", seeds=[])
    refused("budget of tuning is at most", tuned=["whole"], tune_budget=math.inf)
    for budget in (-1, math.nan):
        refused("budget of tuning is above 0", tuned=["whole"], tune_budget=budget)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    refused("without torchrun")


@pytest.mark.slow
def test_an_arm_that_diverges_ends_the_race_and_is_named(arms, tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "judgement", lambda trainer, judges, most: {0.1: float("nan"), 1.0: 0.5})
    for _ in range(2):  # and again, where it goes on
        with pytest.raises(pd.InputError, match=r"arm 'whole': the loss .* is not finite .* in another folder"):
            pd.race(arms, tmp_path / "race")
    json.loads((tmp_path / "race" / "race.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.slow
def test_what_the_folder_may_hold(arms, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("")
    with pytest.raises(pd.InputError, match=r"holds other files \(thesis\.tex\) and no race"):
        pd.race(arms, tmp_path / "thesis")
    with pytest.raises(pd.InputError, match=r"thesis\.tex is a file: give a folder"):
        pd.race(arms, tmp_path / "thesis" / "thesis.tex")
    pd.race(arms, tmp_path / "race", moments=1)
    shutil.rmtree(tmp_path / "race" / "whole-seed0")  # a run that is lost is trained again
    assert pd.race(arms, tmp_path / "race", moments=1)["standings"]["seeds"] == [0]


@pytest.mark.slow
def test_all_arms_are_judged_at_the_levels_of_the_race(arms, tmp_path):
    own = {name: replace(arm, noise=Noise(levels=(0.2, 0.8)), steps=1) for name, arm in arms.items()}
    content = pd.race(own, tmp_path / "race", moments=1)
    assert content["judged_by"]["sigmas"] == [0.2, 0.8]
    for points in content["points"].values():
        assert list(points["0"][-1]["by_noise"]) == ["0.2", "0.8"]


@pytest.mark.slow
def test_a_race_made_before_continues_with_its_own_noise(arms, tmp_path, monkeypatch):
    """Its images are flat, for which noise is suggested now that was not when it began."""
    flat = np.random.default_rng(0).integers(20, 50, (40, 8, 8, 1), dtype=np.uint8)
    np.save(tmp_path / "flat.npy", flat)
    arms = {
        name: replace(arm, data=replace(arm.data, source=str(tmp_path / "flat.npy")), steps=1)
        for name, arm in arms.items()
    }
    with monkeypatch.context() as before:
        before.setattr("patch_diffusion.races.setup.suggest", lambda images, config, given: (config, []))
        pd.race(arms, tmp_path / "race", moments=1)
    given = dict.fromkeys(arms, ())
    content = pd.race(arms, tmp_path / "race", moments=1, given=given)
    assert content["plan"]["arms"]["whole"]["noise"]["mean_data"] is None
    assert pd.race(arms, tmp_path / "new", moments=1, given=given)["plan"]["arms"]["whole"]["noise"]["mean_data"]


@pytest.mark.slow
def test_a_refused_or_complete_race_is_left_as_it_was(arms, tmp_path, monkeypatch):
    """A seed is noted only if its arms may be trained, a machine only if it trains, and the page is no condition."""
    said = []
    with monkeypatch.context() as patched:
        patched.setattr("patch_diffusion.races.record.race_page", lambda *_: 1 / 0)
        pd.race(arms, tmp_path / "race", moments=1, tell=said.append)
    assert [text for text in said if "race.html could not be written (ZeroDivisionError: division by zero)" in text]
    before = json.loads((tmp_path / "race" / "race.json").read_text())
    (tmp_path / "race" / "patches-seed1").mkdir()
    (tmp_path / "race" / "patches-seed1" / "thesis.tex").touch()
    with pytest.raises(pd.InputError, match=r"holds other files \(thesis.tex\)"):
        pd.race(arms, tmp_path / "race", moments=1, seeds=[0, 1])
    monkeypatch.setattr(race, "circumstances", lambda device: {"machine": "another"})
    pd.race(arms, tmp_path / "race", moments=1)
    assert json.loads((tmp_path / "race" / "race.json").read_text()) == before
