"""The batches of training: random patches of images with noise levels, noise, labels and coordinates, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, InitVar, dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from patch_diffusion.data.attributes import keep_some
from patch_diffusion.data.augment import Augment
from patch_diffusion.data.gather import Windows
from patch_diffusion.data.images import Images, ImageSet
from patch_diffusion.data.order import SampleOrder, bucket_at
from patch_diffusion.data.small import make_small, small_images, small_shape
from patch_diffusion.denoise.conditions import Conditions
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.objective import Batch, NoiseLevels
from patch_diffusion.patches.coords import coordinate_grid, patch_coordinates, patch_corners
from patch_diffusion.patches.crop import random_patches
from patch_diffusion.patches.schedule import PatchSchedule, PatchSize, Shape
from patch_diffusion.streams import slot_normal, stream_key
from patch_diffusion.training.hardware.feed import Feed
from patch_diffusion.training.pairs import PairFeeds
from patch_diffusion.transfer import to_device

CONTEXT_NOISE = 0.2
"""The most noise on a context, a small copy of the whole image, in training, in standard deviations of the images. Its
level is random up to this, as sampled copies are imperfect, too (Ho et al., arXiv 2106.15282, section 4)."""


class Position(NamedTuple):
    """A position in the training: microbatch ``part`` of a step, after ``drawn`` images of each resolution ("64x48").

    ``spent`` is the spent fraction of the budget, which the patch size of a progressive schedule follows.
    """

    step: int
    part: int
    drawn: Mapping[str, int]
    spent: float = 0.0

    def __eq__(self, other: object) -> bool:
        """Compare all but ``spent``: a stochastic schedule does not depend on it."""
        return isinstance(other, Position) and self[:3] == other[:3]


@dataclass(frozen=True)
class Plan:
    """The plan of a step: the ``num`` images of a bucket (images of one size) from ``first`` on, and the patch size."""

    step: int
    bucket: int
    resolution: Shape
    first: int
    size: PatchSize
    num: int


@dataclass(frozen=True)
class Microbatch:
    """A part of a step's batch that goes through the network at once.

    ``weight`` is the factor of each loss in the mean over the whole batch. ``following`` is the position of the next
    microbatch, of this step or, after the last, of the next one.
    """

    plan: Plan
    batch: Batch
    weight: float
    dropout_seed: int
    is_last: bool
    following: Position


class RandomDraws(NamedTuple):
    """The random numbers of all images of a step, drawn at once on the host: ``(num,)``, places ``(num, axes)``.

    ``places``: where a patch is cut, in [0, 1) of all positions; ``hidden``: a label is dropped if its number is below
    the network's label dropout; ``sigma``: noise levels; ``context``: noise of the image's small copy, in [0, 1);
    ``untold``: ``(num, attributes + inputs + 1)``, as ``hidden`` for each attribute and paired input by itself, and
    then for all of them and the label.
    """

    places: Tensor
    hidden: Tensor
    sigma: Tensor
    context: Tensor | None
    untold: Tensor | None = None


@dataclass(eq=False)
class Batches:
    """A maker of the microbatches of a training: patches of the images, with noise and conditions.

    Everything random is a function of the seed, the number of the step and the slot of an image in the batch, so that
    any part of any step can be made by itself.

    Args:
        denoiser: the model to train.
        images: the training images.
        schedule: the schedule of patch sizes.
        seed: the seed of the run.
        batch: the number of images in a step on whole images.
        noise: the distribution of noise levels.
        augment: augmentation of whole images, before patches are cut.
        device: the device of the batches.
        split: function from the number of images in a step to this rank's microbatches, as index ranges.
        show: True to show progress on stderr.
    """

    denoiser: Denoiser
    images: Images
    schedule: PatchSchedule
    _: KW_ONLY
    seed: int
    batch: int
    noise: NoiseLevels
    augment: Augment
    device: torch.device
    split: Callable[[int], list[range]] = lambda num: [range(num)]
    show: InitVar[bool] = False

    def __post_init__(self, show: bool) -> None:
        images = self.images
        orders = [SampleOrder(len(bucket), self.seed) for bucket in images.buckets]
        self.feed: Feed = Feed(images, orders, self.device)
        self.small: Feed | None = None
        if self.schedule.context is not None and not self._alters:
            # Small copies of whole images are made once, as only the patches' windows are read later.
            small = [small_images(bucket, self._small_shape(bucket), show=show) for bucket in images.buckets]
            copies = small[0] if isinstance(images, ImageSet) else replace(images, buckets=tuple(small))
            self.small = Feed(copies, orders, self.device)
        self.pairs: PairFeeds | None = None
        if self.denoiser.paired_channels:
            self.pairs = PairFeeds(images, orders, self.device, self.augment, show=show)

    def microbatch(self, position: Position) -> Microbatch:
        """Make the microbatch (patches, noise, conditions) at a position of the training, on the device."""
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)  # of this thread, which else would open the first one, too
        plan = self.plan(position)
        parts = self.split(plan.num)
        slots, is_last = parts[position.part], position.part == len(parts) - 1
        drawn = {**position.drawn, _name(plan.resolution): plan.first + plan.num}
        following = position._replace(part=position.part + 1)
        return Microbatch(
            plan=plan,
            batch=self.make(plan, slots),
            weight=plan.size.weight / plan.num,
            dropout_seed=stream_key(self.seed, "dropout", plan.step) + slots.start,
            is_last=is_last,
            following=Position(plan.step + 1, 0, drawn, position.spent) if is_last else following,
        )

    def plan(self, position: Position) -> Plan:
        """Return the plan (which images, what patch size) of the step at a position of the training."""
        bucket = bucket_at(self.seed, position.step, [len(images) for images in self.images.buckets])
        resolution = self.images.buckets[bucket].resolution
        size = self.schedule.size_at(position.step, resolution, position.spent, self.denoiser.stride)
        first = position.drawn.get(_name(resolution), 0)
        return Plan(position.step, bucket, resolution, first, size, size.num_images(self.batch))

    def fits(self, microbatch: Microbatch, position: Position) -> bool:
        """Return True if a microbatch that was made ahead fits a position, now that its ``spent`` is known."""
        return microbatch.plan == self.plan(position)

    def make(self, plan: Plan, slots: range) -> Batch:
        """Make a batch (patches, noise levels, noise, conditions) of a step's images with the indices ``slots``."""
        images, size, device = self.images.buckets[plan.bucket], plan.size, self.device
        chosen, first = slice(slots.start, slots.stop), plan.first + slots.start
        draws = self.draw(plan)
        sigma = to_device(draws.sigma[chosen], device)

        windows = self._windows(images, size, draws.places[chosen])
        small_alone = size.small and self.small is not None
        feed = self.small if small_alone and self.small is not None else self.feed
        pixels, indices = feed.get(plan.bucket, first, len(slots), windows)
        labels = images.labels_of(indices) if self.denoiser.num_classes else None
        attributes = images.attributes_of(indices) if self.denoiser.attribute_channels else None
        hidden, dropout, inputs, around = draws.hidden[chosen], self.denoiser.label_dropout, None, None
        if draws.untold is not None:
            untold = draws.untold[chosen]
            kept = (untold[:, :-1] >= dropout) & (untold[:, -1:] >= dropout)
            hidden, num_told = torch.minimum(hidden, untold[:, -1]), len(images.columns)
            if attributes is not None:
                attributes = to_device(keep_some(attributes, images.columns, kept[:, :num_told]), device)
            if self.pairs is not None:
                inputs, around = self.pairs.get(
                    plan.bucket,
                    first,
                    indices,
                    kept[:, num_told:],
                    windows=windows,
                    places=draws.places[chosen],
                    shape=size.shape,
                    step=(self.seed, plan.step, slots),
                )
        if labels is not None:
            labels = to_device(labels.masked_fill(hidden < dropout, -1), device)

        altered = small = None
        if windows is not None:  # cut already
            corners = to_device(torch.stack([windows.top, windows.left], dim=1), device)
            coords = patch_coordinates(corners, size.shape, images.resolution)
        elif small_alone:
            coords = coordinate_grid(*size.shape, device=device).expand(len(slots), -1, -1, -1)
        else:
            if self.augment.p:
                pixels = images.codec.encode(pixels)
            if self._alters:
                pixels, altered = self.augment(pixels, self.seed, plan.step, slots)
            if self.schedule.context is not None and self.small is None:
                small = make_small(pixels, self._small_shape(images))
            patch = random_patches(
                small if size.small and small is not None else pixels, size.shape, places=draws.places[chosen]
            )
            pixels, coords = patch.pixels, patch.coords

        def normal(name: str, shape: Shape = size.shape) -> Tensor:
            numbers = (images.channels, *shape)
            drawn = slot_normal(self.seed, name, plan.step, slots, numbers, pinned=device.type == "cuda")
            return to_device(drawn, device)

        thumbnail = None
        if draws.context is not None:
            if self.small is not None:
                small, _ = self.small.get(plan.bucket, first, len(slots))
            assert small is not None
            levels = CONTEXT_NOISE * self.denoiser.sigma_data * draws.context[chosen]
            levels = to_device(levels, device)[:, None, None, None]
            thumbnail = small if self.augment.p else images.codec.encode(small)
            thumbnail = thumbnail + levels * normal("context", self._small_shape(images))

        posterior = normal("posterior") if images.codec.posterior else None
        clean = pixels if self.augment.p else images.codec.encode(pixels, posterior)
        told = Conditions(coords, labels, altered, thumbnail, attributes, inputs, around)
        return Batch(clean, sigma, normal("noise"), told)

    def draw(self, plan: Plan) -> RandomDraws:
        """Draw the random numbers of all images of a step."""
        generator = torch.Generator().manual_seed(stream_key(self.seed, "draws", plan.step))
        places = torch.rand(plan.num, len(plan.resolution), generator=generator)
        hidden = torch.rand(plan.num, generator=generator)
        sigma, context = self.noise.draw(plan.num, generator=generator), None
        if self.schedule.context is not None and not plan.size.small:
            context = torch.rand(plan.num, generator=generator)
        untold, num = None, len(self.denoiser.columns) + len(self.denoiser.inputs)
        if num:
            untold = torch.rand(plan.num, num + 1, generator=generator)
        return RandomDraws(places, hidden, sigma, context, untold)

    def _small_shape(self, images: ImageSet) -> Shape:
        assert self.schedule.context is not None
        return small_shape(self.schedule.context, images.resolution, self.denoiser.stride)

    @property
    def _alters(self) -> bool:
        """True if augmentation alters whole images before patches are cut."""
        return bool(self.augment.p or self.augment.flip)

    def _windows(self, images: ImageSet, size: PatchSize, places: Tensor) -> Windows | None:
        """Return the windows of the images to read; None if a step or augmentation needs whole images."""
        if self._alters or size.small or size.shape == images.resolution:
            return None
        top, left = patch_corners(places, size.shape, images.resolution).unbind(1)
        height, width = size.shape
        return Windows(top, left, (height, width))


def _name(resolution: Shape) -> str:
    return "x".join(map(str, resolution))
