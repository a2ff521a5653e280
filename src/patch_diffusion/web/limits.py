"""Limits on the size of pictures that the web page requests, so that no request fills the machine's memory."""

from __future__ import annotations

from patch_diffusion.errors import InputError
from patch_diffusion.sampling.tiles import even_starts

MOST_PIXELS = 2**20
"""The largest number of pixels of one requested picture."""

MOST_IN_ALL = 2**24
"""The largest number of pixels of all pictures of a request together."""

MOST_SEEN = 2**18
"""The largest number of pixels in one forward pass of a network, which keeps few activations per pixel in memory."""

MOST_SEEN_BACK = 2**16
"""The largest number of pixels in a pass with gradients, for which a network keeps all activations in memory."""

_MOST_AT_ONCE = 16

_MOST_OVERLAP = 20
"""The largest ratio of the pixels of all overlapping tiles to those of the picture; no step can be stopped midway."""


def at_once(
    resolution: tuple[int, ...],
    trained: tuple[int, ...] | None,
    pictures: int,
    *,
    tile: tuple[int, ...] | None,
    overlap: int | None = None,
    backward: bool,
) -> int:
    """Return how many of the requested pictures, or of their tiles, a network can compute at once in memory.

    The resolution that a model was trained on is always allowed.

    Args:
        resolution: height and width of the pictures.
        trained: height and width of the training images.
        pictures: the number of pictures.
        tile: height and width of tiles, which the network takes one by one.
        overlap: pixels by which tiles overlap; a quarter of the shorter side if None.
        backward: True if the network also computes gradients, for which it keeps the activations of all tiles.

    Raises:
        InputError: the request is too large.
    """
    height, width = resolution
    pixels, usual = height * width, 1 if trained is None else trained[0] * trained[1]
    if pixels > max(MOST_PIXELS, usual):
        raise InputError(f"{height}x{width} is more than this page makes, {MOST_PIXELS:,} pixels: ask for less")
    if pictures > 1 and pictures * pixels > MOST_IN_ALL:
        most = max(MOST_IN_ALL // pixels, 1)
        raise InputError(f"this page makes at most {most} pictures of {height}x{width} at a time, not {pictures}")
    most = max(MOST_SEEN_BACK if backward else MOST_SEEN, usual)
    in_tiles = pixels if tile is None else _pixels_in_tiles(resolution, tile, overlap)
    if tile is not None and in_tiles > _MOST_OVERLAP * pixels:
        raise InputError(
            f"tiles of {tile[0]}x{tile[1]} that overlap by {overlap} pixels would take this page "
            f"{in_tiles / pixels:.0f} times the work: choose a smaller overlap"
        )
    seen = in_tiles if tile is None or backward else min(tile[0] * tile[1], pixels)
    if seen > most:
        side = int((MOST_SEEN_BACK if backward else MOST_SEEN) ** 0.5)
        others = "the quick way" if backward else "smaller tiles" if tile else "tiles"
        raise InputError(
            f"{height}x{width} pixels at once would take too much memory here, where {side}x{side} are seen at once: "
            f"choose {others}"
        )
    return max(1, min(_MOST_AT_ONCE, pictures if tile is None else _MOST_AT_ONCE, most // max(seen, 1)))


def _pixels_in_tiles(resolution: tuple[int, ...], tile: tuple[int, ...], overlap: int | None) -> int:
    """Return the number of pixels of all tiles together; those of the picture for tiles that sampling refuses."""
    overlap = min(tile) // 4 if overlap is None else overlap
    if not 0 <= overlap < min(tile) or tile[0] > resolution[0] or tile[1] > resolution[1]:
        return resolution[0] * resolution[1]
    down, across = (len(even_starts(length, side, overlap)) for length, side in zip(resolution, tile, strict=True))
    return down * across * tile[0] * tile[1]
