"""The trainer, which makes a run folder and an averaged model of a denoiser, images and options."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path

from torch import Tensor
from typing_extensions import Unpack

from patch_diffusion.config import BUDGETS, Config, Patches
from patch_diffusion.config_dict import differences, plain
from patch_diffusion.data.augment import Augment
from patch_diffusion.data.images import Images, numbered_as
from patch_diffusion.denoise.carry import table
from patch_diffusion.denoise.consistency import ConsistencyObjective
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.objective import DenoisingObjective, NoiseLevels
from patch_diffusion.errors import InputError, option_error
from patch_diffusion.evaluation.meter import SampleMeter
from patch_diffusion.files import check_room, user_path
from patch_diffusion.limits import check_numbers
from patch_diffusion.patches.schedule import PatchSchedule, PatchSize, Shape, shares_text
from patch_diffusion.processes import explain_lost_peer
from patch_diffusion.runs.folder import ModelFacts, RunFolder
from patch_diffusion.runs.lock import locked
from patch_diffusion.training.batches import Batches, Position
from patch_diffusion.training.budget import Budget, BudgetOptions, training_flops
from patch_diffusion.training.checkpoints.saving import Checkpoints
from patch_diffusion.training.checks import check_network, check_watching
from patch_diffusion.training.choices.batch import limit_pixels
from patch_diffusion.training.clock import Clock
from patch_diffusion.training.hardware.engine import Engine
from patch_diffusion.training.hardware.memory import (
    Demand,
    blank_batch,
    explain_out_of_memory,
    microbatches_that_fit,
)
from patch_diffusion.training.loop import Loop
from patch_diffusion.training.options import TrainerOptions, config_of, reconciled
from patch_diffusion.training.prefetch import Prefetcher
from patch_diffusion.training.progress import Progress
from patch_diffusion.training.state import TrainingState
from patch_diffusion.training.step import Step
from patch_diffusion.training.watching.trackers import Trackers, choose_trackers


class Trainer:
    """A trainer of a denoiser on random patches of images, which writes to a run folder.

    Everything that can be wrong with the options is refused here, before anything is written.

    Args:
        denoiser: the model to train; its network is any ``torch.nn.Module``, see `Denoiser`.
        images: see `open_images`.
        config: all options, see `Config`; or a `PatchSchedule`, which stands for ``Config(patches=...)``. The groups
            ``network`` and ``data``, and ``noise.process`` and ``noise.sigma_data``, are those of the denoiser and the
            images; the budget is that of `fit`. A batch "auto", the default, suits the size of the network.
        out: the run folder: new or empty, or that of a stopped run of the same options, which then continues.
        allow: names of options, such as "optimizer.learning_rate", that may differ from those of the run that is there.
        show: True to show progress on stderr.
        options: single options instead of a config, such as ``batch=32``, see `TrainerOptions`.

    Raises:
        InputError: options that do not suit each other, the images or the network, or a folder that is not free.

    >>> images = open_images("digits")
    >>> denoiser = Denoiser(UNet(1, width=8, multipliers=(1,), blocks=1), sigma_data=images.standard_deviation)
    >>> trainer = Trainer(denoiser, images, PatchSchedule(whole=0.5), out="runs/mine", batch=8, samples=0, show=False)
    >>> model = trainer.fit(steps=1)
    >>> trainer.state.counters.images >= 8
    True
    """

    def __init__(
        self,
        denoiser: Denoiser,
        images: Images,
        config: Config | Patches | None = None,
        *,
        out: str | PathLike[str],
        allow: Collection[str] = (),
        show: bool = True,
        **options: Unpack[TrainerOptions],
    ) -> None:
        objective = options.pop("objective", DenoisingObjective if denoiser.few_steps is None else ConsistencyObjective)
        held_out, meter = options.pop("held_out", None), options.pop("meter", None)
        if meter is not None:
            options["watch"] = meter.options
        config = reconciled(config_of(config, options), denoiser, images)
        check_numbers(config)
        given = differences({"given": config, "usual": Config()}).keys()
        config, limits = limit_pixels(config, images, denoiser.stride, given - {"batch", "batch_pixels"})
        self.run: RunFolder = RunFolder(user_path(out))
        images = self._labelled(images, denoiser)
        rules = self.run.rules()
        check_watching(config, images, held_out, continues=self.run.is_run())
        self.meter = meter
        if meter is None and config.watch.metrics:
            self.meter = SampleMeter(config.watch, seed=config.seed)
        self.schedule: PatchSchedule = PatchSchedule.of(config.patches, seed=config.seed)
        augment = Augment.of(config.data.augment, published="published-stretching" in rules)
        check_network(denoiser, images, augment, self.schedule.context)
        buckets = images.buckets
        self._sizes = [size for each in buckets for size in self.schedule.sizes_for(each.resolution, denoiser.stride)]
        self.images: Images = replace(images, notes=(*images.notes, *limits))
        self.held_out: Images | None = held_out
        denoiser.resolution = images.resolution
        denoiser.class_names = images.class_names if denoiser.num_classes else ()
        denoiser.columns = images.columns if denoiser.attribute_channels else ()
        denoiser.inputs = images.inputs if denoiser.paired_channels else ()
        denoiser.codec = images.codec
        denoiser.context = self.schedule.context
        self.engine: Engine = Engine(config.engine)
        assert isinstance(config.batch, int)  # `reconciled` has settled it
        world, parts = self.engine.group.world, self.engine.accumulation
        if config.batch < world * parts:
            raise InputError(
                f"a batch of {config.batch} cannot be shared out to {world} processes in {parts} parts each: "
                "give a larger batch, or lower engine.accumulation",
                option="batch",
            )
        self.state: TrainingState = TrainingState(objective(denoiser), config, self.engine, rules)
        self.batches: Batches = Batches(
            denoiser,
            images,
            self.schedule,
            seed=config.seed,
            batch=config.batch,
            noise=NoiseLevels.of(config.noise),
            augment=augment,
            device=self.engine.device,
            split=self.engine.microbatches,
            show=show,
        )
        with explain_out_of_memory(self.demand), self.engine.autocast():
            counted = "counted-attention" in rules
            self.flops: dict[Shape, int] = {
                size.shape: training_flops(
                    denoiser, images.channels, size.shape, attention=counted, passes=self.state.objective.passes
                )
                for size in self._sizes
            }
        if config.engine.accumulation == "auto":
            self.engine.accumulation = self.engine.group.max(microbatches_that_fit(self.demand()))
            config = replace(config, engine=replace(config.engine, accumulation=self.engine.accumulation))

        if config.engine.compile is True:
            self.engine.compile(self.state.objective, self._graphs())

        self.config: Config = plain(replace(config, **dict.fromkeys(BUDGETS)))
        self.facts: ModelFacts = self.run.known_facts(ModelFacts.of(denoiser, images, rules))
        self.clock: Clock = Clock()
        trackers = Trackers(choose_trackers(config.track), self.run.path)
        main = self.engine.group.is_main
        self.progress: Progress = Progress(
            self.run.log_file if main else None, show=show and main, trackers=trackers if main else None
        )
        ahead = Prefetcher(
            self.batches.microbatch,
            where=lambda: self.batches.feed.reading,
            note=self._note,
            fits=self.batches.fits if self.schedule.kind == "progressive" else None,
        )
        self.step: Step = Step(self.state, ahead, self.engine, self.config.optimizer, self.flops)
        self.checkpoints: Checkpoints = Checkpoints(
            self.state, self.run, self.engine.group, self.config, self._note, self.progress.optional
        )
        self.changed: list[str] = self.run.check(self.config, self.facts, allow)
        if self.config.start is not None and not self.facts.carried:
            raise option_error(
                "start", "is for train and pd.train: a Trainer trains on from the weights of its denoiser"
            )

    def _labelled(self, images: Images, denoiser: Denoiser) -> Images:
        """Return images with the labels of the run that continues, or of a denoiser that was trained before."""
        if self.run.is_run():
            return self.run.as_trained(images)
        if denoiser.resolution is None:  # it is new, and made for these images
            return images
        return numbered_as(images, denoiser.class_names, denoiser.num_classes) or images

    @explain_lost_peer()
    def fit(self, **budget: Unpack[BudgetOptions]) -> Denoiser:
        """Train until the budget is spent; the same call continues a stopped run.

        Args:
            budget: one of ``steps`` (of the optimizer), ``images`` (drawn from the data), ``minutes`` (of training, to
                which evaluation adds at most 5 %), ``wall_minutes`` (in which all is done, from the making of the
                trainer on), each over all continuations.

        Returns:
            The averaged model, to sample from. With ``engine.shard`` all processes must sample together; `load`
            gives an unsharded model.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once a checkpoint is written. A second one stops at once.
        """
        with self.in_laps(**budget) as train_until:
            return train_until(1.0)

    @contextmanager
    def in_laps(self, **budget: Unpack[BudgetOptions]) -> Iterator[Callable[[float], Denoiser]]:
        """Train in laps, with breaks in which to do something else, such as to train another model.

        The function that the with block gets trains until a fraction of the budget is spent. All laps together do what
        one `fit` does, step by step. What happens between them does not count as training, and nothing is saved then
        unless `save` is called. The run folder is this run's alone until the end. Trackers are closed after each lap.

        >>> with trainer.in_laps(minutes=10) as train_until:  # doctest: +SKIP
        ...     for tenth in range(1, 11):
        ...         model = train_until(tenth / 10)
        """
        whole, optimizer = Budget(**budget), self.config.optimizer
        if whole.is_one_step(self.batches.batch):
            optimizer = replace(optimizer, warmup=0.0)  # a warm-up begins at a rate of 0, so nothing would be trained
        self.step = replace(self.step, optimizer=optimizer)
        self.engine.group.barrier()  # until all ranks have checked the folder
        with self._opened(whole):
            self.engine.group.barrier()
            loop = Loop(
                self.state,
                self.train_step,
                whole,
                self.config,
                self.facts,
                self.engine,
                self.run,
                self.checkpoints,
                self.clock,
                lambda: self.step.batches.waited,
                self.progress,
                self.schedule,
                self.images,
                self.held_out,
                self.meter,
                lambda: explain_out_of_memory(self.demand),
                (
                    [self.summary(), *table(self.facts.carried), *self.images.notes],
                    [f"changed from here on: {change}" for change in self.changed],
                ),
            )
            loop.begin()
            untried = self.config.engine.compile == "auto" and self.engine.compiled is None
            if untried and whole.spent(self.state.counters, self.clock.wall) < 1:
                self._compile_if_right()
            yield lambda until: loop.run_until(min(until, 1.0))

    def train_step(self, spent: float = 0.0) -> tuple[PatchSize, Tensor]:
        """Take one optimizer step on patches of one size.

        Args:
            spent: the fraction of the budget that is spent.

        Returns:
            The patch size, and the mean loss over all patches, a tensor on the device.
        """
        result = self.step(spent)
        return result.size, self.state.record(result, self.engine.all_reduce_sum)

    def save(self, *, keep: bool = True, wait: bool = True, held_out: float | None = None) -> Path | None:
        """Write a checkpoint and the model, see `Checkpoints.save`."""
        return self.checkpoints.save(keep=keep, wait=wait, held_out=held_out)

    def summary(self) -> str:
        """Return a line of text about the training: images, parameters, device and patch sizes."""
        height, width = self.images.resolution
        sizes = self.schedule.sizes_for((height, width), self.state.denoiser.stride)
        sizes = shares_text({str(size): size.probability for size in sizes}, self.schedule.kind)
        classes = f", {self.facts.num_classes} classes" if self.facts.num_classes else ""
        others = len(self.images.buckets) - 1
        shapes = f" and {others} other shapes" if others else ""
        shapes += f", {len(self.held_out):,} held out" if self.held_out is not None else ""
        return (
            f"{len(self.images):,} images {height}x{width}x{self.images.channels}{shapes}{classes}; "
            f"{self.facts.parameters:,} parameters on {self.engine}; steps on {sizes}; "
            f"sigma_data {self.facts.sigma_data:.3f}"
        )

    def demand(self) -> Demand:
        """Return the facts that decide how much memory a training step takes."""
        group = self.engine.group
        return Demand(
            self.state.network,
            self._sizes,
            self.batches.batch,
            group.world,
            group.sharing,
            len(self.state.power_averages),
            self._blank_loss,
            self.engine.device,
        )

    def _blank_loss(self, shape: Shape, num: int) -> Tensor:
        """Compute the summed training loss of ``num`` blank images, to measure the memory that it takes."""
        batch = blank_batch(self.state.denoiser, self.images.channels, shape, num, self.engine.device)
        with self.engine.autocast():
            # Not a call, which would run what is compiled for the shapes of training.
            return self.state.objective.forward(batch).sum()

    def _graphs(self) -> int:
        """Return the number of shapes in which this rank calls the objective: by patch size and by microbatch."""
        return len(
            {
                (size.shape, size.small, len(part))
                for size in self._sizes
                for part in self.engine.microbatches(size.num_images(self.batches.batch))
            }
        )

    def _compile_if_right(self) -> None:
        """Compile the objective if it works on the next microbatch, and say so if it does not."""
        counters, waited = self.state.counters, self.step.batches.waited
        batch = self.step.batches.get(Position(counters.step, 0, counters.by_resolution)).batch
        self.step.batches.waited = waited  # this is not in the time of the steps
        reason = self.engine.compile_if_right(self.state.module, self.state.objective, batch, self._graphs())
        if reason:
            self._note(f"the network is not compiled: {reason}")

    def _note(self, text: str) -> None:
        self.progress.note(text, self.state.counters.step)

    @contextmanager
    def _opened(self, budget: Budget) -> Iterator[None]:
        """Lock the run folder for the with block, and make it if it is new; raise InputError if the disk lacks room."""
        # Weights, their averages and two moments, in float32.
        one_checkpoint = (4 + len(self.state.power_averages)) * 4 * self.facts.parameters
        check_room(self.run.path, 2 * one_checkpoint)
        self.config = replace(self.config, **vars(budget))
        if not self.engine.group.is_main:
            yield
            return
        self.run.path.mkdir(parents=True, exist_ok=True)
        with locked(self.run.path) as self.checkpoints.is_ours:
            try:
                yield
            finally:
                self.checkpoints.is_ours = None
