import copy
import io
import json
import math
import os
import re
import shutil
import signal
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

import patch_diffusion as pd
from checkpoint_files import read_checkpoint
from patch_diffusion.cli import main
from patch_diffusion.config import Data, Ema, Engine, Noise, Optimizer
from patch_diffusion.data.augment import Augment
from patch_diffusion.files import read_tensors, to_json
from patch_diffusion.runs.folder import RULES, RunFolder
from patch_diffusion.training import progress
from patch_diffusion.training.checkpoints import checkpoint
from refusal import refused


def lines(trainer):
    return [json.loads(line) for line in trainer.run.log_file.read_text().splitlines()]


def losses(trainer):
    return [line["loss"] for line in lines(trainer) if "loss" in line]


def golden_trainer(make_trainer):
    digits = pd.open_images("digits")
    rate = Optimizer("adamw", learning_rate=1e-2, warmup=0.0)
    noise = Noise(weight="process")
    return make_trainer(images=digits, batch=16, log_every=1, optimizer=rate, noise=noise)


def test_golden_curve(make_trainer):
    """Losses of 20 steps, as they were when this was written: a change that is not numerical leaves them alone."""
    trainer = golden_trainer(make_trainer)
    trainer.fit(steps=20)
    found = [next(iter(line.items())) for line in losses(trainer)]
    assert [size for size, _ in found] == [size for size, _ in GOLDEN]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in GOLDEN], rel=2e-3)


GOLDEN = [
    ("16x16", 1.621449),
    ("8x8", 1.189732),
    ("8x8", 1.247537),
    ("16x16", 1.052065),
    ("16x16", 1.306283),
    ("8x8", 1.088281),
    ("8x8", 1.093844),
    ("16x16", 1.244154),
    ("8x8", 1.106564),
    ("8x8", 1.03316),
    ("16x16", 1.068195),
    ("8x8", 1.064723),
    ("16x16", 1.094938),
    ("8x8", 1.059343),
    ("8x8", 1.07161),
    ("8x8", 1.075295),
    ("8x8", 1.094978),
    ("8x8", 0.995442),
    ("16x16", 1.078781),
    ("16x16", 1.179078),
]


@pytest.mark.slow
def test_a_run_made_before_goes_on_by_its_rules(make_trainer):
    """Its log counts as it did, images are stretched as they were, and its optimizer's state fits."""
    options = {"augment": Augment(p=0.5), "optimizer": Optimizer(kind="muon"), "network": {"augment_channels": 9}}
    new = make_trainer(**options)
    new.fit(steps=1)
    assert new.facts.rules == RULES and new.batches.augment.published
    content = json.loads(new.run.config_file.read_text())
    del content["model"]["rules"]
    new.run.config_file.write_text(json.dumps(content))
    old = make_trainer(**options)
    assert old.facts.rules == () and not old.batches.augment.published
    assert all(0 < old.flops[shape] < new.flops[shape] for shape in new.flops)
    old.fit(steps=2)
    assert json.loads(old.run.config_file.read_text())["model"]["rules"] == []
    assert make_trainer(**options).facts.rules == ()


@pytest.mark.slow
def test_two_runs_are_equal_bit_for_bit(make_trainer):
    first, second = make_trainer("first"), make_trainer("second")
    for trainer in (first, second):
        torch.manual_seed(os.getpid())  # what the user's own draws do is of no consequence
        torch.rand(1)
        trainer.fit(steps=6)
    for name in ("weights", "ema", "optimizer"):
        one, two = (read_tensors(trainer.run.checkpoint(6) / f"{name}.safetensors") for trainer in (first, second))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("budget", [{"steps": 1}, {"images": 4}, {"images": 5}], ids=str)
def test_a_single_step_trains(make_trainer, budget):
    """Its rate was that of the beginning of the warm-up, 0. In longer runs the first step is one of many."""
    trainer = make_trainer(schedule={"whole": 1.0}, log_every=1)
    before = [parameter.detach().clone() for parameter in trainer.state.average.denoiser.parameters()]
    model = trainer.fit(**budget)
    rates = [line["learning_rate"] for line in lines(trainer) if "loss" in line]
    assert rates[0] == (0 if budget == {"images": 5} else trainer.config.optimizer.learning_rate)
    assert max(rates) > 0
    moved = [not torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2
    assert trainer.run.read_config()[0].optimizer.warmup == Optimizer.warmup


@pytest.mark.slow
def test_a_run_of_integers_of_numpy_is_that_of_python(make_trainer):
    first, second = (make_trainer(kind.__name__, seed=kind(3), batch=kind(4)) for kind in (int, np.int64))
    for trainer in (first, second):
        trainer.fit(steps=2)
    one, two = (read_tensors(trainer.run.checkpoint(2) / "weights.safetensors") for trainer in (first, second))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert first.run.config_file.read_text() == second.run.config_file.read_text()


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("kind", "weight"),
    [
        ("adamw", "process"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (("adamw", "learned"), ("muon", "process"), ("schedule_free", "process"))
        ),
    ],
)
def test_a_killed_run_continues_as_if_it_had_not_been(make_trainer, monkeypatch, kind, weight):
    """10 steps == 5 + checkpoint + 2 lost steps + continue: weights, average, optimizer, counters and log."""
    options = {
        "log_every": 3,
        "checkpoints": 2,
        "optimizer": Optimizer(kind=kind),
        "noise": pd.NoiseLevels(weight=weight),
    }
    whole = make_trainer("whole", **options)
    whole.fit(steps=10)
    killed = make_trainer("killed", **options)
    step = killed.train_step

    def die(spent):
        if killed.state.counters.step == 7:
            raise Killed
        return step(spent)

    monkeypatch.setattr(killed, "train_step", die)
    with pytest.raises(Killed):
        killed.fit(steps=10)
    continued = make_trainer("killed", **options)
    continued.fit(steps=10)
    (tensors, state), (expected, expected_state) = (read_checkpoint(t.run.checkpoint(10)) for t in (continued, whole))
    for group in expected:
        assert expected[group].keys() == tensors[group].keys()
        assert all(torch.equal(tensors[group][key], expected[group][key]) for key in expected[group])
    for each in (state, expected_state):
        del each["seen"]["seconds"], each["time"]
    assert state == expected_state

    def untimed(trainer):
        return [{key: value for key, value in line.items() if key != "seconds"} for line in lines(trainer)]

    assert untimed(continued) == untimed(whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "muon", "schedule_free"])
def test_laps_are_one_training(make_trainer, kind):
    """10 steps == laps of 3, 3, 0 and 4, whatever happens in between: weights, average, optimizer, counters and log."""
    options = {"log_every": 3, "checkpoints": 2, "optimizer": Optimizer(kind=kind)}
    whole, other, laps = make_trainer("whole", **options), make_trainer("other", **options), make_trainer(**options)
    whole.fit(steps=10)
    with laps.in_laps(steps=10) as train_until:
        for until, step in ((0.3, 3), (0.6, 6), (0.1, 6), (1.0, 10)):
            train_until(until)
            assert laps.state.counters.step == step
            other.train_step(until)
    (tensors, state), (expected, expected_state) = (read_checkpoint(t.run.checkpoint(10)) for t in (laps, whole))
    for group in expected:
        assert all(torch.equal(tensors[group][key], expected[group][key]) for key in expected[group])
    for each in (state, expected_state):
        del each["seen"]["seconds"], each["time"]
    assert state == expected_state and losses(laps) == losses(whole)


@pytest.mark.slow
def test_what_happens_between_laps_takes_no_time(make_trainer, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("patch_diffusion.training.clock.time.monotonic", lambda: clock[0])
    trainer = make_trainer()
    step = trainer.train_step

    def one_second(spent):
        clock[0] += 1
        return step(spent)

    monkeypatch.setattr(trainer, "train_step", one_second)
    with trainer.in_laps(minutes=0.1) as train_until:
        train_until(0.5)
        clock[0] += 1000
        train_until(1)
    assert trainer.state.counters.step == 6 and trainer.state.counters.seconds == 6


def test_ctrl_c_in_the_last_step_of_a_lap(make_trainer, monkeypatch):
    trainer = make_trainer()
    step = trainer.train_step

    def interrupt(spent):
        os.kill(os.getpid(), signal.SIGINT)
        return step(spent)

    monkeypatch.setattr(trainer, "train_step", interrupt)
    with trainer.in_laps(steps=4) as train_until, pytest.raises(KeyboardInterrupt):
        train_until(0.25)
    assert trainer.run.checkpoints()[-1].name == "step-00000001"


@pytest.mark.slow
def test_ctrl_c_writes_a_checkpoint(make_trainer, monkeypatch):
    trainer = make_trainer()
    step = trainer.train_step

    def interrupt(spent):
        if trainer.state.counters.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(spent)

    monkeypatch.setattr(trainer, "train_step", interrupt)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(steps=100)
    assert signal.getsignal(signal.SIGINT) is before
    assert trainer.run.checkpoints()[-1].name == "step-00000004"
    assert pd.load(trainer.run.path).resolution == (8, 12)


def test_training_outside_the_main_thread(make_trainer):
    trainer = make_trainer()
    thread = threading.Thread(target=lambda: trainer.fit(steps=1))
    thread.start()
    thread.join()
    assert trainer.state.counters.step == 1


@pytest.mark.slow
def test_it_learns(make_trainer):
    """A picture that is always the same: the loss falls far below where it began."""
    pixels = torch.zeros(8, 3, 8, 12, dtype=torch.uint8)
    pixels[..., 6:] = 255
    same = pd.ImageSet(pixels)
    options = {"network": {"dropout": 0.0}, "optimizer": Optimizer(learning_rate=1e-2)}
    trainer = make_trainer(images=same, batch=16, log_every=15, **options)
    trainer.fit(steps=150)
    found = losses(trainer)
    assert found[-1]["8x12"] < 0.6 * found[0]["8x12"] and found[-1]["4x6"] < 0.6 * found[0]["4x6"]


@pytest.mark.slow
def test_the_averaged_model_is_returned_stored_and_loaded(make_trainer):
    trainer = make_trainer()
    model = trainer.fit(steps=3)
    loaded = pd.load(trainer.run.path, device="cpu")
    for (name, weight), other in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(weight, other), name
    assert (loaded.resolution, loaded.sigma_data, loaded.num_classes, loaded.training) == ((8, 12), 0.5, 2, False)
    noisy, coords = torch.randn(1, 3, 8, 12), pd.coordinate_grid(8, 12)
    assert torch.equal(model(noisy, 1.0, coords), loaded(noisy, 1.0, coords))


@pytest.mark.slow
def test_counts_are_exact(make_trainer):
    trainer = make_trainer(schedule={"growth": "linear", "whole": 0.5}, batch=4)
    sizes = [trainer.train_step()[0] for _ in range(30)]
    halves = sum(str(size) == "4x6" for size in sizes)
    assert 0 < halves < 30
    assert trainer.state.counters.step == 30
    assert trainer.state.counters.images == 4 * (30 - halves) + 8 * halves
    assert trainer.state.counters.patches == 8 * halves
    assert trainer.state.counters.pixels == 4 * (30 - halves) * 96 + 8 * halves * 24
    flops = {"{}x{}".format(*shape): value for shape, value in trainer.flops.items()}
    assert trainer.state.counters.flops == 4 * (30 - halves) * flops["8x12"] + 8 * halves * flops["4x6"]
    assert flops["8x12"] > 3 * flops["4x6"] > 0


def test_coordinates_go_with_the_pixels(make_trainer, images):
    """Whatever the network is given in training, its pixels lie where its coordinates say."""
    ramp = (pd.coordinate_grid(8, 12) * 127.5 + 127.5).round().to(torch.uint8)
    pixels = torch.cat([ramp, ramp[:1]])[None].expand(16, -1, -1, -1).contiguous()
    trainer = make_trainer(images=pd.ImageSet(pixels), noise=pd.NoiseLevels(p_mean=-12.0, p_std=0.0))
    given = []
    trainer.state.network.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    for _ in range(6):
        trainer.train_step()
    for x in given:
        clean, coords = x[:, :3] * 0.5, x[:, 3:]  # c_in = 1 / sigma_data at hardly any noise
        torch.testing.assert_close(clean[:, :2], coords, atol=0.02, rtol=0)
    assert {tuple(x.shape[2:]) for x in given} == {(8, 12), (4, 6)}


@pytest.mark.slow
def test_labels_are_dropped_as_often_as_asked(make_trainer):
    trainer = make_trainer(network={"label_dropout": 0.3}, batch=256)
    given = []
    trainer.state.network.register_forward_pre_hook(lambda module, args: given.append(args[2]))
    for _ in range(8):
        trainer.train_step()
    labels = torch.cat(given)
    assert abs((labels == -1).float().mean() - 0.3) < 0.04
    assert set(labels.tolist()) == {-1, 0, 1}


@pytest.fixture(scope="module")
def plain():
    """Weights at the end of a plain run of eight steps, once a test has made it."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {"schedule": {"whole": 0.1}},
        {"schedule": {"sizes": {"4": 1.0}, "whole": 0.0}},
        {"schedule": {"kind": "progressive"}},
        {"schedule": {"growth": "none"}},
        {"schedule": {"weight": "area"}},
        {"schedule": {"seed": 1}},
        {"coords": False},
        {"network": {"width": 12}},
        {"network": {"multipliers": (1, 1)}},
        {"network": {"blocks": 2}},
        {"network": {"attention": (1,)}},
        {"network": {"dropout": 0.5}},
        {"network": {"label_dropout": 0.9}},
        {"batch": 5},
        {"noise": pd.NoiseLevels(p_mean=0.5)},
        {"noise": pd.NoiseLevels(p_std=0.5)},
        {"noise": pd.NoiseLevels(weight="process")},
        {"optimizer": Optimizer(kind="adamw")},
        {"optimizer": Optimizer(kind="schedule_free")},
        {"optimizer": Optimizer(learning_rate=1e-2)},
        {"optimizer": Optimizer(betas=(0.5, 0.9))},
        {"optimizer": Optimizer(weight_decay=1.0)},
        {"optimizer": Optimizer(clip=1e-3)},
        {"optimizer": Optimizer(warmup=0.5)},
        {"optimizer": Optimizer(decay="cosine")},
        {"optimizer": Optimizer(decay="constant")},
        {"ema": Ema(half_life_images=1.0)},
        {"ema": Ema(ramp=5.0)},
    ],
    ids=str,
)
def test_every_option_changes_the_result(make_trainer, plain, changed):
    def trained(out, **options):
        trainer = make_trainer(out, **options)
        trainer.fit(steps=8)
        return read_tensors(trainer.run.model_file)

    if not plain:
        plain |= trained("plain")
        again = trained("again")
        assert all(torch.equal(again[key], tensor) for key, tensor in plain.items())
    other = trained("other", **changed)
    assert plain.keys() != other.keys() or any(
        tensor.shape != other[key].shape or not torch.equal(tensor, other[key]) for key, tensor in plain.items()
    )


@pytest.mark.slow
def test_intervals(make_trainer):
    trainer = make_trainer(checkpoints=4, samples=2, log_every=3)
    trainer.fit(steps=8)
    assert [path.name for path in trainer.run.checkpoints()] == [f"step-{step:08d}" for step in (2, 4, 6, 8)]
    assert sorted(path.name for path in trainer.run.path.glob("samples/*")) == [
        "step-00000004.png",
        "step-00000008.png",
    ]
    assert [line["step"] for line in lines(trainer) if "loss" in line] == [3, 6, 8]


@pytest.mark.slow
def test_timed_checkpoints_replace_each_other(make_trainer):
    trainer = make_trainer(checkpoints=2, checkpoint_minutes=1e-9)
    trainer.fit(steps=8)
    assert [path.name for path in trainer.run.checkpoints()] == ["step-00000004", "step-00000008"]


@pytest.mark.slow
@pytest.mark.parametrize(("budget", "spent"), [({"steps": 7}, 7), ({"images": 30}, None), ({"minutes": 0.01}, None)])
def test_budgets(make_trainer, budget, spent):
    trainer = make_trainer()
    trainer.fit(**budget)
    last = lines(trainer)[-1]
    assert last["spent"] >= 1 and last["learning_rate"] < 0.2 * 5e-3
    if "images" in budget:
        assert 30 <= trainer.state.counters.images < 30 + 8
    if spent:
        assert trainer.state.counters.step == spent


@pytest.mark.slow
def test_a_complete_run_is_left_alone_and_a_larger_budget_continues(make_trainer):
    make_trainer().fit(steps=2)
    again = make_trainer()
    again.fit(steps=2)
    assert again.state.counters.step == 2
    more = make_trainer()
    more.fit(steps=4)
    assert more.state.counters.step == 4 and [line["step"] for line in lines(more) if "loss" in line] == [2, 4]
    told = [line for line in lines(more) if "learning rate rises from 0 to" in line.get("note", "")]
    assert [line["step"] for line in told] == [2]
    make_trainer().fit(steps=4)
    assert len([line for line in lines(more) if "learning rate rises" in line.get("note", "")]) == 1


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"batch": 0}, "batch"),
        ({"log_every": 0}, "log_every"),
        ({"checkpoints": 0}, "checkpoints"),
        ({"samples": -1}, "samples"),
        ({"checkpoint_minutes": 0}, "checkpoint_minutes"),
        ({"schedule": {"sizes": {"1/4": 1.0}}}, "patches.sizes"),
        ({"network": {"num_classes": 3}}, None),
        ({"optimizer": Optimizer(learning_rate=0.0)}, "optimizer.learning_rate"),
        ({"optimizer": Optimizer(learning_rate=math.nan)}, "optimizer.learning_rate"),
        ({"optimizer": Optimizer(betas=(1.0, 0.9))}, "optimizer.betas"),
        ({"optimizer": Optimizer(warmup=1.0)}, "optimizer.warmup"),
        ({"optimizer": Optimizer(weight_decay=-1.0)}, "optimizer.weight_decay"),
        ({"ema": Ema(half_life_images=0)}, "ema.half_life_images"),
        ({"ema": Ema(ramp=0)}, "ema.ramp"),
        ({"engine": Engine(device="abacus")}, "engine.device"),
        ({"engine": Engine(threads=0)}, "engine.threads"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(make_trainer, tmp_path, options, option):
    with refused(option):
        make_trainer(**options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("budget", [{}, {"steps": 0}, {"steps": 3, "minutes": 1.0}, {"minutes": -1.0}])
def test_impossible_budgets(make_trainer, tmp_path, budget):
    with pytest.raises(pd.InputError, match="budget|give one of steps"):
        make_trainer().fit(**budget)
    assert not (tmp_path / "run").exists()


def test_the_folder_is_looked_at_before_the_data(tmp_path):
    """A folder that holds other files is told at once, not after the images are read and the speed is measured."""
    (tmp_path / "thesis.tex").write_text("")
    config = pd.Config(data=Data(source="nowhere"), steps=1)
    with pytest.raises(pd.InputError, match="no run: choose a new or an empty folder"):
        pd.train(config, tmp_path)
    with pytest.raises(pd.InputError, match="no race: choose a new or an empty folder"):
        pd.race({"one": config, "two": replace(config, batch=7)}, tmp_path)


@pytest.mark.slow
def test_what_the_run_folder_may_hold(make_trainer, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("")
    with pytest.raises(pd.InputError, match=r"holds other files \(thesis\.tex\) and no run"):
        make_trainer()
    (tmp_path / "run" / "thesis.tex").rename(tmp_path / "run" / ".lock")  # all that a run stopped at once leaves
    make_trainer()
    (tmp_path / "file").write_text("")
    with pytest.raises(pd.InputError, match="is a file"):
        make_trainer("file")
    make_trainer("old").fit(steps=1)
    with pytest.raises(pd.InputError, match=r"other options \(batch, patches\.whole\)"):
        make_trainer("old", batch=7, schedule={"whole": 0.3})
    with pytest.raises(pd.InputError, match=r"have changed since .* was trained \(9 images now, 64 then\)"):
        make_trainer("old", images=pd.ImageSet(torch.zeros(9, 3, 8, 12, dtype=torch.uint8), torch.arange(9) % 2))


@pytest.mark.slow
def test_a_network_of_one_s_own(images, tmp_path):
    class Mine(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = torch.nn.Conv2d(5, 3, 3, padding=1)

        def forward(self, x, c_noise, labels):
            return self.convolution(x)

    trainer = pd.Trainer(pd.Denoiser(Mine()), images, out=tmp_path / "run", samples=0, batch=4, show=False)
    trainer.fit(steps=2)
    with pytest.raises(pd.InputError, match="module of your own"):
        pd.load(trainer.run.path)
    model = pd.load(trainer.run.path, network=Mine())
    assert torch.equal(model.network.convolution.weight, trainer.state.average.denoiser.network.convolution.weight)
    with pytest.raises(pd.InputError, match="does not fit the network"):
        pd.load(trainer.run.path, network=torch.nn.Conv2d(5, 3, 1))
    with pytest.raises(pd.InputError, match=r"must be a torch\.nn\.Module"):
        pd.Trainer(pd.Denoiser(lambda x, c_noise, labels: x), images, out=tmp_path / "other")


@pytest.mark.slow
def test_damage_is_named(make_trainer):
    trainer = make_trainer()
    trainer.fit(steps=1)
    run = trainer.run
    for file in (run.model_file, run.config_file, run.checkpoint(1) / "ema.safetensors"):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        where = run.checkpoint(1) if "checkpoints" in str(file) else run.path
        with pytest.raises(pd.InputError, match=f"{file} is damaged"):
            pd.load(where)
        file.write_bytes(content)
    (run.checkpoint(1) / "state.json").write_text("{}")
    with pytest.raises(pd.InputError, match="no checkpoint of .* can be read.*does not match its checksum"):
        make_trainer().fit(steps=2)
    run.model_file.unlink()
    with pytest.raises(pd.InputError, match="checkpoints of the steps 1"):
        pd.load(run.path)
    with pytest.raises(pd.InputError, match="does not exist"):
        pd.load(run.path / "nowhere")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weights", "ema", "optimizer", "state"])
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(make_trainer, name, damage):
    trainer = make_trainer(checkpoints=2)
    trainer.fit(steps=4)
    weights = trainer.run.checkpoint(4) / "weights.safetensors"
    whole = {key: tensor.clone() for key, tensor in read_tensors(weights).items()}
    (file,) = trainer.run.checkpoint(4).glob(f"{name}.*")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content) if damage == "flipped" else file.unlink()
    continued = make_trainer(checkpoints=2)
    continued.fit(steps=4)
    warning = [line["note"] for line in lines(continued) if "WARNING" in line.get("note", "")]
    assert len(warning) == 1 and str(file) in warning[0]
    assert not trainer.run.checkpoint(4).with_name("step-00000004.damaged.tmp").exists()
    found = read_tensors(weights)
    assert all(torch.equal(found[key], tensor) for key, tensor in whole.items())


def test_a_state_of_any_kind_is_taken_or_refused(make_trainer):
    """Of a stranger's checkpoint, whose checksums are right."""
    trainer = make_trainer(noise=pd.NoiseLevels(weight="learned"))
    trainer.fit(steps=1)
    folder = trainer.run.checkpoint(1)
    file = folder / "state.json"
    written = json.loads(file.read_text())
    del written["checksum"]
    tensors = checkpoint.read_groups(folder, written)

    def places(content, *path):
        for key, value in content.items():
            yield (*path, key)
            if isinstance(value, dict):
                yield from places(value, *path, key)

    for *groups, name in places(written):
        for value in (None, -1, "x", 10**400, {"../x": "x"}, [["a", None]], math.nan, {"8x8": [[math.nan, 1.0]]}):
            altered = group = copy.deepcopy(written)
            for each in groups:
                group = group[each]
            group[name] = value
            file.write_text(json.dumps({**altered, "checksum": checkpoint._checksum(altered)}))
            try:
                to_json(pd.describe(trainer.run.path))  # takes what it can read
                trainer.state.restore(folder, tensors, checkpoint.verify(folder))
            except pd.InputError as error:
                assert str(folder) in str(error) and len(str(error)) < 600
            else:
                counters = trainer.state.counters
                assert counters.step == 1 and isinstance(counters.images, int) and name != "checksums"
                assert all(0 <= num <= counters.images for num in counters.by_resolution.values())
                to_json(trainer.state.state()[1])


@pytest.mark.parametrize(
    ("altered", "told"),
    [
        ({"seen": {}}, "it is not of step 1"),
        ({"seen": {"step": 2, "images": 4}}, "it is not of step 1"),
        ({"checksums": {}}, "checksums of other files"),
        ({"checksums": {"../../config.json": "config.json"}}, "checksums of other files"),
        ({"checksums": [1]}, "checksums is [1]: input should be a valid dictionary"),
    ],
)
def test_a_checkpoint_is_of_its_step_and_of_its_own_files(tmp_path, altered, told):
    folder = tmp_path / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    (tmp_path / "config.json").write_text("{}")
    if isinstance(files := altered.get("checksums"), dict):
        altered = {"checksums": {name: checkpoint.file_checksum(tmp_path / file) for name, file in files.items()}}
    content = {"seen": {"step": 1}, "checksums": {"weights.safetensors": ""}, **altered}
    (folder / "state.json").write_text(json.dumps({**content, "checksum": checkpoint._checksum(content)}))
    with pytest.raises(pd.InputError, match=re.escape(told)):
        checkpoint.verify(folder)


def test_only_folders_with_a_step_are_checkpoints(tmp_path):
    for name in ("step-00000003", "step-\u00b2", "step-\u0663", "step-3.tmp", "step-"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [path.name for path in RunFolder(tmp_path).checkpoints()] == ["step-00000003"]


@pytest.mark.slow
def test_two_trainers_in_one_folder(make_trainer, monkeypatch):
    first, second = make_trainer(), make_trainer()
    step = first.train_step

    def meanwhile(spent):
        with pytest.raises(pd.InputError, match=f"is being trained by process {os.getpid()}"):
            second.fit(steps=2)
        return step(spent)

    monkeypatch.setattr(first, "train_step", meanwhile)
    first.fit(steps=1)
    second.fit(steps=2)


@pytest.mark.slow
def test_a_save_that_fails_on_the_way_does_not_stop_the_run(make_trainer, monkeypatch):
    from patch_diffusion.training.checkpoints import checkpoint

    trainer = make_trainer(checkpoints=4)
    write = checkpoint.write_tensors

    def full(path, tensors):
        if "step-00000002" in str(path):
            raise OSError(28, "No space left on device", str(path))
        write(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    trainer.fit(steps=4)
    assert [path.name for path in trainer.run.checkpoints()] == [f"step-{step:08d}" for step in (1, 3, 4)]
    assert any(
        "No space left" in line.get("note", "") and "the last good one is step-00000001" in line["note"]
        for line in lines(trainer)
    )


@pytest.mark.slow
def test_side_output_that_fails_is_said_once_and_training_goes_on(make_trainer, monkeypatch, capsys):
    def fail(*_, **__):
        raise UnicodeEncodeError("utf-8", "caf\udce9", 3, 4, "surrogates not allowed")

    for name in ("loop.sample_pictures", "checkpoints.saving.write_report", "loop.held_out_losses"):
        monkeypatch.setattr(f"patch_diffusion.training.{name}", fail)
    trainer = make_trainer(samples=3, checkpoints=3, show=True, held_out=make_trainer().images)
    meter = trainer.meter = pd.SampleMeter(["frechet"], times=3, samples=4)
    monkeypatch.setattr(meter, "begin", lambda *_: None)  # so that every call fails
    trainer.fit(steps=3)
    said = capsys.readouterr().err
    notes = [line["note"] for line in lines(trainer) if "WARNING" in line.get("note", "")]
    for what in ("pictures of samples", "a report", "the loss of held-out images", "the metrics of samples"):
        assert said.count(f"WARNING: training goes on without {what} (") == 1
        assert sum(what in note for note in notes) == 1
    assert trainer.state.counters.step == 3 and len(trainer.run.checkpoints()) == 3


@pytest.mark.slow
def test_lines_of_the_log_wait_for_room_on_the_disk(make_trainer, monkeypatch, capsys):
    trainer = make_trainer(log_every=1, show=True)
    append = progress.append_text

    def full(path, text):
        if 2 <= trainer.state.counters.step <= 4:
            raise OSError(28, "No space left on device", str(path))
        append(path, text)

    monkeypatch.setattr(progress, "append_text", full)
    trainer.fit(steps=6)
    assert [line["step"] for line in lines(trainer) if "loss" in line] == [1, 2, 3, 4, 5, 6]
    notes = [line["note"] for line in lines(trainer) if "No space left" in line.get("note", "")]
    assert len(notes) == 1 and str(trainer.run.log_file) in notes[0] and notes[0] in capsys.readouterr().err


@pytest.mark.slow
def test_nobody_reads_what_is_said(make_trainer, monkeypatch):
    """A pipe that was closed, or a full disk under ``2> file``."""

    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError if self.isatty is None else OSError(28, "No space left on device")

    for closed in (Closed(), Closed()):
        monkeypatch.setattr(sys, "stderr", closed)
        make_trainer(f"run-{id(closed)}", show=True).fit(steps=1)
        Closed.isatty = None  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["deleted", "moved", "replaced", "without config.json"])
def test_a_run_folder_that_is_gone_ends_training(make_trainer, monkeypatch, tmp_path, what):
    pictures = [torch.arange(0, 192, 2, dtype=torch.uint8).reshape(1, 8, 12)]
    monkeypatch.setattr("patch_diffusion.training.loop.sample_pictures", lambda *_: (pictures, None))
    trainer = make_trainer(checkpoints=4, samples=8)
    step, run = trainer.train_step, trainer.run.path

    def meanwhile(spent):
        if trainer.state.counters.step == 2:
            trainer.checkpoints.wait()
            if what == "without config.json":
                trainer.run.config_file.unlink()
            else:
                run.rename(tmp_path / "moved")
            if what == "replaced":
                shutil.copytree(tmp_path / "moved", run)
            if what == "deleted":
                shutil.rmtree(tmp_path / "moved")
            trainer.seen = contents(trainer.run)
        return step(spent)

    monkeypatch.setattr(trainer, "train_step", meanwhile)
    with pytest.raises(
        pd.InputError, match="is not the folder of this run any more: it was deleted, moved or replaced"
    ):
        trainer.fit(steps=8)
    assert trainer.state.counters.step <= 4 and run.exists() == (what in ("replaced", "without config.json"))
    assert contents(trainer.run) == trainer.seen
    if what == "moved":
        again = make_trainer("moved", checkpoints=4)
        again.fit(steps=8)
        assert again.state.counters.step == 8


@pytest.mark.slow
def test_a_lost_config_is_found_in_the_checkpoints(make_trainer, tmp_path, capsys):
    make_trainer(checkpoints=2).fit(steps=2)
    run = make_trainer(checkpoints=2).run
    before = run.config_file.read_text()
    advice = f": copy {run.checkpoint(2) / 'config.json'} to {run.config_file}, and the run is whole again"
    for damage in (run.config_file.unlink, lambda: run.config_file.write_text(before[:40])):
        damage()
        for use in (pd.load, pd.describe, lambda path: make_trainer(checkpoints=2)):
            with pytest.raises(pd.InputError, match=re.escape(advice)):
                use(run.path)
        assert main(["train", "--out", str(run.path)]) == 2 and advice in capsys.readouterr().err
    shutil.copy(run.checkpoint(2) / "config.json", run.config_file)
    assert run.config_file.read_text() == before
    make_trainer(checkpoints=2).fit(steps=3)


@pytest.fixture
def as_nobody():
    """``as_nobody()``: a user who may read only what all may read; root may read everything."""
    user = os.geteuid()
    yield lambda: os.seteuid(65534) if user == 0 else None
    os.seteuid(user)


@pytest.mark.slow
def test_others_may_read_what_the_umask_lets_them_read(make_trainer, as_nobody):
    before = os.umask(0o022)
    try:
        make_trainer().fit(steps=1)
    finally:
        os.umask(before)
    run = make_trainer().run
    written = [path for path in run.path.rglob("*") if path.is_file()]
    assert {path.name: path.stat().st_mode & 0o777 for path in written} == {path.name: 0o644 for path in written}
    run.model_file.chmod(0)
    as_nobody()
    with pytest.raises(pd.InputError, match="model.safetensors may not be read by this user"):
        read_tensors(run.model_file)
    with pytest.raises(pd.InputError, match="(may not be read by this user|is missing)"):
        read_tensors(run.path / "nothing.safetensors")


def test_a_full_disk_leaves_nothing_half_written(make_trainer, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(pd.InputError, match="MB of room"):
        make_trainer().fit(steps=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_disk_that_fills_during_a_save(make_trainer, monkeypatch):
    from patch_diffusion.training.checkpoints import checkpoint

    trainer = make_trainer(checkpoints=2)
    write = checkpoint.write_tensors

    def full(path, tensors):
        if "step-00000004" in str(path) and path.name == "optimizer.safetensors":
            raise OSError(28, "No space left on device", str(path))
        write(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.fit(steps=4)
    assert [path.name for path in (trainer.run.path / "checkpoints").iterdir() if path.name != "step-00000000"] == [
        "step-00000002"
    ]
    monkeypatch.undo()
    continued = make_trainer(checkpoints=2)
    continued.fit(steps=4)
    assert continued.state.counters.step == 4


def test_the_step_never_asks_a_tensor_for_its_value(make_trainer, monkeypatch):
    """On a GPU every such question would wait for all that is queued."""
    trainer = make_trainer(optimizer=Optimizer("adamw"))  # Muon asks once, on a CPU alone

    def asked(tensor, *_):
        raise AssertionError("the step waits for a value")

    for question in ("item", "tolist", "__bool__", "__float__", "__int__", "numpy"):
        monkeypatch.setattr(torch.Tensor, question, asked)
    _, loss = trainer.train_step()
    monkeypatch.undo()
    assert loss.isfinite() and not loss.requires_grad


@pytest.mark.slow
def test_an_option_that_is_allowed_to_change_does(make_trainer):
    make_trainer().fit(steps=2)
    # As it is spelled on the command line.
    changed = make_trainer(optimizer=Optimizer(weight_decay=0.5), allow=["optimizer.weight-decay"])
    changed.fit(steps=3)
    assert {group["weight_decay"] for group in changed.state.optimizer.param_groups} == {0.5}


@pytest.mark.slow
def test_options_that_cannot_change(make_trainer):
    """They are not offered to ``allow``, and are refused there, since no checkpoint would fit."""
    make_trainer().fit(steps=2)
    for option, settings in (
        ("optimizer.kind", {"optimizer": Optimizer(kind="adamw")}),
        ("ema.lengths", {"ema": Ema(lengths=(0.05, 0.1))}),
        ("network.attention", {"network": {"attention": (0, 1)}}),
        ("patches.coords", {"coords": False}),
        ("num_classes", {"network": {"num_classes": 0}}),
    ):
        for allow in ([], [option, "optimizer.decay", "parameters"]):
            with pytest.raises(pd.InputError, match=f"{option} cannot change in a run that goes on") as refused:
                make_trainer(**settings, allow=allow)
            assert "--allow" not in str(refused.value)


def contents(run):
    return {
        path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and not path.name.endswith(".lock")
    }


@pytest.mark.slow
def test_a_refused_continuation_changes_nothing(make_trainer, monkeypatch):
    make_trainer().fit(steps=2)
    before = contents(make_trainer().run)
    monkeypatch.setattr("patch_diffusion.runs.folder._FIXED", ())  # as of an option that nobody thought of
    other = make_trainer(network={"blocks": 2}, allow=["network.blocks", "parameters"])
    with pytest.raises(pd.InputError, match="does not fit the network"):
        other.fit(steps=4)
    meter = pd.SampleMeter(["frechet"], times=1, samples=4)

    def refuse(*_):
        raise pd.InputError("no images")

    monkeypatch.setattr(meter, "begin", refuse)
    with pytest.raises(pd.InputError, match="no images"):
        make_trainer(meter=meter, batch=8, allow=["batch", "watch.samples"]).fit(steps=4)
    assert contents(other.run) == before


@pytest.mark.slow
def test_a_complete_run_keeps_its_config_and_its_log(make_trainer):
    make_trainer().fit(steps=3)
    before = contents(make_trainer().run)
    again = make_trainer(batch=8, allow=["batch"])
    again.fit(steps=2)
    assert contents(again.run) == before and again.run.read_config()[0].steps == 3


@pytest.mark.slow
def test_what_a_kill_has_left_of_checkpoints_is_removed(make_trainer):
    make_trainer().fit(steps=2)
    folder = make_trainer().run.path / "checkpoints"
    for name in ("step-00000001.tmp", "step-00000002.old"):
        (folder / name).mkdir()
        (folder / name / "weights.safetensors").write_bytes(b"half")
    again = make_trainer()
    again.fit(steps=4)
    assert {path.name for path in folder.iterdir()} == {path.name for path in again.run.checkpoints()}
