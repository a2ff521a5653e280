"""Folders of samples: the pictures, and an index with the settings of each."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError
from patch_diffusion.files import append_text, check_writable, read_json, to_json, write_json
from patch_diffusion.sampling.generate import Job, Sample
from patch_diffusion.sampling.pictures import check_picture, picture_grid, write_picture, write_pixels

INDEX, MEAN = "samples.json", "mean"
NEW = "samples.jsonl"
"""The entries of pictures that are not in the index yet, a line each, so that a writer that is killed loses none."""

MOST_IN_GRID = 100
_LOCK = ".samples.lock"


def write_samples(
    samples: Iterable[Sample],
    folder: str | Path,
    *,
    class_names: Sequence[str] = (),
    source: str = "",
    weights: str = "",
    step: int | None = None,
    ema_length: float | None = None,
    grid: str | Path | None = None,
    mean: bool = False,
) -> int:
    """Write samples as ``000000.png`` ... named by seed, and ``samples.json`` with seed, class and settings of each.

    Earlier samples in the folder stay, except those of the same seed. The index is written at the end, also after an
    interruption, and holds what other processes have added meanwhile; until then new entries are in ``samples.jsonl``,
    where the next call finds them if this process is killed. Each PNG carries its own entry, see `metadata_of`, of
    absolute paths the names only.

    Args:
        samples: from `generate`.
        folder: the folder, which is created if it does not exist.
        class_names: names of the classes, for the index.
        source: the path of the model, for the index.
        weights: the digest of its weights, see `digest_of`, for the index; "" for none.
        step: the training step of its weights, for the index; None if it is not known.
        ema_length: the length of its weight average, for the index; None for the average that every run has.
        grid: the path of a picture with the first 100 samples, sorted by class.
        mean: True to also write the mean of all these samples, as ``mean.png``.

    Returns:
        The number of pictures; several samples of one seed are one picture.

    Raises:
        InputError: before the first sample is made, if ``folder`` is a file or has a samples.json of something else,
            ``grid`` is not the name of a picture, or one of them cannot be written.

    >>> write_samples(generate(load("runs/digits"), seeds=range(2), steps=2), "pictures", grid="grid.png")
    2
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder for the pictures")
    check_writable(folder)
    if grid is not None:
        check_picture(grid)
    _entries(folder)  # raises before anything is made
    made: set[int | str] = set()
    shown: list[tuple[int, int, Tensor]] = []
    num, total, like = 0, None, None
    try:
        for num, sample in enumerate(samples, start=1):
            name = class_names[sample.label] if class_names and sample.label is not None else None
            entry = {"seed": sample.seed, "class": sample.label, "class_name": name, **sample.told, "source": source}
            more = {"weights": weights or None, "step": step, "ema_length": ema_length}
            entry |= {name: value for name, value in more.items() if value is not None}
            entry |= {"name": sample.name} if sample.name else {}
            entry["settings"] = sample.settings
            entry = {"file": sample.save(folder, _without_places(entry)).name, **entry}
            with FileLock(folder / _LOCK):
                append_text(folder / NEW, to_json(entry, lines=False) + "\n")
            made.add(sample.name or sample.seed)
            if mean:
                like = sample.pixels
                total = like.double() if total is None else total + like
            if grid is not None and num <= MOST_IN_GRID:
                shown.append((sample.label or 0, sample.seed, sample.visible))
    finally:
        if (folder / NEW).exists():
            with FileLock(folder / _LOCK):
                entries = _entries(folder)
                write_json(
                    folder / INDEX,
                    {"samples": [entries[key] for key in sorted(entries, key=lambda key: (isinstance(key, str), key))]},
                )
                (folder / NEW).unlink(missing_ok=True)
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


def digest_of(model: Denoiser, guide: str | Denoiser = "class") -> str:
    """Return a digest of the weights and codec of a model, and of a guide if that is one, for the index of samples."""
    digest = blake2b(digest_size=8)
    for each in (model, *([] if isinstance(guide, str) else [guide])):
        digest.update(to_json(each.codec.as_dict()).encode())
        for name, tensor in sorted(each.module.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def already_there(folder: str | Path, jobs: Iterable[Job], *, settings: Mapping[str, Any], weights: str) -> set[int]:
    """Return the seeds of those jobs whose pictures are in a folder, as they are asked for, from the same weights."""
    folder = Path(folder)
    entries = _entries(folder)
    wanted = json.loads(to_json(settings))

    def is_there(job: Job) -> bool:
        found = entries.get((job.paired.name if job.paired else "") or job.seed, {})
        told = (found.get("class"), found.get("conditions", {}), found.get("settings"), found.get("weights"))
        as_asked = told == (job.label, job.conditions, wanted, weights)
        return as_asked and (folder / str(found.get("file"))).is_file()

    return {job.seed for job in jobs if is_there(job)}


def _entries(folder: Path) -> dict[int | str, dict[str, Any]]:
    """Return the entries of a folder's index by name or seed, and those not in it yet; none if there is no index."""
    index, new = folder / INDEX, folder / NEW
    samples = read_json(index).get("samples") if index.exists() else []
    if not isinstance(samples, list) or not all(map(_is_entry, samples)):
        raise InputError(f"{index} is no index of samples: choose another folder, or move that file")
    lines: list[str] = []
    # Another writer may put it into the index and remove it meanwhile. Callers refuse a folder that is a file.
    with suppress(FileNotFoundError, NotADirectoryError):
        lines = new.read_text(encoding="utf-8", errors="replace").splitlines()
    samples += [entry for line in lines if _is_entry(entry := _parsed(line))]
    return {each.get("name") or each["seed"]: each for each in samples}


def _is_entry(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("seed"), int)


def _parsed(line: str) -> Any:
    """Return the JSON value of a line; None if a writer was killed while it wrote the line."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _without_places(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry with the names alone of absolute paths: a picture may be shown to others."""

    def public(value: Any) -> Any:
        is_path = isinstance(value, str) and Path(value).is_absolute()
        return (
            "/".join(Path(value).parts[-3 if Path(value).parent.name == "checkpoints" else -1 :]) if is_path else value
        )

    return {**{name: public(value) for name, value in entry.items()},
            "settings": {name: public(value) for name, value in entry["settings"].items()}}  # fmt: skip
