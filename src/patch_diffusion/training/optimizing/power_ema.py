"""Power-function averages of the weights, of any length, after the run (EDM2, arXiv 2312.02696, section 3, appendix C).

A power-function average at time t weighs the weights of time tau by tau^gamma. Its *length* is the standard deviation
of that profile as a share of t: 0.1 means that mostly the last tenth of the training counts. Two such averages, kept in
every checkpoint, are enough to approximate the average of another length by the best combination of all kept ones. The
coefficients sum to 1, which the paper does not require: weights are large compared with their changes in training, so
a sum of 1.0005 costs more than all other errors: half the way from one length to the next, with ten checkpoints kept.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import option_error
from patch_diffusion.runs.averages import average_name, exponent
from patch_diffusion.training.hardware.sharding import local


class PowerAverage:
    """A power-function average of a denoiser's weights; time is measured in images, so the batch does not matter.

    Args:
        denoiser: the model whose weights are averaged.
        length: the length of the average, in (0, 0.288].

    >>> round(exponent(0.05), 2)
    16.97
    """

    def __init__(self, denoiser: Denoiser, length: float) -> None:
        self.gamma: float = exponent(length)
        self.length = length
        self.tensors: dict[str, Tensor] = {
            name: tensor.detach().clone() for name, tensor in denoiser.module.state_dict().items()
        }

    @torch.no_grad()
    def update(self, denoiser: Denoiser, num_images: int, images_seen: int) -> None:
        """Update the average with ``denoiser``'s weights after a step on ``num_images``, ``images_seen`` in all."""
        share = 1 - (1 - num_images / images_seen) ** (self.gamma + 1)
        # Of a sharded model, buffers are whole, and torch takes no list of both.
        weights = {name: local(tensor) for name, tensor in denoiser.module.state_dict().items()}
        averages = {name: local(tensor) for name, tensor in self.tensors.items()}
        floats = [name for name, tensor in weights.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([averages[name] for name in floats], [weights[name] for name in floats], share)
        if others := [name for name in weights if not weights[name].is_floating_point()]:
            torch._foreach_copy_([averages[name] for name in others], [weights[name] for name in others])

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the average from the tensors of a checkpoint."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])


def power_averages(denoiser: Denoiser, lengths: Sequence[float]) -> dict[str, PowerAverage]:
    """Make a power-function weight average of each length; return a dict by their names in checkpoints."""
    averages = {average_name(length): PowerAverage(denoiser, length) for length in lengths}
    if len(averages) < len(lengths):
        raise option_error("ema.lengths", f"must all differ, not {' '.join(f'{length:g}' for length in lengths)}")
    return averages
