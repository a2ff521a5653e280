"""The loop over a budget: steps, and what is done between them."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError
from patch_diffusion.files import read_tensors, write_tensors
from patch_diffusion.runs.retention import step_of
from patch_diffusion.training.budget import Budget
from patch_diffusion.training.checkpoints import checkpoint
from patch_diffusion.training.checkpoints.checkpoint import remove_leftovers
from patch_diffusion.training.checkpoints.content import restore_content
from patch_diffusion.training.checkpoints.sharded_checkpoint import read_shared_checkpoint
from patch_diffusion.training.hardware.memory import memory_told
from patch_diffusion.training.interrupts import interruptible
from patch_diffusion.training.watching.looks import held_out_loss, measure_samples, write_samples

if TYPE_CHECKING:
    from patch_diffusion.training.trainer import Trainer

_STANDING = 1000  # steps during which the clock may stand still
_COLLAPSED = "the samples show nothing but one colour"


class Loop:
    """A trainer that spends a budget.

    Args:
        trainer: what is trained; its run folder is open.
        budget: what it may spend, over all continuations.
    """

    def __init__(self, trainer: Trainer, budget: Budget) -> None:
        self.trainer, self.budget = trainer, budget
        self._collapsed = False  # whether the last samples showed nothing, and after which step
        self._collapsed_at = 0
        self._told: set[str] = set()

    def begin(self) -> None:
        """Go to where a stopped run was: its newest checkpoint that is not damaged."""
        trainer, group, progress = self.trainer, self.trainer.engine.group, self.trainer.progress
        if group.first:
            remove_leftovers(trainer.run.path)
        existing = trainer.run.checkpoints()
        group.check_same_step(step_of(existing[-1]) if existing else 0)
        existing = group.of_first(existing)
        damaged: dict[Path, str] = {}
        for folder in reversed(existing):
            try:
                content = read_shared_checkpoint(folder, trainer.network, group.hosts)
            except InputError as error:
                damaged[folder] = str(error)
                continue
            restore_content(trainer, folder, *content)
            break
        if existing and len(damaged) == len(existing):
            raise InputError(
                f"no checkpoint of {trainer.run.path} can be read: {'; '.join(damaged.values())}; choose another folder"
            )
        step = trainer.seen.step
        progress.continue_log(step if existing else -1)
        group.wait()
        for folder, reason in damaged.items():
            if group.first:
                checkpoint.set_aside(folder, "damaged")
            progress.note(f"WARNING: {reason}; going back to the checkpoint before", step)
        for change in trainer.changed:
            progress.note(f"changed from here on: {change}", step)
        complete = self.budget.spent(trainer.seen) >= 1
        if trainer.meter is not None and group.takes_part and not complete:
            trainer.meter.begin(trainer.images, trainer.held_out, trainer.engine.device)
        group.wait_for_looks()
        if complete:
            if group.first:  # it may have been killed when this was all that was missing
                self._publish(trainer.run.checkpoint(step))
            progress.say(f"this run is complete, after {step:,} steps; a larger budget would continue it")
        elif existing:
            progress.say(f"continuing after step {step:,}")
        else:
            for note in (trainer.summary(), *trainer.images.notes):
                progress.note(note, 0)
            trainer.save(
                keep=False
            )  # to go back to if all goes wrong at once, and to see now whether the disk takes it

    def run(self, until: float = 1.0) -> Denoiser:
        """Train until that fraction of the budget is spent; the averaged model.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once a checkpoint is written.
            InputError: training has gone wrong and does not go on, or cannot end.
        """
        trainer, seen, group = self.trainer, self.trainer.seen, self.trainer.engine.group
        began, seconds_before = time.monotonic(), seen.seconds
        last_save = seconds_before
        standing = 0
        spent = self.budget.spent(seen)
        with trainer.engine.threads(trainer.denoiser), trainer.progress, interruptible() as interrupted:
            stop = False
            while spent < until and not stop:
                with memory_told(trainer):
                    trainer.train_step(spent)
                seen = trainer.seen
                before, earlier = spent, seen.seconds
                seconds = seconds_before + time.monotonic() - began
                seen.seconds, (stop, trouble) = group.agree(seconds, interrupted.is_set(), self._collapsed)
                spent = self.budget.spent(seen)
                if spent >= until:
                    trainer.engine.catch_up()  # what the device has still to do belongs to this lap
                    seen.seconds, _ = group.agree(seconds_before + time.monotonic() - began)
                    spent = self.budget.spent(seen)
                reason = _COLLAPSED if trouble else ""
                if seen.step % trainer.log_every == 0 or spent >= 1:
                    reason = self._log(spent) or reason
                trainer.progress.show(seen, spent)
                if reason:
                    self._collapsed, back = False, self._recover(reason)
                    if back:
                        spent = self.budget.spent(trainer.seen)
                        continue
                pictured = _crosses(before, spent, trainer.samples)
                if pictured and group.takes_part:
                    self._collapsed, self._collapsed_at = write_samples(trainer), seen.step
                times = trainer.meter.options.times if trainer.meter is not None else 0
                measured = _crosses(before, spent, times)
                samples = None
                if measured:
                    trainer.engine.catch_up()
                    paused = time.monotonic()
                    samples = measure_samples(trainer, spent)
                    began += time.monotonic() - paused  # a budget of minutes is one of training
                marked = _crosses(before, spent, trainer.num_checkpoints) or self._is_marked(seen.step)
                marked = marked or (measured and trainer.checkpoint_best not in (None, "loss"))
                last = spent >= 1 or stop
                if marked or last or seen.seconds - last_save > 60 * trainer.checkpoint_minutes:
                    # Held-out images are looked at where the budget says, not the clock, so that logs repeat.
                    held_out = held_out_loss(trainer, spent) if marked else None
                    keep = spent >= 1 or (marked and not trainer.checkpoint_best)
                    trainer.save(keep=keep, wait=last, held_out=held_out, samples=samples)
                    last_save = seen.seconds
                if pictured or measured or marked:
                    group.wait_for_looks()
                standing = standing + 1 if seen.seconds == earlier else 0
                if standing > _STANDING and self.budget.minutes is not None:
                    trainer.save()
                    raise InputError(
                        f"the clock of this machine has stood still for {standing:,} steps, so minutes would never "
                        "end: continue with a budget of --steps or --images"
                    )
            if self._collapsed:  # in the last picture, after which there was no step to say so
                trainer.progress.note(f"WARNING: {_COLLAPSED}", trainer.seen.step)
        group.wait()
        group.disconnect_at_exit()
        if stop and spent < 1:
            raise KeyboardInterrupt
        return trainer.average.denoiser

    def _is_marked(self, step: int) -> bool:
        every = self.trainer.checkpoint_steps
        return every is not None and step % every == 0

    def _log(self, spent: float) -> str:
        """Write a line of the log; what is wrong with the training, if anything is."""
        trainer = self.trainer
        means = trainer.losses.means()
        trainer.losses.clear()
        trainer.progress.log(trainer.seen, spent, trainer.optimizer.param_groups[0]["lr"], means)
        lagging = trainer.engine.group.lagging()
        if lagging and lagging[:10] not in self._told:
            self._told.add(lagging[:10])
            trainer.progress.note(f"WARNING: {lagging}", trainer.seen.step)
        return trainer.watchdog.judge(trainer.seen.step, means)

    def _recover(self, reason: str) -> bool:
        """Go back to the last good checkpoint, once, and else end with the reason; whether it has gone back."""
        trainer, group, progress = self.trainer, self.trainer.engine.group, self.trainer.progress
        step, seconds = trainer.seen.step, trainer.seen.seconds
        if trainer.on_trouble == "off":
            progress.note(f"WARNING: {reason}; training goes on, since watchdog is off", step)
            return False
        with suppress(OSError, InputError):
            trainer.writer.wait()
        written: list[Path] = group.of_first(trainer.run.checkpoints())
        latest = trainer.watchdog.good
        if reason == _COLLAPSED:  # what was saved with that picture is no better
            latest = min(latest, group.of_first(self._collapsed_at) - 1)
        good = [path for path in written if step_of(path) <= latest]
        if group.first:
            for path in written:
                if path not in good:
                    checkpoint.set_aside(path, "bad")
        if good and group.first:
            self._publish(good[-1])
        if not good or trainer.on_trouble == "stop" or trainer.watchdog.back:
            again = " again" if trainer.watchdog.back else ""
            progress.note(f"stopped: {reason}{again}", step)
            raise InputError(
                f"{reason}{again} (step {step:,}), so training stopped; look at the data, or go on "
                + (f"from step {step_of(good[-1]):,} " if good else "")
                + "with a lower --optimizer.learning-rate and --allow optimizer.learning_rate"
            )
        state = trainer.restore(good[-1])
        back = trainer.seen.step
        trainer.watchdog = trainer.watchdog.gone_back(back)
        trainer.seen.seconds = seconds
        progress.continue_log(back)
        progress.note(f"WARNING: {reason} (step {step:,}); back to step {back:,} with half the learning rate", back)
        # In its place, and for as long: one that is to stay, or is the best, stays so.
        trainer.save(keep=state["keep"], held_out=state.get("held_out"), samples=state.get("samples"))
        return True

    def _publish(self, folder: Path) -> None:
        """Make the averaged weights of a checkpoint the model of the run."""
        write_tensors(self.trainer.run.model_file, read_tensors(folder / "ema.safetensors"))


def _crosses(before: float, spent: float, parts: int) -> bool:
    """Whether one of ``parts`` even marks of the budget, the end among them, lies in (before, spent]."""
    return parts > 0 and int(min(spent, 1.0) * parts + 1e-9) > int(before * parts + 1e-9)
