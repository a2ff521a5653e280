"""The choice of one pixel type (dtype and channels) that all files of a data set are read as, with notes on losses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from patch_diffusion.data.files.decode import Header, ImageFile, decode_file
from patch_diffusion.data.reading.parallel import in_order
from patch_diffusion.errors import InputError, counted, option_error


@dataclass(frozen=True)
class PixelType:
    """The dtype and number of channels of decoded pixels; ``mode`` is what `decode_file` takes."""

    dtype: str
    channels: int
    mode: str = "RGB"


def common_pixel_type(
    files: Sequence[ImageFile], headers: Mapping[int, Header], mode: str, *, show: bool = False
) -> tuple[PixelType, list[str]]:
    """Return the dtype and channels that all files are read as, and notes for the user on what the images lose by it.

    The mode "auto" is the smallest of L, RGB and RGBA that keeps the channels all files have; another is only for
    8-bit images, and RGB16 for TIFF of 16 bits a colour. ``headers`` are those of the readable files, by index.
    """
    headers = {index: header.read_as(mode) for index, header in headers.items()}
    first: dict[tuple[str, int | None], int] = {}
    for index, header in headers.items():
        first.setdefault((header.dtype, header.channels), index)
    counts = Counter((header.dtype, header.channels) for header in headers.values()).most_common()
    (dtype, channels), most = counts[0]
    if len(counts) > 1:
        other, num_others = counts[1]
        raise InputError(
            f"{num_others:,} images are {_describe(*other)} (first: {files[first[other]].name}), {most:,} are "
            f"{_describe(dtype, channels)} (first: {files[first[dtype, channels]].name}): convert them to one kind"
        )
    takes = "TIFF of 16 bits a colour" if mode == "RGB16" else "pictures of 8 bits"
    if mode != "auto" and ((dtype, channels) != ("uint16", 3) if mode == "RGB16" else channels is not None):
        raise option_error(
            "data.mode", f"{mode} is for {takes}, and these are {_describe(dtype, channels)}: leave it out"
        )
    if channels is not None:
        return PixelType(dtype, channels, mode if mode == "RGB16" else "RGB"), []
    mode, notes = _mode(files, headers, mode, show)
    return PixelType(dtype, len(Image.new(mode, (1, 1)).getbands()), mode), notes


def _mode(files: Sequence[ImageFile], headers: Mapping[int, Header], mode: str, show: bool) -> tuple[str, list[str]]:
    notes = []

    def count(is_so: Callable[[Header], bool]) -> tuple[int, str]:
        found = [index for index, header in headers.items() if is_so(header)]
        return len(found), f"(first: {files[found[0]].name})" if found else ""

    num_transparent, _ = count(lambda header: header.transparent)
    if mode == "auto":
        mode = "L" if all(header.grey for header in headers.values()) else "RGB"
        if num_transparent == len(headers):
            if _any_transparent(files, list(headers), show):
                mode = "RGBA"
            else:
                notes.append("the alpha channel is opaque in all images and was left out")
                num_transparent = 0
    if num_transparent and mode != "RGBA":
        notes.append(
            f"{counted(num_transparent, 'transparent image')} put on white (--data.mode RGBA keeps transparency)"
        )
    num, first = count(lambda header: header.reduced)
    if num:
        notes.append(
            f"{counted(num, 'image')} of 16 bits per colour {first} read as 8 bits; TIFFs keep 16 bits with "
            "--data.mode RGB16, arrays and grey pages always"
        )
    num, first = count(lambda header: header.frames > 1)
    if num:
        notes.append(f"{counted(num, 'animation')} {first}: only the first frame is read")
    return mode, notes


def _any_transparent(files: Sequence[ImageFile], indices: Sequence[int], show: bool) -> bool:
    """True if any pixel of any image is not opaque; the search ends at the first such image."""

    def is_transparent(index: int) -> bool:
        return bool((decode_file(files[index], None, "RGBA")[3] < 255).any())

    return any(found is True for _, found in in_order(is_transparent, indices, "looking at transparency", show=show))


def _describe(dtype: str, channels: int | None) -> str:
    if channels is None:
        return "pictures of 8 bits"
    return f"{dtype} of {channels} channel{'' if channels == 1 else 's'}"
