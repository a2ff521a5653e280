"""Folders of samples: the pictures, and an index with the settings of each."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import Tensor

from patch_diffusion.errors import InputError
from patch_diffusion.files import read_json, write_json
from patch_diffusion.sampling.generate import Sample
from patch_diffusion.sampling.pictures import check_picture, picture_grid, write_picture, write_pixels

INDEX, MEAN = "samples.json", "mean"
MOST_IN_GRID = 100
_LOCK = ".samples.lock"


def write_samples(
    samples: Iterable[Sample],
    folder: str | Path,
    *,
    class_names: Sequence[str] = (),
    source: str = "",
    grid: str | Path | None = None,
    mean: bool = False,
) -> int:
    """Write samples as ``000000.png`` ... named by seed, and ``samples.json`` with seed, class and settings of each.

    Earlier samples in the folder stay, except those of the same seed. The index is written at the end, also after an
    interruption, and holds what other processes have added meanwhile.

    Args:
        samples: from `generate`.
        folder: the folder, which is created if it does not exist.
        class_names: names of the classes, for the index.
        source: the path of the model, for the index.
        grid: the path of a picture with the first 100 samples, sorted by class.
        mean: True to also write the mean of all these samples, as ``mean.png``.

    Returns:
        The number of pictures; several samples of one seed are one picture.

    Raises:
        InputError: ``folder`` is a file or has a samples.json of something else, or ``grid`` is not the name of a
            picture.

    >>> write_samples(generate(load("runs/digits"), seeds=range(2), steps=2), "pictures", grid="grid.png")
    2
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder for the pictures")
    if grid is not None:
        check_picture(grid)
    _entries(folder)  # raises before anything is made
    made: dict[int, dict[str, Any]] = {}
    shown: list[tuple[int, int, Tensor]] = []
    num, total, like = 0, None, None
    try:
        for num, sample in enumerate(samples, start=1):
            name = class_names[sample.label] if class_names and sample.label is not None else None
            made[sample.seed] = {
                "file": sample.save(folder).name,
                "seed": sample.seed,
                "class": sample.label,
                "class_name": name,
                "source": source,
                "settings": sample.settings,
            }
            if mean:
                like = sample.pixels
                total = like.double() if total is None else total + like
            if grid is not None and num <= MOST_IN_GRID:
                shown.append((sample.label or 0, sample.seed, sample.visible))
    finally:
        if made:
            with FileLock(folder / _LOCK):
                entries = _entries(folder) | made
                write_json(folder / INDEX, {"samples": [entries[seed] for seed in sorted(entries)]})
    if total is not None and like is not None:
        found = total / num
        write_pixels((found if like.is_floating_point() else found.round()).to(like.dtype), folder / MEAN)
    if grid is not None:
        write_picture(picture_grid([pixels for _, _, pixels in sorted(shown, key=lambda each: each[:2])]), grid)
    return len(made)


def written(folder: Path, seeds: Collection[int], *, mean: bool = False) -> list[Path]:
    """Return the files of a folder that samples of these seeds, and their mean if it is written, would replace."""
    if not folder.is_dir():
        return []
    pictures = [path for path in folder.iterdir() if path.suffix in (".png", ".npy")]
    return [
        path
        for path in pictures
        if (mean and path.stem == MEAN)
        or (path.stem.isdecimal() and path.stem == f"{int(path.stem):06d}" and int(path.stem) in seeds)
    ]


def _entries(folder: Path) -> dict[int, dict[str, Any]]:
    """Return the entries of a folder's index by seed; none if there is no index."""
    index = folder / INDEX
    if not index.exists():
        return {}
    samples = read_json(index).get("samples")
    if not isinstance(samples, list) or not all(
        isinstance(each, dict) and isinstance(each.get("seed"), int) for each in samples
    ):
        raise InputError(f"{index} is no index of samples: choose another folder, or move that file")
    return {each["seed"]: each for each in samples}
