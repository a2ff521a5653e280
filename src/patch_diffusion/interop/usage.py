"""The usage section of a model card: code that samples from the exported model and runs as it stands."""

from __future__ import annotations

from patch_diffusion.data.attributes import Attribute
from patch_diffusion.data.latents.codec import LatentCodec
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.networks.adapters import DiffusersNetwork
from patch_diffusion.sampling.options import Sampling

_PIPELINE = """\
```python
from diffusers import DiffusionPipeline

# By the name or the path of this folder.
pipe = DiffusionPipeline.from_pretrained("{place}", trust_remote_code=True)
images = pipe(seeds=[0, 1, 2, 3]{settings}).images
```

`trust_remote_code=True` runs `patch_diffusion_pipeline_*.py` and the code of {carried}: they are in this folder to
be read, and without it the folder does not open. {weights}

{classes}A seed gives the picture that `patch-diffusion sample` makes of it; `generator=` works too, and
`height=` and `width=`, multiples of {stride}. It computes in float32, and inside `torch.autocast` as that says. A call
takes the options of `patch-diffusion sample` by their names: `solver=` (heun, euler, dpm_solver_2m, dpm_solver_3m,
unipc, stochastic_heun, ancestral, euler_maruyama or consistency), `schedule=`, `sigma_min=`, `sigma_max=`, `rho=`,
`shift=`, `churn=`, `churn_min=`, `churn_max=`, `churn_noise=`, `eta=`, `guidance_interval=`, `coords=`. The scheduler
holds their defaults:

```python
pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, solver="dpm_solver_2m")
```
"""

_GRAPH = """\
`{file}` is the whole denoiser: noisy images (n, {channels}, {height}, {width}) at noise levels sigma (n,) to denoised
ones, for any n. `config.json` has what a sampler needs to know. {method}, as a file in this folder, which then
runs from any other:

```python
import json
from pathlib import Path

import numpy as np
{imports}

folder = Path(__file__).parent
model = json.loads((folder / "config.json").read_text())
{opened}
label = 0  # a class; -1 is none
if model["num_classes"] and not -1 <= label < model["num_classes"]:  # the graph itself makes NaN of it
    raise ValueError(f"there is no class {{label}}: they are 0 to {{model['num_classes'] - 1}}")
shape = (1, model["image_channels"], *model["resolution"])
y, x = (np.linspace(-1, 1, side, dtype=np.float32) if side > 1 else np.zeros(1, np.float32) for side in shape[2:])
given = {{
    "attributes": np.zeros((1, model["attribute_channels"]), np.float32),  # none is given
    "coords": np.stack(np.broadcast_arrays(x[None], y[:, None])),
    "labels": np.array([label], np.int64),
}}


def denoise(noisy, sigma):
    given["noisy"], given["sigma"] = noisy.astype(np.float32), np.full(1, sigma, np.float32)
{run}


{sampled}
{decoded}
```
"""

_HEUN = """\
high, low = (model[name] ** (1 / 7) for name in ("sigma_max", "sigma_min"))
sigmas = [*np.linspace(high, low, 18) ** 7, 0.0]
mean = np.array(model["mean_data"])[:, None, None]
noisy = mean + np.random.default_rng(0).standard_normal(shape) * sigmas[0]
for sigma, following in zip(sigmas[:-1], sigmas[1:]):
    slope = (noisy - denoise(noisy, sigma)) / sigma
    ahead = noisy + (following - sigma) * slope
    if following > 0:
        slope = (slope + (ahead - denoise(ahead, following)) / following) / 2
    noisy = noisy + (following - sigma) * slope"""

_CONSISTENCY = """\
sigmas = {sigmas}
random = np.random.default_rng(0)
noisy = np.array(model["mean_data"])[:, None, None] + random.standard_normal(shape) * sigmas[0]
for sigma, following in zip(sigmas[:-1], sigmas[1:]):
    noisy = denoise(noisy, sigma) + following * random.standard_normal(shape)"""

# Heun's steps of sigma would be of no use after pure noise.
_EULER_OF_FLOW = """\
first, last = (model[name] / (1 + model[name]) for name in ("sigma_max", "sigma_min"))
times = np.linspace(first, last, 36)
sigmas = [*(times / (1 - times)), 0.0]
mean = np.array(model["mean_data"])[:, None, None]
noisy = mean + np.random.default_rng(0).standard_normal(shape) * sigmas[0]
for sigma, following in zip(sigmas[:-1], sigmas[1:]):
    denoised = denoise(noisy, sigma)
    noisy = denoised + following / sigma * (noisy - denoised)"""

_OPENED = {
    "onnx": (
        "import onnxruntime",
        'session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])',
        '    return session.run(None, {name: given[name] for name in model["inputs"]})[0]',
    ),
    "torch": (
        "import torch",
        'program = torch.export.load(folder / "model.pt2").module()',
        '    return program(*(torch.from_numpy(given[name]) for name in model["inputs"])).detach().numpy()',
    ),
}

_PIXELS = """\
low, high = model["codec"]["low"], model["codec"]["high"]
pixels = (noisy + 1) * (high - low) / 2 + low"""
_LATENTS = """\
mean, scale = (np.array(model["codec"][name])[:, None, None] for name in ("mean", "scale"))
latents = noisy * scale + mean  # for the decoder of the VAE that made them"""


def pipeline_usage(model: Denoiser, place: str, *, dtype: str) -> str:
    """Return markdown that shows how to sample with a pipeline exported to a place, a folder or a hub repository."""
    classes = ""
    if model.num_classes:
        guided = ", `guidance_scale=1.5` strengthens it" if model.label_dropout else ""
        named = repr(model.class_names[0]) if model.class_names else "0"
        classes = f"`class_labels={named}` asks for a class{guided}.\n"
    if model.columns:
        wanted = ", ".join(f"{column.name!r}: {_example(column)!r}" for column in model.columns[:3])
        classes += f"`conditions={{{wanted}}}` says what else the images are to be; what is not named is left open.\n"
    foreign = isinstance(model.network, DiffusersNetwork)
    codec = model.codec
    latents = isinstance(codec, LatentCodec)
    pictures = codec.can_decode if latents else codec.dtype == "uint8" and model.image_channels in (1, 3, 4)
    return _PIPELINE.format(
        place=place,
        settings="" if pictures else ', output_type="pixels"',
        carried="the scheduler" if foreign else "the network and the scheduler",
        weights="The network is diffusers' own `UNet2DModel`. " * foreign + f"Weights are stored in {dtype}.",
        classes=classes,
        stride=model.stride,
    )


def _example(column: Attribute) -> str | float | list[float]:
    """Return a value of an attribute: its first category, or its mean."""
    if column.categories:
        return column.categories[0]
    mean = [float(f"{each:.3g}") for each in column.mean]
    return mean[0] if len(mean) == 1 else mean


def graph_usage(model: Denoiser, resolution: tuple[int, int], to: str) -> str:
    """Return markdown that shows how to sample with an exported ONNX file or torch.export program."""
    imports, opened, run = _OPENED[to]
    is_flow = model.process.name == "flow"
    method, sampled = ("By Euler's method", _EULER_OF_FLOW) if is_flow else ("By Heun's method", _HEUN)
    if model.few_steps is not None:
        levels = [round(level, 4) for level in Sampling().settled(model).sigmas(model).tolist()]
        method, sampled = f"In {model.few_steps} steps, for which it is tuned", _CONSISTENCY.format(sigmas=levels)
    return _GRAPH.format(
        file={"onnx": "model.onnx", "torch": "model.pt2"}[to],
        channels=model.image_channels,
        height=resolution[0],
        width=resolution[1],
        imports=imports,
        opened=opened,
        run=run,
        method=method,
        sampled=sampled,
        decoded=_LATENTS if isinstance(model.codec, LatentCodec) else _PIXELS,
    )
