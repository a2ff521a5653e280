"""Augmentation of whole images, on the device, before they are cut.

An image is altered first, then laid on its coordinate grid, and pixels and coordinates are cut together. So coordinates
belong to the frame and not to what it shows: after a flip, what was on the left has the coordinates of the right, and a
patch at (x, y) of the altered image is what the network is taught to see at (x, y). Altering patches that are already
cut would leave their coordinates behind, and moving the coordinates with the content would teach that places lie
outside the frame or run backwards, which never happens in sampling.

There are two kinds. A plain flip is not told to the network, so that samples are flipped as often: for data in which
left and right are of one kind. All others are told to it as numbers beside the noise level, which are zero where an
image is as it was; sampling with zeros gives images that are not altered, so nothing leaks into them (EDM, arXiv
2206.00364, appendix F.2, after ADA, arXiv 2006.06676).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from patch_diffusion import config as options
from patch_diffusion.errors import InputError
from patch_diffusion.streams import slot_normal

SCALE = 2**0.2
"""Factor of one standard deviation of scaling, and of stretching."""

SHIFT = 1 / 8
"""Share of the width or height that is one standard deviation of a translation."""

BRIGHTNESS, CONTRAST, SATURATION = 0.2, 2**0.5, 2.0
"""One standard deviation: in model space for brightness, factors for the others."""

_TAPS = 6  # pixels that the interpolating filters reach to each side
_REACH = 2 * _TAPS - 1  # the same in half pixels, without the outermost, which weigh nothing
_FRAME_LABELS, _COLOUR_LABELS = 9, 6
_DRAWS = 24  # random numbers of an image, of all kinds, so that none depends on which kinds are asked for


@dataclass(frozen=True)
class Augment(options.Augment):
    """Alters whole images, each on its own, and says how.

    Args:
        flip: probability of a plain horizontal flip, that the network is not told of. 0.5 doubles the data.
        p: probability of each of the alterations that the network is told of; EDM takes 0.12 for CIFAR-10, and 0.15 for
            faces and animals. Each is drawn on its own:

            | alteration | how much | numbers of the label |
            |---|---|---|
            | horizontal flip, of half the images at any p above 0 | a0, 0 or 1 | a0 |
            | vertical flip, drawn for half of those chosen | a1, 0 or 1 | a1 |
            | scaling by 2^(0.2 a2) | a2 normal | a2 |
            | rotation by a3, counter-clockwise | a3 uniform, -pi to pi | cos a3 - 1, sin a3 |
            | stretching by 2^(0.2 a5) along a4, by its inverse across | a4 like a3, a5 normal | a5 cos a4, a5 sin a4 |
            | translation by a6 / 8 of the width, a7 / 8 of the height | a6, a7 normal | a6, a7 |

            in this order, which is that of EDM's table 6: the first nine numbers. (A stretch along a4 and one by the
            inverse along a4 + pi have the same numbers, there as here.) What comes in from outside the frame is the
            image, mirrored at its outer pixels.
        resample: without it there is nothing between pixels: flips, and translations by whole pixels, are all. For
            drawings in pixels, or labels as images. The numbers of the others stay zero.
        colour: also, for three channels, the five of ADA's colour transformations, in this order: brightness b (0.2 b
            added), contrast c (times 2^(c / 2)), lightness turned over (l, 0 or 1), hue turned by h, saturation s
            (times 2^s); b, c and s normal, h uniform from -pi to pi. Other numbers of channels have brightness and
            contrast only, the same for all channels. Six more numbers: b, c, l, cos h - 1, sin h, s.

    Raises:
        InputError: no probability, or an option that does nothing without ``p``.

    >>> images, labels = Augment(p=0.12)(torch.rand(4, 3, 32, 48), seed=0, step=0, slots=range(4))
    >>> images.shape, labels.shape
    (torch.Size([4, 3, 32, 48]), torch.Size([4, 9]))
    """

    @classmethod
    def of(cls, group: options.Augment) -> Augment:
        """Return the augmentation by the options of a config."""
        return cls(**{field.name: getattr(group, field.name) for field in fields(options.Augment)})

    def __post_init__(self) -> None:
        for name in ("flip", "p"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"data.augment.{name} is a probability from 0 to 1, not {getattr(self, name)}")
        if not self.p and (self.colour or not self.resample):
            option = "colour" if self.colour else "resample"
            raise InputError(f"data.augment.{option} does nothing at data.augment.p 0: give p, for example 0.12")

    @property
    def channels(self) -> int:
        """Numbers that tell the network how an image was altered; 0 where it is not told."""
        return (_FRAME_LABELS + _COLOUR_LABELS * self.colour) if self.p else 0

    def __call__(self, images: Tensor, seed: int, step: int, slots: range) -> tuple[Tensor, Tensor | None]:
        """Alter images as the seed, the step and each one's slot in the batch say.

        Args:
            images: whole images (n, c, H, W), of any type for plain flips, in model space otherwise.
            seed, step: of the run.
            slots: the places of these images in the batch of all processes.

        Returns:
            The images, and the labels (n, channels), or None where ``p`` is 0. An image whose label is all zeros, and
            that was not flipped, is as it was, bit for bit.
        """
        if len(slots) != len(images):
            raise ValueError(f"{len(images)} images are not those of the slots {slots}")
        if self.p and not images.is_floating_point():
            raise ValueError(f"images of {images.dtype} are only flipped: encode them first")
        if not (self.flip or self.p):
            return images, None
        draws = _Draws(seed, step, slots)
        plain = draws.happens(self.flip)
        if not self.p:
            return _move_pixels(images, plain), None
        images, labels = self._move(images, plain, draws)
        if self.colour:
            images, more = self._recolour(images, draws)
            labels += more
        return images, torch.stack(labels, dim=1).float().to(images.device, non_blocking=True)

    def _move(self, images: Tensor, plain: Tensor, draws: _Draws) -> tuple[Tensor, list[Tensor]]:
        """The nine of EDM's table 6, with its names."""
        height, width = images.shape[-2:]
        a0 = draws.happens(0.5)
        a1 = draws.happens(self.p) * draws.happens(0.5)
        a2 = draws.happens(self.p) * draws.normal()
        a3 = draws.happens(self.p) * draws.angle()
        a4, a5 = draws.angle(), draws.happens(self.p) * draws.normal()
        moved = draws.happens(self.p)
        a6, a7 = moved * draws.normal(), moved * draws.normal()
        across, down = a6 * SHIFT * width, a7 * SHIFT * height
        flip_x = (plain + a0) % 2
        if self.resample:
            images = _move_pixels(images, flip_x, a1)
            forward = _rotation(a4) @ _scaling(SCALE**a5, SCALE**-a5) @ _rotation(-a4)
            forward = forward @ _rotation(-a3) @ _scaling(SCALE**a2, SCALE**a2)
            places = _frame(forward, torch.stack([across, down], dim=1), height, width)
            images = _change(images, [a2, a3, a5, moved], _warp, places)
        else:
            across, down = across.round(), down.round()
            images = _move_pixels(images, flip_x, a1, across, down)
            a2, a3, a5 = 0 * a2, 0 * a3, 0 * a5
            a6, a7 = across / (SHIFT * width), down / (SHIFT * height)
        return images, [a0, a1, a2, a3.cos() - 1, a3.sin(), a5 * a4.cos(), a5 * a4.sin(), a6, a7]

    def _recolour(self, images: Tensor, draws: _Draws) -> tuple[Tensor, list[Tensor]]:
        """ADA's colour transformations."""
        b = draws.happens(self.p) * draws.normal()
        c = draws.happens(self.p) * draws.normal()
        # On other than three channels there is no hue.
        p = self.p if images.shape[1] == 3 else 0.0
        turned_over = draws.happens(p) * draws.happens(0.5)
        h = draws.happens(p) * draws.angle()
        s = draws.happens(p) * draws.normal()
        numbers = torch.stack(
            [b * BRIGHTNESS, CONTRAST**c, 1 - 2 * turned_over, h.cos(), h.sin(), SATURATION**s], dim=1
        )
        images = _change(images, [b, c, turned_over, h, s], _colours, numbers)
        return images, [b, c, turned_over, h.cos() - 1, h.sin(), s]


class _Draws:
    """The random numbers of some slots, taken one after another, each (n,), on the CPU."""

    def __init__(self, seed: int, step: int, slots: range) -> None:
        self._left = iter(slot_normal(seed, "augment", step, slots, (_DRAWS,)).double().unbind(1))

    def normal(self) -> Tensor:
        return next(self._left)

    def happens(self, probability: float) -> Tensor:
        """1 with this probability, else 0."""
        return (torch.special.ndtr(self.normal()) < probability).double()

    def angle(self) -> Tensor:
        """Uniform from -pi to pi."""
        return (torch.special.ndtr(self.normal()) * 2 - 1) * math.pi


def _change(images: Tensor, amounts: list[Tensor], change: Callable[..., Tensor], numbers: Tensor) -> Tensor:
    """The images of which any amount is not zero, changed by their numbers; the others as they are.

    Which they are is known on the CPU, so nothing waits for the device.
    """
    chosen = torch.stack(amounts).any(dim=0).nonzero()[:, 0]
    if len(chosen) == 0:
        return images
    numbers = numbers[chosen].float().to(images.device, non_blocking=True)
    chosen = chosen.to(images.device, non_blocking=True)
    return images.index_copy(0, chosen, change(images[chosen], numbers).to(images.dtype))


def _move_pixels(
    images: Tensor,
    flip_x: Tensor,
    flip_y: Tensor | None = None,
    across: Tensor | None = None,
    down: Tensor | None = None,
) -> Tensor:
    """Flips, then translations by whole pixels: every pixel is one of the image's own."""
    columns = _sources(images.shape[3], flip_x, across).to(images.device, non_blocking=True)
    rows = _sources(images.shape[2], flip_y, down).to(images.device, non_blocking=True)
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _sources(side: int, flip: Tensor | None, shift: Tensor | None) -> Tensor:
    """The row or column that each one comes from, (n, side), or (1, side) where nothing moves."""
    indices = torch.arange(side)[None]
    if shift is not None:
        indices = _reflect(indices - shift.long()[:, None], side)
    return indices if flip is None else torch.where(flip[:, None] > 0, side - 1 - indices, indices)


def _frame(forward: Tensor, shift: Tensor, height: int, width: int) -> Tensor:
    """The places (n, 2, 3) of `affine_grid` that an image comes from which ``forward`` and then ``shift`` move."""
    size = torch.tensor([width, height], dtype=forward.dtype)
    # What -1 and 1 are, in pixels from the centre: the outer pixels of the image, and the frame that `_warp` fills.
    image, frame = (size - 1).clamp(min=1) / 2, (size - 1 + _REACH) / 2
    backward = forward.inverse() / image[:, None]
    return torch.cat([backward * frame, -backward @ shift[:, :, None]], dim=-1)


def _warp(images: Tensor, places: Tensor) -> Tensor:
    """Images as they are at other places, mirrored at their outer pixels.

    Interpolated at twice the resolution and brought back by a low-pass filter, like ADA's, so that fine detail neither
    fades as between two pixels nor becomes a moire where the image shrinks.
    """
    num, channels, height, width = images.shape
    shape = [num, channels, 2 * height - 1 + 2 * _REACH, 2 * width - 1 + 2 * _REACH]
    grid = F.affine_grid(places, shape, align_corners=True)
    fine = _finer(height, images.device) @ images.float() @ _finer(width, images.device).mT
    sampled = F.grid_sample(fine, grid, mode="bilinear", padding_mode="reflection", align_corners=True)
    return _coarser(height, images.device) @ sampled @ _coarser(width, images.device).mT


@lru_cache(maxsize=16)
def _finer(side: int, device: torch.device) -> Tensor:
    """(2 side - 1, side): the values that were there, and between them band-limited ones."""
    matrix = torch.zeros(2 * side - 1, side)
    matrix[::2] = torch.eye(side)
    for tap, weight in zip(range(1 - _TAPS, 1 + _TAPS), _sinc(torch.arange(-_TAPS, _TAPS) + 0.5), strict=True):
        before = torch.arange(side - 1)
        matrix[2 * before + 1, _reflect(before + tap, side)] += weight
    return matrix.to(device)


@lru_cache(maxsize=16)
def _coarser(side: int, device: torch.device) -> Tensor:
    """(side, 2 side - 1 + 2 reach): a low-pass filter on half pixels around each pixel."""
    matrix = torch.zeros(side, 2 * side - 1 + 2 * _REACH)
    for tap, weight in enumerate(_sinc(torch.arange(-_REACH, _REACH + 1) / 2)):
        matrix[torch.arange(side), 2 * torch.arange(side) + tap] = weight
    return matrix.to(device)


def _sinc(places: Tensor) -> Tensor:
    """A windowed sinc at these places, in pixels, of sum 1."""
    weights = torch.sinc(places) * torch.cos(places * (math.pi / (2 * _TAPS))).square()
    return weights / weights.sum()


def _reflect(indices: Tensor, side: int) -> Tensor:
    """Indices anywhere to those in [0, side), mirrored at the first and the last pixel."""
    period = max(2 * (side - 1), 1)
    indices = indices.remainder(period)
    return torch.where(indices < side, indices, period - indices)


def _colours(images: Tensor, numbers: Tensor) -> Tensor:
    """Brightness and contrast, and of three channels what lies along and around the grey axis."""
    brightness, contrast, lightness, cos, sin, saturation = numbers[:, :, None, None, None].unbind(1)
    images = (images + brightness) * contrast
    if images.shape[1] != 3:
        return images
    grey = images.mean(1, keepdim=True)
    colour = images - grey
    # The cross product with the axis (1, 1, 1) / sqrt(3) is a difference of neighbours.
    across = (colour.roll(1, 1) - colour.roll(-1, 1)) / math.sqrt(3)
    return lightness * grey + saturation * (cos * colour + sin * across)


def _rotation(angle: Tensor) -> Tensor:
    """(n, 2, 2) on x to the right and y down: clockwise as it is seen."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], dim=-1).reshape(-1, 2, 2)


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    """(n, 2, 2)."""
    return torch.diag_embed(torch.stack([x, y], dim=-1))
