import importlib.util
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st

import patch_diffusion as pd
from patch_diffusion.denoise.networks.unet import Enlarge, Reduce, group_norm

KINDS = ["ddpmpp", "ncsnpp", "adm"]


@pytest.mark.slow
@settings(max_examples=25)
@given(
    st.sampled_from([1, 3, 5]),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([(1,), (1, 2), (2, 1, 2)]),
    st.integers(1, 2),
    st.sampled_from(KINDS),
)
def test_any_shape_passes(channels, height, width, multipliers, blocks, kind):
    network = pd.UNet(channels, 8, multipliers, blocks, kind=kind)
    shape = (height * network.stride, width * network.stride)
    assert network(torch.randn(2, channels + 2, *shape), torch.zeros(2)).shape == (2, channels, *shape)


def test_a_shape_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match="multiples of 2, not 8 x 7"):
        pd.UNet(1, 8, (1, 1))(torch.zeros(1, 3, 8, 7), torch.zeros(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multipliers": ()}, "multipliers"),
        ({"width": 6}, "multiple of 4"),
        ({"blocks": 0}, "blocks"),
        ({"attention": (2,)}, "levels 0 to 1"),
        ({"dropout": 1.0}, "dropout"),
        ({"label_dropout": -0.1}, "label_dropout"),
        ({"kind": "adn"}, "one of ddpmpp, ncsnpp, adm, not adn"),
        ({"kind": "adm", "width": 100, "multipliers": (1, 2)}, "heads of 64 channels cannot split 200"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        pd.UNet(1, **{"width": 8, "multipliers": (1, 2), **options})


@pytest.mark.parametrize("kind", KINDS)
def test_settings_rebuild_it(kind):
    network = pd.UNet(3, 8, (1, 2), 1, (0, 1), 0.2, kind=kind, num_classes=4, label_dropout=0.3)
    again = pd.UNet(3, num_classes=4, **network.settings)
    again.load_state_dict(network.state_dict())
    assert again.label_dropout == 0.3 and again.encoder[0].dropout.p == 0.2  # pyright: ignore[reportAttributeAccessIssue]


def excite(network):
    """Give the branches that start at nothing some weight, so that everything matters."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_as_nothing(kind):
    network = pd.UNet(3, 8, (1, 2), 1, kind=kind).eval()
    assert network(torch.randn(2, 5, 8, 8), torch.zeros(2)).abs().max() < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_labels_matter_and_no_class_is_no_label(kind):
    torch.manual_seed(0)
    network = excite(pd.UNet(1, 8, (1, 2), 1, kind=kind, num_classes=3))
    x, c_noise = torch.randn(1, 3, 8, 8).expand(4, -1, -1, -1), torch.zeros(4)
    out = network(x, c_noise, torch.tensor([0, 1, 2, -1]))
    assert all((out[i] - out[j]).abs().max() > 1e-3 for i in range(4) for j in range(i))
    torch.testing.assert_close(network(x[:1], c_noise[:1], None), out[3:])


@pytest.mark.parametrize("kind", KINDS)
def test_augmentation_matters_and_none_is_all_zeros(kind):
    torch.manual_seed(0)
    network = excite(pd.UNet(1, 8, (1, 2), 1, kind=kind, augment_channels=9))
    x, c_noise = torch.randn(2, 3, 8, 8), torch.zeros(2)
    augment = torch.randn(2, 9)
    plain = network(x, c_noise)
    assert (network(x, c_noise, None, augment) - plain).abs().max() > 1e-3
    assert torch.equal(network(x, c_noise, None, torch.zeros(2, 9)), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_level_and_coordinates_matter(kind):
    torch.manual_seed(0)
    network = excite(pd.UNet(1, 8, (1, 2), 1, kind=kind))
    x = torch.randn(1, 3, 8, 8)
    moved = torch.cat([x[:, :1], x[:, 1:] + 1], dim=1)
    assert (network(x, torch.zeros(1)) - network(x, torch.ones(1))).abs().max() > 1e-3
    assert (network(x, torch.zeros(1)) - network(moved, torch.zeros(1))).abs().max() > 1e-3


def test_resizing_keeps_what_is_flat():
    """Filters have sum 1 when reducing, 4 when enlarging; borders aside, where nothing is beyond."""
    flat = torch.ones(2, 3, 8, 12)
    for taps in [(1, 1), (1, 3, 3, 1)]:
        small, large = Reduce(taps)(flat), Enlarge(taps)(flat)
        assert small.shape == (2, 3, 4, 6)
        assert large.shape == (2, 3, 16, 24)
        assert torch.allclose(small[..., 1:-1, 1:-1], torch.ones(1))
        assert torch.allclose(large[..., 1:-1, 1:-1], torch.ones(1))


def test_attention_sees_all_pixels():
    """A pixel far outside the reach of the convolutions changes the answer, through the middle's attention."""
    torch.manual_seed(0)
    network = excite(pd.UNet(1, 8, (1,), 1, attention=()))
    x = torch.zeros(1, 3, 64, 64)
    touched = x.clone()
    touched[..., 0, 0] = 100.0
    assert (network(x, torch.zeros(1)) - network(touched, torch.zeros(1)))[..., -1, -1].abs().max() > 1e-6


def test_one_file_without_package_imports():
    """So that an export can carry it: it runs as a file of its own."""
    source = importlib.util.find_spec("patch_diffusion.denoise.networks.unet").origin
    spec = importlib.util.spec_from_file_location("carried", source)
    module = importlib.util.module_from_spec(spec)
    sys.modules["carried"] = module
    spec.loader.exec_module(module)
    assert "import patch_diffusion" not in Path(source).read_text() and "from patch" not in Path(source).read_text()
    assert module.UNet(1, 8, (1,), 1)(torch.zeros(1, 3, 4, 4), torch.zeros(1)).shape == (1, 1, 4, 4)


def norm_and_features(dtype=torch.float32):
    torch.manual_seed(0)
    norm = group_norm(24, 1e-5)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = (3 * torch.randn(2, 24, 6, 10) + 5).to(memory_format=torch.channels_last)
    return norm, x.to(dtype).requires_grad_()


def test_a_norm_in_parts_is_the_same_and_keeps_type_and_layout():
    norm, x = norm_and_features()
    inputs, toward = (x, norm.weight, norm.bias), torch.randn(x.shape)
    ours, expected = norm.in_parts(x), norm(x)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    pairs = (torch.autograd.grad((result * toward).sum(), inputs) for result in (ours, expected))
    for gradient, right in zip(*pairs, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-4, atol=1e-4)
    half = norm.in_parts(x.detach().bfloat16())
    assert half.dtype is torch.bfloat16
    assert half.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(half.float(), expected, rtol=0.02, atol=0.04)


def test_a_norm_in_half_precision_is_the_same_and_keeps_type_and_layout():
    norm, x = norm_and_features(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        half = norm.in_half(x)
    assert half.dtype is torch.bfloat16
    assert half.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(half.float(), norm(x.float()), rtol=0.02, atol=0.05)


@pytest.mark.parametrize("kind", ["ddpmpp", "adm"])
def test_one_product_for_all_blocks_is_that_of_each(kind):
    """In training; and no two gradients share memory, as they are then scaled in place."""
    torch.manual_seed(0)
    network = pd.UNet(3, width=8, multipliers=(1, 2), blocks=1, kind=kind, dropout=0.0).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, c_noise, found = torch.randn(2, 5, 8, 8).double(), torch.randn(2).double(), {}
    for training in (True, False):
        network.train(training).zero_grad()
        result = network(x, c_noise)
        result.square().sum().backward()
        found[training] = [result.detach(), *(parameter.grad.clone() for parameter in network.parameters())]
        places = [(parameter.grad.data_ptr(), parameter.grad.nbytes) for parameter in network.parameters()]
        places.sort()
        assert all(first + size <= second for (first, size), (second, _) in pairwise(places))
    torch.testing.assert_close(found[True], found[False], rtol=1e-10, atol=1e-12)


def test_blocks_compute_their_own_where_a_layer_is_another():
    """An adapter in place of a layer is called, as are the layers of a network that is not in training."""
    network, called = pd.UNet(3, width=8, multipliers=(1,), blocks=1), []

    class Adapter(torch.nn.Linear):
        def forward(self, input):
            called.append(self)
            return super().forward(input)

    layer: Any = network.middle[0].affine
    network.middle[0].affine = Adapter(layer.in_features, layer.out_features)
    network(torch.zeros(1, 5, 8, 8), torch.zeros(1))
    assert len(called) == 1
