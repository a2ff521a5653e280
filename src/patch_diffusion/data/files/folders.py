"""Collections of the image files in a folder or a zip."""

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import IO

from PIL import Image

from patch_diffusion.config import Data
from patch_diffusion.data.attributes import Attributes
from patch_diffusion.data.classes import Labels
from patch_diffusion.data.files.collection import Collection, Files
from patch_diffusion.data.files.decode import NOT_READ, ImageFile
from patch_diffusion.data.named import no_labels
from patch_diffusion.data.reading.attributes import OPTION, attributes_of_csv
from patch_diffusion.data.reading.cache import digest, state_of
from patch_diffusion.data.reading.damage import damage_named, read_labels, read_table
from patch_diffusion.data.reading.groups import groups_of_json, groups_of_names, is_column
from patch_diffusion.data.reading.labels import (
    LABELS_FILE,
    column_of_csv,
    could_be_classes,
    folders_around,
    labels_of_csv,
    labels_of_folders,
    labels_of_json,
    notes_of_folders,
    parts_of,
)
from patch_diffusion.data.reading.names import HIDDEN, plain, plain_names
from patch_diffusion.errors import InputError, counted, option_error
from patch_diffusion.files import user_path

OpenFile = Callable[[str], IO[bytes]]

_ENCRYPTED = 0x1
_LARGE_ENTRY, _MOST_PACKED = 2**26, 100  # bytes
_NUMBERED = re.compile(r"(^|/)\d{5}/img\d{8}\.\w+$")  # as prepare and EDM's tools name images
_UNSAFE = re.compile(r"^([A-Za-z]:)?[/\\]|(^|[/\\])\.\.([/\\]|$)")  # absolute paths, and paths with ".."

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
    "": "names without an ending, such as .png, are not taken for images; DICOM is converted to PNG, TIFF or .npy",
    **dict.fromkeys((".heic", ".heif", ".dng", ".nef", ".cr2", ".cr3", ".arw", ".exr", ".svg", ".pdf"), _CONVERT),
    **dict.fromkeys((".dcm", ".nii", ".nrrd", ".mha", ".mhd", ".czi", ".lif", ".mp4", ".mov", ".avi"), _CONVERT),
}


@cache
def image_endings() -> frozenset[str]:
    """Return the file extensions that Pillow can read, such as ".png"."""
    Image.init()
    known = Image.registered_extensions().items()
    # An MPO, the photo of a phone or of two lenses, begins with a JPEG, by whose reader it is opened.
    return frozenset(ending for ending, kind in known if kind == "MPO" or kind in Image.OPEN.keys() - NOT_READ)


def find_in_folder(path: Path, options: Data) -> Collection:
    """Collect all image files in a folder and its sub-folders, following symbolic links.

    Raises:
        InputError: there are no images, a folder may not be read, or the labels do not fit the images.
    """
    states = dict(_walk(path))
    names = plain_names(states)
    images, notes = _images_among(list(names), options)
    found = _Found(images, names, lambda name: (path / name).open("rb"), options)
    labels, folders = _labels(found, notes)
    attributes = _attributes(found, notes)
    # Files are opened by name, since making a Path first takes a tenth as long as decoding a small image.
    files = Files(
        len(images), lambda index: ImageFile(images[index], partial(open, f"{path}/{names[images[index]]}", "rb"))
    )
    identity = [str(path.resolve()), digest(*((names[name], states[names[name]]) for name in images))]
    groups = _groups(found, notes)
    return Collection(
        options.source, files, labels, notes, identity, folders=folders, groups=groups, attributes=attributes
    )


@contextmanager
def find_in_zip(path: Path, options: Data) -> Iterator[Collection]:
    """Yield a collection of all image files in a zip, which stays open inside the with block.

    Raises:
        InputError: there are no images, an entry is encrypted or points out of the zip, or the labels do not fit.
    """
    with damage_named(options.source):
        opened = zipfile.ZipFile(path)
    with opened as archive:
        entries = [info for info in archive.infolist() if not info.is_dir()]
        for info in entries:
            if _UNSAFE.search(info.filename):
                raise InputError(f"{options.source} has an entry that points out of it, {info.filename}: make it anew")
            if info.flag_bits & _ENCRYPTED:
                raise InputError(f"{options.source} needs a password for {info.filename}: unpack it, give the folder")
        names = plain_names(info.filename for info in entries)
        images, notes = _images_among(list(names), options)
        if len(names) < len(entries):
            notes.append(
                f"{len(entries) - len(names):,} entries of the zip have the name of another one: the last one of a "
                "name is used"
            )
        found = _Found(images, names, archive.open, options)
        labels, folders = _labels(found, notes)
        groups, attributes = _groups(found, notes), _attributes(found, notes)
        files = Files(
            len(images), lambda index: ImageFile(images[index], partial(_unpacked, archive, names[images[index]]))
        )
        # Earlier versions left these images out, or read them by other names.
        renamed = [names[name] for name in images if names[name] != name or _ending(name) == ".mpo"]
        identity = [*state_of(path), *([digest(*renamed)] if renamed else [])]
        yield Collection(
            options.source, files, labels, notes, identity, folders=folders, groups=groups, attributes=attributes
        )


def _unpacked(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open an entry of a zip, unless it is one that unpacks to a hundred times its size: no image does."""
    info = archive.getinfo(name)
    if info.file_size > _LARGE_ENTRY and info.file_size > _MOST_PACKED * info.compress_size:
        raise InputError(f"unpacks from {info.compress_size:,} to {info.file_size:,} bytes, and is no image")
    return archive.open(info)


@dataclass(frozen=True)
class _Found:
    """The plain names of the images in a data set, and of all files with those that they are opened by."""

    images: Sequence[str]
    names: Mapping[str, str]
    open_stored: OpenFile
    options: Data

    def read(self, name: str) -> bytes:
        """Return the content of a file of labels in the data set."""
        source = f"{name} in {self.options.source}"
        with damage_named(source):
            stream = self.open_stored(self.names[name])
        return read_labels(stream, source, len(self.images))

    def csv(self, file: str, option: str = "data.labels") -> bytes:
        """Return the content of a CSV, which is a path of the user's or a file inside the data set."""
        if user_path(file).is_file():
            return read_table(file, len(self.images))
        if plain(file) in self.names:
            return self.read(plain(file))
        raise no_labels(file, self.options.source, option)

    def labels_files(self) -> Iterator[tuple[str, Sequence[str]]]:
        """Yield each ``dataset.json`` in a folder around all images, the outermost first, and the names from there."""
        for folder in folders_around(self.images):
            if folder + LABELS_FILE in self.names:
                yield folder + LABELS_FILE, [name[len(folder) :] for name in self.images]


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
    visible = [name for name in names if not HIDDEN.search(name)]
    endings = image_endings()
    images, others = [], []
    for name in visible:
        (images if _ending(name) in endings else others).append(name)
    known = {folder + LABELS_FILE for folder in folders_around(images)}
    known |= {plain(file) for file in (options.labels, *(options.conditions or ())[:1]) if file}
    others = [name for name in others if name not in known]
    if not images and not others:
        if names:
            raise InputError(
                f"{options.source} holds hidden files only, which are left out (first: {names[0]}): rename them"
            )
        raise InputError(f"{options.source} is empty: give a folder or a zip of images")
    if not images:
        more = ", ..." if len(others) > 1 else ""
        hint = hint_for(others[0]) or "give a folder or a zip of images"
        raise InputError(f"{options.source} holds no images, only {others[0]}{more}: {hint}")
    notes = [f"skipped {counted(len(others), 'file')}: not images (first: {others[0]})"] if others else []
    if parts := parts_of(images):
        notes.append(f"the folders {' and '.join(parts)} are read together; to read one of them alone, give its path")
    return images, notes


def _ending(name: str) -> str:
    """Return the file extension in lower case, such as ".png"; "" if there is none."""
    stem, dot, ending = name.rpartition("/")[2].rpartition(".")
    return dot + ending.lower() if stem else ""


def hint_for(name: str) -> str:
    """Return what to do with a file that is not an image that is read, by the ending of its name; "" if unknown."""
    return _HINTS.get(_ending(name.removesuffix(".gz")), "")


def _labels(found: _Found, notes: list[str]) -> tuple[Labels | None, tuple[str, ...]]:
    """Return the labels of images, None if they have none; and the sub-folders that could be classes, if asked for."""
    options, images = found.options, found.images
    if options.labels is not None and options.classes is not False:
        labels, more_notes = labels_of_csv(found.csv(options.labels), images, options.labels)
        notes += more_notes
        return labels, ()
    if options.classes is False:
        return None, ()
    for file, inside in found.labels_files():
        labels, more_notes = labels_of_json(found.read(file), inside, f"{file} in {options.source}")
        if labels is not None:
            notes += more_notes
            return labels, ()
        if all(map(_NUMBERED.search, images)):
            if options.classes:
                raise InputError(
                    f"{options.source} was prepared without classes, and its folders only hold a thousand images "
                    "each: prepare it anew, from images with a folder for each class"
                )
            return None, ()
    if options.classes:
        labels = labels_of_folders(images, options.source)
        notes += notes_of_folders(images)
        return labels, ()
    return None, could_be_classes(images)


def _groups(found: _Found, notes: list[str]) -> list[str] | None:
    options, images = found.options, found.images
    if options.group is None:
        file, inside = next(found.labels_files(), (None, images))
        return None if file is None else groups_of_json(found.read(file), inside, f"{file} in {options.source}")
    if not is_column(options.group):
        return groups_of_names(images, options.group, options.source)
    if options.labels is None:
        raise option_error(
            "data.group",
            f"'{options.group}' is a column of the CSV that data.labels names, and there is none: give one, "
            "or the word folder, or a pattern of the name with parentheses",
        )
    return column_of_csv(found.csv(options.labels), options.group, images, options.labels)[0]


def _attributes(found: _Found, notes: list[str]) -> Attributes | None:
    """Return the attributes of images in the CSV of data.conditions; None if there is none."""
    conditions = found.options.conditions
    if not conditions:
        return None
    file, *columns = conditions
    if not file.lower().endswith((".csv", ".tsv", ".txt")):
        raise option_error(
            OPTION, f"of image files is a CSV with the columns file and others, then the columns to use, not '{file}'"
        )
    attributes, more = attributes_of_csv(found.csv(file, OPTION), columns, found.images, file)
    notes += more
    return attributes
