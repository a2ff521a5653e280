"""Paired inputs of the images to sample: read, resized, and checked against what a model was trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from patch_diffusion.data.files.decode import ImageFile, decode_file, decode_labels, quiet, reason
from patch_diffusion.data.paired import PairedInput, around_of, shown_as
from patch_diffusion.data.small import small_input
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError
from patch_diffusion.files import user_path

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
OPTION = "paired"


class Inputs(NamedTuple):
    """The paired inputs of one image.

    ``pixels`` are those of each input, (c, h, w), None if it is not given; ``name`` is that of the first file, or "".
    """

    pixels: tuple[Tensor | None, ...]
    name: str = ""


def inputs_of(model: Denoiser, paired: Any, seeds: Sequence[int], resolution: tuple[int, ...]) -> Sequence[Inputs]:
    """Return the inputs of images with these seeds: one for all, or a list of one for each.

    Where several images have the same input, the seed is added to its name.

    Args:
        model: a model of pairs.
        paired: a picture as a path, a Pillow image, an array or tensor (c, h, w) or (h, w); for a model of several
            inputs a tuple of these in their order, or a dict by their names, in which an input may be missing or None.
        seeds: the seeds of the images.
        resolution: height and width of the images, to which inputs are resized.

    Raises:
        InputError: the model has no inputs, or one cannot be read, or has other channels or labels.
    """
    if not model.inputs:
        raise InputError("this model was trained without data.paired, so it takes no input images", option=OPTION)
    if isinstance(paired, list) and len(paired) != len(seeds):
        raise InputError(f"{len(seeds)} images need as many inputs, not {len(paired)}", option=OPTION)
    if isinstance(paired, list):
        found = [_read(model.inputs, each, resolution) for each in paired]
    else:
        found = [_read(model.inputs, paired, resolution)] * len(seeds)
    times = Counter(each.name for each in found)
    pairs = zip(found, seeds, strict=True)
    return [
        each._replace(name=f"{each.name}-{seed:06d}") if each.name and times[each.name] > 1 else each
        for each, seed in pairs
    ]


def shown(inputs: Sequence[PairedInput], chosen: Sequence[Inputs], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the ``inputs`` and ``around`` of `Conditions` for some images."""
    given = torch.tensor([[float(each is not None) for each in one.pixels] for one in chosen], device=device)
    encoded: list[Tensor] = []
    small: list[Tensor] = []
    like = next(each for one in chosen for each in one.pixels if each is not None)
    for place, about in enumerate(inputs):
        blank = torch.zeros(about.channels, *like.shape[1:])
        pixels = torch.stack([_given(one.pixels[place], blank) for one in chosen]).to(device)
        encoded.append(about.encode(pixels))
        small.append(small_input(about, pixels))
    return shown_as(encoded, given), around_of(small, given)


def _given(pixels: Tensor | None, blank: Tensor) -> Tensor:
    return blank if pixels is None else pixels.float()


def _read(inputs: Sequence[PairedInput], paired: Any, resolution: tuple[int, ...]) -> Inputs:
    names = [each.name for each in inputs]
    if isinstance(paired, Mapping):
        for name in paired:
            if name not in names:
                raise InputError(f"the model has no input '{name}', only {', '.join(names)}", option=OPTION)
        values = [paired.get(name) for name in names]
    else:
        values = list(paired) if isinstance(paired, tuple) else [paired]
    if len(values) != len(inputs):
        raise InputError(
            f"the model takes {len(inputs)} inputs, {', '.join(names)}, not {len(values)}: give None for a missing one",
            option=OPTION,
        )
    if all(each is None for each in values):
        raise InputError("no input image is given: leave paired out to sample without", option=OPTION)
    pairs = zip(inputs, values, strict=True)
    pixels = tuple(None if value is None else _pixels(about, value, resolution) for about, value in pairs)
    return Inputs(pixels, next((Path(value).stem for value in values if isinstance(value, str | Path)), ""))


def _pixels(about: PairedInput, value: Any, resolution: tuple[int, ...]) -> Tensor:
    """Return the pixels of one input, in the values that the model knows, of the given height and width."""
    name = str(value) if isinstance(value, str | Path) else about.name
    size = (resolution[0], resolution[1])
    if isinstance(value, str | Path):
        path = user_path(value)
        if not path.is_file():
            raise InputError(f"there is no file at {path}", option=OPTION)
        value = np.load(path, allow_pickle=False) if path.suffix.lower() == ".npy" else path
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        array = value[None] if value.ndim == 2 else value
        if array.ndim == 3 and len(array) != about.channels and array.shape[2] == about.channels:
            array = array.transpose(2, 0, 1)
        file = ImageFile(name, lambda: array.astype(_dtype(array)))
    else:
        file = ImageFile(name, partial(open, value, "rb") if isinstance(value, Path) else partial(_same, value))
    try:
        with quiet():
            if about.categories:
                pixels = decode_labels(file, size, "crop")
            else:
                pixels = decode_file(file, size, _MODES.get(about.channels, "RGB"))
    except Exception as error:  # Pillow may raise any exception on a broken file
        raise InputError(f"{name} cannot be read: {reason(error)}", option=OPTION) from None
    if len(pixels) != about.channels:
        raise InputError(
            f"{name} has {len(pixels)} channels, and the input {about.name} of this model has {about.channels}",
            option=OPTION,
        )
    _check_values(about, pixels, name)
    return torch.from_numpy(np.array(pixels).astype(np.float32))


def _same(value: Any) -> Any:
    return value


def _dtype(array: np.ndarray[Any, Any]) -> str:
    return array.dtype.name if array.dtype.name in ("uint8", "uint16") else "float32"


def _check_values(about: PairedInput, pixels: np.ndarray[Any, Any], name: str) -> None:
    if about.categories:
        unknown = sorted(set(np.unique(pixels).tolist()) - set(about.categories))
        if unknown:
            raise InputError(
                f"{name} has the label {unknown[0]}, which the model does not know: it knows "
                f"{', '.join(map(str, about.categories[:10]))}{', ...' if len(about.categories) > 10 else ''}",
                option=OPTION,
            )
    elif pixels.dtype.name != about.codec.get("dtype") and about.codec.get("dtype") != "float32":
        raise InputError(
            f"{name} has pixels of {pixels.dtype.name}, and the input {about.name} of this model "
            f"{about.codec['dtype']}: convert it",
            option=OPTION,
        )
