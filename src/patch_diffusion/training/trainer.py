"""Training: a run, and one step of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from patch_diffusion.config import Augment as AugmentOptions
from patch_diffusion.config import Config, Ema, Network, Noise, Optimizer, Watch
from patch_diffusion.config import Engine as EngineOptions
from patch_diffusion.data.augment import Augment
from patch_diffusion.data.images import Images
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.objective import NoiseLevels
from patch_diffusion.errors import InputError
from patch_diffusion.files import check_room, user_path, write_tensors
from patch_diffusion.patches.schedule import PatchSchedule, PatchSize
from patch_diffusion.processes import others_answer
from patch_diffusion.runs.folder import ModelFacts, RunFolder
from patch_diffusion.runs.lock import locked
from patch_diffusion.runs.report import write_report
from patch_diffusion.runs.retention import sweep
from patch_diffusion.streams import stream_key
from patch_diffusion.training.batches import Batches
from patch_diffusion.training.budget import Budget, Seen, training_flops
from patch_diffusion.training.checkpoints import checkpoint
from patch_diffusion.training.checkpoints.background import BackgroundWriter
from patch_diffusion.training.checkpoints.content import content_of, restore_content
from patch_diffusion.training.checkpoints.sharded_checkpoint import SharedCopies, read_shared_checkpoint
from patch_diffusion.training.checks import check_network, check_watching
from patch_diffusion.training.hardware.engine import Engine
from patch_diffusion.training.hardware.memory import memory_told, parts_that_fit
from patch_diffusion.training.loop import Loop
from patch_diffusion.training.losses import Balance, Losses
from patch_diffusion.training.optimizing.optimizers import decay_of, learning_rate, make_average, make_optimizer
from patch_diffusion.training.optimizing.power_ema import power_averages
from patch_diffusion.training.optimizing.schedule_free import ScheduleFreeAverage
from patch_diffusion.training.progress import Progress
from patch_diffusion.training.watchdog import Watchdog
from patch_diffusion.training.watching.looks import Copying, Meter
from patch_diffusion.training.watching.trackers import Trackers, choose_trackers


class Trainer:
    """Trains a denoiser on images by patches, into a run folder.

    Everything that can be wrong with the options is refused here, before anything is written.

    Args:
        denoiser: what is trained; its network is any ``torch.nn.Module``, see `Denoiser`.
        images: see `open_images`.
        schedule: sizes of the steps; its seed is the seed of the run.
        out: the run folder: new or empty, or that of a stopped run of the same options, which then continues.
        batch: whole images per step; "auto": 64, in as many parts as the memory takes.
        held_out: images that are not trained on; where they are given, the log says how well those are denoised.
        meter: measures samples now and then, into the log, see `SampleMeter`.
        augment: how images are altered before they are cut.
        noise: noise levels to train on.
        weight: of a loss by its noise level, see `patch_diffusion.config.Noise`.
        optimizer, ema, engine, checkpoints and the other options: see `Config`.
        allow: names of options, such as "optimizer.learning_rate", that may differ from those of the run that is there.
        show: progress on stderr.

    Raises:
        InputError: options that do not suit each other, the images or the network, or a folder that is not free.

    >>> images = open_images("digits")
    >>> denoiser = Denoiser(UNet(1, width=8, multipliers=(1,), blocks=1), sigma_data=images.standard_deviation)
    >>> trainer = Trainer(denoiser, images, PatchSchedule(whole=0.5), out="runs/mine", batch=8, samples=0, show=False)
    >>> model = trainer.fit(steps=1)
    >>> trainer.seen.images >= 8
    True
    """

    def __init__(
        self,
        denoiser: Denoiser,
        images: Images,
        schedule: PatchSchedule | None = None,
        *,
        out: str | PathLike[str],
        batch: int | Literal["auto"] = Config.batch,
        held_out: Images | None = None,
        meter: Meter | None = None,
        augment: Augment | None = None,
        noise: NoiseLevels | None = None,
        weight: Literal["process", "learned"] = Noise.weight,
        optimizer: Optimizer | None = None,
        ema: Ema | None = None,
        engine: EngineOptions | None = None,
        checkpoints: int = Config.checkpoints,
        checkpoint_minutes: float = Config.checkpoint_minutes,
        checkpoint_steps: int | None = Config.checkpoint_steps,
        checkpoint_last: int = Config.checkpoint_last,
        checkpoint_best: bool = Config.checkpoint_best,
        checkpoint_by: Literal["loss", "frechet", "kernel"] = Config.checkpoint_by,
        watchdog: Literal["restore", "stop", "off"] = Config.watchdog,
        samples: int = Config.samples,
        log_every: int = Config.log_every,
        allow: Collection[str] = (),
        track: Sequence[str] | None = None,
        show: bool = True,
    ) -> None:
        noise, optimizer = noise or NoiseLevels(process=denoiser.process), optimizer or Optimizer()
        ema, engine = ema or Ema(), engine or EngineOptions()
        if batch == "auto":
            batch, engine = Config.batch, replace(engine, accumulation="auto")
        assert isinstance(batch, int)
        for name, value, least in (
            ("batch", batch, 1),
            ("checkpoints", checkpoints, 1),
            ("checkpoint_steps", 1 if checkpoint_steps is None else checkpoint_steps, 1),
            ("checkpoint_last", checkpoint_last, 1),
            ("samples", samples, 0),
            ("log_every", log_every, 1),
        ):
            if value < least:
                raise InputError(f"{name} is at least {least}, not {value}")
        if not checkpoint_minutes > 0:
            raise InputError(f"checkpoint_minutes is above 0, not {checkpoint_minutes}")
        watch = Watch() if meter is None else meter.options
        check_watching(watch, images, held_out, best=checkpoint_best, by=checkpoint_by)
        if noise.process != denoiser.process:
            raise InputError(f"noise levels of the {noise.process.name} process, denoiser of {denoiser.process.name}")
        self.augment = augment or Augment()
        self.schedule = schedule or PatchSchedule()
        check_network(denoiser, images, self.augment, self.schedule.context)
        sizes = {
            bucket.resolution: self.schedule.sizes_for(bucket.resolution, denoiser.stride) for bucket in images.buckets
        }

        self.images, self.held_out, self.meter, self.copying = images, held_out, meter, Copying()
        self.batch: int = batch
        self.options = optimizer
        self.log_every, self.samples, self.checkpoint_minutes = log_every, samples, checkpoint_minutes
        self.num_checkpoints, self.checkpoint_steps = checkpoints, checkpoint_steps
        self.checkpoint_last, self.checkpoint_best = checkpoint_last, checkpoint_by if checkpoint_best else None
        self.engine = Engine(engine)
        denoiser.resolution = images.resolution
        denoiser.class_names = images.class_names if denoiser.num_classes else ()
        denoiser.codec = images.codec
        denoiser.context = self.schedule.context
        self.average = make_average(
            denoiser, ema, optimizer
        )  # before the weights are shared out: then they cannot be copied
        self.engine.place_average(self.average.denoiser)
        self.loss = self.engine.prepare(denoiser).train()
        self.denoiser, self.network = denoiser, denoiser.module
        self.optimizer = make_optimizer(self.network.parameters(), optimizer, scaled=self.engine.scaler.is_enabled())
        if isinstance(self.average, ScheduleFreeAverage):
            self.average.follow(self.optimizer)
        self.power_averages = power_averages(denoiser, ema.lengths)
        self.seen = Seen()
        self.losses = Losses(self.engine.device)
        self.balance = Balance(self.losses) if weight == "learned" else None
        self.watchdog, self.on_trouble = Watchdog(), watchdog
        shapes = {size.shape for of_bucket in sizes.values() for size in of_bucket}
        with memory_told(self), self.engine.computing():
            self.flops = {shape: training_flops(denoiser, images.channels, shape) for shape in shapes}

        if engine.accumulation == "auto":
            self.engine.accumulation = parts_that_fit(self)
            engine = replace(engine, accumulation=self.engine.accumulation)
        world = self.engine.group.world
        if batch < world * self.engine.accumulation:
            raise InputError(
                f"a batch of {batch} cannot be shared out to {world} processes in {engine.accumulation} "
                "parts each: give a larger batch, or lower engine.accumulation"
            )

        self.run = RunFolder(user_path(out))
        self.facts = ModelFacts.of(denoiser, images)
        settings = getattr(self.network, "settings", None)
        self.config = Config(
            data=replace(
                images.options,
                held_out=images.options.held_out or 0.0,
                augment=AugmentOptions(**vars(self.augment)),
            ),
            patches=self.schedule.options(coords=denoiser.coords),
            noise=Noise(
                process=denoiser.process.name,
                p_mean=noise.p_mean,
                p_std=noise.p_std,
                weight=weight,
                sigma_data=denoiser.sigma_data,
                sigma_min=denoiser.sigma_min,
                sigma_max=denoiser.sigma_max,
            ),
            network=Network(kind="custom") if settings is None else Network(**settings),
            optimizer=replace(optimizer, decay=decay_of(optimizer)),
            ema=ema,
            engine=engine,
            watch=watch,
            batch=batch,
            seed=self.schedule.seed,
            checkpoints=checkpoints,
            checkpoint_minutes=checkpoint_minutes,
            checkpoint_steps=checkpoint_steps,
            checkpoint_last=checkpoint_last,
            checkpoint_best=checkpoint_best,
            checkpoint_by=checkpoint_by,
            watchdog=watchdog,
            samples=samples,
            log_every=log_every,
            track=None if track is None else tuple(track),  # pyright: ignore[reportArgumentType]
        )
        trackers = Trackers(choose_trackers(track), self.run.path)
        first = self.engine.group.first
        self.progress = Progress(
            self.run.log_file if first else None, show=show and first, trackers=trackers if first else None
        )
        self.batches = Batches(
            denoiser,
            images,
            self.schedule,
            batch=batch,
            noise=noise,
            augment=self.augment,
            device=self.engine.device,
            note=lambda text: self.progress.note(text, self.seen.step),
            show=show,
        )
        self.writer = BackgroundWriter()
        self.changed = self.run.check(self.config, self.facts, allow)

    @others_answer()
    def fit(self, *, steps: int | None = None, images: int | None = None, minutes: float | None = None) -> Denoiser:
        """Train until the budget is spent; the same call continues a stopped run.

        Args:
            steps, images, minutes: the budget, one of them: optimizer steps, images drawn from the data, or minutes of
                training over all continuations.

        Returns:
            The averaged model, to sample from. With ``engine.shard`` all processes must do so together; `load` gives a
            whole one.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once a checkpoint is written. A second one stops at once.
        """
        with self.in_laps(steps=steps, images=images, minutes=minutes) as train_until:
            return train_until(1.0)

    @contextmanager
    def in_laps(
        self, *, steps: int | None = None, images: int | None = None, minutes: float | None = None
    ) -> Iterator[Callable[[float], Denoiser]]:
        """`fit` with breaks, for what wants to do something else in between, such as to train another model.

        Inside, the function that is given trains until that fraction of the budget is spent. All laps together do what
        one `fit` does, step by step. What happens between them does not count as training, and nothing is saved there
        unless `save` is called. The run folder is this run's alone until the end. Trackers are closed after each lap.

        >>> with trainer.in_laps(minutes=10) as train_until:  # doctest: +SKIP
        ...     for tenth in range(1, 11):
        ...         model = train_until(tenth / 10)
        """
        budget = Budget(steps, images, minutes)
        self.engine.group.wait()  # until all have looked at the folder
        with self._opened(budget):
            self.engine.group.wait()
            loop = Loop(self, budget)
            loop.begin()
            yield lambda until: loop.run(min(until, 1.0))

    def train_step(self, spent: float = 0.0) -> tuple[PatchSize, Tensor]:
        """One optimizer step on patches of one size.

        Args:
            spent: the fraction of the budget that is spent.

        Returns:
            The size, and the mean loss over its patches, still on the device.
        """
        batch = self.batches.at(self.seen, spent)
        size, num = batch.size, batch.num
        total, by_noise = torch.zeros((), device=self.engine.device), self.losses.none()
        shares = self.engine.shares(num)
        for part, slots in enumerate(shares):
            with self.engine.group.busy():
                inputs = self.batches.inputs(batch, slots)
                if part + 1 < len(shares):
                    self.batches.expect(batch, shares[part + 1])
                else:
                    following = self.batches.after(batch, self.seen, spent)
                    self.batches.expect(following, self.engine.shares(following.num)[0])
            # Modules with dropout draw from torch's own generator.
            torch.manual_seed(stream_key(self.schedule.seed, "dropout", batch.step) + slots.start)
            weight: float | Tensor = size.weight / num
            if self.balance is not None:
                weight = weight * self.balance.weights(str(size), inputs.sigma)
            losses = self.engine.backward(self.loss, inputs, weight, last=part == len(shares) - 1)
            total += losses.sum() / num
            by_noise += self.losses.by_noise(losses, inputs.sigma)

        for group in self.optimizer.param_groups:
            group["lr"] = self.watchdog.rate * learning_rate(self.options, spent)
        skipped = self.engine.step(self.optimizer, self.options.clip)
        self.seen.add(size, num, self.images.buckets[batch.bucket].resolution, self.flops[size.shape])
        for average in (self.average, *self.power_averages.values()):
            average.update(self.denoiser, num, self.seen.images)
        total = self.engine.total(total)
        by_noise = self.engine.total(by_noise)
        if self.balance is not None:
            self.balance.update(str(size), by_noise)
        self.losses.add(str(size), total, by_noise, skipped)
        return size, total

    def save(
        self,
        *,
        keep: bool = True,
        wait: bool = True,
        held_out: float | None = None,
        samples: Mapping[str, float] | None = None,
    ) -> Path | None:
        """Write a checkpoint and the model; one that need not be kept is removed when later ones are written.

        Processes that share the model must all call this, after the same step; of others the first does.

        Args:
            keep: whether it stays.
            wait: return when all is on the disk, and raise what goes wrong. Else training goes on while a copy is
                written, and a failure is told and leaves the checkpoint before.
            held_out, samples: the loss of held-out images and what the meter found, where they were looked at.

        Returns:
            The folder; None where the one before is still being written and this need not be kept, where the gradients
            of late have not been finite, or in a process that does not write.
        """
        if not self.engine.group.takes_part:
            return None
        sharing = self.engine.group.writers is not None
        measured = held_out is not None or samples  # it may be the best
        needed = keep or wait or measured
        if not needed and (self.engine.group.of_first(self.writer.busy) if sharing else self.writer.busy):
            return None
        tensors, state = content_of(self)
        losses = state["losses"]
        if self.on_trouble != "off" and 2 * (losses["skipped"] - self.watchdog.skipped) > max(len(losses["steps"]), 1):
            return None
        folder, good = self.run.checkpoint(self.seen.step), self.watchdog.good
        state |= {"held_out": held_out, "samples": dict(samples or {}), "keep": keep}
        processes = self.engine.group.writers
        copies = checkpoint.Copies.of(tensors) if processes is None else SharedCopies.of(tensors, processes)

        def write() -> None:
            copies.write(folder, state)
            if self.engine.group.first:
                write_tensors(self.run.model_file, copies.groups["ema"])
                sweep(self.run.checkpoints(), last=self.checkpoint_last, best=self.checkpoint_best, good=good)
                if keep and self.run.is_run():  # a page may take its time, and who stops a run should not wait for it
                    with suppress(OSError, InputError):  # the checkpoint is good without it, and info --report makes it
                        write_report(self.run.path)

        try:
            self.writer.wait()
        except (OSError, InputError) as error:
            newest = [path.name for path in self.run.checkpoints()[-1:]]
            self.progress.note(
                f"a checkpoint could not be written ({error}); training goes on, the last good one is "
                + (newest[0] if newest else "none"),
                self.seen.step,
            )
        self.writer.start(write)
        if wait:
            self.writer.wait()
        return folder

    def restore(self, folder: Path) -> dict[str, Any]:
        """Go back to a checkpoint; all processes of a run together. Returns its state."""
        tensors, state = read_shared_checkpoint(folder, self.network, self.engine.group.hosts)
        restore_content(self, folder, tensors, state)
        return state

    @contextmanager
    def _opened(self, budget: Budget) -> Iterator[None]:
        """Inside, the run folder is there, holds what runs, and is this run's alone."""
        # Weights, their averages and two moments, in float32.
        one_checkpoint = (4 + len(self.power_averages)) * 4 * self.facts.parameters
        check_room(self.run.path, 2 * one_checkpoint)
        self.config = replace(self.config, **vars(budget))
        if not self.engine.group.first:
            yield
            return
        self.run.path.mkdir(parents=True, exist_ok=True)
        with locked(self.run.path):
            self.run.write_config(self.config, self.facts)
            yield

    def summary(self) -> str:
        """What is about to be trained, in one line."""
        height, width = self.images.resolution
        sizes = self.schedule.sizes_for((height, width), self.denoiser.stride)
        sizes = ", ".join(f"{size} {size.probability:.0%}" for size in sizes)
        classes = f", {self.denoiser.num_classes} classes" if self.denoiser.num_classes else ""
        others = len(self.images.buckets) - 1
        shapes = f" and {others} other shapes" if others else ""
        shapes += f", {len(self.held_out):,} held out" if self.held_out is not None else ""
        return (
            f"{len(self.images):,} images {height}x{width}x{self.images.channels}{shapes}{classes}; "
            f"{self.facts.parameters:,} parameters on {self.engine.device}; steps on {sizes}; "
            f"sigma_data {self.denoiser.sigma_data:.3f}"
        )
