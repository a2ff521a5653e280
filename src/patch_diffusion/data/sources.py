"""Opening of data sets: images from files, arrays, shards, or data sets of other libraries."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args, overload

import numpy as np
import torch
from typing_extensions import Unpack

from patch_diffusion.config import Augment, Cache, Data, Fit, Kind, Layout, Mode
from patch_diffusion.data import digits
from patch_diffusion.data.arrays.paired import pair_arrays
from patch_diffusion.data.arrays.read import read_array
from patch_diffusion.data.arrays.stored import StoredArray, in_memory, is_array, open_array
from patch_diffusion.data.files import hub, shards
from patch_diffusion.data.files.collection import Collection, read_collection
from patch_diffusion.data.files.folders import find_in_folder, find_in_zip, hint_for, image_endings
from patch_diffusion.data.files.map_style import array_of, find_in_map_style
from patch_diffusion.data.files.paired import pair
from patch_diffusion.data.images import Images, ImageSet
from patch_diffusion.data.latents.folder import is_latents, open_latents
from patch_diffusion.data.named import DIGITS, HUB, check_source, prefix_of
from patch_diffusion.data.reading.attributes import OPTION, attributes_of_rows
from patch_diffusion.data.reading.groups import check_group, is_column
from patch_diffusion.data.reading.sizes import resolution_of
from patch_diffusion.errors import InputError, option_error
from patch_diffusion.files import user_path

_CHOICES = {"mode": get_args(Mode), "fit": get_args(Fit), "layout": get_args(Layout), "cache": get_args(Cache)}
_CHOICES["paired_kind"] = get_args(Kind)

# Options that have a meaning for some kinds of sources only, by kind.
_FILES, _ARRAY = {"labels", "group", "conditions", "paired", "paired_kind"}, {"layout", "paired_kind"}
_TABLE, _ARRAY_FILE = {*_FILES, "key"}, {*_FILES, "key", "layout"}
_OBJECTS = {"labels", "group", "key", "layout", "paired_kind"}


class _Options(TypedDict, total=False):
    resolution: int | tuple[int, int] | None
    classes: bool | None
    mode: Mode
    range: tuple[float, float] | None
    labels: str | None
    conditions: str | Sequence[str] | Mapping[str, Any] | None
    paired: Any
    paired_kind: Kind
    group: str | None
    key: str | None
    layout: Layout
    cache: Cache
    show: bool


@overload
def open_images(
    source: Any, *, fit: Literal["crop", "stretch", "multiples"] = "crop", **options: Unpack[_Options]
) -> ImageSet: ...
@overload
def open_images(source: Any, *, fit: Fit, **options: Unpack[_Options]) -> Images: ...
def open_images(
    source: Any,
    *,
    resolution: int | tuple[int, int] | None = None,
    classes: bool | None = None,
    mode: Mode = "auto",
    fit: Fit = "crop",
    range: tuple[float, float] | None = None,
    labels: str | None = None,
    conditions: str | Sequence[str] | Mapping[str, Any] | None = None,
    paired: Any = None,
    paired_kind: Kind = "auto",
    group: str | None = None,
    key: str | None = None,
    layout: Layout = "auto",
    cache: Cache = "auto",
    show: bool = False,
) -> Images:
    """Open images to train on, from files, an array, or a data set of another library.

    Args:
        source: where the images are:

            - a folder (with all its sub-folders) or a zip of images that Pillow reads: 8-bit images, and grey images
              of 16 bits or floats; TIFF of every kind with tifffile; the grey pages of a TIFF are channels;
            - an ``.npy``, ``.npz``, ``.h5`` or ``.zarr`` of n x c x h x w, n x h x w x c or n x h x w numbers;
            - ``hf:NAME_OR_PATH`` or ``hf:NAME_OR_PATH:SPLIT``, a data set of the Hugging Face library on this machine;
            - ``wds:shards/*.tar``, WebDataset's tar files;
            - ``digits``, 1,797 handwritten digits of the UCI repository as 16 x 16 grey images with 10 classes;
            - in Python also an array, a tensor, a ``datasets.Dataset``, a list or ``torch.utils.data.Dataset`` of
              images or (image, label).
        resolution: side, or height and width, that images are resized to. None keeps their size, if all have the same.
        classes: True requires labels: those of the data, or else the names of sub-folders; False ignores labels; None
            uses the labels of the data (``dataset.json`` in StyleGAN's and EDM's layout, an array ``labels``, a column
            of classes, ``.cls``) if it has any.
        mode: channels that 8-bit images are converted to: "L", "RGB", "RGBA", or "auto", the smallest of these that
            keeps the channels all images have. "RGB16" keeps TIFF of 16 bits a colour, which "auto" reads as 8 bits.
        fit: how images are resized: "crop" (centred, to the aspect ratio, first), "stretch", or "bucket": each to the
            nearest of several shapes of about resolution^2 pixels, see `bucket_sizes`; "multiples" of earlier versions
            has the resolution itself only if it is a multiple of 16.
        range: the values that become -1 and 1 in model space. None: the range of an integer dtype, or the range found
            in the data for floats.
        labels: where the labels are: a CSV with columns ``file`` and ``label``, the name of an array or a column, a
            field of ``.json`` in shards, or an ``.npy`` file for an ``.npy``.
        conditions: what else a model is told of each image, see `Attribute`: a CSV with a column ``file``, then names
            of columns, by default all; for arrays ``.npy`` files or names of arrays in the same file, for tables names
            of columns; for images in Python a dict of values in their order. Numbers are continuous, words are not.
        paired: inputs to make images from, of the same names: a folder, a zip, an array, a column of a table, or
            several; for images in Python an array or a data set of as many images, or a dict of several.
        paired_kind: "image", "labels" for maps of categories, or "auto": labels if all inputs are palette images.
        group: which images are held out together: "folder", those of one folder; a pattern of the name with one pair of
            parentheses, as in ``patient-([0-9]+)``, those of which it captures the same; else a column of the CSV of
            labels, or the name of groups as ``labels`` names labels. None: as ``dataset.json`` says, if it has groups.
        key: the name of the array or column of images, or their extension in shards, if there are several.
        layout: where the channels of an array are: "channels_first", "channels_last", or "auto", by its shape.
        cache: "memory" holds decoded images in memory; "disk" keeps them in a folder under $PATCH_DIFFUSION_CACHE or
            the platform's cache folder, memory-maps them, and finds them there the next time; "auto" is "disk" for more
            than 128 MB and for sources that are slow to read. An ``.npy`` is mapped in place.
        show: if true, show a progress bar on a terminal.

    Returns:
        An `ImageSet`, or `ImageBuckets` if "bucket" results in several shapes.

    Raises:
        InputError: there are no usable images, or they are of several kinds; the error message says how to fix it.

    >>> open_images("digits").resolution
    (16, 16)
    """
    named = isinstance(source, (str, Path))
    values = conditions if isinstance(conditions, Mapping) else {}
    if values and named:
        raise option_error(OPTION, "by name are for images in Python: for files give a CSV with a column file")
    columns = [conditions] if isinstance(conditions, str) else [] if values else conditions
    options = Data(
        source=str(source) if named else "",
        resolution=resolution,
        classes=classes,
        mode=mode,
        fit=fit,
        range=range,
        labels=labels,
        conditions=tuple(columns) if columns else None,
        paired=tuple(map(str, by_name)) if (by_name := _names(paired)) else None,
        paired_kind=paired_kind,
        group=group,
        key=key,
        layout=layout,
        cache=cache,
    )
    if named:
        if paired is not None and not by_name:
            raise option_error("data.paired", "of images in files are named: a folder, a zip or an array")
        return open_data(options, show=show)
    others = {} if paired is None or by_name else paired if isinstance(paired, Mapping) else {"input": paired}
    return _open_object(source, options, values, others, show)


def open_data(options: Data, *, show: bool = False) -> Images:
    """Open the images of ``options.source``, which names them, as `open_images` does."""
    options = replace(_checked(options), augment=Augment(), held_out=None)  # these are for images that are open
    source, path = options.source, user_path(options.source)
    if source == DIGITS:
        _refuse_unknown(options, "the digits", set())
        if options.fit != "crop":
            raise option_error("data.fit", f"{options.fit} has no meaning for the digits: leave it out")
        return digits.read_digits(options)
    if prefix_of(source) is None and is_latents(path):  # a pattern of shards may be longer than a name of a file
        if options != Data(source, classes=options.classes):
            raise InputError(f"{source} holds latents, which only data.classes applies to: leave out all other options")
        return open_latents(path, classes=options.classes, options=options)
    if prefix_of(source) is None and is_array(path) and path.exists():
        _refuse_unknown(options, source, _ARRAY_FILE)
        with open_array(path, options) as stored, ExitStack() as stack:
            images = read_array(stored, options, show=show)
            inputs = {
                Path(name).stem: stack.enter_context(_input_array(name, options)) for name in options.paired or ()
            }
            return images if not inputs else pair_arrays(_of_one_size(images), inputs, options, show=show)
    with find_images(options, show=show) as found, find_inputs(options, show=show) as inputs:
        pairing = partial(pair, own=found, inputs=inputs, options=options, show=show) if inputs else None
        return read_collection(found, options, pairing, show=show)


@contextmanager
def find_inputs(options: Data, *, show: bool = False) -> Iterator[list[Collection]]:
    """Find the files of the paired inputs of images in files; yield a collection of each, open in the with block."""
    with ExitStack() as stack:
        yield [stack.enter_context(_input_files(name, options, show)) for name in options.paired or ()]


@contextmanager
def _input_array(name: str, options: Data) -> Iterator[StoredArray]:
    """Open the array of a paired input: that of a file, or another one in the file of the images."""
    path = user_path(name)
    own = Data(name, key=None) if is_array(path) and path.exists() else Data(options.source, key=name)
    with ExitStack() as stack:
        with _of_inputs():
            stored = stack.enter_context(open_array(user_path(own.source), own))
        yield stored


@contextmanager
def _input_files(name: str, options: Data, show: bool) -> Iterator[Collection]:
    """Find the files of a paired input: those of a folder, zip or shards, or a column of the table of the images."""
    column = options.source.startswith(HUB) and not user_path(name).exists() and prefix_of(name) is None
    own = Data(options.source if column else name, classes=False, key=name if column else None)
    with ExitStack() as stack:
        with _of_inputs():
            found = stack.enter_context(find_images(own, show=show))
        yield replace(found, source=name)


@contextmanager
def _of_inputs() -> Iterator[None]:
    """Say of each `InputError` in the with block that it is about the paired inputs, not about the images."""
    try:
        yield
    except InputError as error:
        raise InputError(f"data.paired: {error}", option="data.paired") from None


def _of_one_size(images: Images) -> ImageSet:
    assert isinstance(images, ImageSet)  # arrays have one size
    return images


def _names(paired: Any) -> list[str]:
    """Return paired inputs that are named; none if they are objects of Python."""
    several = [paired] if isinstance(paired, str | Path) else paired
    is_named = isinstance(several, list | tuple) and all(isinstance(each, str | Path) for each in several)
    return list(map(str, several)) if is_named else []


@contextmanager
def find_images(options: Data, *, show: bool = False) -> Iterator[Collection]:
    """Find the image files of a folder, a zip, ``hf:`` or ``wds:``; yield a collection of them, open in the with block.

    Raises:
        InputError: there are no files, or the source is an array or the digits, which do not consist of files.
    """
    options = _checked(options)
    source, path = options.source, user_path(options.source)
    prefix = prefix_of(source)
    _refuse_unknown(options, source, _FILES if prefix is None else _TABLE)
    check_source(source)
    if prefix is not None:
        name = source.removeprefix(prefix)
        if prefix == HUB:
            yield hub.find_in_hub(name, options)
        else:
            yield shards.find_in_shards(name, options, show=show)
    elif source == DIGITS or (is_array(path) and path.exists()):
        raise InputError(f"{source} does not consist of files")
    elif path.is_dir():
        yield find_in_folder(path, options)
    elif path.is_file() and zipfile.is_zipfile(path):
        with find_in_zip(path, options) as found:
            yield found
    else:
        raise InputError(_what_it_is_not(path, source))


def _open_object(
    source: Any, options: Data, conditions: Mapping[str, Any], inputs: Mapping[str, Any], show: bool
) -> Images:
    options = _checked(options)
    if isinstance(source, torch.Tensor):
        source = array_of(source)
    if isinstance(source, np.ndarray):
        _refuse_unknown(options, "an array", _ARRAY)
        images = read_array(in_memory(source, "the array"), options, conditions=conditions, show=show)
        arrays = {name: in_memory(_array_of(each, name), name) for name, each in inputs.items()}
        return pair_arrays(_of_one_size(images), arrays, options, show=show) if arrays else images
    if type(source).__module__.split(".")[0] == "datasets":
        _refuse_unknown(options, "a table", _TABLE)
        found = hub.collection_of(source, options)
    else:
        _refuse_unknown(options, "a data set", _OBJECTS)
        found = find_in_map_style(source, options, show=show)
    if conditions:
        attributes, notes = attributes_of_rows(conditions, len(found.files), found.source)
        found = replace(found, attributes=attributes, notes=[*found.notes, *notes])
    own = replace(Data(), layout=options.layout)
    others = [replace(find_in_map_style(each, own, show=show), source=name) for name, each in inputs.items()]
    for other in others:
        if len(other.files) != len(found.files):
            raise option_error(
                "data.paired",
                f"{other.source} has {len(other.files):,} images, and there are {len(found.files):,} to make",
            )
    pairing = partial(pair, own=found, inputs=others, options=options, show=show) if others else None
    return read_collection(found, options, pairing, show=show)


def _array_of(value: Any, name: str) -> np.ndarray[Any, Any]:
    """Return a paired input of images in an array, which must be one, too."""
    value = array_of(value) if isinstance(value, torch.Tensor) else value
    if not isinstance(value, np.ndarray):
        raise option_error(
            "data.paired", f"{name} is a {type(value).__name__}: images in an array have inputs in arrays"
        )
    return value


def _pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _checked(options: Data) -> Data:
    options = replace(options, resolution=_pair(options.resolution), range=_pair(options.range))
    if options.paired_kind != "auto" and options.paired is None and options.source:
        raise option_error(
            "data.paired_kind", "says what data.paired are, and there are none: give them, or leave it out"
        )
    for name, choices in _CHOICES.items():
        value = getattr(options, name)
        if value not in choices:
            raise option_error(f"data.{name}", f"is one of {', '.join(choices)}, not '{value}'")
    shape = resolution_of(options)
    pair = isinstance(shape, tuple) and len(shape) == 2 and all(isinstance(side, int) and side > 0 for side in shape)
    if shape is not None and not pair:
        raise option_error(
            "data.resolution", f"is a side, or height and width, of at least 1 pixel, not {options.resolution}"
        )
    if shape is None and options.fit != "crop":
        raise option_error("data.fit", f"{options.fit} needs data.resolution")
    if options.range is not None and not (isinstance(options.range, tuple | list) and len(options.range) == 2):
        raise option_error(
            "data.range", f"is two numbers, the values that are -1 and 1 in model space, not {options.range}"
        )
    if options.range is not None and not options.range[0] < options.range[1]:
        raise option_error("data.range", f"goes from a lower to a higher value, not from {options.range}")
    if options.group is not None:
        check_group(options.group)
    grouped = options.group is not None and is_column(options.group)  # in a column of the same CSV
    if options.labels is not None and options.classes is False and not grouped:
        raise option_error("data.labels", "says where the classes are, and data.classes False ignores them: give one")
    return options


def _refuse_unknown(options: Data, source: str, known: set[str]) -> None:
    for name in ("labels", "conditions", "paired", "paired_kind", "group", "key", "layout"):
        if name not in known and getattr(options, name) != getattr(Data, name):
            raise option_error(f"data.{name}", f"has no meaning for {source}: leave it out")


def _what_it_is_not(path: Path, source: str) -> str:
    if not path.is_file():
        return f"{source} is no file that can be read twice: give a folder, a zip or an array"
    try:
        path.open("rb").close()
    except OSError as error:
        return f"cannot read {source}: {error.strerror}"
    ending = path.suffix.lower()
    if ending == ".zip":
        return f"{source} is damaged: it is no complete zip"
    if ending == ".tar":
        return f"{source} is a tar of shards: give it as wds:{source}"
    if ending in image_endings():
        return f"{source} is one image: give the folder that it is in"
    hint = f": {found}" if (found := hint_for(path.name)) else ""
    return f"{source} is neither a folder nor a zip of images, nor an array (.npy, .npz, .h5, .zarr){hint}"
