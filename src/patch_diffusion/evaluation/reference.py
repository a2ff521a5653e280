"""What samples are compared with: features of real images, made once and kept, or published statistics."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patch_diffusion.data.reading import cache
from patch_diffusion.data.reading.parallel import progress
from patch_diffusion.errors import InputError
from patch_diffusion.evaluation.distances import Gaussian, Moments
from patch_diffusion.evaluation.extractors.extractor import Extractor
from patch_diffusion.evaluation.stream import Stream

MOST_FEATURES = 50_000
"""Images whose features are kept, evenly over the data set; the moments are those of all."""

_VERSION = 1


@dataclass(frozen=True)
class Reference:
    """The Gaussian that fits the features of all images, and the ``features`` (m, d) of those at ``places`` (m,)."""

    gaussian: Gaussian
    features: Tensor
    places: Tensor


def reference_of(images: Stream, extractor: Extractor, *, show: bool = False) -> Reference:
    """Features of a data set, from the cache where the same images went through the same extractor before.

    Args:
        images: at least two.
        extractor: makes them; one without ``settings`` cannot be told from another, and leaves nothing in the cache.
        show: a progress bar, on a terminal.
    """
    if images.num < 2:
        raise InputError(f"a reference has at least two images, and there are {images.num}")
    places = torch.from_numpy(np.linspace(0, images.num - 1, min(images.num, MOST_FEATURES)).round().astype(np.int64))
    key = None
    if extractor.settings is not None:
        made_by = {"name": extractor.name, **extractor.settings}
        key = {"what": "features", "version": _VERSION, "images": images.digest(), "extractor": made_by}
        if entry := cache.find(key):
            return _of_entry(entry, places)
    if key is not None:
        # Where there is no room for it, or no place, it is made in memory and not kept.
        with contextlib.suppress(OSError, InputError):
            cache.cache_folder().mkdir(parents=True, exist_ok=True)
            making = _Making(images, extractor, places, show)
            return _of_entry(cache.make(key, making.write, num_bytes=making.num_bytes), places)
    making = _Making(images, extractor, places, show)  # another may have been gone through in part
    features = torch.cat(list(making.kept()))
    return Reference(making.moments.gaussian(), features, places)


def read_statistics(path: Path) -> Gaussian:
    """Published statistics: an ``.npz`` with ``mu`` (d,) and ``sigma`` (d, d), as EDM's references are.

    Raises:
        InputError: it does not hold them.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            mean, covariance = (torch.from_numpy(np.asarray(stored[name], np.float64)) for name in ("mu", "sigma"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except KeyError:
        raise InputError(f"{path} holds no reference statistics: arrays mu and sigma are expected") from None
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    if mean.ndim != 1 or len(mean) == 0 or covariance.shape != (len(mean), len(mean)):
        raise InputError(
            f"{path} holds no reference statistics: mu is {tuple(mean.shape)} and sigma {tuple(covariance.shape)}, and "
            "(d,) and (d, d) are expected"
        )
    return Gaussian(mean, covariance)


def is_statistics(path: Path) -> bool:
    """Whether a file holds statistics, and not images."""
    if path.suffix.lower() != ".npz" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return {"mu.npy", "sigma.npy"} <= set(archive.namelist())


class _Making:
    """Features as they come, and their moments when all have come."""

    def __init__(self, images: Stream, extractor: Extractor, places: Tensor, show: bool) -> None:
        self.moments = Moments()
        self._places = places
        parts = progress(map(images.part, range(images.num_parts)), images.num_parts, "reference features", show=show)
        self._coming = (extractor(batch) for part in parts for batch in part)
        self._first = next(self._coming)
        self._size = self._first.shape[1]

    @property
    def num_bytes(self) -> int:
        """On disk."""
        return 4 * len(self._places) * self._size + 8 * self._size * (self._size + 1)

    def kept(self) -> Iterator[Tensor]:
        """Features of the places, block by block; it can be gone through once."""
        wanted = self._places
        for features in chain([self._first], self._coming):
            start = self.moments.num
            self.moments.add(features)
            inside = wanted[(wanted >= start) & (wanted < start + len(features))] - start
            yield features[inside]

    def write(self, folder: Path) -> dict[str, Any]:
        """Into a folder of the cache."""
        cache.write_blocks(folder / "features.npy", (block.numpy() for block in self.kept()), (self._size,), "float32")
        gaussian = self.moments.gaussian()
        np.save(folder / "mean.npy", gaussian.mean.numpy())
        np.save(folder / "covariance.npy", gaussian.covariance.numpy())
        return {"num": gaussian.num}


def _of_entry(entry: cache.Entry, places: Tensor) -> Reference:
    mean, covariance = (entry.tensor(f"{name}.npy").clone() for name in ("mean", "covariance"))
    return Reference(Gaussian(mean, covariance, entry.facts["num"]), entry.tensor("features.npy"), places)
