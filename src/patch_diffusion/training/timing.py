"""The speed of training steps on this machine, measured on a few of them."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from patch_diffusion.config import Config, Watch
from patch_diffusion.data.images import Images
from patch_diffusion.devices import memory_of
from patch_diffusion.training.build import build_trainer
from patch_diffusion.training.choices.size import Speed
from patch_diffusion.training.hardware.memory import memory_of_weights, memory_of_whole_image, most_images
from patch_diffusion.training.trainer import Trainer

_TIMED = 3  # steps of each batch and patch size, of which the quickest counts
_BATCHES = (2, 8)  # the first to time
_LARGER = 4  # times as large is each next one
_LARGEST = 512
_TELLING = 2.0  # times as long as the quickest step takes the slowest, for the operations to tell
_SECONDS = 2.0


def measure_speed(images: Images, config: Config, seconds: float = _SECONDS) -> Speed:
    """Time some steps of a new trainer: small and large ones, which tell the operations from what comes beside them.

    Args:
        images: the images of the run.
        config: its options.
        seconds: the approximate time to spend.
    """
    engine = replace(config.engine, shard=False, accumulation=1, compile=False)
    quiet = replace(config, engine=engine, watch=Watch(), checkpoint_by="loss", batch_pixels=None, start=None)
    quiet = replace(quiet, batch=_BATCHES[0] * int(os.environ.get("WORLD_SIZE", "1")))
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(quiet, images, Path(folder) / "run", show=False)
        demand = trainer.demand()
        activations, memory = memory_of_whole_image(demand), memory_of(trainer.engine.device)
        most = most_images(memory_of_weights(demand.network, demand.averages), activations, memory)
        share = trainer.engine.group.broadcast  # the first of all processes decides, also what the others time
        with trainer.engine.threads(trainer.state.denoiser):
            overhead, rate = fit_speed(lambda batches: share(_time(trainer, batches, seconds)), share(most))
    return share(Speed(overhead, rate, activations, memory))


def fit_speed(time_steps: Callable[[Sequence[int]], Mapping[int, float]], most: float) -> tuple[float, float]:
    """Return the overhead of a step, in seconds, and the rate of its images, in operations a second.

    Steps of few images take equally long on a GPU, which then waits for the host, and tell nothing of its rate. So
    batches become larger until the slowest steps take much longer than the quickest.

    Args:
        time_steps: function that returns the seconds of steps of some batches, by their number of operations.
        most: the largest batch that the memory takes.
    """
    seconds = dict(time_steps(sorted({max(1, int(min(batch, most))) for batch in _BATCHES})))
    batch = _LARGER * max(_BATCHES)
    while max(seconds.values()) < _TELLING * min(seconds.values()) and batch <= min(most, _LARGEST):
        seconds.update(time_steps([batch]))
        batch *= _LARGER
    operations, took = (np.array(each) for each in zip(*seconds.items(), strict=True))
    # Least squares of relative errors, with a line that neither falls nor begins below 0.
    slope, begin = np.polyfit(operations, took, 1, w=1 / took) if len(took) > 1 else (0.0, 0.0)
    least = (took / operations).min() / _TELLING
    if slope < least:  # no quicker than that times the quickest step: the images of none took long enough to tell
        slope, begin = least, np.median(took - least * operations)
    if begin < 0:
        slope, begin = float(np.median(took / operations)), 0.0
    return float(max(begin, 0.02 * took.min())), float(1 / slope)


def _time(trainer: Trainer, batches: Sequence[int], seconds: float) -> dict[int, float]:
    """Return the seconds of the quickest step for each number of operations, of steps of these batches."""
    end, quickest, times = time.monotonic() + seconds, dict[int, float](), dict[int, int]()
    for step in range(1, 1000):
        trainer.batches.batch = batches[step % len(batches)] * trainer.engine.group.world
        trainer.step.batches.forget()
        trainer.state.counters.step = step
        before, began = trainer.state.counters.flops, time.monotonic()
        _, loss = trainer.train_step(0.5)
        loss.item()  # waits for the device
        took, operations = time.monotonic() - began, trainer.state.counters.flops - before
        times[operations] = times.get(operations, 0) + 1
        if times[operations] > 1:  # the first of a shape takes memory, and more time
            quickest[operations] = min(took, quickest.get(operations, took))
        kinds = len(batches) * len(trainer.schedule.sizes)
        enough = len(times) >= kinds and all(each > _TIMED for each in times.values())
        done = len(quickest) >= len(batches) and (enough or time.monotonic() > end)
        if trainer.engine.group.max(int(done)):  # all processes take as many steps
            break
    return quickest
