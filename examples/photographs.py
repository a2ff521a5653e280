"""Your own photographs: look at them, train on them, sample new ones.

    python examples/photographs.py photos/ --minutes 30

Without a folder it draws some pictures of a sun over a sea and trains on those, so that there is something to see. The
three steps are commands that you can as well type yourself; they are printed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from patch_diffusion.cli import main as patch_diffusion


def draw_photographs(folder: Path, num: int = 400) -> Path:
    """Pictures of 80 x 64: a sky that brightens downwards, a sun at a place of its own, and its light on the water."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:64, 0:80]
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(num):
        horizon, across, height = random.uniform(30, 45), random.uniform(15, 65), random.uniform(8, 28)
        hue = random.uniform(0.5, 1, 3) * (1, 0.8, 0.7)
        sky = 120 + 100 * (y / horizon)[..., None] * hue
        sea = (255 - 150 * hue) * (1 - 0.5 * (y - horizon) / 64)[..., None]
        pixels = np.where((y < horizon)[..., None], sky, sea)
        path = (y >= horizon) & (abs(x - across) < 1.5 + (y - horizon) / 6) & (np.sin(y * 1.7 + x / 9) > 0)
        pixels[((x - across) ** 2 + (y - height) ** 2 < 36) | path] = (255, 235, 190)
        noisy = pixels + random.normal(0, 3, pixels.shape)
        Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8)).save(folder / f"{index:04d}.png")
    return folder


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", nargs="?", metavar="DATA", help="a folder or a zip; None: some are drawn")
    parser.add_argument("--out", type=Path, default=Path("runs/photographs"), metavar="RUN")
    parser.add_argument("--resolution", type=int, default=32, metavar="PIXELS", help="side they are brought to")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training")
    parser.add_argument("--samples", type=int, default=16, metavar="N")
    options = parser.parse_args(words)
    out = options.out
    data = options.photographs or draw_photographs(out.with_name(f"{out.name}-drawn"))
    data, run = shlex.quote(str(data)), shlex.quote(str(out))

    for command in (
        f"inspect {data} --resolution {options.resolution} --sheet {run}-sheet.png --no-forecast",
        f"train {data} --resolution {options.resolution} --minutes {options.minutes} --out {run}",
        f"sample {run} --seeds 0-{options.samples - 1} --out {run}/pictures --grid {run}/grid.png",
    ):
        print(f"\n$ patch-diffusion {command}", flush=True)
        if code := patch_diffusion(shlex.split(command)):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
