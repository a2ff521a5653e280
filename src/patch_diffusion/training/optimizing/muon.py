"""The Muon optimizer: orthogonalized momentum (Jordan et al., 2024, kellerjordan.github.io/posts/muon).

The update of a weight matrix is its momentum with all singular values brought near 1, so that directions with small
gradients are learned as fast as those with large ones. It is written here because torch's Muon takes two axes only,
while almost all weights of a U-Net are convolutions, and processes matrices one by one.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from patch_diffusion.denoise import threads
from patch_diffusion.training.hardware.sharding import is_sharded, local, part, sharded, whole

# The quintic of Jordan et al.: steep at 0, so that five rounds lift singular values from 0.001 to about 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5

# A smaller matrix has too few directions to level: the last convolution, for instance, has one per image channel.
SMALLEST_SIDE = 8

# Matrices of fewer rows get rows of zeros, so that more are of one shape: small ones cost launches, not arithmetic.
FEWEST_ROWS = 32

# Stacks begin at multiples of these numbers, as the fast kernels for products want.
ALIGNMENT = 64

# The ends of names of linear layers, one column of which is multiplied by a one where an image is told of it.
_TOLD = ("embed_label", "embed_attributes", "embed_attributes.0")

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

    _arranged: tuple[list[torch.Size], Stacks] | None = None

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
        weights = [local(parameter) for parameter in parameters]
        velocities = [local(self._velocity(parameter)) for parameter in parameters]
        stacks = self._stacks_of(weights)
        memory = stacks.memory()
        ahead = stacks.views(memory)
        torch._foreach_copy_(ahead, [local(parameter.grad) for parameter in parameters])
        for parameter in parameters:
            parameter.grad = None  # so that AdamW leaves it alone
        moves = self._unscale(memory)
        torch._foreach_mul_(velocities, 1 - (1 - momentum) * moves)
        torch._foreach_add_(velocities, ahead)
        torch._foreach_add_(ahead, velocities, alpha=momentum)
        if any(map(is_sharded, parameters)):
            updates = _level_shards(ahead, parameters)
        else:
            updates = stacks.views(stacks.levelled(memory))
        torch._foreach_mul_(updates, [0.2 * math.sqrt(max(_sides(parameter))) for parameter in parameters])
        if isinstance(moves, Tensor):
            torch._foreach_mul_(updates, moves)
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - rate * group["weight_decay"] * moves)
        torch._foreach_add_(weights, updates, alpha=-rate)

    def _unscale(self, gradients: Tensor) -> Tensor | float:
        """Take the loss scale of fp16 off gradients; return a factor for updates: 1, or 0 if gradients overflow.

        A `GradScaler` passes the scale and the overflow to a fused optimizer as attributes of these names; `Engine`
        passes the overflow in all number formats. Gradients that overflow are set to 0, without a wait for the device.
        """
        scale, overflow = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if scale is not None:
            gradients.div_(scale)
        if overflow is None or (overflow.device.type == "cpu" and not overflow):  # on a GPU, this would wait
            return 1.0
        gradients.masked_fill_(overflow > 0, 0.0)
        return 1 - overflow

    def _stacks_of(self, weights: list[Tensor]) -> Stacks:
        """Return the stacks of matrices, arranged once for all steps in which the same parameters have gradients."""
        shapes = [weight.shape for weight in weights]
        if self._arranged is None or self._arranged[0] != shapes:
            self._arranged = shapes, Stacks(weights)
        return self._arranged[1]

    def _velocity(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        return state["velocity"]


def class_embeddings(network: nn.Module) -> list[Tensor]:
    """Return the weights of a network that hold a vector for each class or category.

    Levelled as a matrix, the vector of a class that a batch lacks would move as far as the others. Jordan et al. leave
    embeddings to AdamW, too. `UNet` multiplies its vectors by one-hot labels, which is the same.
    """
    return [
        module.weight
        for name, module in network.named_modules()
        if isinstance(module, nn.Embedding) or (isinstance(module, nn.Linear) and name.endswith(_TOLD))
    ]


class Stacks:
    """An arrangement of matrices in one block of memory, in which those of equal shape are a stack.

    A few large operations then process what took a dozen small ones for each matrix; a GPU is slowed down by their
    number. A convolution's columns stand as in memory, with the channels last where they are: their order does not
    matter. Matrices of few rows have rows of zeros below, which do not matter either, to be of equal shape more often.

    Args:
        tensors: tensors (rows, ...), of the shapes, memory layouts, type and device of all that is to be stacked.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, tensor in enumerate(tensors):
            rows, columns = _sides(tensor)
            alike[max(rows, FEWEST_ROWS), columns].append(index)
        self._like = tensors[0].new_empty(0)
        self._stacks: list[tuple[int, int, int, int, int]] = []  # offset, number, rows, columns, side of the squares
        self._places: list[tuple[Sequence[int], Sequence[int], int]] = [((), (), 0)] * len(tensors)
        self._size: int = 0
        self._padded: bool = any(len(tensor) < FEWEST_ROWS for tensor in tensors)
        sides = Counter(_smaller_side(*shape) for shape, indices in alike.items() for _ in indices)
        for (rows, columns), indices in alike.items():
            side = _smaller_side(rows, columns)
            if sides[side] == 1:  # the square of such a matrix becomes a corner of a larger one
                side = min((other for other in sides if side < other <= 4 * side), default=side)
            self._stacks.append((self._size, len(indices), rows, columns, side))
            for index in indices:
                self._places[index] = tensors[index].shape, own_strides(tensors[index]), self._size
                self._size += rows * columns
            self._size += -self._size % ALIGNMENT

    def memory(self) -> Tensor:
        """Return memory for the stacks, with zeros below matrices of few rows."""
        return self._like.new_zeros(self._size) if self._padded else self._like.new_empty(self._size)

    def views(self, memory: Tensor) -> list[Tensor]:
        """Return the part of each matrix in the memory of stacks, as a tensor of its own shape and layout."""
        return [memory.as_strided(*place) for place in self._places]

    def levelled(self, memory: Tensor) -> Tensor:
        """Return memory with the matrices of the stacks, all singular values of each brought near 1."""
        result = torch.empty_like(memory)
        by_side: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for offset, num, rows, columns, side in self._stacks:
            pair = [each.narrow(0, offset, num * rows * columns).view(num, rows, columns) for each in (memory, result)]
            by_side[side].append((pair[0], pair[1]))
        num = threads.threads()
        shares = [(side, share) for side, pairs in by_side.items() for share in _shares(pairs, num)]
        threads.map([partial(_level, side, share) for side, share in shares])
        return result


def orthogonalise(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Bring all singular values of each matrix near 1.

    The Newton-Schulz iteration X <- (a + b XX' + c (XX')^2) X runs on the small square XX' alone, and X is multiplied
    once at the end, by the product of all the polynomials: this takes a third of the arithmetic for a 3x3 convolution,
    and squares of one size are batched, whatever their matrices' other sides.
    """
    stacks = Stacks(matrices)
    memory = stacks.memory()
    torch._foreach_copy_(stacks.views(memory), list(matrices))
    return stacks.views(stacks.levelled(memory))


def _level(side: int, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Level each stack (num, rows, columns) of pairs of stacks into the second one.

    A square XX' that is smaller than ``side`` is the upper left corner of one of zeros.
    """
    nums = [len(before) for before, _ in pairs]
    smaller = [_smaller_side(*before.shape[1:]) for before, _ in pairs]
    like = pairs[0][0]
    squares = (like.new_zeros if min(smaller) < side else like.new_empty)(sum(nums), side, side)
    for (before, _), square, size in zip(pairs, squares.split(nums), smaller, strict=True):
        first, second = (before, before.mT) if size == before.shape[1] else (before.mT, before)
        torch.bmm(first, second, out=square[:, :size, :size])
    # The trace of XX' is the squared norm of X.
    norms = squares.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None].sqrt_().add_(1e-7)
    # Rounded to TF32 or bf16, the squares get negative eigenvalues, which each round makes ten times larger.
    with _full_precision(squares.device):
        factors = _polynomials(squares.div_(norms.square())).div_(norms)
    for (before, after), factor, size in zip(pairs, factors.split(nums), smaller, strict=True):
        factor = factor[:, :size, :size]
        if size == before.shape[1]:
            torch.bmm(factor.mT, before, out=after)
        else:
            torch.bmm(before, factor, out=after)


def _level_shards(shards: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return this rank's shards of sharded matrices after levelling, given those before.

    Every rank gathers a matrix and levels it, the same work on each, then keeps its own rows: this costs one gather of
    the matrix per step, and arithmetic that does not shrink with the number of ranks.
    """
    updates: list[Tensor] = []
    for portion in _portions(parameters):
        matrices = orthogonalise([whole(sharded(shards[index], parameters[index])) for index in portion])
        updates += [local(part(matrix, parameters[index])) for index, matrix in zip(portion, matrices, strict=True)]
    return updates


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Leave out TF32 for products on a GPU inside the with block."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cpu" or before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _polynomials(squares: Tensor) -> Tensor:
    """Return the factor by which the Newton-Schulz iteration multiplies each X, from its XX': ``(n, side, side)``.

    A round multiplies X by a + T, with T = b S + c S^2 and S = XX'. With S_0 that of the first round and P the product
    of the rounds so far, S = P'S_0 P; one product takes S_0 P and P to the next round. All matrices are symmetric but
    for rounding; the result is meant to be multiplied as P'X, or XP if S is X'X, which is several times more exact.
    """
    a, b, c = COEFFICIENTS
    terms = torch.baddbmm(squares, squares, squares, beta=b, alpha=c)
    first = torch.baddbmm(squares, squares, terms, beta=a)
    terms.diagonal(dim1=1, dim2=2).add_(a)
    both = torch.cat([first, terms], dim=1)
    for done in range(1, ROUNDS):
        first, product = both.chunk(2, dim=1)
        squares = torch.bmm(product.mT, first)
        terms = torch.baddbmm(squares, squares, squares, beta=b, alpha=c)
        last = done == ROUNDS - 1
        both = torch.baddbmm(product if last else both, product if last else both, terms, beta=a)
    return both


def _shares(pairs: list[tuple[Tensor, Tensor]], num: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield as many shares of the matrices of pairs of stacks, each of about the same number of matrices."""
    total = sum(len(before) for before, _ in pairs)
    for share in range(num):
        first, last = total * share // num, total * (share + 1) // num
        chosen: list[tuple[Tensor, Tensor]] = []
        for before, after in pairs:
            rows = slice(max(first, 0), max(last, 0))
            if len(before[rows]):
                chosen.append((before[rows], after[rows]))
            first, last = first - len(before), last - len(before)
        if chosen:
            yield chosen


def _sides(tensor: Tensor) -> tuple[int, int]:
    rows = tensor.shape[0]
    return rows, tensor.numel() // max(rows, 1)


def _smaller_side(rows: int, columns: int) -> int:
    """Return the smaller of two sides; that of the rows, too, if rows of zeros were added."""
    return rows if rows <= max(columns, FEWEST_ROWS) else columns


def own_strides(tensor: Tensor) -> Sequence[int]:
    """Return the strides of a tensor in memory of its own: channels last if it is, else contiguous."""
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.stride()
    return torch.empty(tensor.shape, device="meta").stride()


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
    return parameter.ndim >= 2 and min(_sides(parameter)) >= SMALLEST_SIDE
