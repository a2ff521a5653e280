"""The arms of a race: training configs to compare at equal training time, and checks that they are comparable."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

from patch_diffusion.config import BUDGETS, Config
from patch_diffusion.config_dict import differences, flat_options
from patch_diffusion.errors import InputError

PATCHES, WHOLE, SCRATCH = "patches", "whole", "scratch"
"""The names of the usual configurations (arms) of a race: training on patches, and training on whole images.

If these train on from a model, ``scratch`` is training on patches from random weights.
"""

# All arms share these options, because losses or times could not be compared if they differed.
_SHARED = (
    "data",
    "noise.process",
    "noise.sigma_data",
    "noise.mean_data",
    "noise.levels",
    "engine.device",
    "engine.threads",
    "engine.processes",
    "engine.shard",
    "seed",
    "watch",
)
_OWN = "data.augment"  # augmentation is a part of how to train, so arms may differ in it


def whole_images(config: Config) -> Config:
    """Return a copy of a config for ordinary training: on whole images, and without coordinates."""
    return replace(config, patches=replace(config.patches, whole=1.0, coords=False))


def check_arms(arms: Mapping[str, Config]) -> None:
    """Raise InputError if the configurations (arms) of a race cannot be compared.

    Raises:
        InputError: there are fewer than two arms, a name cannot be part of a folder's name, two arms are the same, or
            one arm differs in an option that all must share.
    """
    if len(arms) < 2:
        raise InputError(f"a race takes two arms or more, not {len(arms)}: add one by --arm NAME 'patches.whole=0.25'")
    for name in arms:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise InputError(f"an arm's name is made of letters, digits, '-', '_' and '.', not '{name}'")
    if len({name.casefold() for name in arms}) < len(arms):
        raise InputError(
            "two names of arms differ in case alone, and some systems have one folder for both: rename one"
        )
    if with_context := [name for name, config in arms.items() if config.patches.context is not None]:
        raise InputError(
            f"arm '{with_context[0]}' has patches.context, so its network is given every image in small: its loss of "
            "whole images cannot be compared with that of the others, so leave patches.context out"
        )
    first, *others = arms
    options = {name: flat_options(config) for name, config in arms.items()}
    for name in others:
        for option in differences({each: arms[each] for each in (first, name)}):
            if _is_in(option, _SHARED) and not _is_in(option, (_OWN,)):
                raise InputError(
                    f"arm '{name}' has {option} {options[name][option]} and arm '{first}' {options[first][option]}: "
                    "in a race all have the same images, seed, device, weighting of the loss and measures"
                )
        if _unit(arms[name]) != _unit(arms[first]):
            raise InputError(
                f"arm '{name}' has a budget of {_unit(arms[name])} and arm '{first}' one of {_unit(arms[first])}: in a "
                "race all budgets are counted in one unit"
            )
    for one, other in combinations(arms, 2):
        if options[one] == options[other]:
            raise InputError(f"arms '{one}' and '{other}' are the same: give one of them another option")


def _unit(config: Config) -> str:
    """Return the unit of a config's training budget, "steps", "images" or "minutes"; "nothing" if it has none."""
    given = [name for name in BUDGETS if getattr(config, name) is not None]
    return " and ".join(given) or "nothing"


def _is_in(option: str, groups: tuple[str, ...]) -> bool:
    return any(option == group or option.startswith(f"{group}.") for group in groups)
