"""Images a second, memory, and the share of the hardware's speed that training reaches, of each preset.

    python benchmarks/throughput.py [--presets small dit-small] [--side 64] [--whole] [--formats fp32 bf16]
        [--steps 40] [--rounds 3] [--out FILE.json]

A process of its own for each preset, number format and way (as it is, or compiled); they take turns. What is measured
there, and how, is in `patch_diffusion.doctor.speed`. Speed is that of whole steps: data, optimizer and averages
included; every patch size is timed by itself and counts by its share. Utilisation is the operations of the network's
products and convolutions, forward and backward, over those of a matrix product in the same format, with as many
threads, in the same process. Memory is the most that torch has taken on a GPU; of a process on a CPU the most it has
had, above what it has after its imports, compiling included.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import circumstances

import patch_diffusion as pd
from patch_diffusion.devices import choose_device
from patch_diffusion.doctor.speed import ON_CPU, ON_GPU, measure, rate_of_products


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--presets", nargs="+", default=ON_GPU if gpu else ON_CPU, choices=pd.PRESETS)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--batch", type=int, help="whole images in a step; the preset's where not given")
    parser.add_argument(
        "--whole", action="store_true", help="whole images only, without coordinates, not the preset's patches"
    )
    parser.add_argument("--formats", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--ways", nargs="+", default=["eager", "compiled"], choices=["eager", "compiled"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        preset, number_format, way = arguments.alone
        print(json.dumps(measure_alone(preset, number_format, way, arguments)))
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


def measure_alone(preset: str, number_format: Any, way: str, arguments: argparse.Namespace) -> dict[str, float]:
    found = measure(
        preset,
        number_format,
        compiled=way == "compiled",
        whole=arguments.whole,
        side=arguments.side,
        batch=arguments.batch,
        steps=arguments.steps,
    )
    rate = rate_of_products(choose_device(), getattr(torch, found.pop("format")))
    return {**found, "product_flops_per_second": rate, "utilisation": found["flops_per_second"] / rate}


if __name__ == "__main__":
    main()
