"""Writing of a data set as one zip of images of equal size, checked and without duplicates."""

from __future__ import annotations

import errno
import io
import zipfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from patch_diffusion.config import Data
from patch_diffusion.data.classes import Labels, occurring, refuse_many_classes
from patch_diffusion.data.files.collection import Collection
from patch_diffusion.data.files.decode import ImageFile, decode_file, quiet, read_headers, reason
from patch_diffusion.data.files.pixel_type import PixelType, common_pixel_type
from patch_diffusion.data.inspection.as_files import as_files, has_files
from patch_diffusion.data.inspection.duplicates import content_hash
from patch_diffusion.data.named import DIGITS
from patch_diffusion.data.preparation.partial import PartialZip
from patch_diffusion.data.reading.cache import digest, state_of
from patch_diffusion.data.reading.labels import LABELS_FILE
from patch_diffusion.data.reading.parallel import in_order
from patch_diffusion.data.reading.sizes import Size, resolution_of, too_small
from patch_diffusion.data.sources import find_images
from patch_diffusion.errors import InputError, shown
from patch_diffusion.files import check_room, check_writable, read_json, replacing, to_json, user_path, write_json

IMAGES_PER_FOLDER = 1000

_MODES = {("uint8", 1): "L", ("uint8", 3): "RGB", ("uint8", 4): "RGBA", ("uint16", 1): "I;16"}
_COMPRESSION = 6  # zlib's compression level in the PNGs
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the earliest time in a zip: a fixed one, so that equal images make equal files


def prepare_images(
    options: Data, out: str | Path, *, keep_duplicates: bool = False, show: bool = False
) -> dict[str, Any]:
    """Write the images of a data set as a zip that training, and the tools of StyleGAN and EDM, can open.

    It holds ``00000/img00000000.png`` and so on, stored without further compression, and a ``dataset.json`` of labels,
    of ``class_names`` if the classes have any (sub-folders that could be classes are), and of groups if there are any.
    Labels are null without classes.
    Images that cannot be read or enlarged, and all but the first of images with equal resulting pixels, are left out
    and listed in ``OUT.report.json`` next to it. The same data and options give the same bytes, even if the call was
    interrupted: finished images are kept in the folder ``OUT.zip.partial``, from which the same call resumes.

    Args:
        options: the data options; with ``resolution`` None, all images must have one size.
        out: the path of the zip. An existing zip of the same data and options is left unchanged.
        keep_duplicates: if true, keep images whose pixels equal those of an earlier image.
        show: if true, show a progress bar on a terminal.

    Returns:
        The content of the report, such as ``images``, ``resolution``, ``mode``, ``num_classes`` and ``dropped``.

    Raises:
        InputError: there is nothing to prepare, or a PNG cannot store the dtype or number of channels of the images.
    """
    out = user_path(out)
    if out.suffix.lower() != ".zip":
        raise InputError(f"images are prepared into a .zip, not '{out.name}'")
    if options.fit not in ("crop", "stretch"):
        raise InputError("a zip has images of one size: fit is crop or stretch")
    if user_path(options.source).resolve() == out.resolve():
        raise InputError(f"{out} would be written over itself: choose another name")
    check_writable(out)
    options = keeping_classes(options)
    with ExitStack() as stack:
        found = stack.enter_context(find_images(options, show=show)) if has_files(options) else as_files(options)
        if found.labels is not None:
            refuse_many_classes(len(set(found.labels[0].tolist())), len(found.files))
        key = _key(found, options, keep_duplicates)
        partial = PartialZip(out.with_name(out.name + ".partial"), key)
        if out.exists():
            return _finished(out, partial, key)
        try:
            with quiet():
                plan = _plan(found, options, show)
            with quiet(), partial:
                _encode(found.files, found.labels, plan, partial, options, keep_duplicates, show)
                kept = [index for index, line in enumerate(partial.lines) if "dropped" not in line]
                labels = None if found.labels is None else occurring(found.labels[0][kept], found.labels[1])
                report = _report(found, plan, partial, options, key, labels)
                write_json(_report_file(out), report)
                groups = None if found.groups is None else [found.groups[index] for index in kept]
                _write_zip(out, partial, labels, groups)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise InputError(
                f"the disk of {out.parent} is full: make room and call prepare again, which then goes on from here"
            ) from None
    partial.remove()
    return report


def keeping_classes(options: Data) -> Data:
    """Return data options that take sub-folders for classes, if they could be, and it was not said whether they are."""
    if options.classes is None and has_files(options) and user_path(options.source).exists():
        with find_images(options) as found:
            return replace(options, classes=True) if found.folders else options
    return options


@dataclass(frozen=True)
class _Plan:
    """The pixel type and size that all images are converted to, and the reasons why some are unusable, by index."""

    pixel_type: PixelType
    size: Size
    unusable: dict[int, str]
    notes: list[str]


def _plan(found: Collection, options: Data, show: bool) -> _Plan:
    headers, unusable = read_headers(found.files, show=show)
    if not headers:
        first = min(unusable)
        raise InputError(
            f"none of the {len(found.files):,} images can be read (first: {found.files[first].name}, {unusable[first]})"
        )
    resolution = resolution_of(options)
    counts = Counter(header.size for header in headers.values())
    if resolution is None and len(counts) > 1:
        sizes = ", ".join(f"{height}x{width}" for (height, width), _ in counts.most_common(3))
        raise InputError(f"images are of {len(counts)} sizes ({sizes}{', ...' * (len(counts) > 3)}): give --resolution")
    size = resolution or next(iter(counts))
    pixel_type, notes = common_pixel_type(found.files, headers, options.mode, show=show)
    if (pixel_type.dtype, pixel_type.channels) not in _MODES:
        raise InputError(
            f"a PNG holds 1, 3 or 4 channels of 8 bits, or 1 of 16, but these images have {pixel_type.channels} of "
            f"{pixel_type.dtype}: train on them as they are"
        )
    unusable |= {index: why for index, header in headers.items() if (why := too_small(header.size, size))}
    return _Plan(pixel_type, size, unusable, notes)


def _encode(
    files: Sequence[ImageFile],
    labels: Labels | None,
    plan: _Plan,
    partial: PartialZip,
    options: Data,
    keep_duplicates: bool,
    show: bool,
) -> None:
    """Encode the images that are not finished yet as PNGs, and drop unusable ones and duplicates."""
    first_with = {
        line["content"]: index for index, line in reversed(list(enumerate(partial.lines))) if "content" in line
    }

    def encode(index: int) -> tuple[bytes, bytes]:
        if index in plan.unusable:
            raise InputError(plan.unusable[index])
        pixels = decode_file(files[index], plan.size, plan.pixel_type.mode, options.fit)
        return _to_png(pixels), content_hash(pixels)

    for index, result in in_order(encode, range(len(partial.lines), len(files)), "preparing images", show=show):
        name = files[index].name
        if isinstance(result, Exception):
            partial.drop(name, reason(result))
            continue
        picture, content = result
        first = first_with.setdefault(content.hex(), index)
        if first == index or keep_duplicates:
            partial.add(name, picture, content)
            continue
        same_class = labels is None or labels[0][first] == labels[0][index]
        partial.drop(name, f"the same pixels as {files[first].name}{'' if same_class else ', though of another class'}")


def _to_png(pixels: NDArray[Any]) -> bytes:
    array = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(stream, "PNG", compress_level=_COMPRESSION)
    return stream.getvalue()


def _report(
    found: Collection, plan: _Plan, partial: PartialZip, options: Data, made_of: str | None, labels: Labels | None
) -> dict[str, Any]:
    dropped = [line for line in partial.lines if "dropped" in line]
    if len(dropped) == len(partial.lines):
        partial.remove()
        raise InputError(
            f"none of the {len(dropped):,} images can be used (first: {dropped[0]['file']}, {dropped[0]['dropped']})"
        )
    return {
        "source": options.source,
        "files": len(partial.lines),
        "images": len(partial.lines) - len(dropped),
        "resolution": list(plan.size),
        "mode": _MODES[plan.pixel_type.dtype, plan.pixel_type.channels],
        "fit": options.fit,
        "num_classes": 0 if labels is None else len(set(labels[0].tolist())),
        "class_names": [] if labels is None else list(labels[1]),
        "num_groups": 0 if found.groups is None else len(set(found.groups)),
        "notes": list(map(shown, [*found.notes, *plan.notes])),
        "dropped": dropped,
        "made_of": made_of,
    }


def _write_zip(out: Path, partial: PartialZip, labels: Labels | None, groups: Sequence[str] | None) -> None:
    """Write all images, their labels and groups to the zip, under a temporary name until it is complete."""
    check_room(out.parent, partial.num_bytes)
    of_name: list[tuple[str, int]] = []
    of_groups: list[tuple[str, str]] = []
    with replacing(out) as unfinished, zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:
        for number, (_, picture) in enumerate(partial.pictures()):
            name = f"{number // IMAGES_PER_FOLDER:05d}/img{number:08d}.png"
            archive.writestr(_entry(name), picture)
            if labels is not None:
                of_name.append((name, int(labels[0][number])))
            if groups is not None:
                of_groups.append((name, groups[number]))
        content: dict[str, Any] = {"labels": None if labels is None else of_name}
        if labels is not None and list(labels[1]) != list(map(str, range(len(labels[1])))):
            content["class_names"] = labels[1]
        if groups is not None:
            content["groups"] = of_groups
        archive.writestr(_entry(LABELS_FILE), to_json(content, lines=False))


def _entry(name: str) -> zipfile.ZipInfo:
    """Make the header of a zip entry, without any trace of the machine or the time."""
    entry = zipfile.ZipInfo(name, _LONG_AGO)
    entry.create_system = 3
    entry.external_attr = 0o644 << 16
    return entry


def _key(found: Collection, options: Data, keep_duplicates: bool) -> str | None:
    """Compute a digest of everything that determines the zip: sources, labels, options; None if that is unknown."""
    identity = found.identity
    if identity is None and not has_files(options):
        path = user_path(options.source)
        files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
        identity = options.source if options.source == DIGITS else list(map(state_of, files))
    if identity is None:
        return None
    asked = {name: getattr(options, name) for name in ("resolution", "fit", "mode", "key", "layout")}
    labels = None if found.labels is None else [found.labels[0].tolist(), *found.labels[1]]
    groups = [] if found.groups is None else [list(found.groups)]
    return digest(identity, asked, labels, keep_duplicates, PIL.__version__, _COMPRESSION, *groups)


def _finished(out: Path, partial: PartialZip, made_of: str | None) -> dict[str, Any]:
    """Return the report of a zip that exists already; raise InputError if it was made of other data or options."""
    try:
        report = read_json(_report_file(out))
    except InputError:
        report = {}
    if made_of is None or report.get("made_of") != made_of:
        raise InputError(f"{out} is there already, of other data or options: remove it or choose another name")
    partial.remove()
    return report


def _report_file(out: Path) -> Path:
    return out.with_name(out.stem + ".report.json")
