"""One class at a time, and more of it than the data have: classes and guidance, on the built-in digits.

    python examples/guided_digits.py --minutes 3

The network is told the class of an image, and now and then it is not (label dropout, 10 % of the time), so it learns
both. Guidance then goes further in the direction from "any digit" to "a seven" (arXiv 2207.12598): the digits become
clearer and more alike. The picture has a row for each strength of guidance; the noise of a column is the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import patch_diffusion as pd


def main(words: list[str] | None = None) -> dict[float, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/guided-digits"), metavar="RUN")
    parser.add_argument("--minutes", type=float, default=3.0, help="of training")
    parser.add_argument("--digit", type=int, default=7, choices=range(10))
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0, 4.0], metavar="SCALE", help="1 is none")
    parser.add_argument("--samples", type=int, default=10, metavar="N")
    options = parser.parse_args(words)

    images = pd.open_images("digits")
    preset = pd.PRESETS["digits"]
    network = pd.UNet(1, width=16, multipliers=(1, 2, 4), blocks=1, dropout=0.0, num_classes=images.num_classes)
    denoiser = pd.Denoiser(network, sigma_data=images.standard_deviation)
    trainer = pd.Trainer(denoiser, images, out=options.out, batch=32, optimizer=preset.optimizer, noise=preset.noise)
    model = trainer.fit(minutes=options.minutes)

    pictures, spread = [], {}
    for scale in options.guidance:
        samples = pd.generate(model, range(options.samples), pd.Sampling(guidance=scale), labels=options.digit)
        row = [sample.visible for sample in samples]
        pictures += row
        spread[scale] = float(torch.stack(row).float().std(dim=0).mean())
        print(f"guidance {scale}: pixels differ from picture to picture by {spread[scale]:.1f} of 255 (std)")
    pd.picture_grid(pictures, columns=options.samples).save(options.out / "guidance.png")
    print(f"the picture is {options.out / 'guidance.png'}, a row for each strength")
    return spread


if __name__ == "__main__":
    main()
