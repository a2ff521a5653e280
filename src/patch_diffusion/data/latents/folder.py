"""Folders of precomputed latents: training needs no autoencoder, and sampling needs it only at the end.

``latents.npy`` (n, c, h, w) in float16 is memory-mapped. It holds the latents of an autoencoder without a posterior, or
the means of the posterior and, in as many more channels, its standard deviations, so that training samples a new latent
each time it visits an image. ``labels.npy`` holds the classes, and ``latents.json`` the rest: how latents are mapped to
model space, the autoencoder they come from, and the names of the classes. ``keys.npy`` and ``groups.npy`` are the
hashes by which images are held out, see `ImageSet`. ``latents.json`` is written last, so if it
exists, the folder is complete.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patch_diffusion.config import Data
from patch_diffusion.data.classes import occurring
from patch_diffusion.data.images import Images, ImageSet, Moments
from patch_diffusion.data.latents.autoencoder import Autoencoder, images_at_once
from patch_diffusion.data.latents.codec import STANDARD_DEVIATION, LatentCodec, codec_of
from patch_diffusion.data.reading.damage import damage_named
from patch_diffusion.data.reading.parallel import progress
from patch_diffusion.errors import InputError
from patch_diffusion.files import check_room, check_writable, read_json, sync, user_path, write_json

_FACTS, _LATENTS, _LABELS = "latents.json", "latents.npy", "labels.npy"
_KEYS, _GROUPS = "keys.npy", "groups.npy"
_STARTED = "started.json"
_FORMAT = 1
_TYPE = np.dtype("<f2")
_MEASURED_AT_ONCE = 256
_SECONDS_BETWEEN_SAVES = 30


@dataclass(frozen=True, eq=False)
class LatentSet(ImageSet):
    """An image set of latents: ``pixels`` are stored values, ``resolution`` and ``channels`` are those of latents."""

    codec: LatentCodec = field(kw_only=True)

    def __post_init__(self) -> None:
        stored = len(self.codec.mean) * (2 if self.codec.posterior else 1)
        if self.pixels.ndim != 4 or self.pixels.shape[1] != stored or not self.pixels.is_floating_point():
            raise InputError(
                f"these latents are floats (n, {stored}, height, width), "
                f"not {self.pixels.dtype} {tuple(self.pixels.shape)}"
            )
        if not self.pixels.numel():
            raise InputError("there are no latents, or none with any values")
        if self.labels is not None and len(self.labels) != len(self.pixels):
            raise InputError(f"{len(self.pixels):,} latents have {len(self.labels):,} labels")
        self._count_classes()

    @property
    def channels(self) -> int:
        """Channels of a latent, without the channels that store standard deviations of the posterior."""
        return len(self.codec.mean)

    @cached_property
    def moments(self) -> Moments:
        """The moments of latents in model space, whose mean is 0 and whose deviation is 0.5 by construction."""
        return Moments((0.0,) * self.channels, STANDARD_DEVIATION**2)


def is_latents(path: str | Path) -> bool:
    """True if a folder holds precomputed latents, complete or not."""
    return any((Path(path) / name).exists() for name in (_FACTS, _STARTED))


def open_latents(
    path: str | Path, *, vae: str | Path | None = None, classes: bool | None = None, options: Data | None = None
) -> LatentSet:
    """Open a folder of latents that `encode_latents` has made, as an image set of memory-mapped latents.

    Args:
        path: the folder.
        vae: folder of an autoencoder to decode samples with, in place of the one that made the latents.
        classes: False ignores the labels; True requires them.
        options: the data options that the user gave, which become ``options`` of the image set.

    Raises:
        InputError: there are no latents, or they are incomplete or damaged.
    """
    path = user_path(path)
    if not (path / _FACTS).exists():
        if (path / _STARTED).exists():
            raise InputError(f"the latents in {path} are not complete: make them with the same command again")
        raise InputError(f"there are no latents at {path}: no {_FACTS}")
    facts = read_json(path / _FACTS)
    with damage_named(f"the latents in {path}", "are damaged"):
        if facts["format"] != _FORMAT:
            raise InputError(f"the latents in {path} are of format {facts['format']}, not {_FORMAT}: make them anew")
        codec = codec_of(facts["codec"])
        names, (height, width) = tuple(facts["class_names"]), facts["resolution"]
        # Copy-on-write, so that writing to the tensor does not change the file: torch has no read-only tensors.
        stored = torch.from_numpy(np.load(path / _LATENTS, mmap_mode="c"))
        labels = None
        if (path / _LABELS).exists():
            numbers, names = occurring(np.load(path / _LABELS), names)
            labels = torch.from_numpy(numbers)
        keys, groups = (np.load(path / name) if (path / name).exists() else None for name in (_KEYS, _GROUPS))
    if not isinstance(codec, LatentCodec):
        raise InputError(f"the latents in {path} are damaged: their codec is one of pixels")
    if classes and labels is None:
        raise InputError(f"the latents in {path} have no classes: make them from images that have, with data.classes")
    if vae is not None:
        codec = codec.decoded_by(vae)
    if classes is False:
        labels, names = None, ()
    latents = f"{codec.factor}-fold latents of {len(codec.mean)} channels, of {height}x{width} images"
    options, mirrored = options or Data(str(path)), facts.get("twins", 1)
    return LatentSet(
        stored,
        labels,
        names,
        options,
        (latents,),
        codec=codec,
        file=path / _LATENTS,
        mirrored=mirrored,
        keys=keys,
        groups=groups,
    )


def encode_latents(
    images: Images,
    vae: str | Path,
    out: str | Path,
    *,
    flips: bool = False,
    device: torch.device | str = "cpu",
    show: bool = False,
) -> LatentSet:
    """Encode all images to latents in a folder; an interrupted call is resumed by the same call.

    Args:
        images: images of one size, a multiple of the autoencoder's factor. Grey images are repeated over the channels
            of an autoencoder that takes three.
        vae: folder of an AutoencoderKL or AutoencoderDC of diffusers, with weights in safetensors.
        out: the folder to make.
        flips: if true, also encode the mirrored images, after the others. Mirroring a latent does not give the latent
            of the mirrored image, so this is how latents are augmented.
        device: the device that the autoencoder runs on.
        show: if true, show a progress bar on a terminal.

    Raises:
        InputError: the size or channels of the images do not fit, ``out`` holds other data, or the disk is full.
    """
    if not isinstance(images, ImageSet) or isinstance(images, LatentSet):
        kind = "latents already" if isinstance(images, LatentSet) else "images of several sizes"
        raise InputError(f"latents are made of images of one size, and these are {kind}")
    autoencoder, out = Autoencoder(vae), user_path(out)
    check_writable(out)
    _check_images(images, autoencoder)
    height, width = (side // autoencoder.factor for side in images.resolution)
    channels = autoencoder.latent_channels * (2 if autoencoder.posterior else 1)
    shape = (len(images) * (2 if flips else 1), channels, height, width)
    facts = {"format": _FORMAT, "vae": autoencoder.digest, "shape": list(shape), "images": _digest(images)}
    if images.groups is not None:
        facts["groups"] = images.options.group
    if (out / _FACTS).exists():
        if read_json(out / _FACTS).get("made_of") != facts:
            raise InputError(f"{out} holds other latents: choose another folder, or remove it")
        return open_latents(out)
    done = _start(out, facts, shape)
    with (out / _LATENTS).open("r+b") as file:
        _skip(file, shape, done)
        try:
            saved = time.monotonic()
            for latents in _made(images, autoencoder, range(done, shape[0]), torch.device(device), show):
                # The file is written and not mapped, so that a full disk raises an error and does not kill the process.
                file.write(latents.numpy().astype(_TYPE, copy=False).tobytes())
                done += len(latents)
                if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                    _save(out, file, facts, done)
                    saved = time.monotonic()
        finally:
            _save(out, file, facts, done)

    mean, deviation = _statistics(np.load(out / _LATENTS, mmap_mode="r"), autoencoder)
    folder = str(autoencoder.folder.resolve())
    codec = LatentCodec(mean, deviation, autoencoder.posterior, autoencoder.factor, folder, autoencoder.digest)
    if images.labels is not None:
        np.save(out / _LABELS, images.labels.repeat(shape[0] // len(images)).numpy())
        sync(out / _LABELS)
    rows = images.rows(np.arange(len(images)))
    for name, values in ((_KEYS, images.content), (_GROUPS, images.groups)):
        if values is not None:
            np.save(out / name, values[rows])
            sync(out / name)
    content = {
        "format": _FORMAT,
        "codec": codec.as_dict(),
        "source": images.options.source,
        "resolution": list(images.resolution),
        "class_names": list(images.class_names),
        "twins": shape[0] // len(images),
        "made_of": facts,
    }
    write_json(out / _FACTS, content)
    (out / _STARTED).unlink()
    return open_latents(out)


def _check_images(images: ImageSet, autoencoder: Autoencoder) -> None:
    height, width = images.resolution
    factor, channels = autoencoder.factor, autoencoder.image_channels
    if height % factor or width % factor:
        raise InputError(
            f"the VAE makes one latent of {factor}x{factor} pixels, so height and width are multiples of {factor}, "
            f"not {height}x{width}: give such a resolution"
        )
    if images.channels != channels and (images.channels, channels) != (1, 3):
        raise InputError(f"the VAE takes images of {channels} channels, and these have {images.channels}")


def _digest(images: ImageSet) -> str:
    """Compute a digest of all pixels and labels of an image set, which costs little compared to encoding them."""
    facts = [len(images), images.codec.as_dict(), list(images.resolution), list(images.class_names)]
    digest = blake2b(json.dumps(facts).encode(), digest_size=16)
    for first in range(0, len(images), _MEASURED_AT_ONCE):
        chosen = np.arange(first, min(first + _MEASURED_AT_ONCE, len(images)))
        digest.update(images.batch(chosen)[0].contiguous().numpy().tobytes())
    if images.labels is not None:
        digest.update(images.labels.numpy().tobytes())
    return digest.hexdigest()


def _start(out: Path, facts: dict[str, Any], shape: tuple[int, ...]) -> int:
    """Create the folder of latents, or check one that was interrupted; return the number of finished latents."""
    if (out / _STARTED).exists():
        started = read_json(out / _STARTED)
        if started.get("made_of") != facts:
            raise InputError(f"{out} holds a part of other latents: choose another folder, or remove it")
        return int(started.get("done", 0))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} holds something else: choose a new or an empty folder")
    check_room(out, int(np.prod(shape)) * _TYPE.itemsize)
    out.mkdir(parents=True, exist_ok=True)
    (out / _LATENTS).touch()
    write_json(out / _STARTED, {"made_of": facts, "done": 0})
    return 0


def _skip(file: BinaryIO, shape: tuple[int, ...], done: int) -> None:
    """Write the .npy header and seek to the end of the finished latents; data after it will be overwritten."""
    header = {"descr": np.lib.format.dtype_to_descr(_TYPE), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    file.seek(done * int(np.prod(shape[1:])) * _TYPE.itemsize, os.SEEK_CUR)


def _save(out: Path, file: BinaryIO, facts: dict[str, Any], done: int) -> None:
    """Sync the file of latents to disk, and only then record the number of finished latents."""
    file.flush()
    os.fsync(file.fileno())
    write_json(out / _STARTED, {"made_of": facts, "done": done})


def _made(
    images: ImageSet, autoencoder: Autoencoder, places: range, device: torch.device, show: bool
) -> Iterator[Tensor]:
    """Yield the latents of images at given positions, in batches of float16 on the CPU; mirrored images come last."""
    height, width = images.resolution
    at_once = images_at_once(height * width)
    starts = range(places.start, places.stop, at_once)
    for start in progress(starts, len(starts), "making latents", show=show):
        positions = np.arange(start, min(start + at_once, places.stop))
        pixels = images.codec.encode(images.batch(positions % len(images))[0].to(device))
        mirrored = torch.from_numpy(positions >= len(images)).to(device)
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
        yield autoencoder.encode(pixels.expand(-1, autoencoder.image_channels, -1, -1)).half().cpu()


def _statistics(stored: NDArray[np.float16], autoencoder: Autoencoder) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute the mean and standard deviation of each latent channel over the data, and over the posterior if any."""
    channels = autoencoder.latent_channels
    first, second = np.zeros(channels), np.zeros(channels)
    for start in range(0, len(stored), _MEASURED_AT_ONCE):
        block = stored[start : start + _MEASURED_AT_ONCE].astype(np.float64)
        if not np.isfinite(block).all():
            raise InputError(f"the VAE in {autoencoder.folder} makes latents that are not finite numbers in float16")
        first += block[:, :channels].sum((0, 2, 3))
        second += np.square(block).sum((0, 2, 3)).reshape(-1, channels).sum(0)
    count = stored.size // stored.shape[1]
    mean, variance = first / count, second / count - (first / count) ** 2
    # A constant channel is not scaled, since its standard deviation is zero.
    deviation = np.sqrt(np.where(variance > 1e-12, variance, STANDARD_DEVIATION**2))
    return tuple(mean.tolist()), tuple(deviation.tolist())
