"""The exported folder that diffusers opens without this package: pipeline, network, scheduler, and VAE for latents."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from patch_diffusion.data.codec import Codec
from patch_diffusion.data.latents.codec import STANDARD_DEVIATION, LatentCodec
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.networks.adapters import DiffusersNetwork
from patch_diffusion.denoise.networks.dit import DiT
from patch_diffusion.denoise.networks.edm2 import EDM2UNet
from patch_diffusion.denoise.networks.timestep_unet import TimestepUNet
from patch_diffusion.denoise.networks.unet import UNet
from patch_diffusion.errors import InputError
from patch_diffusion.files import read_json, write_json, write_tensors, write_text
from patch_diffusion.interop.bundle import bundle
from patch_diffusion.interop.flow_scheduler import flow_scheduler

_CARRIED = "patch_diffusion.interop.exported_code"
_WEIGHTS = "diffusion_pytorch_model.safetensors"

# diffusers looks for a component's class in a module of this name in the component's folder. It would take a name such
# as "dit" for a module of diffusers itself.
_CLASSES: dict[type, tuple[str, str]] = {
    UNet: ("network_unet", "PatchDiffusionUNet"),
    EDM2UNet: ("network_edm2", "PatchDiffusionEDM2UNet"),
    DiT: ("network_dit", "PatchDiffusionDiT"),
    TimestepUNet: ("network_timestep", "PatchDiffusionTimestepUNet"),
}


def check_pipeline(model: Denoiser) -> None:
    """Raise InputError if the code of a model's network is the user's own, which an export cannot hold."""
    network: Any = model.network.unet if isinstance(model.network, DiffusersNetwork) else model.network
    # A subclass of one of these classes has code of its own, so subclasses are refused.
    if type(network) not in _CLASSES and type(network).__module__.split(".")[0] != "diffusers":
        raise InputError(
            f"the network is a {type(network).__name__} of your own, whose code a pipeline cannot carry: export it "
            "--to onnx or --to torch, which hold the computation itself"
        )


def write_pipeline(model: Denoiser, folder: Path, *, dtype: torch.dtype, settings: dict[str, Any]) -> list[str]:
    """Write a model, on the CPU, as a diffusers pipeline into an empty folder; return notes on what is not exported.

    ``settings`` are solver, schedule and their options for the scheduler; ``dtype`` is that of the stored weights.
    """
    check_pipeline(model)
    network = _write_network(model, folder / "network", dtype)
    scheduler = _write_scheduler(model, folder / "scheduler", settings)

    vae, codec, notes = _write_codec(model, folder / "vae")
    assert model.resolution is not None
    height, width = model.resolution
    foreign = model.network if isinstance(model.network, DiffusersNetwork) else None
    index = {
        "_class_name": [_carry("pipeline", folder, "patch_diffusion_pipeline"), "PatchDiffusionPipeline"],
        "network": network,
        "scheduler": scheduler,
        "vae": vae,
        "height": height,
        "width": width,
        "image_channels": model.image_channels,
        "stride": model.stride,
        "coords": model.coords,
        "num_classes": model.num_classes,
        "label_dropout": model.label_dropout,
        "no_class": model.num_classes if foreign else -1,
        "timestep_scale": foreign.timestep_scale if foreign else 1.0,
        "id2label": {str(number): name for number, name in enumerate(model.class_names)},
        "attributes": [asdict(column) for column in model.columns],
        "codec": codec,
        "process": model.process.name,
        "mean_data": list(model.mean_data or [0.0]),
        **({} if model.few_steps is None else {"steps": model.few_steps}),
    }
    write_json(folder / "model_index.json", index)
    return notes


def _write_scheduler(model: Denoiser, folder: Path, settings: dict[str, Any]) -> list[str]:
    """Write the scheduler, with its code if it is not diffusers' own; return its entry in ``model_index.json``."""
    folder.mkdir()
    config, module = flow_scheduler(model, settings), "diffusers"
    if config is None:
        module = _carry("scheduler", folder, "patch_diffusion_scheduler")
        config = {
            "_class_name": "PatchDiffusionScheduler",
            "process": model.process.name,
            "sigma_data": model.sigma_data,
            "sigma_min": model.sigma_min,
            "sigma_max": model.sigma_max,
            **settings,
        }
    write_json(folder / "scheduler_config.json", config)
    return [module, config["_class_name"]]


def codec_facts(codec: Codec) -> dict[str, Any]:
    """Return constants that convert model space to pixels or latents, as a dict, without the path of the VAE."""
    if not isinstance(codec, LatentCodec):
        return {"kind": "pixels", **codec.as_dict()}
    scale = [deviation / STANDARD_DEVIATION for deviation in codec.deviation]
    return {"kind": "latents", "mean": list(codec.mean), "scale": scale, "factor": codec.factor}


def _write_network(model: Denoiser, folder: Path, dtype: torch.dtype) -> list[str]:
    """Write config, code and weights of the network; return its entry [module, class] in ``model_index.json``."""
    network = model.network
    if isinstance(network, DiffusersNetwork):
        unet: Any = network.unet
        stored = unet if dtype == torch.float32 else copy.deepcopy(unet).to(dtype)
        stored.save_pretrained(folder)
        _forget_place(folder)
        return ["diffusers", type(unet).__name__]
    folder.mkdir()
    source, name = _CLASSES[type(network)]  # pyright: ignore[reportArgumentType]
    module = _carry(source, folder, f"patch_diffusion_{source.removeprefix('network_')}")
    facts = {
        "image_channels": model.image_channels,
        "num_classes": model.num_classes,
        "augment_channels": model.augment_channels,
        "attribute_channels": model.attribute_channels,
        "coords": model.coords,
    }
    options: Any = model.module.settings
    write_json(folder / "config.json", {"_class_name": name, **facts, **options})
    weights = {f"network.{name}": tensor.to(dtype) for name, tensor in model.module.state_dict().items()}
    write_tensors(folder / _WEIGHTS, weights)
    return [module, name]


def _write_codec(model: Denoiser, folder: Path) -> tuple[list[str | None], dict[str, Any], list[str]]:
    """Write the VAE, if any; return its entry in ``model_index.json``, `codec_facts`, and notes if it is missing."""
    codec, facts = model.codec, codec_facts(model.codec)
    if not isinstance(codec, LatentCodec):
        return [None, None], facts, []
    if not codec.can_decode:
        missing = "the VAE is not carried, because it is not where it was (--vae FOLDER): the pipeline makes latents"
        return [None, None], facts, [missing]
    codec.autoencoder.save(folder)
    _forget_place(folder)
    return ["diffusers", codec.autoencoder.kind], facts, []


def _forget_place(folder: Path) -> None:
    """Delete the path on this machine that diffusers stores in the config of a model, because it is private."""
    config = read_json(folder / "config.json")
    config.pop("_name_or_path", None)
    write_json(folder / "config.json", config)


def _carry(module: str, folder: Path, name: str) -> str:
    """Write a module with all that it needs as ``folder/NAME_DIGEST.py``; return NAME_DIGEST.

    diffusers copies the file into one folder for all pipelines, and Python keeps one module of a name: so other code
    has another name.
    """
    text = bundle(f"{_CARRIED}.{module}")
    name = f"{name}_{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"
    write_text(folder / f"{name}.py", text)
    return name
