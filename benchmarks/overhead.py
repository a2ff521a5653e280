"""What does the trainer take beside the forward pass, the backward pass and the optimizer?

    python benchmarks/overhead.py [--preset small] [--side 64] [--rounds 30] [--out FILE.json]

The same network, sizes, batches and optimizer, step by step in turns: once by `Trainer.train_step` with what `fit` does
around it (data, cuts, noise, averages, counts, the log), once by the three calls on inputs that are there already.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measuring import circumstances

import patch_diffusion as pd
from patch_diffusion.training.build import build_trainer
from patch_diffusion.training.optimizing.optimizers import make_optimizer
from patch_diffusion.training.trainer import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", default="small", choices=pd.PRESETS)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    pixels = torch.randint(0, 256, (2048, 3, arguments.side, arguments.side), dtype=torch.uint8)
    config = replace(pd.PRESETS[arguments.preset], minutes=None, steps=10**6)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(config, pd.ImageSet(pixels), Path(folder) / "run", show=False)
        rows = compare(trainer, arguments.rounds)
    for row in rows:
        print(f"{row['size']:>8}: {row['bare_seconds']:.4f} s bare, overhead {row['overhead']:+.2%}")
    shares = {str(size): size.probability for size in trainer.schedule.sizes_for((arguments.side, arguments.side))}
    total = sum(shares[row["size"]] * row["bare_seconds"] for row in rows)
    overhead = sum(shares[row["size"]] * row["bare_seconds"] * row["overhead"] for row in rows) / total
    print(f"over all steps: {overhead:+.2%}")
    if arguments.out:
        settings = {"preset": arguments.preset, "side": arguments.side, "rounds": arguments.rounds}
        result = {**circumstances(), "settings": settings, "overhead": overhead, "sizes": rows}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def compare(trainer: Trainer, rounds: int) -> list[dict[str, Any]]:
    """Medians of the ratios of both, of steps that follow each other; which comes first takes turns."""
    network = copy.deepcopy(trainer.denoiser)
    loss = trainer.engine.prepare(network).train()
    optimizer = make_optimizer(network.parameters(), trainer.options)
    rows = []
    for size in trainer.schedule.sizes_for(trainer.images.resolution):
        num = size.num_images(trainer.batch)
        steps = [s for s in range(100_000) if trainer.schedule.size_at(s, trainer.images.resolution) == size]
        bare_times, ratios = [], []
        for index in range(rounds + 3):
            trainer.seen.step = steps[index]
            inputs = trainer._inputs(0, size, num, range(num))

            def bare(inputs=inputs) -> None:
                optimizer.zero_grad()
                loss(*inputs).mean().backward()
                optimizer.step()

            def whole(index=index) -> None:
                trainer.train_step(0.5)
                trainer.seen.seconds, _ = trainer.engine.agree(1.0, False, False)
                trainer.progress.show(trainer.seen, 0.5)
                if index % trainer.log_every == 0:
                    trainer.losses.means()
                    trainer.losses.clear()

            pair = [bare, whole] if index % 2 else [whole, bare]
            seconds = {}
            for step in pair:
                began = time.perf_counter()
                step()
                seconds[step] = time.perf_counter() - began
            if index >= 3:
                bare_times.append(seconds[bare])
                ratios.append(seconds[whole] / seconds[bare])
        rows.append(
            {
                "size": str(size),
                "images": num,
                "bare_seconds": statistics.median(bare_times),
                "overhead": statistics.median(ratios) - 1,
            }
        )
    return rows


if __name__ == "__main__":
    main()
