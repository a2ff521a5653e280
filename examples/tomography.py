"""Digits from a few X-ray views, and from a part of their frequencies: restoration by any linear operator.

    python examples/tomography.py runs/digits --out tomography

Two machines that measure sums of an image, not its pixels: computed tomography sums along rays, from some angles (the
radon transform), and magnetic resonance takes spatial frequencies, row by row, of which some are left out to save time.
Each is a Python function of images; the rest is `pd.Measurement` and `pd.edit`. Beside what the model finds stands the
picture of least squares, which is what there is without a model.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import patch_diffusion as pd
from patch_diffusion.sampling.guidance.posterior import conjugate_gradients
from patch_diffusion.sampling.pictures import write_picture

Operator = Callable[[Tensor], Tensor]
TYPICAL = 100.0  # pixel of a digit


def radon(side: int, num_angles: int) -> Operator:
    """Sums along the columns of square images (n, c, side, side), turned by each angle: (n, c, num_angles, side)."""
    angles = torch.arange(num_angles) * (math.pi / num_angles)
    cos, sin, none = angles.cos(), angles.sin(), torch.zeros(num_angles)
    turns = torch.stack([torch.stack([cos, -sin, none], 1), torch.stack([sin, cos, none], 1)], 1)
    grids = F.affine_grid(turns, [num_angles, 1, side, side], align_corners=False)

    def project(images: Tensor) -> Tensor:
        num, channels = images.shape[:2]
        flat = images.reshape(1, num * channels, side, side).expand(num_angles, -1, -1, -1)
        turned = F.grid_sample(flat, grids.to(images), align_corners=False)
        return turned.sum(dim=2).transpose(0, 1).reshape(num, channels, num_angles, side)

    return project


def fourier(side: int, share: float) -> Operator:
    """Frequencies of images (n, c, side, side), rows of which are kept: the lowest, and of the others each second."""
    frequency = torch.fft.fftfreq(side, 1 / side).abs()
    kept = frequency <= share * side / 4
    kept |= torch.arange(side) % round(2 / share) == 0
    return lambda images: torch.fft.fft2(images, norm="ortho") * kept.to(images.device)[:, None]


def ridge(known: pd.Measurement) -> Tensor:
    """The image (c, h, w) that agrees with what was measured, and else is as dark as it can be: least squares."""
    weight = (known.noise / TYPICAL) ** 2
    start = known.transposed(known.values[None])
    return conjugate_gradients(lambda image: weight * image + known.transposed(known.operator(image)), start, 100)[0]


def psnr(found: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, of values from 0 to 255."""
    return float(-10 * ((found.float().clamp(0, 255) - truth.float()) / 255).square().mean().log10())


def main(words: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="a run on digits")
    parser.add_argument("--out", type=Path, default=Path("tomography"), metavar="DIR", help="folder for the pictures")
    parser.add_argument("--images", type=int, default=8, metavar="N", help="how many digits")
    parser.add_argument("--steps", type=int, default=32, metavar="N", help="noise levels")
    parser.add_argument("--covariance", default="network", choices=("isotropic", "network"))
    given = parser.parse_args(words)

    model = pd.load(given.run)
    digits = pd.open_images("digits").buckets[0]
    truths = digits.pixels[: given.images]
    side = truths.shape[-1]
    result: dict[str, dict[str, float]] = {}
    for name, operator, noise in (("radon", radon(side, 6), 10.0), ("fourier", fourier(side, 0.4), 2.0)):
        rows, errors = [], {"ridge": 0.0, "model": 0.0}
        for index, truth in enumerate(truths):
            exact = operator(truth[None].float())[0]
            drawn = torch.randn(exact.shape, generator=torch.Generator().manual_seed(index), dtype=exact.dtype)
            values = exact + noise * drawn * (exact != 0)
            known = pd.Measurement(values, operator, (1, side, side), noise)
            baseline = ridge(known)
            (sample,) = pd.edit(model, known, [index], pd.Sampling(given.steps), repeats=1, covariance=given.covariance)
            errors["ridge"] += psnr(baseline, truth) / len(truths)
            errors["model"] += psnr(sample.pixels, truth) / len(truths)
            rows.append((truth, baseline.round().clamp(0, 255).to(torch.uint8), sample.pixels))
        pictures = [row[column] for column in range(3) for row in rows]
        path = write_picture(pd.picture_grid(pictures, columns=len(rows)), given.out / f"{name}.png")
        print(f"{name}: {errors['ridge']:.1f} dB without the model, {errors['model']:.1f} dB with it; {path}")
        result[name] = errors
    return result


if __name__ == "__main__":
    main()
