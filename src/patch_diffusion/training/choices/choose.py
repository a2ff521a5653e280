"""All that is chosen for a new run where nothing is given: by the images, the budget and the machine."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from patch_diffusion.config import Config
from patch_diffusion.data.images import Images
from patch_diffusion.training.choices.size import Speed, choose_size
from patch_diffusion.training.choices.suggest import suggest


def choose(
    images: Images, config: Config, given: Collection[str], *, measure: Callable[[Config], Speed]
) -> tuple[Config, list[str]]:
    """Choose the size of the network and its steps, see `choose_size`, and what suits the images, see `suggest`.

    Args:
        images: the images to train on.
        config: the options, with a budget.
        given: names of the options that the user gave, which stay as they are.
        measure: function that times some steps of a config.

    Returns:
        The options, and a sentence for each that was chosen.
    """
    config, reasons = choose_size(images, config, given, measure)
    chosen, more = suggest(images, config, given)
    if "batch" in given:
        chosen = replace(chosen, batch_pixels=None)
    return chosen, [*reasons, *more]
