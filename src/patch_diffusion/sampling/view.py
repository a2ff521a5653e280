"""How a model is shown images of one resolution: whole or in tiles, and with which coordinates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from torch import Tensor

from patch_diffusion.data.small import small_shape
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError, did_you_mean
from patch_diffusion.patches.coords import coordinate_grid, extended_grid
from patch_diffusion.sampling.bind import bind
from patch_diffusion.sampling.step import Denoise
from patch_diffusion.sampling.tiles import covering, in_tiles, smooth_window

Coords = Literal["stretch", "extend", "repeat"]
Shape = tuple[int, ...]
"""Height and width."""


@dataclass(frozen=True)
class View:
    """Images of a ``resolution`` (height, width), of which the model sees everything at once, or a ``tile`` at a time.

    ``grid`` (2, height, width) are the coordinates of the whole image, or (2, tile) those that every tile is given.
    ``kind`` says how they were made, and ``batch`` how many whole images or tiles the model is given together.
    """

    resolution: Shape
    grid: Tensor
    kind: Coords
    tile: Shape | None
    overlap: int
    batch: int
    is_usual: bool

    def bind(self, model: Denoiser, conditions: Conditions) -> Denoise:
        """Return ``denoise(noisy, sigma)`` by a model, under these conditions and the view's own coordinates."""
        conditions = replace(conditions, coords=self.grid)
        if self.tile is None:
            return bind(model, conditions)
        places = covering(self.resolution, self.tile, self.overlap)
        window = smooth_window(self.tile, self.overlap)
        return in_tiles(model, conditions, places, window, self.batch)

    def small(self, model: Denoiser) -> View | None:
        """Of the small copies that these images are made from; None where they are made without.

        That is so for models without a context, and for images that are not larger than it.
        """
        if model.context is None or min(self.resolution) <= model.context:
            return None
        shape = small_shape(model.context, self.resolution, model.stride)
        return replace(self, resolution=shape, grid=coordinate_grid(*shape, device=model.device), tile=None)

    @property
    def images_at_once(self) -> int:
        """Images to solve together: of large ones in tiles fewer, so that they take no more memory than a batch."""
        if self.tile is None:
            return self.batch
        return max(1, self.batch * self.tile[0] * self.tile[1] // (self.resolution[0] * self.resolution[1]))

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the samples, as JSON has it."""
        found: dict[str, Any] = {"resolution": list(self.resolution)}
        if not self.is_usual:
            found["coords"] = self.kind
        if self.tile is not None:
            found |= {"tile": list(self.tile), "overlap": self.overlap}
        return found


def view_of(
    model: Denoiser,
    resolution: int | Shape | None,
    *,
    coords: Coords | None = None,
    tile: int | Shape | None = None,
    overlap: int | None = None,
    batch: int = 64,
    inside: tuple[int, int, int, int] | None = None,
) -> View:
    """A view of images, checked.

    Args:
        model: a denoiser.
        resolution: side, or height and width; the model's where None.
        coords: "stretch", [-1, 1] over the whole image; "extend", pixels as far apart as in training, so that larger
            images go beyond [-1, 1] on all sides; "repeat", for tiles, each as if it were a whole image. None is
            stretch, but for tiles of images larger than those of training, which repeat. A model with a context has
            learned what stretch gives alone.
        tile: side, or height and width, of the tiles that the model sees one at a time; everything at once where None.
        overlap: pixels that tiles overlap by at least; a quarter of their shorter side where None.
        batch: images, or tiles, that the model is given together.
        inside: of an image that was extended: where the original lies (top, left, height, width). Then "extend" goes
            on with its coordinates.

    Raises:
        InputError: for what the model cannot take, and for options without an effect.
    """
    if batch < 1:
        raise InputError(f"a batch has at least 1 image, not {batch}")
    shape = _pair(resolution) or model.resolution
    if shape is None:
        raise InputError("this model does not know the resolution of its images: give resolution=(height, width)")
    seen = _pair(tile)
    _check_stride(model, shape, seen)
    if seen is None and overlap is not None:
        raise InputError("overlap is that of tiles: give tile, too, or leave it out")
    if seen is not None and (seen[0] > shape[0] or seen[1] > shape[1]):
        raise InputError(f"a tile of {seen[0]}x{seen[1]} does not fit an image of {shape[0]}x{shape[1]}")
    overlap = 0 if seen is None else min(seen) // 4 if overlap is None else overlap
    if seen is not None and not 0 <= overlap < min(seen):
        raise InputError(f"tiles of {seen[0]}x{seen[1]} overlap by 0 to {min(seen) - 1} pixels, not {overlap}")
    kind = _kind(model, shape, seen, coords)
    if kind == "stretch":
        grid = coordinate_grid(*shape)
    elif kind == "repeat":
        grid = coordinate_grid(*(seen or shape))
    elif inside is not None:
        top, left, height, width = inside
        grid = extended_grid(shape, (height, width), (-top, -left))
    else:
        whole = model.resolution or shape
        grid = extended_grid(shape, whole, ((whole[0] - shape[0]) / 2, (whole[1] - shape[1]) / 2))
    usual = not model.coords or (kind == "stretch" and shape == model.resolution)
    return View(shape, grid.to(model.device), kind, seen, overlap, batch, usual)


def _kind(model: Denoiser, shape: Shape, tile: Shape | None, coords: Coords | None) -> Coords:
    if model.context is not None:
        if coords not in (None, "stretch"):
            raise InputError(f"coords '{coords}' leads beyond the small copy of the image that this model goes by")
        return "stretch"
    if coords is None:
        whole = model.resolution or shape
        return "repeat" if tile is not None and (shape[0] > whole[0] or shape[1] > whole[1]) else "stretch"
    if coords not in get_args(Coords):
        raise InputError(f"coords cannot be '{coords}'{did_you_mean(coords, get_args(Coords))}")
    if not model.coords:
        raise InputError("this model was trained without coordinates: leave coords out")
    if coords == "repeat" and tile is None:
        raise InputError("coords 'repeat' is for tiles: give tile, too")
    if coords == "extend" and model.resolution is None:
        raise InputError("this model does not know the resolution of its images, which coords 'extend' needs")
    return coords


def _check_stride(model: Denoiser, shape: Shape, tile: Shape | None) -> None:
    """Only what the network sees must suit it."""
    height, width = tile or shape
    if min(height, width, *shape) < 1 or height % model.stride or width % model.stride:
        what = "height and width" if tile is None else "height and width of a tile"
        raise InputError(f"{what} must be multiples of {model.stride} for this network, not {height}x{width}")


def _pair(side: int | Shape | None) -> Shape | None:
    return (side, side) if isinstance(side, int) else side
