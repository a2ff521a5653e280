"""How the weights move, and how fast."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import AdamW

from patch_diffusion.config import Optimizer
from patch_diffusion.errors import InputError
from patch_diffusion.training.muon import Muon


def make_optimizer(parameters: Iterable[nn.Parameter], options: Optimizer) -> torch.optim.Optimizer:
    """The optimizer of that kind."""
    if not options.learning_rate > 0:
        raise InputError(f"optimizer.learning_rate is above 0, not {options.learning_rate}")
    if not 0 <= options.warmup < 1:
        raise InputError(f"optimizer.warmup is a fraction of the budget in [0, 1), not {options.warmup}")
    if not all(0 <= beta < 1 for beta in options.betas):
        raise InputError(f"optimizer.betas are in [0, 1), not {options.betas}")
    if options.weight_decay < 0:
        raise InputError(f"optimizer.weight_decay is at least 0, not {options.weight_decay}")
    if options.clip is not None and not options.clip > 0:
        raise InputError(f"optimizer.clip is a norm above 0, not {options.clip}")
    settings = {"lr": options.learning_rate, "betas": options.betas, "weight_decay": options.weight_decay}
    return Muon(parameters, **settings) if options.kind == "muon" else AdamW(parameters, **settings, fused=True)


def learning_rate(options: Optimizer, spent: float) -> float:
    """The rate when ``spent`` of the budget is spent: a linear warm-up, then the decay."""
    if spent < options.warmup:
        return options.learning_rate * spent / options.warmup
    after = min((spent - options.warmup) / (1 - options.warmup), 1.0)
    factor = {"cosine": (1 + math.cos(math.pi * after)) / 2, "linear": 1 - after, "constant": 1.0}[options.decay]
    return options.learning_rate * factor
