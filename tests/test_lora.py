"""Low-rank updates: they alone are trained, and the model that is saved has them added."""

import copy

import pytest
import torch

import patch_diffusion as pd
from needs import need
from patch_diffusion.config import Config, Optimizer
from patch_diffusion.training.optimizing.lora import add_lora, merge
from refusal import refused


def lora(rank=2, **options):
    return Optimizer(lora=rank, kind="adamw", learning_rate=0.01, **options)


def test_what_does_not_go_with_it_is_refused(make_trainer):
    for options, message in (
        ({"rank": 0}, "is a rank of at least 1, not 0"),
        ({"only": ("norms",)}, "does not go with optimizer.only"),
    ):
        with refused("optimizer.lora", match=message):
            make_trainer(optimizer=lora(**options))
    with refused("optimizer.lora", match="networks of this package and .*, not for a Linear"):
        add_lora(torch.nn.Linear(2, 2), Config(optimizer=lora()))


@pytest.mark.slow
def test_only_updates_are_trained_and_the_saved_model_is_plain(make_trainer, tmp_path):
    need("peft", "lora")
    trainer = make_trainer(optimizer=lora(), checkpoint_steps=2)
    before = {name: weight.detach().clone() for name, weight in trainer.state.network.named_parameters()}
    model = trainer.fit(steps=4)
    names = {name for name, weight in trainer.state.network.named_parameters() if not torch.equal(weight, before[name])}
    assert names and all("lora_" in name for name in names)
    loaded = pd.load(tmp_path / "run", device="cpu")
    for name, weight in loaded.module.state_dict().items():
        assert torch.equal(weight, model.module.state_dict()[name]) and "lora" not in name
    started = before["middle.0.conv0.base_layer.weight"]
    moved = loaded.module.state_dict()["middle.0.conv0.weight"] - started
    assert moved.abs().max() > 0

    half = make_trainer("half", optimizer=lora(), checkpoint_steps=2)
    with half.in_laps(steps=4) as train_until:
        train_until(0.5)
        half.save()
    again = make_trainer("half", optimizer=lora(), checkpoint_steps=2).fit(steps=4)
    for one, other in zip(model.module.parameters(), again.module.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ncsnpp", "dit", "diffusers"])
def test_merged_weights_denoise_as_the_updates_do(kind):
    need("peft", "lora")
    if kind == "diffusers":
        model = {"down_block_types": ["AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D"], "layers_per_block": 1}
        model = need("diffusers", "hub").UNet2DModel(3, 3, 1, block_out_channels=[8], norm_num_groups=4, **model)
        network = pd.DiffusersNetwork(model)
    else:
        network = pd.DiT(1, 16, 1, 1, num_classes=2) if kind == "dit" else pd.UNet(1, 8, (1, 1), 1, kind=kind)
    plain = copy.deepcopy(network).eval()
    add_lora(network, Config(optimizer=lora()))
    x, c_noise = torch.randn(2, 3, 8, 8), torch.zeros(2)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x, c_noise), plain(x, c_noise))
        for name, weight in network.named_parameters():
            if "lora_" in name:
                weight.add_(0.1 * torch.randn_like(weight))
        merge(network, plain)
        torch.testing.assert_close(network(x, c_noise), plain(x, c_noise), rtol=1e-4, atol=1e-5)
