"""How much of the arithmetic that patches save is saved in time?

    python benchmarks/saving.py [--preset small] [--side 64] [--rounds 15] [--out FILE.json]

A whole step, optimizer and all, on every size in turn. The saving of a schedule is how many more images a second it
shows than whole images alone do; by arithmetic it is that of the floating-point operations, and realised is the ratio
of the two. Times are medians over the rounds.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import circumstances

import patch_diffusion as pd
from patch_diffusion.training.build import build_trainer
from patch_diffusion.training.trainer import Trainer

SHARES = (0.75, 0.5, 0.25, 0.1)
UNCOUNTED = 3  # first rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", default="small", choices=pd.PRESETS)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    side = arguments.side
    images = pd.ImageSet(torch.randint(0, 256, (1024, 3, side, side), dtype=torch.uint8, generator=generator))
    config = replace(pd.PRESETS[arguments.preset], minutes=None, images=None, samples=0)
    config = replace(config, batch=arguments.batch or config.batch)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(config, images, Path(folder) / "run", show=False)
        with trainer.engine.threads(trainer.state.denoiser):
            sizes = time_sizes(trainer, arguments.rounds)
    savings = [saving(whole, sizes) for whole in SHARES]
    for row in sizes:
        print(
            f"{row['size']:>8}: {row['images']} images in {row['seconds']:.4f} s, "
            f"{row['realised']:.2f} of what arithmetic saves per image"
        )
    for row in savings:
        print(
            f"p = {row['whole']:<4}: {row['arithmetic']:.2f}x by arithmetic, {row['time']:.2f}x in time: "
            f"{row['realised']:.2f} realised"
        )
    if arguments.out:
        settings = {"preset": arguments.preset, "side": side, "batch": config.batch, "rounds": arguments.rounds}
        result = {**circumstances(), "settings": settings, "sizes": sizes, "savings": savings}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def time_sizes(trainer: Trainer, rounds: int) -> list[dict[str, Any]]:
    """Of every size, the whole image first: a step's images, median seconds and operations per image."""
    resolution = trainer.images.resolution
    sizes = sorted(trainer.schedule.sizes_for(resolution), key=lambda size: -size.shape[0])
    steps = {size: [s for s in range(9999) if trainer.schedule.size_at(s, resolution) == size] for size in sizes}
    seconds: dict[Any, list[float]] = {size: [] for size in sizes}
    for index in range(UNCOUNTED + rounds):
        for size in sizes:
            trainer.state.counters.step = steps[size][index]
            began = time.perf_counter()
            trainer.train_step(0.5)[1].item()
            seconds[size].append(time.perf_counter() - began)
    rows = [
        {
            "size": str(size),
            "share": size.probability / (1 - sizes[0].probability) if size is not sizes[0] else None,
            "images": size.num_images(trainer.batches.batch),
            "seconds": median(seconds[size][UNCOUNTED:]),
            "flops_per_image": trainer.flops[size.shape],
        }
        for size in sizes
    ]
    whole = rows[0]
    for row in rows:
        arithmetic = whole["flops_per_image"] / row["flops_per_image"]
        in_time = (whole["seconds"] / whole["images"]) / (row["seconds"] / row["images"])
        row["realised"] = in_time / arithmetic
    return rows


def saving(whole: float, sizes: list[dict[str, Any]]) -> dict[str, float]:
    """Of a schedule with that share of whole images, and the shares of the others as they are."""
    shares = [whole if row["share"] is None else (1 - whole) * row["share"] for row in sizes]

    def per_image(cost: list[float]) -> float:
        images = sum(share * row["images"] for share, row in zip(shares, sizes, strict=True))
        return sum(share * each for share, each in zip(shares, cost, strict=True)) / images

    flops = [row["images"] * row["flops_per_image"] for row in sizes]
    seconds = [row["seconds"] for row in sizes]
    arithmetic = flops[0] / sizes[0]["images"] / per_image(flops)
    in_time = seconds[0] / sizes[0]["images"] / per_image(seconds)
    return {"whole": whole, "arithmetic": arithmetic, "time": in_time, "realised": in_time / arithmetic}


if __name__ == "__main__":
    main()
