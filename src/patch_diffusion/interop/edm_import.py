"""Import of published EDM and Patch-Diffusion networks: each file becomes a run folder of this package.

Kind, width, levels, blocks, attention, channels and classes are read off the tensors (EDM, arXiv 2206.00364, table 7).
Only preconditioning, dropout and sigma_data, which leave no trace in the tensors, are taken from the settings.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from patch_diffusion.config import Config, Data, Network, Noise, Patches
from patch_diffusion.config_dict import to_dict
from patch_diffusion.denoise.networks.unet import STYLES
from patch_diffusion.denoise.process import VP
from patch_diffusion.errors import InputError
from patch_diffusion.files import check_room, user_path, write_tensors
from patch_diffusion.interop.edm_file import Published, read_published
from patch_diffusion.interop.safe_pickle import printable
from patch_diffusion.limits import check_numbers
from patch_diffusion.runs.folder import RULES, ModelFacts, RunFolder
from patch_diffusion.runs.model import build_network

# A file that holds only tensors is taken for a network with EDM's own preconditioning.
_PROCESSES: dict[str, Literal["edm", "ve", "vp"]] = {
    "": "edm",
    "EDMPrecond": "edm",
    "Patch_EDMPrecond": "edm",
    "VEPrecond": "ve",
    "VPPrecond": "vp",
}
_NETWORKS = ("", "SongUNet", "DhariwalUNet")
_SUPPORTED_VALUES = {
    "embedding_type": ("positional", "fourier"),
    "encoder_type": ("standard", "residual"),
    "decoder_type": ("standard",),
}
_VP_CONSTANTS = {"beta_d": VP.beta_d, "beta_min": VP.beta_min, "M": VP.num_times}

_FIRST = re.compile(r"(?:^|\.)enc\.([1-9]\d{0,4})x\1_conv\.weight$")
_PARTS = {"norm2": "attention.norm", "qkv": "attention.qkv", "proj": "attention.proj", "freqs": "frequencies"}


def import_model(file: str | os.PathLike[str], out: str | os.PathLike[str]) -> dict[str, Any]:
    """Convert a published EDM or Patch-Diffusion file to a run folder, without running any code in the file.

    `load`, `generate` and `describe` treat the folder like one of a training by this package.

    Args:
        file: a network as EDM and Patch Diffusion publish theirs (a pickle), or its tensors under their published names
            in a safetensors or a torch file.
        out: the run folder, new or empty.

    Returns:
        A dict of recognised facts: ``file``, ``run``, ``preconditioning`` and ``network`` (the published
        classes; None if the file holds only tensors), ``coords``, ``options`` of the network and of the noise, and
        facts of the ``model``.

    Raises:
        InputError: the file names something that no published network needs, is damaged, or holds a network that is
            not supported; or ``out`` is occupied.

    >>> found = import_model("edm-cifar10-32x32-cond-vp.pkl", "runs/cifar10")
    >>> found["network"], load("runs/cifar10").num_classes
    ('SongUNet', 10)
    """
    path, run = user_path(file), RunFolder(user_path(out))
    if run.is_run():
        raise InputError(f"{run.path} holds a run already: choose a new or an empty folder")
    published = read_published(path)
    try:
        config, facts, weights = recognise(published)
    except InputError as error:
        raise error.reworded(f"{path}: {error}") from None
    check_numbers(config)
    run.check(config, facts)
    check_room(run.path, sum(tensor.nbytes for tensor in weights.values()))
    run.path.mkdir(parents=True, exist_ok=True)
    write_tensors(run.model_file, weights)
    # The config is written last, because a folder with a config counts as a run folder.
    run.write_config(config, facts)
    options = to_dict(config)
    return {
        "file": str(path),
        "run": str(run.path),
        "preconditioning": published.outer_class or None,
        "network": published.inner_class or None,
        "coords": config.patches.coords,
        "options": {"network": options["network"], "noise": options["noise"]},
        "model": asdict(facts),
    }


def recognise(published: Published) -> tuple[Config, ModelFacts, dict[str, Tensor]]:
    """Derive config, facts of the model and weights, as a run folder holds them, from the content of a published file.

    An `InputError` says why a network is not supported.
    """
    settings = published.settings
    if published.outer_class not in _PROCESSES:
        raise InputError(
            f"a network of the class {printable(published.outer_class, 40)} is not supported, only of "
            f"{', '.join(name for name in _PROCESSES if name)}"
        )
    if published.inner_class not in _NETWORKS:
        raise InputError(
            f"the network is a {printable(published.inner_class, 40)}; supported are {' and '.join(_NETWORKS[1:])}"
        )
    for name, supported in _SUPPORTED_VALUES.items():
        if name in settings and settings[name] not in supported:
            raise InputError(
                f"{name} '{printable(settings[name], 40)}' is not supported, only {' and '.join(supported)}"
            )
    process = _PROCESSES[published.outer_class]
    for name, ours in _VP_CONSTANTS.items():
        if process == "vp" and _number(settings, name, ours) != ours:
            raise InputError(f"{name} of the VP process is {settings[name]}; only {ours} is supported")
    sigma_data = _number(settings, "sigma_data", 0.5)
    if sigma_data <= 0:
        raise InputError(f"sigma_data is a standard deviation above 0, not {sigma_data:g}")

    resolution, tensors = _one_network(published.weights)
    architecture = read_architecture(tensors, resolution)
    dropout, label_dropout = _share(settings, "dropout", 0.1), _share(settings, "label_dropout", 0.0)
    network = replace(architecture.network, dropout=dropout, label_dropout=label_dropout)
    weights = _our_weights(tensors, architecture)
    config = Config(
        data=Data(resolution=resolution, classes=architecture.num_classes > 0),
        patches=Patches(coords=True) if architecture.coords else Patches(whole=1.0, coords=False),
        noise=Noise(process=process, sigma_data=sigma_data),
        network=network,
    )
    facts = ModelFacts(
        image_channels=architecture.image_channels,
        resolution=(resolution, resolution),
        num_classes=architecture.num_classes,
        class_names=(),
        num_images=0,
        sigma_data=sigma_data,
        # The frequencies of the noise embedding are in the file but not learned.
        parameters=sum(tensor.numel() for name, tensor in weights.items() if not name.endswith("frequencies")),
        augment_channels=architecture.augment_channels,
        rules=RULES,
    )
    return config, facts, weights


@dataclass(frozen=True)
class Architecture:
    """The architecture of a published network, read off its tensors; ``network`` has all options but the dropout."""

    network: Network
    resolution: int
    image_channels: int
    coords: bool
    num_classes: int
    augment_channels: int


def read_architecture(tensors: Mapping[str, Tensor], resolution: int) -> Architecture:
    """Return the architecture of a published network, read off the names and shapes of its tensors.

    Their names are the published ones, ``enc.16x16_conv.weight`` and so on; images are ``resolution`` squared.
    """
    sides = _sides(resolution, resolution.bit_length())
    levels = 0
    while levels < len(sides) and f"enc.{sides[levels]}_block0.conv0.weight" in tensors:
        levels += 1
    blocks = 0
    while f"enc.{sides[0]}_block{blocks}.conv0.weight" in tensors:
        blocks += 1
    if not blocks:
        raise InputError(f"the network has no tensor enc.{sides[0]}_block0.conv0.weight, as those supported have")
    kind = _kind(tensors)
    width, in_channels = _convolution(tensors, f"enc.{sides[0]}_conv.weight")
    widths = [_convolution(tensors, f"enc.{side}_block0.conv0.weight")[0] for side in sides[:levels]]
    if any(channels % width for channels in widths):
        raise InputError(f"the widths of the levels, {', '.join(map(str, widths))}, are no multiples of {width}")
    head = "out_conv" if kind == "adm" else f"dec.{sides[0]}_aux_conv"
    image_channels, _ = _convolution(tensors, f"{head}.weight")
    if in_channels - image_channels not in (0, 2):
        raise InputError(
            f"the network takes {in_channels} channels and gives {image_channels}: supported are networks that take as "
            "many as they give, or two more for the coordinates"
        )
    _check_filters(tensors, kind)
    multipliers = tuple(channels // width for channels in widths)
    attention = tuple(level for level in range(levels) if f"enc.{sides[level]}_block0.qkv.weight" in tensors)
    return Architecture(
        Network(kind=kind, width=width, multipliers=multipliers, blocks=blocks, attention=attention),
        resolution=resolution,
        image_channels=image_channels,
        coords=in_channels > image_channels,
        num_classes=_inputs(tensors, "map_label.weight"),
        augment_channels=_inputs(tensors, "map_augment.weight"),
    )


def module_names(architecture: Architecture) -> dict[str, str]:
    """Return a dict from the published name of each module to that in our network: ``enc.16x16_conv`` to ``first``."""
    network = architecture.network
    assert network.multipliers is not None and network.blocks is not None
    sides, blocks = _sides(architecture.resolution, len(network.multipliers)), network.blocks
    encoder, decoder = [], []
    for level, side in enumerate(sides):
        encoder += [f"enc.{side}_down"] if level else []
        encoder += [f"enc.{side}_block{index}" for index in range(blocks)]
    for depth, side in enumerate(reversed(sides)):
        decoder += [f"dec.{side}_up"] if depth else []
        decoder += [f"dec.{side}_block{index}" for index in range(blocks + 1)]
    last, last_norm = f"dec.{sides[0]}_aux_conv", f"dec.{sides[0]}_aux_norm"
    if network.kind == "adm":
        last, last_norm = "out_conv", "out_norm"
    return {
        "map_noise": "embed_noise",
        "map_augment": "embed_augment",
        "map_label": "embed_label",
        "map_layer0": "embed.0",
        "map_layer1": "embed.2",
        f"enc.{sides[0]}_conv": "first",
        **{name: f"encoder.{index}" for index, name in enumerate(encoder)},
        **{f"enc.{side}_aux_residual": f"side.{index}" for index, side in enumerate(sides[1:])},
        f"dec.{sides[-1]}_in0": "middle.0",
        f"dec.{sides[-1]}_in1": "middle.1",
        **{name: f"decoder.{index}" for index, name in enumerate(decoder)},
        last_norm: "last_norm",
        last: "last",
    }


def our_name(name: str, modules: Mapping[str, str]) -> str | None:
    """Return the name of a published tensor in our network, by the dict of `module_names`; None if it has none."""
    words = name.split(".")
    length = 2 if words[0] in ("enc", "dec") else 1
    module, inside = ".".join(words[:length]), words[length:]
    if module not in modules or not inside:
        return None
    return ".".join([modules[module], _PARTS.get(inside[0], inside[0]), *inside[1:]])


def _one_network(weights: Mapping[str, Tensor]) -> tuple[int, dict[str, Tensor]]:
    """Return the resolution of the only network in a file, and its tensors, names without a prefix like ``model.``."""
    firsts = {name: match for name in weights if (match := _FIRST.search(name))}
    if len(firsts) != 1:
        raise InputError(
            f"it holds {len(firsts) or 'no'} networks of the kinds supported, each of which would have a tensor "
            "enc.RxR_conv.weight for its resolution R"
        )
    ((first, match),) = firsts.items()
    place = first[: first.rindex("enc.")]
    return int(match[1]), {name.removeprefix(place): weights[name] for name in weights if name.startswith(place)}


def _kind(tensors: Mapping[str, Tensor]) -> Literal["ddpmpp", "ncsnpp", "adm"]:
    if "out_conv.weight" in tensors:
        return "adm"
    fourier, residual = "map_noise.freqs" in tensors, any("_aux_residual." in name for name in tensors)
    if fourier != residual:
        raise InputError(
            f"embedding_type '{'fourier' if fourier else 'positional'}' together with encoder_type "
            f"'{'residual' if residual else 'standard'}' is not supported: only DDPM++ (positional, standard) and "
            "NCSN++ (fourier, residual)"
        )
    return "ncsnpp" if fourier else "ddpmpp"


def _our_weights(tensors: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """Return published tensors by their names in our network, after checking names, shapes and dtypes against it."""
    modules = module_names(architecture)
    # On the meta device, sizes that the file merely claims allocate no memory.
    with torch.device("meta"):
        expected = build_network(
            architecture.network,
            architecture.image_channels,
            architecture.num_classes,
            augment_channels=architecture.augment_channels,
            coords=architecture.coords,
        ).state_dict()
    weights = {}
    for name, tensor in tensors.items():
        if name.endswith(".resample_filter"):
            continue
        ours = our_name(name, modules)
        if ours not in expected:
            raise InputError(f"it has a tensor {printable(name, 80)} that a network of this kind does not have")
        if tensor.shape != expected[ours].shape:
            raise InputError(
                f"its tensor {name} has the shape {tuple(tensor.shape)}, where a network of this kind has "
                f"{tuple(expected[ours].shape)}"
            )
        if not tensor.is_floating_point():
            raise InputError(f"its tensor {name} holds {str(tensor.dtype).removeprefix('torch.')}, not floats")
        # Copied, because tensors of one file may share their memory.
        weights[ours] = tensor.detach().to(torch.float32, copy=True).contiguous()
    if missing := sorted(expected.keys() - weights.keys()):
        raise InputError(f"{len(missing)} tensors are missing, among them the one that is here {missing[0]}")
    return weights


def _check_filters(tensors: Mapping[str, Tensor], kind: str) -> None:
    """Raise InputError if a network resizes by filters other than ours, whose taps are row sums of published ones."""
    taps = torch.tensor(STYLES[kind].filter, dtype=torch.float32)
    expected = torch.outer(taps, taps) / taps.sum() ** 2
    for name, found in tensors.items():
        if name.endswith(".resample_filter") and (
            found.numel() != expected.numel() or not torch.allclose(found.float().reshape_as(expected), expected)
        ):
            raise InputError(
                f"its resample_filter ({name}) is not {list(STYLES[kind].filter)}, the only one supported for {kind}"
            )


def _sides(resolution: int, levels: int) -> list[str]:
    """Return the image sizes of the levels as they occur in published module names: ``["16x16", "8x8", ...]``."""
    return [f"{resolution >> level}x{resolution >> level}" for level in range(levels)]


def _convolution(tensors: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """Return the numbers of output and input channels of the convolution of this name."""
    if name not in tensors or tensors[name].dim() != 4 or not tensors[name].numel():
        raise InputError(f"the network has no convolution {name}, as those supported have")
    return tensors[name].shape[0], tensors[name].shape[1]


def _inputs(tensors: Mapping[str, Tensor], name: str) -> int:
    """Return the number of input channels of the linear layer whose weight has this name; 0 if it does not exist."""
    return tensors[name].shape[-1] if name in tensors and tensors[name].dim() == 2 else 0


def _share(settings: Mapping[str, str | float], name: str, default: float) -> float:
    share = _number(settings, name, default)
    if not 0 <= share < 1:
        raise InputError(f"{name} is a probability in [0, 1), not {share:g}")
    return share


def _number(settings: Mapping[str, str | float], name: str, default: float) -> float:
    value = settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name} is a finite number, not {printable(value, 40)}")
    return float(value)
