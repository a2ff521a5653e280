"""How large pictures may be, so that no request fills the memory of the machine."""

from __future__ import annotations

from patch_diffusion.errors import InputError
from patch_diffusion.sampling.tiles import even_starts

MOST_PIXELS = 2**20
"""Of a picture."""

MOST_IN_ALL = 2**24
"""Of the pictures of a request."""

MOST_SEEN = 2**18
"""Of what a network is shown at once; it keeps a few numbers for each pixel and feature."""

MOST_SEEN_BACK = 2**16
"""The same where it goes backward too, for which it keeps all of them."""

_MOST_AT_ONCE = 16

_MOST_OVERLAP = 20
"""Of the pixels of a picture, that its tiles may have together: between two steps nothing can be stopped."""


def at_once(
    resolution: tuple[int, ...],
    trained: tuple[int, ...] | None,
    pictures: int,
    *,
    tile: int | None,
    overlap: int | None = None,
    backward: bool,
) -> int:
    """How many pictures, or tiles, a network is given together.

    What a model was trained on may be as large as it is.

    Args:
        resolution: height and width of the pictures.
        trained: those of the images of training.
        pictures: how many there will be.
        tile: side of tiles, which are seen one by one.
        overlap: pixels that they overlap by; a quarter of the side where None.
        backward: whether the network goes backward, for which all tiles are kept.

    Raises:
        InputError: that is too much.
    """
    height, width = resolution
    pixels, usual = height * width, 1 if trained is None else trained[0] * trained[1]
    if pixels > max(MOST_PIXELS, usual):
        raise InputError(f"{height}x{width} is more than this page makes, {MOST_PIXELS:,} pixels: ask for less")
    if pictures > 1 and pictures * pixels > MOST_IN_ALL:
        most = max(MOST_IN_ALL // pixels, 1)
        raise InputError(f"of pictures of {height}x{width} this page makes {most} at a time, not {pictures}")
    most = max(MOST_SEEN_BACK if backward else MOST_SEEN, usual)
    in_tiles = pixels if tile is None else _pixels_in_tiles(resolution, tile, overlap)
    if in_tiles > _MOST_OVERLAP * pixels:
        raise InputError(
            f"tiles of {tile}x{tile} that overlap by {overlap} pixels would take this page "
            f"{in_tiles / pixels:.0f} times the work: choose a smaller overlap"
        )
    seen = in_tiles if tile is None or backward else min(tile * tile, pixels)
    if seen > most:
        side = int((MOST_SEEN_BACK if backward else MOST_SEEN) ** 0.5)
        others = "the quick way" if backward else "smaller tiles" if tile else "tiles"
        raise InputError(
            f"{height}x{width} pixels at once would take too much memory here, where {side}x{side} are seen at once: "
            f"choose {others}"
        )
    return max(1, min(_MOST_AT_ONCE, pictures if tile is None else _MOST_AT_ONCE, most // max(seen, 1)))


def _pixels_in_tiles(resolution: tuple[int, ...], tile: int, overlap: int | None) -> int:
    """Of all tiles together; what tiles cannot be is said where they are made."""
    overlap = tile // 4 if overlap is None else overlap
    if not 0 <= overlap < tile <= min(resolution):
        return resolution[0] * resolution[1]
    down, across = (len(even_starts(length, tile, overlap)) for length in resolution)
    return down * across * tile * tile
