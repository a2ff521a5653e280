"""The size of a new run's network and of its steps, chosen by the law of size for the budget, images and machine."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import torch

from patch_diffusion.config import Config, Network, Patches
from patch_diffusion.data.attributes import width_of
from patch_diffusion.data.augment import Augment
from patch_diffusion.data.images import Images
from patch_diffusion.data.paired import channels_of
from patch_diffusion.devices import choose_device, memory_of
from patch_diffusion.errors import counted
from patch_diffusion.patches.schedule import PatchSchedule
from patch_diffusion.patches.shapes import Shape
from patch_diffusion.runs.model import U_NETS, build_denoiser, build_network
from patch_diffusion.training.budget import Budget, training_flops
from patch_diffusion.training.choices.law import Worth, operations_worth, rounded, worth
from patch_diffusion.training.choices.shapes import stride
from patch_diffusion.training.choices.suggest import suggest
from patch_diffusion.training.hardware.memory import COPIES_OF_WEIGHTS, WORKSPACE
from patch_diffusion.training.optimizing.optimizers import settled

SHAPE: dict[str, Any] = {"multipliers": (1, 2, 4), "attention": (2,), "dropout": 0.0}
TOKENS: dict[str, Any] = {"token": 2, "dropout": 0.0}
"""The options of U-Nets and of transformers that are the same in all sizes. Transformers were not measured."""

# Width and blocks of U-Nets, from small to large; the largest have the blocks of the published ones.
_U_NETS = (
    *((width, 1) for width in (4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64)),
    *((width, 2) for width in (64, 72, 80)),
    *((width, 3) for width in (80, 96)),
    *((width, 4) for width in (96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512)),
)
# Width, depth and heads of transformers.
_TRANSFORMERS = tuple((32 * n, max(2, n), max(1, n // 2)) for n in (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 28, 36))
_ROUNDS = 3  # largest number of networks to time
_USED = 0.8  # share of the memory that training may take
_MOST_BATCHES = 4.0  # largest batch, in critical ones
_LARGE = 64  # side of images of which fewer whole ones are trained on
# Compared with 0.5 on faces of 64 x 64 and on photographs: LOG.md, "Smaller steps on larger images".
_WHOLE_WHERE_LARGE = 0.25


@dataclass(frozen=True)
class Speed:
    """The measured speed of training steps of one network.

    Attributes:
        overhead: seconds of a step besides its images.
        rate: floating-point operations a second on the images.
        activations: bytes that one image keeps for the backward pass.
        memory: bytes of the device; None if they are not known.
    """

    overhead: float
    rate: float
    activations: float
    memory: int | None


@dataclass(frozen=True)
class Size:
    """A network and a batch, and what a budget buys with them.

    Attributes:
        network: the options of the network.
        parameters: the number of its weights.
        batch: the number of whole images in a step.
        operations: floating-point operations of the training.
        images: the number of images that the training draws.
        worth: the parameters that the budget is worth, and how that is known.
    """

    network: Network
    parameters: int
    batch: int
    operations: float
    images: float
    worth: Worth


def choose_size(
    images: Images, config: Config, given: Collection[str], measure: Callable[[Config], Speed]
) -> tuple[Config, list[str]]:
    """Choose a network and a batch where none are given, by the law of size; return the config and reasons.

    Args:
        images: the images to train on.
        config: the options with a budget. Options of the network that are None, and a batch "auto", are chosen.
        given: names of the options that the user gave.
        measure: function that times some steps of a config, for budgets of minutes. For others the batch is the
            critical one of the law.

    >>> images = ImageSet(torch.zeros(9, 3, 32, 32, dtype=torch.uint8))
    >>> choose_size(images, Config(steps=1000), (), lambda config: Speed(0.01, 1e11, 1e6, None))[0].network.width
    4
    """
    ladder = networks(config.network)
    if not ladder:
        return config, []
    if len(ladder) == 1 and config.batch != "auto":
        return replace(config, network=ladder[0]), []
    config = replace(config, optimizer=settled(config.optimizer, config.network.kind))
    config, whole = _with_whole(images, config, given)
    timed = Budget.of(config).unit == "minutes"
    place = min(len(ladder) - 1, 3 if choose_device(config.engine.device).type == "cpu" else 11)
    chooser = _Chooser(images, config)
    while timed and ladder[place] not in chooser.speeds and len(chooser.speeds) < _ROUNDS:
        timing = suggest(images, replace(config, network=ladder[place], batch=2), given)[0]
        chooser.speeds[ladder[place]] = measure(timing)
        place = chooser.place(ladder)
    if not timed:
        place = chooser.place(ladder)
    found = chooser.size(ladder[place])
    return chooser.config_of(found), [*_reasons(found, images, config, timed=timed, chosen=len(ladder) > 1), *whole]


def networks(network: Network) -> list[Network]:
    """Return networks from small to large that agree with the options that are not None; none of others' networks."""
    if network.kind in ("custom", "diffusers"):
        return []
    if network.kind in U_NETS:
        names, rungs, same = ("width", "blocks"), _U_NETS, SHAPE
        if network.kind == "adm":  # of which a head of attention has 64 channels
            rungs = tuple(rung for rung in rungs if 4 * rung[0] <= 64 or rung[0] % 16 == 0)
        if network.multipliers is not None:
            same = {**SHAPE, "multipliers": None, "attention": None}
    else:
        names, rungs, same = ("width", "depth", "heads"), _TRANSFORMERS, TOKENS
    network = replace(network, **{name: value for name, value in same.items() if getattr(network, name) is None})
    if network.width is not None:
        usual = (network.width, 1) if network.kind in U_NETS else (network.width, 4, 2)
        rungs = (usual,)
    found = [
        replace(
            network,
            **{name: value for name, value in zip(names, rung, strict=True) if getattr(network, name) is None},
        )
        for rung in rungs
    ]
    return list(dict.fromkeys(found))


def smallest(network: Network) -> Network:
    """Return the smallest network that agrees with the options that are not None."""
    return next(iter(networks(network)), network)


class _Chooser:
    """The sizes of networks for one data set and budget.

    Attributes:
        speeds: those of the networks that were timed. Another network has the speed of the one nearest in size.
    """

    def __init__(self, images: Images, config: Config) -> None:
        self.images, self.config = images, config
        self.shape: Shape = images.resolution
        self.pixels = math.prod(self.shape)
        self.speeds: dict[Network, Speed] = {}
        self._counted: dict[Network, tuple[int, float]] = {}

    def place(self, ladder: list[Network]) -> int:
        """Return the place of the network that the budget is worth, of those that fit the memory."""

        def is_too_large(place: int) -> bool:
            found = self.size(ladder[place])
            return found.parameters > found.worth.parameters or not self._fits(found)

        most = 1  # small networks first, which are quickly made
        while most < len(ladder) and not is_too_large(most):
            most *= 2
        first = bisect_left(range(len(ladder)), True, most // 2, min(most, len(ladder)), key=is_too_large)
        nearest = [place for place in (first - 1, first) if 0 <= place < len(ladder)]
        fitting = [place for place in nearest if self._fits(self.size(ladder[place]))]
        return min(fitting or nearest[:1], key=lambda place: _distance(self.size(ladder[place])))

    def size(self, network: Network) -> Size:
        """Return a network with the batch that suits it, and what the budget buys with them.

        A step of B images takes ``overhead + B * cost`` seconds. B images teach as much as ``B / (1 + B / C)`` small
        steps, where C is the critical batch. So most is learned in a second with ``B = sqrt(C * overhead / cost)``.
        """
        parameters, cost = self._count(network)
        critical = worth(operations_worth(parameters, self.pixels), self.pixels).batch
        batch, speed = critical, self._speed(network)
        if speed is not None:
            batch = min(math.sqrt(critical * speed.overhead * speed.rate / cost), _MOST_BATCHES * critical)
        chosen = rounded(batch) if self.config.batch == "auto" else self.config.batch
        drawn = self._drawn(chosen, cost, speed)
        # The law was measured with small batches: images in too large a one teach less.
        counted = drawn * cost * min(1.0, 2 / (1 + chosen / critical))
        drawn_in_all, found = drawn * self._growth(), worth(counted, self.pixels)
        return Size(network, parameters, chosen, drawn * cost, drawn_in_all, found)

    def config_of(self, size: Size) -> Config:
        """Return the config with a size; its batch is divided if memory requires it."""
        engine = self.config.engine
        if self.config.batch == "auto" and engine.accumulation == 1:
            engine = replace(engine, accumulation="auto")
        return replace(self.config, network=size.network, batch=size.batch, engine=engine)

    def _drawn(self, batch: int, cost: float, speed: Speed | None) -> float:
        """Return how many images of ``cost`` operations the budget buys, not counting that patches are more of them."""
        budget = Budget.of(self.config)
        if budget.steps is not None:
            return float(budget.steps * batch)
        if budget.images is not None:
            return budget.images / self._growth()
        assert budget.time is not None
        seconds = 60 * budget.time
        assert speed is not None, "a budget of minutes needs a speed"
        return seconds * batch / (speed.overhead + batch * cost / speed.rate)

    def _fits(self, size: Size) -> bool:
        """Return True if the weights, and one image at a time, fit the memory, estimated from the network timed."""
        needed = (COPIES_OF_WEIGHTS + len(self.config.ema.lengths)) * 4.0 * size.parameters
        timed = self._timed(size.network)
        if timed is None:
            memory = memory_of(choose_device(self.config.engine.device))
        else:
            speed = self.speeds[timed]
            memory = speed.memory
            needed += WORKSPACE * speed.activations * _breadth(size.network) / _breadth(timed)
        return memory is None or needed <= _USED * memory

    def _timed(self, network: Network) -> Network | None:
        """Return the network nearest in size of those that were timed; None if none was."""
        parameters = self._count(network)[0]
        return min(self.speeds, key=lambda each: abs(math.log(self._count(each)[0] / parameters)), default=None)

    def _speed(self, network: Network) -> Speed | None:
        timed = self._timed(network)
        return None if timed is None else self.speeds[timed]

    def _growth(self) -> float:
        sizes = PatchSchedule.of(self.config.patches).sizes_for(self.shape)
        return sum(size.probability * size.growth for size in sizes)

    def _count(self, network: Network) -> tuple[int, float]:
        """Return the parameters of a network, and the operations of training on one image, on average over the sizes.

        Operations are counted for one network; those of others are in proportion to the parameters.
        """
        if network not in self._counted:
            with torch.device("meta"):
                module = build_network(
                    network,
                    self.images.channels,
                    self.images.num_classes,
                    augment_channels=Augment.of(self.config.data.augment).channels,
                    attribute_channels=width_of(self.images.columns),
                    paired_channels=channels_of(self.images.inputs),
                    coords=self.config.patches.coords,
                    context=self.config.patches.context,
                )
                parameters = sum(weight.numel() for weight in module.parameters())
                if self._counted:
                    known, cost = next(iter(self._counted.values()))
                    self._counted[network] = parameters, cost * parameters / known
                else:
                    denoiser = build_denoiser(self.config, module, self.config.noise.sigma_data or 0.5)
                    multiple = stride(network)
                    shape = tuple(max(1, side // multiple) * multiple for side in self.shape)
                    operations = training_flops(denoiser, self.images.channels, shape) * self.pixels / math.prod(shape)
                    self._counted[network] = parameters, operations * self._share()
        return self._counted[network]

    def _share(self) -> float:
        """Return the mean pixels of a step over those of a step on whole images."""
        sizes = PatchSchedule.of(self.config.patches).sizes_for(self.shape)
        return sum(size.probability * size.growth * math.prod(size.shape) for size in sizes) / self.pixels


def _with_whole(images: Images, config: Config, given: Collection[str]) -> tuple[Config, list[str]]:
    """Choose the share of whole images where it is not given: fewer of large images, which take most of the time."""
    large = math.prod(images.resolution) >= _LARGE**2
    if "patches.whole" in given or config.patches.whole != Patches.whole or not large:
        return config, []
    reason = f"patches.whole {_WHOLE_WHERE_LARGE:g}: whole images of this size take most of the time"
    return replace(config, patches=replace(config.patches, whole=_WHOLE_WHERE_LARGE)), [reason]


def _reasons(size: Size, images: Images, config: Config, *, timed: bool, chosen: bool) -> list[str]:
    """Return a sentence for each choice: its value, the reason, and how it is known."""
    budget = Budget.of(config)
    amount, unit = next((value, name) for name, value in vars(budget).items() if value is not None)
    buys = f"{amount:,g} {unit.replace('_', ' ')} are about {size.operations:.1e} operations"
    if timed:
        buys += " on this machine"
    network, reasons = size.network, []
    if chosen:
        deep = counted(network.blocks or 1, "block") if network.kind in U_NETS else f"{network.depth} layers"
        reasons.append(
            f"network.width {network.width} with {deep}: {buys}, for which a network of about "
            f"{float(f'{size.worth.parameters:.2g}'):,.0f} parameters learns most ({size.worth.source})"
        )
    if config.batch == "auto":
        reasons.append(f"batch {size.batch}: it suits this network{' and machine' * timed}")
    num = sum(len(bucket) // bucket.mirrored for bucket in images.buckets)
    reasons.append(f"epochs {size.images / num:,.1f}: about {size.images:,.0f} images are seen, and there are {num:,}")
    return reasons


def _distance(size: Size) -> float:
    """Return how far a network is from that which the budget is worth: the logarithm of the ratio of parameters."""
    return abs(math.log(size.parameters / size.worth.parameters))


def _breadth(network: Network) -> float:
    """Return a number that the memory of activations is in proportion to, among networks of one kind."""
    return (network.width or 1) * ((network.blocks or network.depth or 1) + 1)
