"""How much memory does the restoration of a large image take, in tiles?

    python benchmarks/memory_of_restoration.py --out restoration-memory.json

A small convolutional network of random weights restores a grey image from a quarter of its pixels, by both covariances,
in one step. Told is the peak of a process for each, with torch and the library, in MB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from measuring import circumstances
from torch import Tensor, nn

import patch_diffusion as pd


class Small(nn.Module):
    """Four convolutions of 16 channels, without attention, whose time would grow with the square of a tile."""

    image_channels = 3

    def __init__(self) -> None:
        super().__init__()
        inside = [part for _ in range(3) for part in (nn.SiLU(), nn.Conv2d(16, 16, 3, padding=1))]
        self.layers = nn.Sequential(nn.Conv2d(5, 16, 3, padding=1), *inside, nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the raw output."""
        return self.layers(x)


def restore(side: int, tile: int, batch: int, covariance: str) -> float:
    """Restore one image in this process; return its peak in MB."""
    torch.manual_seed(0)
    model = pd.Denoiser(Small(), resolution=(tile, tile))
    image = torch.full((3, side // 2, side // 2), 100, dtype=torch.uint8)
    known = pd.super_resolution(model, image, factor=2)
    sampling = pd.Sampling(steps=1, tile=tile, batch=batch)
    list(pd.edit(model, known, [0], sampling, repeats=1, covariance=covariance))  # pyright: ignore[reportArgumentType]
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--one", nargs=2, metavar=("SIDE", "COVARIANCE"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.one:
        print(restore(int(given.one[0]), given.tile, given.batch, given.one[1]))
        return
    result = circumstances()
    result |= {"tile": given.tile, "batch": given.batch, "peak_mb": {}}
    for covariance in ("isotropic", "network"):
        for side in given.sides:
            line = [sys.executable, __file__, "--tile", str(given.tile), "--batch", str(given.batch)]
            told = subprocess.run([*line, "--one", str(side), covariance], check=True, capture_output=True, text=True)
            result["peak_mb"][f"{covariance}, {side} px"] = float(told.stdout)
            print(f"{covariance}, {side} px: {float(told.stdout):,.0f} MB", flush=True)
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
