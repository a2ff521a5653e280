"""What is the loss of the best linear denoiser of whole images, and in how many seconds is it known?

    python benchmarks/linear_floor.py [--data DATA ...] [--recipes FILE.json] [--rounds 3] [--out FILE.json]

DATA is a training set with its judges and a resolution, as TRAIN.zip:HELD_OUT.zip:32. Of each: the floor by noise level
with its intervals, judged by 256 held-out images, and the median of the seconds that it takes of one thread, once the
images are read: the processor's, so that they hold beside other programs. Also what a denoiser has that is diagonal in
the cosine transform alone, and, at the lowest levels, one of crops: the convolution that is best by the covariance of
crops of 9 x 9, over the pixels that have such a crop around them.

With the recipes' results (benchmarks/evidence/recipes.py, of the same images), the models' losses lie beside it.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from measuring import circumstances

import patch_diffusion as pd
from patch_diffusion.config import Noise
from patch_diffusion.data.images import ImageSet
from patch_diffusion.denoise.whole_image import SIGMAS
from patch_diffusion.evaluation import linear_floor as module
from patch_diffusion.evaluation.linear_floor import LinearDenoiser

CROP, SPARSE, LOW = 9, 5, SIGMAS[:4]


def pixels_of(images: ImageSet, most: int) -> torch.Tensor:
    """The first images in model space."""
    return images.codec.encode(images.batch(torch.arange(min(most, len(images))).numpy())[0])


def by_crops(train: ImageSet, judges: ImageSet) -> dict[str, dict[str, float]]:
    """The loss of the best convolution of crops, and of the floor's denoiser on the same pixels, at low levels."""
    middle, channels = CROP // 2, train.channels
    model = LinearDenoiser.fitted(train, Noise(levels=LOW))
    clean = pixels_of(judges, 128)
    examples = pixels_of(train, 1000)
    mean = examples.mean(dim=0)
    crops = F.unfold(examples - mean, CROP)[:, :, ::SPARSE].movedim(1, 0).flatten(1)
    covariance = crops @ crops.mT / crops.shape[1]
    centres = [channel * CROP**2 + middle * CROP + middle for channel in range(channels)]
    inner = (slice(None), slice(None), slice(middle, -middle), slice(middle, -middle))
    found: dict[str, dict[str, float]] = {"crops": {}, "floor": {}}
    for sigma in LOW:
        weights = torch.linalg.solve(covariance + sigma**2 * torch.eye(len(covariance)), covariance[:, centres])
        kernel = weights.mT.reshape(channels, channels, CROP, CROP)
        noisy = clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
        of_crops = F.conv2d(noisy - mean, kernel) - (clean - mean)[inner]
        of_floor = (model(noisy, sigma) - clean)[inner]
        weight = float(model.loss_weight(torch.tensor(sigma)))
        for name, error in (("crops", of_crops), ("floor", of_floor)):
            found[name][f"{sigma:g}"] = weight * float(error.square().mean())
    return found


def measured(train: ImageSet, judges: ImageSet, rounds: int) -> dict[str, Any]:
    """The floor of a data set, its time, and what other linear denoisers have."""
    floor, seconds = pd.linear_floor(train, judges), list[float]()
    for _ in range(rounds):
        began = time.process_time()
        floor = pd.linear_floor(train, judges)
        seconds.append(time.process_time() - began)
    with patch.object(module, "_ROTATED", (0,)):
        cosines = pd.linear_floor(train, judges)
    return {
        "training_images": len(train),
        "values_of_an_image": train.pixels[0].numel(),
        "floor": asdict(floor),
        "seconds": statistics.median(seconds),
        "cosines_alone": {"loss": cosines.loss, "by_noise": cosines.by_noise},
        "crops": by_crops(train, judges),
    }


def models(file: Path, floor: dict[str, float]) -> list[dict[str, Any]]:
    """The mean losses of each arm of recipes over its seeds, and those levels at which they are above the floor."""
    found: list[dict[str, Any]] = []
    for arm in json.loads(file.read_text())["arms"]:
        each = [seed["loss_by_noise"] for seed in arm["seeds"]]
        by_noise = {level: statistics.fmean(losses[level] for losses in each) for level in each[0]}
        above = [level for level, loss in by_noise.items() if loss > floor[level]]
        loss = statistics.fmean(by_noise.values())
        found.append({"name": arm["name"], "loss": loss, "by_noise": by_noise, "above_the_floor": above})
    return found


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--recipes", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {**circumstances(), "data": {}}
    for data in options.data:
        train, judges, side = data.split(":")
        images, others = (pd.open_images(source, resolution=int(side)) for source in (train, judges))
        assert isinstance(images, ImageSet) and isinstance(others, ImageSet)
        name = f"{Path(train).stem} at {side}"
        found["data"][name] = measured(images, others, options.rounds)
        floor = found["data"][name]["floor"]
        print(f"{name}: {floor['loss']:.4f} in {found['data'][name]['seconds']:.1f} s")
        print("  " + "  ".join(f"{level}: {loss:.4f}" for level, loss in floor["by_noise"].items()))
    if options.recipes:
        first = next(iter(found["data"].values()))["floor"]["by_noise"]
        found["models"] = models(options.recipes, first)
        for arm in found["models"]:
            print(f"{arm['name']}: {arm['loss']:.4f}, above the floor at {', '.join(arm['above_the_floor']) or 'none'}")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
