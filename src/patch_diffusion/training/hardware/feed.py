"""From images in memory or on a disk to the device, without a step that waits for them."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from patch_diffusion.data.gather import Gather, Windows
from patch_diffusion.data.images import Images, ImageSet
from patch_diffusion.data.order import SampleOrder
from patch_diffusion.errors import InputError

SHARE_OF_DEVICE = 1 / 4
"""Of the free memory of the device, that all images may take to be kept there."""

SECONDS_TO_A_NOTE = 60.0
"""Without a batch, after which the user is told: of a network disk, perhaps, that does not answer."""

SECONDS_TO_THE_END = 1800.0
"""Without a batch, after which training ends with an error."""

_BYTES_AT_ONCE = 2**28

Asked = tuple[int, int, int, Windows | None]
"""A bucket, the first position of its order, how many positions, and the windows of these images."""


class Feed:
    """Gives images by their positions in the order, on the device.

    Where all images fit in a modest part of a device's memory they are copied there once, and gathered there. Otherwise
    a thread gathers what was said to come next while the device computes, into pinned memory where that helps. What is
    in the host's memory anyway is gathered when it is asked for. What comes out is the same, and a function of what was
    asked alone.

    Args:
        images: what the positions are of.
        orders: of each bucket.
        device: where pixels are wanted.
        note: tells the user something.
    """

    def __init__(
        self,
        images: Images,
        orders: Sequence[SampleOrder],
        device: torch.device,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._buckets, self._orders, self._device, self._note = images.buckets, list(orders), device, note
        self._pinned = device.type == "cuda"
        self._gather = [Gather(bucket.pixels) for bucket in images.buckets]
        self._watched = [_Watched(bucket) for bucket in images.buckets]
        self._in_memory = device.type == "cpu" and all(bucket.file is None for bucket in images.buckets)
        self._reader: _Reader | None = None
        self._ahead: tuple[Asked, Future[Tensor]] | None = None
        self._resident: list[Tensor] | None = None
        self._fits: bool | None = None

    def take(self, bucket: int, first: int, count: int, windows: Windows | None = None) -> tuple[Tensor, Tensor | None]:
        """Pixels (count, c, h, w) on the device, and labels (count,) on the host, at some positions of an order.

        Of each image all, or a window: then no more of it is read.

        Raises:
            InputError: nothing came for half an hour, or the file is not what it was.
        """
        images, indices = self._buckets[bucket], self._orders[bucket].indices(first, count)
        labels = images.labels_of(indices)
        if self._in_memory:
            return self._gather[bucket](images.rows(indices), None, windows), labels
        if self._on_device():
            assert self._resident is not None
            chosen = torch.from_numpy(images.rows(indices))
            if self._pinned:
                chosen = chosen.pin_memory()
            chosen = chosen.to(self._device, non_blocking=True)
            return _rows(self._resident[bucket], chosen, windows), labels
        asked = (bucket, first, count, windows)
        if self._ahead is None or self._ahead[0] != asked:
            self.expect(*asked)
        assert self._ahead is not None
        coming, self._ahead = self._ahead[1], None
        return self._wait(coming, bucket).to(self._device, non_blocking=True), labels

    def expect(self, bucket: int, first: int, count: int, windows: Windows | None = None) -> None:
        """Say what will be taken next, so that it is read meanwhile. If it is not, it was read for nothing."""
        if self._in_memory or self._on_device():
            return
        asked = (bucket, first, count, windows)
        images, gather, watched = self._buckets[bucket], self._gather[bucket], self._watched[bucket]
        order, pixels, pinned = self._orders[bucket], images.pixels, self._pinned

        def read() -> Tensor:
            watched.check()
            indices = images.rows(order.indices(first, count))
            if not pinned:
                return gather(indices, None, windows)
            # Pinned memory comes from torch's own pool, which does not give it to another before it was copied.
            lying = torch.channels_last if gather.channels_last else torch.contiguous_format
            shape = (count, pixels.shape[1], *(pixels.shape[2:] if windows is None else windows.size))
            to = torch.empty(shape, dtype=pixels.dtype, pin_memory=True, memory_format=lying)
            return gather(indices, to, windows)

        self._ahead = (asked, self._do(read))

    def _on_device(self) -> bool:
        """Whether all images are on the device; the first time this is asked they are copied there, if they fit."""
        if self._fits is None:
            num_bytes = sum(bucket.pixels.numel() * bucket.pixels.element_size() for bucket in self._buckets)
            self._fits = num_bytes <= SHARE_OF_DEVICE * free_memory(self._device)
            if self._fits:
                self._resident = []
                for number, images in enumerate(self._buckets):
                    self._resident.append(self._wait(self._do(self._copying(images, self._watched[number])), number))
        return self._fits

    def _copying(self, images: ImageSet, watched: _Watched) -> Callable[[], Tensor]:
        device = self._device

        def copy() -> Tensor:
            whole = torch.empty_like(images.pixels, device=device)
            rows = max(1, _BYTES_AT_ONCE // (whole[0].numel() * whole.element_size()))
            for start in range(0, len(whole), rows):
                watched.check()
                whole[start : start + rows].copy_(images.pixels[start : start + rows])
            return whole

        return copy

    def _do(self, task: Callable[[], Tensor]) -> Future[Tensor]:
        """In the thread, after what it was asked before."""
        if self._reader is None:
            self._reader = _Reader()
            # The thread holds the images, and goes when nobody asks any more.
            weakref.finalize(self, self._reader.end)
        return self._reader.do(task)

    def _wait(self, coming: Future[Tensor], bucket: int) -> Tensor:
        where = self._watched[bucket].name
        waited, patience = 0.0, SECONDS_TO_A_NOTE
        while True:
            wait([coming], patience)
            if coming.done():
                try:
                    return coming.result()
                except OSError as error:
                    raise InputError(f"{where} can no longer be read: {error.strerror or error}") from error
            waited += patience
            if waited >= SECONDS_TO_THE_END:
                raise InputError(
                    f"no data from {where} for {waited / 60:,.0f} minutes: is the disk there? The same command "
                    "continues from the last checkpoint"
                )
            self._note(f"waiting for data since {waited:,.0f} s: {where}")
            patience = min(10 * SECONDS_TO_A_NOTE, SECONDS_TO_THE_END - waited)


class _Watched:
    """A file that images are mapped from. Read behind its end, it would take the whole process down (SIGBUS)."""

    def __init__(self, images: ImageSet) -> None:
        self.name = str(images.file or images.options.source or "the images")
        self._descriptor: int | None = None
        if images.file is not None:
            # One that has no name any more stays as it is while it is mapped.
            with suppress(OSError):
                descriptor = os.open(images.file, os.O_RDONLY)
                self._descriptor = descriptor
                self._size = os.fstat(descriptor).st_size
                weakref.finalize(self, os.close, descriptor)

    def check(self) -> None:
        """Refuse a file that has become shorter. One that is cut in the very moment it is read still ends the process.

        Raises:
            InputError: it has.
        """
        if self._descriptor is not None and (size := os.fstat(self._descriptor).st_size) < self._size:
            raise InputError(
                f"{self.name} was cut from {self._size:,} to {size:,} bytes while it was read: restore it, and the "
                "same command continues from the last checkpoint"
            )


class _Reader:
    """One thread that does what it is asked, in order, and that no exit waits for."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        threading.Thread(target=_work, args=(self._tasks,), name="reading images", daemon=True).start()

    def do(self, task: Callable[[], Tensor]) -> Future[Tensor]:
        future: Future[Tensor] = Future()
        self._tasks.put((future, task))
        return future

    def end(self) -> None:
        self._tasks.put(None)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; none on the CPU, where images are already."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return 0


def _work(tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]) -> None:
    while (asked := tasks.get()) is not None:
        future, task = asked
        try:
            future.set_result(task())
        # Whatever it is, it is for the one who waits.
        except BaseException as error:
            future.set_exception(error)
        del asked, future, task  # nor does the thread keep the last batch while it waits


def _rows(pixels: Tensor, chosen: Tensor, windows: Windows | None = None) -> Tensor:
    """Some images of a tensor on a device, or windows of them, lying as it does."""
    if pixels.dtype == torch.uint16:  # not every device can index numbers of 16 bits without sign
        return _rows(pixels.view(torch.int16), chosen, windows).view(torch.uint16)
    if windows is not None:
        (height, width), device = windows.size, pixels.device
        top, left = (corner.to(device, non_blocking=True)[:, None] for corner in (windows.top, windows.left))
        rows = (top + torch.arange(height, device=device))[:, :, None]
        columns = (left + torch.arange(width, device=device))[:, None, :]
        return pixels.permute(0, 2, 3, 1)[chosen[:, None, None], rows, columns].permute(0, 3, 1, 2)
    if pixels.is_contiguous():
        return pixels.index_select(0, chosen)
    return pixels.permute(0, 2, 3, 1).index_select(0, chosen).permute(0, 3, 1, 2)
