"""The presets of training options, for ``train --preset``."""

from __future__ import annotations

from dataclasses import replace

from patch_diffusion.config import BUDGETS, Config, Data, Ema, Network, Noise, Optimizer, Patches
from patch_diffusion.config_dict import flat_options

# SMALL is for a laptop's CPU, where small steps of a small network learn most per minute: ten minutes give blurry
# pictures at 32 x 32. A GPU needs a larger batch and width.
SMALL = Config(
    network=Network(width=16, multipliers=(1, 2, 4), blocks=1, attention=(2,), dropout=0.0),
    noise=Noise(p_mean=0.0, p_std=1.6, weight="learned"),
    optimizer=Optimizer(kind="muon", learning_rate=5e-3, betas=(0.95, 0.99)),
    batch=16,
    batch_pixels=2**15,
    minutes=30,
    samples=5,
)

PAPER = Config(
    patches=Patches(weight="area"),
    noise=Noise(p_mean=-1.2, p_std=1.2, weight="process"),
    network=Network(width=128, multipliers=(1, 2, 2, 2), blocks=4, attention=(2,), dropout=0.05),
    optimizer=Optimizer(kind="adamw", learning_rate=2e-4, betas=(0.9, 0.999), warmup=0.05, decay="constant"),
    ema=Ema(half_life_images=500_000, ramp=0.05),
    batch=256,
    images=200_000_000,
)

PRESETS: dict[str, Config] = {
    "small": SMALL,
    # The built-in digits become recognisable in three minutes on two CPU cores. So few pixels hold little but layout,
    # which is decided at higher noise than in photographs.
    "digits": Config(
        network=Network(width=16, multipliers=(1, 2, 4), blocks=1, attention=(1,), dropout=0.0),
        noise=Noise(p_mean=0.0, p_std=1.2, weight="process"),
        optimizer=Optimizer(kind="adamw", learning_rate=2e-3, betas=(0.9, 0.99)),
        batch=32,
        minutes=3,
        samples=6,
        checkpoints=3,
    ),
    # Small versions of the other networks, for the same laptop.
    "ncsnpp-small": replace(SMALL, network=replace(SMALL.network, kind="ncsnpp")),
    "adm-small": replace(SMALL, network=replace(SMALL.network, kind="adm")),
    "dit-small": replace(SMALL, network=Network(kind="dit", width=64, depth=4, heads=2, token=2, dropout=0.0)),
    # The networks of EDM (arXiv 2206.00364, table 7), trained on patches as published.
    "ddpmpp-64": PAPER,
    "ncsnpp-64": replace(PAPER, network=replace(PAPER.network, kind="ncsnpp")),
    "adm-64": replace(
        PAPER,
        network=Network(kind="adm", width=192, multipliers=(1, 2, 3, 4), blocks=3, attention=(1, 2, 3), dropout=0.1),
        optimizer=replace(PAPER.optimizer, learning_rate=1e-4),
        ema=Ema(half_life_images=50_000_000, ramp=0.05),
        batch=4096,
        images=2_500_000_000,
    ),
    # For latents of 4 x 32 x 32, trained on whole and in patches of half the side (Patch Diffusion, section 4).
    "adm-latent-32": replace(
        PAPER,
        patches=Patches(weight="area", sizes={"1/2": 1.0}),
        network=Network(kind="adm", width=192, multipliers=(1, 2, 3, 4), blocks=3, attention=(1, 2, 3), dropout=0.1),
        optimizer=replace(PAPER.optimizer, learning_rate=1e-4),
    ),
    # The full published recipe (Patch Diffusion, arXiv 2304.12526), for 64 x 64 images: without held-out images, and
    # with EDM's constants in place of the images' own mean and deviation.
    "paper": replace(PAPER, data=Data(held_out=0.0), noise=replace(PAPER.noise, sigma_data=0.5, mean_data=(0.0,))),
}
"""Sets of training options that go together, by the names that ``train --preset`` takes.

>>> PRESETS["digits"].batch
32
"""

DEFAULT_MINUTES = 30.0
"""The budget of a run that is given none, in minutes."""


def with_budget(config: Config) -> Config:
    """Return the options with the default budget if they have none."""
    has_one = any(getattr(config, name) is not None for name in BUDGETS)
    return config if has_one else replace(config, minutes=DEFAULT_MINUTES)


def nearest_preset(config: Config) -> str | None:
    """Return the name of the preset that has most values in common with a config; None if the defaults have more."""
    options = flat_options(config)

    def agreeing(preset: Config) -> int:
        return sum(value == options[name] for name, value in flat_options(preset).items() if name not in BUDGETS)

    nearest = max(PRESETS, key=lambda name: agreeing(PRESETS[name]))
    usual = Config(noise=SMALL.noise, optimizer=SMALL.optimizer)  # as they are settled
    return nearest if agreeing(PRESETS[nearest]) > agreeing(usual) else None
