"""The options that a model to train on from settles: the shape of the network, and the noise that it knows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from patch_diffusion.config import Config
from patch_diffusion.denoise.carry import channel_means
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import option_error

_FREE = ("label_dropout", "dropout")  # options of the network that its weights do not depend on
_NOISE = ("process", "sigma_data", "mean_data")


def with_source(
    config: Config, given: Collection[str], model: Denoiser, channels: int
) -> tuple[Config, frozenset[str]]:
    """Return the options with those of the model to train on from, and the names of all that must stay as they are.

    Args:
        config: the options; ``start`` names the model.
        given: names of the options that the user gave.
        model: the model to train on from.
        channels: the number of channels of the images.

    Raises:
        InputError: a given option is another than the model has.
    """
    has: dict[str, Any] = {"network.kind": None, **{f"network.{name}": None for name in vars(config.network)}}
    has |= {f"network.{name}": value for name, value in model.module.settings.items()}  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    mean = channel_means(model.mean_data or (0.0,), channels)
    has |= {"noise.process": model.process.name, "noise.sigma_data": model.sigma_data, "noise.mean_data": mean}
    for name, value in has.items():
        group, _, option = name.partition(".")
        asked = getattr(getattr(config, group), option)
        if name in given and option not in _FREE and asked != value:
            own = "none" if value is None else f"{value}".strip("()") if isinstance(value, tuple) else value
            raise option_error(
                name,
                f"is {asked}, but the model of {config.start} has {own}: leave it out, as its weights fit no other",
            )
    free = {name for name in _FREE if name == "label_dropout" or f"network.{name}" in given}
    shape = {
        name.partition(".")[2]: value
        for name, value in has.items()
        if name.startswith("network.") and name.partition(".")[2] not in free
    }
    noise = {name: has[f"noise.{name}"] for name in _NOISE}
    noise |= {name: getattr(model, name) for name in ("sigma_min", "sigma_max") if f"noise.{name}" not in given}
    config = replace(config, network=replace(config.network, **shape), noise=replace(config.noise, **noise))
    settled = {*has, "noise.sigma_min", "noise.sigma_max"} - {"network.label_dropout"}
    return config, frozenset({*given, *settled})
