"""The choice of the device to compute on, and the names of devices."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch

from patch_diffusion.errors import InputError, about

_CPU_NAMES = Path("/proc/cpuinfo")


@about("engine.device")
def choose_device(name: str = "auto") -> torch.device:
    """Return the device with this name, or raise an `InputError`; "auto" is a GPU if there is one, else the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        there = [f"cuda:{place}" for place in range(torch.cuda.device_count())]
        there += ["mps"] if torch.backends.mps.is_available() else []
        raise InputError(f"the device '{name}' is not there: take {', '.join(['auto', 'cpu', *there])}") from None
    return device


@about("engine.device")
def device_of_process(name: str, world: int) -> torch.device:
    """Return the device of this process, one of ``world`` processes: the GPU of its local rank, or the CPU for all."""
    device = choose_device(name)
    if world == 1 or device.type == "cpu":
        return device
    if device.type == "mps":
        raise InputError("a Mac's GPU takes one process: leave out engine.processes, or set engine.device to cpu")
    if device.index is not None:
        raise InputError(f"{world} processes cannot share {name}: set engine.device to cuda, and each takes its own")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise InputError(
            f"process {local} of this machine has no GPU, of {torch.cuda.device_count()} in all: start fewer processes"
        )
    return torch.device("cuda", local)


def processor_has_bf16() -> bool:
    """True if the CPU has instructions for bf16 arithmetic; without them, bf16 is slower than float32."""
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # the oldest supported torch has no public names
    return any(getattr(torch.cpu, name, bool)() for name in known)


def has_bf16(device: torch.device) -> bool:
    """Return True if a device is a CUDA GPU with instructions for bf16 arithmetic."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def check_format(name: str, device: torch.device) -> None:
    """Raise InputError if a device cannot compute in a number format: "fp32", "bf16" or "fp16"."""
    if name == "bf16" and device.type == "cuda" and not has_bf16(device):
        raise InputError("this GPU has no bf16: take fp16 or fp32")
    if name == "fp16" and device.type != "cuda":
        raise InputError(f"fp16 is for CUDA: take bf16 or fp32 on {device.type}")


def memory_of(device: torch.device) -> int | None:
    """Return the total memory of a device in bytes; None if it is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def device_name(device: torch.device) -> str:
    """Return the product name of a CUDA GPU; for any other device that of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = [platform.processor() or platform.machine()]
    if _CPU_NAMES.exists():
        lines = _CPU_NAMES.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")] or names
    return names[0] if device.type == "cpu" else f"{names[0]} ({device.type})"


def system_name() -> str:
    """Return the operating system with its version in numbers alone, as the name of a kernel may tell whose it is.

    >>> system_name().split()[0] in ("Linux", "Darwin", "Windows")
    True
    """
    version = re.match(r"[\d.]*\d", platform.release())
    parts = platform.system(), version.group() if version else "", platform.machine()
    return " ".join(part for part in parts if part)
