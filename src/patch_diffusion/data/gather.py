"""Gathering of batches: copies of chosen images, or of windows of them, from host memory or a memory-mapped file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def moved(move: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """Return ``move(pixels)`` for a function that only moves pixels, as indexing does, on any device.

    Not every device can index numbers of 16 bits without sign, so they are moved as numbers with a sign.
    """
    if pixels.dtype == torch.uint16:
        return move(pixels.view(torch.int16)).view(torch.uint16)
    return move(pixels)


@dataclass(frozen=True, eq=False)
class Windows:
    """Crop windows of k images: the first rows ``top`` (k,), first columns ``left`` (k,), and a common ``size``."""

    top: Tensor
    left: Tensor
    size: tuple[int, int]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Windows) or self.size != other.size:
            return False
        return torch.equal(self.top, other.top) and torch.equal(self.left, other.left)


class Gather:
    """A callable that copies a batch of images, or a window of each, given their indices.

    Args:
        pixels: all images, (n, c, h, w); if their memory layout is channels-last, that of the copies is, too.
    """

    def __init__(self, pixels: Tensor) -> None:
        self._pixels = pixels
        last = pixels.permute(0, 2, 3, 1)
        self.channels_last: bool = not pixels.is_contiguous() and last.is_contiguous()
        self._rows: NDArray[Any] | None = None
        if pixels.is_contiguous() or self.channels_last:
            self._rows = (last if self.channels_last else pixels).numpy()

    def __call__(self, indices: NDArray[np.int64], out: Tensor | None = None, windows: Windows | None = None) -> Tensor:
        """Return a copy (k, c, h, w) of the pixels of the images with these indices, or of a window of each.

        Args:
            indices: indices of the images.
            out: the tensor to copy to, in the memory layout of ``pixels``.
            windows: the window to copy of each image; None copies whole images.

        Raises:
            IndexError: there is no such image; only raised without ``out``.
        """
        if windows is not None:
            return self._windows(indices, out, windows)
        if self._rows is None:
            chosen = self._pixels[torch.from_numpy(indices)]
            return chosen if out is None else out.copy_(chosen)
        # NumPy copies whole images five times as fast as indexing a tensor does, and only in this thread.
        if out is None:
            chosen = torch.from_numpy(np.take(self._rows, indices, axis=0))
            return chosen.permute(0, 3, 1, 2) if self.channels_last else chosen
        rows = out.permute(0, 2, 3, 1) if self.channels_last else out
        np.take(self._rows, indices, axis=0, out=rows.numpy(), mode="clip")  # "raise" would copy twice
        return out

    def _windows(self, indices: NDArray[np.int64], out: Tensor | None, windows: Windows) -> Tensor:
        height, width = windows.size
        if out is None:
            lying = torch.channels_last if self.channels_last else torch.contiguous_format
            shape = (len(indices), self._pixels.shape[1], height, width)
            out = torch.empty(shape, dtype=self._pixels.dtype, memory_format=lying)
        # NumPy slices cost a tenth of a tensor's.
        to, channels = (out.permute(0, 2, 3, 1) if self.channels_last else out).numpy(), slice(None)
        pixels = self._pixels.numpy() if self._rows is None else self._rows
        for number, (index, top, left) in enumerate(
            zip(indices.tolist(), windows.top.tolist(), windows.left.tolist(), strict=True)
        ):
            rows, columns = slice(top, top + height), slice(left, left + width)
            to[number] = pixels[(index, rows, columns) if self.channels_last else (index, channels, rows, columns)]
        return out
