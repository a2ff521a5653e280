"""Training: a run, and one step of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patch_diffusion.config import Augment as AugmentOptions
from patch_diffusion.config import Config, Ema, Network, Noise, Optimizer
from patch_diffusion.config import Engine as EngineOptions
from patch_diffusion.data.augment import Augment
from patch_diffusion.data.images import Images
from patch_diffusion.data.latents.codec import LatentSet
from patch_diffusion.data.order import SampleOrder, bucket_at
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.noise import NoiseLevels
from patch_diffusion.errors import InputError
from patch_diffusion.files import check_room, read_json, write_tensors
from patch_diffusion.patches.crop import random_patches
from patch_diffusion.patches.schedule import PatchSchedule, PatchSize
from patch_diffusion.sampling.generate import generate
from patch_diffusion.sampling.pictures import picture_grid, write_picture
from patch_diffusion.streams import slot_normal, stream_key
from patch_diffusion.training import checkpoint
from patch_diffusion.training.background import BackgroundWriter
from patch_diffusion.training.budget import Budget
from patch_diffusion.training.cost import Seen, training_flops
from patch_diffusion.training.ema import WeightAverage
from patch_diffusion.training.engine import Engine
from patch_diffusion.training.feed import Feed
from patch_diffusion.training.interrupts import interruptible
from patch_diffusion.training.lock import locked
from patch_diffusion.training.optimizers import learning_rate, make_optimizer
from patch_diffusion.training.power_ema import PowerAverage
from patch_diffusion.training.progress import Progress
from patch_diffusion.training.run import ModelFacts, RunFolder, average_name, restore_weights


class Trainer:
    """Trains a denoiser on images by patches, into a run folder.

    Everything that can be wrong with the options is refused here, before anything is written.

    Args:
        denoiser: what is trained; its network is any ``torch.nn.Module``, see `Denoiser`.
        images: see `open_images`.
        schedule: sizes of the steps; its seed is the seed of the run.
        out: the run folder: new or empty, or that of a stopped run of the same options, which then continues.
        batch: whole images per step.
        augment: how images are altered before they are cut.
        noise: noise levels to train on.
        optimizer, ema, engine, checkpoints, checkpoint_minutes, samples, log_every: see `Config`.
        show: progress on stderr.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        images: Images,
        schedule: PatchSchedule | None = None,
        *,
        out: str | PathLike[str],
        batch: int = Config.batch,
        augment: Augment | None = None,
        noise: NoiseLevels | None = None,
        optimizer: Optimizer | None = None,
        ema: Ema | None = None,
        engine: EngineOptions | None = None,
        checkpoints: int = Config.checkpoints,
        checkpoint_minutes: float = Config.checkpoint_minutes,
        samples: int = Config.samples,
        log_every: int = Config.log_every,
        show: bool = True,
    ) -> None:
        noise, optimizer = noise or NoiseLevels(process=denoiser.process), optimizer or Optimizer()
        ema, engine = ema or Ema(), engine or EngineOptions()
        for name, value, least in (
            ("batch", batch, 1),
            ("checkpoints", checkpoints, 1),
            ("samples", samples, 0),
            ("log_every", log_every, 1),
        ):
            if value < least:
                raise InputError(f"{name} is at least {least}, not {value}")
        if not checkpoint_minutes > 0:
            raise InputError(f"checkpoint_minutes is above 0, not {checkpoint_minutes}")
        if noise.process != denoiser.process:
            raise InputError(f"noise levels of the {noise.process.name} process, denoiser of {denoiser.process.name}")
        self.augment = augment or Augment()
        _check_network(denoiser, images, self.augment)
        self.schedule = schedule or PatchSchedule()
        sizes = {
            bucket.resolution: self.schedule.sizes_for(bucket.resolution, denoiser.stride) for bucket in images.buckets
        }

        self.images = images
        self.batch = batch
        self.options = optimizer
        self.log_every, self.samples, self.checkpoint_minutes = log_every, samples, checkpoint_minutes
        self.num_checkpoints = checkpoints
        self.engine = Engine(engine)
        if batch < self.engine.world * engine.accumulation:
            raise InputError(
                f"a batch of {batch} cannot be shared out to {self.engine.world} processes in {engine.accumulation} "
                "parts each: give a larger batch, or lower engine.accumulation"
            )
        denoiser.resolution = images.resolution
        denoiser.class_names = images.class_names if denoiser.num_classes else ()
        denoiser.codec = images.codec
        self.loss = self.engine.prepare(denoiser).train()
        self.denoiser, self.network = denoiser, denoiser.module
        self.orders = [SampleOrder(len(bucket), self.schedule.seed) for bucket in images.buckets]
        self.noise = noise
        self.optimizer = make_optimizer(self.network.parameters(), optimizer)
        self.average = WeightAverage(denoiser, ema)
        self.power_averages = {average_name(length): PowerAverage(denoiser, length) for length in ema.lengths}
        self.seen = Seen()
        shapes = {size.shape for of_bucket in sizes.values() for size in of_bucket}
        self.flops = {shape: training_flops(denoiser, images.channels, shape) for shape in shapes}

        self.run = RunFolder(Path(out).expanduser())
        self.facts = ModelFacts.of(denoiser, images)
        settings = getattr(self.network, "settings", None)
        self.config = Config(
            data=replace(images.options, augment=AugmentOptions(**vars(self.augment))),
            patches=self.schedule.options(coords=denoiser.coords),
            noise=Noise(
                process=denoiser.process.name,
                p_mean=noise.p_mean,
                p_std=noise.p_std,
                sigma_data=denoiser.sigma_data,
                sigma_min=denoiser.sigma_min,
                sigma_max=denoiser.sigma_max,
            ),
            network=Network(kind="custom") if settings is None else Network(**settings),
            optimizer=optimizer,
            ema=ema,
            engine=engine,
            batch=batch,
            seed=self.schedule.seed,
            checkpoints=checkpoints,
            checkpoint_minutes=checkpoint_minutes,
            samples=samples,
            log_every=log_every,
        )
        self.progress = Progress(self.run.log_file if self.engine.first else None, show=show and self.engine.first)
        self.feed = Feed(images, self.orders, self.engine.device, lambda text: self.progress.note(text, self.seen.step))
        self.writer = BackgroundWriter()
        self.run.check(self.config, self.facts)

    def fit(self, *, steps: int | None = None, images: int | None = None, minutes: float | None = None) -> Denoiser:
        """Train until the budget is spent; the same call continues a stopped run.

        Args:
            steps, images, minutes: the budget, one of them: optimizer steps, images drawn from the data, or minutes of
                training over all continuations.

        Returns:
            The averaged model, to sample from.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once a checkpoint is written. A second one stops at once.
        """
        budget = Budget(steps, images, minutes)
        self.engine.wait()  # until all have looked at the folder
        with self._opened(budget):
            self.engine.wait()
            self._continue(budget)
            return self._fit(budget)

    def _fit(self, budget: Budget) -> Denoiser:
        began, seconds_before = time.monotonic(), self.seen.seconds
        last_save = seconds_before
        spent = budget.spent(self.seen)
        with self.progress, interruptible() as interrupted:
            stop = False
            while spent < 1 and not stop:
                size, loss = self.train_step(spent)
                self.progress.record(str(size), loss)
                seconds = seconds_before + time.monotonic() - began
                self.seen.seconds, stop = self.engine.agree(seconds, interrupted.is_set())
                spent, before = budget.spent(self.seen), spent
                if self.seen.step % self.log_every == 0 or spent >= 1:
                    self.progress.log(self.seen, spent, self.optimizer.param_groups[0]["lr"])
                self.progress.show(self.seen, spent)
                if _crosses(before, spent, self.samples) and self.engine.first:
                    self.write_samples()
                keep = _crosses(before, spent, self.num_checkpoints)
                last = spent >= 1 or stop
                if (keep or last or seconds - last_save > 60 * self.checkpoint_minutes) and self.engine.first:
                    self.save(keep=keep, wait=last)
                    last_save = seconds
        self.engine.wait()
        if spent < 1:
            raise KeyboardInterrupt
        return self.average.denoiser

    def train_step(self, spent: float = 0.0) -> tuple[PatchSize, Tensor]:
        """One optimizer step on patches of one size.

        Everything random is a function of the seed, the number of the step and the slot of a sample in the batch.

        Args:
            spent: the fraction of the budget that is spent.

        Returns:
            The size, and the mean loss over its patches, still on the device.
        """
        step = self.seen.step
        bucket = bucket_at(self.schedule.seed, step, [len(images) for images in self.images.buckets])
        images = self.images.buckets[bucket]
        size = self.schedule.size_at(step, images.resolution, spent)
        num = size.num_images(self.batch)

        total = torch.zeros((), device=self.engine.device)
        shares = self.engine.shares(num)
        for part, slots in enumerate(shares):
            inputs = self._inputs(bucket, size, num, slots)
            self._expect(bucket, num, shares[part + 1 :], spent)
            torch.manual_seed(
                self._key("dropout") + slots.start
            )  # modules with dropout draw from torch's own generator
            with self.engine.accumulating(self.loss, last=part == len(shares) - 1), self.engine.computing():
                loss = self.loss(*inputs).sum() / num
                self.engine.backward(loss * size.weight)
            total += loss.detach()

        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.options, spent)
        self.engine.step(self.optimizer, self.options.clip)
        self.seen.add(size, num, images.resolution, self.flops[size.shape])
        for average in (self.average, *self.power_averages.values()):
            average.update(self.denoiser, num, self.seen.images)
        return size, self.engine.total(total)

    def _expect(self, bucket: int, num: int, shares: list[range], spent: float) -> None:
        """Have the images of the next part of a step of ``num`` read, or, after the last, those of the next step."""
        first = self.seen.drawn(self.images.buckets[bucket].resolution)
        if not shares:
            step, before = self.seen.step + 1, bucket
            bucket = bucket_at(self.schedule.seed, step, [len(images) for images in self.images.buckets])
            resolution = self.images.buckets[bucket].resolution
            first = self.seen.drawn(resolution) + (num if bucket == before else 0)
            # Of a progressive schedule this is a guess: less of the budget was spent than will be.
            shares = self.engine.shares(self.schedule.size_at(step, resolution, spent).num_images(self.batch))
        self.feed.expect(bucket, first + shares[0].start, len(shares[0]))

    def _inputs(self, bucket: int, size: PatchSize, num: int, slots: range) -> tuple[Tensor | None, ...]:
        """What the loss is computed from, see `DenoisingLoss`, of some of the ``num`` samples of this step."""
        images, device, chosen = self.images.buckets[bucket], self.engine.device, slice(slots.start, slots.stop)
        first = self.seen.drawn(images.resolution) + slots.start
        pixels, labels = self.feed.take(bucket, first, len(slots))

        draws = torch.Generator().manual_seed(self._key("draws"))
        places, hidden = torch.rand(num, 2, generator=draws)[chosen], torch.rand(num, generator=draws)[chosen]
        sigma = self.noise.draw(num, generator=draws)[chosen].to(device, non_blocking=True)
        labels = labels if self.denoiser.num_classes else None
        if labels is not None:
            labels = labels.masked_fill(hidden < self.denoiser.label_dropout, -1).to(device, non_blocking=True)

        if self.augment.p:
            pixels = images.codec.encode(pixels)
        pixels, altered = self.augment(pixels, self.schedule.seed, self.seen.step, slots)
        patch = random_patches(pixels, size.shape, places=places)

        def normal(name: str) -> Tensor:
            shape = (images.channels, *size.shape)
            return slot_normal(self.schedule.seed, name, self.seen.step, slots, shape, device)

        posterior = normal("posterior") if images.codec.posterior else None
        clean = patch.pixels if self.augment.p else images.codec.encode(patch.pixels, posterior)
        return clean, patch.coords, sigma, labels, altered, normal("noise")

    def _key(self, name: str) -> int:
        """Of the random numbers of this step with that name."""
        return stream_key(self.schedule.seed, name, self.seen.step)

    def save(self, *, keep: bool = True, wait: bool = True) -> Path:
        """Write a checkpoint and the model; one that need not be kept is removed when the next is written.

        Args:
            keep: whether it stays when the next is written.
            wait: return when all is on the disk, and raise what goes wrong. Else training goes on while a copy is
                written, and a failure is told and leaves the checkpoint before.
        """
        tensors = {
            "weights": _copies(self.network.state_dict()),
            "ema": _copies(self.average.denoiser.module.state_dict()),
            "optimizer": _copies(checkpoint.optimizer_tensors(self.optimizer, self.network)),
            **{name: _copies(average.tensors) for name, average in self.power_averages.items()},
        }
        state = {"seen": self.seen.as_dict(), "pending": self.progress.pending(), "keep": keep}
        folder = self.run.checkpoint(self.seen.step)

        def write() -> None:
            earlier = self.run.checkpoints()
            checkpoint.write_checkpoint(folder, tensors, state)
            write_tensors(self.run.model_file, tensors["ema"])
            for path in earlier[-1:]:
                if path != folder and not read_json(path / checkpoint.STATE_FILE).get("keep", True):
                    checkpoint.remove_checkpoint(path)

        try:
            self.writer.wait()
        except (OSError, InputError) as error:
            good = [path.name for path in self.run.checkpoints()[-1:]]
            self.progress.note(
                f"a checkpoint could not be written ({error}); training goes on, the last good one is "
                + (good[0] if good else "none"),
                self.seen.step,
            )
        self.writer.start(write)
        if wait:
            self.writer.wait()
        return folder

    def restore(self, folder: Path) -> None:
        """Go back to a checkpoint."""
        self._restore(folder, *checkpoint.read_checkpoint(folder))

    def _restore(self, folder: Path, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        try:
            restore_weights(self.network, tensors["weights"], str(folder))
            restore_weights(self.average.denoiser.module, tensors["ema"], str(folder))
            for name, average in self.power_averages.items():
                average.restore(tensors[name])
            checkpoint.restore_optimizer(self.optimizer, self.network, tensors["optimizer"])
            self.seen = Seen(**state["seen"])
            self.progress.restore(state["pending"])
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{folder} is damaged: {error}") from None

    def write_samples(self) -> None:
        """A picture of samples from fixed seeds."""
        num = self.denoiser.num_classes
        seeds = range(min(num, 10) * 2 if num else 16)
        pictures = [sample.visible for sample in generate(self.average.denoiser, seeds)]
        write_picture(
            picture_grid(pictures, columns=len(seeds) // 2 if num else None), self.run.sample_file(self.seen.step)
        )

    @contextmanager
    def _opened(self, budget: Budget) -> Iterator[None]:
        """Inside, the run folder is there, holds what runs, and is this run's alone."""
        # Weights, their averages and two moments, in float32.
        one_checkpoint = (4 + len(self.power_averages)) * 4 * self.facts.parameters
        check_room(self.run.path, 2 * one_checkpoint)
        self.config = replace(self.config, **vars(budget))
        if not self.engine.first:
            yield
            return
        self.run.path.mkdir(parents=True, exist_ok=True)
        with locked(self.run.path):
            self.run.write_config(self.config, self.facts)
            yield

    def _continue(self, budget: Budget) -> None:
        """Go to where a stopped run was: its newest checkpoint that is not damaged."""
        existing = self.run.checkpoints()
        damaged: dict[Path, str] = {}
        for folder in reversed(existing):
            try:
                content = checkpoint.read_checkpoint(folder)
            except InputError as error:
                damaged[folder] = str(error)
                continue
            self._restore(folder, *content)
            break
        if existing and len(damaged) == len(existing):
            raise InputError(
                f"no checkpoint of {self.run.path} can be read: {'; '.join(damaged.values())}; choose another folder"
            )
        self.progress.continue_log(self.seen.step)
        self.engine.wait()
        for folder, reason in damaged.items():
            if self.engine.first:
                checkpoint.set_aside(folder)
            self.progress.note(f"WARNING: {reason}; going back to the checkpoint before", self.seen.step)
        if budget.spent(self.seen) >= 1:
            self.progress.say(
                f"this run is complete, after {self.seen.step:,} steps; a larger budget would continue it"
            )
        elif existing:
            self.progress.say(f"continuing after step {self.seen.step:,}")
        else:
            for note in (self._summary(), *self.images.notes):
                self.progress.note(note, 0)

    def _summary(self) -> str:
        """What is about to be trained, in one line."""
        height, width = self.images.resolution
        sizes = self.schedule.sizes_for((height, width), self.denoiser.stride)
        sizes = ", ".join(f"{size} {size.probability:.0%}" for size in sizes)
        classes = f", {self.denoiser.num_classes} classes" if self.denoiser.num_classes else ""
        others = len(self.images.buckets) - 1
        shapes = f" and {others} other shapes" if others else ""
        return (
            f"{len(self.images):,} images {height}x{width}x{self.images.channels}{shapes}{classes}; "
            f"{self.facts.parameters:,} parameters on {self.engine.device}; steps on {sizes}; "
            f"sigma_data {self.denoiser.sigma_data:.3f}"
        )


def _check_network(denoiser: Denoiser, images: Images, augment: Augment) -> None:
    """The network takes such images."""
    if augment.channels not in (0, denoiser.augment_channels):
        raise InputError(
            f"the network is told of augmentation by {denoiser.augment_channels} numbers, but data.augment gives "
            f"{augment.channels}: build it with augment_channels={augment.channels}"
        )
    if isinstance(images, LatentSet) and (augment.p or augment.flip):
        raise InputError("latents cannot be augmented: make those of the mirrored images too (prepare --flips)")
    if denoiser.image_channels not in (None, images.channels):
        raise InputError(f"the network takes {denoiser.image_channels} channels, but the images have {images.channels}")
    if denoiser.num_classes and denoiser.num_classes != images.num_classes:
        raise InputError(
            f"the network knows {denoiser.num_classes} classes, but the images have {images.num_classes or 'none'}"
        )


def _crosses(before: float, spent: float, parts: int) -> bool:
    """Whether one of ``parts`` even marks of the budget, the end among them, lies in (before, spent]."""
    return parts > 0 and int(min(spent, 1.0) * parts + 1e-9) > int(before * parts + 1e-9)


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In the host's memory, so that training can go on while they are written."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
