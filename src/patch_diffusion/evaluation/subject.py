"""What is evaluated, and beside which images: a run or pictures, its training images, others that are held out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patch_diffusion.config import Config
from patch_diffusion.data.images import Images, hold_out
from patch_diffusion.data.sources import open_images
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError
from patch_diffusion.files import user_path
from patch_diffusion.runs.folder import ModelFacts, RunFolder
from patch_diffusion.runs.model import load

Source = str | os.PathLike[str]

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Subject:
    """A ``model``, or ``pictures``; what it was trained on, ``training``, and what it was not, ``held_out``.

    ``reading``: the options with which others are opened to be of the same shape. ``notes`` are what the user should
    know of the reading.
    """

    name: str
    model: Denoiser | None
    pictures: Images | None
    training: Images | None
    held_out: Images | None
    reading: dict[str, Any]
    notes: tuple[str, ...] = ()


def open_subject(
    source: Source | Denoiser | Images,
    data: Source | Images | None,
    held_out: Source | Images | None,
    *,
    device: str = "auto",
    ema_length: float | None = None,
    vae: Source | None = None,
    show: bool = False,
) -> Subject:
    """Open what is evaluated.

    Args:
        source: a run or one of its checkpoints, pictures as `open_images` takes them; in Python also a model or images.
        data: images it was trained on; a run's own where None.
        held_out: images it was not trained on; where None, those that the run held out, if ``data`` is the run's own.
        device, ema_length, vae: for a run, see `load`.
        show: progress bars, on a terminal.

    Raises:
        InputError: something is not there.
    """
    if isinstance(source, Denoiser):
        given = _reading_like(source.resolution, source.image_channels)
        return Subject("model", source, None, _open(data, given, show), _open(held_out, given, show), given)
    if not isinstance(source, str | os.PathLike):
        given = _reading_like(source.resolution, source.channels)
        return Subject("images", None, source, _open(data, given, show), _open(held_out, given, show), given)
    path = user_path(source)
    folder = RunFolder(path.parent.parent if path.parent.name == "checkpoints" else path)
    if not folder.is_run():
        try:
            pictures = open_images(source, show=show)
        except InputError as error:
            raise InputError(f"{source} is no run (no config.json), and as images: {error}") from None
        given = _reading_like(pictures.resolution, pictures.channels)
        return Subject(str(source), None, pictures, _open(data, given, show), _open(held_out, given, show), given)
    config, facts = folder.read_config()
    model = load(source, device=device, ema_length=ema_length, vae=vae)
    training, own_held_out, notes = _training(config, facts, data, show)
    given = _reading_of(config, facts, own=False)
    outside = own_held_out if held_out is None else _open(held_out, given, show)
    return Subject(str(source), model, None, training, outside, given, tuple(notes))


def _training(
    config: Config, facts: ModelFacts, data: Source | Images | None, show: bool
) -> tuple[Images | None, Images | None, list[str]]:
    """Images that the run was trained on and those it held out, and what is to be said of them."""
    stored = config.data.source
    if data is None:
        if not stored:
            return None, None, []
        data = stored
    if not isinstance(data, str | os.PathLike):
        images, own = data, True
    else:
        own = bool(stored) and (Path(data).name == Path(stored).name)
        images = open_images(data, **_reading_of(config, facts, own=own), show=show)
    if not own:
        return images, None, []
    training, held_out = hold_out(images, config.data.held_out or 0.0, config.seed)
    if len(training) == facts.num_images:
        return training, held_out, []
    note = (
        f"the run was trained on {facts.num_images:,} images, and of this data it would have "
        f"{len(training):,}: all of it is taken as trained on"
    )
    return images, None, [note]


def _reading_of(config: Config, facts: ModelFacts, *, own: bool) -> dict[str, Any]:
    """How images are opened for a run: as in its training, or others brought to the same shape."""
    options = config.data
    codec = facts.codec
    if own:
        return {name: value for name, value in vars(options).items() if name not in ("source", "augment", "held_out")}
    factor = int(codec.get("factor", 1))
    height, width = facts.resolution
    given: dict[str, Any] = {"fit": options.fit, "range": options.range}
    if options.resolution is not None and factor == 1:
        given["resolution"] = options.resolution
    else:
        given["resolution"] = (height * factor, width * factor)
    mode = options.mode if factor > 1 else _MODES.get(facts.image_channels, "auto")
    return given | {"mode": mode}


def _reading_like(resolution: tuple[int, ...] | None, channels: int | None) -> dict[str, Any]:
    return {"resolution": resolution, "mode": _MODES.get(channels or 0, "auto")}


def _open(data: Source | Images | None, how: dict[str, Any], show: bool) -> Images | None:
    if data is None or not isinstance(data, str | os.PathLike):
        return data
    return open_images(data, **how, show=show)
