"""Images per second, in the first epoch and in repeated ones, against a bare Pillow loop and torch's DataLoader.

    python benchmarks/data_throughput.py CATS.zip PHOTOS [--out FILE.json]

CATS.zip holds small pictures, PHOTOS is a folder of large ones, from which JPEGs of 512 x 768 are made, so that
decoding counts for most. All are brought to 64 x 64. The arms take turns, and before and after each runs the bare loop
that it is compared with; figures are medians over the turns.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import patch_diffusion as pd
from patch_diffusion.data.order import SampleOrder
from patch_diffusion.training.hardware.feed import Feed

SIDE = 64
BATCH = 64
REPEATED = 3  # epochs


def decoded(path: Path) -> np.ndarray:
    """What a loop of one's own does with a file."""
    with Image.open(path) as image:
        picture = image.convert("RGB")
        if picture.size != (SIDE, SIDE):
            picture = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        return np.asarray(picture)


class FloatImages(Dataset[torch.Tensor]):
    """As torchvision's ImageFolder with ToTensor: floats (c, h, w) in [0, 1]."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        pixels = torch.from_numpy(decoded(self.files[index]).copy())
        return pixels.permute(2, 0, 1).contiguous().float().div(255)


def bare_loop(files: list[Path]) -> int:
    return sum(decoded(file).shape[0] > 0 for file in files)


def loader_epochs(files: list[Path], workers: int) -> Iterator[int]:
    """Images of each epoch; workers stay from one to the next."""
    loader = DataLoader(FloatImages(files), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)  # pyright: ignore[reportArgumentType]
    while True:
        yield sum(len(batch) for batch in loader)


def open_source(source: str, cache: str) -> pd.ImageSet:
    images = pd.open_images(source, resolution=SIDE, cache=cache)  # pyright: ignore[reportArgumentType]
    assert isinstance(images, pd.ImageSet)
    return images


def one_epoch(feed: Feed, num: int, epoch: int) -> int:
    """Batches as the trainer takes them, of bytes, which it brings to floats after the cut."""
    for first in range(epoch * num, (epoch + 1) * num, BATCH):
        count = min(BATCH, (epoch + 1) * num - first)
        feed.get(0, first, count)
    return num


def speed(work: Callable[[], int]) -> float:
    began = time.perf_counter()
    num = work()
    return num / (time.perf_counter() - began)


def one_turn(
    sources: dict[str, str], files: list[Path], cache: Path, turn: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Images per second of every arm, in an order that changes from turn to turn, and as multiples of the loop's."""
    found: dict[str, float] = {}
    ratios: dict[str, float] = {}

    def loader(workers: int) -> None:
        epochs = loader_epochs(files, workers)
        found[f"DataLoader, {workers} workers, first"] = speed(lambda: next(epochs))
        found[f"DataLoader, {workers} workers, repeated"] = speed(lambda: next(epochs))

    def ours(name: str, source: str, kept: str) -> None:
        os.environ["PATCH_DIFFUSION_CACHE"] = str(cache / f"{turn}-{name}-{kept}")
        held: list[pd.ImageSet] = []

        def first() -> int:
            images = open_source(source, kept)
            held.append(images)
            return one_epoch(Feed(images, [SampleOrder(len(images))], torch.device("cpu")), len(images), 0)

        found[f"{name}, {kept}, first"] = speed(first)
        images = held[0]
        feed = Feed(images, [SampleOrder(len(images))], torch.device("cpu"))
        found[f"{name}, {kept}, repeated"] = speed(
            lambda: sum(one_epoch(feed, len(images), epoch) for epoch in range(1, 1 + REPEATED))
        )

    arms: list[Callable[[], None]] = [lambda: loader(0), lambda: loader(2)]
    for name, source in sources.items():
        choices = ("memory", "disk") if name != "array" else ("auto",)
        arms += [lambda name=name, source=source, kept=kept: ours(name, source, kept) for kept in choices]
    start = turn % len(arms)
    loops = [speed(lambda: bare_loop(files))]
    for arm in arms[start:] + arms[:start]:
        before = set(found)
        arm()
        loops.append(speed(lambda: bare_loop(files)))
        beside = statistics.fmean(loops[-2:])
        ratios |= {name: found[name] / beside for name in found.keys() - before}
    found["bare loop"], ratios["bare loop"] = statistics.median(loops), 1.0
    return dict(sorted(found.items())), ratios


def make_sources(folder: Path, work: Path) -> tuple[dict[str, str], list[Path]]:
    """A folder of pictures as every other source."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    work.mkdir()
    with zipfile.ZipFile(work / "a.zip", "w") as archive:
        for file in files:
            archive.write(file, file.relative_to(folder))
    halves = [files[: len(files) // 2], files[len(files) // 2 :]]
    for number, half in enumerate(halves):
        with tarfile.open(work / f"a-{number}.tar", "w") as shard:
            for file in half:
                shard.add(file, file.name)
    np.save(work / "a.npy", np.stack([decoded(file) for file in files]))
    sources = {
        "folder": str(folder),
        "zip": str(work / "a.zip"),
        "shards": f"wds:{work}/a-*.tar",
        "array": str(work / "a.npy"),
    }
    return sources, files


def large_jpegs(photos: Path, folder: Path, num: int) -> Path:
    """JPEGs of 512 x 768 (or upright), cut from photographs at other places each."""
    folder.mkdir()
    originals = []
    for path in sorted(photos.iterdir()):
        with Image.open(path) as image:
            originals.append(image.convert("RGB"))
    random = np.random.default_rng(0)
    for index in range(num):
        picture = originals[index % len(originals)]
        left, top = (int(random.integers(0, 33)) for _ in range(2))
        cut = picture.crop((left, top, picture.width - 32 + left, picture.height - 32 + top))
        size = (768, 512) if cut.width > cut.height else (512, 768)
        cut.resize(size, Image.Resampling.LANCZOS).save(folder / f"{index:04d}.jpg", quality=90)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("cats", type=Path, help="a zip of small pictures")
    parser.add_argument("photos", type=Path, help="a folder of photographs")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--large", type=int, default=240, help="large JPEGs to make")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    result = {
        "command": f"python benchmarks/data_throughput.py {arguments.cats.name} {arguments.photos.name}",
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": {"torch": torch.__version__, "pillow": Image.__version__, "numpy": np.__version__},
        "settings": {"side": SIDE, "batch": BATCH, "turns": arguments.turns, "repeated_epochs": REPEATED},
        "load_average_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "data": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        with zipfile.ZipFile(arguments.cats) as archive:
            archive.extractall(work / "small")
        large = large_jpegs(arguments.photos, work / "large", arguments.large)
        for name, folder in (("small pictures", work / "small"), ("large JPEGs", large)):
            sources, files = make_sources(folder, work / f"{folder.name}-sources")
            turns = [one_turn(sources, files, work / f"{folder.name}-cache", turn) for turn in range(arguments.turns)]
            rows = {}
            print(f"\n{name}: {len(files):,} files\n{'':<34}images/s   of the bare loop (range)")
            for arm in turns[0][0]:
                ratios = sorted(turn[1][arm] for turn in turns)
                rows[arm] = {
                    "images_per_second": round(statistics.median(turn[0][arm] for turn in turns)),
                    "of_bare_loop": round(statistics.median(ratios), 2),
                    "range": [round(ratios[0], 2), round(ratios[-1], 2)],
                }
                print(
                    f"{arm:<34}{rows[arm]['images_per_second']:>8,} {rows[arm]['of_bare_loop']:>10.2f} "
                    f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
                )
            result["data"][name] = {"files": len(files), "arms": rows}
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
