"""The Muon optimizer: orthogonalized momentum (Jordan et al., 2024, kellerjordan.github.io/posts/muon).

The update of a weight matrix is its momentum with all singular values brought near 1, so that directions with small
gradients are learned as fast as those with large ones. It is written here because torch's Muon takes two axes only,
while almost all weights of a U-Net are convolutions, and processes matrices one by one.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from patch_diffusion.denoise import threads
from patch_diffusion.training.hardware.sharding import is_sharded, part, whole

# The quintic of Jordan et al.: steep at 0, so that five rounds lift singular values from 0.001 to about 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5

# A smaller matrix has too few directions to level: the last convolution, for instance, has one per image channel.
SMALLEST_SIDE = 8

# Most numbers of sharded matrices that a rank gathers at a time: 256 MB.
MOST_WHOLE = 2**26


class Muon(torch.optim.AdamW):
    """Muon for convolutions and matrices, AdamW for all other parameters and embeddings, at one learning rate.

    Muon's updates are scaled to the size of AdamW's, 0.2 sqrt(max(rows, columns)) (Liu et al., arXiv 2502.16982,
    section 2.2), so that both share a rate. A convolution's matrix is (out channels, in channels x height x width).

    Args:
        parameters: the parameters of the network.
        lr, weight_decay: learning rate and weight decay of both.
        betas: decay rates of AdamW's moments; the first is also Muon's (Nesterov) momentum.
        embeddings: matrices among the parameters to leave to AdamW, see `class_embeddings`.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.95, 0.99),
        weight_decay: float = 0.0,
        embeddings: Collection[Tensor] = (),
    ) -> None:
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        apart = {id(parameter) for parameter in embeddings}
        for parameter in parameters:
            groups[_is_matrix(parameter) and id(parameter) not in apart].append(parameter)
        super().__init__(
            [{"params": group, "orthogonalise": matrices} for matrices, group in groups.items()],
            lr=lr,
            betas=betas,
            weight_decay=weight_decay,
            fused=True,
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update all parameters that have gradients; gradients of matrices are set to None."""
        for group in self.param_groups:
            if group["orthogonalise"]:
                self._move_matrices(group)
        super().step()

    def _move_matrices(self, group: dict[str, Any]) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            return
        rate, momentum = group["lr"], group["betas"][0]
        gradients, moves = self._unscaled([parameter.grad for parameter in parameters])
        velocities = [self._velocity(parameter) for parameter in parameters]
        torch._foreach_mul_(velocities, 1 - (1 - momentum) * moves)
        torch._foreach_add_(velocities, gradients)
        ahead = torch._foreach_add(gradients, velocities, alpha=momentum)
        torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"] * moves)
        for chosen in _portions(ahead):
            # Every rank gathers a sharded matrix and levels it, the same work on each, then keeps its own rows: this
            # costs one gather of the matrix per step, and arithmetic that does not shrink with the number of ranks.
            updates = orthogonalise([whole(ahead[index]).flatten(1) for index in chosen])
            if isinstance(moves, Tensor):
                torch._foreach_mul_(updates, moves)
            for index, update in zip(chosen, updates, strict=True):
                parameter, size = parameters[index], 0.2 * math.sqrt(max(update.shape))
                parameter.add_(part(update.reshape(parameter.shape), parameter), alpha=-rate * size)
        for parameter in parameters:
            parameter.grad = None  # so that AdamW leaves it alone

    def _unscaled(self, gradients: list[Tensor]) -> tuple[list[Tensor], Tensor | float]:
        """Return gradients without the loss scale of fp16, and a factor for updates: 1, or 0 if gradients overflow.

        A `GradScaler` passes the scale and the overflow to a fused optimizer as attributes of these names.
        """
        scale, overflow = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if scale is not None:
            gradients = list(torch._foreach_div(gradients, scale))
        if overflow is None or (overflow.device.type == "cpu" and not overflow):  # on a GPU, this synchronizes
            return gradients, 1.0
        return [torch.where(overflow > 0, 0.0, gradient) for gradient in gradients], 1 - overflow

    def _velocity(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        return state["velocity"]


def class_embeddings(network: nn.Module) -> list[Tensor]:
    """Return the weights of a network that hold a vector for each class.

    Levelled as a matrix, the vector of a class that a batch lacks would move as far as the others. Jordan et al. leave
    embeddings to AdamW, too. `UNet` multiplies its vectors by one-hot labels, which is the same.
    """
    return [
        module.weight
        for name, module in network.named_modules()
        if isinstance(module, nn.Embedding) or (isinstance(module, nn.Linear) and name.endswith("embed_label"))
    ]


def orthogonalise(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Bring all singular values of each matrix near 1.

    The Newton-Schulz iteration X <- (a + b XX' + c (XX')^2) X runs on the small square XX' alone, and X is multiplied
    once at the end, by the product of all the polynomials: this takes a third of the arithmetic for a 3x3 convolution,
    and squares of one size are batched, whatever their matrices' other sides.
    """
    wide = [matrix.T if matrix.shape[0] > matrix.shape[1] else matrix for matrix in matrices]
    wide = [matrix / (torch.linalg.vector_norm(matrix) + 1e-7) for matrix in wide]
    alike: dict[int, list[int]] = defaultdict(list)
    for index, matrix in enumerate(wide):
        alike[len(matrix)].append(index)

    def level(indices: list[int]) -> list[Tensor]:
        squares = torch.stack([wide[index] @ wide[index].T for index in indices])
        return [product @ wide[index] for index, product in zip(indices, _polynomials(squares), strict=True)]

    num = threads.threads()
    shares = [indices[first::num] for indices in alike.values() for first in range(min(num, len(indices)))]
    for indices, levelled in zip(shares, threads.map([partial(level, indices) for indices in shares]), strict=True):
        for index, matrix in zip(indices, levelled, strict=True):
            wide[index] = matrix
    return [after.T if after.shape != before.shape else after for after, before in zip(wide, matrices, strict=True)]


def _polynomials(squares: Tensor) -> Tensor:
    """Return the factor by which the Newton-Schulz iteration multiplies each X, from its XX': ``(n, side, side)``."""
    a, b, c = COEFFICIENTS

    def polynomial(squares: Tensor) -> Tensor:
        result = torch.baddbmm(squares, squares, squares, beta=b, alpha=c)
        result.diagonal(dim1=1, dim2=2).add_(a)
        return result

    product = last = polynomial(squares)
    for _ in range(ROUNDS - 1):
        squares = last @ squares @ last
        last = polynomial(squares)
        product = last @ product
    return product


def _portions(matrices: Sequence[Tensor]) -> Iterator[list[int]]:
    """Yield the indices of matrices to process together: all, or if sharded, as many as a rank may hold unsharded."""
    portion, size = [], 0
    for index, matrix in enumerate(matrices):
        if portion and is_sharded(matrix) and size + matrix.numel() > MOST_WHOLE:
            yield portion
            portion, size = [], 0
        portion.append(index)
        size += matrix.numel()
    yield portion


def _is_matrix(parameter: nn.Parameter) -> bool:
    rows = parameter.shape[0] if parameter.ndim >= 2 else 0
    return min(rows, parameter.numel() // max(rows, 1)) >= SMALLEST_SIDE
