"""The subject of an evaluation: a model from a run folder, or pictures, with training and held-out images."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from patch_diffusion.config import Config
from patch_diffusion.data.digest import change_of, digest_of
from patch_diffusion.data.images import Images
from patch_diffusion.data.sources import open_images
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError
from patch_diffusion.files import user_path
from patch_diffusion.runs.folder import ModelFacts, RunFolder
from patch_diffusion.runs.model import load
from patch_diffusion.sampling.pictures import MODES

Source = str | os.PathLike[str]


@dataclass(frozen=True)
class Subject:
    """The model or pictures to evaluate, with the ``training`` images of the model and ``held_out`` images.

    ``reading`` holds the arguments of `open_images` that read other images in the same shape; ``notes`` tell the user
    how images were read.
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
    """Open a model or pictures to evaluate, and training and held-out images, and return them as one `Subject`.

    Args:
        source: a run folder or a checkpoint; pictures as `open_images` takes them; in Python also a model or images.
        data: the training images; None: the data that the config in the run folder names.
        held_out: images the model was not trained on; None: the share its training held out, if ``data`` is its data.
        device, ema_length, vae: options for loading the model of a run folder, see `load`.
        show: whether to show progress bars, on a terminal.

    Raises:
        InputError: the run folder or some images cannot be opened.
    """
    if isinstance(source, Denoiser):
        given = _reading_like(source.resolution, source.image_channels)
        return Subject("model", source, None, opened(data, given, show), opened(held_out, given, show), given)
    if not isinstance(source, str | os.PathLike):
        given = _reading_like(source.resolution, source.channels)
        return Subject("images", None, source, opened(data, given, show), opened(held_out, given, show), given)
    folder = _folder_of(source)
    if not folder.is_run():
        try:
            pictures = open_images(source, show=show)
        except InputError as error:
            raise error.reworded(f"{source} is no run (no config.json), and as images: {error}") from None
        given = _reading_like(pictures.resolution, pictures.channels)
        return Subject(str(source), None, pictures, opened(data, given, show), opened(held_out, given, show), given)
    config, facts = folder.read_config()
    model = load(source, device=device, ema_length=ema_length, vae=vae)
    training, own_held_out, notes = _training(folder, data, show)
    given = _reading_of(config, facts, own=False)
    outside = own_held_out if held_out is None else opened(held_out, given, show)
    return Subject(str(source), model, None, training, outside, given, tuple(notes))


def held_out_of(source: Source, *, show: bool = False) -> tuple[Images | None, tuple[str, ...]]:
    """Return the images that a run held out of its data (None if it held out none), and notes for the user."""
    _, held_out, notes = _training(_folder_of(source), None, show)
    return held_out, tuple(notes)


def reading_for(source: Source | Denoiser) -> dict[str, Any]:
    """Return the arguments of `open_images` that read other images in the shape of those of a run, or of a model."""
    if isinstance(source, Denoiser):
        return _reading_like(source.resolution, source.image_channels)
    return _reading_of(*_folder_of(source).read_config(), own=False)


def _folder_of(source: Source) -> RunFolder:
    path = user_path(source)
    return RunFolder(path.parent.parent if path.parent.name == "checkpoints" else path)


def _training(
    folder: RunFolder, data: Source | Images | None, show: bool
) -> tuple[Images | None, Images | None, list[str]]:
    """Return the training images of a run folder, its held-out images (None if unknown), and notes for the user."""
    config, facts = folder.read_config()
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
        if not own and facts.data_digest.get("content") == digest_of(images)["content"]:  # they are now elsewhere
            own, images = True, open_images(data, **_reading_of(config, facts, own=True), show=show)
    if not own:
        return images, None, []
    try:
        training, held_out = folder.hold_out(images, config.data.held_out or 0.0, config.seed)
    except InputError:
        return images, None, ["these images cannot be split as in training: all of them count as training images"]
    if change := change_of(facts.data_digest, digest_of(images)):
        return training, held_out, [f"the data have changed since the run was trained: {change}"]
    if facts.data_digest or len(training) == facts.num_images:
        return training, held_out, []
    note = (
        f"the run was trained on {facts.num_images:,} images, but this data would give it {len(training):,}: all of "
        "them count as training images"
    )
    return images, None, [note]


def _reading_of(config: Config, facts: ModelFacts, *, own: bool) -> dict[str, Any]:
    """Return arguments of `open_images`: those of the training if ``own``, else some that give images of its shape."""
    options, codec = config.data, facts.codec
    if options.range is None and codec.get("dtype") == "float32" and "low" in codec:  # that of the training
        options = replace(options, range=(codec["low"], codec["high"]))
    if own:
        return {name: value for name, value in vars(options).items() if name not in ("source", "augment", "held_out")}
    factor = int(codec.get("factor", 1))
    height, width = facts.resolution
    given: dict[str, Any] = {"fit": options.fit, "range": options.range}
    if options.resolution is not None and factor == 1:
        given["resolution"] = options.resolution
    else:
        given["resolution"] = (height * factor, width * factor)
    is_picture = factor == 1 and codec.get("dtype") == "uint8"
    mode = MODES.get(facts.image_channels, "auto") if is_picture else options.mode
    return given | {"mode": mode}


def _reading_like(resolution: tuple[int, ...] | None, channels: int | None) -> dict[str, Any]:
    return {"resolution": resolution, "mode": MODES.get(channels or 0, "auto")}


def opened(data: Source | Images | None, how: dict[str, Any], show: bool) -> Images | None:
    """Open images by these arguments of `open_images`; images that are open already, and None, are returned."""
    if data is None or not isinstance(data, str | os.PathLike):
        return data
    return open_images(data, **how, show=show)
