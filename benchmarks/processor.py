"""How fast this processor runs typical kernels, measured, and from that how long any counted kernel takes.

A kernel takes ``overhead + operations / rate`` if it is a product, a convolution or attention. Rates are measured at a
few numbers of channels and sides of the images, and interpolated. Any other takes a time that follows from the bytes
that it moves: measured for a tiny tensor, where all is overhead, and for tensors of the size of each cache and larger.
An operation without a measurement of its own takes the time of its kind.

The probes run in turns, as the kernels of a training step do: none finds its instructions or tensors in a cache because
it has just run. They run as training does: ``shared``, when each thread runs all operations of its own samples, so that
all threads measure at the same time; or ``split``, when the threads share each operation.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from patch_diffusion.doctor.kernels import Kernel

ROUNDS = 12  # in which every probe runs once
CHANNELS = (16, 32, 64, 128, 256)
SIDES = (2, 4, 8, 16, 32, 64)
BYTES = (2**12, 2**16, 2**19, 2**22, 2**25)
VECTOR = 8  # numbers that processors compute with at once: fewer channels take as long
KEPT = 2**27  # bytes of results that are kept, as those of the forward pass are

aten = torch.ops.aten
clock = time.perf_counter


@dataclass(frozen=True)
class Curve:
    """Values by size, between measured points along straight lines of logarithms; beyond them the nearest."""

    points: tuple[tuple[float, float], ...]

    def at(self, size: float) -> float:
        """Return the value at a size."""
        (low, first), (high, last) = self._around(size)
        share = math.log(size / low) / math.log(high / low) if high > low else 0.0
        return first ** (1 - share) * last**share

    def _around(self, size: float) -> tuple[tuple[float, float], tuple[float, float]]:
        after = bisect_left([each for each, _ in self.points], size)
        return self.points[max(after - 1, 0)], self.points[min(after, len(self.points) - 1)]


@dataclass(frozen=True)
class Product:
    """Seconds of a kind of product: ``overhead``, and operations over a rate (operations a second).

    Rates are curves by the number of channels, at each side of the images.
    """

    overhead: float
    rates: Mapping[int, Curve]

    def seconds(self, operations: float, channels: float, side: int = 0) -> float:
        """Return the seconds of a product of so many operations."""
        across = Curve(tuple((each, curve.at(channels)) for each, curve in self.rates.items()))
        return self.overhead + operations / across.at(max(side, 1))


@dataclass(frozen=True)
class Processor:
    """What was measured, see the module."""

    products: Mapping[str, Product]
    moves: Mapping[str, Mapping[int, Curve]]  # bytes a second, by their number, at each side of the images

    def seconds(self, kernel: Kernel) -> float:
        """Return the seconds that a kernel takes."""
        if kernel.operation.endswith(", bias"):
            return 0.0  # the gradient of the weight takes it along
        if kernel.kind == "list":
            return kernel.tensors * self._of_move("list", kernel.moved / kernel.tensors)
        grouped = kernel.kind == "convolution" and kernel.product[0] > 1
        if kernel.operations and not grouped:
            return self._of_product(kernel)
        name = kernel.operation if kernel.operation in self.moves else _LIKE.get(kernel.kind, "mul")
        return self._of_move(name, kernel.moved, kernel.side)

    def _of_move(self, name: str, moved: float, side: int = 0) -> float:
        curves = self.moves[name]
        size = max(moved, next(iter(curves.values())).points[0][0])
        return size / Curve(tuple((each, curve.at(size)) for each, curve in curves.items())).at(max(side, 1))

    def _of_product(self, kernel: Kernel) -> float:
        backward = " backward" * ("backward" in kernel.operation)
        if kernel.kind == "attention":
            return self.products["attention" + backward].seconds(kernel.operations, 1)
        _, rows, columns, inner = kernel.product
        if kernel.kind == "product":
            return self.products["product"].seconds(kernel.operations, min(rows, columns, inner))
        channels = inner // kernel.taps
        padded = math.prod(-(-size // VECTOR) * VECTOR / size for size in (columns, channels))
        of_taps = self.products[f"convolution {1 if kernel.taps == 1 else 3}{backward}"]
        return of_taps.seconds(kernel.operations * padded, math.sqrt(columns * channels), kernel.side)


_LIKE = {"norm": "native_group_norm", "copy": "cat", "reduction": "sum", "random": "native_dropout"}
"""The operation that is measured for all of a kind; for other kinds a multiplication."""


def measure(threads: int, *, split: bool) -> Processor:
    """Measure the processor with so many threads, which share each operation, or each run all of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads if split else 1)
    try:
        found = _in_turns(1 if split else threads)
    finally:
        torch.set_num_threads(before)
    overheads, rates, moves = {}, {}, {}
    for (name, *at), (seconds, size) in sorted(found.items(), key=lambda each: each[0]):
        if not at:
            overheads[name] = seconds
        elif name in MOVES or name in NORMS:
            moves.setdefault(name, {}).setdefault(at[0], []).append((size, size / seconds))
        else:
            rates.setdefault(name, {}).setdefault(at[0], []).append(
                (at[1], size / max(seconds - overheads[name], seconds / 4))
            )
    products = {
        name: Product(
            overheads[name] / (2 if "convolution" in name and "backward" in name else 1),
            {side: Curve(tuple(points)) for side, points in sides.items()},
        )
        for name, sides in rates.items()
    }
    return Processor(
        products,
        {name: {side: Curve(tuple(points)) for side, points in sides.items()} for name, sides in moves.items()},
    )


class Probe(NamedTuple):
    """A function to run, its size (operations or bytes), and roughly how long it takes."""

    run: Callable[[], Any]
    size: float
    seconds: float
    times: int = 1  # that it does something of this size


def _probes() -> dict[tuple[Any, ...], Probe]:
    """Make all probes, by name and where they are on its curves; an overhead by the name alone."""
    probes: dict[tuple[Any, ...], Probe] = {}
    for taps in (1, 3):
        for backward in (False, True):
            name = f"convolution {taps}" + " backward" * backward
            probes[name,] = _convolution(taps, CHANNELS[0], 1, 2, backward=backward)
            for side in SIDES:
                for channels in CHANNELS if side < SIDES[-1] else CHANNELS[:-1]:
                    num = max(1, (2048 if channels < 256 else 512) // side**2)
                    probes[name, side, channels] = _convolution(taps, channels, min(num, 16), side, backward=backward)
    probes["product",] = _product(16, 8)
    for side in (16, 64, 256, 512):
        probes["product", 1, side] = _product(side, max(side, 256))
    for backward in (False, True):
        name = "attention" + " backward" * backward
        probes[name,] = _attention(1, 4, backward=backward)
        probes[name, 1, 1] = _attention(4, 256, backward=backward)
    for name, make in MOVES.items():
        for size in BYTES:
            probes[name, 1, size] = make(size)
    for name, of_side in NORMS.items():
        for side in SIDES:
            for size in BYTES[1:]:
                probes[name, side, size] = of_side(side)(size)
    return probes


def _in_turns(threads: int) -> dict[tuple[Any, ...], tuple[float, float]]:
    """Return the median seconds and the size of each probe, while so many threads run all of them."""
    found: list[dict[tuple[Any, ...], tuple[float, float]]] = []
    ready = threading.Barrier(threads)

    def run() -> None:
        if threads > 1:
            torch.set_num_threads(1)
        with torch.no_grad():
            probes = _probes()
            inner = sorted(probes, key=lambda name: probes[name].seconds)  # as in a network, alike follow one another
            seconds: dict[tuple[Any, ...], list[float]] = {name: [] for name in probes}
            kept: deque[tuple[Any, int]] = deque()
            held = 0
            ready.wait()
            for _ in range(ROUNDS + 1):
                for name in inner:
                    probe = probes[name].run
                    began = clock()
                    result = probe()
                    seconds[name].append(clock() - began)
                    size = sum(each.nbytes for each in tree_leaves(result) if isinstance(each, Tensor))
                    kept.append((result, size))
                    held += size
                    while held > KEPT:
                        held -= kept.popleft()[1]
            found.append({n: (median(seconds[n][1:]) / probes[n].times, probes[n].size) for n in probes})

    if threads == 1:
        run()
    else:
        workers = [threading.Thread(target=run) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return {name: (sum(each[name][0] for each in found) / threads, size) for name, (_, size) in found[0].items()}


def _last(*shape: int) -> Tensor:
    """Random numbers in channels-last memory, as those of training."""
    return torch.randn(*shape).to(memory_format=torch.channels_last)


def _computes(run: Callable[[], Any], operations: float) -> Probe:
    return Probe(run, operations, operations / 1e11)


def _product(side: int, rows: int) -> Probe:
    x, weight, bias = torch.randn(rows, side), torch.randn(side, side), torch.randn(side)
    return _computes(lambda: torch.addmm(bias, x, weight), 2 * rows * side**2)


def _convolution(taps: int, channels: int, num: int, side: int, *, backward: bool) -> Probe:
    x, out = _last(num, channels, side, side), _last(num, channels, side, side)
    weight, bias = _last(channels, channels, taps, taps), torch.randn(channels)
    how = [1, 1], [taps // 2] * 2, [1, 1], False, [0, 0], 1
    operations = 2 * num * side**2 * channels**2 * taps**2
    if backward:
        ask = [True, True, True]
        return _computes(lambda: aten.convolution_backward(out, x, weight, [channels], *how, ask), 2 * operations)
    return _computes(lambda: aten.convolution(x, weight, bias, *how), operations)


def _attention(num: int, tokens: int, *, backward: bool) -> Probe:
    q, k, v, gradient = (torch.randn(num, 2, tokens, 32) for _ in range(4))
    operations = 4 * q.numel() * tokens
    if backward:
        out, log = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        run = aten._scaled_dot_product_flash_attention_for_cpu_backward
        return _computes(lambda: run(gradient, q, k, v, out, log, 0.0, False), 2.5 * operations)
    return _computes(lambda: aten._scaled_dot_product_flash_attention_for_cpu(q, k, v), operations)


def _images(size: int, tensors: int) -> tuple[Tensor, ...]:
    """So many tensors of 32 channels, of ``size`` bytes together."""
    side = 4 if size < 2**16 else 16
    num = max(1, size // (tensors * 4 * 32 * side**2))
    return tuple(_last(num, 32, side, side) for _ in range(tensors))


def _moved(run: Callable[[], Any], *tensors: Tensor) -> Probe:
    size = sum(4 * each.numel() for each in tensors)
    return Probe(run, size, size / 1e10)


def _unary(function: Callable[[Tensor], Any]) -> Callable[[int], Probe]:
    def make(size: int) -> Probe:
        (x,) = _images(size // 2, 1)
        return _moved(lambda: function(x), x, x)

    return make


def _binary(function: Callable[[Tensor, Tensor], Any]) -> Callable[[int], Probe]:
    def make(size: int) -> Probe:
        x, y = _images(2 * size // 3, 2)
        return _moved(lambda: function(x, y), x, y, x)

    return make


def _group_norm(side: int) -> Callable[[int], Probe]:
    def make(size: int) -> Probe:
        x = _last(max(1, size // (2 * 4 * 32 * side**2)), 32, side, side)
        weight, bias, num = torch.ones(32), torch.ones(32), len(x)
        return _moved(lambda: aten.native_group_norm(x, weight, bias, num, 32, side**2, 8, 1e-5), x, x)

    return make


def _group_norm_backward(side: int) -> Callable[[int], Probe]:
    def make(size: int) -> Probe:
        x, gradient = (_last(max(1, size // (3 * 4 * 32 * side**2)), 32, side, side) for _ in range(2))
        weight, bias, num = torch.ones(32), torch.ones(32), len(x)
        _, mean, deviation = aten.native_group_norm(x, weight, bias, num, 32, side**2, 8, 1e-5)
        ask = [True, True, True]
        run = aten.native_group_norm_backward
        return _moved(lambda: run(gradient, x, mean, deviation, weight, num, 32, side**2, 8, ask), x, x, x)

    return make


def _layer_norm(size: int) -> Probe:
    x = torch.randn(max(1, size // (2 * 4 * 64)), 64)
    return _moved(lambda: aten.native_layer_norm(x, [64], None, None, 1e-5), x, x)


def _layer_norm_backward(size: int) -> Probe:
    x, gradient = (torch.randn(max(1, size // (3 * 4 * 64)), 64) for _ in range(2))
    _, mean, deviation = aten.native_layer_norm(x, [64], None, None, 1e-5)
    ask = [True, False, False]
    run = aten.native_layer_norm_backward
    return _moved(lambda: run(gradient, x, [64], mean, deviation, None, None, ask), x, x, x)


def _list(size: int) -> Probe:
    num = min(16, max(2, 2**22 // size))
    firsts, others = ([torch.zeros(max(1, size // 12)) for _ in range(num)] for _ in range(2))
    one = _moved(lambda: torch._foreach_add_(firsts, others), *firsts[:1] * 3)
    return one._replace(seconds=num * one.seconds, times=num)


MOVES: dict[str, Callable[[int], Probe]] = {
    "mul": _binary(torch.mul),
    "silu": _unary(aten.silu),
    "silu_backward": _binary(aten.silu_backward),
    "gelu": _unary(aten.gelu),
    "gelu_backward": _binary(aten.gelu_backward),
    "cat": _binary(lambda x, y: torch.cat([x, y], dim=1)),
    "sum": _unary(lambda x: x.sum((2, 3), keepdim=True)),
    "native_dropout": _unary(lambda x: aten.native_dropout(x, 0.1, True)),
    "native_layer_norm": _layer_norm,
    "native_layer_norm_backward": _layer_norm_backward,
    "list": _list,
}

NORMS: dict[str, Callable[[int], Callable[[int], Probe]]] = {
    "native_group_norm": _group_norm,
    "native_group_norm_backward": _group_norm_backward,
}
