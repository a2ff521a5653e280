"""Streams of images to evaluate: sampled or read batch by batch as uint8, never all in memory at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patch_diffusion.data.attributes import by_name
from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.data.images import Images
from patch_diffusion.data.order import permute
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError
from patch_diffusion.sampling.generate import generate
from patch_diffusion.sampling.options import Sampling
from patch_diffusion.sampling.pictures import to_uint8


@dataclass(frozen=True)
class Stream:
    """A stream of ``num`` images as uint8 tensors (k, c, h, w), the same each time it is read.

    ``part`` returns chunk number i, at most ``batch`` images, as a list of tensors, one for each image size. ``some``
    returns the images of given indices once more. ``settings`` describe the images in a dict that JSON can store.
    """

    num: int
    part: Callable[[int], list[Tensor]]
    some: Callable[[Sequence[int]], list[Tensor]]
    settings: dict[str, Any] = field(default_factory=dict)
    batch: int = 64

    @property
    def num_parts(self) -> int:
        """The number of chunks, of at most ``batch`` images each, in the stream."""
        return -(-self.num // self.batch)

    def batches(self) -> Iterator[Tensor]:
        """Yield all images in order, as tensors (k, c, h, w), each of images of one size."""
        for number in range(self.num_parts):
            yield from self.part(number)

    def digest(self) -> str:
        """Return a digest of all pixels, in order, which does not depend on where the images were read from."""
        digest = hashlib.blake2b(digest_size=16)
        for images in self.batches():
            for image in images:
                digest.update(f"{tuple(image.shape)}".encode())
                digest.update(image.contiguous().numpy().data)
        return digest.hexdigest()


def stream_of_images(images: Images, num: int | None = None, *, seed: int = 0, batch: int = 64) -> Stream:
    """Return images of a data set as a stream: all in order, or ``num`` of them at random, chosen by the seed.

    They are shuffled because data sets are often sorted, say by class, and confidence intervals need mixed groups.

    Raises:
        InputError: the data set has fewer than ``num`` images, or holds latents.
    """
    codec = images.codec
    if not isinstance(codec, PixelCodec):
        raise InputError("latents cannot be compared with pixels: give the images that they were made of")
    total = len(images)
    if num is not None and num > total:
        raise InputError(f"there are {total:,} images, and {num:,} were asked for")
    places = np.arange(total, dtype=np.int64)
    if num is not None:
        places = permute(places[:num], total, seed, "evaluated")
    ends = np.cumsum([len(bucket) for bucket in images.buckets])

    def which_bucket(chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(ends, chosen, side="right")

    def read(chosen: NDArray[np.int64]) -> Iterator[Tensor]:
        """Yield the images of some indices in order, except that images of one size come together, in one tensor."""
        which = which_bucket(chosen)
        for number in np.unique(which):
            bucket = images.buckets[number]
            inside = chosen[which == number] - (ends[number] - len(bucket))
            yield to_uint8(bucket.batch(inside)[0], *codec.range)

    # The order in which images are yielded, so that `some` finds them again.
    chunks = [places[start : start + batch] for start in range(0, len(places), batch)]
    order = np.concatenate([chunk[np.argsort(which_bucket(chunk), kind="stable")] for chunk in chunks])

    def some(wanted: Sequence[int]) -> list[Tensor]:
        return [next(read(order[place : place + 1]))[0] for place in wanted]

    return Stream(len(places), lambda number: list(read(chunks[number])), some, {"images": len(places)}, batch)


def stream_of_model(
    model: Denoiser,
    seeds: Sequence[int],
    *,
    labels: Sequence[int] | None = None,
    conditions: Sequence[Mapping[str, Any]] | None = None,
    paired: Sequence[Any] | None = None,
    sampling: Sampling | None = None,
) -> Stream:
    """Return samples of a model, one per seed, as a stream, which generates them when they are read.

    ``labels`` are one per image; None: seed k gets class k mod classes if the model has classes. ``conditions`` are
    values by name, of each image, ``paired`` the input of each; None: they are not given.
    """
    if not isinstance(model.codec, PixelCodec) and not model.codec.can_decode:
        raise InputError("this model makes latents, and its VAE is not there to decode them: give --vae FOLDER")
    options = (sampling or Sampling()).settled(model)
    if options.compile:  # here, so that all batches, the last one too, go through one compiled network
        model, options = options.compiled(model)
    batch = options.batch

    def sampled(places: Sequence[int]) -> list[Tensor]:
        chosen = None if labels is None else [labels[place] for place in places]
        values = [] if conditions is None else [conditions[place] for place in places]
        shown = None if paired is None else [paired[place] for place in places]
        told: dict[str, Any] = {"labels": chosen, "conditions": by_name(model.columns, values), "paired": shown}
        samples = generate(model, [seeds[place] for place in places], options, **told)
        return [to_uint8(sample.pixels, *sample.range) for sample in samples]

    def part(number: int) -> list[Tensor]:
        return [torch.stack(sampled(range(number * batch, min((number + 1) * batch, len(seeds)))))]

    generate(model, [], options)  # raises an error now for options that do not suit the model
    made_with = options.settings(model, options.view(model), options.sigmas(model))
    settings = {"samples": len(seeds), "seeds": f"{seeds[0]}-{seeds[-1]}", **made_with}
    return Stream(len(seeds), part, sampled, settings, batch)
