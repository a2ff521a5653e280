"""The choice of the optimizer, the weight average and the learning rate schedule, by the options."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from patch_diffusion.config import Ema, Optimizer
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError, option_error
from patch_diffusion.training.optimizing.ema import WeightAverage
from patch_diffusion.training.optimizing.muon import Muon
from patch_diffusion.training.optimizing.schedule_free import ScheduleFreeAverage, make_schedule_free


class Usual(TypedDict):
    """The options that an optimizer has if they are not given."""

    learning_rate: float
    betas: tuple[float, float]
    decay: Literal["cosine", "linear", "constant"]


USUAL: dict[str, Usual] = {
    "adamw": {"learning_rate": 1e-3, "betas": (0.9, 0.99), "decay": "cosine"},
    # A linear decay is better than a cosine, by half a percent of the held-out loss or one: LOG.md.
    "muon": {"learning_rate": 5e-3, "betas": (0.95, 0.99), "decay": "linear"},
    "schedule_free": {"learning_rate": 1e-3, "betas": (0.9, 0.99), "decay": "constant"},
}
"""The options of each kind of optimizer that are used where none are given."""

RATES_OF_UNIT_WEIGHTS = {"adamw": 1e-2, "muon": 5e-2, "schedule_free": 1e-2}
"""The learning rates of edm2, whose weights have a standard deviation of 1: about ten times that of others."""


def make_optimizer(
    parameters: Iterable[nn.Parameter],
    options: Optimizer,
    *,
    network: str = "ddpmpp",
    embeddings: Collection[Tensor] = (),
) -> torch.optim.Optimizer:
    """Make the optimizer of the kind that the options ask for.

    Args:
        parameters: the parameters of the network.
        options: see `patch_diffusion.config.Optimizer`.
        network: the kind of the network, see `patch_diffusion.config.Network`.
        embeddings: matrices among the parameters that Muon leaves to AdamW.
    """
    options = settled(options, network)
    assert options.learning_rate is not None and options.betas is not None  # they are settled
    for name, is_right, rule in (
        ("learning_rate", options.learning_rate > 0, "is above 0"),
        ("warmup", 0 <= options.warmup < 1, "is a fraction of the budget in [0, 1)"),
        ("betas", all(0 <= beta < 1 for beta in options.betas), "are in [0, 1)"),
        ("weight_decay", options.weight_decay >= 0, "is at least 0"),
        ("clip", options.clip is None or options.clip > 0, "is a norm above 0"),
    ):
        if not is_right:
            raise option_error(f"optimizer.{name}", f"{rule}, not {getattr(options, name)}")
    if options.kind == "schedule_free":
        if options.decay not in (None, "constant"):
            raise InputError(
                "optimizer.kind schedule_free needs no decay of the learning rate: leave out optimizer.decay "
                f"{options.decay}, or make it constant",
                option="optimizer.decay",
            )
        return make_schedule_free(parameters, options)
    settings = {"lr": options.learning_rate, "betas": options.betas, "weight_decay": options.weight_decay}
    if options.kind == "muon":
        return Muon(parameters, **settings, embeddings=embeddings)
    return AdamW(parameters, **settings, fused=True)


def make_average(denoiser: Denoiser, ema: Ema, options: Optimizer) -> WeightAverage | ScheduleFreeAverage:
    """Make the average of the weights that samples are made with: the optimizer's own if it keeps one, else an EMA."""
    if options.kind != "schedule_free":
        return WeightAverage(denoiser, ema)
    if ema.lengths:
        # A length is a share of the training, and an average of averaged weights has another than its name says.
        raise option_error(
            "ema.lengths",
            "average raw weights, but those of optimizer.kind schedule_free are averages already: leave it "
            "out, or take adamw or muon",
        )
    usual = {name: value for name, value in vars(Ema()).items() if value != getattr(ema, name)}
    if usual:
        raise option_error(
            "optimizer.kind",
            "schedule_free averages the weights itself: leave "
            + " and ".join(f"ema.{name} at {value:g}" for name, value in usual.items())
            + ", or take adamw or muon",
        )
    return ScheduleFreeAverage(denoiser)


def settled(options: Optimizer, network: str) -> Optimizer:
    """Return the options with those that are not given as is `USUAL` for the kinds of optimizer and network.

    >>> settled(Optimizer(kind="muon"), "ddpmpp").learning_rate
    0.005
    """
    usual = {**USUAL[options.kind]}
    if network == "edm2":
        usual["learning_rate"] = RATES_OF_UNIT_WEIGHTS[options.kind]
    return replace(options, **{name: value for name, value in usual.items() if getattr(options, name) is None})
