"""The magnitude-preserving U-Net: sizes of activations and weights, against formulas, and what all networks can."""

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import patch_diffusion as pd
from needs import need
from patch_diffusion import config
from patch_diffusion.config import Network, Optimizer
from patch_diffusion.denoise.networks import edm2
from patch_diffusion.denoise.networks.edm2 import Block, EDM2UNet, UnitConv2d, UnitLinear
from patch_diffusion.denoise.objective import DenoisingObjective
from patch_diffusion.runs.model import build_network
from patch_diffusion.training.choices.suggest import suggest
from patch_diffusion.training.hardware.engine import Engine
from patch_diffusion.training.optimizing.optimizers import RATES_OF_UNIT_WEIGHTS, settled
from patch_diffusion.training.state import TrainingState
from refusal import refused

LAYERS = UnitConv2d | UnitLinear


def tiny(**options):
    torch.manual_seed(0)
    return EDM2UNet(**{"image_channels": 1, "width": 8, "multipliers": (1, 2), "blocks": 1, "dropout": 0.0, **options})


def excite(network):
    """Turn up the gains, which begin at 0, so that everything matters."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("gain"):
                parameter.fill_(0.7)
    return network.eval()


def size_of(x):
    return x.square().mean().sqrt().item()


def rows_of(network):
    """The root mean square of the weights of each output of each layer."""
    layers = [layer for layer in network.modules() if isinstance(layer, LAYERS)]
    return torch.cat([layer.weight.detach().double().flatten(1).square().mean(dim=1).sqrt() for layer in layers])


def test_activations_have_a_mean_square_of_1(monkeypatch):
    """After the first layer and every block, over some networks, for images of unit variance.

    Attention is replaced by what it attends to, as an average of many pixels is smaller than each of them.
    """
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v: v)
    coords, squares = pd.coordinate_grid(64, 64)[None], []
    for seed in range(12):
        torch.manual_seed(seed)
        network = EDM2UNet(3, 32, (1, 2), 1, dropout=0.0)
        for module in (network.first, *(m for m in network.modules() if isinstance(m, Block))):
            module.register_forward_hook(lambda module, given, x: squares.append(x.square().mean()))
        with torch.no_grad():
            network(torch.cat([torch.randn(1, 3, 64, 64), coords], dim=1), torch.randn(1))
    sizes = torch.stack(squares).view(12, 11).mean(dim=0).sqrt()
    torch.testing.assert_close(sizes, torch.ones(11), rtol=0, atol=0.05)


def test_embeddings_have_the_size_of_an_activation():
    network = tiny(width=512, multipliers=(1,), num_classes=5)
    found = network._embedding(torch.linspace(-1.5, 1, 8), torch.arange(-1, 7).clamp(max=4), None, None)
    assert size_of(found) == pytest.approx(edm2.SILU, rel=0.05)


def test_constants_of_the_paper():
    """MP-SiLU, MP-sum and MP-cat on normal numbers, and the pixel norm by its formula."""
    torch.manual_seed(0)
    a, b = torch.randn(2, 2, 10, 100, 100).double()
    assert size_of(F.silu(a)) == pytest.approx(edm2.SILU, rel=0.01)
    total = torch.add(edm2.JOINS * b, a, alpha=edm2.STAYS)
    torch.testing.assert_close(total, (0.7 * a + 0.3 * b) / math.sqrt(0.7**2 + 0.3**2))
    assert size_of(total) == pytest.approx(1, rel=0.01)
    few = b[:, :3]
    both = edm2.concatenated(a, few)
    assert both.square().sum(dim=1).mean().item() == pytest.approx(13, rel=0.02)
    assert both[:, :10].square().sum().item() == pytest.approx(both[:, 10:].square().sum().item(), rel=0.02)
    assert torch.equal(edm2.concatenated(a, b), torch.cat([a, b], dim=1))
    expected = a / (a.square().mean(dim=1, keepdim=True) + 1e-4).sqrt()
    torch.testing.assert_close(edm2.normalised(a), expected)
    small = 1e-3 * torch.randn(1, 3, 2, 2).double()  # for which the 1e-4 matters
    assert torch.autograd.gradcheck(edm2.normalised, small.requires_grad_())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_weights_are_used_with_the_norm_of_their_gain(layout):
    torch.manual_seed(0)
    weight = torch.randn(6, 3, 3, 3).to(memory_format=layout)
    for gain in (0.5, torch.tensor([0.5]), torch.linspace(0.1, 2, 6)):
        found = edm2.unit(weight, gain)
        assert found.is_contiguous(memory_format=layout)
        norms = weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        each = gain.expand(6).view(-1, 1, 1, 1) if isinstance(gain, torch.Tensor) else gain
        torch.testing.assert_close(found, weight / norms * each)


def test_it_begins_with_nothing_and_unit_weights():
    network = tiny()
    assert not network(torch.randn(2, 3, 8, 8), torch.zeros(2)).any()
    torch.testing.assert_close(rows_of(network), torch.ones(len(rows_of(network))).double(), rtol=0, atol=1e-6)
    assert not any(name.endswith("bias") for name, _ in network.named_parameters())


def test_settings_rebuild_it_and_wrong_ones_are_refused():
    network = tiny(num_classes=4, label_dropout=0.3, dropout=0.2, attention=(0, 1), augment_channels=9)
    options = Network(**network.settings)
    again = build_network(options, 1, 4, augment_channels=9, coords=True)
    again.load_state_dict(network.state_dict())
    assert isinstance(again, EDM2UNet) and again.settings == network.settings
    for wrong in ({"multipliers": ()}, {"width": 6}, {"blocks": 0}, {"attention": (2,)}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            tiny(**wrong)
    with refused("network.depth"):
        build_network(replace(options, depth=2), 1, 4, coords=True)
    with pytest.raises(ValueError, match="multiples of 2, not 8 x 7"):
        network(torch.zeros(1, 3, 8, 7), torch.zeros(1))


def test_any_width_has_heads_of_at_most_64_channels():
    heads = {channels: edm2.Attention(channels).heads for channels in (4, 64, 80, 128, 224)}
    assert heads == {4: 1, 64: 1, 80: 2, 128: 2, 224: 4}


def test_everything_it_is_told_matters():
    network = excite(tiny(num_classes=3, augment_channels=9))
    x, c_noise = torch.randn(1, 3, 8, 8).expand(4, -1, -1, -1), torch.zeros(4)
    out = network(x, c_noise, torch.tensor([0, 1, 2, -1]))
    assert all((out[i] - out[j]).abs().max() > 1e-3 for i in range(4) for j in range(i))
    torch.testing.assert_close(network(x[:1], c_noise[:1], None), out[3:])
    assert torch.equal(network(x, c_noise, None, torch.zeros(4, 9)), network(x, c_noise))
    assert (network(x, c_noise, None, torch.randn(4, 9)) - network(x, c_noise)).abs().max() > 1e-3
    assert (network(x, c_noise + 1) - network(x, c_noise)).abs().max() > 1e-3
    moved = torch.cat([x[:, :1], x[:, 1:] + 1], dim=1)
    assert (network(moved, c_noise) - network(x, c_noise)).abs().max() > 1e-3
    touched = x.clone()
    touched[..., 0, 0] += 9
    assert (network(touched, c_noise) - network(x, c_noise))[..., -1, -1].abs().max() > 1e-6  # by attention


def test_ways_to_compute_it_agree():
    """One product for all blocks, one of each; blocks computed again; memory with channels last."""
    network = excite(tiny(num_classes=3, augment_channels=9)).train()
    given = (torch.randn(2, 3, 8, 8), torch.randn(2), torch.tensor([0, -1]), torch.randn(2, 9))

    def passes(run):
        network.zero_grad()
        out = run(*given)
        out.square().sum().backward()
        return [out.detach(), *(parameter.grad.clone() for parameter in network.parameters())]

    expected = passes(network)
    network.eval()
    found = {"each block": passes(network)}
    network.train()
    network.recompute = True
    found["recomputed"] = passes(network)
    network.recompute = False
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    found["channels last"] = passes(network)
    for way, values in found.items():
        torch.testing.assert_close(values, expected, rtol=1e-3, atol=1e-5, msg=lambda text, way=way: f"{way}: {text}")


@pytest.mark.scheduled
def test_it_compiles_as_one_graph():
    network, given = excite(tiny(multipliers=(1,), attention=())), (torch.randn(2, 3, 8, 8), torch.randn(2))
    compiled = torch.compile(network.train(), backend="aot_eager", fullgraph=True, dynamic=False)
    expected, found = (run(*given).square().sum() for run in (network, compiled))
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(loss, list(network.parameters())) for loss in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_half_precision_is_kept_and_clamped():
    network, kinds = excite(tiny()), []
    for block in (m for m in network.modules() if isinstance(m, Block)):
        block.register_forward_hook(lambda module, given, x: kinds.append(x.dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = network(torch.randn(1, 3, 8, 8), torch.zeros(1))
        block = Block(8, 8, 8, decodes=True)
        large = block(torch.full((1, 8, 4, 4), 1e4).bfloat16(), torch.randn(1, 8))
    assert out.dtype is torch.bfloat16 and set(kinds) == {torch.bfloat16}
    assert large.abs().max() == 256


def test_one_file_without_package_imports():
    """So that an export can carry it: it runs as a file of its own."""
    source = importlib.util.find_spec("patch_diffusion.denoise.networks.edm2").origin
    spec = importlib.util.spec_from_file_location("carried", source)
    module = importlib.util.module_from_spec(spec)
    sys.modules["carried"] = module
    spec.loader.exec_module(module)
    assert "import patch_diffusion" not in Path(source).read_text() and "from patch" not in Path(source).read_text()
    assert module.EDM2UNet(1, 8, (1,), 1)(torch.zeros(1, 3, 4, 4), torch.zeros(1)).shape == (1, 1, 4, 4)


def trainer_of(images, out, kind="muon", accumulation=1):
    torch.manual_seed(0)
    return pd.Trainer(
        pd.Denoiser(EDM2UNet(images.channels, 8, (1, 2), 1, num_classes=images.num_classes)),
        images,
        pd.PatchSchedule(sizes={"1/2": 1.0}),
        out=out,
        optimizer=Optimizer(kind),
        engine=config.Engine(accumulation=accumulation),
        batch=4,
        samples=0,
        show=False,
        track=(),
    )


def test_training_keeps_the_norms_of_weights(images, tmp_path):
    """To rounding, after every step, with Muon and AdamW, and with microbatches."""
    for kind, accumulation in (("muon", 2), ("adamw", 1)):
        trainer = trainer_of(images, tmp_path / kind, kind, accumulation)
        before = {name: weight.detach().clone() for name, weight in trainer.state.network.named_parameters()}
        for spent in (0.3, 0.4):
            trainer.train_step(spent)
            rows = rows_of(trainer.state.network)
            torch.testing.assert_close(rows, torch.ones_like(rows), rtol=0, atol=3e-7)
        weights = trainer.state.network.named_parameters()
        moved = [name for name, weight in weights if not torch.equal(weight, before[name])]
        assert "last_gain" in moved and "first.weight" in moved
        assert trainer.config.optimizer.learning_rate == RATES_OF_UNIT_WEIGHTS[kind]
        assert rows_of(trainer.state.average.denoiser).max() <= 1 + 1e-6  # averages are shorter, and used as such


def test_a_skipped_step_changes_nothing(images, tmp_path):
    trainer = trainer_of(images, tmp_path / "run")
    trainer.train_step(0.3)
    before = {name: tensor.clone() for name, tensor in trainer.state.network.state_dict().items()}
    for parameter in trainer.state.network.parameters():
        parameter.grad = torch.full_like(parameter, math.inf)
    trainer.state.normalise_weights(trainer.engine.step(trainer.state.optimizer, None))
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.state.network.state_dict().items())


@pytest.mark.parametrize(("kind", "length"), [("muon", 1.0), ("schedule_free", 0.5)])
def test_weights_that_are_averages_themselves_are_left_alone(kind, length):
    if kind == "schedule_free":
        need("schedulefree")
    optimizer = settled(Optimizer(kind), "edm2")
    network, engine = tiny(), Engine(config.Engine(device="cpu"))
    state = TrainingState(DenoisingObjective(pd.Denoiser(network)), pd.Config(optimizer=optimizer), engine)
    with torch.no_grad():
        network.first.weight.mul_(0.5)
    state.normalise_weights(torch.zeros(()))
    assert size_of(network.first.weight) == pytest.approx(length, abs=1e-6)


def test_the_usual_rate_is_that_of_the_kind_of_network(images):
    assert settled(Optimizer("muon"), "edm2").learning_rate == RATES_OF_UNIT_WEIGHTS["muon"]
    assert settled(Optimizer("muon"), "adm").learning_rate == 5e-3
    assert settled(Optimizer("muon", learning_rate=0.1), "edm2").learning_rate == 0.1
    base = replace(pd.PRESETS["small"], network=replace(pd.PRESETS["small"].network, kind="edm2"))
    chosen, reasons = suggest(images, base, {"network.kind"})
    assert chosen.optimizer.learning_rate == RATES_OF_UNIT_WEIGHTS["muon"] and any(
        "optimizer.learning_rate" in reason for reason in reasons
    )
    assert suggest(images, base, {"network.kind", "optimizer.learning_rate"})[0].optimizer.learning_rate == 5e-3
