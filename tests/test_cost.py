from dataclasses import replace

import pytest
import torch

from patch_diffusion.config import Config, Network, Patches
from patch_diffusion.data.images import ImageSet
from patch_diffusion.races.cost import cost_of_steps
from patch_diffusion.training.build import build_trainer

SPEED = {"overhead": 3.0, "rate": 1e6}


@pytest.fixture(scope="module")
def config():
    network = Network(width=4, multipliers=(1,), blocks=1, attention=())
    return Config(network=network, batch=4, patches=Patches(whole=0.5, sizes={"1/2": 1.0}, growth="area"), minutes=1)


@pytest.fixture(scope="module")
def trainer(config, tmp_path_factory):
    images = ImageSet(torch.arange(9 * 64, dtype=torch.uint8).reshape(9, 1, 8, 8))
    whole = replace(config, patches=Patches(whole=1.0))  # so that patches are not counted yet
    return build_trainer(whole, images, tmp_path_factory.mktemp("cost") / "run", show=False)


def test_minutes_are_those_of_the_overhead_and_of_the_operations(trainer, config):
    cost = cost_of_steps(trainer, config, SPEED)
    whole = replace(config, patches=Patches(whole=1.0))
    assert cost(whole) == pytest.approx((3 + 4 * trainer.flops[(8, 8)] / 1e6) / 60)
    # Four times as many quarters take as long but for the attention, of which there is little.
    assert 0.9 * cost(whole) < cost(config) < cost(whole)
    assert cost(replace(config, batch=8)) - cost(config) == pytest.approx(cost(config) - 3 / 60)
    fewer = replace(config, patches=replace(config.patches, growth="none"))
    assert cost(fewer) < 0.9 * cost(config)


def test_images_and_steps_are_counted(trainer, config):
    images = replace(config, minutes=None, images=100)
    assert cost_of_steps(trainer, images, {})(images) == pytest.approx(0.5 * 4 + 0.5 * 16)
    steps = replace(config, minutes=None, steps=100)
    assert cost_of_steps(trainer, steps, {})(steps) == 1
