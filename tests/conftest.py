"""What tests share: one thread per process, small pictures, a small trainer, a model of random weights."""

import os
import re
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

import patch_diffusion as pd
import shape_checks
from forked import start

shape_checks.install()

from counted import flops_once  # noqa: E402  # imports the package, whose shapes are checked

torch.set_num_threads(1)
settings.register_profile("default", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("default")


def pytest_ignore_collect(collection_path, config):
    """Leave out files that are slow as a whole, where slow tests are left out, without importing what they import."""
    if collection_path.suffix == ".py" and "not slow" in config.option.markexpr:
        text = collection_path.read_text(encoding="utf-8")
        return re.search(r"^pytestmark = .*mark\.(slow|scheduled)", text, re.MULTILINE) is not None or None
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark what is scheduled as slow."""
    for item in items:
        if item.get_closest_marker("scheduled"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory, monkeypatch):
    """Decoded images of a test do not stay on the machine."""
    monkeypatch.setenv("PATCH_DIFFUSION_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def no_bf16(monkeypatch):
    """Tests do the same on every processor."""
    monkeypatch.setattr("patch_diffusion.training.choices.suggest.processor_has_bf16", lambda: False)


@pytest.fixture(autouse=True)
def counted_once(monkeypatch):
    """Trainers of networks that are alike are made quickly."""
    monkeypatch.setattr("patch_diffusion.training.trainer.training_flops", flops_once)


@pytest.fixture
def forked(monkeypatch):
    """Processes of a run are forked from one that has imported torch, which takes each of them some seconds."""
    monkeypatch.setattr(sys.modules["torch.multiprocessing.spawn"], "start_processes", start)


@pytest.fixture
def code_folder(tmp_path, monkeypatch):
    """Where diffusers copies the code of pipelines to before it runs it; otherwise that is in the user's home."""
    folder = tmp_path / "code of pipelines"
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(folder))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return folder


@pytest.fixture
def make_folder(tmp_path):
    """``make_folder(num, size, mode)``: a folder of random pictures."""

    def make(num=8, size=(8, 8), mode="RGB", name="pictures", subfolder=""):
        folder = tmp_path / name / subfolder
        folder.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(0)
        channels = len(Image.new(mode, (1, 1)).getbands())
        for index in range(num):
            array = random.integers(0, 256, (*size, channels), dtype=np.uint8)
            Image.fromarray(array.squeeze(-1) if channels == 1 else array, mode).save(folder / f"{index:03d}.png")
        return tmp_path / name

    return make


@pytest.fixture
def images():
    """64 random 8 x 12 pictures of three channels and two classes."""
    pixels = torch.randint(0, 256, (64, 3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return pd.ImageSet(pixels, torch.arange(64) % 2)


@pytest.fixture
def make_trainer(images, tmp_path):
    """``make_trainer(**options)``: a trainer of a tiny network; ``network`` and ``schedule`` are options of theirs."""

    def make(out="run", network=None, schedule=None, images=images, coords=True, few_steps=None, **options):
        torch.manual_seed(0)
        settings = {
            "width": 8,
            "multipliers": (1, 2),
            "blocks": 1,
            "num_classes": images.num_classes,
            **(network or {}),
        }
        unet = pd.UNet(images.channels, coords=coords, **settings)
        plan = pd.PatchSchedule(**{"sizes": {"1/2": 1.0}, **(schedule or {})})
        options = {"batch": 4, "samples": 0, "checkpoints": 1, "show": False, "track": (), **options}
        denoiser = pd.Denoiser(unet, 0.5, coords=coords, few_steps=few_steps)
        return pd.Trainer(denoiser, images, plan, out=tmp_path / out, **options)

    return make


@pytest.fixture(scope="session")
def make_model():
    """``make_model(channels)``: a model of random weights, of 8 x 12 pictures of four classes."""

    def make(channels=1):
        torch.manual_seed(0)
        network = pd.UNet(channels, 8, (1, 2), 1, num_classes=4)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return pd.Denoiser(network, 0.5, resolution=(8, 12)).eval()

    return make


@pytest.fixture
def model(make_model):
    """A model of random weights, of grey pictures."""
    return make_model()
