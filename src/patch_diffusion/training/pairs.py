"""Paired inputs in training, as they are shown: cut by the windows of their images, and moved like them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patch_diffusion.data.augment import Augment
from patch_diffusion.data.gather import Windows
from patch_diffusion.data.images import ImageBuckets, Images, ImageSet
from patch_diffusion.data.order import SampleOrder
from patch_diffusion.data.paired import around_of, shown_as, small_side
from patch_diffusion.data.small import make_small, small_input, small_inputs, small_shape
from patch_diffusion.patches.crop import random_patches
from patch_diffusion.training.hardware.feed import Feed
from patch_diffusion.transfer import to_device


class PairFeeds:
    """A source of the paired inputs of training images, by the positions of these in their order.

    Args:
        images: the training images.
        orders: the order of the images of each bucket.
        device: the device of what it returns.
        augment: the augmentation of the images, of which inputs are moved in the same way, but keep their colours.
        show: True to show progress on stderr.
    """

    def __init__(
        self, images: Images, orders: Sequence[SampleOrder], device: torch.device, augment: Augment, *, show: bool
    ) -> None:
        self._buckets, self._device = images.buckets, device
        self._augment = replace(augment, colour=False) if augment.p else augment
        sets = [[bucket.input_images(place) for bucket in images.buckets] for place in range(len(images.inputs))]
        self._feeds = [Feed(_joined(each), orders, device) for each in sets]
        self._small: list[Feed] = []
        if not (augment.p or augment.flip):
            for about, each in zip(images.inputs, sets, strict=True):
                copies = [small_inputs(about, bucket, show=show) for bucket in each]
                self._small.append(Feed(_joined(copies), orders, device))

    def get(
        self,
        bucket: int,
        first: int,
        indices: NDArray[np.int64],
        kept: Tensor,
        *,
        windows: Windows | None,
        places: Tensor,
        shape: tuple[int, ...],
        step: tuple[int, int, range],
    ) -> tuple[Tensor, Tensor]:
        """Return the ``inputs`` and ``around`` of `Conditions` for some images of a step.

        Args:
            bucket, first: where the images are in the order.
            indices: the indices of the images in their bucket.
            kept: True for each input that the network is shown, (n, inputs); the others are dropped.
            windows: the windows that were read of the images; None: whole images were.
            places: where patches were cut from whole images, in [0, 1), (n, axes).
            shape: height and width of the patches.
            step: the seed, the number of the step, and the slots of the images, which augmentation follows from.
        """
        images, num = self._buckets[bucket], len(indices)
        given = to_device(images.inputs_given(indices) * kept, self._device)
        shown: list[Tensor] = []
        small: list[Tensor] = []
        for place, (about, feed) in enumerate(zip(images.inputs, self._feeds, strict=True)):
            pixels, _ = feed.get(bucket, first, num, windows)
            if self._augment.p:
                pixels = self._augment(about.encode(pixels), *step)[0]
                small.append(make_small(pixels, small_shape(small_side(images.resolution), images.resolution)))
            elif self._augment.flip:
                pixels = self._augment(pixels, *step)[0]
                small.append(small_input(about, pixels))
            else:
                small.append(about.encode(self._small[place].get(bucket, first, num)[0]))
            if windows is None:
                pixels = random_patches(pixels, shape, places=places).pixels
            shown.append(pixels if self._augment.p else about.encode(pixels))
        return shown_as(shown, given), around_of(small, given)


def _joined(buckets: Sequence[ImageSet]) -> Images:
    return buckets[0] if len(buckets) == 1 else ImageBuckets(tuple(buckets))
