"""Images a second, memory, and the share of the hardware's speed that training reaches, of each preset.

    python benchmarks/throughput.py [--presets small dit-small] [--side 64] [--whole] [--formats fp32 bf16]
        [--steps 40] [--rounds 3] [--out FILE.json]

A process of its own for each preset, number format and way (as it is, or compiled); they take turns. Speed is that of
whole steps: data, optimizer and averages included. Utilisation is the operations of the network's products and
convolutions, forward and backward, over those of a matrix product in the same format, with as many threads, in the same
process. Memory is the most that torch has taken on a GPU; of a process on a CPU the most it has had, above what it has
after its imports, compiling included.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import circumstances

import patch_diffusion as pd
from patch_diffusion.devices import choose_device
from patch_diffusion.training.build import build_trainer
from patch_diffusion.training.trainer import Trainer

ON_CPU = ("small", "ncsnpp-small", "adm-small", "dit-small")
ON_GPU = (*ON_CPU, "ddpmpp-64", "ncsnpp-64", "adm-64")
LARGEST_ON_GPU = 128  # of the batches: the published ones are for eight GPUs and more
SIDES = (512, 1024, 2048, 4096)  # of the matrices


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--presets", nargs="+", default=ON_GPU if gpu else ON_CPU, choices=pd.PRESETS)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--batch", type=int, help="whole images in a step; the preset's where not given")
    parser.add_argument("--whole", action="store_true", help="whole images only, not the preset's patches")
    parser.add_argument("--formats", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--ways", nargs="+", default=["eager", "compiled"], choices=["eager", "compiled"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        preset, number_format, way = arguments.alone
        print(json.dumps(measure(preset, number_format, way, arguments)))
        return
    combinations = [(p, f, w) for p in arguments.presets for f in arguments.formats for w in arguments.ways]
    found: dict[tuple[str, ...], list[dict[str, float]]] = {each: [] for each in combinations}
    for _ in range(arguments.rounds):
        for each in combinations:
            found[each].append(alone(each))
    rows = [
        {
            **dict(zip(("preset", "format", "way"), each, strict=True)),
            **{name: median(run[name] for run in runs) for name in runs[0]},
        }
        for each, runs in found.items()
    ]
    print(f"{'preset':>14} format way       images/s  steps/s  memory  utilisation")
    for row in rows:
        print(
            f"{row['preset']:>14} {row['format']:6} {row['way']:8} {row['images_per_second']:9,.1f} "
            f"{row['steps_per_second']:8.2f} {row['peak_bytes'] / 2**20:5,.0f}MB {row['utilisation']:11.1%}"
        )
    if arguments.out:
        names = ("side", "batch", "whole", "steps", "rounds")
        settings = {name: getattr(arguments, name) for name in names}
        arguments.out.write_text(json.dumps({**circumstances(), "settings": settings, "rows": rows}, indent=1) + "\n")


def alone(combination: tuple[str, ...]) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--alone", *combination]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(" ".join(combination), f"{found['images_per_second']:,.1f} images/s", file=sys.stderr, flush=True)
    return found


def measure(preset: str, number_format: Any, way: str, arguments: argparse.Namespace) -> dict[str, float]:
    before, side, device = peak_of_process(), arguments.side, choose_device()
    config = pd.PRESETS[preset]
    engine = replace(config.engine, precision=number_format, compile=way == "compiled")
    patches = replace(config.patches, whole=1.0) if arguments.whole else config.patches
    batch = arguments.batch or config.batch
    assert isinstance(batch, int)
    batch = min(batch, LARGEST_ON_GPU) if not arguments.batch else batch
    config = replace(config, batch=batch, engine=engine, patches=patches, minutes=None, images=None, samples=0)
    generator = torch.Generator().manual_seed(0)
    images = pd.ImageSet(torch.randint(0, 256, (1024, 3, side, side), dtype=torch.uint8, generator=generator))
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(config, images, Path(folder) / "run", show=False)
        with trainer.engine.threads(trainer.state.denoiser):
            found = seconds_of_steps(trainer, arguments.steps)
        taken = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_of_process() - before
    rate = rate_of_products(device, trainer.engine.type)
    return {
        "batch": batch,
        **found,
        "peak_bytes": taken,
        "product_flops_per_second": rate,
        "utilisation": found["flops_per_second"] / rate,
    }


def seconds_of_steps(trainer: Trainer, steps: int) -> dict[str, float]:
    """Of steps as they come, after some that see all sizes."""
    began = time.perf_counter()
    sizes = {
        size.shape for size in trainer.schedule.sizes_for(trainer.images.resolution, trainer.state.denoiser.stride)
    }
    seen = set()
    while seen != sizes or trainer.state.counters.step < 10:
        seen.add(trainer.train_step(0.5)[0].shape)
    trainer.engine.synchronize()
    first, counted = vars(trainer.state.counters).copy(), time.perf_counter()
    for _ in range(steps):
        trainer.train_step(0.5)
    trainer.engine.synchronize()
    seconds = time.perf_counter() - counted
    return {
        "images_per_second": (trainer.state.counters.images - first["images"]) / seconds,
        "steps_per_second": steps / seconds,
        "flops_per_second": (trainer.state.counters.flops - first["flops"]) / seconds,
        "seconds_of_first_steps": counted - began,
    }


def rate_of_products(device: torch.device, number_format: torch.dtype) -> float:
    """Operations a second of a product of two matrices, of the size at which they are most."""
    rates = []
    for side in SIDES if device.type == "cuda" else SIDES[:2]:
        first, second = (torch.randn(side, side, device=device, dtype=number_format) for _ in range(2))
        seconds = []
        for _ in range(10):
            began = time.perf_counter()
            for _ in range(4):
                torch.mm(first, second)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append((time.perf_counter() - began) / 4)
        rates.append(2 * side**3 / median(seconds))
    return max(rates)


def peak_of_process() -> int:
    """The most memory that this process has had until now."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


if __name__ == "__main__":
    main()
