import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

import patch_diffusion as pd
from needs import need

pytestmark = pytest.mark.slow

diffusers = need("diffusers", "hub")

PAGE = Path(__file__).parents[1] / "docs" / "any-network.md"
SMALL = {
    "in_channels": 5,
    "out_channels": 3,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


def unet(**options):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(**{**SMALL, **options}).eval()


def test_with_a_context():
    model = unet(in_channels=9)
    assert pd.DiffusersNetwork(model, context=True).context
    with pytest.raises(pd.InputError, match="build it with in_channels=5"):
        pd.DiffusersNetwork(model)


def test_what_the_model_is_given():
    model = unet(num_class_embeds=3)
    network = pd.DiffusersNetwork(model, num_classes=2)
    assert (network.image_channels, network.num_classes, network.label_dropout, network.stride) == (3, 2, 0.1, 2)
    x, c_noise = torch.randn(3, 5, 8, 12), torch.tensor([-1.5, 0.0, 1.1])
    expected = model(x, timestep=c_noise * 1000, class_labels=torch.tensor([0, 1, 2])).sample
    torch.testing.assert_close(network(x, c_noise, torch.tensor([0, 1, -1])), expected)
    no_class = model(x, timestep=c_noise * 1000, class_labels=torch.tensor([2, 2, 2])).sample
    torch.testing.assert_close(network(x, c_noise), no_class)


def test_without_classes_and_coordinates():
    model = unet(in_channels=3)
    network = pd.DiffusersNetwork(model, timestep_scale=1.0, coords=False)
    x, c_noise = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 900.0])
    assert (network.num_classes, network.label_dropout) == (0, 0.0)
    torch.testing.assert_close(network(x, c_noise), model(x, timestep=c_noise).sample)


def test_stride_is_what_the_levels_halve():
    network = pd.DiffusersNetwork(
        unet(block_out_channels=(8, 8, 8), down_block_types=("DownBlock2D",) * 3, up_block_types=("UpBlock2D",) * 3)
    )
    assert network.stride == 4
    assert network(torch.zeros(1, 5, 4, 8), torch.zeros(1)).shape == (1, 3, 4, 8)


@pytest.mark.parametrize(
    ("built", "options", "message"),
    [
        ({"in_channels": 3}, {}, "in_channels=3: build it with in_channels=5, for the 3 channels of the images and 2"),
        ({}, {"coords": False}, "in_channels=5: build it with in_channels=3, for the 3 channels of the images$"),
        ({"num_class_embeds": 4}, {"num_classes": 4}, "num_class_embeds=4: build it with num_class_embeds=5"),
        ({}, {"num_classes": 4}, "num_class_embeds=None: build it with num_class_embeds=5"),
        ({"num_class_embeds": 4}, {}, "num_class_embeds=4: build it with num_class_embeds=None, for 0 classes"),
        ({"class_embed_type": "timestep"}, {}, "class_embed_type='timestep'"),
        ({"time_embedding_type": "fourier"}, {}, "time_embedding_type='fourier'.*time_embedding_type='positional'"),
        ({}, {"label_dropout": 1.0}, "label_dropout"),
    ],
)
def test_models_built_otherwise_are_refused(built, options, message):
    with pytest.raises(pd.InputError, match=message):
        pd.DiffusersNetwork(unet(**built), **options)


def test_other_models_are_refused():
    with pytest.raises(pd.InputError, match="takes a diffusers UNet2DModel, not a Linear"):
        pd.DiffusersNetwork(torch.nn.Linear(1, 1))


def test_it_trains_and_opens_again(images, tmp_path):
    def network():
        return pd.DiffusersNetwork(unet(num_class_embeds=3), num_classes=2)

    schedule = pd.PatchSchedule(sizes={"1/2": 1.0})
    trainer = pd.Trainer(
        pd.Denoiser(network(), 0.5), images, schedule, out=tmp_path / "run", batch=4, samples=0, show=False
    )
    trained = trainer.fit(steps=3)
    with pytest.raises(pd.InputError, match="give it as network="):
        pd.load(tmp_path / "run")
    again = pd.load(tmp_path / "run", network=network(), device="cpu")
    noisy, coords, labels = torch.randn(2, 3, 8, 12), pd.coordinate_grid(8, 12), torch.tensor([0, -1])
    assert torch.equal(again(noisy, 1.0, coords, labels), trained(noisy, 1.0, coords, labels))
    assert not torch.equal(again(noisy, 1.0, coords, labels), again(noisy, 1.0, coords + 1, labels))

    again.network.unet.save_pretrained(tmp_path / "unet")
    opened = diffusers.UNet2DModel.from_pretrained(tmp_path / "unet").state_dict()
    assert all(torch.equal(weight, opened[name]) for name, weight in again.network.unet.state_dict().items())


def test_the_package_needs_no_diffusers(monkeypatch):
    spec = importlib.util.find_spec("patch_diffusion.denoise.networks.adapters")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "diffusers", None)  # importing it would fail
    spec.loader.exec_module(module)
    with pytest.raises(pd.InputError, match="not a Linear"):
        module.DiffusersNetwork(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("index", [0, 1])
def test_the_page_s_code(index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code) == 2
    short = code[index].replace("steps=20", "steps=2").replace("seeds=[0]", "seeds=[0], steps=2")
    exec(compile(short, PAGE.name, "exec"), {})
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["000000.png"]
