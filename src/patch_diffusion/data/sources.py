"""Images from a folder, a zip, or the built-in digits."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import IO, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from patch_diffusion.config import Data, Mode
from patch_diffusion.data.decode import ImageFile, decode_files
from patch_diffusion.data.images import ImageSet
from patch_diffusion.errors import InputError

LABELS_FILE = "dataset.json"

OpenFile = Callable[[str], IO[bytes]]


def open_images(
    source: str | Path,
    *,
    resolution: int | tuple[int, int] | None = None,
    classes: bool | None = None,
    mode: Mode = "auto",
    show: bool = False,
) -> ImageSet:
    """Read all images of a data set into memory.

    Args:
        source: a folder (searched through all its sub-folders), a zip, or "digits", the 1,797 handwritten digits of
            the UCI repository as 16 x 16 grey images with 10 classes.
        resolution: side, or height and width, to crop (centred) and resize to. None: as they are, all of one size.
        classes: True asks for labels, from ``dataset.json`` (StyleGAN's and EDM's layout) or else the names of the
            sub-folders; False leaves them; None takes those of ``dataset.json`` and of the digits.
        mode: "L", "RGB", "RGBA", or "auto", see `decode_files`.
        show: a progress bar, on a terminal.

    Raises:
        InputError: nothing usable there; the sentence says what and how to mend it.

    >>> open_images("digits").resolution
    (16, 16)
    """
    options = Data(str(source), resolution, classes, mode)
    if mode not in get_args(Mode):
        raise InputError(f"data.mode is one of {', '.join(get_args(Mode))}, not '{mode}'")
    shape = (resolution, resolution) if isinstance(resolution, int) else resolution
    if shape is not None and min(shape) < 1:
        raise InputError(f"data.resolution is at least 1 pixel, not {resolution}")
    if str(source) == "digits":
        return replace(_digits(shape or (16, 16), mode, keep_labels=classes is not False), options=options)

    path = Path(source).expanduser()
    if path.is_dir():
        names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        return _read(names, lambda name: (path / name).open("rb"), shape, options, show)
    if not path.exists():
        raise InputError(f"there is no data at {source}: give a folder or a zip of images, or 'digits'")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{source} is neither a folder nor a zip of images")
    with zipfile.ZipFile(path) as archive:
        names = sorted(info.filename for info in archive.infolist() if not info.is_dir())
        return _read(names, archive.open, shape, options, show)


def _read(names: list[str], open_file: OpenFile, shape: tuple[int, int] | None, options: Data, show: bool) -> ImageSet:
    """Decode the images among the names and give them their labels."""
    visible = [
        name for name in names if not any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)
    ]
    Image.init()
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    images = [name for name in visible if PurePosixPath(name).suffix.lower() in endings]
    others = [name for name in visible if name not in set(images) and name != LABELS_FILE]
    if not images:
        found = f"holds no images, only {others[0]}" + (", ..." if len(others) > 1 else "") if others else "is empty"
        raise InputError(f"{options.source} {found}: give a folder or a zip of images")

    labels, class_names = _labels(images, visible, open_file, options)
    files = [ImageFile(name, partial(open_file, name)) for name in images]
    decoded = decode_files(files, shape, options.mode, show=show)
    notes = decoded.notes
    if others:
        notes.append(f"{len(others):,} files that are not images left aside (first: {others[0]})")
    return ImageSet(
        torch.from_numpy(decoded.pixels),
        None if labels is None else torch.from_numpy(labels[decoded.kept]),
        class_names,
        options,
        tuple(notes),
    )


def _labels(
    images: Sequence[str], names: Sequence[str], open_file: OpenFile, options: Data
) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    if options.classes is False:
        return None, ()
    if LABELS_FILE in names:
        with open_file(LABELS_FILE) as stream:
            found = _read_labels_file(stream.read(), options.source)
        if found:
            missing = [name for name in images if name not in found]
            if missing:
                raise InputError(
                    f"{LABELS_FILE} in {options.source} has no label for {len(missing):,} of {len(images):,} images "
                    f"(first: {missing[0]}): add them, or set data.classes to False"
                )
            return np.array([found[name] for name in images], np.int64), ()
    if not options.classes:
        return None, ()
    folders = [PurePosixPath(name).parts[0] if "/" in name else "" for name in images]
    if "" in folders:
        raise InputError(
            f"classes are the names of the sub-folders, but {images[folders.index('')]} in {options.source} is in none"
        )
    class_names = tuple(sorted(set(folders)))
    return np.array([class_names.index(folder) for folder in folders], np.int64), class_names


def _read_labels_file(content: bytes, source: str) -> dict[str, int]:
    """The labels of a ``dataset.json``: ``{"labels": [["00000/img00000000.png", 6], ...]}``, or null for none."""
    try:
        entries = json.loads(content).get("labels") or []
        labels = {str(name).replace("\\", "/"): label for name, label in entries}
    except (ValueError, TypeError, AttributeError):
        raise InputError(f'{LABELS_FILE} in {source} is not of the form {{"labels": [["a.png", 0], ...]}}') from None
    wrong = [name for name, label in labels.items() if type(label) is not int or label < 0]
    if wrong:
        raise InputError(
            f"{LABELS_FILE} in {source}: the label of {wrong[0]} is {labels[wrong[0]]!r}, not a class number"
        )
    return labels


def _digits(shape: tuple[int, int], mode: str, keep_labels: bool) -> ImageSet:
    """The test set of Alpaydin and Kaynak's Optical Recognition of Handwritten Digits, enlarged from 8 x 8."""
    with resources.files("patch_diffusion.data").joinpath("digits.npz").open("rb") as stream, np.load(stream) as arrays:
        small, labels = arrays["images"], arrays["labels"].astype(np.int64)
    height, width = shape
    mode = "L" if mode == "auto" else mode
    pixels = [
        np.asarray(
            Image.fromarray((digit * (255 / 16)).round().astype(np.uint8))
            .resize((width, height), Image.Resampling.BICUBIC)
            .convert(mode)
        ).reshape(height, width, -1)
        for digit in small
    ]
    return ImageSet(
        torch.from_numpy(np.stack(pixels).transpose(0, 3, 1, 2).copy()),
        torch.from_numpy(labels) if keep_labels else None,
        tuple("0123456789") if keep_labels else (),
    )
