"""How much of a step do processes wait for the slowest of them?

    python benchmarks/waiting.py [--processes 2] [--steps 60] [--out benchmarks/results/waiting-small-64-cpu.json]

Trains the preset ``small`` on random pictures of 64 x 64, each process on one thread, and has them meet at a timed
barrier before the gradients are exchanged and before the clock is. For that the exchange is taken out of the backward
pass, where it hides, and done after it: the step is a little slower than the product's, and waiting stands alone.
Then the same processes do bare forward and backward passes between barriers: so much waiting is the machine's.
"""

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

import patch_diffusion as pd
from patch_diffusion.config import Engine
from patch_diffusion.presets import PRESETS
from patch_diffusion.processes import run_processes
from patch_diffusion.training.batches import Plan
from patch_diffusion.training.build import build_trainer
from patch_diffusion.training.trainer import Trainer

UNCOUNTED = 5  # first steps, in which memory is found and kernels are chosen


def worker(folder: str, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = pd.ImageSet(torch.randint(0, 256, (2048, 3, 64, 64), dtype=torch.uint8, generator=generator))
    options = replace(
        PRESETS["small"], engine=Engine(device="cpu", threads=1), checkpoints=1, samples=0, log_every=10**6
    )
    trainer = build_trainer(options, images, Path(folder) / "run", show=False)
    engine, group = trainer.engine, trainer.engine.group
    backward, step, agree, add = engine.backward, engine.step, group.sync_clock_and_flags, trainer.state.losses.add
    waited, exchanged = [0.0], [0.0]
    rows: list[dict[str, Any]] = []
    began = [time.perf_counter()]

    def timed(spent: list[float], function: Callable[[], Any]) -> None:
        start = time.perf_counter()
        function()
        spent[0] += time.perf_counter() - start

    def exchange() -> None:
        gradients = [parameter.grad for parameter in trainer.state.network.parameters() if parameter.grad is not None]
        joined = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(joined)
        joined /= group.world
        for gradient, part in zip(gradients, joined.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view(gradient.shape))

    def measured_step(optimizer: torch.optim.Optimizer, clip: float | None) -> torch.Tensor:
        timed(waited, group.barrier)
        timed(exchanged, exchange)
        return step(optimizer, clip)

    def measured_add(size: str, loss: torch.Tensor, by_noise: torch.Tensor, skipped: torch.Tensor) -> None:
        rows.append({"size": size})
        add(size, loss, by_noise, skipped)

    def measured_agree(clock: Sequence[float], *flags: bool) -> tuple[list[float], list[bool]]:
        timed(waited, group.barrier)
        result = agree(clock, *flags)
        now = time.perf_counter()
        rows[-1] |= {"seconds": now - began[0], "waited": waited[0], "exchanged": exchanged[0]}
        began[0], waited[0], exchanged[0] = now, 0.0, 0.0
        return result

    engine.backward = lambda module, batch, weight, *, last=True: backward(module, batch, weight, last=False)
    engine.step, group.sync_clock_and_flags, trainer.state.losses.add = measured_step, measured_agree, measured_add
    trainer.fit(steps=steps)

    barriers = []
    for _ in range(200):  # what a barrier costs where nobody is late
        start = time.perf_counter()
        group.barrier()
        barriers.append(time.perf_counter() - start)
    found = {
        "steps": rows[UNCOUNTED:],
        "bare": bare(trainer, steps)[UNCOUNTED:],
        "barrier_seconds": median(barriers),
    }
    (Path(folder) / f"{group.rank}.json").write_text(json.dumps(found))


def bare(trainer: Trainer, steps: int) -> list[dict[str, Any]]:
    """The same with nothing but forward and backward passes on inputs that stay: what the machine makes them wait."""
    rows, group = [], trainer.engine.group
    for step in range(steps):
        size = trainer.schedule.size_at(step, trainer.images.resolution)
        num = size.num_images(trainer.batches.batch) // group.world
        inputs = trainer.batches.make(Plan(step, 0, trainer.images.resolution, 0, size, num), range(num))
        group.barrier()
        began = time.perf_counter()
        trainer.engine.backward(trainer.state.module, inputs, 1.0, last=False)
        done = time.perf_counter()
        group.barrier()
        now = time.perf_counter()
        rows.append({"size": str(size), "seconds": now - began, "waited": now - done, "exchanged": 0.0})
    return rows


def summary(steps: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Of some steps, those of each process in a list of its own."""
    shares = [[row["waited"] / row["seconds"] for row in rows] for rows in steps]
    return {
        "steps": len(steps[0]),
        "step_seconds_median": median(row["seconds"] for row in steps[0]),
        "exchange_seconds_median": median(row["exchanged"] for row in steps[0]),
        "waiting_share_median_by_process": [median(of_process) for of_process in shares],
        # What the processes lose together: the median over steps of the mean over processes.
        "waiting_share_median": median(sum(of_step) / len(of_step) for of_step in zip(*shares, strict=True)),
        "waiting_share_mean": sum(map(sum, shares)) / sum(map(len, shares)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.steps <= UNCOUNTED:
        parser.error(f"the first {UNCOUNTED} steps are not counted: take more")

    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        run_processes(arguments.processes, worker, folder, arguments.steps)
        found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(arguments.processes)]
    steps = [of_process["steps"] for of_process in found]
    sizes = sorted({row["size"] for row in steps[0]}, key=lambda size: int(size.partition("x")[0]))
    result = {
        "command": f"python benchmarks/waiting.py --processes {arguments.processes} --steps {arguments.steps}",
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, one thread a process",
        "load_before": load,
        "torch": torch.__version__,
        "settings": "preset small, 64 x 64, batch 16, gloo",
        "barrier_seconds": median(of_process["barrier_seconds"] for of_process in found),
        "all": summary(steps),
        "bare": summary([of_process["bare"] for of_process in found]),
        "by_size": {size: summary([[row for row in rows if row["size"] == size] for rows in steps]) for size in sizes},
    }
    for name, part in (("all", result["all"]), ("bare", result["bare"]), *result["by_size"].items()):
        shares = ", ".join(f"{share:.1%}" for share in part["waiting_share_median_by_process"])
        print(
            f"{name:>6}: {part['steps']} steps of {part['step_seconds_median']:.3f} s; waiting {shares} of a step, "
            f"together {part['waiting_share_median']:.1%} (mean {part['waiting_share_mean']:.1%}); "
            f"exchange {part['exchange_seconds_median'] * 1e3:.0f} ms"
        )
    print(f"a barrier by itself takes {result['barrier_seconds'] * 1e3:.2f} ms; load before: {load:.2f}")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
