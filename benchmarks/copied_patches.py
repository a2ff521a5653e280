"""When is a patch a copy? Shares of images with one, by how far away its second nearest must be.

    python benchmarks/copied_patches.py --data digits

Of held-out images, which cannot be copies, and of training images with a little noise, which are. A patch that many
images have, such as a black corner, has a nearest and a second nearest that are both near: it must not count.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch

import patch_diffusion as pd
from patch_diffusion.data.held_out import hold_out
from patch_diffusion.evaluation.memorization import PARTS, RATIO, cut, small_pixels
from patch_diffusion.evaluation.neighbours import nearest_two

LEVELS = (0, 5, 10, 15, 20, 30, 40)
"""Of 255, root mean square, that the second nearest is away by."""

NOISE = 8.0
COPIES = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", default="digits", help="images of one size")
    parser.add_argument("--resolution", type=int, default=None)
    arguments = parser.parse_args()
    images = pd.open_images(arguments.data, resolution=arguments.resolution)
    training, held_out = (part.buckets[0] for part in hold_out(images, 0.1, 0) if part is not None)
    pixels, others = (part.batch(np.arange(len(part)))[0] for part in (training, held_out))
    chosen = pixels[:: max(1, len(pixels) // COPIES)].float()
    noise = NOISE * torch.randn(chosen.shape, generator=torch.Generator().manual_seed(0))
    copies = (chosen + noise).round().clamp(0, 255).to(torch.uint8)
    real = small_pixels(pixels)
    for name, shown in (("held-out images", others), ("copies with noise", copies)):
        for size, parts in PARTS.items():
            print(json.dumps({"of": name, "patches": size, "shares": shares(small_pixels(shown), real, parts)}))


def shares(shown: torch.Tensor, real: torch.Tensor, parts: int) -> dict[int, float]:
    """Of the images that have a near copy among their patches, by the level that its second nearest is away by."""
    pairs = zip(cut(shown, parts), cut(real, parts), strict=True)
    found = [nearest_two(patches, [others]) for patches, others in pairs]
    side = (shown.shape[1] // parts**2) ** 0.5
    near = {
        level: torch.stack([(each.ratios < RATIO) & (each.distances[:, 1] / side > level) for each in found])
        for level in LEVELS
    }
    return {level: round(float(of_patches.any(dim=0).float().mean()), 3) for level, of_patches in near.items()}


if __name__ == "__main__":
    main()
