"""What does a run take beside the forward pass, the backward pass and the optimizer?

    python benchmarks/overhead.py [--preset small] [--side 64] [--steps 120] [--rounds 7] [--out FILE.json]

Two processes take turns: one runs `Trainer.fit`, with all that belongs to a run (data, cuts, noise, averages, counts,
the log, and a checkpoint written before the steps that are timed), the other the three calls alone, as one would write
them, on inputs that are there already, with torch's own threads. Both do the same steps on the same sizes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import circumstances

import patch_diffusion as pd
from patch_diffusion.training.batches import Plan
from patch_diffusion.training.build import build_trainer
from patch_diffusion.training.optimizing.optimizers import make_optimizer
from patch_diffusion.training.trainer import Trainer

UNCOUNTED = 20  # first steps, in which memory is found and kernels are chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", default="small", choices=pd.PRESETS)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--alone", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.alone:
        print(json.dumps(seconds_per_step(arguments.alone, arguments.preset, arguments.side, arguments.steps)))
        return
    rows = []
    for index in range(arguments.rounds):
        order = list(WAYS) if index % 2 else list(reversed(WAYS))
        row = {way: run_alone(way) for way in order}
        rows.append(row)
        print(f"{row['bare']:.4f} s bare, {row['fit']:.4f} s in a run, {row['fit'] / row['bare'] - 1:+.2%}", flush=True)
    overhead = median(row["fit"] / row["bare"] for row in rows) - 1
    print(f"median {overhead:+.2%}")
    if arguments.out:
        settings = {name: getattr(arguments, name) for name in ("preset", "side", "steps", "rounds", "threads")}
        result = {**circumstances(), "settings": settings, "overhead": overhead, "seconds_per_step": rows}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def run_alone(way: str) -> float:
    command = [sys.executable, __file__, *sys.argv[1:], "--alone", way]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def seconds_per_step(way: str, preset: str, side: int, steps: int) -> float:
    """Of the steps after the first few."""
    generator = torch.Generator().manual_seed(0)
    images = pd.ImageSet(torch.randint(0, 256, (2048, 3, side, side), dtype=torch.uint8, generator=generator))
    config = replace(pd.PRESETS[preset], checkpoints=1, samples=0, minutes=None, log_every=UNCOUNTED)
    with tempfile.TemporaryDirectory() as folder:
        return WAYS[way](build_trainer(config, images, Path(folder) / "run", show=False), UNCOUNTED + steps)


def fit(trainer: Trainer, steps: int) -> float:
    trainer.fit(steps=steps)
    lines: list[dict[str, Any]] = [json.loads(line) for line in trainer.run.log_file.read_text().splitlines()]
    seconds = {line["step"]: line["seconds"] for line in lines if "loss" in line}
    return (seconds[steps] - seconds[UNCOUNTED]) / (steps - UNCOUNTED)


def bare(trainer: Trainer, steps: int) -> float:
    loss, optimizer = trainer.state.module, make_optimizer(trainer.state.network.parameters(), trainer.config.optimizer)
    sizes = [trainer.schedule.size_at(step, trainer.images.resolution) for step in range(steps)]
    inputs = {}
    for size in sizes:
        num = size.num_images(trainer.batches.batch)
        inputs[size] = trainer.batches.make(Plan(0, 0, trainer.images.resolution, 0, size, num), range(num))
    began = 0.0
    for step, size in enumerate(sizes):
        if step == UNCOUNTED:
            began = time.perf_counter()
        optimizer.zero_grad()
        loss(inputs[size]).mean().backward()
        optimizer.step()
    return (time.perf_counter() - began) / (steps - UNCOUNTED)


WAYS: dict[str, Callable[[Trainer, int], float]] = {"bare": bare, "fit": fit}

if __name__ == "__main__":
    main()
