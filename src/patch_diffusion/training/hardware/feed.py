"""Transfer of training images from memory or a disk to the device."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patch_diffusion.data.gather import Gather, Windows, moved
from patch_diffusion.data.images import Images, ImageSet
from patch_diffusion.data.order import SampleOrder
from patch_diffusion.errors import InputError
from patch_diffusion.transfer import to_device, type_on

SHARE_OF_DEVICE = 1 / 4
"""The largest share of the device's free memory that all training images may take to be kept on the device."""

_BYTES_AT_ONCE = 2**28
_PLACES, _BYTES_AT_A_PLACE = 64, 256  # that are compared of a file whose time has changed


class Feed:
    """A source of training images on the device, by their positions in a shuffled order.

    Where all images fit in a modest part of a device's memory they are copied there once, and gathered there. Otherwise
    they are gathered on the host, into pinned memory where that helps. The result is the same either way. It is called
    in the thread of a `Prefetcher`, so that no step waits for a disk.

    Args:
        images: all images, in one or several buckets.
        orders: the order of the images of each bucket.
        device: the device of the returned pixels.

    Attributes:
        reading: name of the file that was read last.
    """

    def __init__(self, images: Images, orders: Sequence[SampleOrder], device: torch.device) -> None:
        self._buckets, self._orders, self._device = images.buckets, list(orders), device
        self._gather = [Gather(bucket.pixels) for bucket in images.buckets]
        self._watched = [_Watched(bucket) for bucket in images.buckets]
        self._in_memory = device.type == "cpu" and all(bucket.file is None for bucket in images.buckets)
        self._resident: list[Tensor] | None = None
        self._fits: bool | None = None
        self.reading: str = self._watched[0].name

    def get(
        self, bucket: int, first: int, count: int, windows: Windows | None = None
    ) -> tuple[Tensor, NDArray[np.int64]]:
        """Return pixels (count, c, h, w) on the device and the indices of the images, from position ``first`` on.

        Only a window of each image is read and returned if ``windows`` are given.

        Raises:
            InputError: the file can no longer be read, or was cut short.
        """
        images, indices = self._buckets[bucket], self._orders[bucket].indices(first, count)
        rows = images.rows(indices)
        if self._in_memory:
            return self._gather[bucket](rows, None, windows), indices
        self.reading = self._watched[bucket].name
        try:
            if self._on_device():
                assert self._resident is not None
                chosen = to_device(torch.from_numpy(rows), self._device)
                return moved(lambda pixels: _rows(pixels, chosen, windows), self._resident[bucket]), indices
            self._watched[bucket].check()
            gather, out = self._gather[bucket], None
            if self._device.type == "cuda":
                lying = torch.channels_last if gather.channels_last else torch.contiguous_format
                shape = (count, images.pixels.shape[1], *(images.resolution if windows is None else windows.size))
                out = torch.empty(shape, dtype=images.pixels.dtype, pin_memory=True, memory_format=lying)
            return to_device(gather(rows, out, windows), self._device), indices
        except OSError as error:
            raise InputError(f"{self.reading} can no longer be read: {error.strerror or error}") from error

    def _on_device(self) -> bool:
        """Return True if all images are on the device; the first call copies them there, if they fit."""
        if self._fits is None:
            num_bytes = sum(bucket.pixels.numel() * bucket.pixels.element_size() for bucket in self._buckets)
            self._fits = num_bytes <= SHARE_OF_DEVICE * free_memory(self._device)
            if self._fits:
                self._resident = [self._copied(*each) for each in zip(self._buckets, self._watched, strict=True)]
        return self._fits

    def _copied(self, images: ImageSet, watched: _Watched) -> Tensor:
        """Return a copy of all images on the device, made in pieces."""
        self.reading = watched.name
        whole = torch.empty_like(images.pixels, device=self._device, dtype=type_on(self._device, images.pixels.dtype))
        rows = max(1, _BYTES_AT_ONCE // (whole[0].numel() * whole.element_size()))
        for start in range(0, len(whole), rows):
            watched.check()
            whole[start : start + rows].copy_(images.pixels[start : start + rows])
        return whole


class _Watched:
    """A watched file of memory-mapped images, which another process may change, or cut short: reading past its end
    kills this one."""

    def __init__(self, images: ImageSet) -> None:
        self.name = str(images.file or images.options.source or "the images")
        self._descriptor: int | None = None
        if images.file is not None:
            # A deleted file keeps its content while it is mapped.
            with suppress(OSError):
                descriptor = os.open(images.file, os.O_RDONLY | getattr(os, "O_BINARY", 0))
                weakref.finalize(self, os.close, descriptor)
                found = os.fstat(descriptor)
                self._size, self._time = found.st_size, found.st_mtime_ns
                self._some = self._some_bytes(descriptor)
                self._descriptor = descriptor

    def check(self) -> None:
        """Raise InputError if the file has become shorter, or some of its bytes are others, once its time has changed.

        If it is cut short during the read itself, the process still ends.
        """
        if self._descriptor is None:
            return
        found = os.fstat(self._descriptor)
        if found.st_size < self._size:
            happened = f"cut from {self._size:,} to {found.st_size:,} bytes"
        elif found.st_mtime_ns != self._time and self._some_bytes(self._descriptor) != self._some:
            happened = "changed"
        else:
            self._time = found.st_mtime_ns
            return
        raise InputError(
            f"{self.name} was {happened} while it was read: restore it, and the same command continues from the last "
            "checkpoint"
        )

    def _some_bytes(self, descriptor: int) -> bytes:
        """Read some bytes from places that are spread over the file."""
        found = b""
        for part in range(_PLACES):
            os.lseek(descriptor, part * self._size // _PLACES, os.SEEK_SET)
            found += os.read(descriptor, _BYTES_AT_A_PLACE)
        return found


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device; 0 for the CPU, in whose memory the images are already."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return 0


def _rows(pixels: Tensor, chosen: Tensor, windows: Windows | None = None) -> Tensor:
    """Return the ``chosen`` images of a tensor on a device, or windows of them, in the tensor's memory layout."""
    if windows is not None:
        (height, width), device = windows.size, pixels.device
        top, left = (to_device(corner, device)[:, None] for corner in (windows.top, windows.left))
        rows = (top + torch.arange(height, device=device))[:, :, None]
        columns = (left + torch.arange(width, device=device))[:, None, :]
        return pixels.permute(0, 2, 3, 1)[chosen[:, None, None], rows, columns].permute(0, 3, 1, 2)
    if pixels.is_contiguous():
        return pixels.index_select(0, chosen)
    return pixels.permute(0, 2, 3, 1).index_select(0, chosen).permute(0, 3, 1, 2)
