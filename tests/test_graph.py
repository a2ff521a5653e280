"""Denoisers as ONNX files and as programs of torch.export, compared with the models they were made of."""

import json
import re
import sys

import pytest
import torch

import patch_diffusion as pd
from needs import need
from patch_diffusion.interop import graph
from patch_diffusion.interop.graph import DenoiserGraph, example, write_graph

pytestmark = pytest.mark.slow

FORMATS = {"onnx": "model.onnx", "torch": "model.pt2"}


def needs(to):
    for name in ("onnx", "onnxscript", "onnxruntime") if to == "onnx" else ():
        need(name, "export")


@pytest.fixture(params=FORMATS)
def to(request):
    needs(request.param)
    return request.param


class Own(torch.nn.Module):
    """A network of a user's own, small, so that it is quickly traced."""

    image_channels = 3

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(5, 3, 3, padding=1)

    def forward(self, x, c_noise, labels=None):
        return self.layer(x) * c_noise[:, None, None, None]


def denoiser(network, **options):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return pd.Denoiser(network, 0.4, resolution=(8, 12), **options).eval()


MODELS = {
    "ncsnpp": lambda: denoiser(pd.UNet(2, 8, (1, 2), 1, kind="ncsnpp", coords=False), process=pd.VE(), coords=False),
    "edm2": lambda: denoiser(pd.EDM2UNet(3, 8, (1, 2), 1), process=pd.XPrediction()),
    "dit": lambda: denoiser(pd.DiT(3, 32, 2, 2, num_classes=3), mean_data=(0.2, -0.6, 0.4)),
}


def runner(to, path, inputs):
    """The file, read by what reads such files, as a function of named arrays."""
    if to == "torch":
        program = torch.export.load(path).module()
        return lambda given: program(*(given[name] for name in inputs)).detach()
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == inputs
    return lambda given: torch.from_numpy(session.run(None, {name: given[name].numpy() for name in inputs})[0])


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("onnx", "dit"),
        ("torch", "ncsnpp"),
        *(pytest.param(to, "edm2", marks=pytest.mark.scheduled) for to in ("onnx", "torch")),
    ],
)
def test_any_number_of_images_is_denoised_as_by_the_model(to, name, tmp_path):
    needs(to)
    model = MODELS[name]()
    notes, difference = write_graph(model, tmp_path, (8, 12), to)
    facts = json.loads((tmp_path / "config.json").read_text())
    assert (
        not notes
        and difference < 1e-4
        and sorted(path.name for path in tmp_path.iterdir()) == sorted(["config.json", FORMATS[to]])
    )
    assert ("coords" in facts["inputs"], "labels" in facts["inputs"]) == (model.coords, model.num_classes > 0)
    run = runner(to, tmp_path / FORMATS[to], facts["inputs"])
    for num in (1, 5):
        draws = torch.Generator().manual_seed(num)
        given = {
            "noisy": 3 * torch.randn(num, model.image_channels, 8, 12, generator=draws),
            "sigma": torch.rand(num, generator=draws) * 4 + 0.01,
            "coords": pd.coordinate_grid(8, 12) * 0.7,
            "labels": torch.arange(num) % 4 - 1,
        }
        labels = given["labels"] if model.num_classes else None
        with torch.no_grad():
            expected = model(given["noisy"], given["sigma"], given["coords"], labels)
            torch.testing.assert_close(run(given), expected, atol=1e-4, rtol=1e-4)
    if model.num_classes:  # what is no class gives NaN, and its neighbours what they should
        assert facts["label_range"] == [-1, 2]
        found = run(given | {"labels": torch.tensor([3, -1, -5, 99, 2])}).isnan().flatten(1)
        assert found.all(1).tolist() == found.any(1).tolist() == [True, False, True, True, False]


def test_facts_for_a_sampler(tmp_path):
    model = denoiser(Own(), class_names=("a", "b", "c"))
    write_graph(model, tmp_path, (8, 12), "torch")
    facts = json.loads((tmp_path / "config.json").read_text())
    assert facts["inputs"] == ["noisy", "sigma", "coords"] and facts["resolution"] == [8, 12]
    assert (facts["sigma_min"], facts["sigma_max"], facts["sigma_data"], facts["process"]) == (0.002, 80.0, 0.4, "edm")
    assert facts["mean_data"] == [0.0]
    assert facts["class_names"] == ["a", "b", "c"] and facts["codec"] == {
        "kind": "pixels",
        "dtype": "uint8",
        "low": 0.0,
        "high": 255.0,
    }


def test_a_graph_that_is_wrong_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "_program", lambda graph, program, folder: lambda inputs: graph(*inputs) * 1.001)
    with pytest.raises(pd.InputError, match="gives other images than the model, by up to"):
        write_graph(denoiser(Own()), tmp_path, (8, 12), "torch")


def test_a_network_that_cannot_be_followed(tmp_path):
    class Deciding(torch.nn.Module):
        image_channels = 1

        def forward(self, x, c_noise, labels=None):
            return x[:, :1] if x.sum() > 0 else x[:, 1:2]

    with pytest.raises(pd.InputError, match="torch.export cannot follow the network Deciding: "):
        write_graph(pd.Denoiser(Deciding()), tmp_path, (4, 4), "torch")


def test_the_examples_cover_classes_and_no_class():
    model = MODELS["dit"]()
    noisy, sigma, coords, labels = example(DenoiserGraph(model), (8, 12), 3)
    assert noisy.shape == (3, 3, 8, 12) and coords.shape == (2, 8, 12)
    assert labels.tolist()[:2] == [-1, 0] or set(labels.tolist()) >= {-1, 0}
    assert sigma.min() < 0.1 < 10 < sigma.max()


def test_another_shape_and_networks_of_one_s_own(to, tmp_path):
    """A graph holds any network, where a pipeline would have to carry its code."""
    pixels = torch.randint(0, 256, (16, 3, 8, 12), dtype=torch.uint8)
    schedule = pd.PatchSchedule(whole=1.0)
    options = {"batch": 4, "samples": 0, "show": False, "track": ()}
    pd.Trainer(pd.Denoiser(Own(), 0.5), pd.ImageSet(pixels), schedule, out=tmp_path / "run", **options).fit(steps=1)
    found = pd.export_model(tmp_path / "run", tmp_path / "out", to=to, network=Own(), resolution=(4, 6))
    assert found["difference"] < 1e-4
    assert json.loads((tmp_path / "out" / "config.json").read_text())["resolution"] == [4, 6]


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(pd.InputError, match=re.escape("pip install 'patch_diffusion[export]'")):
        write_graph(denoiser(Own()), tmp_path, (8, 12), "onnx")
