"""The speed of training steps on this machine, measured on a few of them."""

from __future__ import annotations

import math
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from patch_diffusion.config import Config, Watch
from patch_diffusion.data.images import Images
from patch_diffusion.devices import memory_of
from patch_diffusion.training.build import build_trainer
from patch_diffusion.training.choices.size import Speed
from patch_diffusion.training.hardware.memory import memory_of_image
from patch_diffusion.training.trainer import Trainer

_TIMED = 3  # steps of each batch and patch size, of which the quickest counts
_BATCHES = (2, 8)
_SECONDS = 2.0


def measure_speed(images: Images, config: Config, seconds: float = _SECONDS) -> Speed:
    """Time some steps of a new trainer: small and large ones, which tell the operations from what comes beside them.

    Args:
        images: the images of the run.
        config: its options.
        seconds: the approximate time to spend.
    """
    engine = replace(config.engine, shard=False, accumulation=1, compile=False)
    quiet = replace(config, engine=engine, watch=Watch(), checkpoint_by="loss", batch_pixels=None)
    quiet = replace(quiet, batch=_BATCHES[0] * int(os.environ.get("WORLD_SIZE", "1")))
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(quiet, images, Path(folder) / "run", show=False)
        demand = trainer.demand()
        largest = max(demand.sizes, key=lambda size: size.growth * math.prod(size.shape))
        activations = largest.growth * memory_of_image(demand, largest.shape)
        with trainer.engine.threads(trainer.state.denoiser):
            quickest = _time(trainer, seconds)
    operations, took = (np.array(each) for each in zip(*quickest.items(), strict=True))
    # Least squares of relative errors, with a line that neither falls nor begins below 0.
    slope, begin = np.polyfit(operations, took, 1, w=1 / took) if len(took) > 1 else (0.0, 0.0)
    if slope <= 0 or begin < 0:
        slope, begin = float(np.median(took / operations)), 0.0
    speed = Speed(float(max(begin, 0.02 * took.min())), float(1 / slope), activations, memory_of(trainer.engine.device))
    return trainer.engine.group.broadcast(speed)  # all processes choose by that of the first


def _time(trainer: Trainer, seconds: float) -> dict[int, float]:
    """Return the seconds of the quickest step for each number of operations."""
    end, quickest, times = time.monotonic() + seconds, dict[int, float](), dict[int, int]()
    for step in range(1, 1000):
        trainer.batches.batch = _BATCHES[step % len(_BATCHES)] * trainer.engine.group.world
        trainer.step.batches.forget()
        trainer.state.counters.step = step
        before, began = trainer.state.counters.flops, time.monotonic()
        _, loss = trainer.train_step(0.5)
        loss.item()  # waits for the device
        took, operations = time.monotonic() - began, trainer.state.counters.flops - before
        times[operations] = times.get(operations, 0) + 1
        if times[operations] > 1:  # the first of a shape takes memory, and more time
            quickest[operations] = min(took, quickest.get(operations, took))
        enough = all(each > _TIMED for each in times.values()) and len(times) >= 2 * len(trainer.schedule.sizes)
        done = len(quickest) > 1 and (enough or time.monotonic() > end)
        if trainer.engine.group.max(int(done)):  # all processes take as many steps
            break
    return quickest
