"""The facts of a machine that matter to training, none of which is private: hardware, drivers and versions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch

from patch_diffusion.devices import choose_device, device_name, memory_of, processor_has_bf16
from patch_diffusion.evaluation.circumstances import circumstances
from patch_diffusion.installation import environment

_COMPILERS = ("c++", "g++", "clang++", "cl")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def machine() -> dict[str, Any]:
    """Describe this machine as a dict that JSON can store.

    Returns:
        ``device``, the one that training takes; ``processor`` and ``gpus``, hardware; ``drivers``, by their names;
        and from `environment`: ``system``, ``versions``, ``missing`` (libraries by extra), with the ``commit`` of this
        package, None if it is not known.
    """
    found, device = environment(), choose_device()
    return {
        "device": device.type,
        "system": found["system"],
        "processor": _processor(),
        "gpus": list(_gpus()),
        "drivers": _drivers(),
        "versions": found["versions"],
        "commit": circumstances(torch.device("cpu"))["commit"] or _installed_commit(),
        "missing": found["missing"],
    }


def has_compiler() -> bool:
    """True if there is a C++ compiler, which ``torch.compile`` needs for code of the CPU."""
    named = os.environ.get("CXX")
    return any(shutil.which(name) for name in ([named] if named else _COMPILERS))


def _installed_commit() -> str | None:
    """Return the commit that pip or uv installed this package from; None if it was not installed from git."""
    with suppress(PackageNotFoundError, ValueError, AttributeError):
        origin = json.loads(distribution("patch_diffusion").read_text("direct_url.json") or "{}")
        return origin.get("vcs_info", {}).get("commit_id")
    return None


def _processor() -> dict[str, Any]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": device_name(torch.device("cpu")),
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "quota": _quota(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bf16": processor_has_bf16(),
        "memory": memory_of(torch.device("cpu")),
        "compiler": has_compiler(),
    }


def _quota() -> float | None:
    """Return how many cores a container may use; None if there is no such limit."""
    with suppress(OSError, ValueError):
        most, period = _QUOTA.read_text(encoding="utf-8").split()
        return int(most) / int(period)
    return None


def _gpus() -> Iterator[dict[str, Any]]:
    for place in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(place)
        free = None
        with suppress(RuntimeError):  # a GPU that lets nobody in is still named
            free = torch.cuda.mem_get_info(place)[0]
        yield {
            "name": facts.name,
            "memory": facts.total_memory,
            "free": free,
            "capability": f"{facts.major}.{facts.minor}",
            "multiprocessors": facts.multi_processor_count,
        }
    if torch.backends.mps.is_available():
        mps = torch.device("mps")
        yield {"name": device_name(mps), "memory": torch.mps.recommended_max_memory()}


def _drivers() -> dict[str, str]:
    """Return the versions of what lies between torch and GPUs, by name; those that are not there are left out."""
    found: dict[str, Any] = {"cuda": torch.version.cuda, "hip": torch.version.hip}
    if torch.cuda.is_available():
        found["driver"] = _nvidia_driver()
        found["cudnn"] = torch.backends.cudnn.version()
        if torch.distributed.is_available() and torch.distributed.is_nccl_available():
            from torch.cuda import nccl

            found["nccl"] = ".".join(map(str, nccl.version()))
    return {name: str(value) for name, value in found.items() if value}


def _nvidia_driver() -> str | None:
    """Return the version of NVIDIA's driver, or None."""
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else next(iter(done.stdout.split()), None)
