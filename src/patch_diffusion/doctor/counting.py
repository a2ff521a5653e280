"""Counts of the kernels of a training step and of a sampling step, of any config, without computing them.

The step runs on tensors without numbers (``FakeTensorMode``), so that a large network takes seconds and no memory. Only
the making of the batch is real. All run as on a CPU: where a GPU would run other kernels, such as other attention, the
count is that of the CPU's.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from patch_diffusion.config import Config, Engine as Options
from patch_diffusion.data.augment import Augment
from patch_diffusion.data.images import ImageSet
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.denoiser import Denoiser, evaluating, place
from patch_diffusion.denoise.objective import Batch, DenoisingObjective, NoiseLevels, Objective
from patch_diffusion.denoise.whole_image import SIGMAS
from patch_diffusion.doctor.kernels import KernelCounter
from patch_diffusion.patches.coords import coordinate_grid
from patch_diffusion.patches.schedule import PatchSchedule, PatchSize, Shape
from patch_diffusion.runs.model import build_denoiser, build_network
from patch_diffusion.training.batches import Batches, Plan
from patch_diffusion.training.choices.batch import limit_pixels
from patch_diffusion.training.hardware.engine import Engine
from patch_diffusion.training.hardware.memory import Demand, blank_batch, memory_of_whole_image
from patch_diffusion.training.losses import Balance, Losses
from patch_diffusion.training.state import StepResult, TrainingState


@dataclass(frozen=True)
class CountedStep:
    """The kernels of a training step on patches of one size, with the number of images in it."""

    size: PatchSize
    num: int
    kernels: KernelCounter


def count_steps(
    config: Config, shape: Shape, *, channels: int = 3, classes: int = 0, threads: int = 1
) -> list[CountedStep]:
    """Count the kernels of a training step of each patch size, by phase, see `KernelCounter`.

    Args:
        config: the options of the run. A limit on the pixels of a step holds; the number format is that of a CPU.
        shape: height and width of the images.
        channels, classes: those of the images.
        threads: threads of a CPU that share each batch. Only the images of one of them are counted.
    """
    images = ImageSet(torch.zeros(1, channels, *shape, dtype=torch.uint8), torch.zeros(1, dtype=torch.long))
    images = replace(images, labels=images.labels if classes else None)
    schedule = PatchSchedule.of(config.patches, seed=config.seed)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    engine = _Pretended(replace(config.engine, device="cpu", threads=None), fake)
    denoiser = _denoiser(config, channels, classes)
    state = TrainingState(DenoisingObjective(denoiser), config, engine)
    with fake:
        state.losses = Losses(engine.device, denoiser.levels or SIGMAS)
        state.balance = None if state.balance is None else Balance(state.losses)
    config, _ = limit_pixels(config, images, denoiser.stride, set())
    assert isinstance(config.batch, int)
    batches = Batches(
        denoiser,
        images,
        schedule,
        seed=config.seed,
        batch=config.batch,
        noise=NoiseLevels.of(config.noise),
        augment=Augment.of(config.data.augment),
        device=engine.device,
        split=engine.microbatches,
    )
    found = []
    for size in schedule.sizes_for(shape, denoiser.stride):
        num = size.num_images(config.batch)
        plan = Plan(0, 0, shape, 0, size, -(-num // threads))
        if not found:  # the first step of all makes the optimizer's state
            _step(KernelCounter(), state, engine, batches, plan, config.optimizer.clip, fake)
        counter = KernelCounter()
        _step(counter, state, engine, batches, plan, config.optimizer.clip, fake)
        found.append(CountedStep(size, num, counter))
    return found


def count_evaluation(config: Config, shape: Shape, num: int, *, channels: int = 3, classes: int = 0) -> KernelCounter:
    """Count the kernels of one evaluation of the denoiser on whole images, as each step of a solver has one or two.

    Args:
        config: the options of the run.
        shape: height and width of the images.
        num: the number of images.
        channels, classes: those of the images.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    denoiser = _pretend(_denoiser(config, channels, classes), fake)
    with fake, torch.no_grad(), evaluating(denoiser):
        images = torch.empty(num, channels, *shape).to(memory_format=torch.channels_last)
        labels = torch.empty(num, dtype=torch.long) if classes else None
        coords = coordinate_grid(*shape)
        with KernelCounter() as counter:
            denoiser(images, torch.empty(num), coords, labels)
    return counter


def count_activations(config: Config, shape: Shape, *, channels: int = 3, classes: int = 0) -> int:
    """Count the bytes that one whole image adds to a training step, see `memory_of_whole_image`.

    Args:
        config: the options of the run; the number format is that of a CPU.
        shape: height and width of the images.
        channels, classes: those of the images.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    engine = _Pretended(replace(config.engine, device="cpu", threads=None, accumulation=1), fake)
    denoiser = _denoiser(config, channels, classes)
    objective = DenoisingObjective(denoiser)
    engine.wrap(objective)
    sizes = PatchSchedule.of(config.patches).sizes_for(shape, denoiser.stride)

    def loss(shape: Shape, num: int) -> Tensor:
        with engine.autocast():
            return objective.forward(blank_batch(denoiser, channels, shape, num, engine.device)).sum()

    with fake:
        return memory_of_whole_image(Demand(denoiser.module, sizes, 1, 1, False, 0, loss, engine.device))


def count_step(
    counter: KernelCounter, state: TrainingState, engine: Engine, batch: Batch, size: PatchSize, clip: float | None
) -> None:
    """Take a training step on a batch, without threads that share it, and count its kernels by phase.

    Args:
        counter: what counts.
        state, engine: those of a trainer.
        batch: all samples of the step.
        size: their patch size.
        clip: the option ``optimizer.clip``.
    """
    num, weight = len(batch.clean), size.weight / len(batch.clean)
    module = state.objective

    def switch(phase: str) -> Callable[..., None]:
        def change(*_: Any) -> None:
            counter.phase = phase

        return change

    hooks = [
        module.register_forward_pre_hook(switch("forward")),
        module.register_forward_hook(switch("backward")),
        state.optimizer.register_step_pre_hook(switch("optimizer")),
        state.optimizer.register_step_post_hook(switch("clip")),
    ]
    try:
        with counter, counter.during("losses"):
            weights: float | Tensor = weight
            if state.balance is not None:
                weights = weight * state.balance.weights(str(size), batch.sigma)
            losses = engine.backward(state.module, batch, weights)
            counter.phase = "clip"
            skipped = engine.step(state.optimizer, clip)
            state.normalise_weights(skipped)
            state.counters.add(size, num, size.shape, 0)
            counter.phase = "averages"
            state.update_averages(num)
            counter.phase = "losses"
            state.record(StepResult(size, num, [losses], [batch.sigma], skipped), engine.all_reduce_sum)
    finally:
        for hook in hooks:
            hook.remove()


def _step(
    counter: KernelCounter,
    state: TrainingState,
    engine: Engine,
    batches: Batches,
    plan: Plan,
    clip: float | None,
    fake: FakeTensorMode,
) -> None:
    with counter, counter.during("batch"):
        batch = batches.make(plan, range(plan.num))
    given = {name: tensor for name, tensor in vars(batch.conditions).items() if tensor is not None}
    conditions = Conditions(**{name: fake.from_tensor(tensor) for name, tensor in given.items()})
    # torch takes lists of tensors without numbers one by one, unlike real ones.
    with fake, patch("torch.nn.utils.clip_grad._has_foreach_support", return_value=True):
        clean, sigma, noise = map(fake.from_tensor, batch[:3])
        batch = Batch(clean, sigma, noise, conditions)
        count_step(counter, state, engine, batch, plan.size, clip)


class _Pretended(Engine):
    """An engine that gives a model's tensors no numbers, where it would move them to its device."""

    def __init__(self, options: Options, fake: FakeTensorMode) -> None:
        super().__init__(options)
        self.fake = fake

    def place_average(self, denoiser: Denoiser) -> None:
        _pretend(denoiser, self.fake)

    def wrap(self, objective: Objective) -> nn.Module:
        _pretend(objective.denoiser, self.fake)
        return objective


def _pretend(denoiser: Denoiser, fake: FakeTensorMode) -> Denoiser:
    """Make the weights and buffers of a model on the meta device those of a CPU, still without numbers."""
    place(denoiser, torch.device("meta"))
    for module in denoiser.modules():
        tables: list[dict[str, Any]] = [module._parameters, module._buffers]
        for tensors in tables:
            for name, tensor in tensors.items():
                if tensor is not None:
                    pretended = FakeTensor(fake, tensor.detach(), torch.device("cpu"))
                    is_weight = isinstance(tensor, nn.Parameter)
                    tensors[name] = nn.Parameter(pretended, tensor.requires_grad) if is_weight else pretended
    return denoiser


def _denoiser(config: Config, channels: int, classes: int) -> Denoiser:
    with torch.device("meta"):
        network = build_network(
            config.network,
            channels,
            classes,
            augment_channels=Augment.of(config.data.augment).channels,
            coords=config.patches.coords,
            context=config.patches.context,
        )
        return build_denoiser(config, network, config.noise.sigma_data or 0.5)
