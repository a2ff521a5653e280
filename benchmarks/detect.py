"""Are planted defects found, better than by a PCA residual, and are false alarms as rare as asked for?

    python benchmarks/detect.py DATA --minutes 60 [--sets cats photographs slices] [--plain] [--out FILE.json]

DATA is a folder with cat-faces-64-train.zip, cat-faces-64-heldout.zip, photos/ and volumes/. For each data set a model
of 64 x 64 pixels is trained for so many minutes, or continued in ``--runs``. Defects are planted into held-out images:
scratches, patches of another image, patches of the same image put elsewhere (place), and patches that are mirrored,
which are reported only. Told is the area under the ROC curve over all pixels of the images with a defect.

The PCA residual has the same smoothing and the same normalisation by place, and as many components as are best on
defects in other held-out images. ``linear`` is the method itself with the best linear denoiser in place of the model:
a model whose loss is not below the linear floor finds no more than that. ``--plain`` also trains each model without
coordinates. ``by_level`` has the figures of each level alone, ``largest`` those of the largest level at each pixel in
place of the mean.
"""

from __future__ import annotations

import argparse
import gzip
import json
import struct
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measuring import circumstances
from torch import Tensor

import patch_diffusion as pd
from patch_diffusion.config import Data, Engine, Patches
from patch_diffusion.denoise.threads import sharing
from patch_diffusion.evaluation.detection.errors import levels_of, log_errors, medians, squared_errors
from patch_diffusion.evaluation.detection.ordinary import Ordinary
from patch_diffusion.streams import generator

sys.path.insert(0, str(Path(__file__).parent / "evidence"))
from tiles import tiles_of

SIDE, PATCH = 64, 16
KINDS = ("scratch", "swap", "place", "mirror")
COMPONENTS = (10, 30, 100, 300)
LEAST_CHANGE = 0.15  # mean change of the pixels of a patch, in model space; a patch of nothing on nothing is no defect


def cats(folder: Path) -> tuple[Tensor, Tensor]:
    """Images to train on and held-out ones, uint8 (n, 3, 64, 64)."""
    train, held = (pd.open_images(folder / f"cat-faces-64-{name}.zip") for name in ("train", "heldout"))
    return train.pixels, held.pixels


def photographs(folder: Path) -> tuple[Tensor, Tensor]:
    """Tiles of nine photographs, and of three others, which do not overlap."""
    files = sorted((folder / "photos").glob("*.png"))

    def stacked(chosen: list[Any]) -> Tensor:
        return torch.from_numpy(np.stack([np.asarray(tile) for tile in chosen])).movedim(-1, 1).contiguous()

    train = stacked([tile for file in files[:-3] for tile in tiles_of(file, SIDE)])
    held = stacked([tile for file in files[-3:] for tile in tiles_of(file, 2 * SIDE)])  # then they are cut apart
    held = torch.cat([held[:, :, y : y + SIDE, x : x + SIDE] for y in (0, SIDE) for x in (0, SIDE)])
    held = torch.unique(held, dim=0)
    return train, held[torch.randperm(len(held), generator=generator(0, "tiles"))]


def slices(folder: Path, subjects: int = 3000, others: int = 1000) -> tuple[Tensor, Tensor]:
    """Slices of one head, each turned, scaled, bent and lit at random, as if each were of another person."""
    volume = read_volume(next((folder / "volumes").glob("*_t1_*.nii.gz")))
    height = volume.shape[2]
    num, random = subjects + others, generator(0, "slices")
    chosen = (height * (0.3 + 0.4 * torch.rand(num, generator=random))).long()
    angle = 0.08 * torch.randn(num, generator=random)
    scale = 1 + 0.05 * torch.randn(num, 2, generator=random)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2) * scale[:, None]
    shift = 0.03 * torch.randn(num, 2, 1, generator=random)
    grid = F.affine_grid(torch.cat([turn, shift], dim=2), [num, 1, SIDE, SIDE], align_corners=False)
    bend = F.interpolate(0.04 * torch.randn(num, 2, 5, 5, generator=random), (SIDE, SIDE), mode="bicubic")
    whole = torch.from_numpy(volume).permute(2, 1, 0).float()
    whole = whole / whole.quantile(0.999) if whole.numel() < 2**24 else whole / float(np.quantile(volume, 0.999))
    images = F.grid_sample(whole[chosen][:, None], grid + bend.movedim(1, -1), align_corners=False)
    gamma = (0.15 * torch.randn(num, 1, 1, 1, generator=random)).exp()
    noise = 0.01 * torch.randn(images.shape, generator=random)
    pixels = ((images.clamp(0, 1) ** gamma + noise).clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels[:subjects], pixels[subjects:]


def read_volume(path: Path) -> np.ndarray:
    """The numbers of a NIfTI-1 file of 8 or 16 bits, or floats."""
    content = gzip.decompress(path.read_bytes())
    shape, kind = struct.unpack("<8h", content[40:56]), struct.unpack("<h", content[70:72])[0]
    start = int(struct.unpack("<f", content[108:112])[0])
    dtype = {2: np.uint8, 4: np.int16, 8: np.int32, 16: np.float32, 64: np.float64, 512: np.uint16}[kind]
    size = shape[1 : 1 + shape[0]]
    return np.frombuffer(content, dtype, int(np.prod(size)), start).reshape(size, order="F").astype(np.float32)


SETS: dict[str, Callable[[Path], tuple[Tensor, Tensor]]] = {"cats": cats, "photographs": photographs, "slices": slices}


def scratched(image: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """An image (c, h, w) in model space with a bent line one pixel wide, and where it is."""
    image, inside = image.clone(), torch.zeros(image.shape[1:], dtype=torch.bool)
    place, angle = random.uniform(0.15, 0.85, 2) * image.shape[1:], random.uniform(0, 2 * np.pi)
    length, bend = random.uniform(0.2, 0.45) * SIDE, random.uniform(-0.03, 0.03)
    for _ in range(200):
        if all(0 <= at < side for at, side in zip(place, inside.shape, strict=True)):
            inside[int(place[0]), int(place[1])] = True
        place = place + length / 200 * np.array([np.sin(angle), np.cos(angle)])
        angle += bend
    sign = -1 if image[:, inside].mean() > 0 else 1
    image[:, inside] = (image[:, inside] + sign * random.uniform(0.5, 0.9)).clamp(-1, 1)
    return image, inside


def patched(image: Tensor, other: Tensor, kind: str, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """An image with a square of another image, of itself, or mirrored, and where it is."""
    found, inside = image.clone(), torch.zeros(image.shape[1:], dtype=torch.bool)
    for _ in range(200):
        (top, left), (row, column) = (random.integers(0, SIDE - PATCH + 1, 2) for _ in range(2))
        if kind == "place" and max(abs(row - top), abs(column - left)) < PATCH:
            continue
        old = image[:, top : top + PATCH, left : left + PATCH]
        source = other if kind == "swap" else image
        new = old.flip(-1) if kind == "mirror" else source[:, row : row + PATCH, column : column + PATCH]
        if (new - old).abs().mean() >= LEAST_CHANGE:
            found[:, top : top + PATCH, left : left + PATCH] = new
            inside[top : top + PATCH, left : left + PATCH] = True
            break
    return found, inside


def planted(images: Tensor, kind: str, seed: int) -> tuple[Tensor, Tensor]:
    """Images (n, c, h, w) in model space with a defect each, and where (n, h, w); those that take none are left out."""
    random = np.random.default_rng(seed)
    made = [
        scratched(image, random) if kind == "scratch" else patched(image, other, kind, random)
        for image, other in zip(images, images.roll(1, 0), strict=True)
    ]
    made = [(image, inside) for image, inside in made if inside.any()]
    return torch.stack([image for image, _ in made]), torch.stack([inside for _, inside in made])


def auroc(values: Tensor, inside: Tensor) -> float:
    """The area under the ROC curve over all pixels."""
    ranks = values.flatten().argsort().argsort().double() + 1
    inside = inside.flatten()
    positive, negative = int(inside.sum()), int((~inside).sum())
    return float((ranks[inside].sum() - positive * (positive + 1) / 2) / (positive * negative))


def errors_by(model: pd.Denoiser, options: pd.DetectionOptions) -> Callable[[Tensor], Tensor]:
    """A function from images to squared errors (n, levels, h, w)."""
    levels = options.levels or levels_of(model)

    def errors(images: Tensor) -> Tensor:
        with sharing(model), torch.inference_mode():
            parts = images.to(model.device).split(options.batch)
            return torch.cat(
                [squared_errors(model, part, levels, options.noises, options.seed).cpu() for part in parts]
            )

    return errors


def residual(basis: Tensor, mean: Tensor) -> Callable[[Tensor], Tensor]:
    """A function from images to squared residuals (n, 1, h, w) of a PCA."""

    def errors(images: Tensor) -> Tensor:
        flat = images.flatten(1) - mean
        return (flat - flat @ basis @ basis.T).view(images.shape).square().mean(dim=1, keepdim=True)

    return errors


def linear(train: Tensor, levels: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """A function from images to squared errors (n, levels, h, w) of the best linear denoiser of the training images.

    Beyond the first components all others count as equally strong.
    """
    flat = train.flatten(1)
    mean = flat.mean(dim=0)
    torch.manual_seed(0)
    _, values, basis = torch.svd_lowrank(flat - mean, min(1000, len(flat) - 1), niter=2)
    variances = values.square() / len(flat)
    rest = ((flat - mean).square().sum() / len(flat) - variances.sum()) / (flat.shape[1] - len(variances))

    def errors(images: Tensor) -> Tensor:
        found, moved = [], images.flatten(1) - mean
        along = moved @ basis
        for square in (level**2 for level in levels):
            other = square / (rest + square)
            lost = other * moved + (along * (square / (variances + square) - other)) @ basis.T
            found.append(lost.view(images.shape).square().mean(dim=1))
        return torch.stack(found, dim=1)

    return errors


def maps_by(
    errors: Callable[[Tensor], Tensor], normal: Tensor, smoothing: tuple[float, ...], deviation: float
) -> Callable[[Tensor], Tensor]:
    """A function from images to maps of each level (n, levels, h, w), normalised by ordinary images."""
    logs = [log_errors(errors(normal), (width,), deviation) for width in smoothing]
    ordinary = [Ordinary.of(each, medians(each)) for each in logs]

    def maps(images: Tensor) -> Tensor:
        found, total = errors(images), torch.zeros(())
        for width, moments in zip(smoothing, ordinary, strict=True):
            each = log_errors(found, (width,), deviation)
            typical = medians(each).clamp(moments.low, moments.high)[..., None, None]
            total = total + (each - typical - moments.mean) / moments.deviation
        return total / len(smoothing)

    return maps


def figures(maps: Callable[[Tensor], Tensor], defects: dict[str, tuple[Tensor, Tensor]]) -> dict[str, dict[str, float]]:
    """The area under the curve by kind of defect: of the mean over levels, the largest, and each level."""
    found: dict[str, dict[str, float]] = {"mean": {}, "largest": {}}
    for kind, (images, inside) in defects.items():
        each = maps(images)
        found["mean"][kind] = auroc(each.mean(dim=1), inside)
        found["largest"][kind] = auroc(each.amax(dim=1), inside)
        for level in range(each.shape[1]):
            found.setdefault(f"level {level}", {})[kind] = auroc(each[:, level], inside)
    return found


def pca(
    train: Tensor,
    normal: Tensor,
    others: dict[str, tuple[Tensor, Tensor]],
    defects: dict[str, tuple[Tensor, Tensor]],
    smoothing: tuple[float, ...],
    deviation: float,
) -> dict[str, Any]:
    """The figures of the PCA residual, by the number of components that is best on defects in other images."""
    flat = train.flatten(1)
    mean = flat.mean(dim=0)
    torch.manual_seed(0)
    most = min(max(COMPONENTS), len(flat) - 1)
    basis = torch.svd_lowrank(flat - mean, most, niter=2)[2]
    tried: dict[int, float] = {}
    for num in COMPONENTS:
        maps = maps_by(residual(basis[:, :num], mean), normal, smoothing, deviation)
        tried[num] = float(np.mean([figures(maps, {kind: each})["mean"][kind] for kind, each in others.items()]))
    best = max(tried, key=lambda num: tried[num])
    maps = maps_by(residual(basis[:, :best], mean), normal, smoothing, deviation)
    return {"components": best, "tried": tried, **figures(maps, defects)["mean"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--minutes", type=float, default=60, help="training of each model")
    parser.add_argument("--plain", action="store_true", help="also train without coordinates")
    parser.add_argument("--judged", type=int, default=100, help="images with a defect, of each kind")
    parser.add_argument("--normal", type=int, default=500, help="ordinary images, at most half of the held-out ones")
    parser.add_argument("--intact", type=int, default=400, help="intact images, to count false alarms")
    parser.add_argument("--rate", type=float, default=0.05, help="rate of false alarms to ask for")
    parser.add_argument("--levels", type=float, nargs="+", help="noise levels; default: those of detect")
    parser.add_argument("--noises", type=int, default=pd.DetectionOptions().noises)
    parser.add_argument("--smoothing", type=float, nargs="+", default=list(pd.DetectionOptions().smoothing))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=Path, help="folder of the trained models; else they are deleted")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    given = parser.parse_args()
    options = pd.DetectionOptions(
        false_alarms=given.rate,
        levels=None if given.levels is None else tuple(given.levels),
        noises=given.noises,
        smoothing=tuple(given.smoothing),
        device=given.device,
    )
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        runs = given.runs or Path(folder)
        runs.mkdir(parents=True, exist_ok=True)
        for name in given.sets:
            results[name] = one_set(name, SETS[name](given.data), given, options, runs)
            if given.out:
                told = {"minutes": given.minutes, **circumstances(), "results": results}
                given.out.write_text(json.dumps(told, indent=1) + "\n")


def one_set(
    name: str, pixels: tuple[Tensor, Tensor], given: argparse.Namespace, options: pd.DetectionOptions, runs: Path
) -> dict[str, Any]:
    """The figures of one data set, told as they come."""
    train, held = pixels
    num = min(given.normal, len(held) // 2)
    judged = min(given.judged, (len(held) - num) // 3)
    intact = min(given.intact, len(held) - num - 2 * judged)
    parts = held[: num + 2 * judged + intact].split([num, judged, judged, intact])
    codec = pd.ImageSet(train).codec
    normal, for_pca, to_judge = (codec.encode(part) for part in parts[:3])
    others = {kind: planted(for_pca, kind, 1) for kind in KINDS[:3]}
    defects = {kind: planted(to_judge, kind, 2) for kind in KINDS}
    deviation = pd.ImageSet(train).standard_deviation
    result: dict[str, Any] = {"train": len(train), "normal": num, "judged": judged, "intact": len(parts[3])}
    result["pca"] = pca(codec.encode(train), normal, others, defects, options.smoothing, deviation)
    tell(name, "PCA residual", result["pca"])
    levels = options.levels or levels_of(pd.Denoiser(lambda *_: torch.empty(0), deviation))
    maps = maps_by(linear(codec.encode(train), levels), normal, options.smoothing, deviation)
    result["linear"] = figures(maps, defects)["mean"]
    tell(name, "best linear", result["linear"])
    source = runs / f"{name}.npy"
    np.save(source, train.numpy())
    for way in ("coords", "plain") if given.plain else ("coords",):
        config = replace(
            pd.Config(),
            data=Data(source=str(source), layout="channels_first"),
            patches=replace(Patches(), coords=way == "coords"),
            engine=replace(Engine(), device=given.device),
            minutes=given.minutes,
            samples=0,
        )
        model = pd.train(config, runs / f"{name}-{way}", show=False)
        maps = maps_by(errors_by(model, options), normal, options.smoothing, model.sigma_data)
        found = figures(maps, defects)
        tell(name, way, found["mean"])
        detection = pd.detect(model, pd.ImageSet(parts[3]), normal=pd.ImageSet(parts[0]), options=options)
        alarms = sum(finding.alarm for finding in detection.findings)
        rates = {"asked": options.false_alarms, "found": alarms / len(parts[3])}
        rates |= {"checked": detection.threshold.checked}
        print(f"{name:<12} {way:<14} false alarms: {rates}", flush=True)
        levels = list(options.levels or levels_of(model))
        result[way] = {**found["mean"], "largest": found["largest"], "levels": levels, "false_alarms": rates}
        result[way]["by_level"] = [found[f"level {level}"] for level in range(len(levels))]
    return result


def tell(name: str, way: str, figures: dict[str, Any]) -> None:
    told = "  ".join(f"{kind} {figures[kind]:.3f}" for kind in KINDS)
    print(f"{name:<12} {way:<14} {told}", flush=True)


if __name__ == "__main__":
    main()
