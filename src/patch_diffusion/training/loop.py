"""The training loop: steps until a budget is spent, and logging, checkpoints and evaluations between them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from patch_diffusion.config import Config
from patch_diffusion.data.images import Images
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError, NotFiniteError
from patch_diffusion.evaluation.meter import SampleMeter
from patch_diffusion.patches.schedule import PatchSchedule
from patch_diffusion.runs.folder import RunFolder
from patch_diffusion.runs.retention import step_of
from patch_diffusion.sampling.pictures import picture_grid, write_picture
from patch_diffusion.training.budget import Budget, Cadence
from patch_diffusion.training.checkpoints import checkpoint
from patch_diffusion.training.checkpoints.saving import Checkpoints
from patch_diffusion.training.hardware.engine import Engine
from patch_diffusion.training.interrupts import interruptible
from patch_diffusion.training.progress import Progress
from patch_diffusion.training.state import Copying, TrainingState
from patch_diffusion.training.watching.evaluation import held_out_losses, is_collapsed, sample_pictures

_STANDING = 1000  # steps during which the clock may stand still
_COLLAPSED = "the samples show nothing but one colour"


@dataclass
class Loop:
    """The training loop of a run, which takes steps until the budget is spent and writes to the run folder.

    Args:
        state: the weights, averages, optimizer and counters.
        train_step: function that takes one step, given the spent fraction of the budget.
        budget: the budget over all continuations.
        config: options of the run.
        engine: the hardware.
        run: the run folder.
        checkpoints: writes and restores the run's checkpoints.
        progress: the log file and the display.
        schedule: patch sizes, for the losses of held-out images.
        images, held_out: the training images, and the held-out ones if there are any.
        meter: function that computes metrics of samples; None: no metrics.
        explain: context manager that explains out-of-memory errors.
        notes: what to tell the user when the run begins, and when it continues.
    """

    state: TrainingState
    train_step: Callable[[float], object]
    budget: Budget
    config: Config
    engine: Engine
    run: RunFolder
    checkpoints: Checkpoints
    progress: Progress
    schedule: PatchSchedule
    images: Images
    held_out: Images | None
    meter: SampleMeter | None
    explain: Callable[[], AbstractContextManager[None]]
    notes: tuple[list[str], list[str]]
    _collapsed: bool = False  # the last samples, made after the step below, showed nothing
    _collapsed_at: int = 0
    _told: set[str] = field(default_factory=set)

    def begin(self) -> None:
        """Begin a new run, or restore the newest undamaged checkpoint of a stopped one."""
        state, group, progress = self.state, self.engine.group, self.progress
        continues, damaged = self.checkpoints.restore_newest()
        step = state.counters.step
        progress.continue_log(step if continues else -1)
        group.barrier()
        for folder, reason in damaged.items():
            if group.is_main:
                checkpoint.set_aside(folder, "damaged")
            progress.note(f"WARNING: {reason}; going back to the checkpoint before", step)
        starting, continuing = self.notes
        for note in continuing:
            progress.note(note, step)
        complete = self.budget.spent(state.counters) >= 1
        if self.meter is not None and group.samples_and_saves and not complete:
            self.meter.begin(self.images, self.held_out, self.engine.device)
        group.barrier_after_evaluation()
        if complete:
            self.checkpoints.publish(self.run.checkpoint(step))  # a killed process may have left only this undone
            progress.say(f"this run is complete, after {step:,} steps; a larger budget would continue it")
        elif continues:
            progress.say(f"continuing after step {step:,}")
        else:
            for note in starting:
                progress.note(note, 0)
            # A checkpoint to go back to if training fails early, and a test that the disk can hold one.
            self.checkpoints.save(keep=False)

    def run_until(self, until: float = 1.0) -> Denoiser:
        """Train until the fraction ``until`` of the budget is spent; return the averaged model.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once a checkpoint is written.
        """
        state, config, group, progress = self.state, self.config, self.engine.group, self.progress
        pictures, keeps = Cadence(config.samples), Cadence(config.checkpoints)
        measures = Cadence(config.watch.times if self.meter is not None else 0)
        began = time.monotonic()
        seconds_before = last_save = state.counters.seconds
        standing = 0
        spent = self.budget.spent(state.counters)
        with self.engine.threads(state.denoiser), progress, interruptible() as interrupted:
            stop = False
            while spent < until and not stop:
                with self.explain():
                    self.train_step(spent)
                counters = state.counters
                before, earlier = spent, counters.seconds
                seconds = seconds_before + time.monotonic() - began
                counters.seconds, (stop, trouble) = group.sync_clock_and_flags(
                    seconds, interrupted.is_set(), self._collapsed
                )
                spent = self.budget.spent(counters)
                if spent >= until:
                    self.engine.synchronize()  # queued device work counts in the time of these steps
                    counters.seconds, _ = group.sync_clock_and_flags(seconds_before + time.monotonic() - began)
                    spent = self.budget.spent(counters)
                reason = _COLLAPSED if trouble else ""
                if counters.step % config.log_every == 0 or spent >= 1:
                    reason = self._log(spent) or reason
                progress.show(counters, spent)
                if reason:
                    self._collapsed, back = False, self._recover(reason)
                    if back:
                        spent = self.budget.spent(state.counters)
                        continue
                pictured = pictures.is_due(before, spent)
                if pictured and group.samples_and_saves:
                    self._write_pictures()
                measured, samples = measures.is_due(before, spent), None
                if measured:
                    self.engine.synchronize()
                    paused = time.monotonic()
                    samples = self._measure_samples(spent)
                    began += time.monotonic() - paused  # a budget of minutes counts training alone
                every = config.checkpoint_steps
                marked = keeps.is_due(before, spent) or (every is not None and counters.step % every == 0)
                marked = marked or (measured and config.checkpoint_best and config.checkpoint_by != "loss")
                last = spent >= 1 or stop
                if marked or last or counters.seconds - last_save > 60 * config.checkpoint_minutes:
                    # Held-out images are evaluated where the budget says, not the clock, so that logs repeat.
                    held_out = self._held_out_loss(spent) if marked else None
                    keep = spent >= 1 or (marked and not config.checkpoint_best)
                    self.checkpoints.save(keep=keep, wait=last, held_out=held_out, samples=samples)
                    last_save = counters.seconds
                if pictured or measured or marked:
                    group.barrier_after_evaluation()
                standing = standing + 1 if counters.seconds == earlier else 0
                if standing > _STANDING and self.budget.minutes is not None:
                    self.checkpoints.save()
                    raise InputError(
                        f"the clock of this machine has stood still for {standing:,} steps, so minutes would never "
                        "end: continue with a budget of --steps or --images"
                    )
            if self._collapsed:  # found after the last step, so that no step has reported it
                progress.note(f"WARNING: {_COLLAPSED}", state.counters.step)
        group.barrier()
        group.disconnect_at_exit()
        if stop and spent < 1:
            raise KeyboardInterrupt
        return state.average.denoiser

    def _log(self, spent: float) -> str:
        """Write a line of losses to the log; return what is wrong with the training, an empty text if nothing is."""
        state = self.state
        summary = state.losses.summary()
        state.losses.clear()
        self.progress.log(state.counters, spent, state.optimizer.param_groups[0]["lr"], summary)
        lagging = self.engine.group.lagging()
        if lagging and lagging[:10] not in self._told:
            self._told.add(lagging[:10])
            self.progress.note(f"WARNING: {lagging}", state.counters.step)
        return state.watchdog.judge(state.counters.step, summary)

    def _write_pictures(self) -> None:
        """Write a picture of samples; with a sharded model all ranks sample, and rank 0 writes."""
        model, step = self.state.average.denoiser, self.state.counters.step
        pictures, columns, trouble = sample_pictures(model)
        if trouble:
            self.progress.note(f"WARNING: {trouble}", step)
        if pictures and self.engine.group.is_main:
            path = write_picture(picture_grid(pictures, columns=columns), self.run.sample_file(step))
            self.progress.picture(path, step)
        self._collapsed, self._collapsed_at = is_collapsed(model, pictures), step

    def _held_out_loss(self, spent: float) -> float | None:
        """Compute and log the loss on held-out images; return its mean, None if there are no such images."""
        if self.held_out is None or not self.engine.group.samples_and_saves:
            return None
        by_noise, by_size = held_out_losses(self.state.average.denoiser, self.held_out, self.schedule)
        return self.progress.log_held_out(self.state.counters, spent, by_noise, by_size)

    def _measure_samples(self, spent: float) -> Mapping[str, float]:
        """Compute and log the metrics of samples; return them by name, and warn once samples copy training images."""
        state, progress = self.state, self.progress
        if self.meter is None or not self.engine.group.samples_and_saves:
            return {}
        step = state.counters.step
        try:
            measured = self.meter(state.average.denoiser)
        except NotFiniteError as error:
            progress.note(f"WARNING: the samples are not measured: {error}", step)
            return {}
        numbers = {name: value for name, value in measured.numbers.items() if math.isfinite(value)}
        for name in measured.numbers.keys() - numbers.keys():
            progress.note(f"WARNING: {name} of the samples is not finite", step)
        progress.log_samples(state.counters, spent, numbers)
        clean = state.copying.clean
        if not measured.warning:
            state.copying = Copying(clean=step)
        elif not state.copying.told:
            before = (
                f"after step {clean:,} it did not: stop about there" if clean else "it did at the first look already"
            )
            progress.note(f"WARNING: {measured.warning}; {before}", step)
            state.copying = replace(state.copying, told=True)
        return numbers

    def _recover(self, reason: str) -> bool:
        """Restore the last good checkpoint once and return True, else raise InputError; False if watchdog is off."""
        state, group, progress = self.state, self.engine.group, self.progress
        step, seconds, watchdog = state.counters.step, state.counters.seconds, state.watchdog
        if self.config.watchdog == "off":
            progress.note(f"WARNING: {reason}; training goes on, since watchdog is off", step)
            return False
        latest = watchdog.good
        if reason == _COLLAPSED:  # a checkpoint saved with that picture is no better
            latest = min(latest, group.broadcast(self._collapsed_at) - 1)
        good: list[Path] = self.checkpoints.good_ones(latest)
        if good:
            self.checkpoints.publish(good[-1])
        if not good or self.config.watchdog == "stop" or watchdog.back:
            again = " again" if watchdog.back else ""
            progress.note(f"stopped: {reason}{again}", step)
            raise InputError(
                f"{reason}{again} (step {step:,}), so training stopped; look at the data, or go on "
                + (f"from step {step_of(good[-1]):,} " if good else "")
                + "with a lower --optimizer.learning-rate and --allow optimizer.learning_rate"
            )
        numbers = self.checkpoints.restore(good[-1])
        back = state.counters.step
        state.watchdog = state.watchdog.gone_back(back)
        state.counters.seconds = seconds
        progress.continue_log(back)
        progress.note(f"WARNING: {reason} (step {step:,}); back to step {back:,} with half the learning rate", back)
        # The checkpoint is written anew in its place, to be kept, or to be the best, as it was.
        self.checkpoints.save(keep=numbers["keep"], held_out=numbers.get("held_out"), samples=numbers.get("samples"))
        return True
