"""Settings that go together."""

from __future__ import annotations

from patch_diffusion.config import Config, Ema, Network, Noise, Optimizer, Patches

PRESETS: dict[str, Config] = {
    # For a laptop's CPU, where small steps of a small network learn most per minute: ten minutes give blurry pictures
    # at 32 x 32. A GPU wants a larger batch and width.
    "small": Config(
        network=Network(width=16, multipliers=(1, 2, 4), blocks=1, attention=(2,), dropout=0.0),
        noise=Noise(p_mean=0.0),
        optimizer=Optimizer(kind="muon", learning_rate=5e-3, betas=(0.95, 0.99)),
        batch=16,
        minutes=30,
        samples=5,
    ),
    # The built-in digits: recognisable in three minutes on two CPU cores. So few pixels hold little but layout, which
    # is decided at higher noise than a photograph's.
    "digits": Config(
        network=Network(width=16, multipliers=(1, 2, 4), blocks=1, attention=(1,), dropout=0.0),
        noise=Noise(p_mean=0.0),
        optimizer=Optimizer(learning_rate=2e-3),
        batch=32,
        minutes=3,
        samples=6,
        checkpoints=3,
    ),
    # The published recipe (Patch Diffusion, arXiv 2304.12526; EDM, arXiv 2206.00364, table 7), for 64 x 64 images.
    "paper": Config(
        patches=Patches(weight="area"),
        network=Network(width=128, multipliers=(1, 2, 2, 2), blocks=4, dropout=0.05),
        optimizer=Optimizer(learning_rate=2e-4, betas=(0.9, 0.999), warmup=0.05, decay="constant"),
        ema=Ema(half_life_images=500_000, ramp=0.05),
        batch=256,
        images=200_000_000,
    ),
}

DEFAULT_PRESET = "small"
