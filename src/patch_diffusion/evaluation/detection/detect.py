"""Detection of what is unlike the training images: maps, a score for each image, and a threshold."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby, islice, product
from operator import itemgetter
from typing import Annotated as Float32, Annotated as Shaped, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from patch_diffusion.data.codec import PixelCodec
from patch_diffusion.data.images import Images
from patch_diffusion.data.reading.parallel import progress
from patch_diffusion.denoise.denoiser import Denoiser, evaluating
from patch_diffusion.denoise.threads import sharing
from patch_diffusion.errors import InputError, counted
from patch_diffusion.evaluation.detection.errors import levels_of, log_errors, medians, squared_errors
from patch_diffusion.evaluation.detection.named import Named, of_images, of_source
from patch_diffusion.evaluation.detection.options import DetectionOptions
from patch_diffusion.evaluation.detection.ordinary import (
    FEWEST,
    Ordinary,
    Threshold,
    folds_of,
    rate_for,
    scores_of,
    threshold_of,
)
from patch_diffusion.evaluation.subject import Source, held_out_of, reading_for
from patch_diffusion.runs.model import load
from patch_diffusion.sampling.tiles import even_starts, smooth_window
from patch_diffusion.transfer import to_device
from patch_diffusion.version import __version__

_MOST_VALUES = 2**28
"""The most numbers that are kept of the ordinary images; of more images the first ones are taken."""

_ALIKE = 4
"""The part of a tile's shorter side by which tiles overlap at least: one fourth, as in sampling."""


@dataclass(frozen=True)
class Finding:
    """A map of one image, and what follows from it.

    Args:
        name: the name of the image in its data set, or "image 0" and so on.
        map: how unlike the training images each pixel is, in deviations of ordinary images.
        score: the largest value of the map.
        alarm: True if the score is above the threshold.
        place: where the largest value is: the row and the column.
        pixels: the pixels (c, h, w) that were looked at.

    >>> finding = detect("runs/photos", "new").findings[0]  # doctest: +SKIP
    >>> finding.map[finding.place] == finding.score  # doctest: +SKIP
    True
    """

    name: str
    map: Float32[NDArray[np.float32], "*shape"]
    score: float
    alarm: bool
    place: tuple[int, ...]
    pixels: Shaped[Tensor, "c *shape"] = field(repr=False)


@dataclass(frozen=True)
class Detection:
    """The findings for all images, with the threshold, the settings and notes for the reader.

    >>> isinstance(detect("runs/photos", "new"), Detection)  # doctest: +SKIP
    True
    """

    findings: tuple[Finding, ...]
    threshold: Threshold
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Detector:
    """A model with what is ordinary for it; `open_detector` makes one."""

    model: Denoiser
    options: DetectionOptions
    ordinary: Ordinary
    threshold: Threshold
    settings: dict[str, Any]

    def findings(self, images: Named, *, show: bool = False) -> Iterator[Finding]:
        """Yield the finding of each image, in order."""
        pieces = _features(self.model, self.options, images)
        looked = groupby(pieces, key=itemgetter(0))
        for place, parts in progress(looked, len(images), "looking at images", show=show):
            parts = list(parts)
            found = _assembled(self.ordinary, [(corner, logs) for _, corner, logs in parts], images.shapes[place])
            score = float(scores_of(found[None])[0])
            where = np.unravel_index(int(found.argmax()), tuple(found.shape))
            alarm = score > self.threshold.value
            name, pixels = images.names[place], images.read(place)
            yield Finding(name, found.numpy(), score, alarm, tuple(map(int, where)), pixels)


def detect(
    source: Source | Denoiser,
    images: Source | Images,
    *,
    normal: Source | Images | None = None,
    options: DetectionOptions | None = None,
    show: bool = False,
) -> Detection:
    """Make maps of what is unlike the training images of a model.

    Each image is denoised at several noise levels, several times. Where it is further from what the model makes of it
    than ordinary images are at the same place, it is unlike them. A model with coordinates also notices what is
    ordinary elsewhere in the image.

    Args:
        source: a run folder or a checkpoint; in Python also a `Denoiser`.
        images: the images to look at: a folder, a zip, an array or one picture; in Python also images.
        normal: ordinary images that were not trained on; None: those that the run held out.
        options: see `DetectionOptions`; None: their defaults.
        show: progress bars on stderr, on a terminal.

    Raises:
        InputError: there are no or too few ordinary images, or images that the model does not take.

    >>> found = detect("runs/photos", "new")  # doctest: +SKIP
    >>> [finding.name for finding in found.findings if finding.alarm]  # doctest: +SKIP
    """
    with ExitStack() as stack:
        detector, looked_at, notes = open_detection(stack, source, images, normal, options, show=show)
        findings = tuple(detector.findings(looked_at, show=show))
    return Detection(findings, detector.threshold, detector.settings, notes)


def open_detection(
    stack: ExitStack,
    source: Source | Denoiser,
    images: Source | Images,
    normal: Source | Images | None = None,
    options: DetectionOptions | None = None,
    *,
    show: bool = False,
) -> tuple[Detector, Named, tuple[str, ...]]:
    """Return a detector, the images to look at, and notes for the user; files stay open as long as the stack.

    All that may be refused is asked first: then the ordinary images are denoised, which takes long.
    """
    how = options or DetectionOptions()
    how.check()
    reading = reading_for(source)
    model = source if isinstance(source, Denoiser) else load(source, device=how.device, ema_length=how.ema_length)
    _check_model(model)

    def opened(data: Source | Images) -> Named:
        if isinstance(data, str | os.PathLike):
            return stack.enter_context(of_source(data, model, reading, own_size=how.tiles, show=show))
        return of_images(data)

    looked_at, notes = opened(images), ()
    if normal is not None:
        ordinary = opened(normal)
    else:
        held_out, notes = (None, ()) if isinstance(source, Denoiser) else held_out_of(source, show=show)
        if held_out is None:
            raise InputError(
                "there are no held-out images to learn from what is ordinary: give images that were not trained on "
                "(--normal)",
                option="normal",
            )
        ordinary = of_images(held_out)
    _check_images(model, [looked_at, ordinary], how)
    if len(ordinary) < FEWEST:
        raise InputError(
            f"at least {FEWEST} ordinary images are needed, and there are {len(ordinary)}", option="normal"
        )
    levels = how.levels or levels_of(model)
    how = replace(how, levels=levels)
    most = max(FEWEST, _MOST_VALUES // (len(levels) * len(how.smoothing) * _num_values(model, ordinary)))
    if len(ordinary) > most:
        notes += (f"of the {len(ordinary):,} ordinary images the first {most:,} are used",)
        ordinary = ordinary.first(most)
    rate = rate_for(how.false_alarms, len(ordinary))
    if how.false_alarms is None and rate > 0.01:
        notes += (
            f"with {counted(len(ordinary), 'ordinary image')} the lowest rate of false alarms is {rate:.3g}: a rate of "
            "0.01 needs 99",
        )
    if (
        how.tiles
        and any(shape != model.resolution for shape in looked_at.shapes)
        and all(shape == model.resolution for shape in ordinary.shapes)
    ):
        notes += (
            "the ordinary images are single tiles, so the rate of false alarms is that of a tile: an image of k tiles "
            "has up to k times as many; give ordinary images of the same size as normal",
        )
    moments, threshold = _calibrated(model, how, ordinary, rate, show)
    settings = {
        **{name: value for name, value in asdict(how).items() if name != "device"},
        "false_alarms": rate,
        "threshold": threshold.value,
        "ordinary_images": threshold.images,
        "checked_false_alarms": threshold.checked,
        "device": str(model.device),
        "version": __version__,
        "torch": torch.__version__,
    }
    notes = tuple(dict.fromkeys([*notes, *looked_at.notes, *ordinary.notes]))
    return Detector(model, how, moments, threshold, settings), looked_at, notes


def _check_model(model: Denoiser) -> None:
    if not isinstance(model.codec, PixelCodec):
        raise InputError("this is a model of latents, which blur what an image has at a place: take a model of pixels")
    if model.context is not None:
        raise InputError(
            "this model was trained with patches.context: its small copy of the whole image would show it the defects"
        )
    if model.num_classes and not model.label_dropout:
        raise InputError("this model has learned images of a class only: train with network.label_dropout above 0")
    if model.resolution is None:
        raise InputError("this model does not know the resolution of its images: set its attribute resolution")


def _check_images(model: Denoiser, several: list[Named], options: DetectionOptions) -> None:
    for images in several:
        for name, shape in zip(images.names, images.shapes, strict=True):
            tiled = options.tiles and shape != model.resolution
            sides = (model.resolution or ()) if tiled else shape
            if any(side % model.stride for side in sides):
                raise InputError(f"{name}: its sides are no multiples of {model.stride}, as this network needs")
        channels = len(images.read(0))
        if channels != (model.image_channels or channels):
            raise InputError(f"this model has images of {model.image_channels} channels, not {channels}")


def _num_values(model: Denoiser, images: Named) -> int:
    return int(np.prod(model.resolution or images.shapes[0]))


def _calibrated(
    model: Denoiser, options: DetectionOptions, images: Named, rate: float, show: bool
) -> tuple[Ordinary, Threshold]:
    """Return what is ordinary by all images, and the threshold by their scores, each by the moments of others."""
    frame = model.resolution or images.shapes[0]
    owners, corners, kept, keys = [], [], [], []
    pieces = groupby(_features(model, options, images), key=itemgetter(0))
    for place, parts in progress(pieces, len(images), "ordinary images", show=show):
        keys.append(images.key(place, images.read(place)))
        for _, corner, logs in parts:
            owners.append(place)
            corners.append(corner)
            kept.append(_resized(logs, frame).half())
    logs, of_piece = torch.stack(kept), torch.tensor(owners)
    typical = medians(logs.float())
    folds = folds_of(np.array(keys, np.uint64))
    scores = np.empty(len(images))
    for fold in range(int(folds.max()) + 1):
        others = folds[of_piece] != fold
        moments = Ordinary.of(logs[others], typical[others])
        for place in torch.nonzero(folds == fold).flatten().tolist():
            parts = [(corners[piece], logs[piece].float()) for piece in torch.nonzero(of_piece == place).flatten()]
            scores[place] = float(scores_of(_assembled(moments, parts, images.shapes[place])[None])[0])
    return Ordinary.of(logs, typical), threshold_of(scores, (folds % 2 == 1).numpy(), rate)


Piece = tuple[int, tuple[int, ...], Tensor]
"""The place of an image, the corner of a tile in it, and the log errors (features, *shape) there, on the host."""


def _features(model: Denoiser, options: DetectionOptions, images: Named) -> Iterator[Piece]:
    """Yield the log errors of all images, whole or tile by tile, in order."""
    assert options.levels is not None

    def cut() -> Iterator[tuple[int, tuple[int, ...], Tensor]]:
        for place, shape in enumerate(images.shapes):
            pixels = images.read(place)
            tile = (model.resolution or shape) if options.tiles else shape
            for corner in _corners(shape, tile):
                window = tuple(slice(first, first + side) for first, side in zip(corner, tile, strict=True))
                yield place, corner, pixels[(slice(None), *window)]

    for _, alike in groupby(cut(), key=lambda piece: piece[2].shape):
        while together := list(islice(alike, options.batch)):
            with evaluating(model), sharing(model), torch.inference_mode():
                clean = model.codec.encode(to_device(torch.stack([pixels for *_, pixels in together]), model.device))
                errors = squared_errors(model, clean, options.levels, options.noises, options.seed)
                logs = log_errors(errors, options.smoothing, model.sigma_data).cpu()
            yield from ((place, corner, one) for (place, corner, _), one in zip(together, logs, strict=True))


def _corners(shape: tuple[int, ...], tile: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the first pixels of tiles that cover an image."""
    starts = (even_starts(side, own, min(tile) // _ALIKE) for side, own in zip(shape, tile, strict=True))
    return list(product(*starts))


def _assembled(
    ordinary: Ordinary, parts: list[tuple[tuple[int, ...], Tensor]], shape: tuple[int, ...]
) -> Float32[Tensor, "*shape"]:
    """Return the map of an image of the log errors of its tiles, which are blended where they overlap."""
    first = parts[0][1].shape[1:]
    mean, deviation = _resized(ordinary.mean, first), _resized(ordinary.deviation, first)
    like = replace(ordinary, mean=mean, deviation=deviation)
    maps = like.map(torch.stack([logs for _, logs in parts]))
    if len(parts) == 1:
        return maps[0]
    window = smooth_window(first, min(first) // _ALIKE).float()
    total, weight = torch.zeros(shape), torch.zeros(shape)
    for (corner, _), one in zip(parts, maps, strict=True):
        inside = tuple(slice(start, start + side) for start, side in zip(corner, first, strict=True))
        total[inside] += window * one
        weight[inside] += window
    return total / weight


def _resized(maps: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """Return maps (k, *shape) stretched over another shape; -1 and 1 stay the centres of the outer pixels."""
    if tuple(maps.shape[1:]) == tuple(shape):
        return maps
    return F.interpolate(maps[None], tuple(shape), mode="bilinear", align_corners=True)[0]
