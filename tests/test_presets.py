from dataclasses import replace

import pytest
import torch

import patch_diffusion as pd
from patch_diffusion.config import Network
from patch_diffusion.presets import PRESETS
from patch_diffusion.runs.model import build_network
from refusal import refused


def parameters(preset, channels=3, classes=0):
    with torch.device("meta"):
        network = build_network(PRESETS[preset].network, channels, classes, coords=False)
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("preset", "millions", "classes"), [("ddpmpp-64", 62, 0), ("ncsnpp-64", 63, 0), ("adm-64", 296, 1000)]
)
def test_published_networks_have_the_published_size(preset, millions, classes):
    """EDM, arXiv 2206.00364, table 7, which rounds."""
    assert parameters(preset, classes=classes) / 1e6 == pytest.approx(millions, abs=1)


def test_a_preset_is_a_whole_plan():
    for config in PRESETS.values():
        assert sum(value is not None for value in (config.steps, config.images, config.minutes)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["small", "ncsnpp-small", "adm-small", "dit-small", "digits"])
def test_small_presets_train_and_sample(preset, tmp_path):
    config = replace(PRESETS[preset], data=replace(PRESETS[preset].data, source="digits"), samples=0, checkpoints=1)
    model = pd.train(replace(config, minutes=None, steps=1, batch=2), tmp_path / "run", show=False)
    (sample,) = pd.generate(model, [0], steps=2)
    assert sample.pixels.shape == (1, 16, 16)
    again = pd.load(tmp_path / "run")
    assert torch.equal(next(iter(pd.generate(again, [0], steps=2))).pixels, sample.pixels)


@pytest.mark.slow
@pytest.mark.parametrize("process", ["edm", "ve", "vp", "flow"])
def test_every_process_trains_and_is_stored(process, tmp_path):
    base = PRESETS["digits"]
    config = replace(
        base, data=replace(base.data, source="digits"), noise=replace(base.noise, process=process, p_mean=None)
    )
    config = replace(config, minutes=None, steps=2, batch=2, samples=0, checkpoints=1)
    model = pd.train(config, tmp_path / "run", show=False)
    again = pd.load(tmp_path / "run")
    assert again.process == model.process and again.process.name == process
    assert (again.sigma_min, again.sigma_max) == (model.process.sigma_min, model.process.sigma_max)
    one, two = (next(iter(pd.generate(each, [0], steps=3))).pixels for each in (model, again))
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"kind": "dit", "multipliers": (1, 2)}, "network.multipliers"),
        ({"kind": "adm", "token": 2}, "network.token"),
        ({"kind": "dit", "width": 30, "heads": 4}, "network.width"),
        ({"kind": "dit", "depth": 0}, "network.depth"),
    ],
)
def test_options_of_another_network_are_refused(options, option):
    with refused(option):
        build_network(Network(**options), 3, 0, coords=True)
