"""Ways to train that are no options, since they were tried and are not worth one, or not yet.

Each takes a trainer, which has not begun, and changes it.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

import patch_diffusion as pd
from patch_diffusion.denoise.objective import Batch
from patch_diffusion.patches.schedule import PatchSize, Shape
from patch_diffusion.streams import uniform
from patch_diffusion.training.batches import Plan, Position, RandomDraws
from patch_diffusion.training.step import learning_rate
from patch_diffusion.training.trainer import Trainer


def hide_coords(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Zeros in place of the coordinates, which are the last two channels of what a network is given: a hook."""
    seen = inputs[0]
    return (torch.cat([seen[:, :-2], torch.zeros_like(seen[:, -2:])], dim=1), *inputs[1:])


def without_coords(trainer: Trainer) -> None:
    """The average of the weights, which is what is measured, is a copy, and is not hooked."""
    trainer.state.network.register_forward_pre_hook(hide_coords)


def redrawn(trainer: Trainer, change: Callable[[Plan, RandomDraws, torch.Generator], RandomDraws]) -> None:
    """Other places and noise levels than those that are drawn, by a generator of the step's own."""
    batches, draw = trainer.batches, trainer.batches.draw

    def changed(plan: Plan) -> RandomDraws:
        generator = torch.Generator().manual_seed(2**32 * batches.seed + plan.step)
        return change(plan, draw(plan), generator)

    batches.draw = changed


def even_places(plan: Plan, draws: RandomDraws, generator: torch.Generator) -> RandomDraws:
    """Places spread evenly over the image: a lattice (Roberts' R2) that is shifted at random."""
    root = 1.32471795724474602596  # of x^3 = x + 1
    steps = torch.tensor([1 / root, 1 / root**2], dtype=torch.float64)
    lattice = torch.arange(plan.num, dtype=torch.float64)[:, None] * steps
    places = (torch.rand(2, generator=generator, dtype=torch.float64) + lattice) % 1
    return draws._replace(places=places.float())


def even_noise(plan: Plan, draws: RandomDraws, generator: torch.Generator, *, trainer: Trainer) -> RandomDraws:
    """Noise levels at even steps of their distribution, from a random one on, in random order."""
    noise = trainer.batches.noise
    assert noise.p_mean is not None
    at = (torch.randperm(plan.num, generator=generator) + torch.rand(1, generator=generator)) / plan.num
    normal = torch.special.ndtri(at.clamp(1e-6, 1 - 1e-6))
    return draws._replace(sigma=(noise.p_mean + (1.2 if noise.p_std is None else noise.p_std) * normal).exp())


def even_both(plan: Plan, draws: RandomDraws, generator: torch.Generator, *, trainer: Trainer) -> RandomDraws:
    """Both."""
    return even_places(plan, even_noise(plan, draws, generator, trainer=trainer), generator)


def noise_by_size(
    plan: Plan,
    draws: RandomDraws,
    generator: torch.Generator,
    *,
    trainer: Trainer,
    shifts: tuple[float, float, float],
    std: float | None = None,
) -> RandomDraws:
    """ln(sigma) moved by ``shifts`` on whole images, halves and quarters; of the deviation ``std`` where given."""
    share, sigma = plan.size.shape[0] / trainer.images.resolution[0], draws.sigma
    if std is not None:
        usual = trainer.batches.noise.p_std
        sigma = (sigma.log() * (std / (1.2 if usual is None else usual))).exp()  # p_mean is 0 in these trials
    return draws._replace(sigma=sigma * math.exp(shifts[0 if share == 1 else 1 if share >= 0.5 else 2]))


def matched_noise(trainer: Trainer) -> None:
    """Each image has the noise of its step that is nearest to it (Li et al., arXiv 2406.12303): needs scipy."""
    from scipy.optimize import linear_sum_assignment

    batches, make = trainer.batches, trainer.batches.make

    def changed(plan: Plan, slots: range) -> Batch:
        found = make(plan, slots)
        apart = torch.cdist(found.clean.flatten(1), found.noise.flatten(1))
        return found._replace(noise=found.noise[torch.as_tensor(linear_sum_assignment(apart.numpy())[1])])

    batches.make = changed


class WholeCountsTwice(pd.PatchSchedule):
    """Steps on whole images move the weights by twice as much as others."""

    def size_at(self, step: int, resolution: Shape, spent: float = 0.0, stride: int = 1) -> PatchSize:
        """See `PatchSchedule`."""
        size = super().size_at(step, resolution, spent, stride)
        return replace(size, weight=2.0) if size.shape == resolution else size


class LastOnWhole(pd.PatchSchedule):
    """The same proportions, but for the last ``last`` of the budget only whole images are seen."""

    last = 0.2

    def size_at(self, step: int, resolution: Shape, spent: float = 0.0, stride: int = 1) -> PatchSize:
        """See `PatchSchedule`."""
        sizes = self.sizes_for(resolution, stride)
        if spent >= 1 - self.last:
            return sizes[-1]
        place = uniform(self.seed or 0, "patch size", step)
        for size in sizes:
            whole = size.shape == resolution
            place -= (size.probability - self.last * whole) / (1 - self.last)
            if place < 0:
                return size
        return sizes[-1]


class Ramp(LastOnWhole):
    """The share of whole images rises in a line, from none to twice the usual."""

    def size_at(self, step: int, resolution: Shape, spent: float = 0.0, stride: int = 1) -> PatchSize:
        """See `PatchSchedule`."""
        return pd.PatchSchedule.size_at(replace(self, whole=2 * self.whole * spent), step, resolution, spent, stride)


class Blurred(LastOnWhole):
    """From small to large, each size at its time and, less often, half of the training before and after."""

    def size_at(self, step: int, resolution: Shape, spent: float = 0.0, stride: int = 1) -> PatchSize:
        """See `PatchSchedule`."""
        place = abs(spent + uniform(self.seed or 0, "patch size", step) - 0.5)
        place = 2 - place if place > 1 else place
        sizes = self.sizes_for(resolution, stride)
        for size in sizes:
            place -= size.probability
            if place < 0:
                return size
        return sizes[-1]


class WithHalved(pd.PatchSchedule):
    """Of the steps on whole images, half are on whole images at half their resolution."""

    def size_at(self, step: int, resolution: Shape, spent: float = 0.0, stride: int = 1) -> PatchSize:
        """See `PatchSchedule`."""
        size = super().size_at(step, resolution, spent, stride)
        if size.shape != resolution or uniform(self.seed or 0, "halved", step) < 0.5:
            return size
        return replace(size, shape=tuple(side // 2 for side in resolution), growth=2.0, small=True)


def scheduled(trainer: Trainer, kind: type[pd.PatchSchedule]) -> None:
    """Another schedule of the same numbers."""
    trainer.schedule = trainer.batches.schedule = kind(**vars(trainer.schedule))


def halved(trainer: Trainer) -> None:
    """See `WithHalved`: pixels are means of four, with the coordinates of the whole."""
    scheduled(trainer, WithHalved)
    batches, make = trainer.batches, trainer.batches.make

    def changed(plan: Plan, slots: range) -> Batch:
        if not plan.size.small:
            return make(plan, slots)
        found = make(replace(plan, size=replace(plan.size, shape=plan.resolution, small=False)), slots)
        coords = pd.coordinate_grid(*plan.size.shape).expand(len(slots), -1, -1, -1)
        conditions = replace(found.conditions, coords=coords)
        # The mean of four standard normal numbers, twice, is one.
        noise = 2 * avg_pool2d(found.noise, 2)
        return found._replace(clean=avg_pool2d(found.clean, 2), noise=noise, conditions=conditions)

    batches.make = changed


def all_sizes(trainer: Trainer) -> None:
    """Every step on all sizes, each with its share of the images, counted by that share."""

    def train_step(spent: float = 0.0) -> tuple[PatchSize, Tensor]:
        step, resolution = trainer.state.counters.step, trainer.images.resolution
        sizes, total = trainer.schedule.sizes_for(resolution), torch.zeros(())
        for number, size in enumerate(sizes):
            num = max(1, round(size.num_images(trainer.batches.batch) * size.probability))
            first = trainer.batches.plan(Position(step, 0, trainer.state.counters.by_resolution)).first
            batch = trainer.batches.make(Plan(step, 0, resolution, first, size, num), range(num))
            weight, last = size.probability / num, number == len(sizes) - 1
            total += trainer.engine.backward(trainer.state.module, batch, weight, last=last).sum() * weight
            trainer.state.counters.add(size, num, resolution, trainer.flops[size.shape])
        trainer.state.counters.step = step + 1
        for group in trainer.state.optimizer.param_groups:
            group["lr"] = learning_rate(trainer.config.optimizer, spent)
        skipped = trainer.engine.step(trainer.state.optimizer, trainer.config.optimizer.clip)
        trainer.state.normalise_weights(skipped)
        images = sum(max(1, round(size.num_images(trainer.batches.batch) * size.probability)) for size in sizes)
        trainer.state.average.update(trainer.state.denoiser, images, trainer.state.counters.images)
        trainer.state.losses.add("all", total, trainer.state.losses.zeros(), skipped)
        return sizes[-1], total

    trainer.train_step = train_step


def _with(change: Callable[..., RandomDraws], **more: Any) -> Callable[[Trainer], None]:
    return lambda trainer: redrawn(trainer, partial(change, trainer=trainer, **more))


CHANGES: dict[str, Callable[[Trainer], None]] = {
    "no coordinates": without_coords,
    "even places": lambda trainer: redrawn(trainer, even_places),
    "even noise": _with(even_noise),
    "even places and noise": _with(even_both),
    "noise by size": _with(noise_by_size, shifts=(0.3, 0.0, -0.3)),
    "noise by size 0.6": _with(noise_by_size, shifts=(0.6, 0.0, -0.6)),
    "noise by size 1": _with(noise_by_size, shifts=(1.0, 0.0, -1.0)),
    "more noise on whole": _with(noise_by_size, shifts=(0.8, 0.0, 0.0)),
    "other noise by size": _with(noise_by_size, shifts=(1.2, -0.4, -1.0), std=1.2),
    "other noise on few whole": _with(noise_by_size, shifts=(1.2, -0.4, -0.8)),
    "ramp": lambda trainer: scheduled(trainer, Ramp),
    "blurred": lambda trainer: scheduled(trainer, Blurred),
    "last on whole": lambda trainer: scheduled(trainer, LastOnWhole),
    "halved": halved,
    "matched noise": matched_noise,
    "whole counts twice": lambda trainer: scheduled(trainer, WholeCountsTwice),
    "all sizes": all_sizes,
}
