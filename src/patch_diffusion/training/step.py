"""One training step: forward and backward passes of microbatches, a step of the optimizer, update of the averages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from patch_diffusion.config import Optimizer
from patch_diffusion.patches.schedule import Shape
from patch_diffusion.training.batches import Microbatch, Position
from patch_diffusion.training.hardware.engine import Engine
from patch_diffusion.training.prefetch import Prefetcher
from patch_diffusion.training.state import StepResult, TrainingState


@dataclass(frozen=True)
class Step:
    """A callable that takes one training step at each call.

    Args:
        state: weights, averages, optimizer and counters, which the step changes.
        batches: prepares microbatches ahead.
        engine: computes gradients and updates the weights.
        optimizer: the options of the optimizer.
        flops: floating-point operations of a step on one image, by shape.
    """

    state: TrainingState
    batches: Prefetcher[Position, Microbatch]
    engine: Engine
    optimizer: Optimizer
    flops: Mapping[Shape, int]

    def __call__(self, spent: float = 0.0) -> StepResult:
        """Take one optimizer step on patches of one size, when a fraction ``spent`` of the budget is spent."""
        state, engine = self.state, self.engine
        losses: list[Tensor] = []
        sigma: list[Tensor] = []
        state.objective.set_spent(spent)
        part = self.batches.get(Position(state.counters.step, 0, state.counters.by_resolution, spent))
        while True:
            torch.manual_seed(part.dropout_seed)  # modules with dropout draw from torch's own generator
            weight: float | Tensor = part.weight
            if state.balance is not None:
                weight = weight * state.balance.weights(str(part.plan.size), part.batch.sigma)
            losses.append(engine.backward(state.module, part.batch, weight, last=part.is_last))
            sigma.append(part.batch.sigma)
            if part.is_last:
                break
            part = self.batches.get(part.following)
        size, num = part.plan.size, part.plan.num

        for group in state.optimizer.param_groups:
            group["lr"] = state.watchdog.rate * learning_rate(self.optimizer, spent)
        skipped = engine.step(state.optimizer, self.optimizer.clip)
        state.normalise_weights(skipped)
        state.counters.add(size, num, part.plan.resolution, self.flops[size.shape])
        state.update_averages(num)
        return StepResult(size, num, losses, sigma, skipped)


def learning_rate(options: Optimizer, spent: float) -> float:
    """Return the learning rate when a fraction ``spent`` of the budget is spent: a linear warm-up, then the decay."""
    peak, decay = options.learning_rate, options.decay
    assert peak is not None and decay is not None  # the trainer has settled them
    if spent < options.warmup:
        return peak * spent / options.warmup
    after = min((spent - options.warmup) / (1 - options.warmup), 1.0)
    factor = {"cosine": (1 + math.cos(math.pi * after)) / 2, "linear": 1 - after, "constant": 1.0}[decay]
    return peak * factor
