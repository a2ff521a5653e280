"""Checkpoint folders: tensors in safetensors files, numbers in JSON, nothing pickled, nothing half-written.

``state.json`` holds the checksum of every other file and of its own content, so that damage is never trained on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from patch_diffusion.errors import InputError
from patch_diffusion.files import check_room, read_json, read_tensors, sync, write_json, write_tensors, write_text
from patch_diffusion.runs.folder import RunFolder
from patch_diffusion.runs.retention import STATE_FILE, State, remove_checkpoint, step_of

_FILES = re.compile(r"(shards/)?[\w.-]*\w", re.ASCII)  # names of files that lie in a checkpoint, and nowhere else


@dataclass(frozen=True)
class Copies:
    """Copies of a run's tensors in the host's memory, to be written while training goes on."""

    groups: dict[str, dict[str, Tensor]]

    @classmethod
    def of(cls, groups: Mapping[str, Mapping[str, Tensor]]) -> Copies:
        """Copy groups of tensors to the host's memory."""
        return cls(
            {
                name: {key: tensor.detach().to("cpu", copy=True) for key, tensor in group.items()}
                for name, group in groups.items()
            }
        )

    def write(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Write the checkpoint ``folder``: one ``NAME.safetensors`` per group of tensors, and ``state.json``.

        All is written under another name and synced to the disk first, so ``folder`` exists only when it is complete.
        """
        try:
            begin(folder, sum(tensor.nbytes for group in self.groups.values() for tensor in group.values()))
            complete(folder, state, write_groups(partial_name(folder), self.groups))
        except BaseException:
            abandon(folder)
            raise


def partial_name(folder: Path) -> Path:
    """Return the temporary path of a checkpoint folder, NAME.tmp, which it has until it is complete."""
    return folder.with_name(folder.name + ".tmp")


def begin(folder: Path, num_bytes: int) -> None:
    """Make the temporary folder of a new checkpoint; raise InputError if the disk lacks room for it."""
    partial = partial_name(folder)
    shutil.rmtree(partial, ignore_errors=True)
    check_room(folder.parent, num_bytes)
    partial.parent.mkdir(exist_ok=True)  # but not the run folder: if that is gone, nothing is written to a new one
    partial.mkdir()


def write_groups(partial: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    """Write each group of tensors to a safetensors file; return the checksums by file name."""
    checksums = {}
    for name, group in tensors.items():
        file = partial / f"{name}.safetensors"
        write_tensors(file, group)
        checksums[file.name] = file_checksum(file)
    return checksums


def complete(folder: Path, state: Mapping[str, Any], checksums: Mapping[str, str]) -> None:
    """Complete a checkpoint: write ``state.json`` with the checksums of all files, then rename the temporary folder.

    A copy of the run's ``config.json`` goes with it, for a run that loses its own.
    """
    partial, config = partial_name(folder), RunFolder(folder.parent.parent).config_file
    if config.exists():
        write_text(partial / config.name, config.read_text(encoding="utf-8"))
    content = {**state, "checksums": checksums}
    write_json(partial / STATE_FILE, {**content, "checksum": _checksum(content)})
    if folder.exists():
        remove_checkpoint(folder)
    partial.rename(folder)
    sync(folder.parent)


def abandon(folder: Path) -> None:
    """Remove the temporary folder of a checkpoint that could not be completed."""
    shutil.rmtree(partial_name(folder), ignore_errors=True)


def verify(folder: Path, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """Return the state of a checkpoint as a dict, and verify every ``world``-th file by its checksum, from ``rank`` on.

    Raises:
        InputError: a file is missing, or is not what was written.
    """
    file = folder / STATE_FILE
    state = read_json(file)
    if state.pop("checksum", None) != _checksum(state):
        raise InputError(f"{file} is damaged: its content does not match its checksum")
    known = State.of(state, str(file))
    checksums = known.checksums
    if known.seen is None or known.seen.step != step_of(folder):
        raise InputError(f"{file} is damaged: it is not of step {step_of(folder)}")
    if not checksums or not all(map(_FILES.fullmatch, checksums)):
        raise InputError(f"{file} is damaged: it has checksums of other files than those of a checkpoint")
    for name, expected in list(checksums.items())[rank::world]:
        file = folder / name
        if not file.exists():
            raise InputError(f"{file} is missing")
        if file_checksum(file) != expected:
            raise InputError(f"{file} is damaged: its content does not match its checksum")
    return state


def read_groups(folder: Path, state: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Read the unsharded tensors of a checkpoint into a dict by group, then by name."""
    files = [folder / name for name in state["checksums"] if "/" not in name]
    return {file.stem: read_tensors(file) for file in files}


def remove_leftovers(run: Path) -> None:
    """Remove incomplete checkpoints and files, which a killed process left while writing them, from a run folder."""
    for file in [*run.glob("*.tmp"), *run.glob("samples/*.tmp")]:
        with contextlib.suppress(OSError):  # those of an hour ago: `info` may write its page just now
            if time.time() - file.stat().st_mtime > 3600:
                file.unlink()
    for kind in ("tmp", "old"):
        for folder in run.glob(f"checkpoints/step-*.{kind}"):
            shutil.rmtree(folder, ignore_errors=True)


def set_aside(folder: Path, why: str) -> None:
    """Rename a checkpoint folder, to NAME.damaged or NAME.bad by ``why``, so that it is neither used nor lost."""
    aside = folder.with_name(f"{folder.name}.{why}")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def file_checksum(file: Path) -> str:
    """Return the checksum of a file's content."""
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
