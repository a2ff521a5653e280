"""A batch, and a share of whole images, within a limit of pixels in a step."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

from patch_diffusion.config import Config
from patch_diffusion.data.images import Images
from patch_diffusion.errors import option_error
from patch_diffusion.patches.schedule import PatchSchedule

_FEWEST_IMAGES = 2  # smallest batch, so that two threads can share it
# Compared with 0.5 on faces of 64 x 64, three seeds, and on photographs together with the batch: LOG.md, "Smaller steps
# on larger images".
_WHOLE_WHERE_LARGE = 0.25


def limit_pixels(config: Config, images: Images, stride: int, given: Collection[str]) -> tuple[Config, list[str]]:
    """Reduce the batch, and then also the share of whole images, to ``batch_pixels``; return the config and reasons."""
    most, batch = config.batch_pixels, config.batch
    if most is not None and most < 1:
        raise option_error("batch_pixels", f"is at least 1, not {most}")
    if most is None or "batch" in given or batch == "auto":
        if most is not None and "batch_pixels" in given:
            raise option_error("batch_pixels", "is for a batch that is not given: leave one of them out")
        return config, []
    schedule = PatchSchedule.of(config.patches)
    pixels, side = max(
        (size.growth * math.prod(size.shape), "x".join(map(str, bucket.resolution)))
        for bucket in images.buckets
        for size in schedule.sizes_for(bucket.resolution, stride)
    )
    fewer = max(_FEWEST_IMAGES, int(most / pixels))
    if fewer >= batch:
        return config, []
    reasons = [f"batch {fewer}: {batch} images of {side} exceed the limit of {most:,} pixels in a step"]
    patches = config.patches
    if "patches.whole" not in given and _WHOLE_WHERE_LARGE < patches.whole < 1:
        patches = replace(patches, whole=_WHOLE_WHERE_LARGE)
        reasons.append(
            f"patches.whole {patches.whole:g}, not {config.patches.whole:g}: whole images of this size take most of "
            "the time"
        )
    return replace(config, batch=fewer, patches=patches), reasons
