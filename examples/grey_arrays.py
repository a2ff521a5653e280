"""Scientific images: one channel, not square, 16-bit counts or floats, from an .npy file and back into one.

    python examples/grey_arrays.py scans.npy --minutes 30

Nothing is rounded to 8 bits on the way: a model of 16-bit counts makes 16-bit counts, one of floats makes floats.
Without a file it makes 16-bit pictures of blobs such as a detector sees them, of 24 x 48 pixels, and trains on those.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import patch_diffusion as pd


def make_scans(file: Path, num: int = 1000) -> Path:
    """Counts (n, 24, 48), 16 bits: round sources of light on a dim background, and the noise of counting photons."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:24, 0:48]
    scans = np.full((num, 24, 48), 900.0)
    for scan in scans:
        for _ in range(random.integers(1, 4)):
            distance = (y - random.uniform(3, 21)) ** 2 + (x - random.uniform(3, 45)) ** 2
            scan += random.uniform(8e3, 4e4) * np.exp(-distance / (2 * random.uniform(1.5, 3.0) ** 2))
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, random.poisson(scans).clip(0, 2**16 - 1).astype(np.uint16))
    return file


def main(words: list[str] | None = None) -> np.ndarray:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="?", metavar="FILE.npy", help="n x h x w numbers; None: some are made")
    parser.add_argument("--out", type=Path, default=Path("runs/scans"), metavar="RUN")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training")
    parser.add_argument("--samples", type=int, default=16, metavar="N")
    options = parser.parse_args(words)
    file = options.scans or make_scans(options.out.with_suffix(".npy"))

    images = pd.open_images(file)
    height, width = images.resolution
    kind = images.buckets[0].pixels.dtype
    print(f"{len(images)} images of {height} x {width} with {images.channels} channel(s), {kind}")

    # Two levels, and patches down to a quarter: height and width must be multiples of 8.
    network = pd.UNet(images.channels, width=16, multipliers=(1, 2), blocks=1, dropout=0.0)
    denoiser = pd.Denoiser(network, sigma_data=images.standard_deviation)
    trainer = pd.Trainer(denoiser, images, pd.PatchSchedule(), out=options.out, batch=16)
    model = trainer.fit(minutes=options.minutes)

    samples = list(pd.generate(model, range(options.samples)))
    made = np.stack([sample.pixels.numpy() for sample in samples])
    np.save(options.out / "generated.npy", made)
    pd.picture_grid([sample.visible for sample in samples]).save(options.out / "grid.png")
    print(f"{options.out / 'generated.npy'}: {made.shape}, {made.dtype}, {made.min()} to {made.max()}")
    for name, values in (("trained on", np.load(file)), ("generated", made)):
        print(f"{name:>10}: mean {values.mean():.0f}, 1 % above {np.quantile(values, 0.99):.0f}")
    return made


if __name__ == "__main__":
    main()
