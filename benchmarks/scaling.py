"""What a step costs on 1 to 1,024 GPUs: a model on paper, with its assumptions as options. Nothing is measured.

    python benchmarks/scaling.py --json docs/scaling.json --plot docs/scaling.svg

See docs/scaling.md for the formulas and what follows from them.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import patch_diffusion as pd
from patch_diffusion.presets import PRESETS
from patch_diffusion.runs.model import build_network
from patch_diffusion.training.budget import training_flops

GPUS = (1, 8, 16, 32, 64, 128, 256, 512, 1024)
COLOURS = ("#b3541e", "#1e6bb3")


@dataclass(frozen=True)
class Machine:
    """The hardware; the defaults are assumptions for H100 SXM nodes with a 400 Gb/s network card per GPU."""

    peak_flops: float = 989e12
    """Operations per second of a GPU, bf16, dense."""
    utilisation: float = 0.3
    """Fraction of the peak that the network reaches, the same at every patch size."""
    launch_seconds: float = 5e-6
    """Host time per operation: a step takes at least this for each. 0: all in one graph."""
    memory_bytes: float = 3.35e12
    """Bytes per second of a GPU's memory, for optimizer and averages."""
    node_gpus: int = 8
    """GPUs of a node."""
    node_bytes: float = 360e9
    """Bytes per second and direction between the GPUs of a node."""
    network_bytes: float = 40e9
    """Bytes per second and direction between nodes, of each GPU's own card."""
    latency_seconds: float = 10e-6
    """Of one message between nodes."""
    overlap: float = 0.8
    """Fraction of the backward pass behind which the exchange of gradients can hide."""
    bucket_bytes: float = 25 * 2**20
    """Gradients are exchanged in buckets of this; the last one hides behind nothing."""
    disk_bytes: float = 2e9
    """Bytes per second to which a checkpoint is written."""


@dataclass(frozen=True)
class Size:
    """A patch size: its share of the steps, factor on the batch, and what one image costs and one step launches."""

    name: str
    probability: float
    growth: float
    flops: float
    operations: int


@dataclass(frozen=True)
class Work:
    """What is trained; ``batch`` in whole images, ``image_bytes`` as they are read, ``parameters`` a number."""

    preset: str
    parameters: int
    image_bytes: int
    batch: int
    sizes: tuple[Size, ...]


def ring_bytes(num_bytes: float, ranks: int) -> float:
    """What every rank sends, and receives, for a ring all-reduce of ``num_bytes``: at most twice that."""
    return 2 * (ranks - 1) / ranks * num_bytes


def exchange_seconds(machine: Machine, parameters: int, gpus: int) -> float:
    """All-reduce of fp32 gradients: reduce-scatter in the node, all-reduce of each share between nodes, all-gather."""
    num_bytes = 4 * parameters
    local = min(gpus, machine.node_gpus)
    nodes = math.ceil(gpus / local)
    messages = 2 * math.ceil(math.log2(nodes)) * math.ceil(num_bytes / machine.bucket_bytes)
    between = ring_bytes(num_bytes / local, nodes) / machine.network_bytes + messages * machine.latency_seconds
    return ring_bytes(num_bytes, local) / machine.node_bytes + between


def compute_seconds(machine: Machine, size: Size, batch: float, gpus: int) -> float:
    """Forward and backward of the largest share that a GPU gets."""
    images = math.ceil(round(batch * size.growth) / gpus)
    return max(
        images * size.flops / (machine.peak_flops * machine.utilisation), size.operations * machine.launch_seconds
    )


def exposed_seconds(machine: Machine, compute: float, exchange: float, parameters: int) -> float:
    """What of the exchange does not hide behind the backward pass, which is two thirds of the computation."""
    last = exchange / max(1, math.ceil(4 * parameters / machine.bucket_bytes))
    return max(exchange - machine.overlap * 2 / 3 * compute, last)


def update_seconds(machine: Machine, parameters: int) -> float:
    """AdamW reads weight, gradient and two moments and writes three; the average is read and written beside weights."""
    return (7 + 3) * 4 * parameters / machine.memory_bytes


def expected_maximum(probabilities: Sequence[float], values: Sequence[float], ranks: int) -> float:
    """Of ``ranks`` independent draws: sum of v_k (F_k^ranks - F_(k-1)^ranks) over ascending values."""
    total, below = 0.0, 0.0
    for value, probability in sorted(zip(values, probabilities, strict=True)):
        up_to = min(below + probability, 1.0)
        total += value * (up_to**ranks - below**ranks)
        below = up_to
    return total


def scale(machine: Machine, work: Work, gpus: int) -> dict[str, Any]:
    """One row of the table: seconds of a step, bytes, and images per second."""
    exchange = exchange_seconds(machine, work.parameters, gpus)
    update = update_seconds(machine, work.parameters)
    probabilities = [size.probability for size in work.sizes]
    computes = [compute_seconds(machine, size, work.batch, gpus) for size in work.sizes]
    exposeds = [exposed_seconds(machine, compute, exchange, work.parameters) for compute in computes]
    steps = [compute + exposed + update for compute, exposed in zip(computes, exposeds, strict=True)]

    def mean(values: Sequence[float]) -> float:
        return sum(probability * value for probability, value in zip(probabilities, values, strict=True))

    step, slowest = mean(steps), expected_maximum(probabilities, steps, gpus)
    images = mean([size.growth * work.batch for size in work.sizes])
    whole = next(value for size, value in zip(work.sizes, steps, strict=True) if size.growth == 1)
    checkpoint = 4 * 4 * work.parameters  # weights, their average, two moments
    return {
        "gpus": gpus,
        "batch": work.batch,
        "compute_seconds": mean(computes),
        "exchange_seconds": exchange,
        "exposed_seconds": mean(exposeds),
        "update_seconds": update,
        "step_seconds": step,
        "step_seconds_of_size": {size.name: value for size, value in zip(work.sizes, steps, strict=True)},
        "communication_share_of_size": {
            size.name: exposed / value for size, exposed, value in zip(work.sizes, exposeds, steps, strict=True)
        },
        "images_per_second": images / step,
        "own_sizes_step_seconds": slowest,
        "own_sizes_loss": slowest / step,
        "whole_images_only_per_second": work.batch / whole,
        "speed_up_by_patches": images / step / (work.batch / whole),
        "speed_up_with_own_sizes": images / slowest / (work.batch / whole),
        "ring_bytes_per_gpu": ring_bytes(4 * work.parameters, gpus),
        "read_bytes_per_second": images / step * work.image_bytes,
        "checkpoint_bytes": checkpoint + 4 * work.parameters,
        "checkpoint_write_seconds": (checkpoint + 4 * work.parameters) / machine.disk_bytes,
    }


class Operations(TorchDispatchMode):
    """Counts what is launched."""

    num = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num += not function.is_view
        return function(*args, **(kwargs or {}))


def work_of(preset: str, resolution: int, classes: int, batch: int) -> Work:
    """The network and schedule of a preset; the network is only counted, on torch's device without memory."""
    options = PRESETS[preset]
    with torch.device("meta"):
        network = build_network(options.network, 3, classes, augment_channels=0, coords=True)
        denoiser = pd.Denoiser(network, 0.5)
    chosen = {name: value for name, value in vars(options.patches).items() if name != "coords"}
    sizes = []
    for size in pd.PatchSchedule(**chosen).sizes_for((resolution, resolution), denoiser.stride):
        with Operations() as operations:
            flops = training_flops(denoiser, 3, size.shape)
        sizes.append(Size(str(size), size.probability, size.growth, flops, 3 * operations.num))
    parameters = sum(parameter.numel() for parameter in denoiser.parameters())
    return Work(preset, parameters, 3 * resolution**2, batch, tuple(sizes))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as Markdown."""
    sizes = list(rows[0]["step_seconds_of_size"])
    head = ["GPUs", "batch", *(f"{size}: ms (comm.)" for size in sizes), "step, ms", "of it exchange", "images/s"]
    head += ["efficiency", "read, MB/s", "patches: x whole", "own sizes: x whole"]
    lines = [f"| {' | '.join(head)} |", f"|{'---:|' * len(head)}"]
    one = rows[0]["images_per_second"] / rows[0]["gpus"]
    for row in rows:
        shares = row["communication_share_of_size"]
        cells = [f"{row['gpus']:,}", f"{row['batch']:,}"]
        cells += [f"{1e3 * row['step_seconds_of_size'][size]:,.0f} ({shares[size]:.0%})" for size in sizes]
        cells += [f"{1e3 * row['step_seconds']:,.0f}", f"{row['exposed_seconds'] / row['step_seconds']:.0%}"]
        cells += [f"{row['images_per_second']:,.0f}", f"{row['images_per_second'] / row['gpus'] / one:.0%}"]
        cells += [f"{row['read_bytes_per_second'] / 1e6:,.0f}"]
        cells += [f"{row['speed_up_by_patches']:.2f}", f"{row['speed_up_with_own_sizes']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(series: dict[str, list[dict[str, Any]]]) -> str:
    """An SVG of two panels over the number of GPUs: images per second of one GPU, and the factor over whole images."""
    panels = (
        (
            "Images per second and GPU, share of that on one",
            (("", "efficiency", "none"),),
            1.0,
        ),
        (
            "Images per second, times whole images only",
            (
                ("one size for all ranks", "speed_up_by_patches", "none"),
                ("each its own", "speed_up_with_own_sizes", "5 4"),
            ),
            3.0,
        ),
    )
    width, height, left, top = 380, 240, 50, 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * (width + 70)} {height + 130}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    for number, (title, lines, most) in enumerate(panels):
        x0 = left + number * (width + 60)

        def across(gpus: float, x0: int = x0) -> float:
            return x0 + width * math.log2(gpus) / 10

        def up(value: float, most: float = most) -> float:
            return top + height * (1 - value / most)

        parts.append(f'<text x="{x0}" y="{top - 16}" font-weight="bold">{title}</text>')
        for tick in range(6):
            value = most * tick / 5
            parts.append(f'<path d="M{x0} {up(value):.1f}h{width}" stroke="#ddd"/>')
            parts.append(f'<text x="{x0 - 6}" y="{up(value) + 4:.1f}" text-anchor="end">{value:.1f}</text>')
        parts += [
            f'<text x="{across(gpus):.1f}" y="{top + height + 18}" text-anchor="middle">{gpus}</text>' for gpus in GPUS
        ]
        for order, (name, rows) in enumerate(series.items()):
            colour = COLOURS[order % len(COLOURS)]
            one = rows[0]["images_per_second"] / rows[0]["gpus"]
            for key_order, (label, key, dashes) in enumerate(lines):
                values = [
                    row["images_per_second"] / row["gpus"] / one if key == "efficiency" else row[key] for row in rows
                ]
                points = " ".join(
                    f"{across(row['gpus']):.1f},{up(value):.1f}" for row, value in zip(rows, values, strict=True)
                )
                style = f'fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"'
                parts.append(f'<polyline points="{points}" {style}/>')
                y = top + height + 42 + 18 * (order * len(lines) + key_order)
                parts.append(f'<path d="M{x0} {y - 4}h24" {style}/>')
                text = f"{name}: {label}" if len(lines) > 1 else name
                parts.append(f'<text x="{x0 + 32}" y="{y}">{text}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for field in fields(Machine):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    parser.add_argument(
        "--batch", type=int, default=4096, help="of adm-64, whole images, the same on any number of GPUs"
    )
    parser.add_argument("--batch-per-gpu", type=int, default=32, help="of ddpmpp-64, whole images, for each GPU")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    machine = Machine(**{field.name: getattr(arguments, field.name) for field in fields(Machine)})

    large, small = work_of("adm-64", 64, 1000, arguments.batch), work_of("ddpmpp-64", 64, 0, arguments.batch_per_gpu)
    series = {
        f"adm-64, a batch of {arguments.batch:,}": [scale(machine, large, gpus) for gpus in GPUS],
        f"ddpmpp-64, a batch of {arguments.batch_per_gpu} per GPU": [
            scale(machine, replace(small, batch=small.batch * gpus), gpus) for gpus in GPUS
        ],
    }
    for name, rows in series.items():
        print(f"\n{name}: {rows[0]['checkpoint_bytes'] / 1e9:.1f} GB a checkpoint\n\n{table(rows)}")
    if arguments.json:
        result = {
            "command": "python benchmarks/scaling.py --json docs/scaling.json --plot docs/scaling.svg",
            "assumptions": asdict(machine),
            "networks": [asdict(large), asdict(small)],
            "rows": series,
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.plot:
        arguments.plot.write_text(plot(series))


if __name__ == "__main__":
    main()
