"""The state of a training: all that its next step depends on, and all that a checkpoint holds of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from patch_diffusion.config import Config
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.objective import Objective
from patch_diffusion.denoise.whole_image import SIGMAS
from patch_diffusion.errors import InputError, is_out_of_memory
from patch_diffusion.patches.schedule import PatchSize, Shape
from patch_diffusion.records import Strict, check_limits, record_of
from patch_diffusion.runs.folder import RULES
from patch_diffusion.runs.model import restore_weights
from patch_diffusion.runs.retention import STATE_FILE
from patch_diffusion.training.hardware.engine import Engine
from patch_diffusion.training.hardware.sharding import part
from patch_diffusion.training.losses import Balance, Losses
from patch_diffusion.training.optimizing.ema import WeightAverage
from patch_diffusion.training.optimizing.lora import add_lora, merge
from patch_diffusion.training.optimizing.muon import class_embeddings
from patch_diffusion.training.optimizing.optimizers import make_average, make_optimizer
from patch_diffusion.training.optimizing.parts import train_only
from patch_diffusion.training.optimizing.power_ema import PowerAverage, power_averages
from patch_diffusion.training.optimizing.schedule_free import ScheduleFreeAverage
from patch_diffusion.training.watchdog import Watchdog

Tensors = dict[str, dict[str, Tensor]]
"""Tensors by group and name, as the files of a checkpoint hold them."""

_COUNTED = ("step", "images", "patches", "seconds")
_OPTIONS = ("weight_decay",)  # settings of an optimizer's groups that a continued run may change


@dataclass
class Counters(Strict):
    """The exact counts of what training has seen and spent.

    ``step`` optimizer steps; ``images`` drawn from the data, each shown whole or as one patch; ``patches``, how many of
    them were not whole; ``pixels`` that went through the network; ``flops`` of the matrix products and convolutions;
    ``seconds`` of the clock; ``by_resolution``, the images of each size of the data ("64x48").
    """

    step: int = 0
    images: int = 0
    patches: int = 0
    pixels: int = 0
    flops: int = 0
    seconds: float = 0.0
    by_resolution: dict[str, int] = field(default_factory=dict)

    def add(self, size: PatchSize, num_images: int, resolution: Shape, flops_per_image: int) -> None:
        """Count one step on ``num_images`` patches of a size, cut from images of this resolution."""
        name = "x".join(map(str, resolution))
        self.step += 1
        self.images += num_images
        self.by_resolution = {**self.by_resolution, name: self.by_resolution.get(name, 0) + num_images}
        self.patches += num_images * (size.shape != resolution and not size.small)
        self.pixels += num_images * math.prod(size.shape)
        self.flops += num_images * flops_per_image


@dataclass(frozen=True)
class StepResult:
    """The outcome of a training step, as tensors on the device that were not waited for.

    ``losses`` (n,) and ``sigma`` (n,) of the samples of each microbatch of this rank; ``num`` samples in all;
    ``skipped`` is 1 if no weights were changed, as the gradients were not finite, else 0.
    """

    size: PatchSize
    num: int
    losses: list[Tensor]
    sigma: list[Tensor]
    skipped: Tensor


@dataclass(frozen=True)
class Copying(Strict):
    """A record of the warning that samples copy training images, so that a run warns once, even if it is continued.

    ``clean``: the newest step after which samples were no copies. ``told``: True if the warning was given.
    """

    clean: int | None = None
    told: bool = False


class TrainingState:
    """The weights, averages, optimizer, counters and running statistics of a training.

    Args:
        objective: wraps the denoiser in training, and is moved to the engine's device, or sharded over its ranks.
        config: the options of the run.
        engine: the hardware.
        rules: those of `RULES` that the training follows.

    Attributes:
        module: the objective as the engine wraps it.
        average: the weight average from which samples are made.
        power_averages: the weight averages of the lengths ``ema.lengths``, by name.
        time: seconds by what they went into, beside the steps, see `Clock`.
        evaluated: the number of images of each kind of evaluation, where there is time for fewer than usual.
    """

    def __init__(self, objective: Objective, config: Config, engine: Engine, rules: Collection[str] = RULES) -> None:
        self.objective = objective
        self.denoiser: Denoiser = objective.denoiser
        self.network: nn.Module = self.denoiser.module
        if config.optimizer.only is not None and config.optimizer.lora is None:
            train_only(self.network, config.optimizer.only)
        # This comes before the weights are sharded, as sharded ones cannot be copied.
        self.average: WeightAverage | ScheduleFreeAverage = make_average(self.denoiser, config.ema, config.optimizer)
        self.averaged: Denoiser = self.denoiser  # its weights go into the averages: with LoRA, those of a plain network
        if config.optimizer.lora is not None:
            self.averaged = copy.deepcopy(self.denoiser).requires_grad_(False)
            add_lora(self.network, config)
        engine.place_average(self.average.denoiser)
        self.module: nn.Module = engine.wrap(objective).train()
        if self.averaged is not self.denoiser:
            engine.place_average(self.averaged)
        self.scaler: torch.amp.GradScaler = engine.scaler
        self.optimizer: torch.optim.Optimizer = make_optimizer(
            [parameter for parameter in self.network.parameters() if parameter.requires_grad],
            config.optimizer,
            network=config.network.kind,
            embeddings=class_embeddings(self.network) if "adam-for-embeddings" in rules else (),
        )
        if isinstance(self.average, ScheduleFreeAverage):
            self.average.follow(self.optimizer)
        self.power_averages: dict[str, PowerAverage] = power_averages(self.averaged, config.ema.lengths)
        # Of weights that are averages of others, the mean square is not to be 1.
        self._normalise_weights: Callable[[Tensor], None] | None = (
            None if config.optimizer.kind == "schedule_free" else getattr(self.network, "normalise_weights", None)
        )
        self.counters: Counters = Counters()
        self.copying: Copying = Copying()
        self.watchdog: Watchdog = Watchdog()
        self.time: dict[str, float] = {}
        self.evaluated: dict[str, int] = {}
        self.losses: Losses = Losses(engine.device, self.denoiser.levels or SIGMAS)
        self.balance: Balance | None = Balance(self.losses) if config.noise.weight == "learned" else None

    def normalise_weights(self, skipped: Tensor) -> None:
        """Let the network normalise its weights after a step of the optimizer, if it has a method for that.

        ``skipped`` is 1 if the step changed nothing, see `Engine.step`.
        """
        if self._normalise_weights is not None:
            self._normalise_weights(skipped)

    def update_averages(self, num_images: int) -> None:
        """Update all weight averages with the weights after a step on ``num_images``."""
        if self.averaged is not self.denoiser:
            merge(self.network, self.averaged.module)
        for average in (self.average, *self.power_averages.values()):
            average.update(self.averaged, num_images, self.counters.images)

    def record(self, result: StepResult, all_reduce_sum: Callable[[Tensor], Tensor]) -> Tensor:
        """Keep the losses of a step for the log and the learned loss weight; return their mean over all ranks."""
        parts = zip(result.losses, result.sigma, strict=True)
        totals, bins = zip(
            *((losses.sum() / result.num, self.losses.binned(losses, sigma)) for losses, sigma in parts), strict=True
        )
        total, binned = all_reduce_sum(reduce(torch.add, totals)), all_reduce_sum(reduce(torch.add, bins))
        if self.balance is not None:
            self.balance.update(str(result.size), binned)
        self.losses.add(str(result.size), total, binned, result.skipped)
        return total

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """Return the state as tensors by group and name, not copied, and the rest as a dict that JSON can store."""
        tensors = {
            "weights": self.network.state_dict(),
            "ema": self.average.denoiser.module.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.network),
            **{name: average.tensors for name, average in self.power_averages.items()},
        }
        if own := self.objective.state():
            tensors["objective"] = own
        numbers = {
            "seen": asdict(self.counters),
            "losses": self.losses.state(),
            "balance": None if self.balance is None else self.balance.state(),
            "watchdog": asdict(self.watchdog),
            "scaler": self.scaler.state_dict(),
            "copying": asdict(self.copying),
            "time": self.time,
            "evaluated": self.evaluated,
        }
        return tensors, numbers

    def restore(self, folder: Path, tensors: Tensors, numbers: dict[str, Any]) -> None:
        """Restore the state from the tensors and numbers of a checkpoint folder.

        Raises:
            InputError: a tensor is missing, or has another shape.
        """
        try:
            restore_weights(self.network, tensors["weights"], str(folder))
            restore_weights(self.average.denoiser.module, tensors["ema"], str(folder))
            for name, average in self.power_averages.items():
                average.restore(tensors[name])
            restore_optimizer(self.optimizer, self.network, tensors["optimizer"])
            self.objective.restore(tensors.get("objective", {}))
            if numbers["scaler"]:  # empty in a run that was not in fp16 so far
                self.scaler.load_state_dict(numbers["scaler"])
            where = str(folder / STATE_FILE)
            self.counters = record_of(Counters, numbers["seen"], where, "seen")
            counts = vars(self.counters)
            check_limits(counts, {**dict.fromkeys(counts, (0, 1e30)), **dict.fromkeys(_COUNTED, (0, 1e15))}, where)
            by_resolution = self.counters.by_resolution
            check_limits(by_resolution, dict.fromkeys(by_resolution, (0, self.counters.images)), where)
            self.losses.restore(numbers["losses"], where)
            if self.balance is not None:
                known = record_of(dict[str, list[list[float]]], numbers.get("balance") or {}, where, "balance")
                self.balance.restore(known)
            self.watchdog = record_of(Watchdog, numbers["watchdog"], where, "watchdog")
            check_limits(vars(self.watchdog), {"rate": (0, 1)}, where)
            self.copying = record_of(Copying, numbers.get("copying", {}), where, "copying")
            self.time = record_of(dict[str, float], numbers.get("time") or {}, where, "time")
            self.evaluated = record_of(dict[str, int], numbers.get("evaluated") or {}, where, "evaluated")
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
            if isinstance(error, InputError) or is_out_of_memory(error):
                raise
            raise InputError(f"{folder} is damaged: {error}") from None


def optimizer_tensors(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's state by parameter name: ``first.weight.exp_avg`` and so on.

    Numbers, such as the count of steps that some optimizers keep, are tensors without axes that hold them exactly.
    Numbers of a parameter have names such as ``.number.first.weight.step``, numbers of a group ``.group.0.k``; no
    parameter's name begins with a dot.
    """
    tensors = {}
    for name, parameter in network.named_parameters():
        for key, value in optimizer.state[parameter].items():
            is_tensor = isinstance(value, Tensor)
            tensors[f"{name}.{key}" if is_tensor else f".number.{name}.{key}"] = value if is_tensor else _exact(value)
    for index, group in enumerate(optimizer.param_groups):
        numbers = {key: value for key, value in group.items() if isinstance(value, int | float)}
        tensors |= {f".group.{index}.{key}": _exact(value) for key, value in numbers.items()}
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Restore the state of an optimizer from the tensors that `optimizer_tensors` returned."""
    parameters = dict(network.named_parameters())
    optimizer.state.clear()
    for path, tensor in tensors.items():
        name, _, key = path.rpartition(".")
        if name.startswith(".group."):
            if key in _OPTIONS:
                continue
            optimizer.param_groups[int(name.removeprefix(".group."))][key] = tensor.item()
            continue
        if name.startswith(".number."):
            optimizer.state[parameters[name.removeprefix(".number.")]][key] = tensor.item()
            continue
        parameter = parameters[name]
        # A fused optimizer walks parameter and moments side by side, so they must lie alike in memory, channels last.
        like = parameter if tensor.shape == parameter.shape else tensor
        alike = torch.empty_like(like, device=parameter.device)
        optimizer.state[parameter][key] = alike.copy_(part(tensor, like))


def _exact(number: float) -> Tensor:
    kind = torch.bool if isinstance(number, bool) else torch.int64 if isinstance(number, int) else torch.float64
    return torch.tensor(number, dtype=kind)
