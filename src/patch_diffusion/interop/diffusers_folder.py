"""Reading of the networks of diffusers pipelines: a ``UNet2DModel`` with the noise levels of its scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from patch_diffusion.config import Network
from patch_diffusion.denoise.carry import Carried
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.networks.timestep_unet import noise_levels
from patch_diffusion.denoise.process import EDM
from patch_diffusion.errors import InputError, need, reason_of
from patch_diffusion.files import read_json
from patch_diffusion.interop.safe_pickle import printable
from patch_diffusion.records import check_limits
from patch_diffusion.runs.model import build_network

_UNET, _SCHEDULER = "UNet2DModel", "scheduler_config.json"
_SIGMA_DATA = 0.5  # of images scaled to [-1, 1], as for EDM: the loss is weighted by it
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_SCHEDULE = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "rescale_betas_zero_snr",
)
_OF_THE_IMAGES = ("in_channels", "out_channels", "num_class_embeds", "dropout", "sample_size")
_SAMPLING = ("clip_sample", "thresholding")


class Pipeline(NamedTuple):
    """The network of a diffusers pipeline as a `Denoiser`, on the CPU, and lines for the table of what is carried."""

    model: Denoiser
    rows: list[Carried]


def read_pipeline(path: Path) -> Pipeline:
    """Read the ``UNet2DModel`` and the scheduler of a diffusers pipeline, given by its folder or that of its network.

    No code of the folder is run, and nothing is downloaded.

    Raises:
        InputError: the folder holds no such pipeline, or one whose network or scheduler is not supported.
    """
    folder, scheduler = _places(path)
    diffusers = need("diffusers", "hub", f"the network in {folder}")
    settings = _scheduler(scheduler)
    try:
        unet: Any = diffusers.UNet2DModel.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    except Exception as error:  # whatever diffusers makes of it
        raise InputError(f"{folder} cannot be read as a {_UNET}: {reason_of(error)}") from None
    config = dict(unet.config)
    channels, extra = _check_unet(config, folder)
    schedule = {name: settings[name] for name in _SCHEDULE if settings.get(name) is not None}
    try:
        levels = noise_levels(**schedule)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{scheduler}: {reason_of(error)}") from None
    described = {
        "model": {
            name: _plain(value) for name, value in config.items() if name[0] != "_" and name not in _OF_THE_IMAGES
        },
        "schedule": {name: _plain(value) for name, value in schedule.items()},
        "prediction": settings["prediction_type"],
        "sigma_data": _SIGMA_DATA,
    }
    classes: int = config["num_class_embeds"] or 0
    options = Network(kind="diffusers", unet=described, dropout=float(config.get("dropout") or 0.0), label_dropout=0.0)
    network = build_network(options, channels, classes, coords=False)
    weights = {f"unet.{name}": tensor.float() for name, tensor in unet.state_dict().items()}
    for name in ("unet.conv_out.weight", "unet.conv_out.bias") if extra else ():
        weights[name] = weights[name][:channels].clone()
    if classes:
        embeddings = weights["unet.class_embedding.weight"]
        weights["unet.class_embedding.weight"] = torch.cat([embeddings, embeddings.mean(dim=0, keepdim=True)])
    network.load_state_dict(weights)
    model = Denoiser(
        network,
        _SIGMA_DATA,
        process=EDM(),
        coords=False,
        sigma_min=levels[0],
        sigma_max=min(levels[-1], EDM.sigma_max),
        resolution=_resolution(config.get("sample_size")),
    )
    return Pipeline(model.eval(), _rows(settings, levels, extra))


def _places(path: Path) -> tuple[Path, Path]:
    """Return the folder of the network and the file of the scheduler; raise InputError if the network is another."""
    index = path / "model_index.json"
    parts = read_json(index) if index.is_file() else {}
    kinds = {name: entry[1] for name, entry in parts.items() if isinstance(entry, list) and len(entry) == 2}
    named = next((name for name, kind in kinds.items() if kind == _UNET), None)
    folders = [path / named, path] if named is not None else [path, path / "unet"]
    folder = next((each for each in folders if (each / "config.json").is_file()), None)
    kind = None if folder is None else read_json(folder / "config.json").get("_class_name")
    others = [
        each for each in (kind, *kinds.values()) if isinstance(each, str) and ("UNet" in each or "Transf" in each)
    ]
    if folder is None or kind != _UNET:
        found = f"has a {printable(others[0], 60)}" if others else "holds no network of a pipeline"
        raise InputError(f"{path} {found}: a model to train on from has a diffusers {_UNET}, a run its config.json")
    files = [each / _SCHEDULER for each in (path / "scheduler", folder.parent / "scheduler", folder, path)]
    scheduler = next((each for each in files if each.is_file()), None)
    if scheduler is None:
        raise InputError(f"{path} has no scheduler ({_SCHEDULER}), which tells the noise levels of the network")
    return folder, scheduler


def _scheduler(file: Path) -> dict[str, Any]:
    """Return the configuration of a scheduler, with a ``prediction_type``; raise InputError if it is not supported."""
    settings = read_json(file)
    name = printable(settings.get("_class_name", "scheduler"), 60)
    if "beta_schedule" not in settings:
        raise InputError(f"{file}: a {name} has no beta_schedule, by which the noise levels of timesteps are known")
    settings["prediction_type"] = settings.get("prediction_type") or "epsilon"
    if settings["prediction_type"] not in _PREDICTIONS:
        raise InputError(
            f"{file}: prediction_type {printable(settings['prediction_type'], 40)} is none of {', '.join(_PREDICTIONS)}"
        )
    if settings.get("rescale_betas_zero_snr") and settings["prediction_type"] != "v_prediction":
        raise InputError(
            f"{file}: rescale_betas_zero_snr ends in noise alone, where only a v_prediction tells anything, and "
            f"this is prediction_type {settings['prediction_type']}"
        )
    check_limits(settings, {"num_train_timesteps": (2, 100_000)}, str(file))
    return settings


def _check_unet(config: dict[str, Any], folder: Path) -> tuple[int, bool]:
    """Return the number of channels of a network's images, and whether it has as many more for a learned variance."""
    into, out = config["in_channels"], config["out_channels"]
    blocks = [*config["down_block_types"], *config["up_block_types"]]
    for wrong, told in (
        (
            out not in (into, 2 * into),
            f"takes {into} channels and gives {out}: supported are as many, or twice as many",
        ),
        (config.get("class_embed_type") is not None, "has no embedding of classes by number (class_embed_type)"),
        (config.get("time_embedding_type") != "positional", "embeds no real timesteps (time_embedding_type)"),
        (any("Skip" in name for name in blocks), "has skip blocks, which take images apart from the first layer"),
    ):
        if wrong:
            raise InputError(f"the {_UNET} in {folder} {told}, so it cannot be trained on from")
    return into, out != into


def _rows(settings: dict[str, Any], levels: list[float], extra: bool) -> list[Carried]:
    schedule = "trained_betas" if settings.get("trained_betas") else settings["beta_schedule"]
    zero = ", zero terminal SNR" if settings.get("rescale_betas_zero_snr") else ""
    rows = [
        Carried("prediction", settings["prediction_type"], "carried, in the network"),
        Carried(
            "timesteps", f"{len(levels):,}", f"carried: {schedule}, sigma {levels[0]:.2g} to {levels[-1]:.4g}{zero}"
        ),
    ]
    if extra:
        rows.append(Carried("variance", "learned", "not carried: its output channels are dropped"))
    rows += [
        Carried(name, "yes", "not carried: samples are not clipped while they are made")
        for name in _SAMPLING
        if settings.get(name)
    ]
    return rows


def _resolution(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if isinstance(size, list | tuple) and len(size) == 2 else None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
