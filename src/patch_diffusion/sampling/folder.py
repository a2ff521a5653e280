"""Folders of samples: the pictures, and an index with the settings of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from patch_diffusion.errors import InputError
from patch_diffusion.files import read_json, write_json
from patch_diffusion.sampling.generate import Sample
from patch_diffusion.sampling.pictures import check_picture, picture_grid, write_picture, write_pixels

MOST_IN_GRID = 100


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
    interruption.

    Args:
        samples: from `generate`.
        folder: the folder, which is created if it does not exist.
        class_names: names of the classes, for the index.
        source: the path of the model, for the index.
        grid: the path of a picture with the first 100 samples, sorted by class.
        mean: True to also write the mean of all these samples, as ``mean.png``.

    Returns:
        The number of samples.

    Raises:
        InputError: ``folder`` is a file, or ``grid`` is not the name of a picture.

    >>> write_samples(generate(load("runs/digits"), seeds=range(2), steps=2), "pictures", grid="grid.png")
    2
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder for the pictures")
    if grid is not None:
        check_picture(grid)
    index = folder / "samples.json"
    entries: dict[int, dict[str, Any]] = {}
    if index.exists():
        entries = {entry["seed"]: entry for entry in read_json(index).get("samples", [])}
    shown: list[tuple[int, int, Tensor]] = []
    num, total, like = 0, None, None
    try:
        for num, sample in enumerate(samples, start=1):
            name = class_names[sample.label] if class_names and sample.label is not None else None
            entries[sample.seed] = {
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
        if num:
            write_json(index, {"samples": [entries[seed] for seed in sorted(entries)]})
    if total is not None and like is not None:
        found = total / num
        write_pixels((found if like.is_floating_point() else found.round()).to(like.dtype), folder / "mean")
    if grid is not None:
        write_picture(picture_grid([pixels for _, _, pixels in sorted(shown, key=lambda each: each[:2])]), grid)
    return num
