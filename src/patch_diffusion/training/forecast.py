"""A forecast of the time and memory that a training run will take, measured on a few of its steps."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from patch_diffusion.data.images import Images
from patch_diffusion.devices import memory_of
from patch_diffusion.patches.schedule import PatchSchedule, PatchSize
from patch_diffusion.training.hardware.memory import WORKSPACE, memory_of_image, memory_of_weights
from patch_diffusion.training.trainer import Trainer
from patch_diffusion.training.watching.evaluation import num_pictures, seconds_per_picture

SECONDS = 8.0
"""The approximate time, in seconds, that the timed steps may take."""

_TIMED_STEPS = 4  # timed steps of each size, not counting the first, in which memory is allocated
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Forecast:
    """An estimate of what a training run costs on this machine, in time and memory.

    Args:
        device: the device that was measured.
        parameters: number of parameters of the network.
        seconds: duration of a step, by patch size.
        shares: share of the steps, by patch size; of the budget for the sizes ``in_turn``.
        images: images in a step, by patch size.
        operations: floating-point operations of a step, by patch size.
        seconds_per_picture: duration of making one picture of samples during training.
        pictures: number of pictures of samples in the run.
        batch: whole images in a step.
        memory_of_weights: bytes on the device for weights, gradients, averages and moments.
        memory_of_step: further bytes that the largest step takes. The data, and torch itself, come on top.
        in_turn: the patch sizes that are taken one after the other, each for its share of the budget, whichever unit
            that has (a progressive schedule); the others are drawn at any step.
        unit: the unit of the budget that ``images_per_second`` is the speed in.
    """

    device: str
    parameters: int
    seconds: Mapping[str, float]
    shares: Mapping[str, float]
    images: Mapping[str, int]
    operations: Mapping[str, int]
    seconds_per_picture: float
    pictures: int
    batch: int
    memory_of_weights: int
    memory_of_step: int
    in_turn: tuple[str, ...] = ()
    unit: Literal["steps", "images", "minutes"] = "minutes"

    @property
    def memory(self) -> int:
        """The estimated memory that training takes on the device, in bytes."""
        return self.memory_of_weights + self.memory_of_step

    def with_batch(self, batch: int) -> Forecast:
        """Return the estimate for another batch size, in proportion, except for the costs of weights and samples."""
        factor = batch / self.batch
        return replace(
            self,
            seconds={size: factor * seconds for size, seconds in self.seconds.items()},
            images={size: max(1, round(factor * num)) for size, num in self.images.items()},
            operations={size: round(factor * num) for size, num in self.operations.items()},
            batch=batch,
            memory_of_step=round(factor * self.memory_of_step),
        )

    @property
    def images_per_second(self) -> float:
        """The estimated training speed in images per second, without the time for pictures of samples."""
        return self._speed(self.unit)

    @property
    def rate(self) -> float:
        """The estimated floating-point operations in a second of training."""
        return sum(self.shares[size] * num for size, num in self.operations.items()) / sum(
            self.shares[size] * seconds for size, seconds in self.seconds.items()
        )

    def images_in(self, minutes: float) -> int:
        """Estimate the number of images that training sees in a budget of minutes."""
        return round(60 * minutes * self._speed("minutes"))

    def minutes_for(self, *, steps: float | None = None, images: float | None = None) -> float:
        """Estimate the minutes that training takes for a number of steps, or of images."""
        if images is not None:
            seconds = images / self._speed("images")
        else:
            assert steps is not None
            seconds = steps * sum(share * each for share, _, each in self._phases())
        return (seconds + self.pictures * self.seconds_per_picture) / 60

    def as_dict(self) -> dict[str, Any]:
        """Return the estimated time and memory of a training as a dict that JSON can store."""
        return {**asdict(self), "memory": self.memory, "images_per_second": self.images_per_second}

    def _speed(self, unit: str) -> float:
        """Return the images per second over a budget of this unit: the mean, weighted by what the shares are of."""
        phases = self._phases()
        if unit == "minutes":
            return sum(share * images / seconds for share, images, seconds in phases)
        if unit == "images":
            return 1 / sum(share * seconds / images for share, images, seconds in phases)
        return sum(share * images for share, images, _ in phases) / sum(share * each for share, _, each in phases)

    def _phases(self) -> list[tuple[float, float, float]]:
        """Return for each phase of the training its share of the budget, and the mean images and seconds of a step."""
        drawn = {size: share for size, share in self.shares.items() if size not in self.in_turn}
        left = 1 - sum(drawn.values())  # of the steps of each phase
        mixes = [(self.shares[size] / left, {**drawn, size: left}) for size in self.in_turn] or [(1.0, drawn)]
        return [
            (
                share,
                sum(part * self.images[size] for size, part in mix.items()),
                sum(part * self.seconds[size] for size, part in mix.items()),
            )
            for share, mix in mixes
        ]


def forecast(
    trainer: Trainer, *, seconds: float = SECONDS, unit: Literal["steps", "images", "minutes"] = "minutes"
) -> Forecast:
    """Forecast the cost of a run by timing some steps of a fresh trainer, which is not to be used afterwards.

    Patch sizes that did not occur are estimated by floating-point operations. If a step of the whole batch would take
    too long, or more memory than there is, fewer images are timed and the result is scaled up.

    Args:
        trainer: the trainer of the run. Nothing is written.
        seconds: approximate time to spend; a single step may take longer.
        unit: the unit of the run's budget.
    """
    batch, demand = trainer.batches.batch, trainer.demand()
    sizes = {str(size): size for size in demand.sizes}
    images = _images(sizes, batch)
    bytes_of = {name: memory_of_image(demand, size.shape) for name, size in sizes.items()}
    parts = trainer.engine.accumulation
    memory_of_step = round(WORKSPACE * max(-(-images[name] // parts) * bytes_of[name] for name in sizes))
    try:
        with trainer.engine.threads(trainer.state.denoiser):
            _resize(trainer, _batch_to_time(trainer, sizes, memory_of_step, seconds))
            measured = _time_steps(trainer, sizes, seconds)
        # If only a part of the batch was timed, its time per image stands for the whole batch.
        timed = _images(sizes, trainer.batches.batch)
    finally:
        _resize(trainer, batch)
    model = trainer.state.average.denoiser
    per_image = {name: spent / timed[name] for name, spent in measured.items()}
    per_flop = statistics.fmean(per_image[name] / trainer.flops[sizes[name].shape] for name in per_image)
    return Forecast(
        device=str(trainer.state.denoiser.device),
        parameters=trainer.facts.parameters,
        seconds={
            name: images[name] * per_image.get(name, per_flop * trainer.flops[size.shape])
            for name, size in sizes.items()
        },
        shares=shares_of(trainer.images, trainer.schedule, trainer.state.denoiser.stride),
        images=images,
        operations={name: images[name] * trainer.flops[size.shape] for name, size in sizes.items()},
        seconds_per_picture=seconds_per_picture(model) * num_pictures(model),
        pictures=trainer.config.samples,
        batch=batch,
        memory_of_weights=memory_of_weights(demand.network, demand.averages),
        memory_of_step=memory_of_step,
        in_turn=tuple(
            name for name, size in sizes.items() if trainer.schedule.kind == "progressive" and not size.small
        ),
        unit=unit,
    )


def duration(minutes: float) -> str:
    """Return words for a time, such as "3.5 hours"."""
    if minutes < 120:
        return f"{minutes:,.1f} minutes"
    return f"{minutes / 60:,.1f} hours" if minutes < 48 * 60 else f"{minutes / 60 / 24:,.0f} days"


def shares_of(images: Images, schedule: PatchSchedule, stride: int) -> dict[str, float]:
    """Return the share of each image or patch size, by its name such as "32x32", for a network of this stride."""
    shares: dict[str, float] = {}
    for bucket in images.buckets:
        for size in schedule.sizes_for(bucket.resolution, stride):
            shares[str(size)] = shares.get(str(size), 0.0) + size.probability * len(bucket) / len(images)
    return shares


def _resize(trainer: Trainer, batch: int) -> None:
    """Set the batch size of a trainer's next steps."""
    trainer.batches.batch = batch
    trainer.step.batches.forget()


def _images(sizes: Mapping[str, PatchSize], batch: int) -> dict[str, int]:
    return {name: size.num_images(batch) for name, size in sizes.items()}


def _batch_to_time(trainer: Trainer, sizes: Mapping[str, PatchSize], memory: int, seconds: float) -> int:
    """Set and return the batch size to time: the whole batch, or what fits into half the memory and ``seconds``."""
    batch, room, parts = trainer.batches.batch, memory_of(trainer.state.denoiser.device), trainer.engine.accumulation
    largest = batch if room is None else max(parts, min(batch, int(batch * room / 2 / memory)))
    _resize(trainer, parts)
    _step(trainer, 0.5)
    while trainer.batches.batch < largest:
        size, spent = _step(trainer, 0.5)
        flops = {
            name: num * trainer.flops[sizes[name].shape] for name, num in _images(sizes, trainer.batches.batch).items()
        }
        slowest = spent * max(flops.values()) / flops[size]
        if 2 * slowest * _TIMED_STEPS * len(sizes) > seconds:
            break
        _resize(trainer, min(2 * trainer.batches.batch, largest))
    return trainer.batches.batch


def _time_steps(trainer: Trainer, sizes: Mapping[str, PatchSize], seconds: float) -> dict[str, float]:
    """Time training steps; return the median seconds of a step, for each patch size that occurred."""
    times: dict[str, list[float]] = {name: [] for name in sizes}
    end = time.monotonic() + seconds
    index = 0
    while time.monotonic() < end and any(len(found) <= _TIMED_STEPS for found in times.values()):
        index += 1
        # Stochastic sizes depend on the number of the step, progressive ones on the spent fraction of the budget, which
        # is therefore sampled evenly.
        trainer.state.counters.step = index
        size, spent = _step(trainer, index * _GOLDEN % 1)
        times[size].append(spent)
    return {name: statistics.median(found[1:] or found) for name, found in times.items() if found}


def _step(trainer: Trainer, spent: float) -> tuple[str, float]:
    """Run one training step; return its patch size and the seconds it took."""
    began = time.monotonic()
    size, loss = trainer.train_step(spent)
    loss.item()  # synchronizes, so that the time is that of the whole step
    return str(size), time.monotonic() - began
