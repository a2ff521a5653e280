"""The model of a run folder: the network that its options describe, with the weights of a checkpoint or an average."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from patch_diffusion.config import Config, Network
from patch_diffusion.data.attributes import width_of
from patch_diffusion.data.latents.codec import LatentCodec, codec_of
from patch_diffusion.data.paired import channels_of
from patch_diffusion.denoise.denoiser import Denoiser, place
from patch_diffusion.denoise.networks.dit import DiT
from patch_diffusion.denoise.networks.edm2 import EDM2UNet
from patch_diffusion.denoise.networks.timestep_unet import TimestepUNet
from patch_diffusion.denoise.networks.unet import STYLES, UNet
from patch_diffusion.denoise.process import PROCESSES
from patch_diffusion.devices import choose_device
from patch_diffusion.errors import InputError, is_out_of_memory, need, option_error, reason_of
from patch_diffusion.files import read_tensors, user_path
from patch_diffusion.runs.averages import average_name, combination, combine
from patch_diffusion.runs.folder import ModelFacts, RunFolder
from patch_diffusion.runs.retention import Seen, read_state, step_of

U_NETS = (*STYLES, "edm2")
"""The kinds of networks that are U-Nets."""

UNET_ONLY, DIT_ONLY = ("multipliers", "blocks", "attention"), ("depth", "heads", "token")
"""The names of options of networks that only one class of them has, and that the other refuses."""


def build_network(
    options: Network,
    image_channels: int,
    num_classes: int,
    *,
    augment_channels: int = 0,
    attribute_channels: int = 0,
    paired_channels: int = 0,
    coords: bool,
    context: int | None = None,
    most: tuple[float, str] | None = None,
) -> nn.Module:
    """Build the `UNet`, `EDM2UNet`, `DiT` or `TimestepUNet` of the options, with random initial weights.

    With ``most``, a number of parameters and in words what sets it, a network of more is refused before it is made.
    """
    if options.kind == "custom":
        raise InputError("this run's network is a module of your own: give it as network=..., from Python")
    given = {name: value for name, value in vars(options).items() if value is not None and name != "kind"}
    own = {"dit": DIT_ONLY, "diffusers": ("unet",)}.get(options.kind, UNET_ONLY)
    shared = ("dropout", "label_dropout") if options.kind == "diffusers" else ("width", "dropout", "label_dropout")
    for name in given.keys() - {*own, *shared}:
        raise option_error(f"network.{name}", f"has no meaning for network.kind {options.kind}: leave it out")
    given |= {"num_classes": num_classes, "coords": coords, "context": context is not None}
    with _at_most(*most or (math.inf, "any")):
        if options.kind == "diffusers":
            for option, channels in (("data.conditions", attribute_channels), ("data.paired", paired_channels)):
                if channels:
                    raise option_error(
                        option, "needs a network that is told of it, and a UNet2DModel is not: leave it out"
                    )
            return _timestep_unet(image_channels, augment_channels, given)
        given |= {"augment_channels": augment_channels, "attribute_channels": attribute_channels}
        given["paired_channels"] = paired_channels
        try:
            if options.kind in STYLES:
                return UNet(image_channels, kind=options.kind, **given)
            return (EDM2UNet if options.kind == "edm2" else DiT)(image_channels, **given)
        except InputError:
            raise
        # The network modules import nothing of the package, so they raise ValueError: "network.width is ...".
        except ValueError as error:
            raise option_error(*str(error).split(" ", 1)) from None
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise InputError("the network that the options describe takes more memory than there is") from None


def _timestep_unet(image_channels: int, augment_channels: int, given: dict[str, Any]) -> TimestepUNet:
    """Build the network of a diffusers pipeline; raise an `InputError` with the reason if its description is none."""
    if "unet" not in given:
        raise option_error("network.kind", "diffusers is the network of a pipeline of diffusers: give --from FOLDER")
    if augment_channels:
        raise option_error(
            "data.augment.p", "needs a network that is told of it, and a UNet2DModel is not: leave it out"
        )
    need("diffusers", "hub", "network.kind diffusers")
    try:
        return TimestepUNet(image_channels, **given)
    except InputError:
        raise
    except Exception as error:  # whatever diffusers makes of it
        raise option_error("network.unet", f"describes no UNet2DModel: {reason_of(error)}") from None


@contextmanager
def _at_most(most: float, why: str) -> Iterator[None]:
    """Raise an `InputError` as soon as the modules that are made in the with block have too many parameters."""
    num, thread = 0, get_ident()

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal num
        if parameter is not None and get_ident() == thread:
            num += parameter.numel()
            if num > most:
                raise InputError(f"the network that the options describe has more parameters than {why}")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def build_denoiser(config: Config, network: nn.Module, sigma_data: float) -> Denoiser:
    """Build the denoiser that the options describe, around a network, for images of this standard deviation."""
    noise = config.noise
    if noise.process == "flow" and config.network.kind == "ncsnpp":
        raise option_error("network.kind", "ncsnpp embeds ln(sigma), not the times of flow: take ddpmpp, adm or dit")
    return Denoiser(
        network,
        sigma_data,
        process=PROCESSES[noise.process],
        coords=config.patches.coords,
        context=config.patches.context,
        sigma_min=noise.sigma_min,
        sigma_max=noise.sigma_max,
        mean_data=noise.mean_data,
        levels=noise.levels,
        few_steps=config.few_steps,
    )


def load(
    run: str | os.PathLike[str],
    *,
    checkpoint: int | Literal["best"] | None = None,
    ema_length: float | None = None,
    device: str = "auto",
    network: nn.Module | None = None,
    vae: str | os.PathLike[str] | None = None,
) -> Denoiser:
    """Load the trained model of a run folder, with averaged weights, to sample from. Nothing is unpickled.

    Args:
        run: the run folder, or one of its checkpoints.
        checkpoint: the step of a checkpoint, instead of the newest weights; "best" for the best checkpoint by the
            metric ``checkpoint_by`` of the run.
        ema_length: length of a power-function average, combined from the averages that ``ema.lengths`` kept in the
            checkpoints so far, see `power_ema`; the ordinary average if None.
        device: see `choose_device`.
        vae: for a model of latents: folder of an autoencoder to decode with, in place of the one that made them.
        network: for a run that trained a module of your own: a module of the same class, which gets the weights.

    Raises:
        InputError: there is no run in the folder, or it is damaged.

    >>> model = load("runs/digits")
    >>> model(torch.zeros(1, 1, 16, 16), torch.ones(1), coordinate_grid(16, 16)).shape
    torch.Size([1, 1, 16, 16])
    """
    path = user_path(run)
    if path.parent.name == "checkpoints":
        folder, weights = RunFolder(path.parent.parent), path / "ema.safetensors"
    else:
        folder = RunFolder(path)
        if checkpoint == "best":
            best = folder.best()
            if best is None:
                raise InputError(f"{path} has no best checkpoint: train with --held-out 0.05 --checkpoint-best")
            checkpoint = step_of(best)
        weights = folder.model_file if checkpoint is None else folder.checkpoint(checkpoint) / "ema.safetensors"
    config, facts = folder.read_config()
    if not weights.exists():
        steps = [str(int(path.name[5:])) for path in folder.checkpoints()]
        raise InputError(
            f"{weights} is missing: "
            + (f"there are checkpoints of the steps {', '.join(steps)}" if steps else "the run has no checkpoint yet")
        )
    tensors = read_tensors(weights) if ema_length is None else _average(folder, config, weights, ema_length)
    model = model_of(config, facts, tensors, str(weights), network=network)
    if vae is not None:
        if not isinstance(model.codec, LatentCodec):
            raise InputError(f"{path} holds a model of pixels, which takes no VAE")
        model.codec = model.codec.decoded_by(os.fspath(vae))
    return place(model, choose_device(device)).eval()


def model_of(
    config: Config,
    facts: ModelFacts,
    weights: dict[str, torch.Tensor],
    where: str,
    *,
    network: nn.Module | None = None,
) -> Denoiser:
    """Return the model that options and facts describe, with these weights, on the CPU.

    Args:
        config, facts: as a run folder holds them.
        weights: the tensors of the network by name.
        where: the file that they are from, for errors.
        network: a module to load the weights into, where the options describe none.
    """
    if network is None:
        num = sum(tensor.numel() for tensor in weights.values())
        network = build_network(
            config.network,
            facts.image_channels,
            facts.num_classes,
            augment_channels=facts.augment_channels,
            attribute_channels=width_of(facts.attributes),
            paired_channels=channels_of(facts.inputs),
            coords=config.patches.coords,
            context=config.patches.context,
            most=(num, f"the {num:,} numbers in {where}"),
        )
    model = build_denoiser(config, network, facts.sigma_data)
    model.resolution, model.class_names, model.codec = facts.resolution, facts.class_names, codec_of(facts.codec)
    model.columns, model.inputs = facts.attributes, facts.inputs
    restore_weights(network, weights, where)
    return model


def _average(folder: RunFolder, config: Config, weights: Path, length: float) -> dict[str, torch.Tensor]:
    """Compute the power-function average of weights of this length, at the checkpoint of ``weights`` or the last."""
    lengths = config.ema.lengths
    if not lengths:
        raise InputError(f"{folder.path} has kept no averages of other lengths: train with --ema.lengths 0.05 0.1")
    checkpoints = folder.checkpoints()
    if weights.parent in checkpoints:
        checkpoints = checkpoints[: checkpoints.index(weights.parent) + 1]
    if not checkpoints:
        raise InputError(f"{folder.path} has no checkpoint, and averages of other lengths are made from checkpoints")
    images = {path: (read_state(path).seen or Seen()).images for path in checkpoints}
    checkpoints = [path for path in checkpoints if images[path]]  # before the first image there is no average
    if not checkpoints:
        raise InputError(f"{folder.path} has no checkpoint after a step yet, and averages are made from checkpoints")
    kept = [path / f"{average_name(each)}.safetensors" for path in checkpoints for each in lengths]
    for path in kept:
        if not path.exists():
            raise InputError(f"{path} is missing: without {path.parent} the other checkpoints make up the average")
    times = [images[path] for path in checkpoints for _ in lengths]
    shares = combination(times, list(lengths) * len(checkpoints), length, times[-1])
    return combine([read_tensors(path) for path in kept], list(shares))


def restore_weights(network: nn.Module, weights: dict[str, torch.Tensor], where: str) -> None:
    """Load weights into a network; raise an InputError with the reason if they do not fit it."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{where} does not fit the network that config.json describes: {reason}") from None
