import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st

import patch_diffusion as pd


@settings(max_examples=25)
@given(
    st.sampled_from([1, 3, 5]),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 4),
    st.booleans(),
)
def test_any_shape_passes(channels, rows, columns, depth, token, coords):
    network = pd.DiT(channels, 8, depth, 2, token, coords=coords)
    shape = (rows * network.stride, columns * network.stride)
    assert network(torch.randn(2, channels + 2 * coords, *shape), torch.zeros(2)).shape == (2, channels, *shape)


def test_a_shape_of_broken_tokens_is_refused():
    with pytest.raises(ValueError, match="multiples of 2, not 8 x 7"):
        pd.DiT(1, 8, 1, 1)(torch.zeros(1, 3, 8, 7), torch.zeros(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 12, "heads": 2}, "multiple of 4 for each head, not 12 for 2"),
        ({"width": 0}, "width"),
        ({"depth": 0}, "depth"),
        ({"heads": 0}, "heads"),
        ({"token": 0}, "token"),
        ({"dropout": 1.0}, "dropout"),
        ({"label_dropout": -0.1}, "label_dropout"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        pd.DiT(1, **{"width": 8, "depth": 1, "heads": 2, **options})


def test_settings_rebuild_it():
    network = pd.DiT(3, 24, 2, 3, 4, 0.2, num_classes=4, label_dropout=0.3)
    options = dict(network.settings)
    assert options.pop("kind") == "dit"
    again = pd.DiT(3, num_classes=4, **options)
    again.load_state_dict(network.state_dict())
    assert again.settings == network.settings
    assert (again.stride, again.label_dropout, again.blocks[0].heads, again.blocks[0].dropout.p) == (4, 0.3, 3, 0.2)  # pyright: ignore[reportAttributeAccessIssue]


def excite(network):
    """Give the branches that start at nothing some weight, so that everything matters."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def test_it_starts_as_nothing():
    assert not pd.DiT(3, 8, 2, 2)(torch.randn(2, 5, 8, 8), torch.zeros(2)).any()


def test_labels_matter_and_no_class_is_no_label():
    torch.manual_seed(0)
    network = excite(pd.DiT(1, 8, 1, 2, num_classes=3))
    x, c_noise = torch.randn(1, 3, 8, 8).expand(4, -1, -1, -1), torch.zeros(4)
    out = network(x, c_noise, torch.tensor([0, 1, 2, -1]))
    assert all((out[i] - out[j]).abs().max() > 1e-3 for i in range(4) for j in range(i))
    torch.testing.assert_close(network(x[:1], c_noise[:1], None), out[3:])


def test_noise_level_heads_and_augmentation_matter():
    torch.manual_seed(0)
    network = excite(pd.DiT(1, 8, 1, 2, augment_channels=3))
    x, c_noise = torch.randn(1, 3, 8, 8), torch.zeros(1)
    out = network(x, c_noise)
    assert (network(x, c_noise + 0.1) - out).abs().max() > 1e-3
    assert (network(x, c_noise, None, torch.ones(1, 3)) - out).abs().max() > 1e-3
    assert torch.equal(network(x, c_noise, None, torch.zeros(1, 3)), out)
    other = pd.DiT(1, 8, 1, 1, augment_channels=3).eval()
    other.load_state_dict(network.state_dict())
    assert (other(x, c_noise) - out).abs().max() > 1e-3


def test_dropout_matters_in_training_only():
    torch.manual_seed(0)
    network = excite(pd.DiT(1, 8, 1, 2, dropout=0.5))
    x, c_noise = torch.randn(1, 3, 8, 8), torch.zeros(1)
    assert torch.equal(network(x, c_noise), network(x, c_noise))
    network.train()
    assert not torch.equal(network(x, c_noise), network(x, c_noise))


def test_half_precision_is_close():
    torch.manual_seed(0)
    network = excite(pd.DiT(1, 16, 2, 2))
    x, c_noise = torch.cat([torch.randn(1, 1, 8, 8), pd.coordinate_grid(8, 8)[None]], dim=1), torch.zeros(1)
    expected = network(x, c_noise)
    with torch.autocast("cpu", torch.bfloat16):
        out = network(x, c_noise)
    assert 0 < (out - expected).square().mean() < 1e-3 * expected.square().mean()


def test_a_token_s_place_is_its_coordinates_and_nothing_else():
    """Moved in the tensor together with their coordinates, tokens say the same; moved without, something else."""
    torch.manual_seed(0)
    network = excite(pd.DiT(1, 16, 2, 2))
    pixels, coords, c_noise = torch.randn(1, 1, 8, 12), pd.coordinate_grid(8, 12)[None], torch.zeros(1)

    def moved(x):
        return x.roll((2, 4), dims=(2, 3))

    expected = moved(network(torch.cat([pixels, coords], dim=1), c_noise))
    with_coords = network(torch.cat([moved(pixels), moved(coords)], dim=1), c_noise)
    without = network(torch.cat([moved(pixels), coords], dim=1), c_noise)
    torch.testing.assert_close(with_coords, expected, atol=1e-5, rtol=1e-5)
    assert (without - expected).abs().max() > 1e-2


def test_without_coordinates_every_input_is_a_whole_image():
    torch.manual_seed(0)
    network = excite(pd.DiT(2, 8, 2, 2))
    blind = pd.DiT(2, 8, 2, 2, coords=False).eval()
    blind.load_state_dict(network.state_dict())
    pixels, c_noise = torch.randn(3, 2, 8, 12), torch.zeros(3)
    coords = pd.coordinate_grid(8, 12).expand(3, -1, -1, -1)
    torch.testing.assert_close(blind(pixels, c_noise), network(torch.cat([pixels, coords], dim=1), c_noise))


@pytest.mark.slow
def test_patches_teach_it_what_lies_where():
    """Images that are their own coordinates: at such noise a quarter of one can only be told by its place."""
    torch.manual_seed(0)
    denoiser = pd.Denoiser(pd.DiT(2, 32, 2, 2, dropout=0.0), sigma_data=0.6)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=3e-3)
    whole = pd.coordinate_grid(16, 16).expand(32, -1, -1, -1)
    losses = []
    for _ in range(80):
        patch = pd.random_patches(whole, 8)
        loss = pd.denoising_loss(denoiser, patch.pixels, patch.coords, torch.full((32,), 20.0)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.05 * sum(losses[:10])


def test_it_trains_and_opens_again(images, tmp_path):
    network = pd.DiT(images.channels, 16, 1, 2, num_classes=2)
    schedule = pd.PatchSchedule(sizes={"1/2": 1.0})
    trainer = pd.Trainer(
        pd.Denoiser(network, 0.5), images, schedule, out=tmp_path / "run", batch=4, samples=0, show=False
    )
    trained = trainer.fit(steps=3)
    again = pd.load(tmp_path / "run", device="cpu")
    noisy, coords, labels = torch.randn(2, 3, 8, 12), pd.coordinate_grid(8, 12), torch.tensor([0, -1])
    assert torch.equal(again(noisy, 1.0, coords, labels), trained(noisy, 1.0, coords, labels))
    assert again.network.settings == network.settings


def test_one_file_without_package_imports():
    """So that an export can carry it: it runs as a file of its own."""
    source = importlib.util.find_spec("patch_diffusion.denoise.networks.dit").origin
    spec = importlib.util.spec_from_file_location("carried_dit", source)
    module = importlib.util.module_from_spec(spec)
    sys.modules["carried_dit"] = module
    spec.loader.exec_module(module)
    assert "import patch_diffusion" not in Path(source).read_text() and "from patch" not in Path(source).read_text()
    assert module.DiT(1, 8, 1, 2)(torch.zeros(1, 3, 4, 4), torch.zeros(1)).shape == (1, 1, 4, 4)
