"""The state of a run on disk: tensors in safetensors files, numbers in JSON, nothing pickled, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from patch_diffusion.errors import InputError

STATE_FILE = "state.json"


def write_checkpoint(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Write ``folder`` with one ``NAME.safetensors`` per group of tensors and ``state.json``.

    All is written under another name and synced to the disk first, so ``folder`` exists only when it is complete.
    """
    partial = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    check_room(folder.parent, sum(tensor.nbytes for group in tensors.values() for tensor in group.values()))
    try:
        partial.mkdir(parents=True)
        for name, group in tensors.items():
            write_tensors(partial / f"{name}.safetensors", group)
        write_text(partial / STATE_FILE, json.dumps(state, indent=1))
        if folder.exists():
            remove_checkpoint(folder)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync(folder.parent)


def read_checkpoint(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What `write_checkpoint` wrote."""
    state = read_json(folder / STATE_FILE)
    return {file.stem: read_tensors(file) for file in sorted(folder.glob("*.safetensors"))}, state


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint; under another name first, so that a part of one is never taken for a whole."""
    doomed = folder.rename(folder.with_name(folder.name + ".old"))
    shutil.rmtree(doomed)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file under another name, sync it, rename it."""
    partial = path.with_name(path.name + ".tmp")
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
        _sync(partial)
        partial.replace(path)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from None
    finally:
        partial.unlink(missing_ok=True)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged: {error}") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file under another name, sync it, rename it."""
    partial = path.with_name(path.name + ".tmp")
    try:
        partial.write_text(text, encoding="utf-8")
        _sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it holds a {type(content).__name__}, not an object")
    return content


def check_room(folder: Path, num_bytes: int) -> None:
    """Refuse to start what the disk has no room for."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise InputError(
            f"the disk of {folder} has {free / 1e6:,.1f} MB of room, and {num_bytes / 1e6:,.1f} MB are needed: "
            "make room or choose another place"
        )


def optimizer_tensors(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state by parameter name: ``first.weight.exp_avg`` and so on."""
    return {
        f"{name}.{key}": tensor
        for name, parameter in network.named_parameters()
        for key, tensor in optimizer.state[parameter].items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Undo `optimizer_tensors`."""
    parameters = dict(network.named_parameters())
    for name, tensor in tensors.items():
        parameter = parameters[name.rpartition(".")[0]]
        # A fused optimizer walks parameter and moments side by side, so they must lie alike in memory, channels last.
        like = parameter if tensor.shape == parameter.shape else tensor
        alike = torch.empty_like(like, device=parameter.device)
        optimizer.state[parameter][name.rpartition(".")[2]] = alike.copy_(tensor)


def _sync(path: Path) -> None:
    """Make sure that a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
