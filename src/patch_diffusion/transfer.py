"""Copies from the host to a device that neither the host nor the device's queue of work waits for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; a copy to a CUDA GPU is only queued, behind the work that is queued there.

    Such a copy is taken from page-locked memory, which torch does not hand out again before the copy is done. Other
    devices are waited for: older torch frees the memory of a copy that an Apple GPU has not made yet. Whole numbers of
    16 bits without sign become int32 on an Apple GPU, as older torch has none there.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device, type_on(device, tensor.dtype))
    if not tensor.is_pinned():
        tensor = torch.empty_like(tensor, pin_memory=True).copy_(tensor)
    return tensor.to(device, non_blocking=True)


def type_on(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return the type that pixels of a type have on a device, see `to_device`."""
    return torch.int32 if dtype == torch.uint16 and device.type == "mps" else dtype


def copied_once(tensor: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function that gives a constant on the device and in the type of another tensor, copied there once."""

    @cache
    def copy(device: torch.device, dtype: torch.dtype) -> Tensor:
        return to_device(tensor.to(dtype), device)

    return lambda like: copy(like.device, like.dtype)
