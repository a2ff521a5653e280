"""What the steps of a training are computed from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from patch_diffusion.data.augment import Augment
from patch_diffusion.data.gather import Windows
from patch_diffusion.data.images import Images, ImageSet
from patch_diffusion.data.order import SampleOrder, bucket_at
from patch_diffusion.data.small import make_small, small_images, small_shape
from patch_diffusion.denoise.denoiser import Denoiser
from patch_diffusion.denoise.objective import NoiseLevels
from patch_diffusion.patches.coords import coordinate_grid
from patch_diffusion.patches.crop import corners, patch_coordinates, random_patches
from patch_diffusion.patches.schedule import PatchSchedule, PatchSize
from patch_diffusion.streams import slot_normal, stream_key
from patch_diffusion.training.budget import Seen
from patch_diffusion.training.hardware.feed import Feed

CONTEXT_NOISE = 0.2
"""The most noise on a context in training, in standard deviations of the images: each has between none and this, so
that the network makes do with those that it will make itself (Ho et al., arXiv 2106.15282, section 4)."""


@dataclass(frozen=True)
class Batch:
    """The ``num`` images of a step, from position ``first`` of the order of a bucket on, all cut to one size."""

    step: int
    bucket: int
    first: int
    size: PatchSize
    num: int


class Inputs(NamedTuple):
    """What the loss is computed from, see `DenoisingLoss`, of some of the images of a step."""

    clean: Tensor
    coords: Tensor
    sigma: Tensor
    labels: Tensor | None
    augment: Tensor | None
    noise: Tensor
    context: Tensor | None


class Draws(NamedTuple):
    """What is drawn for all images of a step at once, on the host: ``(num,)``, places ``(num, 2)``.

    ``places``: of a patch among all places, in [0, 1); ``hidden``: below the share of labels to hide, it is; ``sigma``:
    noise levels; ``context``: how noisy the context is, in [0, 1).
    """

    places: Tensor
    hidden: Tensor
    sigma: Tensor
    context: Tensor | None


class Batches:
    """Images, cut and with all that is drawn for them, step by step.

    Everything random is a function of the seed, the number of the step and the slot of an image in the batch, so that
    any part of any step can be made by itself.

    Args:
        denoiser: what they are for.
        images: to train on.
        schedule: sizes of the steps; its seed is that of everything here.
        batch: whole images in a step on whole images.
        noise: noise levels to draw.
        augment: how images are altered before they are cut.
        device: where they are wanted.
        note: tells the user something.
        show: progress on stderr.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        images: Images,
        schedule: PatchSchedule,
        *,
        batch: int,
        noise: NoiseLevels,
        augment: Augment,
        device: torch.device,
        note: Callable[[str], None] = lambda text: None,
        show: bool = False,
    ) -> None:
        self.denoiser, self.images, self.schedule, self.batch = denoiser, images, schedule, batch
        self.noise, self.augment, self.device = noise, augment, device
        orders = [SampleOrder(len(bucket), schedule.seed) for bucket in images.buckets]
        self.feed, self.small = Feed(images, orders, device, note), None
        if schedule.context is not None and not self._alters:
            # The small copies of the whole images are made once, where whole images are not at hand.
            small = [small_images(bucket, self._small_shape(bucket), show=show) for bucket in images.buckets]
            copies = small[0] if isinstance(images, ImageSet) else replace(images, buckets=tuple(small))
            self.small = Feed(copies, orders, device, note)

    def at(self, seen: Seen, spent: float) -> Batch:
        """That of the step to come, when this fraction of the budget is spent."""
        return self._batch(seen.step, seen, spent)

    def after(self, batch: Batch, seen: Seen, spent: float) -> Batch:
        """That of the step after the one to come; of a progressive schedule a guess, since more will be spent then."""
        following = self._batch(batch.step + 1, seen, spent)
        if following.bucket != batch.bucket:
            return following
        return replace(following, first=batch.first + batch.num)

    def inputs(self, batch: Batch, slots: range) -> Inputs:
        """What the loss of some images of a batch is computed from."""
        images, size, device = self.images.buckets[batch.bucket], batch.size, self.device
        chosen, first = slice(slots.start, slots.stop), batch.first + slots.start
        draws = self.draw(batch)
        sigma = draws.sigma[chosen].to(device, non_blocking=True)

        windows = self._windows(images, size, draws.places[chosen])
        small_alone = size.small and self.small is not None
        feed = self.small if small_alone and self.small is not None else self.feed
        pixels, labels = feed.take(batch.bucket, first, len(slots), windows)
        labels = labels if self.denoiser.num_classes else None
        if labels is not None:
            hidden = draws.hidden[chosen] < self.denoiser.label_dropout
            labels = labels.masked_fill(hidden, -1).to(device, non_blocking=True)

        altered = small = None
        if windows is not None:  # cut already
            top, left = (corner.to(device, non_blocking=True) for corner in (windows.top, windows.left))
            coords = patch_coordinates(top, left, size.shape, images.resolution)
        elif small_alone:
            coords = coordinate_grid(*size.shape, device=device).expand(len(slots), -1, -1, -1)
        else:
            if self.augment.p:
                pixels = images.codec.encode(pixels)
            pixels, altered = self.augment(pixels, self.schedule.seed, batch.step, slots)
            if self.schedule.context is not None and self.small is None:
                small = make_small(pixels, self._small_shape(images))
            patch = random_patches(
                small if size.small and small is not None else pixels, size.shape, places=draws.places[chosen]
            )
            pixels, coords = patch.pixels, patch.coords

        def normal(name: str, shape: tuple[int, int] = size.shape) -> Tensor:
            return slot_normal(self.schedule.seed, name, batch.step, slots, (images.channels, *shape), device)

        context = None
        if draws.context is not None:
            if self.small is not None:
                small, _ = self.small.take(batch.bucket, first, len(slots))
            assert small is not None
            levels = CONTEXT_NOISE * self.denoiser.sigma_data * draws.context[chosen]
            levels = levels.to(device, non_blocking=True)[:, None, None, None]
            context = small if self.augment.p else images.codec.encode(small)
            context = context + levels * normal("context", self._small_shape(images))

        posterior = normal("posterior") if images.codec.posterior else None
        clean = pixels if self.augment.p else images.codec.encode(pixels, posterior)
        return Inputs(clean, coords, sigma, labels, altered, normal("noise"), context)

    def expect(self, batch: Batch, slots: range) -> None:
        """Have the images read meanwhile that will be asked for next."""
        images, first = self.images.buckets[batch.bucket], batch.first + slots.start
        if self.small is not None:
            self.small.expect(batch.bucket, first, len(slots))
        if self.small is None or not batch.size.small:
            places = self.draw(batch).places[slots.start : slots.stop]
            self.feed.expect(batch.bucket, first, len(slots), self._windows(images, batch.size, places))

    def draw(self, batch: Batch) -> Draws:
        """What is drawn for all images of a step."""
        generator = torch.Generator().manual_seed(stream_key(self.schedule.seed, "draws", batch.step))
        places, hidden = torch.rand(batch.num, 2, generator=generator), torch.rand(batch.num, generator=generator)
        sigma, context = self.noise.draw(batch.num, generator=generator), None
        if self.schedule.context is not None and not batch.size.small:
            context = torch.rand(batch.num, generator=generator)
        return Draws(places, hidden, sigma, context)

    def _batch(self, step: int, seen: Seen, spent: float) -> Batch:
        bucket = bucket_at(self.schedule.seed, step, [len(images) for images in self.images.buckets])
        resolution = self.images.buckets[bucket].resolution
        size = self.schedule.size_at(step, resolution, spent, self.denoiser.stride)
        return Batch(step, bucket, seen.drawn(resolution), size, size.num_images(self.batch))

    def _small_shape(self, images: ImageSet) -> tuple[int, int]:
        assert self.schedule.context is not None
        return small_shape(self.schedule.context, images.resolution, self.denoiser.stride)

    @property
    def _alters(self) -> bool:
        """Whether whole images are altered before they are cut."""
        return bool(self.augment.p or self.augment.flip)

    def _windows(self, images: ImageSet, size: PatchSize, places: Tensor) -> Windows | None:
        """What is read of images that need not be whole, since nothing is done to them before they are cut."""
        if self._alters or size.small or size.shape == images.resolution:
            return None
        return Windows(*corners(places, size.shape, images.resolution), size.shape)
