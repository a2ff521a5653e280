"""Exported pipelines, opened by diffusers alone in a process where this package is hidden."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import patch_diffusion as pd
from grouped import grouped
from needs import need
from patch_diffusion.cli import main
from patch_diffusion.data.augment import Augment
from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.data.latents.folder import encode_latents
from patch_diffusion.files import read_tensors, write_tensors
from patch_diffusion.interop.bundle import bundle
from patch_diffusion.sampling.generate import noise_of
from patch_diffusion.sampling.stochastic import SOLVERS

pytestmark = pytest.mark.slow

diffusers = need("diffusers", "hub")

SEEDS = [0, 3, 11]
UNET2D = {
    "in_channels": 5,
    "out_channels": 3,
    "num_class_embeds": 3,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


def pictures(channels=3, dtype="uint8", names=("cat", "dog")):
    """64 random 8 x 12 images of two classes."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2 if names else None
    if dtype == "uint8":
        pixels = torch.randint(0, 256, (64, channels, 8, 12), dtype=torch.uint8, generator=draws)
        return pd.ImageSet(pixels, labels, names)
    pixels = torch.rand(64, channels, 8, 12, generator=draws) * 5 - 2
    return pd.ImageSet(pixels, labels, names, codec=PixelCodec("float32", -2.0, 3.0))


def unet2d():
    torch.manual_seed(0)
    return pd.DiffusersNetwork(diffusers.UNet2DModel(**UNET2D), num_classes=2)


def make_run(folder, network, images, process=None, coords=True, **options):
    """A run of three steps, its weights then shaken, so that everything in the network matters."""
    denoiser = pd.Denoiser(network, 0.4, process=process, coords=coords, mean_data=(-0.3,))
    trainer = pd.Trainer(
        denoiser,
        images,
        pd.PatchSchedule(whole=1.0),
        out=folder,
        batch=4,
        checkpoints=1,
        samples=0,
        show=False,
        track=(),
        **options,
    )
    trainer.fit(steps=3)
    draws = torch.Generator().manual_seed(1)
    weights = {
        name: tensor if name.endswith("frequencies") else tensor + 0.05 * torch.randn(tensor.shape, generator=draws)
        for name, tensor in read_tensors(folder / "model.safetensors").items()
    }
    write_tensors(folder / "model.safetensors", weights)
    return folder


def make_vae(folder):
    torch.manual_seed(0)
    diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[4, 4],
        norm_num_groups=2,
        latent_channels=4,
    ).save_pretrained(folder)
    return folder


CALL = {"seeds": SEEDS, "num_inference_steps": 4, "output_type": "latent"}
CHURN = {"solver": "stochastic_heun", "churn": 1.0, "churn_min": 0.1, "churn_max": 40.0, "churn_noise": 1.01}
LEVELS = {"schedule": "exponential", "rho": 2.0, "sigma_min": 0.01, "sigma_max": 40.0}
TILES = {"tile": 6, "overlap": 3}
# Of each kind of model, calls of its pipeline, and what is said to `generate` for the same.
CALLS = {
    "unet": [
        *(({**CALL, "scheduler": {"solver": solver}}, {"solver": solver}) for solver in SOLVERS),
        ({**CALL, "guidance_scale": 1.7}, {"guidance": 1.7}),
        ({**CALL, "class_labels": ["dog", 0, "cat"]}, {"labels": [1, 0, 0]}),
        ({**CALL, "height": 4, "width": 6}, {"resolution": (4, 6)}),
        ({**CALL, "scheduler": {"schedule": "vp", "sigma_max": 9.0}}, {"schedule": "vp", "sigma_max": 9.0}),
        (
            {**CALL, "scheduler": {"solver": "stochastic_heun", "churn": 1.0, "rho": 3.0}},
            {"solver": "stochastic_heun", "churn": 1.0, "rho": 3.0},
        ),
        ({**CALL, "solver": "ancestral", "eta": 0.5}, {"solver": "ancestral", "eta": 0.5}),
        ({**CALL, **CHURN}, CHURN),
        ({**CALL, **LEVELS}, LEVELS),
        ({**CALL, "height": 12, "width": 16, "coords": "extend"}, {"resolution": (12, 16), "coords": "extend"}),
        ({**CALL, "height": 14, "width": 17, **TILES}, {"resolution": (14, 17), **TILES}),
        (
            {**CALL, "height": 14, "width": 17, "tile": (6, 8), "coords": "stretch"},
            {"resolution": (14, 17), "tile": (6, 8), "coords": "stretch"},
        ),
        ({**CALL, "guidance_scale": 1.7, **TILES}, {"guidance": 1.7, **TILES}),
        ({**CALL, "guidance_scale": 1.7, "guide": "crops"}, {"guidance": 1.7, "guide": "crops"}),
        (
            {**CALL, "guidance_scale": 1.7, "guide": "crops:4", "guidance_interval": (0.1, 5.0)},
            {"guidance": 1.7, "guide": "crops:4", "guidance_interval": (0.1, 5.0)},
        ),
        (
            {**CALL, "guidance_scale": 1.7, "guidance_interval": (0.1, 5.0)},
            {"guidance": 1.7, "guidance_interval": (0.1, 5.0)},
        ),
        (
            {
                **CALL,
                "guidance_scale": 1.7,
                "guidance_interval": (0.1, 5.0),
                "scheduler": {"class": "EDMEulerScheduler"},
            },
            {"solver": "euler", "guidance": 1.7, "guidance_interval": (0.1, 5.0)},
        ),
        ({**CALL, "scheduler": {"class": "EDMEulerScheduler"}}, {"solver": "euler"}),
        ({**CALL, "scheduler": {"class": "EDMDPMSolverMultistepScheduler"}}, {"solver": "dpm_solver_2m"}),
        (
            {**CALL, "guidance_scale": 1.7, "scheduler": {"class": "EDMEulerScheduler"}},
            {"solver": "euler", "guidance": 1.7},
        ),
    ],
    "flow": [
        (CALL, {}),
        ({**CALL, "solver": "euler", "shift": 3.0}, {"solver": "euler", "shift": 3.0}),
        ({**CALL, "solver": "euler_maruyama"}, {"solver": "euler_maruyama"}),
        ({**CALL, "scheduler": {"class": "FlowMatchEulerDiscreteScheduler"}}, {"solver": "euler"}),
        ({**CALL, "height": 14, "width": 17, **TILES}, {"resolution": (14, 17), **TILES}),
    ],
    "dit": [(CALL, {}), ({**CALL, "scheduler": {"solver": "euler_maruyama"}}, {"solver": "euler_maruyama"})],
    "edm2": [(CALL, {})],
    "ncsnpp": [
        (CALL, {}),
        ({**CALL, "scheduler": {"solver": "ancestral", "eta": 0.5}}, {"solver": "ancestral", "eta": 0.5}),
    ],
    "unet2d": [
        (CALL, {}),
        ({**CALL, "guidance_scale": 1.7}, {"guidance": 1.7}),
        ({**CALL, "scheduler": {"solver": "ancestral"}}, {"solver": "ancestral"}),
    ],
    "latents": [(CALL, {})],
}
OUTPUTS = [{**CALL, "output_type": kind} for kind in ("pixels", "pt", "np")] + [
    {key: value for key, value in CALL.items() if key != "seeds"}
    | {"batch_size": 3, "generator": SEEDS, "class_labels": [0, 1, 1]}
]


EULER = [
    (dict(CALL), {}),
    ({**CALL, "guidance_scale": 1.7}, {"guidance": 1.7}),
    (
        {**CALL, "guidance_scale": 1.7, "guidance_interval": (0.1, 5.0)},
        {"guidance": 1.7, "guidance_interval": (0.1, 5.0)},
    ),
    ({**CALL, "num_inference_steps": 9, "class_labels": [1, 0, 0]}, {"steps": 9, "labels": [1, 0, 0]}),
]
"""Calls of a pipeline of flow matching with diffusers' own scheduler, and what is said to `generate` for the same."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each kind of network."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    grey = pictures(2, "float32", ())
    make_run(folder / "unet", pd.UNet(3, 8, (1, 2), 1, num_classes=2), pictures())
    dit = pd.DiT(3, 32, 2, 2, num_classes=2, augment_channels=9)
    make_run(folder / "dit", dit, pictures(), pd.VP(), augment=Augment(p=0.2))
    edm2 = pd.EDM2UNet(3, 8, (1, 2), 1, num_classes=2)
    torch.nn.init.ones_(edm2.last_gain)
    make_run(folder / "edm2", edm2, pictures(), pd.XPrediction())
    ncsnpp = pd.UNet(2, 8, (1, 2), 1, kind="ncsnpp", coords=False)
    make_run(folder / "ncsnpp", ncsnpp, grey, pd.VE(), coords=False)
    make_run(folder / "unet2d", unet2d(), pictures())
    make_run(folder / "flow", pd.UNet(3, 8, (1, 2), 1, num_classes=2), pictures(), pd.Flow())
    latents = encode_latents(pictures(), make_vae(folder / "vae"), folder / "encoded")
    make_run(folder / "latents", pd.UNet(4, 8, (1, 2), 1, num_classes=2), latents)
    return folder


def loaded(runs, name, **options):
    return pd.load(runs / name, device="cpu", network=unet2d() if name == "unet2d" else None, **options)


def generated(model, **settings):
    """The images in model space, and the samples."""
    steps = []
    samples = list(pd.generate(model, SEEDS, **grouped(**{"steps": 4, **settings}), callback=steps.append))
    return steps[-1].denoised, torch.stack([sample.pixels for sample in samples])


def opened(folder, jobs):
    """Let diffusers alone open folders, each with its calls: the images of all."""
    for number, job in enumerate(jobs):
        job["out"] = str(folder / f"{number}.safetensors")
    (folder / "jobs.json").write_text(json.dumps(jobs, default=str))
    environment = {**os.environ, "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("open_exported.py")
    done = subprocess.run(
        [sys.executable, "-I", script, folder / "jobs.json"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [load_file(job["out"]) for job in jobs]
    return [[images[str(number)] for number in range(len(images))] for images in found]


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
    """Folders and what diffusers makes of them: ``{name: images of each call}``."""
    folder = tmp_path_factory.mktemp("exported")
    jobs, results = [], {}
    for name, calls in CALLS.items():
        network = unet2d() if name == "unet2d" else None
        results[name] = pd.export_model(runs / name, folder / name, network=network, license="cc-by-4.0")
        jobs.append(
            {"folder": folder / name, "calls": [dict(call) for call, _ in calls] + OUTPUTS[: 1 + 3 * (name == "unet")]}
        )
    pd.export_model(runs / "unet", folder / "half", dtype="float16", solver="euler", schedule="vp", resolution=(4, 8))
    jobs.append({"folder": folder / "half", "calls": [CALL]})
    pd.export_model(runs / "flow", folder / "euler", solver="euler")
    jobs.append({"folder": folder / "euler", "calls": [call for call, _ in EULER]})
    names = [*CALLS, "half", "euler"]
    return folder, results, dict(zip(names, opened(folder, jobs), strict=True))


@pytest.mark.parametrize("name", CALLS)
def test_diffusers_alone_makes_the_same_images(runs, exported, name):
    """For the same seeds: in every solver, guided, of chosen classes, in other shapes and schedules."""
    _, _, found = exported
    model = loaded(runs, name)
    for images, (call, settings) in zip(found[name], CALLS[name], strict=False):
        expected, _ = generated(model, **settings)
        assert images.shape == expected.shape
        # The network is untrained, and its images go into the hundreds.
        assert (images - expected).abs().max() < 1e-4 + 1e-6 * expected.abs().max(), call
    spread = generated(model)[0].std(0).mean()
    assert spread > 0.05  # so that it is no comparison of nothing with nothing


@pytest.mark.parametrize("name", CALLS)
def test_pixels_are_those_of_sample(runs, exported, name):
    _, _, found = exported
    _, expected = generated(loaded(runs, name))
    pixels = found[name][len(CALLS[name])]
    assert pixels.dtype == expected.dtype and pixels.shape == expected.shape
    if expected.dtype == torch.uint8:  # where a value lies between two levels, rounding decides
        assert (pixels.int() - expected.int()).abs().max() <= 1
    else:
        torch.testing.assert_close(pixels, expected, atol=1e-4, rtol=1e-5)


def test_what_a_user_of_diffusers_asks_for(runs, exported):
    """Values in [0, 1], in diffusers' order of the axes, and a generator for each image."""
    _, _, found = exported
    model = loaded(runs, "unet")
    images, _ = generated(model)
    of_torch, of_numpy, drawn = found["unet"][len(CALLS["unet"]) + 1 :]
    torch.testing.assert_close(of_torch.double(), ((images + 1) / 2).clamp(0, 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(of_numpy, of_torch.permute(0, 2, 3, 1))
    torch.testing.assert_close(drawn, generated(model, labels=[0, 1, 1])[0], atol=1e-4, rtol=0)


def test_half_precision_weights_and_other_settings(runs, exported):
    folder, _, found = exported
    expected, _ = generated(loaded(runs, "unet"), solver="euler", schedule="vp", resolution=(4, 8))
    (images,) = found["half"]
    assert images.shape == expected.shape and 1e-6 < (images - expected).abs().max() < 0.05
    weights = load_file(folder / "half" / "network" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}


def test_flow_matching_needs_no_scheduler_of_ours(runs, exported):
    """By Euler's method in even times an exported folder has diffusers' own scheduler, guided or not."""
    folder, _, found = exported
    index = json.loads((folder / "euler" / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    assert [path.name for path in (folder / "euler" / "scheduler").iterdir()] == ["scheduler_config.json"]
    model = loaded(runs, "flow")
    for images, (_, settings) in zip(found["euler"], EULER, strict=True):
        expected, _ = generated(model, solver="euler", **settings)
        assert (images - expected).abs().max() < 1e-4


def test_what_is_in_a_folder(exported):
    folder, results, _ = exported
    shared = ["README.md", "model_index.json", "network/config.json", "network/diffusion_pytorch_model.safetensors"]
    scheduler = ["scheduler/patch_diffusion_scheduler_*.py", "scheduler/scheduler_config.json"]
    carried = {"unet": "unet", "flow": "unet", "dit": "dit", "edm2": "edm2", "ncsnpp": "unet", "latents": "unet"}
    carried["unet2d"] = None
    for name, code in carried.items():
        expected = [*shared, *scheduler, "patch_diffusion_pipeline_*.py"]
        expected += [f"network/patch_diffusion_{code}_*.py"] * (code is not None)
        expected += ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"] * (name == "latents")
        there = [path.relative_to(folder / name).as_posix() for path in (folder / name).rglob("*") if path.is_file()]
        assert sorted(there) == results[name]["files"] and not results[name]["notes"]
        assert sorted(re.sub(r"_[0-9a-f]{12}\.py$", "_*.py", file) for file in there) == sorted(expected)
    assert not list(folder.glob(".*"))  # nothing half-written is left
    index = json.loads((folder / "unet2d" / "model_index.json").read_text())
    assert index["network"] == ["diffusers", "UNet2DModel"]
    for name in carried:  # paths of the machine stay on it
        for path in (folder / name).rglob("*.*"):
            assert path.suffix == ".safetensors" or not path.is_file() or str(folder.parent) not in path.read_text()


def test_the_pipeline_needs_to_be_trusted(exported, code_folder):
    folder, _, _ = exported
    if "trust_remote_code" not in inspect.getsource(diffusers.DiffusionPipeline.from_pretrained):
        pytest.skip("this version of diffusers runs the code without asking")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        diffusers.DiffusionPipeline.from_pretrained(folder / "unet")


@pytest.fixture
def pipe(runs):
    """The pipeline as it stands in this package, which is what is carried."""
    from patch_diffusion.interop.exported_code.network_unet import PatchDiffusionUNet
    from patch_diffusion.interop.exported_code.pipeline import PatchDiffusionPipeline
    from patch_diffusion.interop.exported_code.scheduler import PatchDiffusionScheduler

    network = PatchDiffusionUNet(3, 8, (1, 2), 1, num_classes=2)
    found = PatchDiffusionPipeline(
        network,
        PatchDiffusionScheduler(),
        height=8,
        width=12,
        stride=2,
        num_classes=2,
        label_dropout=0.1,
        id2label={"0": "cat", "1": "dog"},
    )
    found.set_progress_bar_config(disable=True)
    return found


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_type": "pill"}, "there is no output_type 'pill'; did you mean 'pil'"),
        ({"height": 7}, "multiples of 2 for this network, not 7x12: take 6x12 or 8x12"),
        ({"class_labels": 2}, "class 2 does not exist: there are classes 0 to 1"),
        ({"class_labels": "dgo"}, "there is no class 'dgo'; did you mean 'dog'"),
        ({"class_labels": [0, 1]}, "1 images need as many class_labels, not 2"),
        ({"seeds": []}, "at least 1 image"),
        ({"batch_size": 0}, "at least 1 image"),
        ({"seeds": [-1]}, "integers from 0"),
        ({"seeds": [2**63]}, r"to 2\^63 - 1"),
        ({"seeds": 1, "generator": torch.Generator()}, "stand in the place of a generator"),
        ({"generator": [torch.Generator()] * 2}, "1 images need as many generators, not 2"),
        ({"num_inference_steps": 0}, "at least 1 step"),
        ({"solver": "hune"}, "did you mean 'heun'"),
        ({"eta": 0.5}, "eta is not an option of the solver 'heun'"),
        ({"coords": "repeated"}, "coords cannot be 'repeated'; did you mean 'repeat'"),
        ({"coords": "repeat"}, "coords 'repeat' is for tiles"),
        ({"overlap": 3}, "overlap is that of tiles"),
        ({"tile": 32}, "a tile of 32x32 does not fit an image of 8x12"),
        ({"tile": 6, "overlap": 6}, "overlap by 0 to 5 pixels, not 6"),
        ({"tile": 5}, "multiples of 2 for this network, not 5x5: take 4x4 or 6x6"),
        ({"guide": "crops"}, "for a guidance_scale other than 1"),
        ({"guidance_scale": 2.0, "guide": "step:400"}, "there is no guide 'step:400' in a pipeline"),
        ({"guidance_scale": 2.0, "guide": "crops", "tile": 6}, "give whole images, no tiles"),
        ({"guidance_scale": 2.0, "guide": "crops:8"}, "crops smaller than these"),
        ({"guidance_interval": (0.1, 1.0)}, "for a guidance_scale other than 1"),
        ({"guidance_scale": 2.0, "guidance_interval": (1.0, 0.1)}, "from a lower to a higher noise level"),
    ],
)
def test_wrong_settings_of_a_call(pipe, settings, message):
    with pytest.raises(ValueError, match=message):
        pipe(**settings)


def test_wrong_models_and_schedulers(pipe):
    pipe.register_to_config(label_dropout=0.0)
    with pytest.raises(ValueError, match="guidance needs a model of classes"):
        pipe(guidance_scale=2.0)
    with pytest.raises(ValueError, match="did you mean 'heun'"):
        type(pipe.scheduler).from_config(pipe.scheduler.config, solver="hune")
    with pytest.raises(ValueError, match="eta is not an option of the solver 'heun'"):
        type(pipe.scheduler).from_config(pipe.scheduler.config, eta=0.5)
    pipe.scheduler = diffusers.DDPMScheduler()
    with pytest.raises(ValueError, match="a DDPMScheduler cannot make images of this model"):
        pipe()
    pipe.scheduler = diffusers.EDMEulerScheduler()
    with pytest.raises(ValueError, match="the scheduler, EDMEulerScheduler, has no option churn: leave it out"):
        pipe(churn=1.0)
    pipe.register_to_config(process="vp")
    with pytest.raises(ValueError, match="an EDMEulerScheduler scales .* 'edm', and this model is of 'vp'"):
        pipe()
    pipe.register_to_config(num_classes=0)
    with pytest.raises(ValueError, match="trained without classes"):
        pipe(class_labels=1)


def test_large_seeds_begin_with_the_noise_of_generate(pipe):
    seeds = [7, 7 + 2**32]
    noise = pipe._noise((3, 8, 12), 2, seeds, None)
    for index in (None, 3):
        expected = noise_of(seeds, (3, 8, 12), torch.device("cpu"), index)
        assert torch.equal(noise(index), expected) and not torch.equal(expected[0], expected[1])
    one, other = (pipe(seeds=seed, num_inference_steps=1).images[0] for seed in (np.int64(4), 4))
    assert one.tobytes() == other.tobytes()


def test_a_note_about_few_steps(pipe):
    """As `generate` gives it; a solver of one evaluation a step makes pictures."""
    with pytest.warns(
        UserWarning, match="^heun makes only noise with 2 steps: use 8 or more, or the solver dpm_solver_2m"
    ):
        pipe(seeds=4, num_inference_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe(seeds=4, num_inference_steps=2, solver="dpm_solver_2m")
        pipe(seeds=4, num_inference_steps=8)


def test_pictures(pipe):
    (picture,) = pipe(seeds=4, num_inference_steps=1).images
    assert picture.size == (12, 8) and picture.mode == "RGB"
    pipe.register_to_config(codec=PixelCodec("float32", 0.0, 1.0).as_dict())
    with pytest.raises(ValueError, match="3 channels of float32 are no pictures: take output_type 'pixels'"):
        pipe(num_inference_steps=1)
    pipe.register_to_config(codec={"kind": "latents", "mean": [1.0, 2.0, 3.0], "scale": [1.0, 1.0, 2.0]})
    with pytest.raises(ValueError, match="no VAE was carried"):
        pipe(num_inference_steps=1)
    space, latents = (pipe(seeds=4, num_inference_steps=1, output_type=kind).images for kind in ("latent", "pixels"))
    torch.testing.assert_close(latents[0, 2], (2 * space[0, 2] + 3).float())


def test_a_vae_that_is_gone_is_told_of(runs, tmp_path):
    shutil.copytree(runs / "latents", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["model"]["codec"]["vae"] = str(tmp_path / "gone")
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    found = pd.export_model(tmp_path / "run", tmp_path / "out")
    assert found["notes"] == [
        "the VAE is not carried, because it is not where it was (--vae FOLDER): the pipeline makes latents"
    ]
    assert found["notes"][0] in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["vae"] == [None, None]
    assert not pd.export_model(tmp_path / "run", tmp_path / "with", vae=runs / "vae")["notes"]


def test_other_weights_of_the_run(runs, tmp_path):
    checkpoint = runs / "unet" / "checkpoints" / "step-00000003"
    for number, options in enumerate(({"run": checkpoint}, {"run": runs / "unet", "checkpoint": 3})):
        pd.export_model(**options, out=tmp_path / str(number))
        weights = load_file(tmp_path / str(number) / "network" / "diffusion_pytorch_model.safetensors")
        expected = load_file(checkpoint / "ema.safetensors")
        assert all(torch.equal(weights[f"network.{name}"], tensor) for name, tensor in expected.items())
        assert "at step 3" in (tmp_path / str(number) / "README.md").read_text()


class Own(torch.nn.Module):
    """A network of a user's own."""

    image_channels = 3

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(5, 3, 3, padding=1)

    def forward(self, x, c_noise, labels=None):
        return self.layer(x) * c_noise[:, None, None, None]


def test_networks_whose_code_is_not_ours(tmp_path):
    class Changed(pd.UNet):
        pass

    class ChangedToo(diffusers.UNet2DModel):
        pass

    foreign = pd.DiffusersNetwork(ChangedToo(**UNET2D), num_classes=2)
    for number, network in enumerate((Own(), Changed(3, 8, (1, 2), 1), foreign)):
        images = pictures(names=("cat", "dog") if network is foreign else ())
        run = make_run(tmp_path / str(number), network, images)
        with pytest.raises(
            pd.InputError, match="of your own, whose code a pipeline cannot carry: export it --to onnx or"
        ):
            pd.export_model(run, tmp_path / "out", network=network)
        assert not (tmp_path / "out").exists()


def test_an_export_that_fails_leaves_nothing(runs, tmp_path, monkeypatch):
    from patch_diffusion.interop import pipeline_folder

    def full(*_):
        raise OSError(28, "No space left on device", "weights")

    monkeypatch.setattr(pipeline_folder, "write_tensors", full)
    (tmp_path / "out").mkdir()
    assert main(["export", str(runs / "unet"), "--to", "diffusers", "--out", str(tmp_path / "out")]) == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("RUN --out NEW", 2, "--to"),
        ("RUN --to diffusers", 2, "--out"),
        ("RUN --to difusers --out NEW", 2, "--to"),
        ("NOWHERE --to diffusers --out NEW", 1, "does not exist"),
        ("OTHER --to diffusers --out NEW", 1, "holds no run"),
        ("RUN --to diffusers --out OTHER", 1, "is not empty: choose a new or an empty folder"),
        ("RUN --to diffusers --out FILE", 1, "is a file: give a folder for the export"),
        (
            "CUSTOM --to diffusers --out NEW",
            1,
            "export it from Python, by patch_diffusion.export_model(run, out, network",
        ),
        ("RUN --to torch --out NEW --dtype float16", 1, "dtype has no meaning for torch"),
        ("RUN --to onnx --out NEW --solver euler", 1, "solver has no meaning for onnx"),
        ("RUN --to torch --out NEW --vae OTHER", 1, "vae has no meaning for torch"),
        ("RUN --to diffusers --out NEW --vae OTHER", 1, "a model of pixels, which takes no VAE"),
        ("RUN --to diffusers --out NEW --dtype float8", 2, "--dtype"),
        ("RUN --to diffusers --out NEW --solver hune", 1, "there is no solver 'hune'; did you mean 'heun'"),
        ("RUN --to diffusers --out NEW --schedule kara", 1, "did you mean 'karras'"),
        ("RUN --to diffusers --out NEW --resolution 7", 1, "multiples of 2 for this network, not 7x7"),
        ("RUN --to diffusers --out NEW --checkpoint 99", 1, "there are checkpoints of the steps 3"),
        ("RUN --to diffusers --out NEW --checkpoint best", 1, "has no best checkpoint"),
        ("RUN --to diffusers --out NEW --ema-length 0.1", 1, "has kept no averages of other lengths"),
        ("RUN --to diffusers --out NEW --license Mine!", 1, "such as apache-2.0 or cc-by-4.0, not as 'Mine!'"),
        ("RUN --to diffusers --out NEW --evaluation FILE", 1, "is damaged"),
        ("RUN --to diffusers --out NEW --push photos", 1, "OWNER/NAME, not 'photos'"),
        ("RUN --to diffusers --out NEW --public", 1, "name one by push OWNER/NAME"),
    ],
)
def test_mistakes_get_one_line_and_nothing_is_written(runs, tmp_path, capsys, line, status, message):
    (tmp_path / "other").mkdir()
    for file in ("file", "other/thesis.tex"):
        (tmp_path / file).write_text("")
    places = {name.upper(): str(tmp_path / name) for name in ("new", "nowhere", "other", "file")}
    places |= {"RUN": str(runs / "unet"), "CUSTOM": str(runs / "unet2d")}
    before = sorted(tmp_path.rglob("*"))
    assert main(["export", *(places.get(word, word) for word in line.split())]) == status
    captured = capsys.readouterr()
    assert message in captured.err and len(captured.err.splitlines()) == 1 and not captured.out
    assert sorted(tmp_path.rglob("*")) == before


def test_the_verb(runs, tmp_path, capsys):
    out = tmp_path / "deep" / "model"
    arguments = ["export", str(runs / "unet"), "--to", "diffusers", "--out", str(out)]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["out"] == str(out) and "model_index.json" in found["files"] and found["pushed"] is None
    assert main([*arguments[:-1], str(tmp_path / "again")]) == 0
    told = capsys.readouterr().err
    assert "trust_remote_code=True" in told and "without a licence nobody else" in told


def test_the_card_s_code_runs(exported, monkeypatch, code_folder):
    folder, _, _ = exported
    monkeypatch.chdir(folder)
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", (folder / "unet" / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert [image.size for image in names["images"]] == [(12, 8)] * 4
    assert names["pipe"].scheduler.config.solver == "dpm_solver_2m"
    assert list((code_folder / "diffusers_modules" / "local").glob("patch_diffusion_pipeline_*.py"))


# What is asked of `generate`, of the pipeline for the same, and words of the refusal if there is one.
TWINS = [
    ({"seeds": np.arange(2)}, {"seeds": np.arange(2)}, ""),
    ({"seeds": torch.arange(2)}, {"seeds": torch.arange(2)}, ""),
    ({"seeds": [np.int64(3)]}, {"seeds": np.int64(3)}, ""),
    ({"seeds": range(2), "labels": np.int64(1)}, {"seeds": range(2), "class_labels": np.int64(1)}, ""),
    ({"seeds": [4, 4], "labels": torch.tensor([1, 0])}, {"seeds": [4, 4], "class_labels": torch.tensor([1, 0])}, ""),
    ({"steps": np.int32(3)}, {"num_inference_steps": np.int32(3)}, ""),
    ({"guidance": np.float32(2)}, {"guidance_scale": np.float32(2)}, ""),
    ({"resolution": np.int64(8)}, {"height": np.int64(8), "width": np.int64(8)}, ""),
    ({"seeds": [0.5]}, {"seeds": [0.5]}, "a seed is a whole number, not 0.5"),
    ({"seeds": [2**63]}, {"seeds": 2**63}, "seeds are integers from 0 to 2^63 - 1"),
    ({"seeds": [-1]}, {"seeds": [-1]}, "seeds are integers from 0 to 2^63 - 1"),
    ({"labels": [1.7]}, {"class_labels": [1.7]}, "a class is a whole number, not 1.7"),
    ({"labels": 2}, {"class_labels": 2}, "class 2 does not exist"),
    ({"steps": 2.5}, {"num_inference_steps": 2.5}, "is a whole number, not 2.5"),
    ({"steps": 10**9}, {"num_inference_steps": 10**9}, "at most 1,000,000"),
    ({"resolution": (0, 12)}, {"height": 0}, "not 0x12"),
    ({"resolution": (8, 12.0)}, {"width": 12.0}, "is a whole number, not 12.0"),
    ({"guidance": float("nan")}, {"guidance_scale": float("nan")}, "is a finite number, not nan"),
    ({"guidance": float("inf")}, {"guidance_scale": float("inf")}, "is a finite number, not inf"),
    ({"sigma_max": float("inf")}, {"sigma_max": float("inf")}, "sigma_max is a finite number, not inf"),
    ({"sigma_min": float("nan")}, {"sigma_min": float("nan")}, "sigma_min is a finite number, not nan"),
    ({"rho": 1e-4}, {"rho": 1e-4}, "rho is a number above 0.0063"),
    ({"sigma_max": 1e30}, {"sigma_max": 1e30}, "1 of 1 images is not finite"),
    (
        {"guidance": 2.0, "guidance_interval": (0.1, float("inf"))},
        {"guidance_scale": 2.0, "guidance_interval": (0.1, float("inf"))},
        "guidance_interval is a finite number, not inf",
    ),
    (
        {"guidance": 2.0, "guidance_interval": (-3.0, 1.0)},
        {"guidance_scale": 2.0, "guidance_interval": (-3.0, 1.0)},
        "from a lower to a higher noise level",
    ),
    (
        {"guidance": 2.0, "guidance_interval": (500.0, 900.0)},
        {"guidance_scale": 2.0, "guidance_interval": (500.0, 900.0)},
        "none of the noise levels",
    ),
    ({"tile": 4.5}, {"tile": 4.5}, "tile is a whole number, not 4.5"),
    ({"tile": 4, "overlap": 1.5}, {"tile": 4, "overlap": 1.5}, "overlap is a whole number, not 1.5"),
]


@pytest.fixture(scope="module")
def twins(runs, tmp_path_factory):
    """A model, and the pipeline that its export is."""
    folder = tmp_path_factory.mktemp("twins")
    pd.export_model(runs / "unet", folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(folder / "code"))
        patch.setattr(sys, "path", [*sys.path])
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder / "model", trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return loaded(runs, "unet"), pipe


@pytest.mark.parametrize(("asked", "of_pipeline", "message"), TWINS)
def test_generate_and_the_pipeline_take_and_refuse_the_same(twins, asked, of_pipeline, message):
    model, pipe = twins

    def generated():
        samples = pd.generate(model, **grouped(**{"seeds": [0], "steps": 2, **asked}))
        return torch.stack([sample.pixels for sample in samples])

    def piped():
        return pipe(**{"seeds": [0], "num_inference_steps": 2, "output_type": "pixels", **of_pipeline}).images

    if not message:
        assert (generated().int() - piped().int()).abs().max() <= 1
        return
    for make in (generated, piped):
        with pytest.raises(ValueError, match=re.escape(message)):
            make()


def test_exports_of_other_code_stay_apart_in_one_process(runs, tmp_path, monkeypatch, code_folder):
    """Two versions of the package, whose code differs, export; an export of before, with a pipeline.py, opens too."""
    pipes = {}
    for mark in ("one", "other"):
        with monkeypatch.context() as patch:
            patch.setattr(
                "patch_diffusion.interop.pipeline_folder.bundle",
                lambda name, mark=mark: bundle(name) + f"MARK = '{mark}'\n",
            )
            pd.export_model(runs / "unet", tmp_path / mark)
        pipes[mark] = diffusers.DiffusionPipeline.from_pretrained(tmp_path / mark, trust_remote_code=True)
    for mark, pipe in pipes.items():
        for method in (pipe._noise, pipe.scheduler.solve, pipe.network.forward):
            assert method.__globals__["MARK"] == mark
    index = json.loads((tmp_path / "one" / "model_index.json").read_text())
    code = index["_class_name"][0]
    (tmp_path / "one" / f"{code}.py").rename(tmp_path / "one" / "pipeline.py")
    index["_class_name"][0] = "pipeline"
    (tmp_path / "one" / "model_index.json").write_text(json.dumps(index))
    before = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "one", trust_remote_code=True)
    assert before.config.num_classes == 2


def test_the_code_imports_what_an_old_diffusers_forgets():
    """Version 0.32 uses safetensors.torch and does not import it."""
    for name in ("pipeline", "network_unet", "network_edm2", "network_dit"):
        assert "\nimport safetensors.torch\n" in bundle(f"patch_diffusion.interop.exported_code.{name}")


@pytest.mark.parametrize(("to", "dtype"), [("diffusers", "float16"), ("onnx", None)])
def test_weights_that_are_not_finite_are_not_exported(runs, tmp_path, to, dtype):
    run = shutil.copytree(runs / "unet", tmp_path / "run")
    weights = read_tensors(run / "model.safetensors")
    name = next(name for name in weights if name.endswith("weight"))
    weights[name][0] = 1e6 if dtype else float("nan")
    write_tensors(run / "model.safetensors", weights)
    with pytest.raises(pd.InputError, match=f"not finite as {dtype or 'float32'} .first: {name}"):
        pd.export_model(run, tmp_path / "model", to=to, dtype=dtype)
    assert not (tmp_path / "model").exists()


def test_a_name_of_a_class_wins_over_a_place_in_a_pipeline_too():
    from patch_diffusion.interop.exported_code.pipeline import PatchDiffusionPipeline

    names = {str(place): str(place + 1) for place in range(3)}
    pipe = SimpleNamespace(config=SimpleNamespace(num_classes=3, id2label=names), _execution_device="cpu")
    assert PatchDiffusionPipeline._labels(pipe, ["3", 3], [0, 1]).tolist() == [2, 2]
    with pytest.warns(UserWarning, match="class 1 is taken as a name; class number 1 is 2"):
        assert PatchDiffusionPipeline._labels(pipe, 1, [0, 1]).tolist() == [0, 0]
    assert PatchDiffusionPipeline._labels(pipe, None, [4, 5]).tolist() == [1, 2]
