"""Collections of the image files in a folder or a zip."""

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import IO

from PIL import Image

from patch_diffusion.config import Data
from patch_diffusion.data.classes import Labels
from patch_diffusion.data.files.collection import Collection, Files
from patch_diffusion.data.files.decode import NOT_READ, ImageFile
from patch_diffusion.data.reading.cache import digest, state_of
from patch_diffusion.data.reading.groups import groups_of_json, groups_of_names, is_column
from patch_diffusion.data.reading.labels import (
    LABELS_FILE,
    column_of_csv,
    could_be_classes,
    folder_around,
    labels_of_csv,
    labels_of_folders,
    labels_of_json,
)
from patch_diffusion.errors import InputError, option_error
from patch_diffusion.files import user_path

OpenFile = Callable[[str], IO[bytes]]

# Pillow lists these formats but cannot open them without an external program or a custom reader.
_ENCRYPTED = 0x1
_HIDDEN = re.compile(r"(^|/)(\.|__MACOSX)")
_NUMBERED = re.compile(r"(^|/)\d{5}/img\d{8}\.\w+$")  # as prepare and EDM's tools name images
_UNSAFE = re.compile(r"^([/\\]|[A-Za-z]:)|(^|[/\\])\.\.([/\\]|$)")  # absolute paths, and paths with ".."

_CONVERT = "not a kind of image that is read; convert them to PNG, TIFF or .npy"
_HINTS = {
    ".zip": "unpack it first",
    ".tar": "give the shards as wds:FOLDER/*.tar",
    ".npy": "give the array itself",
    ".npz": "give the array itself",
    ".h5": "give the file itself",
    ".hdf5": "give the file itself",
    ".arrow": "give the data set as hf:FOLDER",
    ".parquet": "give the data set as hf:FOLDER",
    **dict.fromkeys((".heic", ".heif", ".dcm", ".nii", ".nrrd", ".mha", ".czi", ".exr", ".dng", ".nef"), _CONVERT),
}


@cache
def image_endings() -> frozenset[str]:
    """Return the file extensions that Pillow can read, such as ".png"."""
    Image.init()
    known = Image.registered_extensions().items()
    return frozenset(ending for ending, kind in known if kind in Image.OPEN and kind not in NOT_READ)


def find_in_folder(path: Path, options: Data) -> Collection:
    """Collect all image files in a folder and its sub-folders, following symbolic links.

    Raises:
        InputError: there are no images, a folder may not be read, or the labels do not fit the images.
    """
    states = dict(_walk(path))
    names = sorted(states)
    images, notes = _images_among(names, options)
    labels, folders = _labels(images, names, lambda name: (path / name).open("rb"), options, notes)
    groups = _groups(images, names, lambda name: (path / name).open("rb"), options)
    # Files are opened by name, since making a Path first takes a tenth as long as decoding a small image.
    files = Files(len(images), lambda index: ImageFile(images[index], partial(open, f"{path}/{images[index]}", "rb")))
    identity = [str(path.resolve()), digest(*((name, states[name]) for name in images))]
    return Collection(options.source, files, labels, notes, identity, folders=folders, groups=groups)


@contextmanager
def find_in_zip(path: Path, options: Data) -> Iterator[Collection]:
    """Yield a collection of all image files in a zip, which stays open inside the with block.

    Raises:
        InputError: there are no images, an entry is encrypted or points out of the zip, or the labels do not fit.
    """
    try:
        opened = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise InputError(f"{options.source} is damaged: {error}") from None
    except OSError as error:
        raise InputError(f"cannot read {options.source}: {error.strerror or error}") from None
    with opened as archive:
        entries = [info for info in archive.infolist() if not info.is_dir()]
        for info in entries:
            if _UNSAFE.search(info.filename):
                raise InputError(f"{options.source} has an entry that points out of it, {info.filename}: make it anew")
            if info.flag_bits & _ENCRYPTED:
                raise InputError(f"{options.source} needs a password for {info.filename}: unpack it, give the folder")
        names = sorted({info.filename for info in entries})
        images, notes = _images_among(names, options)
        if len(names) < len(entries):
            notes.append(f"{len(entries) - len(names):,} entries of the zip have a name twice: the last one counts")
        labels, folders = _labels(images, names, archive.open, options, notes)
        groups = _groups(images, names, archive.open, options)
        files = Files(len(images), lambda index: ImageFile(images[index], partial(archive.open, images[index])))
        yield Collection(options.source, files, labels, notes, state_of(path), folders=folders, groups=groups)


def _walk(path: Path) -> Iterator[tuple[str, tuple[int, int] | None]]:
    """Yield the path of each file in a folder, relative to it, and its size and modification time (None: a dead link).

    A folder is entered once, however many links lead to it.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot look into {error.filename}: {error.strerror}")

    entered = set()
    for folder, subfolders, files in os.walk(path, followlinks=True, onerror=refuse):
        place = Path(folder).stat()
        if (place.st_dev, place.st_ino) in entered:
            subfolders.clear()
            continue
        entered.add((place.st_dev, place.st_ino))
        subfolders.sort()
        inner = Path(folder).relative_to(path).as_posix()
        prefix = "" if inner == "." else f"{inner}/"
        for name in files:
            try:
                found = os.stat(f"{folder}/{name}")  # noqa: PTH116 - a Path takes ten times as long, of a million files
            except OSError:
                yield prefix + name, None
                continue
            if stat.S_ISREG(found.st_mode):
                yield prefix + name, (found.st_size, found.st_mtime_ns)


def _images_among(names: Sequence[str], options: Data) -> tuple[list[str], list[str]]:
    """Return the names of image files, and notes on others; hidden files, and macOS's own in zips, are ignored."""
    visible = [name for name in names if not _HIDDEN.search(name)]
    endings = image_endings()
    images, others = [], []
    for name in visible:
        (images if _ending(name) in endings else others).append(name)
    known = {LABELS_FILE, folder_around(images) + LABELS_FILE, options.labels}
    others = [name for name in others if name not in known]
    if not images:
        if not others:
            raise InputError(f"{options.source} is empty: give a folder or a zip of images")
        more = ", ..." if len(others) > 1 else ""
        hint = _HINTS.get(_ending(others[0].removesuffix(".gz")), "give a folder or a zip of images")
        raise InputError(f"{options.source} holds no images, only {others[0]}{more}: {hint}")
    if others:
        return images, [f"{len(others):,} files that are not images left aside (first: {others[0]})"]
    return images, []


def _ending(name: str) -> str:
    """Return the file extension in lower case, such as ".png"."""
    return "." + name.rpartition(".")[2].lower()


def _labels(
    images: Sequence[str], names: Sequence[str], open_file: OpenFile, options: Data, notes: list[str]
) -> tuple[Labels | None, tuple[str, ...]]:
    """Return the labels of images, None if they have none; and the sub-folders that could be classes, if asked for."""
    if options.labels is not None and options.classes is not False:
        with _open_csv(names, open_file, options) as stream:
            labels, more_notes = labels_of_csv(stream.read(), images, options.labels)
        notes += more_notes
        return labels, ()
    if options.classes is False:
        return None, ()
    around = folder_around(images)
    for folder in dict.fromkeys(("", around)):
        if folder + LABELS_FILE not in names:
            continue
        with open_file(folder + LABELS_FILE) as stream:
            found = labels_of_json(stream.read(), [name[len(folder) :] for name in images], options.source)
        if found is not None:
            return found, ()
        if all(map(_NUMBERED.search, images)):
            if options.classes:
                raise InputError(
                    f"{options.source} was prepared without classes, and its folders only hold a thousand images "
                    "each: prepare it anew, from images with a folder for each class"
                )
            return None, ()
    if options.classes:
        return labels_of_folders(images, options.source), ()
    return None, could_be_classes(images)


def _groups(images: Sequence[str], names: Sequence[str], open_file: OpenFile, options: Data) -> list[str] | None:
    if options.group is None:
        for folder in dict.fromkeys(("", folder_around(images))):
            if folder + LABELS_FILE in names:
                with open_file(folder + LABELS_FILE) as stream:
                    inside = [name[len(folder) :] for name in images]
                    return groups_of_json(stream.read(), inside, f"{LABELS_FILE} in {options.source}")
        return None
    if not is_column(options.group):
        return groups_of_names(images, options.group, options.source)
    if options.labels is None:
        raise option_error(
            "data.group",
            f"'{options.group}' is a column of the CSV that data.labels names, and there is none: give one, "
            "or the word folder, or a pattern of the name with parentheses",
        )
    with _open_csv(names, open_file, options) as stream:
        return column_of_csv(stream.read(), options.group, images, options.labels)[0]


def _open_csv(names: Sequence[str], open_file: OpenFile, options: Data) -> IO[bytes]:
    """Open the CSV of labels, which is a path of the user's or a file inside the data set."""
    assert options.labels is not None
    path = user_path(options.labels)
    if path.is_file():
        return path.open("rb")
    if options.labels in names:
        return open_file(options.labels)
    raise InputError(f"there is no file of labels at {options.labels}, nor in {options.source}", option="data.labels")
