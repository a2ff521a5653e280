"""Training of some parts of a network, while the others stay as they are."""

import pytest
import torch

import patch_diffusion as pd
from needs import need
from patch_diffusion.config import Optimizer
from patch_diffusion.training.optimizing.parts import parts_of
from refusal import refused


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["muon", "adamw", "schedule_free"])
def test_only_the_named_parts_are_trained(make_trainer, kind):
    if kind == "schedule_free":
        need("schedulefree", "schedule-free")
    trainer = make_trainer(optimizer=Optimizer(kind=kind, only=("attention", "norms"), learning_rate=0.01))
    network = trainer.state.network
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    model = trainer.fit(steps=3)
    for found in (network, model.module):
        moved = {name for name, weight in found.named_parameters() if not torch.equal(weight, before[name])}
        assert moved and all("attention" in name or "norm" in name for name in moved)
    assert {name.rpartition(".")[0] for name in moved} >= {"middle.0.attention.qkv", "middle.0.norm0", "last_norm"}


@pytest.mark.slow
def test_it_continues_as_if_it_had_never_stopped(make_trainer, tmp_path):
    options = {"optimizer": Optimizer(only=("first", "last")), "checkpoint_steps": 2}
    whole = make_trainer("whole", **options).fit(steps=4)
    trainer = make_trainer("half", **options)
    with trainer.in_laps(steps=4) as train_until:
        train_until(0.5)
        trainer.save()
    model = make_trainer("half", **options).fit(steps=4)
    for one, other in zip(whole.module.parameters(), model.module.parameters(), strict=True):
        assert torch.equal(one, other)


def test_parts_of_each_network():
    unet = {"attention", "norms", "embeddings", "first", "last", "encoder", "middle", "decoder"}
    assert set(parts_of(pd.UNet(1, 8, (1, 2), 1))) == unet
    transformer = {"attention", "norms", "embeddings", "first", "last", "blocks"}
    assert set(parts_of(pd.DiT(1, 16, 1, 1, num_classes=2))) == transformer
    assert parts_of(torch.nn.Conv2d(1, 1, 1)) == {}


def test_unknown_parts_are_refused(make_trainer):
    with refused("optimizer.only", match="names no part 'atention' of this network; did you mean 'attention'"):
        make_trainer(optimizer=Optimizer(only=("norms", "atention")))
    with refused("optimizer.only", match="names no part: choose from attention"):
        make_trainer(optimizer=Optimizer(only=()))
