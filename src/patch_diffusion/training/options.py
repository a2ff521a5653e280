"""Merging of all options that a trainer is given (a config, keywords, the model and the images) into one config."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypedDict

from patch_diffusion import config as options
from patch_diffusion.config import Config, Network, Patches
from patch_diffusion.config_dict import flat_options
from patch_diffusion.data.images import Images
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.objective import Objective, settled_noise
from patch_diffusion.errors import InputError, did_you_mean, option_error
from patch_diffusion.evaluation.meter import SampleMeter
from patch_diffusion.patches.schedule import PatchSchedule
from patch_diffusion.training.choices.law import batch_for
from patch_diffusion.training.optimizing.optimizers import settled


class TrainerOptions(TypedDict, total=False):
    """The keyword arguments of `Trainer`: the options of a `Config` by name, and objects that no config can hold.

    ``schedule`` replaces ``patches``, ``augment`` replaces ``data.augment``. ``held_out``: images that are not trained
    on, whose loss is logged. ``meter``: function that computes metrics of samples, its options replace ``watch``.
    ``objective``: function that makes the training objective of the denoiser. Default: by its ``few_steps``.
    """

    schedule: Patches
    noise: options.Noise
    augment: options.Augment
    optimizer: options.Optimizer
    ema: options.Ema
    engine: options.Engine
    watch: options.Watch
    batch: int | Literal["auto"]
    seed: int
    checkpoints: int
    checkpoint_minutes: float
    checkpoint_steps: int | None
    checkpoint_last: int
    checkpoint_best: bool
    checkpoint_by: Literal["loss", "frechet", "kernel"]
    watchdog: Literal["restore", "stop", "off"]
    samples: int
    log_every: int
    track: Sequence[Literal["tensorboard", "wandb", "trackio"]] | None
    held_out: Images | None
    meter: SampleMeter
    objective: type[Objective]


def config_of(given: Config | Patches | None, keywords: Mapping[str, Any]) -> Config:
    """Merge a config, or a patch schedule in its place, and keyword options into one config.

    Raises:
        InputError: an option is given twice, with two values; or two seeds.
        TypeError: there is no keyword of that name.
    """
    config = given if isinstance(given, Config) else Config()
    if isinstance(given, Patches):
        if "schedule" in keywords:
            raise InputError(
                "two patch schedules: one in the place of the config, one as a keyword: leave one out", option="patches"
            )
        keywords = {"schedule": given, **keywords}
    if "weight" in keywords:
        warnings.warn(
            "weight is an option of noise: Trainer(..., noise=NoiseLevels(weight=...))", DeprecationWarning, 3
        )
        noise = replace(keywords.get("noise") or config.noise, weight=keywords["weight"])
        keywords = {name: value for name, value in keywords.items() if name != "weight"} | {"noise": noise}
    known = TrainerOptions.__annotations__.keys() - {"held_out", "meter", "objective"}
    for name, value in keywords.items():
        if name not in known:
            raise TypeError(f"Trainer has no option '{name}'{did_you_mean(name, sorted(known))}")
        if value is None and name != "track":
            continue
        if name == "augment":
            config = replace(config, data=_once(config.data, "augment", value, "data.augment"))
        else:
            value = tuple(value) if name == "track" and value is not None else value
            config = _once(config, {"schedule": "patches"}.get(name, name), value, name)
    seed = config.patches.seed if isinstance(config.patches, PatchSchedule) else None
    if seed is not None and config.seed not in (Config.seed, seed):
        raise InputError(
            f"two seeds: the config has {config.seed}, the patch schedule {seed}: leave one of them out", option="seed"
        )
    batch = config.batch if config.batch == "auto" else int(config.batch)
    return replace(config, seed=int(config.seed if seed is None else seed), batch=batch)  # NumPy's are no JSON


def reconciled(config: Config, denoiser: Denoiser, images: Images) -> Config:
    """Return the config with the options that are fixed by the denoiser and the images set to theirs.

    Raises:
        InputError: the config asks for something else than the objects have; it names the option.
    """
    settings = getattr(denoiser.network, "settings", None)
    own = Network(kind="custom") if settings is None else Network(**settings)
    read = replace(images.options, augment=config.data.augment, held_out=images.options.held_out or 0.0)
    noise = replace(
        config.noise,
        process=denoiser.process.name,
        sigma_data=denoiser.sigma_data,
        sigma_min=denoiser.sigma_min,
        sigma_max=denoiser.sigma_max,
        mean_data=denoiser.mean_data,
        levels=denoiser.levels,
    )
    found = replace(
        config,
        network=own,
        data=read,
        noise=noise,
        patches=replace(config.patches, coords=denoiser.coords),
        few_steps=denoiser.few_steps,
    )
    before, usual, now = (flat_options(each) for each in (config, Config(), found))
    for name, value in before.items():
        if value not in (usual[name], now[name]):
            whose = {"network": "network", "data": "images"}.get(name.partition(".")[0], "denoiser")
            raise option_error(
                name, f"is {value} in the config, but {now[name]} in the {whose} given here: leave it out of the config"
            )
    found = replace(found, optimizer=settled(found.optimizer, own.kind), noise=settled_noise(found.noise))
    if found.batch == "auto":
        engine = replace(found.engine, accumulation="auto") if found.engine.accumulation == 1 else found.engine
        parameters = sum(weight.numel() for weight in denoiser.module.parameters())
        return replace(found, batch=batch_for(parameters, math.prod(images.resolution)), engine=engine)
    return found


def _once(group: Any, name: str, value: Any, keyword: str) -> Any:
    """Return a group of options with one option set; raise InputError if it was set to another value already."""
    if getattr(group, name) not in (getattr(type(group)(), name), value):
        told = f"{keyword} is given twice, in the config and as a keyword: leave one of them out"
        raise InputError(told, option=keyword if "." in keyword else name)
    return replace(group, **{name: value})
