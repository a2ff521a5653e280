"""Do the memory and the time of training on patches grow with the images they are cut from?

    python benchmarks/memory_of_patches.py [--sides 512 1024 2048 4096] [--patch 64] [--context 64] [--out FILE.json]

A process for each side trains the preset ``small`` on patches of one size only (``patches.whole`` 0), and with
``--context`` on small copies of the images too, from an array of random images that is mapped from the disk. Peak
memory is that of the process less what is mapped from files, above what it has after its imports; on a GPU, what torch
has taken there. The sides take turns, or run at the same time (``--together``), so that what else the machine does hits
all alike.

glibc usually keeps what is freed, more or less of it as the largest piece was that a program has freed before, and has
a pool for each thread. So that memory in use is measured, pieces above 64 kB are given back at once and there is one
pool (``--malloc usual`` leaves that as it is).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from measuring import circumstances

import patch_diffusion as pd
from patch_diffusion.config import Engine, Patches
from patch_diffusion.data.reading.cache import FOLDER_VARIABLE
from patch_diffusion.training.build import build_trainer

IMAGES, STEPS, UNCOUNTED = 6, 10, 2

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--context", type=int, help="side of small copies of the images; none where not given")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--together", action="store_true")
    parser.add_argument("--malloc", choices=["exact", "usual"], default="exact")
    parser.add_argument("--runs", type=int, default=3, help="of which the median counts")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        given = arguments.patch, arguments.context, arguments.batch, arguments.threads
        print(json.dumps(train(arguments.alone, *given)))
        return
    environment = {**os.environ, **(MALLOC if arguments.malloc == "exact" else {})}
    found: dict[int, list[dict[str, float]]] = {side: [] for side in arguments.sides}

    def run(side: int) -> dict[str, float]:
        words = [sys.executable, __file__, "--alone", str(side)]
        for name in ("patch", "context", "batch", "threads"):
            value = getattr(arguments, name)
            words += [] if value is None else [f"--{name}", str(value)]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        return json.loads(done.stdout)

    with ThreadPoolExecutor(len(arguments.sides) if arguments.together else 1) as pool:
        for _ in range(arguments.runs):
            for side, one in zip(arguments.sides, pool.map(run, arguments.sides), strict=True):
                found[side].append(one)
                print(f"{side:>5} px: {one['peak_bytes'] / 2**20:,.0f} MB", flush=True)
    rows: list[dict[str, float]] = []
    for side, runs in found.items():
        row = {"side": side, **{name: median(run[name] for run in runs) for name in runs[0]}}
        first = rows[0] if rows else row
        row["peak_to_first"] = row["peak_bytes"] / first["peak_bytes"]
        row["step_to_first"] = row["step_seconds"] / first["step_seconds"]
        rows.append(row)
        print(
            f"{side:>5} px: peak {row['peak_bytes'] / 2**20:,.0f} MB, {row['peak_to_first']:.3f} of the first; "
            f"{row['step_seconds']:.3f} s of the processor a step, {row['step_to_first']:.3f} of the first",
            flush=True,
        )
    if arguments.out:
        names = ("patch", "context", "batch", "threads", "malloc", "runs", "together")
        settings = {"preset": "small", "steps": STEPS, "images": IMAGES}
        settings |= {name: getattr(arguments, name) for name in names}
        arguments.out.write_text(json.dumps({**circumstances(), "settings": settings, "sides": rows}, indent=1) + "\n")


def train(side: int, patch: int, context: int | None, batch: int, threads: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        write_images(path, side)
        os.environ[FOLDER_VARIABLE] = str(Path(folder) / "cache")
        gpu = torch.cuda.is_available()
        before = anonymous_bytes()
        peak = Peak()
        config = replace(
            pd.PRESETS["small"],
            patches=Patches(whole=0.0, sizes={str(patch): 1.0}, growth="none", context=context),
            engine=Engine(device="cuda" if gpu else "cpu", threads=threads),
            batch=batch,
            minutes=None,
            samples=0,
        )
        images = pd.open_images(path)
        trainer = build_trainer(config, images, Path(folder) / "run", show=False)
        seconds = []
        with trainer.engine.threads(trainer.state.denoiser):
            for _ in range(STEPS):
                # On a CPU its own time, which other processes do not add to.
                clock = time.perf_counter if gpu else time.process_time
                began = clock()
                trainer.train_step(0.5)[1].item()
                seconds.append(clock() - began)
        taken = torch.cuda.max_memory_allocated() if gpu else peak.stop() - before
        return {"peak_bytes": taken, "step_seconds": mean(seconds[UNCOUNTED:])}


def write_images(path: Path, side: int) -> None:
    """An array (n, side, side, 3) of random bytes, row by row."""
    random = np.random.default_rng(0)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(IMAGES, side, side, 3))
    for image in array:
        for row in image:
            row[:] = random.integers(0, 256, row.shape, dtype=np.uint8)
    array.flush()


def anonymous_bytes() -> int:
    """Memory of this process that is not mapped from a file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    raise SystemExit("this machine does not say what memory a process takes")


class Peak:
    """The most that was seen of `anonymous_bytes`, every few milliseconds."""

    def __init__(self) -> None:
        self._most, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._done.wait(0.002):
            self._most = max(self._most, anonymous_bytes())

    def stop(self) -> int:
        """The most until now."""
        self._done.set()
        self._thread.join()
        return self._most


if __name__ == "__main__":
    main()
