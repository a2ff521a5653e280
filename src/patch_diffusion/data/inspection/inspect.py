"""Inspection of every image of a data set: statistics, and problems that would harm training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from patch_diffusion.config import Data
from patch_diffusion.data.classes import Labels, refuse_many_classes
from patch_diffusion.data.files.collection import Collection as ImageCollection
from patch_diffusion.data.files.decode import Header, ImageFile, decode_file, quiet, read_headers, reason
from patch_diffusion.data.inspection.as_files import evenly, found_images, has_files
from patch_diffusion.data.inspection.duplicates import SMALL, Likeness, content_hash, equal_groups, likeness, near_pairs
from patch_diffusion.data.inspection.grouping import suggest_group
from patch_diffusion.data.inspection.pairing import check_pairs
from patch_diffusion.data.inspection.sheet import Thumbnail, check_sheet, thumbnail, write_sheet
from patch_diffusion.data.named import HUB
from patch_diffusion.data.reading.labels import folders_of
from patch_diffusion.data.reading.parallel import in_order
from patch_diffusion.data.sources import find_inputs
from patch_diffusion.errors import InputError, counted

MOST_READ = 100_000
"""The default limit on the number of images that are inspected."""

NEARLY_CONSTANT = 0.01
"""The standard deviation, as a share of the value range, below which an image counts as nearly constant."""

_SHOWN, _PAIRS = 60, 15  # the most images, and the most pairs, in a section of the sheet

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True)
class Findings:
    """The results of `inspect_images`. Images are referred to by name; counts are sorted with the most frequent first.

    Args:
        source: the data set.
        num_images: number of images in the data set.
        num_read: number of images that were inspected, evenly over the data set; the results are about them.
        endings: number of files by extension, such as "png".
        sizes: number of images by height and width, such as (64, 64).
        kinds: number of images by bit depth and channels, such as "8 bit RGB".
        class_counts: number of images of each class, over the whole data set; empty without classes.
        folders: number of images in each sub-folder, over the whole data set, if these could be classes and are none.
        conditions: what is told of the images by name: categories, or the range of numbers, in words.
        unusable: the reasons why files cannot be read, by name.
        nearly_constant: images whose pixels are nearly all of one value.
        equal: groups of images with equal pixels.
        near: pairs of near duplicates, whose pixels differ, and their correlation, the most similar first.
        groups: a pattern for ``data.group`` that puts images of alike names in one group, and the number of groups;
            None if there is none, or if groups are given.
        means, deviations: mean and standard deviation of each channel, where 0 and 1 are the ends of ``span``.
        values: lowest and highest pixel value found.
        span: the values scaled to 0 and 1: the ``range`` option if given, else 0 to 255 for 8 bits, else ``values``.
        asymmetry: difference of the mean image from its mirror image, in standard deviations of the pixels.
        asymmetry_by_chance: expected asymmetry if every image were as likely as its mirror image.
        problems: sentences on what the user has to fix before training.
        pairs: sentences on what may be wrong with paired inputs.
    """

    source: str
    num_images: int
    num_read: int
    endings: dict[str, int]
    sizes: dict[tuple[int, int], int]
    kinds: dict[str, int]
    class_counts: dict[str, int]
    folders: dict[str, int]
    conditions: dict[str, str]
    unusable: dict[str, str]
    nearly_constant: list[str]
    equal: list[list[str]]
    near: list[tuple[str, str, float]]
    groups: tuple[str, int] | None
    means: list[float]
    deviations: list[float]
    values: tuple[float, float]
    span: tuple[float, float]
    asymmetry: float
    asymmetry_by_chance: float
    problems: list[str]
    pairs: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the findings as a dict that JSON can store."""
        sizes = {f"{height}x{width}": count for (height, width), count in self.sizes.items()}
        return {**asdict(self), "sizes": sizes}


@dataclass(frozen=True)
class _Seen:
    """The statistics and hashes kept of one inspected image; ``means`` and ``variances`` are per channel."""

    content: bytes
    likeness: Likeness
    means: NDArray[np.float64]
    variances: NDArray[np.float64]
    low: float
    high: float


def inspect_images(
    options: Data, *, most: int = MOST_READ, sheet: str | Path | None = None, show: bool = False
) -> Findings:
    """Inspect every image of a data set, at its original size, and return statistics and problems.

    Broken files, odd sizes and wrong labels are reported; they raise no error.

    Args:
        options: the data options.
        most: the largest number of images to inspect; from a larger data set, this number is taken, evenly spaced.
        sheet: the path of a contact sheet to write, of some images, of duplicates and of nearly constant images.
        show: if true, show a progress bar on a terminal.

    Raises:
        InputError: there are no images to inspect.
    """
    if most < 1:
        raise InputError(f"at least 1 image is inspected, not {most}")
    if sheet is not None:
        check_sheet(Path(sheet))
    with found_images(options, show=show) as (found, problems), quiet():
        pairs = _pairs(options, found, show)
        files = [found.files[index] for index in evenly(len(found.files), most)]
        headers, unusable = read_headers(files, show=show)
        mode = _mode(options, headers.values())
        headers = {index: header.read_as(mode) for index, header in headers.items()}
        seen: dict[int, _Seen] = {}
        looked = in_order(lambda index: _look(files[index], mode), list(headers), "reading images", show=show)
        for index, result in looked:
            if isinstance(result, Exception):
                unusable[index] = reason(result)
            else:
                seen[index] = result
        findings = replace(_findings(options, found, files, headers, unusable, seen, problems), pairs=pairs)
        if sheet is not None:
            write_sheet(sheet, _sections(findings, {file.name: file for file in files}, mode))
    return findings


def _pairs(options: Data, found: ImageCollection, show: bool) -> list[str]:
    """Return what may be wrong with the paired inputs of images in files, in sentences."""
    if not options.paired or not has_files(options):
        return []
    try:
        with find_inputs(options, show=show) as inputs:
            return [told for each in inputs for told in check_pairs(found, each, alone=len(inputs) == 1)]
    except InputError as error:
        return [str(error)]


def _findings(
    options: Data,
    found: ImageCollection,
    files: Sequence[ImageFile],
    headers: Mapping[int, Header],
    unusable: Mapping[int, str],
    seen: Mapping[int, _Seen],
    problems: list[str],
) -> Findings:
    names = [file.name for file in files]
    means, deviations, span = _statistics(list(seen.values()), headers, options)
    least = NEARLY_CONSTANT * (span[1] - span[0])
    constant = {index for index, one in seen.items() if np.sqrt(one.variances.mean()) < least}
    indices = list(seen)
    groups = equal_groups([one.content for one in seen.values()])
    copies = {indices[place] for group in groups for place in group[1:]}
    firsts = [index for index in indices if index not in constant and index not in copies]
    pairs = near_pairs([seen[index].likeness for index in firsts])
    near = [(names[firsts[one]], names[firsts[other]], round(alike, 3)) for one, other, alike in pairs]
    named = found.groups is None and not options.source.startswith(HUB)
    asymmetry, by_chance = _asymmetry([seen[index].likeness for index in firsts])
    places = evenly(len(found.files), len(files))
    broken = [places[index] for index in unusable]
    usable = np.delete(np.arange(len(found.files)), broken).tolist() if found.folders else ()
    in_folders = _counts(folders_of([found.files[index].name for index in usable]))
    class_counts = {} if found.labels is None else _counts(_class_names(found.labels, broken))
    try:
        refuse_many_classes(len(class_counts), sum(class_counts.values()))
    except InputError as error:
        problems = [*problems, str(error)]
    return Findings(
        source=options.source,
        num_images=len(found.files),
        num_read=len(files),
        endings=_counts(PurePosixPath(name).suffix.lower().lstrip(".") for name in names),
        sizes=_counts(header.size for header in headers.values()),
        kinds=_counts(_kind(header) for header in headers.values()),
        class_counts=class_counts,
        folders=in_folders if len(in_folders) > 1 else {},
        conditions={column.name: column.describe() for column in found.attributes.columns} if found.attributes else {},
        unusable={names[index]: why for index, why in sorted(unusable.items())},
        nearly_constant=[names[index] for index in sorted(constant)],
        equal=[[names[indices[place]] for place in group] for group in groups],
        near=near,
        groups=suggest_group(names, near) if named else None,
        means=means,
        deviations=deviations,
        values=(min(one.low for one in seen.values()), max(one.high for one in seen.values())) if seen else (0.0, 0.0),
        span=span,
        asymmetry=asymmetry,
        asymmetry_by_chance=by_chance,
        problems=problems,
    )


def _sections(findings: Findings, files: Mapping[str, ImageFile], mode: str) -> list[tuple[str, list[Thumbnail]]]:
    """Return the sections of the contact sheet, each as a heading and a list of thumbnails."""

    def show(name: str, joined: bool = False) -> Thumbnail:
        return Thumbnail(thumbnail(decode_file(files[name], None, mode, draft=True), *findings.span), name, joined)

    usable = [name for name in files if name not in findings.unusable]
    shown = [usable[place] for place in evenly(len(usable), _SHOWN)]
    equal, near = (
        [show(names[place], joined=place == 0) for names in groups[:_PAIRS] for place in (0, 1)]
        for groups in (findings.equal, [pair[:2] for pair in findings.near])
    )
    return [
        (f"{len(shown):,} of {findings.num_images:,} images", [show(name) for name in shown]),
        (f"identical: {counted(len(findings.equal), 'group')}", equal),
        (f"alike to the eye: {counted(len(findings.near), 'pair')}, the most alike first", near),
        (
            f"nearly empty: {len(findings.nearly_constant):,}",
            [show(n) for n in findings.nearly_constant[:_SHOWN]],
        ),
    ]


def _mode(options: Data, headers: Iterable[Header]) -> str:
    """Return the Pillow mode to convert 8-bit images to: the option, or the fewest channels that keep what all have."""
    if options.mode != "auto":
        return options.mode
    pictures = [header for header in headers if header.channels is None]
    if all(header.grey for header in pictures):
        return "L"
    return "RGBA" if all(header.transparent for header in pictures) else "RGB"


def _look(file: ImageFile, mode: str) -> _Seen:
    pixels = decode_file(file, None, mode, draft=True)
    return _Seen(
        content_hash(pixels),
        likeness(pixels),
        np.array([channel.mean(dtype=np.float64) for channel in pixels]),
        np.array([channel.var(dtype=np.float64) for channel in pixels]),
        float(pixels.min()),
        float(pixels.max()),
    )


def _statistics(
    seen: Sequence[_Seen], headers: Mapping[int, Header], options: Data
) -> tuple[list[float], list[float], tuple[float, float]]:
    """Return each channel's mean and standard deviation, images weighted equally, and the values scaled to 0 and 1."""
    if options.range is not None:
        low, high = options.range
    elif all(header.dtype == "uint8" for header in headers.values()):
        low, high = 0.0, 255.0
    else:
        low, high = min((one.low for one in seen), default=0.0), max((one.high for one in seen), default=0.0)
    if not seen or not high > low:
        return [], [], (low, high)
    num_channels, _ = Counter(len(one.means) for one in seen).most_common(1)[0]
    alike = [one for one in seen if len(one.means) == num_channels]
    means = np.stack([one.means for one in alike])
    mean = means.mean(axis=0)
    variance = np.stack([one.variances for one in alike]).mean(axis=0) + means.var(axis=0)
    scale = high - low
    return ((mean - low) / scale).tolist(), (np.sqrt(variance) / scale).tolist(), (low, high)


def _asymmetry(pictures: Sequence[Likeness]) -> tuple[float, float]:
    """Return the difference of the mean image from its mirror image, and the difference expected by chance alone."""
    if not pictures:
        return 0.0, 0.0
    small = np.stack([picture.small for picture in pictures]).astype(np.float32).reshape(len(pictures), SMALL, SMALL)
    differences = SMALL * (small - small[:, :, ::-1])  # of pictures whose pixels have standard deviation 1
    found = float(np.sqrt(np.square(differences.mean(axis=0)).mean()))
    return found, float(np.sqrt(np.square(differences).mean() / len(pictures)))


def _kind(header: Header) -> str:
    if header.channels is not None:
        depth = {"uint8": "8 bit", "uint16": "16 bit"}.get(header.dtype, "float")
        return f"{depth}, {header.channels} channel{'' if header.channels == 1 else 's'}"
    colour = "grey" if header.grey else "RGB"
    return f"{'16 bit, read as ' * header.reduced}8 bit {colour}{' with transparency' * header.transparent}"


def _class_names(labels: Labels, broken: Sequence[int]) -> Iterator[str]:
    """Yield the name of each image's class, but for the images at some places."""
    numbers, names = np.delete(labels[0], broken), labels[1]
    return (names[number] if names else str(number) for number in numbers.tolist())


def _counts(found: Iterable[T]) -> dict[T, int]:
    return dict(Counter(found).most_common())
