"""Are the known distances between sets of cat faces reproduced?

    python benchmarks/reference_distances.py FOLDER [--out FILE.json]

FOLDER holds the images and weights of tests and benchmarks: cat-faces-64-train.zip, cat-faces-64-heldout.zip,
cifar10-32-heldout.zip and mobilenet_v2_imagenet_f16.safetensors. The expected distances are those that came with them,
which other code made. Noise is drawn anew: another draw changes the row of sigma 25 by 0.5 %.
"""

import argparse
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from measuring import circumstances
from PIL import Image, ImageFilter
from torch import Tensor

import patch_diffusion as pd

MOST_OFF = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="rows whose images are called so")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    extractor = pd.open_extractor(arguments.folder / "mobilenet_v2_imagenet_f16.safetensors")
    train, held_out, cifar = (
        pd.open_images(arguments.folder / f"{name}.zip", classes=False).buckets[0].pixels
        for name in ("cat-faces-64-train", "cat-faces-64-heldout", "cifar10-32-heldout")
    )

    def gaussian(images: Tensor):
        return pd.gaussian_of(extractor(batch) for batch in images.split(64))

    of_train, of_first = gaussian(train), gaussian(train[:1000])
    uniform = torch.randint(0, 256, held_out.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = [
        ("held-out", "train", 143.8, held_out),
        ("held-out", "first 1,000 of train", 209.2, held_out),
        ("second 1,000 of train", "first 1,000 of train", 205.2, train[1000:2000]),
        ("held-out, mirrored", "train", 144.2, held_out.flip(3)),
        ("held-out, JPEG quality 50", "train", 408, each(held_out, jpeg)),
        ("held-out, Gaussian blur of radius 1", "train", 542, each(held_out, blurred)),
        ("held-out, noise of sigma 10/255", "train", 591, noisy(held_out, 10)),
        ("held-out, quadrants swapped diagonally", "train", 1252, held_out.roll((32, 32), (2, 3))),
        ("held-out, upside down", "train", 1711, held_out.flip(2)),
        ("held-out, noise of sigma 25/255", "train", 2000, noisy(held_out, 25)),
        ("CIFAR-10 held-out", "train", 2355, each(cifar, enlarged)),
        ("uniform noise", "train", 3152, uniform),
    ]
    results = []
    for name, against, expected, images in [row for row in rows if arguments.only in row[0]]:
        found = pd.frechet_distance(of_train if against == "train" else of_first, gaussian(images))
        off = found / expected - 1
        print(
            f"{name:<40} {against:<22} {expected:>7} {found:>8.1f} {off:>+7.2%}{' !' * (abs(off) > MOST_OFF)}",
            flush=True,
        )
        results.append({"images": name, "against": against, "expected": expected, "distance": found})
    if arguments.out:
        result = {**circumstances(), "extractor": dict(extractor.settings or {}), "rows": results}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def each(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    changed = [np.asarray(change(Image.fromarray(image.permute(1, 2, 0).numpy()))) for image in images]
    return torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2)


def jpeg(picture: Image.Image) -> Image.Image:
    stream = BytesIO()
    picture.save(stream, "JPEG", quality=50)
    return Image.open(stream).convert("RGB")


def blurred(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(1))


def enlarged(picture: Image.Image) -> Image.Image:
    return picture.resize((64, 64), Image.Resampling.BICUBIC)


def noisy(images: Tensor, deviation: float) -> Tensor:
    noise = np.random.default_rng(0).normal(0, deviation, images.shape)
    return torch.from_numpy((images.numpy() + noise).round().clip(0, 255).astype(np.uint8))


if __name__ == "__main__":
    main()
