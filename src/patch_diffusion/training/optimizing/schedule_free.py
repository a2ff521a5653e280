"""Schedule-free AdamW: an average of all weights takes the place of a learning rate that falls (arXiv 2405.15682).

The sequence z is moved by gradients taken at y = (1 - beta) z + beta x, where x is the running mean of z and beta the
first of ``betas``. The network holds y; samples are made with x. The optimizer is that of the schedulefree package.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from patch_diffusion.config import Optimizer
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError, need
from patch_diffusion.training.hardware.sharding import local
from patch_diffusion.training.optimizing.muon import own_strides


def make_schedule_free(parameters: Iterable[nn.Parameter], options: Optimizer) -> torch.optim.Optimizer:
    """Make the schedulefree package's AdamW, in training mode, so that the network's weights stay at y.

    The package's warm-up counts steps and is not used: the trainer's follows the budget. A step's weight in the mean is
    the square of the highest learning rate so far, so steps of the warm-up weigh less; the first of them moves nothing.
    """
    assert options.learning_rate is not None and options.betas is not None  # `make_optimizer` has settled them
    library = need("schedulefree", "schedule-free", "optimizer.kind schedule_free")
    if options.betas[0] == 0:
        raise InputError(
            "optimizer.kind schedule_free needs a first beta above 0: the mean could not be told from y",
            option="optimizer.betas",
        )
    optimizer = library.AdamWScheduleFree(
        parameters, lr=options.learning_rate, betas=options.betas, weight_decay=options.weight_decay
    )
    optimizer.train()
    # As torch's fused optimizers do, it learns from an attribute that gradients are not finite. It cannot skip a step,
    # but with gradients of 0 it changes next to nothing.
    optimizer._step_supports_amp_scaling = True
    optimizer.register_step_pre_hook(_zero_where_not_finite)
    return optimizer


def _zero_where_not_finite(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Set all gradients to 0 if the optimizer's ``found_inf`` is 1: in one block of memory, by three operations."""
    overflow: Tensor | None = getattr(optimizer, "found_inf", None)
    if overflow is None or (overflow.device.type == "cpu" and not overflow):  # on a GPU, this would wait
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    memory = gradients[0].new_empty(sum(gradient.numel() for gradient in gradients))
    views, offset = [], 0
    for gradient in gradients:
        views.append(memory.as_strided(gradient.shape, own_strides(gradient), offset))
        offset += gradient.numel()
    torch._foreach_copy_(views, gradients)
    memory.masked_fill_(overflow > 0, 0.0)
    torch._foreach_copy_(gradients, views)


class ScheduleFreeAverage:
    """The mean x of a schedule-free optimizer, in place of a `WeightAverage`.

    ``denoiser`` is the averaged model, in evaluation mode. Its weights are those that the optimizer's ``eval()`` would
    set, x = y + (z - y) (1 - 1 / beta), but in tensors of their own: the weights in training are left alone.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.optimizer: torch.optim.Optimizer | None = None
        self.denoiser: Denoiser = copy.deepcopy(denoiser).eval().requires_grad_(False)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the schedule-free optimizer whose mean of the weights this average copies."""
        self.optimizer = optimizer

    @torch.no_grad()
    def update(self, denoiser: Denoiser, num_images: int, images_seen: int) -> None:
        """Compute the averaged weights from the optimizer's current state; the mean is over steps, not images."""
        assert self.optimizer is not None, "there is no mean before there is an optimizer"
        averages = dict(zip(denoiser.parameters(), self.denoiser.parameters(), strict=True))
        torch._foreach_copy_(list(map(local, averages.values())), list(map(local, averages)))
        for group in self.optimizer.param_groups:
            moved = [weight for weight in group["params"] if "z" in self.optimizer.state[weight]]
            means: list[Tensor] = [averages[weight] for weight in moved]
            if means:
                bases = [self.optimizer.state[weight]["z"] for weight in moved]
                torch._foreach_lerp_(means, bases, 1 - 1 / group["betas"][0])
        if buffers := list(denoiser.buffers()):
            torch._foreach_copy_(list(self.denoiser.buffers()), buffers)
