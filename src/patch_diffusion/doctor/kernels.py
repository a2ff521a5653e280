"""A count of the kernels that a training step or a sample runs, with their bytes and operations.

A kernel is one operation of torch that computes something. Views, detached tensors and empty tensors are none. The
backward pass of a convolution is one kernel for each gradient. An operation on a list of tensors is one kernel for as
many tensors as a launch of CUDA's multi-tensor kernels takes: 110 tensors for one list and 30 for five, in chunks of
65,536 numbers, of which a launch takes 320 (``MultiTensorApply.cuh`` of torch).

Bytes are those of all tensors that a kernel is given and returns, each once, as if no cache kept any. Operations are
those of products, convolutions and attention, as `training_flops` counts them.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

PHASES = ("batch", "forward", "backward", "clip", "optimizer", "averages", "losses")
"""The phases of a training step, in order."""

_TENSORS_OF_LAUNCH = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}  # by the number of lists
_CHUNK, _CHUNKS_OF_LAUNCH = 65_536, 320

_FREE = {
    "_local_scalar_dense",  # reads a number back
    "_reshape_alias",
    "_unsafe_view",
    "detach",
    "empty",
    "empty_like",
    "empty_permuted",
    "empty_strided",
    "is_pinned",
    "is_same_size",
    "lift_fresh",
    "new_empty",
    "new_empty_strided",
    "record_stream",
    "resize_",
    "set_",
}
_PRODUCTS = {"_int_mm", "addbmm", "addmm", "addmv", "baddbmm", "bmm", "dot", "linear", "mm", "mv"}
_NORMS = ("native_group_norm", "native_layer_norm", "_fused_rms_norm", "native_batch_norm")
_COPIES = {"_to_copy", "cat", "clone", "constant_pad_nd", "copy_", "index", "index_select", "repeat", "stack"}
_GATHERS = {"embedding", "gather", "index", "index_select"}  # which read no more than they return
_OVERWRITE = {"bernoulli_", "copy_", "fill_", "normal_", "random_", "uniform_", "zero_"}
_REDUCTIONS = {"all", "amax", "amin", "any", "linalg_vector_norm", "max", "mean", "min", "norm", "prod", "sum", "var"}
_RANDOM = {"bernoulli", "multinomial", "native_dropout", "normal", "rand", "randint", "randn", "randperm"}
_BACKWARD_OF_ATTENTION = 2.5  # five products in place of two, as attention weights are computed again


@dataclass(frozen=True)
class Kernel:
    """A kernel of a phase, or several that one operation launches.

    Attributes:
        phase: one of `PHASES`, or any name of the caller's.
        operation: the name of torch's operation, such as "convolution".
        kind: "convolution", "product", "attention", "norm", "pointwise", "reduction", "copy", "random", "list" (an
            operation on a list of tensors) or "other".
        launches: the number of kernels.
        tensors: the number of tensors of each list; 1 for other operations.
        read, written: bytes.
        operations: floating-point operations.
        product: the sizes (batch, rows, columns, inner) of the matrix product that a product or convolution amounts
            to; for a convolution the batch is its groups, the rows are pixels, the columns output channels and the
            inner numbers those of a pixel's input channels at all taps. Empty for others.
        format: the number format of the first tensor that it is given, such as "float32"; empty if it is given none.
        taps: the size of a convolution's filter, such as 9; 1 for other operations.
        side: the width of the images that a convolution makes or a group norm takes; 0 for other operations.
    """

    phase: str
    operation: str
    kind: str
    launches: int
    tensors: int
    read: int
    written: int
    operations: int
    product: tuple[int, ...] = ()
    format: str = ""
    taps: int = 1
    side: int = 0

    @property
    def moved(self) -> int:
        """The bytes read and written."""
        return self.read + self.written


@dataclass(frozen=True)
class Total:
    """The sums over several kernels: their number, bytes read and written, and floating-point operations."""

    launches: int
    read: int
    written: int
    operations: int


class KernelCounter(TorchDispatchMode):
    """A mode in which torch's operations are counted, those of the backward pass too, in this thread.

    It works for real tensors and for those of ``FakeTensorMode``, inside of which it must be entered. A number that is
    read back from a tensor of the latter is 1. So a step that looks at a flag on a CPU, to leave out work, does what it
    would do on a GPU, where it does not look.

    Attributes:
        found: how often each `Kernel` ran.
        reads: the number of times that the host read a number back.

    >>> with KernelCounter() as counter:
    ...     total = (torch.ones(10) + 1).sum()
    >>> counter.total().launches
    3
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[Kernel] = Counter()
        self.reads: int = 0
        self.phase: str = ""
        self._costs: Mapping[Any, Callable[..., int]] = FlopCounterMode(display=False).flop_registry

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count what runs in the with block as a phase's."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def total(self, **chosen: str) -> Total:
        """Return the sums over kernels, all or those chosen: ``total(phase="forward", kind="norm")``."""
        rows = [
            (times, kernel)
            for kernel, times in self.found.items()
            if all(getattr(kernel, name) == value for name, value in chosen.items())
        ]

        def summed(name: str) -> int:
            return sum(times * getattr(kernel, name) for times, kernel in rows)

        return Total(summed("launches"), summed("read"), summed("written"), summed("operations"))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace != "aten":
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if func.overloadpacket not in self._costs and not _has_kernel(func):
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        if name == "_local_scalar_dense":
            self.reads += 1
            if isinstance(args[0], torch._subclasses.FakeTensor):
                return 1
        result = func(*args, **kwargs)
        if name not in _FREE and not _is_view(func):
            for kernel in self._kernels(func, name, args, kwargs, result):
                self.found[kernel] += 1
        return result

    def _kernels(self, func: Any, name: str, args: tuple[Any, ...], kwargs: Any, result: Any) -> Iterable[Kernel]:
        if name == "convolution_backward":
            yield from self._backward_of_convolution(args, result)
            return
        read, written, lists = _moved(func, name, args, kwargs, result)
        kind, operations, launches = _kind(func, name), self._operations(func, name, args, kwargs, result), 1
        product = _product(name, args, result)
        if kind == "list":
            launches = _launches(lists)
        tensors = max((len(each) for each in lists), default=1) if kind == "list" else 1
        taps, side = (args[1].shape[2:].numel(), result.shape[-1]) if kind == "convolution" else (1, 0)
        if "group_norm" in name:
            side = args[0].shape[-1]
        yield Kernel(
            self.phase, name, kind, launches, tensors, read, written, operations, product, _format(args), taps, side
        )

    def _operations(self, func: Any, name: str, args: tuple[Any, ...], kwargs: Any, result: Any) -> int:
        if name.startswith("_scaled_dot_product"):
            query, key, value = args[1:4] if "backward" in name else args[:3]
            pairs = query.shape[:-1].numel() * key.shape[-2]
            forward = 2 * pairs * (query.shape[-1] + value.shape[-1])
            return int(_BACKWARD_OF_ATTENTION * forward) if "backward" in name else forward
        cost = self._costs.get(func.overloadpacket)
        return 0 if cost is None else cost(*args, **kwargs, out_val=result)

    def _backward_of_convolution(self, args: tuple[Any, ...], result: Any) -> Iterable[Kernel]:
        gradient, x, weight = args[:3]
        product = _product_of_convolution(x, weight, gradient, transposed=args[7], groups=args[9])
        given = {"input": [gradient, weight], "weight": [gradient, x], "bias": [gradient]}
        for (what, read), made in zip(given.items(), result, strict=True):
            if made is not None:
                products = what != "bias"
                yield Kernel(
                    self.phase,
                    f"convolution_backward, {what}",
                    "convolution" if products else "reduction",
                    1,
                    1,
                    sum(map(_bytes, read)),
                    _bytes(made),
                    2 * math.prod(product) if products else 0,
                    product if products else (),
                    _format(gradient),
                    weight.shape[2:].numel(),
                    gradient.shape[-1],
                )


def _bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor's distinct numbers: an expanded tensor has fewer than its shape says."""
    return (
        math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
        * tensor.element_size()
        * (tensor.numel() > 0)
    )


def _format(given: Any) -> str:
    """Return the number format of the first tensor among what is given."""
    return next((str(each.dtype).removeprefix("torch.") for each in tree_leaves(given) if isinstance(each, Tensor)), "")


def _has_kernel(func: Any) -> bool:
    """True if an operation has a kernel of its own, so that it is not run as several others."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CPU")


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return any(each.alias_info is not None and not each.alias_info.is_write for each in returns)


def _kind(func: Any, name: str) -> str:
    """Return the kind of an operation, see `Kernel`."""
    plain = name.removesuffix("_backward").removesuffix("_backward_data")
    if name.startswith(("_foreach_", "_fused_adam", "_fused_sgd", "_amp_foreach")):
        return "list"
    if plain == "convolution":
        return "convolution"
    if name.rstrip("_") in _PRODUCTS:
        return "product"
    if name.startswith("_scaled_dot_product"):
        return "attention"
    if plain in _NORMS:
        return "norm"
    if name in _COPIES:
        return "copy"
    if plain in _RANDOM or name in _OVERWRITE - {"copy_", "fill_", "zero_"}:
        return "random"
    if name in _REDUCTIONS or "softmax" in name:
        return "reduction"
    return "pointwise" if torch.Tag.pointwise in func.tags or _fills(name) else "other"


def _fills(name: str) -> bool:
    """True if an operation fills a tensor with one number."""
    return name.removesuffix("_like").removeprefix("new_").rstrip("_") in ("fill", "full", "ones", "zero", "zeros")


def _moved(
    func: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
) -> tuple[int, int, list[list[Tensor]]]:
    """Return the bytes that an operation reads and writes, and the lists of tensors among what it is given."""
    read = written = 0
    lists: list[list[Tensor]] = []
    given = dict(zip((each.name for each in func._schema.arguments), args, strict=False)) | dict(kwargs)
    for argument in func._schema.arguments:
        value = given.get(argument.name)
        tensors = [each for each in tree_leaves(value) if isinstance(each, Tensor)]
        if isinstance(value, list | tuple) and len(tensors):
            lists.append(tensors)
        size = sum(map(_bytes, tensors))
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if writes:
            written += size
        if not (writes and (name in _OVERWRITE or argument.name == "out")):
            read += size
    made = 0
    if not any(each.alias_info is not None for each in func._schema.returns):
        made = sum(_bytes(each) for each in tree_leaves(result) if isinstance(each, Tensor))
    if _fills(name):
        read = 0
    if name in _GATHERS:
        read = made + sum(map(_bytes, lists[0])) if lists else min(read, 2 * made)
    return read, written + made, lists


def _launches(lists: list[list[Tensor]]) -> int:
    """Return the number of kernels of an operation on lists of tensors, see the module."""
    lists = [each for each in lists if len(each) == len(lists[0])]
    first = lists[0]
    chunks = sum(-(-tensor.numel() // _CHUNK) for tensor in first)
    return max(-(-len(first) // _TENSORS_OF_LAUNCH[min(len(lists), 5)]), -(-chunks // _CHUNKS_OF_LAUNCH), 1)


def _product(name: str, args: tuple[Any, ...], result: Any) -> tuple[int, ...]:
    """Return the sizes of the matrix product that an operation amounts to, see `Kernel`; empty for any other."""
    plain = name.rstrip("_")
    if plain == "convolution":
        return _product_of_convolution(args[0], args[1], result, transposed=args[6], groups=args[8])
    if plain in ("mm", "bmm", "addmm", "baddbmm"):
        first = args[1 if plain in ("addmm", "baddbmm") else 0]
        return (result.shape[0] if result.ndim == 3 else 1, *result.shape[-2:], first.shape[-1])
    return ()


def _product_of_convolution(
    x: Tensor, weight: Tensor, out: Tensor, *, transposed: bool, groups: int
) -> tuple[int, ...]:
    images = x if transposed else out  # each of their pixels meets each weight of its group once
    pixels = images.shape[0] * images.shape[2:].numel()
    return (groups, pixels, weight.shape[0] // groups, weight[0].numel())
