"""The largest and smallest numbers that options may have."""

from __future__ import annotations

from patch_diffusion.config import Config
from patch_diffusion.config_dict import flat_options
from patch_diffusion.errors import finite_number, option_error
from patch_diffusion.records import check_limits

LARGEST = 2**63 - 1
"""The largest whole number of an option: that of 64 bits."""

LARGEST_FLOAT = 10**12
"""The largest of the other numbers, whose squares and differences are still numbers in single precision."""

MOST_LEVELS = 12
"""The most levels of a U-Net, of which each but the first halves height and width."""

LIMITS: dict[str, tuple[int, int]] = {
    "data.resolution": (1, 65_536),
    "patches.context": (1, 65_536),
    "network.width": (1, 16_384),
    "network.multipliers": (1, 64),
    "network.blocks": (1, 64),
    "network.depth": (1, 512),
    "network.heads": (1, 1024),
    "network.token": (1, 1024),
    "noise.sigma_data": (0, 1_000_000_000),
    "noise.levels": (0, LARGEST_FLOAT),
    "ema.lengths": (0, 1),
    "engine.threads": (1, 4096),
    "engine.processes": (1, 1024),
    "engine.accumulation": (1, 100_000),
    "watch.samples": (1, 10_000_000),
    "batch": (1, 100_000),
    "few_steps": (1, 16),
    "minutes": (0, 10_000_000),
    "wall_minutes": (0, 10_000_000),
    "checkpoints": (1, 1_000_000),
    "checkpoint_steps": (1, LARGEST),
    "checkpoint_last": (1, LARGEST),
    "samples": (0, 1_000_000),
    "log_every": (1, LARGEST),
}
"""The least and the most of numbers of options, so that none, a mistake or a stranger's, becomes a size without end."""


def check_numbers(config: Config, where: str = "") -> None:
    """Raise InputError if a number of a config is not finite, or beyond its `LIMITS`; ``where`` begins the error."""
    options = flat_options(config)
    for name, value in options.items():
        for number in value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]:
            most = LARGEST
            if isinstance(number, float):
                finite_number(name, number)
                most = LARGEST_FLOAT
            check_limits({name: number}, {name: (-most, most)}, where)
    check_limits(options, LIMITS, where)
    if len(config.network.multipliers or ()) > MOST_LEVELS:
        raise option_error("network.multipliers", f"has at most {MOST_LEVELS} levels")
    for name in ("noise.mean_data", "noise.levels"):
        if options[name] == []:
            raise option_error(name, "names no number: give some, or leave it out")
    if not config.checkpoint_minutes > 0:
        raise option_error("checkpoint_minutes", f"is above 0, not {config.checkpoint_minutes}")
