"""Training on from a run, a published file or a pipeline of diffusers; and from what that is refused."""

import json
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import patch_diffusion as pd
from needs import need
from patch_diffusion.cli import main
from patch_diffusion.config import Config, Data, Ema, Engine, Network, Noise, Patches
from patch_diffusion.data.sources import open_data
from patch_diffusion.denoise.networks.timestep_unet import TimestepUNet
from patch_diffusion.interop.start import open_start
from patch_diffusion.runs.folder import RunFolder
from patch_diffusion.runs.named import model_name
from patch_diffusion.training.build import build_trainer
from patch_diffusion.training.choices.source import with_source
from reference_files import published_network, published_weights, write_published
from refusal import refused

pytestmark = pytest.mark.slow

TINY = Network(width=8, multipliers=(1, 2), blocks=1, attention=())


def config(source, **options):
    data = Data(source=str(source), held_out=0.0)
    given = {"batch": 4, "steps": 1, "samples": 0, "track": (), "checkpoints": 1, "engine": Engine(device="cpu")}
    return Config(data=data, **{**given, **options})


def settings(model) -> dict[str, Any]:
    return model.module.settings


def weights(model):
    return torch.cat([weight.detach().flatten() for weight in model.module.parameters()])


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A folder of 12 pictures of 8 x 8 pixels in two classes."""
    return make_pictures(tmp_path_factory.mktemp("classes"), 8, "cat", "dog")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 6 pictures of 16 x 16 pixels."""
    return make_pictures(tmp_path_factory.mktemp("pictures"), 16, "")


def make_pictures(folder, side, *names, channels=3):
    draws = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(6):
            pixels = draws.integers(0, 256, (side, side, channels), dtype=np.uint8)
            Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def made(classes, tmp_path_factory):
    """A run on pictures of two classes, with an average of another length."""
    out = tmp_path_factory.mktemp("made") / "source"
    options = config(classes, network=TINY, ema=Ema(lengths=(0.1,)), steps=4, checkpoint_steps=2)
    pd.train(replace(options, data=replace(options.data, classes=True)), out, show=False)
    return out


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "source")


def test_a_run_is_trained_on_from_and_continues_without_its_source(run, pictures, tmp_path, capsys):
    options = config(pictures, steps=4, checkpoint_steps=2)
    model = pd.train(options, tmp_path / "new", start=run)
    source = pd.load(run, device="cpu")
    table = capsys.readouterr().err
    assert "resolution    8x8 -> 16x16: the same weights at every resolution" in table
    assert "classes       2 -> 0: 2 not carried" in table
    stored = json.loads((tmp_path / "new" / "config.json").read_text())
    assert stored["start"] == str(run) and stored["model"]["carried"][0]["change"] == str(run)
    assert (model.sigma_data, model.mean_data) == (source.sigma_data, (0.0,))
    half = tmp_path / "half"
    shutil.copytree(tmp_path / "new", half)
    shutil.rmtree(half / "checkpoints" / "step-00000004")
    shutil.rmtree(run)
    assert torch.equal(weights(pd.train(options, half, show=False, start=run)), weights(model))
    with refused(None, match="other values of start: start cannot change"):
        pd.train(options, half, show=False, start="other")


def test_checkpoints_and_averages_by_the_words_of_guides(run):
    for source, given in (
        (f"{run}", {}),
        (f"{run}:step:2", {"checkpoint": 2}),
        (f"{run}/checkpoints/step-00000002", {"checkpoint": 2}),
        (f"{run}:ema:0.05", {"ema_length": 0.05}),
    ):
        found = open_start(source)
        assert torch.equal(weights(found.model), weights(pd.load(run, device="cpu", **given))), source
    assert "average of step 2" in open_start(f"{run}:step:2").rows[0]
    for source, message in (
        ("nowhere", "there is no model to train on from at .*nowhere: give a run, RUN:best"),
        (f"{run}/config.json:best", "is no run, so it has no checkpoints"),
        (f"{run}:ema:0.0.5", "the length of an average is a number"),
        (f"{run}:best", "has no best checkpoint"),
        (f"{run}:step:3", "step-00000003.*is missing"),
    ):
        with refused("start", match=message):
            open_start(source)


def test_step_0_is_the_source(run, tmp_path):
    folder = make_pictures(tmp_path / "grey", 16, "", channels=1)
    source = pd.load(run, device="cpu")
    options = config(folder, start=str(run), network=Network(**settings(source)))
    images = open_data(options.data)
    options, _ = with_source(options, (), source, images.channels)
    trainer = build_trainer(options, images, tmp_path / "new", show=False)
    x, coords = torch.randn(2, 1, 8, 8), pd.coordinate_grid(8, 8)
    with torch.no_grad():
        expected = source(x.expand(-1, 3, -1, -1), 0.5, coords).mean(dim=1, keepdim=True)
        for model in (trainer.state.denoiser.eval(), trainer.state.average.denoiser):
            torch.testing.assert_close(model(x, 0.5, coords), expected, rtol=1e-5, atol=1e-5)
    assert not (tmp_path / "new").exists()


def test_a_published_file(pictures, tmp_path):
    torch.manual_seed(0)
    unet = pd.UNet(3, 8, (1, 2), 1, (0,), coords=False)
    network = published_network(
        published_weights(unet, 16), "EDMPrecond", "SongUNet", outer={"sigma_data": 0.5}, inner={"dropout": 0.2}
    )
    write_published(tmp_path / "net.pkl", network)
    model = pd.train(config(pictures), tmp_path / "new", start=tmp_path / "net.pkl", show=False)
    assert model.coords and model.sigma_data == 0.5 and settings(model)["dropout"] == 0.2
    (tmp_path / "bad.pkl").write_bytes(b"no network")
    with refused("start"):
        open_start(str(tmp_path / "bad.pkl"))


def test_a_pipeline_of_diffusers_is_a_run_by_json_alone(pictures, tmp_path):
    diffusers = need("diffusers", "hub")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "pipeline")
    options = config(pictures, steps=4, checkpoint_steps=2)
    model = pd.train(options, tmp_path / "new", start=tmp_path / "pipeline", show=False)
    shutil.rmtree(tmp_path / "pipeline")
    assert isinstance(model.module, TimestepUNet) and model.coords
    assert not [line for line in (tmp_path / "new" / "log.jsonl").read_text().splitlines() if "WARNING" in line]
    again = pd.load(tmp_path / "new", device="cpu")
    assert torch.equal(weights(again), weights(model))
    (sample,) = pd.generate(again, [0], pd.Sampling(steps=3))
    assert sample.pixels.shape == (3, 16, 16)

    half = tmp_path / "half"
    shutil.copytree(tmp_path / "new", half)
    shutil.rmtree(half / "checkpoints" / "step-00000004")
    assert torch.equal(weights(pd.train(options, half, show=False)), weights(model))
    third = pd.train(config(pictures), tmp_path / "third", start=half, show=False)
    assert settings(third)["unet"] == settings(again)["unet"]
    with refused("network.width", match="is 8, but the model of .* has none: leave it out"):
        pd.train(config(pictures, network=Network(width=8)), tmp_path / "no", start=half, show=False)
    broken = json.loads((half / "config.json").read_text())
    broken["network"]["unet"]["model"]["block_out_channels"] = [8, 9]
    (half / "config.json").write_text(json.dumps(broken))
    with refused("network.unet", match="describes no UNet2DModel"):
        pd.load(half)


def test_options_that_contradict_the_source_are_refused_by_name(run, pictures, tmp_path):
    for option, options in {
        "network.width": {"network": Network(width=16)},
        "network.multipliers": {"network": Network(multipliers=(1, 2, 2))},
        "network.kind": {"network": Network(kind="adm")},
        "noise.process": {"noise": Noise(process="vp")},
        "noise.sigma_data": {"noise": Noise(sigma_data=0.3)},
        "noise.mean_data": {"noise": Noise(mean_data=(0.7,))},
    }.items():
        with refused(option, match=f"^{option} is .*, but the model of .* has .*: leave it out"):
            pd.train(config(pictures, **options), tmp_path / "new", start=run, show=False)
    assert not (tmp_path / "new").exists()
    free = config(pictures, network=Network(dropout=0.3), patches=Patches(coords=False))
    model = pd.train(free, tmp_path / "new", start=run, show=False)
    assert settings(model)["dropout"] == 0.3 and not model.coords


def test_a_network_of_ones_own_and_a_trainer_are_told_where_to_go(make_trainer, tmp_path, images):
    class Own(torch.nn.Linear):
        def forward(self, x, c_noise, labels=None):
            return super().forward(x.movedim(1, -1)).movedim(-1, 1)

    own = pd.Denoiser(Own(5, 3), 0.5)
    pd.Trainer(own, images, out=tmp_path / "own", batch=4, samples=0, track=(), show=False).fit(steps=1)
    with refused("start", match="is a module of your own"):
        open_start(str(tmp_path / "own"))
    with refused("start", match="is for train and pd.train"):
        pd.Trainer(pd.Denoiser(pd.UNet(3, 8, (1,), 1)), images, Config(start="x", batch=4), out=tmp_path / "no")


def test_the_command(run, pictures, tmp_path, capsys):
    words = ["train", str(pictures), "--steps", "1", "--batch", "4", "--samples", "0", "--track"]
    words += ["--out", str(tmp_path / "new"), "--from"]
    assert (
        main([*words, str(tmp_path / "nowhere")]) == 1
        and "there is no model to train on from" in capsys.readouterr().err
    )
    assert main([*words, f"{run}:step:2", "--network.blocks", "2"]) == 1
    assert "network.blocks is 2, but the model of" in capsys.readouterr().err and not (tmp_path / "new").exists()
    assert main([*words, f"{run}:step:2", "--held-out", "0"]) == 0
    assert RunFolder(tmp_path / "new").read_config()[0].start == f"{run}:step:2"
    assert model_name(f"{run}:step:2").checkpoint == 2


def test_a_race_from_the_source_against_scratch(run, tmp_path, capsys):
    words = ["race", "digits", "--resolution", "8", "--steps", "2", "--batch", "2", "--moments", "1", "--tune", "0"]
    words += ["--patches.sizes", "1/2=1", "--held-out", "0.5", "--arms", "patches", "scratch"]
    assert main([*words, "--from", str(run), "--out", str(tmp_path / "race")]) == 0
    started, scratch = (RunFolder(tmp_path / "race" / f"{arm}-seed0").read_config() for arm in ("patches", "scratch"))
    assert started[0].network == scratch[0].network and started[0].noise == scratch[0].noise
    assert started[1].carried and not scratch[1].carried and scratch[0].start is None
    capsys.readouterr()
