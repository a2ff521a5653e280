"""The training loop: steps until a budget is spent, and logging, checkpoints and evaluations between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from patch_diffusion.config import Config
from patch_diffusion.data.images import Images
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.errors import InputError
from patch_diffusion.evaluation.linear_floor import linear_floor
from patch_diffusion.evaluation.meter import SampleMeter
from patch_diffusion.patches.schedule import PatchSchedule
from patch_diffusion.runs.floor import LinearFloor, read_floor
from patch_diffusion.runs.folder import ModelFacts, RunFolder
from patch_diffusion.runs.retention import step_of
from patch_diffusion.runs.time_spent import beside, clock, shares, time_spent
from patch_diffusion.sampling.pictures import picture_grid, write_picture
from patch_diffusion.training.budget import Budget, Cadence
from patch_diffusion.training.checkpoints import checkpoint
from patch_diffusion.training.checkpoints.saving import Checkpoints
from patch_diffusion.training.clock import Clock
from patch_diffusion.training.hardware.engine import Engine
from patch_diffusion.training.interrupts import interruptible
from patch_diffusion.training.progress import Progress
from patch_diffusion.training.state import Copying, TrainingState
from patch_diffusion.training.step import learning_rate
from patch_diffusion.training.watchdog import lacks_layout
from patch_diffusion.training.watching.evaluation import (
    MOST_HELD_OUT,
    held_out_losses,
    is_collapsed,
    num_pictures,
    sample_pictures,
    seconds_per_held_out,
    seconds_per_picture,
)
from patch_diffusion.training.watching.thinning import SHARE, Evaluation, Evaluations

_STANDING = 1000  # steps during which the clock may stand still
_SLOWER = 1.5  # how much longer than the one before the last checkpoint may take
_LONG = 2.0  # seconds of an evaluation after which somebody may wonder
_LONG_RUN = 120.0  # seconds of training after which advice does not wait for the end
_FEWEST_HELD_OUT = 16
_PICTURES, _HELD_OUT = "pictures", "held_out"
_COLLAPSED = "the samples show nothing but one colour"


@dataclass
class Loop:
    """The training loop of a run, which takes steps until the budget is spent and writes to the run folder.

    Args:
        state: the weights, averages, optimizer and counters.
        train_step: function that takes one step, given the spent fraction of the budget.
        budget: the budget over all continuations.
        config, facts: options of the run, and facts about its data and network.
        engine: the hardware.
        run: the run folder.
        checkpoints: writes and restores the run's checkpoints.
        clock: the clock of the run.
        waited: function that returns the seconds that steps have waited for data.
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
    facts: ModelFacts
    engine: Engine
    run: RunFolder
    checkpoints: Checkpoints
    clock: Clock
    waited: Callable[[], float]
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
    _floor: LinearFloor | None = None  # of the process that writes the log
    _evaluations: Evaluations = field(init=False)
    _waited_before: float = 0.0  # less what was waited for in this process until it began

    def __post_init__(self) -> None:
        pictures, minutes = num_pictures(self.state.denoiser), self.budget.time
        buckets = () if self._judged is None else self._judged.buckets
        most = min(MOST_HELD_OUT, max(map(len, buckets), default=0))
        asked = {
            _PICTURES: Evaluation("pictures of {} samples", Cadence(self.config.samples), pictures, pictures // 4),
            _HELD_OUT: Evaluation(
                "held-out loss of {} images", Cadence(self.config.checkpoints if most else 0), most, _FEWEST_HELD_OUT
            ),
        }
        self._evaluations = Evaluations(asked, None if minutes is None else 60 * minutes)

    @property
    def _judged(self) -> Images | None:
        """The held-out images whose denoising loss is measured: none if the model is not to end as a denoiser."""
        return self.held_out if self.state.objective.denoises else None

    def begin(self) -> None:
        """Begin a new run, or restore the newest undamaged checkpoint of a stopped one.

        Nothing is written before all that may refuse to go on has been asked, and of a complete run nothing changes.
        """
        state, group, progress = self.state, self.engine.group, self.progress
        continues, damaged = self.checkpoints.restore_newest()
        step = state.counters.step
        self.clock.restore(state.counters.seconds, state.time)
        self._waited_before = self.clock.parts["data"] - self.waited()
        spent, _ = self._sync_clock()
        complete = spent >= 1
        if complete and not continues:
            raise InputError(
                f"{self.budget.time:g} wall_minutes are over before the first step, {self.clock.wall:,.0f} s after the "
                "start: give more"
            )
        if self.meter is not None and group.samples_and_saves and not complete:
            self.meter.begin(self.images, self.held_out, self.engine.device)
        group.barrier_after_evaluation()
        rise = self._rise(spent) if group.is_main and continues and not complete else ""
        if group.is_main and not complete:
            self.run.write_config(self.config, self.facts)
        progress.continue_log(step if continues else -1)
        if group.is_main and not complete:
            self._find_floor(continues)
        group.barrier()
        for folder, reason in damaged.items():
            if group.is_main:
                checkpoint.set_aside(folder, "damaged")
            progress.note(f"WARNING: {reason}; going back to the checkpoint before", step)
        starting, continuing = self.notes
        if complete:
            self.checkpoints.publish(self.run.checkpoint(step))  # a killed process may have left only this undone
            progress.say(f"this run is complete, after {step:,} steps: {self.budget.how_to_go_on(spent)}")
        elif continues:
            for note in [*continuing, *([rise] if rise else [])]:
                progress.note(note, step)
            progress.say(f"continuing after step {step:,}")
        else:
            for note in starting:
                progress.note(note, 0)
            # A checkpoint to go back to if training fails early, and a test that the disk can hold one.
            self.checkpoints.save(keep=False)
        if not complete and self.budget.time is not None:
            progress.say(self._forecast(spent))

    def _find_floor(self, continues: bool) -> None:
        """Measure the linear floor of a new run with held-out images; read that of one that continues, if it has it."""
        if continues or self._judged is None:
            self._floor = read_floor(self.run.floor_file)
            return
        progress = self.progress
        with progress.optional("the linear floor"):
            try:
                self._floor = linear_floor(self.images, self._judged, noise=self.config.noise, most=MOST_HELD_OUT)
                self._floor.write(self.run.floor_file)
            except InputError as error:
                progress.note(f"no linear floor is measured: {error}", self.state.counters.step)

    def _rise(self, spent: float) -> str:
        """Return a note if a budget that is larger than before raises the learning rate; an empty text if not."""
        before = Budget.of(self.run.read_config()[0]).spent(self.state.counters, self.clock.wall)
        old, new = (learning_rate(self.config.optimizer, share) for share in (min(before, 1.0), spent))
        if before <= spent or new <= old:
            return ""
        return (
            f"the budget is larger than before, so the learning rate rises from {old:.2g} to {new:.2g} and falls again"
        )

    def run_until(self, until: float = 1.0) -> Denoiser:
        """Train until the fraction ``until`` of the budget is spent; return the averaged model.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once a checkpoint is written.
        """
        state, config, group, progress = self.state, self.config, self.engine.group, self.progress
        keeps, measures = Cadence(config.checkpoints), Cadence(config.watch.times if self.meter is not None else 0)
        last_save = state.counters.seconds
        standing = 0
        spent, _ = self._sync_clock()
        trains = spent < until
        with self.engine.threads(state.denoiser), progress, interruptible() as interrupted, self.clock.running():
            stop = False
            while spent < until and not stop:
                with self.explain():
                    self.train_step(spent)
                before, earlier = spent, state.counters.seconds
                spent, (stop, trouble) = self._sync_clock(interrupted.is_set(), self._collapsed)
                if spent >= until:
                    self.engine.synchronize()  # queued device work counts in the time of these steps
                    spent, _ = self._sync_clock()
                counters = state.counters
                reason = _COLLAPSED if trouble else ""
                if counters.step % config.log_every == 0 or spent >= 1:
                    reason = self._log(spent) or reason
                progress.show(counters, spent, self.clock.wall)
                if reason:
                    with self.clock.part("saves"):
                        self._collapsed, back = False, self._recover(reason)
                    if back:
                        spent, _ = self._sync_clock()
                        continue
                every = config.checkpoint_steps
                measured, samples, held_out = measures.is_due(before, spent), None, None
                extra = every is not None and counters.step % every == 0
                extra = extra or (measured and config.checkpoint_best and config.checkpoint_by != "loss")
                marked = extra or keeps.is_due(before, spent)
                pictured = self._is_due(_PICTURES, before, spent)
                # Held-out images are evaluated where the budget says, not the clock, so that logs repeat.
                evaluated = self._judged is not None and self._is_due(_HELD_OUT, before, spent, marked=extra)
                if pictured and group.samples_and_saves:
                    self._write_pictures()
                if measured:
                    samples = self._measure_samples(spent)
                if evaluated:
                    held_out = self._held_out_loss(spent)
                last = spent >= 1 or stop
                if marked or last or counters.seconds - last_save > 60 * config.checkpoint_minutes:
                    keep = spent >= 1 or (marked and not config.checkpoint_best)
                    if spent >= 1 and self.budget.wall_minutes is not None:
                        self.clock.parts["end"] += max(60 * self.budget.wall_minutes - self.clock.wall, 0.0)
                    state.time = dict(self.clock.parts)
                    with self.clock.part("saves"):
                        self.checkpoints.save(keep=keep, wait=last, held_out=held_out, samples=samples)
                    last_save = counters.seconds
                if pictured or measured or evaluated:
                    group.barrier_after_evaluation()
                standing = standing + 1 if counters.seconds == earlier else 0
                if standing > _STANDING and self.budget.time is not None:
                    self.checkpoints.save()
                    raise InputError(
                        f"the clock of this machine has stood still for {standing:,} steps, so minutes would never "
                        "end: continue with a budget of --steps or --images"
                    )
            if self._collapsed:  # found after the last step, so that no step has reported it
                progress.note(f"WARNING: {_COLLAPSED}", state.counters.step)
        if spent >= 1 and trains:
            spent_on = time_spent(self.clock.seconds, self.clock.parts)
            besides = f"; in addition: {text}" if (text := beside(spent_on)) else ""
            progress.say(f"trained for {clock(self.clock.seconds)}: {shares(spent_on)}{besides}")
        group.barrier()
        group.disconnect_at_exit()
        if stop and spent < 1:
            raise KeyboardInterrupt
        return state.average.denoiser

    def _sync_clock(self, *flags: bool) -> tuple[float, list[bool]]:
        """Take over the clock of rank 0; return the spent fraction of the budget, and the flags that any rank sets."""
        self.clock.parts["data"] = self._waited_before + self.waited()
        # The last evaluations and checkpoint are still to come, and belong to the budget of a wall clock.
        wall = self.clock.wall + self._evaluations.at_the_end + _SLOWER * self.checkpoints.seconds
        clock = (self.clock.seconds, wall)
        (self.state.counters.seconds, wall), found = self.engine.group.sync_clock_and_flags(clock, *flags)
        return self.budget.spent(self.state.counters, wall), found

    def _forecast(self, spent: float) -> str:
        """Return a sentence that says when a training by minutes will end, by the wall clock."""
        assert self.budget.time is not None
        left = (1 - spent) * 60 * self.budget.time
        now = datetime.now()
        end, latest = (now + timedelta(seconds=left * factor) for factor in (1, 1 + SHARE))
        form = "%H:%M" if latest.date() == now.date() else "%H:%M on %Y-%m-%d"
        if self.budget.wall_minutes is not None:
            return f"will end at {end:{form}}, including evaluation and the last checkpoint"
        metrics = ", plus the time for metrics of samples" if self.meter is not None else ""
        first, last = f"{end:{form}}", f"{latest:{form}}"
        by = f"{first} with" if first == last else f"{first}, or by {last} with"
        return f"will end at {by} evaluation{metrics}"

    @contextmanager
    def _evaluating(self, doing: str, what: str, name: str = "", part: str = "evaluation") -> Iterator[None]:
        """Stop the clock of training for the with block, once the device has done the steps before, and say why.

        Training goes on without ``what`` if it fails, but for ranks that share a model, which fail together.
        """
        self.engine.synchronize()
        before, long = self.clock.parts[part], bool(name) and self._evaluations[name].cost > _LONG
        guard = nullcontext() if self.engine.group.sharing else self.progress.optional(what)
        with guard, self.clock.part(part), self.progress.activity(doing, long=long):
            yield
        if name:
            self._evaluations.took(name, self.clock.parts[part] - before)

    def _is_due(self, name: str, before: float, spent: float, *, marked: bool = False) -> bool:
        """Return True if an evaluation is to be made now: at one of its moments, or with a marked checkpoint."""
        due = marked or self._evaluations[name].moments.is_due(before, spent)
        if due and not self._evaluations.is_planned:
            self._plan_evaluations()
            due = marked or self._evaluations[name].moments.is_due(before, spent)
        if not due:
            return False
        has_room = self._evaluations.have_room(name, self.clock.parts["evaluation"], last=spent >= 1)
        return self.engine.group.broadcast(has_room)  # the clock is that of rank 0

    def _plan_evaluations(self) -> None:
        """Measure how long evaluations take, and plan as many as a training by minutes has time for."""
        state, group, model = self.state, self.engine.group, self.state.average.denoiser
        note = ""
        if group.samples_and_saves:
            seconds = {_PICTURES: 0.0, _HELD_OUT: 0.0}
            with self._evaluating("measuring the time of evaluations", "evaluation"):
                seconds[_PICTURES] = seconds_per_picture(model)
                if self._judged is not None:
                    seconds[_HELD_OUT] = seconds_per_held_out(model, self._judged, self.schedule)
            note = self._evaluations.plan(state.evaluated, seconds)
        self._evaluations, note = group.broadcast((self._evaluations, note))
        state.evaluated = {name: self._evaluations[name].images for name in (_PICTURES, _HELD_OUT)}
        if note:
            self.progress.note(note, state.counters.step)

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
        return state.watchdog.judge(state.counters.step, summary, last=spent >= 1)

    def _write_pictures(self) -> None:
        """Write a picture of samples; with a sharded model all ranks sample, and rank 0 writes."""
        model, step = self.state.average.denoiser, self.state.counters.step
        self.checkpoints.check_folder()
        with self._evaluating("making pictures of samples", "pictures of samples", _PICTURES):
            pictures, columns = sample_pictures(model, self._evaluations[_PICTURES].images, self.images)
            self._collapsed, self._collapsed_at = is_collapsed(model, pictures), step
            if self.engine.group.is_main:
                with self.progress.optional("pictures of samples"):
                    path = write_picture(picture_grid(pictures, columns=columns), self.run.sample_file(step))
                    self.progress.picture(path, step)

    def _held_out_loss(self, spent: float) -> float | None:
        """Compute and log the loss on held-out images; return its mean, None if there are no such images."""
        if self._judged is None or not self.engine.group.samples_and_saves:
            return None
        with self._evaluating("evaluating held-out images", "the loss of held-out images", _HELD_OUT):
            most = self._evaluations[_HELD_OUT].images
            by_noise, by_size = held_out_losses(self.state.average.denoiser, self._judged, self.schedule, most)
            mean = self.progress.log_held_out(self.state.counters, spent, by_noise, by_size)
            self._advise(spent, {f"{sigma:g}": loss for sigma, loss in by_noise.items()})
            return mean
        return None

    def _advise(self, spent: float, by_noise: Mapping[str, float]) -> None:
        """Tell once on the way, and once at the end, that the model has not learned the layout of images yet."""
        advice = "" if self._floor is None else lacks_layout(spent, by_noise, self._floor)
        when = "layout at the end" if spent >= 1 else "layout"
        waits = spent < 1 and self.state.counters.seconds < _LONG_RUN  # the end of a short run comes soon
        if advice and when not in self._told and not waits:
            self._told.add(when)
            self.progress.note(advice, self.state.counters.step)

    def _measure_samples(self, spent: float) -> Mapping[str, float]:
        """Compute and log the metrics of samples; return them by name, and warn once samples copy training images."""
        state, progress = self.state, self.progress
        if self.meter is None or not self.engine.group.samples_and_saves:
            return {}
        measured, step = None, state.counters.step
        with self._evaluating("measuring samples", "the metrics of samples", part="metrics"):
            measured = self.meter(state.average.denoiser)
        if measured is None:
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
                f"after step {clean:,} it did not, so stop about there"
                if clean
                else "it did at the first measurement already"
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
        state.counters.seconds, state.time = seconds, dict(self.clock.parts)
        progress.continue_log(back)
        progress.note(f"WARNING: {reason} (step {step:,}); back to step {back:,} with half the learning rate", back)
        # The checkpoint is written anew in its place, to be kept, or to be the best, as it was.
        self.checkpoints.save(keep=numbers["keep"], held_out=numbers.get("held_out"), samples=numbers.get("samples"))
        return True
