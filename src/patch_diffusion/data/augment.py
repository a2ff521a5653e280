"""Augmentation of whole images, on the device, before patches are cropped from them.

An image is augmented first, then gets its coordinate grid, and pixels and coordinates are cropped together. So the
coordinates belong to the frame and not to its content: after a flip, content from the left has the coordinates of the
right, and a patch at (x, y) of the augmented image is what the network learns to see at (x, y). Augmenting patches that
are already cropped would leave their coordinates behind, and moving the coordinates with the content would teach the
network coordinates outside the frame or in reverse order, which never occur in sampling.

There are two kinds of augmentation. The network is not conditioned on a plain flip, so samples are flipped as often as
training images: this suits data in which left and right are alike. It is conditioned on all others, by numbers next to
the noise level, which are zero for an image that is not augmented; sampling with zeros gives images without
augmentation, so none leaks into them (EDM, arXiv 2206.00364, appendix F.2, after ADA, arXiv 2006.06676).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from patch_diffusion import config as options
from patch_diffusion.data.gather import moved
from patch_diffusion.errors import option_error
from patch_diffusion.streams import slot_normal
from patch_diffusion.transfer import to_device

SCALE = 2**0.2
"""The factor by which an image is scaled, or stretched, at one standard deviation of the random amount."""

SHIFT = 1 / 8
"""One standard deviation of a random translation, as a share of the width or height."""

BRIGHTNESS, CONTRAST, SATURATION = 0.2, 2**0.5, 2.0
"""One standard deviation of random changes of brightness (added in model space), contrast and saturation (factors)."""

_TAPS = 6  # pixels that the interpolation filters reach to each side
_REACH = 2 * _TAPS - 1  # the same in half pixels, without the outermost, whose weight is zero
_FRAME_LABELS, _COLOUR_LABELS = 9, 6
_DRAWS = 24  # random numbers per image, for all kinds, so that no number depends on which kinds are enabled


@dataclass(frozen=True)
class Augment(options.Augment):
    """Random augmentation of whole images, each on its own, with labels that condition the network on it.

    Args:
        flip: probability of a plain horizontal flip, which the network is not conditioned on. 0.5 doubles the data.
        p: probability of each of the augmentations that the network is conditioned on; EDM uses 0.12 for CIFAR-10, and
            0.15 for faces and animals. Each is drawn independently:

            | augmentation | amount | numbers of the label |
            |---|---|---|
            | horizontal flip, of half the images at any p above 0 | a0, 0 or 1 | a0 |
            | vertical flip, drawn for half of those chosen | a1, 0 or 1 | a1 |
            | scaling by 2^(0.2 a2) | a2 normal | a2 |
            | rotation by a3, counter-clockwise | a3 uniform, -pi to pi | cos a3 - 1, sin a3 |
            | stretching by 2^(0.2 a5) along an axis at a4, counter-clockwise | see below | a5 cos a4, a5 sin a4 |
            | translation by a6 / 8 of the width, a7 / 8 of the height | a6, a7 normal | a6, a7 |

            in this order, which is that of EDM's table 6. They make the first nine numbers of the label. A stretch is
            undone across its axis, which is turned for half of the images: a4 is like a3 for them, else 0, and a5 is
            normal. (A stretch along an axis and one by the inverse along its opposite have the same numbers, there as
            here.) Beyond the frame, the image is mirrored at its outer pixels.
        resample: if false, there is no interpolation, and only flips and translations by whole pixels are done. This
            suits pixel art, or label maps. The numbers of the other augmentations stay zero.
        colour: if true, and for three channels, also do ADA's five colour transformations, in this order: brightness b
            (adds 0.2 b), contrast c (times 2^(c / 2)), lightness inversion (l, 0 or 1), hue rotation by h, saturation s
            (times 2^s); b, c and s are normal, h is uniform from -pi to pi. Other numbers of channels get brightness
            and contrast only, the same for all channels. Six more numbers: b, c, l, cos h - 1, sin h, s.
        published: set by the trainer; false for runs of earlier versions, which turn every axis, and clockwise.

    Raises:
        InputError: a probability is not in [0, 1], or an option has no effect without ``p``.

    >>> images, labels = Augment(p=0.12)(torch.rand(4, 3, 32, 48), seed=0, step=0, slots=range(4))
    >>> images.shape, labels.shape
    (torch.Size([4, 3, 32, 48]), torch.Size([4, 9]))
    """

    published: bool = True

    @classmethod
    def of(cls, group: options.Augment, *, published: bool = True) -> Augment:
        """Make the augmentation from the options ``data.augment`` of a config; an `Augment` keeps its class."""
        if isinstance(group, Augment):
            return replace(group, published=published)
        names = [field.name for field in fields(options.Augment)]
        return cls(**{name: getattr(group, name) for name in names}, published=published)

    def __post_init__(self) -> None:
        for name in ("flip", "p"):
            if not 0 <= getattr(self, name) <= 1:
                raise option_error(f"data.augment.{name}", f"is a probability from 0 to 1, not {getattr(self, name)}")
        if not self.p and (self.colour or not self.resample):
            option = "colour" if self.colour else "resample"
            raise option_error(f"data.augment.{option}", "does nothing at data.augment.p 0: give p, for example 0.12")

    @property
    def channels(self) -> int:
        """The length of an image's augmentation label, which the network is conditioned on; 0 without labels."""
        return (_FRAME_LABELS + _COLOUR_LABELS * self.colour) if self.p else 0

    def __call__(self, images: Tensor, seed: int, step: int, slots: range) -> tuple[Tensor, Tensor | None]:
        """Augment images at random, determined by the seed, the step and each image's slot in the batch.

        Args:
            images: whole images (n, c, H, W), of any dtype for plain flips, in model space otherwise.
            seed, step: the seed of the training, and the number of the training step.
            slots: the positions of these images in the global batch of all processes.

        Returns:
            The images, and the labels (n, channels), or None if ``p`` is 0. An image whose label is all zeros, and
            that was not flipped, is unchanged, bit for bit.
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
        return images, to_device(torch.stack(labels, dim=1).float(), images.device)

    def _move(self, images: Tensor, plain: Tensor, draws: _Draws) -> tuple[Tensor, list[Tensor]]:
        """Apply the geometric augmentations of EDM's table 6, with its names, and return their nine label numbers."""
        height, width = images.shape[-2:]
        a0 = draws.happens(0.5)
        a1 = draws.happens(self.p) * draws.happens(0.5)
        a2 = draws.happens(self.p) * draws.normal()
        a3 = draws.happens(self.p) * draws.angle()
        a4, a5 = draws.angle(0.5 if self.published else 1.0), draws.happens(self.p) * draws.normal()
        moved = draws.happens(self.p)
        a6, a7 = moved * draws.normal(), moved * draws.normal()
        across, down = a6 * SHIFT * width, a7 * SHIFT * height
        flip_x = (plain + a0) % 2
        if self.resample:
            images = _move_pixels(images, flip_x, a1)
            axis = -a4 if self.published else a4
            forward = _rotation(axis) @ _scaling(SCALE**a5, SCALE**-a5) @ _rotation(-axis)
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
        """Apply ADA's colour transformations to images, and return their six label numbers."""
        b = draws.happens(self.p) * draws.normal()
        c = draws.happens(self.p) * draws.normal()
        # Hue is only defined for three channels.
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
    """A source of random numbers for n images of a batch: each call draws one number per image, (n,), on the CPU."""

    def __init__(self, seed: int, step: int, slots: range) -> None:
        self._left = iter(slot_normal(seed, "augment", step, slots, (_DRAWS,)).double().unbind(1))

    def normal(self) -> Tensor:
        return next(self._left)

    def happens(self, probability: float) -> Tensor:
        """Draw 1 with this probability, else 0, for each image."""
        return (torch.special.ndtr(self.normal()) < probability).double()

    def angle(self, share: float = 1.0) -> Tensor:
        """Draw an angle for each image: uniform from -pi to pi with the probability ``share``, else 0."""
        place = torch.special.ndtr(self.normal()) / share
        return torch.where(place <= 1, (place * 2 - 1) * math.pi, 0.0)


def _change(images: Tensor, amounts: list[Tensor], change: Callable[..., Tensor], numbers: Tensor) -> Tensor:
    """Apply a function to the images for which any amount is not zero, and leave the others unchanged.

    The amounts are on the CPU, so this needs no synchronization with the device.
    """
    chosen = torch.stack(amounts).any(dim=0).nonzero()[:, 0]
    if len(chosen) == 0:
        return images
    numbers, chosen = to_device(numbers[chosen].float(), images.device), to_device(chosen, images.device)
    return images.index_copy(0, chosen, change(images[chosen], numbers).to(images.dtype))


def _move_pixels(
    images: Tensor,
    flip_x: Tensor,
    flip_y: Tensor | None = None,
    across: Tensor | None = None,
    down: Tensor | None = None,
) -> Tensor:
    """Flip, then translate each image by the given whole pixels, by indexing alone: nothing is interpolated."""
    columns = to_device(_sources(images.shape[3], flip_x, across), images.device)
    rows = to_device(_sources(images.shape[2], flip_y, down), images.device)
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    places = (sample, rows[:, :, None], columns[:, None, :])
    return moved(lambda pixels: pixels.permute(0, 2, 3, 1)[places].permute(0, 3, 1, 2), images)


def _sources(side: int, flip: Tensor | None, shift: Tensor | None) -> Tensor:
    """Return the source index of each row or column after a flip and a shift, (n, side); (1, side) if nothing moves."""
    indices = torch.arange(side)[None]
    if shift is not None:
        indices = _reflect(indices - shift.long()[:, None], side)
    return indices if flip is None else torch.where(flip[:, None] > 0, side - 1 - indices, indices)


def _frame(forward: Tensor, shift: Tensor, height: int, width: int) -> Tensor:
    """Return matrices (n, 2, 3) for `affine_grid`, the inverse of moving an image by ``forward`` and then ``shift``."""
    size = torch.tensor([width, height], dtype=forward.dtype)
    # The half sizes in pixels, where coordinates are 1: of the image's outer pixels, and of the frame `_warp` fills.
    image, frame = (size - 1).clamp(min=1) / 2, (size - 1 + _REACH) / 2
    backward = forward.inverse() / image[:, None]
    return torch.cat([backward * frame, -backward @ shift[:, :, None]], dim=-1)


def _warp(images: Tensor, places: Tensor) -> Tensor:
    """Transform images by given affine matrices (n, 2, 3); beyond the frame, they are mirrored at their outer pixels.

    They are interpolated at twice the resolution and downsampled by a low-pass filter, as in ADA, so that fine detail
    neither blurs, as between two pixels, nor becomes a moire where the image shrinks.
    """
    num, channels, height, width = images.shape
    shape = [num, channels, 2 * height - 1 + 2 * _REACH, 2 * width - 1 + 2 * _REACH]
    grid = F.affine_grid(places, shape, align_corners=True)
    fine = _finer(height, images.device) @ images.float() @ _finer(width, images.device).mT
    sampled = F.grid_sample(fine, grid, mode="bilinear", padding_mode="reflection", align_corners=True)
    return _coarser(height, images.device) @ sampled @ _coarser(width, images.device).mT


@lru_cache(maxsize=16)
def _finer(side: int, device: torch.device) -> Tensor:
    """Return the matrix (2 side - 1, side) that upsamples an axis with band-limited values in between."""
    matrix = torch.zeros(2 * side - 1, side)
    matrix[::2] = torch.eye(side)
    for tap, weight in zip(range(1 - _TAPS, 1 + _TAPS), _sinc(torch.arange(-_TAPS, _TAPS) + 0.5), strict=True):
        before = torch.arange(side - 1)
        matrix[2 * before + 1, _reflect(before + tap, side)] += weight
    return to_device(matrix, device)


@lru_cache(maxsize=16)
def _coarser(side: int, device: torch.device) -> Tensor:
    """Return the matrix (side, 2 side - 1 + 2 reach) that downsamples an axis of half pixels with a low-pass filter."""
    matrix = torch.zeros(side, 2 * side - 1 + 2 * _REACH)
    for tap, weight in enumerate(_sinc(torch.arange(-_REACH, _REACH + 1) / 2)):
        matrix[torch.arange(side), 2 * torch.arange(side) + tap] = weight
    return to_device(matrix, device)


def _sinc(places: Tensor) -> Tensor:
    """Return the weights of a windowed sinc at these positions, in pixels, normalized to sum 1."""
    weights = torch.sinc(places) * torch.cos(places * (math.pi / (2 * _TAPS))).square()
    return weights / weights.sum()


def _reflect(indices: Tensor, side: int) -> Tensor:
    """Map any indices into [0, side) by mirroring at the first and the last pixel."""
    period = max(2 * (side - 1), 1)
    indices = indices.remainder(period)
    return torch.where(indices < side, indices, period - indices)


def _colours(images: Tensor, numbers: Tensor) -> Tensor:
    """Change each image's colours by given numbers (n, 6): brightness, contrast and, of three channels, all others."""
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
    """Return rotation matrices (n, 2, 2) for x to the right and y down: positive angles look clockwise."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], dim=-1).reshape(-1, 2, 2)


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    """Return diagonal matrices (n, 2, 2) that scale by ``x`` and ``y``."""
    return torch.diag_embed(torch.stack([x, y], dim=-1))
