"""The cost of training steps: the part of a budget of minutes, steps or images that each takes, to plan a sweep by."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from patch_diffusion.config import Config
from patch_diffusion.patches.schedule import PatchSchedule
from patch_diffusion.patches.shapes import Shape
from patch_diffusion.training.budget import Budget, training_flops
from patch_diffusion.training.trainer import Trainer

Cost = Callable[[Config], float]
"""A function from a config to the part of a budget that a step takes on average, in the unit of the budget."""


def cost_of_steps(trainer: Trainer, config: Config, speed: Mapping[str, float]) -> Cost:
    """Return the function that tells what a step of a config costs: minutes, images, or 1 if steps are counted.

    Args:
        trainer: a trainer of the same network on the same images.
        config: the options whose budget has the unit.
        speed: for a budget of minutes, the ``overhead`` of a step in seconds and the ``rate`` of its images in
            floating-point operations a second, see `measure_speed`.
    """
    unit, images, model = Budget.of(config).unit, trainer.images, trainer.state.denoiser
    counted: dict[Shape, int] = dict(trainer.flops)

    def operations(shape: Shape) -> int:
        if shape not in counted:
            counted[shape] = training_flops(model, images.channels, shape)
        return counted[shape]

    def cost(each: Config) -> float:
        if unit == "steps":
            return 1.0
        assert isinstance(each.batch, int)
        schedule = PatchSchedule.of(each.patches)
        steps = [
            (size.probability * len(bucket) / len(images), size.num_images(each.batch), size.shape)
            for bucket in images.buckets
            for size in schedule.sizes_for(bucket.resolution, model.stride)
        ]
        if unit == "images":
            return sum(share * num for share, num, _ in steps)
        total = sum(share * num * operations(shape) for share, num, shape in steps)
        return (speed["overhead"] + total / speed["rate"]) / 60

    return cost
