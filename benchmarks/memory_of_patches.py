"""Does the memory of training on patches grow with the images they are cut from?

    python benchmarks/memory_of_patches.py [--sides 256 512 1024 2048 4096] [--patch 64] [--out FILE.json]

A process for each side trains the preset ``small`` on patches of one size only (``patches.whole`` 0), from an array of
random images that is mapped from the disk. Peak memory is that of the process less what is mapped from files, above
what it has after its imports; on a GPU, what torch has taken there.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from measuring import circumstances

import patch_diffusion as pd
from patch_diffusion.config import Engine, Patches
from patch_diffusion.training.build import build_trainer

IMAGES, STEPS, UNCOUNTED = 6, 30, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3, help="of which the median counts")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(train(arguments.alone, arguments.patch)))
        return
    rows: list[dict[str, float]] = []
    for side in arguments.sides:
        command = [sys.executable, __file__, "--patch", str(arguments.patch), "--alone", str(side)]
        runs = [
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            for _ in range(arguments.runs)
        ]
        row = {name: median(run[name] for run in runs) for name in runs[0]}
        rows.append(row)
        grown = row["peak_bytes"] / rows[0]["peak_bytes"]
        print(
            f"{side:>5} px: peak {row['peak_bytes'] / 2**20:,.0f} MB, {grown:.3f} of the first; "
            f"{row['step_seconds']:.3f} s a step",
            flush=True,
        )
    if arguments.out:
        settings = {
            "preset": "small",
            "patch": arguments.patch,
            "runs": arguments.runs,
            "steps": STEPS,
            "images": IMAGES,
        }
        arguments.out.write_text(json.dumps({**circumstances(), "settings": settings, "sides": rows}, indent=1) + "\n")


def train(side: int, patch: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        write_images(path, side)
        gpu = torch.cuda.is_available()
        before = anonymous_bytes()
        peak = Peak()
        config = replace(
            pd.PRESETS["small"],
            patches=Patches(whole=0.0, sizes={str(patch): 1.0}, growth="none"),
            engine=Engine(device="cuda" if gpu else "cpu"),
            minutes=None,
            samples=0,
        )
        images = pd.open_images(path)
        trainer = build_trainer(config, images, Path(folder) / "run", show=False)
        seconds = []
        with trainer.engine.threads(trainer.denoiser):
            for _ in range(STEPS):
                began = time.perf_counter()
                trainer.train_step(0.5)[1].item()
                seconds.append(time.perf_counter() - began)
        taken = torch.cuda.max_memory_allocated() if gpu else peak.stop() - before
        return {"side": side, "peak_bytes": taken, "step_seconds": median(seconds[UNCOUNTED:])}


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
