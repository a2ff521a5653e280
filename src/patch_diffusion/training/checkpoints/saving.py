"""Saving and restoring of a run's checkpoints: written while training goes on, read when it continues or goes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Any

from patch_diffusion.config import Config
from patch_diffusion.errors import InputError
from patch_diffusion.files import read_tensors, write_tensors
from patch_diffusion.runs.folder import RunFolder
from patch_diffusion.runs.report import write_report
from patch_diffusion.runs.retention import step_of, sweep
from patch_diffusion.training.checkpoints import checkpoint
from patch_diffusion.training.checkpoints.sharded_checkpoint import SharedCopies, read_shared_checkpoint
from patch_diffusion.training.hardware.group import Group
from patch_diffusion.training.state import TrainingState


@dataclass(eq=False)
class Checkpoints:
    """A manager of checkpoints, which saves a training state into its run folder and restores it.

    Args:
        state: the training state: weights, optimizer, averages and counters.
        run: the run folder.
        group: the ranks of the run.
        config: the options of the run.
        note: function that prints a message for the user and logs it.
        optional: function that guards a with block that training can do without, from any thread.
    """

    state: TrainingState
    run: RunFolder
    group: Group
    config: InitVar[Config]
    note: Callable[[str], None]
    optional: Callable[[str], AbstractContextManager[None]]

    def __post_init__(self, config: Config) -> None:
        self.last: int = config.checkpoint_last
        self.best: str | None = config.checkpoint_by if config.checkpoint_best else None
        self.watched: bool = config.watchdog != "off"
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self.seconds: float = 0.0  # that the newest checkpoint took
        self.is_ours: Callable[[], bool] | None = None  # True while the run folder is the one that is locked

    def save(
        self,
        *,
        keep: bool = True,
        wait: bool = True,
        held_out: float | None = None,
        samples: Mapping[str, float] | None = None,
    ) -> Path | None:
        """Write a checkpoint, and its averaged weights as the model of the run.

        With a sharded model all ranks must call this, after the same step; else rank 0 does it.

        Args:
            keep: True if the checkpoint stays; else it is removed when later ones are written.
            wait: True to return once all is on the disk, and raise errors. Otherwise a copy is written in the
                background, and a failure is only reported and leaves the previous checkpoint in place.
            held_out, samples: the loss of held-out images and the metrics of samples, if they were measured.

        Returns:
            The folder; None if nothing is written: the previous checkpoint is still being written and this one need not
            be kept, recent gradients were not finite, or this rank does not save.
        """
        state, group = self.state, self.group
        if not group.samples_and_saves:
            return None
        self.check_folder()
        measured = held_out is not None or samples  # it may be the best
        if not (keep or wait or measured):
            busy = self._writing is not None and not self._writing.done()
            if group.broadcast(busy) if group.writers is not None else busy:
                return None
        began = time.monotonic()
        tensors, numbers = state.state()
        losses = numbers["losses"]
        if self.watched and 2 * (losses["skipped"] - state.watchdog.skipped) > max(len(losses["steps"]), 1):
            return None
        folder, good = self.run.checkpoint(state.counters.step), state.watchdog.good
        numbers |= {"held_out": held_out, "samples": dict(samples or {}), "keep": keep}
        copies = checkpoint.Copies.of(tensors) if group.writers is None else SharedCopies.of(tensors, group.writers)

        def write() -> None:
            copies.write(folder, numbers)
            if group.is_main:
                write_tensors(self.run.model_file, copies.groups["ema"])
                sweep(self.run.checkpoints(), last=self.last, best=self.best, good=good)
                if keep and self.run.is_run():  # a report takes time, and whoever stops a run should not wait
                    with self.optional("a report"):  # the checkpoint is good without it, and info --report makes it
                        write_report(self.run.path)
            self.seconds = time.monotonic() - began

        try:
            self.wait()
        except (OSError, InputError) as error:
            newest = [path.name for path in self.run.checkpoints()[-1:]]
            self.note(
                f"a checkpoint could not be written ({error}); training goes on, the last good one is "
                + (newest[0] if newest else "none")
            )
        self._writing = self._writer.submit(write)
        if wait:
            self.wait()
        return folder

    def wait(self) -> None:
        """Wait until no checkpoint is being written; raise the error of the last one, once, if it failed."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def check_folder(self) -> None:
        """Make the run folder of a trainer that has not locked one; raise InputError if the locked one is gone.

        Ranks that share a model raise it together.
        """
        if self.is_ours is None and self.group.is_main:
            self.run.path.mkdir(parents=True, exist_ok=True)
        is_there = self.is_ours is None or (self.is_ours() and self.run.is_run())
        if not (self.group.broadcast(is_there) if self.group.sharing else is_there):
            raise InputError(
                f"{self.run.path} is not the folder of this run any more: it was deleted, moved or replaced while it "
                "was trained; where it is now, the same command continues from its last checkpoint"
            )

    def restore(self, folder: Path) -> dict[str, Any]:
        """Restore the training state from a checkpoint, on all ranks together; return its numbers as a dict."""
        tensors, numbers = read_shared_checkpoint(folder, self.state.network, self.group.hosts)
        self.state.restore(folder, tensors, numbers)
        return numbers

    def restore_newest(self) -> tuple[bool, dict[Path, str]]:
        """Restore the training state from the newest checkpoint that is not damaged.

        Returns:
            True if there is a checkpoint; and a dict of the damaged ones, from folder to what is wrong.

        Raises:
            InputError: none of them can be read, or the ranks see different ones.
        """
        if self.group.is_main:
            checkpoint.remove_leftovers(self.run.path)
        existing = self.run.checkpoints()
        self.group.check_same_step(step_of(existing[-1]) if existing else 0)
        damaged: dict[Path, str] = {}
        existing = self.group.broadcast(existing)
        for folder in reversed(existing):
            try:
                content = read_shared_checkpoint(folder, self.state.network, self.group.hosts)
            except InputError as error:
                damaged[folder] = str(error)
                continue
            self.state.restore(folder, *content)
            break
        if existing and len(damaged) == len(existing):
            raise InputError(
                f"no checkpoint of {self.run.path} can be read: {'; '.join(damaged.values())}; choose another folder"
            )
        return bool(existing), damaged

    def good_ones(self, latest: int) -> list[Path]:
        """Return the checkpoint folders up to step ``latest``, oldest first, and rename later ones as bad."""
        with suppress(OSError, InputError):
            self.wait()
        written: list[Path] = self.group.broadcast(self.run.checkpoints())
        good = [path for path in written if step_of(path) <= latest]
        if self.group.is_main:
            for path in written:
                if path not in good:
                    checkpoint.set_aside(path, "bad")
        return good

    def publish(self, folder: Path) -> None:
        """Write the averaged weights of a checkpoint as the run's ``model.safetensors``; only rank 0 does it."""
        if self.group.is_main:
            write_tensors(self.run.model_file, read_tensors(folder / "ema.safetensors"))
