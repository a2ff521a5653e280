"""References that samples are compared with: cached features of real images, or published statistics."""

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
"""The maximum number of images whose features are kept, evenly spaced; mean and covariance are those of all images."""

_VERSION = 1


@dataclass(frozen=True)
class Reference:
    """Features of real images: a Gaussian fitted to all, and ``features`` (m, d) of images at indices ``places``."""

    gaussian: Gaussian
    features: Tensor
    places: Tensor


def reference_of(images: Stream, extractor: Extractor, *, show: bool = False) -> Reference:
    """Compute the features of a data set as a `Reference`, or read them from the cache of an earlier call.

    Args:
        images: at least two images.
        extractor: the feature extractor; one without ``settings`` cannot be identified, so its features are not cached.
        show: whether to show a progress bar, on a terminal.
    """
    if images.num < 2:
        raise InputError(f"a reference has at least two images, and there are {images.num}")
    places = torch.from_numpy(np.linspace(0, images.num - 1, min(images.num, MOST_FEATURES)).round().astype(np.int64))
    if extractor.settings is not None:
        made_by = {"name": extractor.name, **extractor.settings}
        key = {"what": "features", "version": _VERSION, "images": images.digest(), "extractor": made_by}
        if entry := cache.find(key):
            return _of_entry(entry, places)
        # Without disk space or a cache folder, the features are made in memory and not kept.
        with contextlib.suppress(OSError, InputError):
            cache.cache_folder().mkdir(parents=True, exist_ok=True)
            making = _Making(images, extractor, places, show)
            return _of_entry(cache.make(key, making.write, num_bytes=making.num_bytes), places)
    making = _Making(images, extractor, places, show)  # the first one may have been read in part
    features = torch.cat(list(making.kept()))
    return Reference(making.moments.gaussian(), features, places)


def read_statistics(path: Path) -> Gaussian:
    """Read a published mean ``mu`` (d,) and covariance ``sigma`` (d, d) of features from an ``.npz``, such as EDM's.

    Raises:
        InputError: the file is missing, is damaged, or lacks these arrays.
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
    """True if a file is an ``.npz`` with a mean ``mu`` and a covariance ``sigma`` of features, not with images."""
    if path.suffix.lower() != ".npz" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return {"mu.npy", "sigma.npy"} <= set(archive.namelist())


class _Making:
    """A single pass over real images that yields their features block by block and sums up mean and covariance."""

    def __init__(self, images: Stream, extractor: Extractor, places: Tensor, show: bool) -> None:
        self.moments = Moments()
        self._places = places
        parts = progress(map(images.part, range(images.num_parts)), images.num_parts, "reference features", show=show)
        self._coming = (extractor(batch) for part in parts for batch in part)
        self._first = next(self._coming)
        self._size = self._first.shape[1]

    @property
    def num_bytes(self) -> int:
        """The size in bytes of the features, the mean and the covariance on disk."""
        return 4 * len(self._places) * self._size + 8 * self._size * (self._size + 1)

    def kept(self) -> Iterator[Tensor]:
        """Yield the features (k, d) of the images to keep, block by block; works only once for each object."""
        wanted = self._places
        for features in chain([self._first], self._coming):
            start = self.moments.num
            self.moments.add(features)
            inside = wanted[(wanted >= start) & (wanted < start + len(features))] - start
            yield features[inside]

    def write(self, folder: Path) -> dict[str, Any]:
        """Write features, mean and covariance into a cache folder; return a dict with the number of images."""
        cache.write_blocks(folder / "features.npy", (block.numpy() for block in self.kept()), (self._size,), "float32")
        gaussian = self.moments.gaussian()
        np.save(folder / "mean.npy", gaussian.mean.numpy())
        np.save(folder / "covariance.npy", gaussian.covariance.numpy())
        return {"num": gaussian.num}


def _of_entry(entry: cache.Entry, places: Tensor) -> Reference:
    mean, covariance = (entry.tensor(f"{name}.npy").clone() for name in ("mean", "covariance"))
    return Reference(Gaussian(mean, covariance, entry.facts["num"]), entry.tensor("features.npy"), places)
