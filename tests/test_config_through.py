"""One config goes in, and it is the config that the run stores: every option acts as it was given, or is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.cli.train import Train
from patch_diffusion.config import Config, Data, Network, Optimizer
from patch_diffusion.config_dict import flat_options, from_dict, option_names
from patch_diffusion.runs.folder import RunFolder
from patch_diffusion.training.batches import Position
from refusal import refused

SMALL = Network(width=8, multipliers=(1,), blocks=1)

DIT = {"network.kind": "dit", "network.heads": 2, "network.multipliers": None, "network.blocks": None}

# A value off its default of each option, and other options that it needs beside it, or why it is refused without them.
VALUES = {
    "data.source": ("digits", {}),
    "data.resolution": (8, {"data.source": "PICTURES"}),
    "data.classes": (False, {}),
    "data.mode": ("L", {"data.source": "PICTURES"}),
    "data.fit": ("stretch", {"data.source": "PICTURES", "data.resolution": 8}),
    "data.range": ([0.0, 200.0], {"data.source": "ARRAYS"}),
    "data.labels": ("LABELS", {"data.source": "ARRAYS"}),
    "data.paired": (["ARRAYS"], {"data.source": "ARRAYS"}),
    "data.paired_kind": ("image", {"data.source": "ARRAYS", "data.paired": ["ARRAYS"]}),
    "data.conditions": (["LABELS"], {"data.source": "ARRAYS"}),
    "data.group": ("LABELS", {"data.source": "ARRAYS", "data.held_out": 0.25}),
    "data.key": ("images", {"data.source": "NPZ"}),
    "data.layout": ("channels_first", {"data.source": "ARRAYS"}),
    "data.cache": ("memory", {"data.source": "PICTURES"}),
    "data.held_out": (0.25, {}),
    "data.augment.flip": (0.5, {}),
    "data.augment.p": (0.1, {}),
    "data.augment.resample": (False, {"data.augment.p": 0.1}),
    "data.augment.colour": (True, {"data.augment.p": 0.1}),
    "patches.whole": (0.25, {}),
    "patches.sizes": ({"1/2": 1.0}, {}),
    "patches.kind": ("progressive", {}),
    "patches.growth": ("area", {}),
    "patches.weight": ("area", {}),
    "patches.coords": (False, {}),
    "patches.context": (8, {}),
    "noise.p_mean": (-0.5, {}),
    "noise.p_std": (1.0, {}),
    "noise.process": ("vp", {}),
    "noise.weight": ("learned", {}),
    "noise.sigma_data": (0.7, {}),
    "noise.sigma_min": (0.01, {}),
    "noise.sigma_max": (40.0, {}),
    "noise.mean_data": ([-0.4], {}),
    "noise.levels": ([0.1, 0.4], {}),
    "network.kind": ("ncsnpp", {}),
    "network.width": (16, {}),
    "network.dropout": (0.2, {}),
    "network.label_dropout": (0.1, {}),
    "network.multipliers": ([1, 2], {}),
    "network.blocks": (2, {}),
    "network.attention": ([0], {}),
    "network.depth": (2, DIT),
    "network.heads": (2, DIT),
    "network.token": (2, DIT),
    "network.unet": None,  # tests/test_start.py
    "optimizer.kind": ("muon", {}),
    "optimizer.learning_rate": (2e-3, {}),
    "optimizer.betas": ([0.8, 0.95], {}),
    "optimizer.weight_decay": (0.01, {}),
    "optimizer.clip": (1.0, {}),
    "optimizer.warmup": (0.1, {}),
    "optimizer.decay": ("constant", {}),
    "optimizer.only": (["attention", "norms"], {}),
    "optimizer.lora": None,  # tests/test_lora.py
    "ema.half_life_images": (1000.0, {}),
    "ema.ramp": (0.1, {}),
    "ema.lengths": ([0.1], {}),
    "engine.device": ("cpu", {}),
    "engine.threads": (1, {}),
    "engine.processes": (1, {}),
    "engine.precision": ("bf16", {}),
    "engine.compile": None,  # it acts, and takes minutes
    "engine.recompute": (True, {}),
    "engine.accumulation": (2, {}),
    "engine.shard": (True, "shares the model over several processes"),
    "watch.metrics": (["frechet"], {"watch.samples": 4, "watch.times": 1}),
    "watch.times": (2, "has no effect without watch.metrics"),
    "watch.samples": (4, "has no effect without watch.metrics"),
    "watch.extractor": ("random", {}),
    "batch": (6, {}),
    "few_steps": (2, {}),
    "batch_pixels": (10**6, {}),
    "start": None,  # tests/test_start.py
    "seed": (3, {}),
    "steps": (2, {}),
    "images": (8, {"steps": None}),
    "minutes": (0.001, {"steps": None}),
    "wall_minutes": None,  # tests/test_clock.py
    "checkpoints": (2, {}),
    "checkpoint_minutes": (5.0, {}),
    "checkpoint_steps": (1, {}),
    "checkpoint_last": (2, {}),
    "checkpoint_best": (True, {"data.held_out": 0.25}),
    "checkpoint_by": ("frechet", "says which checkpoint is the best"),
    "watchdog": ("stop", {}),
    "samples": (1, {}),
    "log_every": (1, {}),
    "track": (["tensorboard"], {}),
}


LISTS = ("data.conditions", "data.paired")


@pytest.fixture
def sources(tmp_path, make_folder):
    pixels = np.random.default_rng(0).integers(0, 200, (40, 1, 16, 16), dtype=np.uint8)
    np.save(tmp_path / "arrays.npy", pixels)
    np.save(tmp_path / "labels.npy", np.arange(40) % 2)
    np.savez(tmp_path / "arrays.npz", images=pixels, others=pixels)
    return {
        "PICTURES": str(make_folder(40, (16, 16), "RGB")),
        "ARRAYS": str(tmp_path / "arrays.npy"),
        "NPZ": str(tmp_path / "arrays.npz"),
        "LABELS": str(tmp_path / "labels.npy"),
    }


def nested(flat):
    found = {}
    for name, value in flat.items():
        *groups, option = name.split(".")
        inside = found
        for group in groups:
            inside = inside.setdefault(group, {})
        inside[option] = value
    return found


def test_every_option_is_tried():
    assert set(VALUES) == option_names()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, value in VALUES.items() if value is not None])
def test_the_config_that_was_given_is_the_config_that_is_stored(name, tmp_path, sources):
    value, others = VALUES[name]
    base = Config(
        data=Data(source="digits"), network=SMALL, optimizer=Optimizer(), batch=4, steps=1, samples=0, track=(), seed=1
    )
    given = {name: value} | (others if isinstance(others, dict) else {})
    given = {key: sources.get(each, each) if isinstance(each, str) else each for key, each in given.items()}
    given = {key: [sources[name] for name in each] if key in LISTS else each for key, each in given.items()}
    config = from_dict(nested(given), base=base)
    if isinstance(others, str):
        with refused(name, others):
            pd.train(config, tmp_path / "run", show=False)
        assert not (tmp_path / "run").exists()
        return
    pd.train(config, tmp_path / "run", show=False)
    stored = flat_options(RunFolder(tmp_path / "run").read_config()[0])
    asked, usual = flat_options(config), flat_options(Config())
    assert {key: stored[key] for key in asked if asked[key] != usual[key]} == {
        key: asked[key] for key in asked if asked[key] != usual[key]
    }
    # The same call continues: nothing that was stored differs from what is asked.
    pd.train(config, tmp_path / "run", show=False)


@pytest.mark.slow
def test_images_over_the_most_pixels_take_a_smaller_batch(tmp_path):
    config = Config(data=Data(source="digits"), network=SMALL, batch=32, batch_pixels=4096, steps=1, samples=0)
    pd.train(config, tmp_path / "run", show=False)
    stored, _ = RunFolder(tmp_path / "run").read_config()
    assert stored.batch_pixels == 4096 and stored.batch == 16


@pytest.fixture
def parts(images):
    torch.manual_seed(0)
    network = pd.UNet(3, width=8, multipliers=(1, 2), blocks=1, num_classes=2)
    return pd.Denoiser(network, 0.5), images


Parts = tuple[pd.Denoiser, pd.ImageSet]
QUIET: Any = {"samples": 0, "show": False, "track": ()}


@pytest.mark.slow
def test_a_trainer_takes_a_config_or_a_schedule_or_keywords(parts: Parts, tmp_path):
    schedule = pd.PatchSchedule(whole=0.25, sizes={"1/2": 1.0}, seed=5)
    whole = Config(patches=schedule, batch=8, samples=0, track=())
    trainers = [
        pd.Trainer(*parts, whole, out=tmp_path / "a", show=False),
        pd.Trainer(*parts, schedule, out=tmp_path / "b", batch=8, **QUIET),
        pd.Trainer(*parts, schedule=schedule, out=tmp_path / "c", batch=8, **QUIET),
    ]
    assert trainers[0].config == trainers[1].config == trainers[2].config
    assert trainers[0].config.seed == 5 and trainers[0].config.patches.whole == 0.25
    assert trainers[0].config.network.width == 8 and trainers[0].config.noise.sigma_data == 0.5


@pytest.mark.parametrize(
    ("config", "option"),
    [
        (Config(network=Network(width=64)), "network.width"),
        (Config(noise=pd.NoiseLevels(process="vp")), "noise.process"),
        (Config(noise=pd.NoiseLevels(sigma_data=0.7)), "noise.sigma_data"),
        (Config(data=Data(resolution=64)), "data.resolution"),
        (Config(patches=pd.PatchSchedule(sizes={"1/2": 1.0}, coords=False)), "patches.coords"),
    ],
)
def test_a_config_that_contradicts_the_objects_is_refused(parts: Parts, tmp_path, config, option):
    with refused(option):
        pd.Trainer(*parts, config, out=tmp_path / "run", show=False)


def test_two_seeds_are_refused(parts: Parts, tmp_path):
    config = Config(patches=pd.PatchSchedule(sizes={"1/2": 1.0}, seed=3), seed=4)
    with refused("seed"):
        pd.Trainer(*parts, config, out=tmp_path / "run", show=False)


def test_an_option_given_twice_is_refused(parts: Parts, tmp_path):
    config = Config(patches=pd.PatchSchedule(sizes={"1/2": 1.0}), batch=8)
    with refused("batch"):
        pd.Trainer(*parts, config, out=tmp_path / "run", batch=4, show=False)


def test_two_schedules_are_refused(parts: Parts, tmp_path):
    with refused("patches"):
        pd.Trainer(*parts, pd.PatchSchedule(), schedule=pd.PatchSchedule(whole=1), out=tmp_path / "run")


def test_an_unknown_keyword_names_the_nearest(parts: Parts, tmp_path):
    with pytest.raises(TypeError, match="Trainer has no option 'bacth'; did you mean 'batch'"):
        pd.Trainer(*parts, out=tmp_path / "run", bacth=4)  # pyright: ignore[reportCallIssue]


def test_the_weight_of_a_loss_was_a_keyword_of_its_own(parts: Parts, tmp_path):
    schedule = pd.PatchSchedule(sizes={"1/2": 1.0})
    with pytest.warns(DeprecationWarning, match="weight is an option of noise"):
        trainer = pd.Trainer(*parts, schedule, out=tmp_path / "run", weight="learned", **QUIET)  # pyright: ignore[reportCallIssue]
    assert trainer.config.noise.weight == "learned" and trainer.state.balance is not None


def test_the_groups_that_act_are_the_groups_of_options():
    schedule = pd.PatchSchedule(whole=0.25, seed=3)
    assert replace(schedule, whole=0.5).seed == 3
    assert (
        from_dict({}, base=Config(patches=schedule)).patches
        == Config(patches=replace(Config().patches, whole=0.25)).patches
    )


def test_kind_fixed_of_before_is_stochastic_with_a_warning():
    with pytest.warns(DeprecationWarning, match="'fixed' is 'stochastic' with one size now"):
        schedule = pd.PatchSchedule(whole=1, kind="fixed")
    assert schedule.kind == "stochastic"


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--patches.kind", "fixed"], ["--patches.kind=fixed"]])
def test_kind_fixed_of_before_on_the_command_line(tmp_path, capsys, words):
    options = Train.parse(["digits", "--out", str(tmp_path), "--patches.whole", "1", *words]).options
    assert options.patches.kind == "stochastic" and options.patches.whole == 1
    assert (
        capsys.readouterr().err == "--patches.kind fixed is stochastic now; the old name works for one more release\n"
    )


@pytest.mark.slow
def test_a_group_of_ones_own_class_acts(parts: Parts, tmp_path):
    class OnlyWhole(pd.PatchSchedule):
        def size_at(self, step, resolution, spent=0.0, stride=1):
            return self.sizes_for(resolution, stride)[-1]

    class OneLevel(pd.NoiseLevels):
        def draw(self, num, *, generator=None):
            return torch.full((num,), 0.7)

    schedule = OnlyWhole(whole=0.5, sizes={"1/2": 1.0})
    trainer = pd.Trainer(*parts, schedule, out=tmp_path / "run", batch=4, noise=OneLevel(), **QUIET)
    assert {str(trainer.train_step()[0]) for _ in range(4)} == {"8x12"}
    batch = trainer.batches.make(trainer.batches.plan(Position(9, 0, {})), range(4))
    assert batch.sigma.eq(0.7).all() and trainer.config.patches == Config().patches.__class__(sizes={"1/2": 1.0})
