"""Tiles of photographs as images to train on and others to judge by: a data set without a layout.

    python benchmarks/evidence/tiles.py PHOTOS OUT [--side 64] [--held-out 3] [--judges 64]

Square tiles that overlap by half, of the photographs and of the same at half the size, in random order. Those of the
last photographs, or some of them, make OUT/heldout.zip, those of the others OUT/train.zip.
"""

import argparse
import io
import random
import zipfile
from pathlib import Path

from PIL import Image


def tiles_of(photograph: Path, side: int) -> list[Image.Image]:
    """All of one photograph."""
    found = []
    with Image.open(photograph) as opened:
        image = opened.convert("RGB")
    for scale in (1, 2):
        smaller = image.resize((image.width // scale, image.height // scale), Image.Resampling.LANCZOS)
        found += [
            smaller.crop((left, top, left + side, top + side))
            for top in range(0, smaller.height - side + 1, side // 2)
            for left in range(0, smaller.width - side + 1, side // 2)
        ]
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--held-out", type=int, default=3, help="photographs")
    parser.add_argument("--judges", type=int, help="the most tiles of these; all where not given")
    arguments = parser.parse_args()
    photographs = sorted(arguments.photographs.glob("*.png"))
    split = len(photographs) - arguments.held_out
    shuffled = random.Random(0)
    arguments.out.mkdir(parents=True, exist_ok=True)
    groups = (("train", photographs[:split], None), ("heldout", photographs[split:], arguments.judges))
    for name, group, most in groups:
        tiles = [tile for photograph in group for tile in tiles_of(photograph, arguments.side)]
        shuffled.shuffle(tiles)
        tiles = tiles[:most]
        with zipfile.ZipFile(arguments.out / f"{name}.zip", "w") as archive:
            for number, tile in enumerate(tiles):
                encoded = io.BytesIO()
                tile.save(encoded, "PNG")
                archive.writestr(f"{number:05d}.png", encoded.getvalue())
        print(f"{name}: {len(tiles):,} tiles of {len(group)} photographs")


if __name__ == "__main__":
    main()
