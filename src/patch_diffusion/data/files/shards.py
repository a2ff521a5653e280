"""Images in tar files in the WebDataset layout: files whose names agree up to the first dot make one sample."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from patch_diffusion.config import Data
from patch_diffusion.data.classes import Labels
from patch_diffusion.data.files.collection import Collection, Files
from patch_diffusion.data.files.decode import ImageFile
from patch_diffusion.data.files.folders import image_endings
from patch_diffusion.data.reading.attributes import attributes_of_csv
from patch_diffusion.data.reading.cache import Found, digest, remember, state_of
from patch_diffusion.data.reading.damage import damage_named, read_table
from patch_diffusion.data.reading.groups import groups_of_names, is_column
from patch_diffusion.data.reading.labels import labels_of_values
from patch_diffusion.data.reading.names import HIDDEN, plain
from patch_diffusion.data.reading.parallel import results_in_order
from patch_diffusion.errors import InputError
from patch_diffusion.files import user_path

_JSON_LABELS = ("label", "cls", "class")
_MOST_BYTES_BESIDE = 2**24
_MOST_NAMES = 200_000

Sample = tuple[str, int, int, Any, str | None]
"""The name, byte offset and size in bytes of an image in its shard, and its label and group or None."""


def find_in_shards(pattern: str, options: Data, *, show: bool = False) -> Collection:
    """Collect all images of some tar files, which are scanned once; the offsets of the images are kept in the cache.

    Labels are integers or names in ``.cls`` files, or in the field ``label`` of ``.json`` files.

    Args:
        pattern: the paths of the shards, such as ``shards/*.tar`` or ``shards/{000..127}.tar``.
        options: ``key`` is the extension of the images if samples have several, ``labels`` the field of ``.json``.
        show: if true, show a progress bar on a terminal.

    Raises:
        InputError: no shards are found, one (named) is damaged, none has images, or only some images have labels.
    """
    paths = [Path(path) for path in _expand(pattern)]
    states = [state_of(path) for path in paths]
    column = options.group if options.group is not None and is_column(options.group) else None

    def look() -> _Index:
        found = results_in_order(lambda path: _index(path, options, column), paths, "looking into shards", show=show)
        return _Index.of(list(found))

    if options.cache == "memory":
        index = look()
    else:
        key = {"shards": states, "key": options.key, "labels": options.labels}
        key |= {} if column is None else {"group": column}
        index = _Index.remembered(key, look)
        if any(map(_is_hidden, index.names.tolist())):  # an earlier version found them
            index = _Index.remembered(key | {"hidden": "left out"}, look)
    if not len(index.places):
        ending = f" that end in .{options.key}" if options.key else ""
        raise InputError(f"{options.source} holds no images{ending}")

    def opened(place: int) -> IO[bytes]:
        shard, offset, size = index.places[place].tolist()
        return io.BytesIO(_read_at(paths[shard], offset, size))

    def name(place: int) -> str:
        return f"{paths[index.places[place][0]].name}/{index.names[place].decode(errors='replace')}"

    files = Files(len(index.places), lambda place: ImageFile(name(place), partial(opened, place)))
    labels, groups = _labels(files, index, options), _groups(index, options)
    identity = digest(*states, *(["without hidden files"] if index.hidden else []))
    attributes, notes = None, list[str]()
    if options.conditions:
        file, *columns = options.conditions
        names = [plain(name.decode(errors="replace")) for name in index.names.tolist()]
        attributes, notes = attributes_of_csv(read_table(file, len(names)), columns, names, file)
    return Collection(options.source, files, labels, notes, identity, slow=True, groups=groups, attributes=attributes)


@dataclass(frozen=True)
class _Index:
    """An index of the images in shards: shard number, byte offset and size (n, 3), names, labels and groups (n,).

    ``labels`` are numbers, or UTF-8 strings. They are None if no image has one, or if they cannot be used; then ``odd``
    is the index of an image with an unusable label, and ``what`` says what is wrong with it. ``groups`` are names in
    UTF-8, if images are grouped by a field. ``hidden`` is the number of images that were left out as hidden files.
    """

    places: NDArray[np.int64]
    names: NDArray[np.bytes_]
    labels: NDArray[Any] | None
    odd: int | None = None
    what: str = ""
    groups: NDArray[np.bytes_] | None = None
    hidden: int = 0

    @classmethod
    def of(cls, shards: Sequence[tuple[Sequence[Sample], int]]) -> _Index:
        """Build the index from the samples of each shard and the number of its hidden images, in the shards' order."""
        samples_of_shards = [samples for samples, _ in shards]
        found = replace(cls._ungrouped(samples_of_shards), hidden=sum(hidden for _, hidden in shards))
        groups = [group for samples in samples_of_shards for *_, group in samples if group is not None]
        return replace(found, groups=np.array([group.encode() for group in groups], np.bytes_) if groups else None)

    @classmethod
    def _ungrouped(cls, samples_of_shards: Sequence[Sequence[Sample]]) -> _Index:
        samples = [(shard, *sample) for shard, samples in enumerate(samples_of_shards) for sample in samples]
        places = np.array([(shard, offset, size) for shard, _, offset, size, _, _ in samples], np.int64).reshape(-1, 3)
        names = np.array([name.encode(errors="surrogateescape") for _, name, *_ in samples], np.bytes_)
        values = [label for *_, label, _ in samples]
        missing = [place for place, value in enumerate(values) if value is None]
        if len(missing) == len(values):
            return cls(places, names, None)
        if missing:
            return cls(places, names, None, missing[0], f"{len(missing):,} of {len(values):,} images have no label")
        kind = type(values[0])
        odd = next((i for i, value in enumerate(values) if type(value) is not kind or kind not in (int, str)), None)
        if odd is not None:
            return cls(places, names, None, odd, f"{values[odd]!r} is no label beside {values[0]!r}")
        return cls(places, names, np.array([v.encode(errors="replace") for v in values] if kind is str else values))

    @classmethod
    def remembered(cls, key: dict[str, Any], look: Callable[[], _Index]) -> _Index:
        """Return the index from the cache; if it is not there, scan the shards, and cache the index if possible."""

        def find_out() -> Found:
            parts = dict(vars(look()))
            facts = {name: parts.pop(name) for name in ("odd", "what", "hidden")}
            return facts, {name: values for name, values in parts.items() if values is not None}

        facts, arrays = remember(key, find_out)
        return cls(**{"labels": None, **arrays}, **facts)


def _expand(pattern: str) -> list[str]:
    """Return the paths of the shards that match a pattern with braces, stars and question marks, in order."""
    if re.match(r"pipe:|\w+://", pattern):
        raise InputError(f"shards are files on this machine, not {pattern}: fetch them first")
    found: dict[str, None] = {}
    for number, alternative in enumerate(_expand_braces(pattern)):
        if number == _MOST_NAMES:
            raise InputError(
                f"{pattern} names more than {_MOST_NAMES:,} shards: give their folder, as in wds:shards/*.tar"
            )
        path = user_path(alternative)
        if not path.name:
            raise InputError(f"shards are tar files, as in wds:shards/*.tar, not '{pattern}'")
        with damage_named(alternative):
            matching = sorted(map(str, Path(path.anchor).glob(str(path.relative_to(path.anchor)))))
        if not matching:
            raise InputError(f"there are no shards at {alternative}: give tar files, as in wds:shards/*.tar")
        found |= dict.fromkeys(matching)
    for path in found:
        if Path(path).is_dir():
            raise InputError(f"{path} is a folder: give the tar files in it, as in wds:{path}/*.tar")
        if not Path(path).is_file():
            raise InputError(f"{path} is no file that can be read twice: give tar files, as in wds:shards/*.tar")
    return list(found)


def _expand_braces(pattern: str) -> Iterator[str]:
    """Expand ``a{0..2}`` and ``a{x,y}`` as a shell does, one after another, since a short pattern can be of very many.

    >>> list(_expand_braces("s-{08..10}.tar"))
    ['s-08.tar', 's-09.tar', 's-10.tar']
    """
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if braces is None:
        yield pattern
        return
    numbers = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", braces[1])
    words: Iterable[str] = braces[1].split(",")
    if numbers:
        first, last = numbers[1], numbers[2]
        width = len(first) if first.startswith("0") else 0
        words = (f"{number:0{width}d}" for number in range(int(first), int(last) + 1))
    for word in words:
        yield from _expand_braces(pattern[: braces.start()] + word + pattern[braces.end() :])


def _index(path: Path, options: Data, column: str | None) -> tuple[list[Sample], int]:
    """Return the samples of a shard, and the number of its images that are left out as hidden files."""
    ending, field, hidden = options.key, options.labels, 0
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for name, place, size in _members(path):
        folder, _, file = name.rpartition("/")
        stem, _, kind = file.partition(".")
        key, kind = f"{folder}/{stem}", kind.lower()
        is_image = _is_image(kind) if ending is None else kind == ending.lower()
        if HIDDEN.search(name):
            hidden += is_image
            continue
        if is_image:
            if key in images:
                raise InputError(
                    f"{path} has several images of one sample, {images[key][0]} and {name}: choose an ending with "
                    "--data.key",
                    option="data.key",
                )
            images[key] = (name, place, size)
        elif (kind == "cls" and field is None) or kind == "json":
            found = _label(_read_side(path, place, size, f"{path}/{name}"), kind, field, f"{path}/{name}")
            if found is not None:
                labels[key] = found
        if kind == "json" and column is not None:
            groups[key] = _label(_read_side(path, place, size, f"{path}/{name}"), kind, column, f"{path}/{name}")
    if column is not None and (missing := [name for key, (name, *_) in images.items() if groups.get(key) is None]):
        raise InputError(f"data.group: {path}/{missing[0]} has no field '{column}' of .json, and every image needs one")
    samples = [(*image, labels.get(key), None if column is None else str(groups[key])) for key, image in images.items()]
    return samples, hidden


def _members(path: Path) -> list[tuple[str, int, int]]:
    """Return the name, byte offset and size in bytes of each file in a shard (a tar file)."""
    with damage_named(path):
        with path.open("rb") as stream:  # tarfile would take it for damaged
            if stream.read(2) == b"\x1f\x8b":
                raise InputError(f"{path} is compressed, so that no image in it can be found quickly: gunzip it")
        end, found = path.stat().st_size, []
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                if member.size < 0 or member.offset_data + member.size > end:  # tarfile would go back, or on and on
                    raise tarfile.ReadError(f"{member.name} has a size of {member.size:,} bytes")
                if member.issparse():
                    raise tarfile.ReadError(f"{member.name} is stored without its zeros, which is not read")
                if member.isreg():
                    found.append((member.name, member.offset_data, member.size))
            _refuse_early_end(shard, path)
    return found


def _read_side(path: Path, offset: int, size: int, name: str) -> bytes:
    """Read a file beside an image, or raise InputError if it is too long for labels."""
    if size > _MOST_BYTES_BESIDE:
        raise InputError(f"{name} has {size:,} bytes, too many for what is known of one image")
    return _read_at(path, offset, size)


def _read_at(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as stream:
        stream.seek(offset)
        return stream.read(size)


def _refuse_early_end(shard: tarfile.TarFile, path: Path) -> None:
    """Raise ReadError if no zeros follow a shard's last file: tarfile takes half or damaged headers for the end."""
    with path.open("rb") as stream:
        stream.seek(shard.offset)
        if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"it breaks off after {shard.offset:,} bytes")


def _is_hidden(name: bytes) -> bool:
    special = name.startswith((b".", b"_")) or b"/." in name or b"/_" in name  # there can be millions of others
    return special and HIDDEN.search(name.decode(errors="replace")) is not None


def _is_image(kind: str) -> bool:
    return PurePosixPath(f"a.{kind}").suffix in image_endings()


def _label(content: bytes, kind: str, field: str | None, name: str) -> Any:
    with damage_named(name):
        text = content.decode()
        if kind == "cls":
            return int(text) if re.fullmatch(r"\s*[+-]?\d+\s*", text) else text.strip()
        found = json.loads(text)
    if not isinstance(found, dict):
        return None
    if field is not None:
        return found.get(field)
    return next((found[name] for name in _JSON_LABELS if name in found), None)


def _groups(index: _Index, options: Data) -> list[str] | None:
    if options.group is None:
        return None
    if index.groups is not None:
        return [group.decode() for group in index.groups.tolist()]
    return groups_of_names(
        [name.decode(errors="replace") for name in index.names.tolist()], options.group, options.source
    )


def _labels(files: Sequence[ImageFile], index: _Index, options: Data) -> Labels | None:
    if options.classes is False:
        return None
    if index.odd is not None:
        raise InputError(
            f"the labels of {options.source} cannot be used: {index.what} (first: {files[index.odd].name}); give all "
            "images class numbers, or all of them names, or set data.classes to False"
        )
    if index.labels is not None:
        return labels_of_values(index.labels, name=lambda place: files[place].name)
    if options.classes or options.labels:
        what = f"a field '{options.labels}' of .json" if options.labels else ".cls or a field 'label' of .json"
        raise InputError(f"{options.source} has no labels: they are {what} beside each image")
    return None
